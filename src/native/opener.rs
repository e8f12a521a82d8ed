//! Opening the files that images name.

use alloc::sync::Arc;
use std::format;
use std::path::Path;
use std::string::String;

use crate::drivers::OpenOptions;
use crate::engine::Image;
use crate::error::{Error, Result};
use crate::graph::{Graph, LeafMode, unknown_protocol};
use crate::native::file::{File, FileOptions};
use crate::native::host::{Machine, plain_path};
use crate::node::{Node, Role};
use crate::op::Op;
use crate::policy::{Gate, Opener, Reference};
use crate::protocols::nbd::parse_name;

/// Opens files of this machine. A relative name is looked for beside the image that names it.
#[derive(Clone, Debug, Default)]
pub struct FileOpener {
    /// How files are opened. Whether they are writable is up to the reference.
    pub options: FileOptions,
    /// What else descriptions (`json:{…}`, `blkdebug:…`) can refer to.
    pub machine: Machine,
    /// How images within such descriptions are opened.
    pub images: OpenOptions,
}

impl FileOpener {
    /// An opener of files with these options.
    pub fn new(options: FileOptions) -> Self {
        FileOpener { options, ..FileOpener::default() }
    }

    /// Opens the disk in the file that is referred to, writable if the reference asks for that.
    ///
    /// # Errors
    /// As for [`Graph::open`].
    pub async fn open_disk(&self, reference: &Reference, gate: &Gate) -> Result<Arc<Image>> {
        let machine = self.machine_for(reference);
        let name = self.name_of(reference)?;
        let mut options = reference.options.clone();
        let described = name.starts_with("json:") || options.value("driver").is_some();
        let format = reference.format.as_deref().filter(|_| !described);
        options.take("node-name");
        self.graph(&machine, gate).open(Some(&name), format, options).await
    }

    async fn describe(&self, reference: &Reference, gate: &Gate) -> Result<Arc<dyn Node>> {
        if reference.role == Role::Backing {
            let image = self.open_disk(reference, gate).await?;
            return Ok(image);
        }
        let machine = self.machine_for(reference);
        self.graph(&machine, gate).open_file(&self.name_of(reference)?).await
    }

    fn machine_for(&self, reference: &Reference) -> Machine {
        let files = FileOptions { read_only: !reference.writable, ..self.options };
        Machine { files, ..self.machine.clone() }
    }

    fn name_of(&self, reference: &Reference) -> Result<String> {
        match plain_path(&reference.name) {
            Some(_) => resolve(&reference.name, &reference.from),
            None => Ok(reference.name.clone()),
        }
    }

    fn graph<'a>(&self, machine: &'a Machine, gate: &Gate) -> Graph<'a> {
        let read_only = machine.files.read_only;
        Graph {
            host: machine,
            defaults: OpenOptions { read_only, gate: gate.clone(), ..self.images.clone() },
            mode: LeafMode { read_only, ..LeafMode::default() },
        }
    }
}

impl Opener for FileOpener {
    fn open<'a>(&'a self, reference: &'a Reference, gate: &'a Gate) -> Op<'a, Arc<dyn Node>> {
        // A data file is a file whatever it is called, so that no image can have an export or a description opened as one.
        let is_literal = reference.role == Role::DataFile && reference.options.is_empty();
        if !is_literal && (plain_path(&reference.name).is_none() || !reference.options.is_empty()) {
            return Op::future(self.describe(reference, gate));
        }
        let open = || -> Result<Arc<dyn Node>> {
            let path = match is_literal {
                true => beside(&reference.name, &reference.from),
                false => resolve(&reference.name, &reference.from)?,
            };
            let options = FileOptions { read_only: !reference.writable, ..self.options };
            Ok(File::open(&path, options)? as Arc<dyn Node>)
        };
        Op::Ready(open())
    }
}

/// The path that `name` means in the image `from`, or the name itself if it is that of an export.
///
/// # Errors
/// The name is a `json:` description or names another protocol; or it is a relative path, and `from` is not a file.
pub fn resolve(name: &str, from: &str) -> Result<String> {
    if let Some(parsed) = parse_name(name) {
        return parsed.map(|_| name.into());
    }
    let Some(path) = plain_path(name) else {
        return Err(match unknown_protocol(name).filter(|_| !name.starts_with("json:")) {
            Some(protocol) => Error::unsupported(format!("Unknown protocol '{protocol}'")).at_path(name),
            None => Error::unsupported(format!("'{name}': a path is needed here, not a description")),
        });
    };
    if !Path::new(&path).is_absolute() && parse_name(from).is_some() {
        return Err(Error::invalid(format!("Cannot use relative backing file names for '{from}'")));
    }
    Ok(beside(&path, from))
}

/// The path `name`, which if it is relative is relative to the file `from`.
pub fn beside(name: &str, from: &str) -> String {
    if Path::new(name).is_absolute() || from.is_empty() {
        return name.into();
    }
    let directory = Path::new(from).parent().unwrap_or_else(|| Path::new(""));
    directory.join(name).to_string_lossy().into_owned()
}
