//! The open image, requests in the background, and how a line becomes a command.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use diskette::native::CacheMode;
use diskette::options::Options;
use diskette::{Image, Node, Role, block_on};

use super::commands::{self, Command, Outcome, Problem};
use super::getopt::Given;
use crate::open::{self, Opened, Wish};
use crate::{Failure, output, program};

/// How images are opened unless a command says otherwise.
#[derive(Clone, Debug)]
pub(super) struct Defaults {
    /// Whether names are lists of options.
    pub(super) image_opts: bool,
    pub(super) read_only: bool,
    pub(super) force_share: bool,
    pub(super) snapshot: bool,
    pub(super) copy_on_read: bool,
    pub(super) cache: Option<CacheMode>,
    pub(super) discard: bool,
}

impl Default for Defaults {
    fn default() -> Self {
        Defaults {
            image_opts: false,
            read_only: false,
            force_share: false,
            snapshot: false,
            copy_on_read: false,
            cache: None,
            discard: true,
        }
    }
}

/// A request that runs beside others, and gives what it has to say.
type Background = Pin<Box<dyn Future<Output = String>>>;

/// What was opened, and how, so that it can be opened anew.
struct Current {
    opened: Opened,
    name: String,
    wish: Wish,
    /// The options that it was opened with first.
    given: Options,
}

pub(super) struct Shell {
    defaults: Defaults,
    current: Option<Current>,
    /// Requests that were started and have not ended, in the order in which they were started.
    background: Vec<Background>,
    has_quit: bool,
}

impl Shell {
    pub(super) fn new(defaults: Defaults) -> Self {
        Shell { defaults, current: None, background: Vec::new(), has_quit: false }
    }

    pub(super) fn has_quit(&self) -> bool {
        self.has_quit
    }

    pub(super) fn quit(&mut self) {
        self.has_quit = true;
    }

    pub(super) fn defaults(&self) -> Defaults {
        self.defaults.clone()
    }

    /// The open image. Commands that need one are not run without.
    pub(super) fn image(&self) -> Result<Arc<Image>, Problem> {
        self.current.as_ref().map(|current| current.opened.image.clone()).ok_or(Problem::Said)
    }

    pub(super) fn open(
        &mut self,
        name: &str,
        format: Option<&str>,
        image_opts: bool,
        options: Options,
        how: Defaults,
    ) -> Result<(), Failure> {
        if self.current.is_some() {
            return Err(Failure::new("file open already, try 'help close'"));
        }
        let wish = Wish {
            format: format.map(str::to_string),
            image_opts,
            force_share: how.force_share,
            cache: how.cache.unwrap_or_default(),
            writable: !how.read_only || how.snapshot,
            discard: how.discard,
            temporary: how.snapshot,
            copy_on_read: how.copy_on_read,
            options,
            ..Wish::default()
        };
        let opened = open::open_plainly(name, &wish).map_err(|failure| {
            failure.within(&if image_opts { "can't open".to_string() } else { format!("can't open device {name}") })
        })?;
        claim(&opened, &wish)?;
        let given = wish.options.clone();
        self.current = Some(Current { opened, name: name.to_string(), wish, given });
        Ok(())
    }

    /// Closes the image and opens it again with other options.
    pub(super) fn reopen(&mut self, change: impl FnOnce(&mut Wish)) -> Result<(), Failure> {
        self.drain();
        let Some(Current { opened, name, wish: before, given }) = self.current.take() else { return Ok(()) };
        opened.close()?;
        drop(opened);
        // Options that an earlier change gave are as they were again, unless they are given anew.
        let mut wish = Wish { options: given.clone(), ..before.clone() };
        change(&mut wish);
        match open::open_plainly(&name, &wish) {
            Ok(opened) => {
                claim(&opened, &wish)?;
                self.current = Some(Current { opened, name, wish, given });
                Ok(())
            }
            Err(failure) => {
                // The image stays as it was.
                let opened = open::open_plainly(&name, &before)?;
                claim(&opened, &before)?;
                self.current = Some(Current { opened, name, wish: before, given });
                Err(failure)
            }
        }
    }

    /// The value that an option of the open image has, if it was given or can be told from the image.
    pub(super) fn option(&self, name: &str) -> Option<String> {
        let current = self.current.as_ref()?;
        if let Some(value) = current.wish.options.value(name) {
            return Some(value.to_string());
        }
        let image = &current.opened.image;
        match name {
            "driver" => Some(image.format_name().to_string()),
            "file.driver" => Some("file".to_string()),
            "backing.driver" => {
                let backing = image.child(Role::Backing)?;
                let backing = backing.as_any()?.downcast_ref::<Image>()?;
                Some(backing.format_name().to_string())
            }
            _ => None,
        }
    }

    /// Waits for what runs in the background and says what became of it.
    pub(super) fn drain(&mut self) {
        self.step();
        if !self.background.is_empty() {
            eprintln!("{} requests are held up and are given up", self.background.len());
            self.background.clear();
        }
    }

    /// Starts a request that runs beside those that follow. It gets as far as it can at once.
    pub(super) fn in_background(&mut self, request: impl Future<Output = String> + 'static) {
        self.background.push(Box::pin(request));
        self.step();
    }

    /// Lets what runs in the background go on until it waits for something that a command has to do.
    pub(super) fn step(&mut self) {
        let mut context = Context::from_waker(Waker::noop());
        let mut index = 0;
        while let Some(request) = self.background.get_mut(index) {
            match request.as_mut().poll(&mut context) {
                Poll::Ready(text) => {
                    drop(self.background.remove(index));
                    output::print(&text);
                    // Others may have waited for it.
                    index = 0;
                }
                Poll::Pending => index += 1,
            }
        }
    }

    pub(super) fn close(&mut self) {
        self.drain();
        if let Some(current) = self.current.take()
            && let Err(failure) = current.opened.close()
        {
            complain(&failure.message);
        }
    }

    /// Runs one line. Says whether it succeeded.
    pub(super) fn execute(&mut self, line: &str) -> bool {
        let words: Vec<&str> = line.split(' ').filter(|word| !word.is_empty()).collect();
        let Some((name, rest)) = words.split_first() else { return true };
        let Some(command) = commands::find(name) else {
            eprintln!("command \"{name}\" not found");
            return false;
        };
        if command.needs_image && self.current.is_none() {
            eprintln!("no file open, try 'help open'");
            return false;
        }
        let outcome = self.parse_and_run(command, name, rest);
        self.step();
        match outcome {
            Ok(()) => true,
            Err(Problem::Said) => false,
            Err(Problem::Text(text)) => {
                output::line(&text);
                false
            }
            Err(Problem::Failure(failure)) => {
                complain(&failure.message);
                false
            }
            Err(Problem::Usage) => {
                output::line(&command.one_line(name));
                false
            }
        }
    }

    fn parse_and_run(&mut self, command: &Command, name: &str, words: &[&str]) -> Outcome {
        if let Some(wrong) = command.wrong_count(name, words.len()) {
            eprintln!("{wrong}");
            return Err(Problem::Said);
        }
        let given = Given::parse(words, command.options).map_err(|wrong| {
            eprintln!("{name}: {wrong}");
            Problem::Usage
        })?;
        (command.run)(self, &given)
    }
}

/// Says on disk that the image is in use, whatever becomes of the program: it is there to exercise that, too.
fn claim(opened: &Opened, wish: &Wish) -> Result<(), Failure> {
    if wish.writable && !wish.temporary { Ok(block_on(opened.image.claim_bitmaps())?) } else { Ok(()) }
}

fn complain(message: &str) {
    eprintln!("{}: {message}", program::name());
}
