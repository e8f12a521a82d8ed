//! `--image-opts`: an image described by options such as `driver=qcow2,file.filename=disk.img`.

use std::collections::BTreeMap;

use diskette::DetectZeroes;
use diskette::drivers::Drivers;
use diskette::native::{CacheMode, Locking};

use crate::Failure;

/// Splits `name=value,name=value`; a doubled comma stands for one.
pub(crate) fn split_options(text: &str) -> Result<BTreeMap<String, String>, Failure> {
    let mut options = BTreeMap::new();
    let mut rest = text;
    while !rest.is_empty() {
        let mut piece = String::new();
        loop {
            match rest.split_once(',') {
                Some((before, after)) if after.starts_with(',') => {
                    piece.push_str(before);
                    piece.push(',');
                    rest = &after[1..];
                }
                Some((before, after)) => {
                    piece.push_str(before);
                    rest = after;
                    break;
                }
                None => {
                    piece.push_str(rest);
                    rest = "";
                    break;
                }
            }
        }
        match piece.split_once('=') {
            Some((name, value)) => options.insert(name.to_string(), value.to_string()),
            None => match piece.strip_prefix("no") {
                Some(name) if !name.is_empty() => options.insert(name.to_string(), "off".to_string()),
                _ => options.insert(piece, "on".to_string()),
            },
        };
    }
    Ok(options)
}

/// What a name, or a list of options, says about the image to open.
#[derive(Default)]
pub(crate) struct Described {
    pub(crate) path: String,
    pub(crate) format: Option<String>,
    pub(crate) locking: Locking,
    /// Instead of the cache mode of the command line.
    pub(crate) cache: Option<CacheMode>,
    pub(crate) read_only: bool,
    pub(crate) force_share: bool,
    pub(crate) discard: bool,
    pub(crate) detect_zeroes: DetectZeroes,
    pub(crate) driver_options: BTreeMap<String, String>,
}

impl Described {
    /// Reads a list of options.
    pub(crate) fn by_options(text: &str) -> Result<Self, Failure> {
        if !text.is_empty() && !text.contains('=') {
            return Err(no_such_node(text));
        }
        let mut options = split_options(text)?;
        let format = options.remove("driver");
        if let Some(unknown) = format.as_deref().filter(|name| Drivers::all().by_name(name).is_none()) {
            return Err(Failure::new(format!("Unknown driver '{unknown}'")));
        }
        let mut described = Described { format, ..Described::default() };
        described.file(&mut options)?;
        described.layer(&mut options)?;
        // What is not understood must not be passed over: it might be a window, a key, a snapshot.
        let format = described.format.as_deref().unwrap_or("raw");
        let known: &[&str] = match format {
            "raw" => &["offset", "size"],
            "qcow2" => &["data-file.filename"],
            _ => &[],
        };
        match options.keys().find(|name| !known.contains(&name.as_str())) {
            Some(unknown) if unknown.starts_with("backing.") => {
                Err(Failure::new(format!("replacing the backing image ('{unknown}') is not supported")))
            }
            Some(unknown) => {
                Err(Failure::new(format!("Block format '{format}' does not support the option '{unknown}'")))
            }
            None => {
                described.driver_options = options;
                Ok(described)
            }
        }
    }

    /// The options of the file.
    fn file(&mut self, options: &mut BTreeMap<String, String>) -> Result<(), Failure> {
        if let Some(node) = options.get("file") {
            return Err(no_such_node(node));
        }
        let driver = options.remove("file.driver");
        match driver.as_deref() {
            None | Some("file" | "host_device") => {}
            Some(format) if Drivers::all().by_name(format).is_some() => {
                return Err(Failure::new(format!(
                    "an image within an image ('file.driver={format}') is not supported"
                )));
            }
            Some(other) => return Err(Failure::new(format!("Unknown driver '{other}'"))),
        }
        self.path = match (options.remove("file.filename"), driver, &self.format) {
            (Some(path), ..) if !path.is_empty() => path,
            (Some(_), ..) | (None, Some(_), _) => return Err(Failure::new(NO_FILE_NAME)),
            (None, None, Some(_)) => return Err(Failure::new("A block device must be specified for \"file\"")),
            (None, None, None) => return Err(Failure::new("Must specify either driver or file")),
        };
        self.locking = match options.remove("file.locking").as_deref() {
            None | Some("auto") => Locking::Auto,
            Some("on") => Locking::On,
            Some("off") => Locking::Off,
            Some(other) => return Err(bad_value(other)),
        };
        match options.remove("file.aio").as_deref() {
            None | Some("threads") => {}
            Some(other @ ("native" | "io_uring")) => {
                return Err(Failure::new(format!("the option 'file.aio={other}' is not supported")));
            }
            Some(other) => return Err(bad_value(other)),
        }
        if let Some(unknown) = options.keys().find_map(|name| name.strip_prefix("file.")) {
            return Err(Failure::new(format!("Block protocol 'file' doesn't support the option '{unknown}'")));
        }
        if options.get("data-file.driver").is_some_and(|driver| driver == "file") {
            options.remove("data-file.driver");
        }
        Ok(())
    }

