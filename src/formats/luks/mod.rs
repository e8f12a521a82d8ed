//! LUKS, version 1 (LUKS On-Disk Format Specification 1.2.3): a header with key slots, then the disk, encrypted.
//!
//! Where the header is a file of its own (detached), it is the child `header`. Bytes and key slots are in
//! [`crate::crypto`].

mod create;
mod open;
#[cfg(feature = "structure")]
mod structure;

use alloc::string::String;
use alloc::sync::Arc;

use crate::crypto::{SECTOR_BYTES, Volume};
use crate::describe::Details;
use crate::drivers::{Driver, Evidence, Probe};
use crate::engine::{AmendRequest, Format, InPlace};
use crate::error::{Error, ErrorKind, Result};
use crate::node::{Extent, Host, Node, NodeInfo, Preallocation, Range, Role, State, Want, WriteFlags};
use crate::op::{Op, if_writing};
#[cfg(feature = "structure")]
use crate::structure::{Parts, Region, RegionKind, Regions, StructureContext};

pub use create::measure;

/// The driver.
pub static DRIVER: Driver = Driver {
    name: "luks",
    probe,
    open: open::open,
    create: if cfg!(all(feature = "write", feature = "crypto")) { Some(create::create) } else { None },
    create_options: create::OPTIONS,
    measure: if cfg!(feature = "write") { Some(create::measure_volume) } else { None },
    open_options: &["key-secret"],
    amend_options: create::AMEND_OPTIONS,
    #[cfg(feature = "structure")]
    structure: Some(structure::structure),
    #[cfg(not(feature = "structure"))]
    structure: None,
};

fn probe(probe: &Probe<'_>) -> Option<Evidence> {
    let version = crate::crypto::header::version(probe.head)?;
    // Other versions too: opening refuses them, where as raw they would show ciphertext as guest data.
    Some(Evidence {
        score: 100,
        text: alloc::format!("magic 'LUKS\\xba\\xbe' at offset 0 and version {version} at offset 6"),
    })
}

/// An open LUKS volume.
struct Luks {
    file: Arc<dyn Node>,
    /// The file with the header, if that is another one.
    header_file: Option<Arc<dyn Node>>,
    volume: Volume,
    /// First byte of the data.
    payload: u64,
}

impl Luks {
    fn host(&self, at: u64) -> Host {
        Host { role: Role::File, at: at + self.payload }
    }
}

impl Format for Luks {
    fn name(&self) -> &'static str {
        "luks"
    }

    fn info(&self) -> NodeInfo {
        let file = self.file.info();
        let stored = file.length.checked_next_multiple_of(SECTOR_BYTES).unwrap_or(file.length);
        NodeInfo { read_only: file.read_only, ..NodeInfo::plain(stored.saturating_sub(self.payload)) }
    }

    fn child(&self, role: Role) -> Option<&Arc<dyn Node>> {
        match role {
            Role::File => Some(&self.file),
            Role::Header => self.header_file.as_ref(),
            _ => None,
        }
    }

    fn map<'a>(&'a self, range: Range, _want: Want) -> Op<'a, Extent> {
        Op::ok(Extent { len: range.len, state: State::Encrypted, host: Some(self.host(range.start)) })
    }

    fn in_place<'a>(&'a self, range: Range) -> Op<'a, InPlace> {
        Op::ok(InPlace { len: range.len, host: Some(self.host(range.start)) })
    }

    fn is_encrypted(&self) -> bool {
        true
    }

    fn missing_key(&self) -> Option<&'static str> {
        self.volume.is_locked().then_some("key-secret")
    }

    fn encrypt(&self, _host: Host, guest: u64, bytes: &mut [u8]) -> Result<()> {
        self.volume.cipher()?.encrypt(guest / SECTOR_BYTES, bytes);
        Ok(())
    }

    fn decrypt(&self, _host: Host, guest: u64, bytes: &mut [u8]) -> Result<()> {
        self.volume.cipher()?.decrypt(guest / SECTOR_BYTES, bytes);
        Ok(())
    }

    fn zero_granularity(&self) -> u64 {
        SECTOR_BYTES
    }

    fn zero<'a>(&'a self, _range: Range, _flags: WriteFlags) -> Op<'a, ()> {
        // Encrypted zeroes look like any data.
        Op::err(Error::unsupported("zeroes in a LUKS volume are written"))
    }

    fn discard<'a>(&'a self, _range: Range) -> Op<'a, ()> {
        Op::ok(())
    }

    fn flush<'a>(&'a self) -> Op<'a, ()> {
        self.file.flush()
    }

    fn resize<'a>(&'a self, length: u64, preallocation: Preallocation) -> Op<'a, ()> {
        if_writing(|| match length.checked_add(self.payload) {
            Some(length) => self.file.resize(length, preallocation),
            None => Op::err(Error::new(ErrorKind::TooLarge, "The requested file size is too large")),
        })
    }

    fn amend<'a>(&'a self, request: &'a AmendRequest) -> Op<'a, ()> {
        if_writing(|| Op::future(self.volume.amend(&request.options, "", request.force)))
    }

    fn describe(&self) -> Result<Details> {
        Ok(Details {
            virtual_size: self.info().length,
            encryption: Some("luks"),
            specific: self.volume.describe(false),
            header: self.volume.header().fields(),
            ..Details::default()
        })
    }

    #[cfg(feature = "structure")]
    fn structure<'a>(&'a self, path: &'a [u64], from: u64, count: usize) -> Op<'a, Parts> {
        let (file, header) = (&*self.file, self.header_file.as_deref());
        Op::future(structure::structure(StructureContext { file, data_file: None, header, path, from, count }))
    }

    #[cfg(feature = "structure")]
    fn regions<'a>(&'a self) -> Op<'a, Regions> {
        let length = self.file.info().length;
        let payload = self.payload.min(length);
        Op::ok(Regions::new([
            Region { range: Range::new(0, payload), kind: RegionKind::Encryption },
            Region { range: Range::new(payload, length - payload), kind: RegionKind::Data },
        ]))
    }
}

/// The value of an option that need not be there; an empty one counts as none.
fn text(options: &alloc::collections::BTreeMap<String, String>, name: &str) -> Option<String> {
    options.get(name).filter(|value| !value.is_empty()).cloned()
}
