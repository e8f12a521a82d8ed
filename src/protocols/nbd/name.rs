//! What exports are called, and the options that say where they are.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use super::wire::MAX_TEXT_BYTES;
use crate::error::{Error, Result};
use crate::options::Options;

/// The port that servers listen on, unless told otherwise.
pub const DEFAULT_PORT: &str = "10809";

/// Options of a server that change nothing for a client.
const HINTS: [&str; 5] = ["ipv4", "ipv6", "keep-alive", "numeric", "to"];

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// At a TCP port of a host.
    Inet {
        /// Name or number of the host.
        host: String,
        /// Number of the port.
        port: String,
    },
    /// At a socket in the file system.
    Unix {
        /// Path of the socket.
        path: String,
    },
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Inet { host, port } => write!(f, "{host}:{port}"),
            Address::Unix { path } => f.write_str(path),
        }
    }
}

/// What a client is told: which export of which server, and how patient to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where the server is.
    pub address: Address,
    /// Name of the export; empty for the server's default one.
    pub export: String,
    /// The context that block status is taken from, instead of `base:allocation`.
    pub context: Option<String>,
    /// Seconds for which requests wait for a connection that was lost.
    pub reconnect_delay: u64,
    /// Seconds for which opening tries again to connect.
    pub open_timeout: u64,
}

impl Settings {
    /// An export, with no patience.
    pub fn new(address: Address, export: &str) -> Self {
        Settings { address, export: export.to_string(), context: None, reconnect_delay: 0, open_timeout: 0 }
    }

    /// Takes the options of the driver `nbd`.
    ///
    /// # Errors
    /// There is no address, or more than one; a value is wrong; TLS is asked for.
    pub fn take(options: &mut Options) -> Result<Self> {
        if let Some(name) = options.take("filename") {
            let described = parse_name(&name)
                .unwrap_or_else(|| Err(Error::invalid("File name string for new protocols must start with 'nbd:'")))?;
            for (name, value) in described.iter().filter(|(name, _)| *name != "driver") {
                options.set_default(name, value);
            }
        }
        for name in ["tls-creds", "tls-hostname"] {
            if options.take(name).is_some() {
                return Err(Error::unsupported(alloc::format!("TLS ('{name}') is not supported")));
            }
        }
        let address = take_address(options)?;
        let export = options.take("export").unwrap_or_default();
        let context = options.take("x-dirty-bitmap");
        if export.len() > MAX_TEXT_BYTES {
            return Err(Error::invalid("export name too long to send to server"));
        }
        if context.as_ref().is_some_and(|context| context.len() > MAX_TEXT_BYTES) {
            return Err(Error::invalid("x-dirty-bitmap query too long to send to server"));
        }
        let mut seconds = |name: &str| match options.take(name) {
            None => Ok(0),
            Some(text) => text
                .parse::<u32>()
                .map(u64::from)
                .map_err(|_| Error::invalid(alloc::format!("Parameter '{name}' expects a number"))),
        };
        Ok(Settings {
            address,
            export,
            context,
            reconnect_delay: seconds("reconnect-delay")?,
            open_timeout: seconds("open-timeout")?,
        })
    }

    /// The name that stands for the export, as QEMU writes it.
    pub fn name(&self) -> String {
        let Settings { address, export, .. } = self;
        match address {
            Address::Unix { path } if export.is_empty() => alloc::format!("nbd+unix://?socket={path}"),
            Address::Unix { path } => alloc::format!("nbd+unix:///{export}?socket={path}"),
            Address::Inet { host, port } => {
                let host = if host.contains(':') { alloc::format!("[{host}]") } else { host.clone() };
                let slash = if export.is_empty() { "" } else { "/" };
                alloc::format!("nbd://{host}:{port}{slash}{export}")
            }
        }
    }
}

