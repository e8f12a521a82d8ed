//! Connections to one export: how many there are, and what happens when one is lost.

use std::format;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use std::vec::Vec;

use crate::error::{Error, ErrorKind, Result};
use crate::native::nbd::socket::Socket;
use crate::protocols::nbd::{Export, Failure, Session, Settings, negotiate};

/// Most connections, if the server allows more than one.
const MAX_CONNECTIONS: usize = 4;
/// Time for a connection and its handshake.
const HANDSHAKE_TIME: Duration = Duration::from_secs(60);
/// Time for one more connection. A server that takes no more leaves it waiting.
const EXTRA_TIME: Duration = Duration::from_secs(1);
/// Time between two attempts to connect.
const RETRY_TIME: Duration = Duration::from_millis(100);

/// A connection on which the handshake is over.
pub(super) struct Connection {
    pub(super) socket: Socket,
    pub(super) session: Session,
    /// Whether nobody is there any more to say goodbye to.
    broken: bool,
}

impl Connection {
    fn open(settings: &Settings, deadline: Instant, patience: Duration) -> Result<Self> {
        let mut socket = Socket::connect(&settings.address, deadline, patience)?;
        let export = negotiate(&mut socket, &settings.export, settings.context.as_deref())?;
        socket.settle();
        Ok(Connection { socket, session: Session::new(export), broken: false })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if !self.broken {
            self.session.disconnect(&mut self.socket);
        }
    }
}

/// The connections of a node.
pub(super) struct Pool {
    settings: Settings,
    patience: Duration,
    /// What the first connection found; all others must find the same.
    export: Export,
    state: Mutex<State>,
    freed: Condvar,
}

struct State {
    idle: Vec<Connection>,
    /// Connections that are idle, in use or being made.
    open: usize,
    /// Most connections.
    limit: usize,
    /// Since when there is no connection.
    lost: Option<Instant>,
}

impl Pool {
    /// Connects, again and again for as long as the settings say.
    pub(super) fn open(settings: &Settings, patience: Duration) -> Result<Self> {
        let give_up = Instant::now() + Duration::from_secs(settings.open_timeout);
        let connection = loop {
            let deadline = Instant::now() + HANDSHAKE_TIME.min(patience);
            match Connection::open(settings, deadline, patience) {
                Ok(connection) => break connection,
                Err(error) if Instant::now() >= give_up => return Err(error),
                Err(_) => thread::sleep(RETRY_TIME.min(give_up.saturating_duration_since(Instant::now()))),
            }
        };
        let export = *connection.session.export();
        let limit = if export.flags.multi_connection() { MAX_CONNECTIONS } else { 1 };
        let idle = std::vec![connection];
        Ok(Pool {
            settings: settings.clone(),
            patience,
            export,
            state: Mutex::new(State { idle, open: 1, limit, lost: None }),
            freed: Condvar::new(),
        })
    }

    pub(super) fn export(&self) -> &Export {
        &self.export
    }

    /// Makes a request on some connection; on another one, if that is lost and the settings say to wait.
    pub(super) fn run<T>(&self, mut request: impl FnMut(&mut Connection) -> Result<T, Failure>) -> Result<T> {
        let delay = Duration::from_secs(self.settings.reconnect_delay);
        let mut deadline = None;
        loop {
            let mut connection = self.acquire(deadline)?;
            let failure = match request(&mut connection) {
                Ok(value) => {
                    self.release(connection);
                    return Ok(value);
                }
                Err(Failure::Refused(error)) => {
                    self.release(connection);
                    return Err(error);
                }
                Err(failure) => failure,
            };
            let again = matches!(failure, Failure::Lost(_)) && !delay.is_zero();
            self.abandon(connection);
            let now = Instant::now();
            if deadline.is_some() {
                // A server that always ends the connection is not asked without a pause.
                thread::sleep(RETRY_TIME);
            }
            let limit = *deadline.get_or_insert(now + delay);
            if !again || now >= limit {
                return Err(failure.into_error());
            }
        }
    }

    /// Ends all connections that nobody uses.
    pub(super) fn close(&self) {
        let idle = {
            let mut state = self.state();
            state.open = state.open.saturating_sub(state.idle.len());
            core::mem::take(&mut state.idle)
        };
        drop(idle);
        self.freed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection that nobody else uses. Without any, one is made until `deadline`, or for as long as the settings say.
    fn acquire(&self, deadline: Option<Instant>) -> Result<Connection> {
        let delay = Duration::from_secs(self.settings.reconnect_delay);
        let mut state = self.state();
        loop {
            if let Some(connection) = state.idle.pop() {
                return Ok(connection);
            }
            if state.open >= state.limit {
                state = self.freed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let is_extra = state.open > 0;
            state.open += 1;
            let give_up = deadline.or_else(|| state.lost.map(|lost| lost + delay));
            drop(state);
            let time = if is_extra { EXTRA_TIME } else { HANDSHAKE_TIME };
            let time = time.min(self.patience);
            let made = self.connect(Instant::now() + time);
            state = self.state();
            let error = match made {
                Ok(connection) => {
                    state.lost = None;
                    return Ok(connection);
                }
                Err(error) => error,
            };
            state.open = state.open.saturating_sub(1);
            if is_extra {
                // It will do with what it has.
                state.limit = state.open.max(1);
                continue;
            }
            self.freed.notify_one();
            let now = Instant::now();
            let Some(rest) = give_up.map(|give_up| give_up.saturating_duration_since(now)) else { return Err(error) };
            if rest.is_zero() {
                return Err(error);
            }
            drop(state);
            thread::sleep(RETRY_TIME.min(rest));
            state = self.state();
        }
    }

    fn connect(&self, deadline: Instant) -> Result<Connection> {
        let connection = Connection::open(&self.settings, deadline, self.patience)?;
        let (now, before) = (connection.session.export(), &self.export);
        if (now.length, now.flags) != (before.length, before.flags)
            || now.minimum_block > before.minimum_block
            || now.maximum_block < before.maximum_block
        {
            return Err(Error::new(
                ErrorKind::Io,
                format!("the export has changed: {} bytes where there were {}", now.length, before.length),
            ));
        }
        Ok(connection)
    }

    fn release(&self, connection: Connection) {
        self.state().idle.push(connection);
        self.freed.notify_one();
    }

    /// Gives up a connection that is of no use any more, and those that are likely to have ended with it.
    fn abandon(&self, mut connection: Connection) {
        connection.broken = true;
        drop(connection);
        let mut idle = {
            let mut state = self.state();
            state.open = state.open.saturating_sub(1 + state.idle.len());
            if state.open == 0 {
                state.lost.get_or_insert_with(Instant::now);
            }
            core::mem::take(&mut state.idle)
        };
        idle.iter_mut().for_each(|connection| connection.broken = true);
        drop(idle);
        self.freed.notify_all();
    }
}
