//! Opening the files that images name.

use alloc::sync::Arc;
use std::format;
use std::path::Path;
use std::string::{String, ToString};

use crate::error::{Error, Result};
use crate::native::file::{File, FileOptions};
use crate::node::Node;
use crate::op::Op;
use crate::policy::{Opener, Reference};

/// Opens files of this machine. A relative name is looked for beside the image that names it.
#[derive(Clone, Debug, Default)]
pub struct FileOpener {
    /// How files are opened. Whether they are writable is up to the reference.
    pub options: FileOptions,
}

impl Opener for FileOpener {
    fn open<'a>(&'a self, reference: &'a Reference) -> Op<'a, Arc<dyn Node>> {
        let open = || -> Result<Arc<dyn Node>> {
            let path = resolve(&reference.name, &reference.from)?;
            let options = FileOptions { read_only: !reference.writable, ..self.options };
            Ok(File::open(&path, options)? as Arc<dyn Node>)
        };
        Op::Ready(open())
    }
}

/// The path that `name` means in the image `from`.
///
/// # Errors
/// The name is a `json:` description or names a protocol other than `file:`.
pub fn resolve(name: &str, from: &str) -> Result<String> {
    let path = match name.strip_prefix("file:") {
        Some(path) => path.strip_prefix("//").unwrap_or(path),
        None => name,
    };
    if path.starts_with("json:") {
        return Err(Error::unsupported(format!("'{name}': descriptions in JSON are not supported")));
    }
    // As in QEMU, a colon before the first slash makes it a protocol.
    let before_slash = path.split('/').next().unwrap_or(path);
    if let Some((protocol, _)) = before_slash.split_once(':') {
        return Err(Error::unsupported(format!("Unknown protocol '{protocol}'")).at_path(name));
    }
    if Path::new(path).is_absolute() || from.is_empty() {
        return Ok(path.to_string());
    }
    let directory = Path::new(from).parent().unwrap_or_else(|| Path::new(""));
    Ok(directory.join(path).to_string_lossy().into_owned())
}
