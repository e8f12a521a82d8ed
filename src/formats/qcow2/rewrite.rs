//! Changing what the first cluster says besides numbers: the backing file and its format. What is not understood stays.

use alloc::vec;
use alloc::vec::Vec;

use byteorder::{BE, ByteOrder};

use crate::engine::AmendRequest;
use crate::error::{Error, ErrorKind, Result};
use crate::formats::qcow2::Qcow2;
use crate::formats::qcow2::extension::BACKING_FORMAT;
use crate::node::{ReadFlags, WriteFlags};

/// Longest name of a backing file in bytes.
const MAX_NAME_BYTES: usize = 1023;

impl Qcow2 {
    /// Changes properties. Every option must be known.
    pub(super) async fn change_properties(&self, request: &AmendRequest) -> Result<()> {
        let mut encryption = false;
        for name in request.options.keys() {
            if !name.starts_with("encrypt.") {
                return Err(Error::unsupported(alloc::format!("changing '{name}' of a qcow2 image is not supported")));
            }
            encryption = true;
        }
        if encryption { self.amend_encryption(request).await } else { Ok(()) }
    }

    /// Names another backing file, or none. Takes effect when the image is opened again.
    pub(super) async fn rewrite_backing(&self, backing: Option<(&str, Option<&str>)>) -> Result<()> {
        let name = backing.map_or("", |(name, _)| name);
        if name.len() > MAX_NAME_BYTES {
            return Err(Error::invalid(alloc::format!(
                "the name of a backing file has at most {MAX_NAME_BYTES} bytes, not {}",
                name.len()
            )));
        }
        if backing.is_some() && self.header.is_data_file_raw() {
            return Err(Error::invalid("an image with a raw external data file cannot have a backing file"));
        }
        self.begin_changing().await?;
        let mut refcounts = self.lock_refcounts().await;
        self.write_back(&mut refcounts).await?;
        let room = self.header.cluster.size() as usize;
        let mut old = vec![0; room];
        self.file.read(0, &mut old, ReadFlags::default()).await?;
        let start = self.header.raw.header_length as usize;
        let mut new = old.get(..start).unwrap_or_default().to_vec();
        let format = backing.and_then(|(_, format)| format);
        let extensions = extensions(&old, start);
        if let Some(format) = format {
            push(&mut new, BACKING_FORMAT, format.as_bytes());
        }
        for (kind, data) in extensions.into_iter().filter(|(kind, _)| *kind != BACKING_FORMAT) {
            push(&mut new, kind, data);
        }
        push(&mut new, 0, &[]);
        let offset = if backing.is_some() { new.len() as u64 } else { 0 };
        new.extend_from_slice(name.as_bytes());
        if new.len() > room {
            return Err(Error::new(
                ErrorKind::NoSpace,
                alloc::format!(
                    "the header with its names takes {} bytes and must fit into the first cluster of {room}",
                    new.len()
                ),
            ));
        }
        BE::write_u64(&mut new[8..16], offset);
        BE::write_u32(&mut new[16..20], name.len() as u32);
        // All that the old header used is replaced.
        let used = old.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        new.resize(new.len().max(used).next_multiple_of(512).min(room), 0);
        self.file.write(0, &new, WriteFlags::default()).await?;
        self.file.flush().await
    }
}

/// The extensions of a first cluster that was parsed before: type and data.
fn extensions(cluster: &[u8], start: usize) -> Vec<(u32, &[u8])> {
    let mut found = Vec::new();
    let mut rest = cluster.get(start..).unwrap_or_default();
    while let (Some(kind), Some(len)) = (rest.get(..4).map(BE::read_u32), rest.get(4..8).map(BE::read_u32)) {
        let Some(data) = rest.get(8..).and_then(|data| data.get(..len as usize)).filter(|_| kind != 0) else { break };
        found.push((kind, data));
        rest = rest.get(8 + data.len().next_multiple_of(8)..).unwrap_or_default();
    }
    found
}

fn push(cluster: &mut Vec<u8>, kind: u32, data: &[u8]) {
    cluster.extend_from_slice(&kind.to_be_bytes());
    cluster.extend_from_slice(&(data.len() as u32).to_be_bytes());
    cluster.extend_from_slice(data);
    cluster.resize(cluster.len().next_multiple_of(8), 0);
}