fn take_address(options: &mut Options) -> Result<Address> {
    let mut server = options.take_child("server");
    let (host, port, path) = (options.take("host"), options.take("port"), options.take("path"));
    let missing = |name: &str| Error::invalid(alloc::format!("Parameter '{name}' is missing"));
    if server.is_empty() {
        return match (host, port, path) {
            (Some(_), _, Some(_)) => Err(Error::invalid("path and host may not be used at the same time")),
            (None, Some(_), Some(_)) => Err(Error::invalid("port may not be used without host")),
            (None, None, Some(path)) => Ok(Address::Unix { path }),
            (Some(host), port, None) => Ok(Address::Inet { host, port: port.unwrap_or_else(|| DEFAULT_PORT.into()) }),
            (None, _, None) => Err(Error::invalid("NBD server address missing")),
        };
    }
    if host.is_some() || port.is_some() || path.is_some() {
        return Err(Error::invalid("'server' and path/host/port cannot be used at the same time"));
    }
    let kind = server.take("type").ok_or_else(|| missing("server.type"))?;
    let address = match kind.as_str() {
        "unix" => Address::Unix { path: server.take("path").ok_or_else(|| missing("path"))? },
        "inet" => {
            for hint in HINTS {
                server.take(hint);
            }
            Address::Inet {
                host: server.take("host").ok_or_else(|| missing("host"))?,
                port: server.take("port").ok_or_else(|| missing("port"))?,
            }
        }
        "vsock" | "fd" => return Err(Error::unsupported(alloc::format!("servers of type '{kind}' are not supported"))),
        other => {
            return Err(Error::invalid(alloc::format!("Parameter 'type' does not accept value '{other}'")));
        }
    };
    match server.iter().next() {
        None => Ok(address),
        Some((name, _)) => Err(Error::invalid(alloc::format!("Parameter '{name}' is unexpected"))),
    }
}

/// The options that a name such as `nbd://host/export` stands for, if it is one of NBD's.
pub fn parse_name(name: &str) -> Option<Result<Options>> {
    let (scheme, rest) = name.split_once(':')?;
    if !["nbd", "nbd+tcp", "nbd+unix"].contains(&scheme) {
        return None;
    }
    let parsed = match rest.strip_prefix("//") {
        Some(rest) => parse_url(rest, scheme == "nbd+unix"),
        None if scheme == "nbd" => parse_old(rest),
        None => Err(Error::invalid("File name string for new protocols must start with 'nbd:'")),
    };
    Some(parsed.map(|(address, export)| describe(address, &export)))
}

fn describe(address: Address, export: &str) -> Options {
    let mut options = Options::new();
    options.set("driver", "nbd");
    match address {
        Address::Unix { path } => {
            options.set("server.type", "unix");
            options.set("server.path", &path);
        }
        Address::Inet { host, port } => {
            options.set("server.type", "inet");
            options.set("server.host", &host);
            options.set("server.port", &port);
        }
    }
    if !export.is_empty() {
        options.set("export", export);
    }
    options
}

/// `host[:port]/export` or `/export?socket=path`.
fn parse_url(rest: &str, unix: bool) -> Result<(Address, String)> {
    let invalid = || Error::invalid("No valid URL specified");
    let rest = rest.split('#').next().unwrap_or_default();
    let (before, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = before.split_once('/').unwrap_or((before, ""));
    let export = percent_decoded(path).ok_or_else(invalid)?;
    if unix {
        let socket = query.strip_prefix("socket=").filter(|socket| !socket.is_empty() && !socket.contains('&'));
        let path = socket.and_then(percent_decoded).filter(|_| authority.is_empty()).ok_or_else(invalid)?;
        return Ok((Address::Unix { path }, export));
    }
    let authority = percent_decoded(authority).filter(|text| !text.is_empty() && query.is_empty());
    let authority = authority.ok_or_else(invalid)?;
    let (host, port) = split_host(&authority);
    let port = port.filter(|port| !port.is_empty()).unwrap_or(DEFAULT_PORT);
    if host.is_empty() || host.contains('@') || port.parse::<u16>().is_err() {
        return Err(invalid());
    }
    Ok((Address::Inet { host: host.to_string(), port: port.to_string() }, export))
}

/// `host:port[:exportname=NAME]` or `unix:path[:exportname=NAME]`.
fn parse_old(rest: &str) -> Result<(Address, String)> {
    let (address, export) = rest.split_once(":exportname=").unwrap_or((rest, ""));
    if address.is_empty() {
        return Err(Error::invalid("NBD server address missing"));
    }
    if let Some(path) = address.strip_prefix("unix:") {
        return Ok((Address::Unix { path: path.to_string() }, export.to_string()));
    }
    match split_host(address) {
        (host, Some(port)) => {
            Ok((Address::Inet { host: host.to_string(), port: port.to_string() }, export.to_string()))
        }
        _ => Err(Error::invalid(alloc::format!("error parsing address '{address}'"))),
    }
}

/// Host and port. A host that is a number with colons stands in brackets.
fn split_host(text: &str) -> (&str, Option<&str>) {
    if let Some((host, rest)) = text.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
        return (host, rest.strip_prefix(':'));
    }
    match text.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    }
}