    /// The options that images of every format have.
    fn layer(&mut self, options: &mut BTreeMap<String, String>) -> Result<(), Failure> {
        let direct = switch(options, "cache.direct")?;
        let no_flush = switch(options, "cache.no-flush")?;
        self.cache = match (direct, no_flush) {
            (None, None) => None,
            (Some(true), _) => Some(CacheMode::None),
            (_, Some(true)) => Some(CacheMode::Unsafe),
            _ => Some(CacheMode::Writeback),
        };
        self.read_only = switch(options, "read-only")? == Some(true);
        self.force_share = switch(options, "force-share")? == Some(true);
        // Fallbacks and names that nothing here needs.
        switch(options, "auto-read-only")?;
        options.remove("node-name");
        self.discard = match options.remove("discard").as_deref() {
            None | Some("ignore" | "off") => false,
            Some("unmap" | "on") => true,
            Some(_) => return Err(Failure::new("Invalid discard option")),
        };
        self.detect_zeroes = match options.remove("detect-zeroes").as_deref() {
            None | Some("off") => DetectZeroes::Off,
            Some("on") => DetectZeroes::On,
            Some("unmap") if self.discard => DetectZeroes::Unmap,
            Some("unmap") => {
                return Err(Failure::new(
                    "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap",
                ));
            }
            Some(other) => return Err(bad_value(other)),
        };
        match options.remove("backing").as_deref() {
            None => Ok(()),
            Some("") => Err(Failure::new("leaving out the backing image ('backing=') is not supported")),
            Some(node) => Err(no_such_node(node)),
        }
    }

    /// What QEMU calls the image.
    pub(crate) fn name(&self) -> String {
        if !self.driver_options.contains_key("offset") && !self.driver_options.contains_key("size") {
            return self.path.clone();
        }
        let option = |name: &str| self.driver_options.get(name).map(|value| format!("\"{name}\": \"{value}\", "));
        format!(
            "json:{{{}\"driver\": \"{}\", {}\"file\": {{\"driver\": \"file\", \"filename\": {}}}}}",
            option("offset").unwrap_or_default(),
            self.format.as_deref().unwrap_or_default(),
            option("size").unwrap_or_default(),
            serde_json::Value::from(self.path.as_str()),
        )
    }
}

/// Said about a file without a name.
pub(crate) const NO_FILE_NAME: &str = "The 'file' block driver requires a file name";

fn switch(options: &mut BTreeMap<String, String>, name: &str) -> Result<Option<bool>, Failure> {
    match options.remove(name).as_deref() {
        None => Ok(None),
        Some("on" | "yes" | "true" | "y") => Ok(Some(true)),
        Some("off" | "no" | "false" | "n") => Ok(Some(false)),
        Some(_) => Err(Failure::new(format!("Parameter '{name}' expects 'on' or 'off'"))),
    }
}

fn bad_value(value: &str) -> Failure {
    Failure::new(format!("invalid parameter value: {value}"))
}

fn no_such_node(name: &str) -> Failure {
    Failure::new(format!("Cannot find device='{name}' nor node-name='{name}'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_doubled_comma_is_part_of_the_value() {
        let options = split_options("file.filename=a,,b,read-only,nodiscard").unwrap();
        assert_eq!(options["file.filename"], "a,b");
        assert_eq!((options["read-only"].as_str(), options["discard"].as_str()), ("on", "off"));
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        for (text, name) in [
            ("driver=qcow2,file.filename=a,bogus=1", "'bogus'"),
            ("driver=qcow2,file.filename=a,backing.driver=raw", "'backing.driver'"),
            ("driver=qcow2,file.filename=a,file.bogus=1", "'bogus'"),
            ("driver=raw,file.driver=qcow2,file.file.filename=a", "'file.driver=qcow2'"),
        ] {
            let message = Described::by_options(text).err().map(|failure| failure.message).unwrap_or_default();
            assert!(message.contains(name), "{text}: {message}");
        }
    }
}