/// The text with `%41` made `A`, if that gives a text.
fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit =
            || rest.next().and_then(|byte| char::from(byte).to_digit(16)).and_then(|d| u8::try_from(d).ok());
        bytes.push(digit()? * 16 + digit()?);
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(name: &str) -> Result<String> {
        let mut options = parse_name(name).unwrap()?;
        options.take("driver");
        let settings = Settings::take(&mut options)?;
        assert!(options.is_empty(), "{options:?}");
        Ok(settings.name())
    }

    #[test]
    fn every_form_of_a_name_means_the_same_export() {
        for (name, shown) in [
            ("nbd://host/exp", "nbd://host:10809/exp"),
            ("nbd+tcp://host:7/exp", "nbd://host:7/exp"),
            ("nbd://host", "nbd://host:10809"),
            ("nbd://[::1]:7/a%20b/c", "nbd://[::1]:7/a b/c"),
            ("nbd:host:7", "nbd://host:7"),
            ("nbd:[::1]:7:exportname=e:f", "nbd://[::1]:7/e:f"),
            ("nbd+unix:///exp?socket=/s", "nbd+unix:///exp?socket=/s"),
            ("nbd+unix://?socket=/s", "nbd+unix://?socket=/s"),
            ("nbd:unix:/s:exportname=exp", "nbd+unix:///exp?socket=/s"),
            ("nbd:unix:/s", "nbd+unix://?socket=/s"),
        ] {
            assert_eq!(opened(name).unwrap(), shown, "{name}");
        }
    }

    #[test]
    fn names_that_make_no_sense_are_refused() {
        for name in [
            "nbd://",
            "nbd:///x",
            "nbd+unix:///exp",
            "nbd+unix://host/exp?socket=/s",
            "nbd+unix:///exp?socket=",
            "nbd://host/exp?x=y",
            "nbd://host:port/exp",
            "nbd://host/%zz",
            "nbd://host/%00",
            "nbd:",
            "nbd:host",
            "nbd+tcp:host:1",
        ] {
            assert!(opened(name).is_err(), "{name}");
        }
        assert!(parse_name("nbd+foo://x").is_none());
        assert!(parse_name("disk.img").is_none());
    }

    #[test]
    fn options_must_fit_together() {
        for (text, problem) in [
            ("export=x", "NBD server address missing"),
            ("path=a,host=b", "path and host may not be used at the same time"),
            ("path=a,port=7", "port may not be used without host"),
            ("path=a,tls-creds=t0", "TLS ('tls-creds') is not supported"),
            ("server.type=unix", "Parameter 'path' is missing"),
            ("server.type=inet,server.host=h", "Parameter 'port' is missing"),
            ("server.type=foo", "Parameter 'type' does not accept value 'foo'"),
            ("server.type=unix,server.path=a,server.x=y", "Parameter 'x' is unexpected"),
            ("path=a,reconnect-delay=x", "Parameter 'reconnect-delay' expects a number"),
        ] {
            let error = Settings::take(&mut Options::parse(text).unwrap()).unwrap_err();
            assert_eq!(error.problem().to_string(), problem, "{text}");
        }
    }
}
