//! Changing what the first cluster says besides numbers: the version, names of files, extensions. What is not understood
//! stays.

use alloc::vec;
use alloc::vec::Vec;

use byteorder::{BE, ByteOrder};

use crate::error::{Error, ErrorKind, Result};
use crate::formats::qcow2::Qcow2;
use crate::formats::qcow2::extension::{BACKING_FORMAT, DATA_FILE, FEATURE_NAMES};
use crate::formats::qcow2::header::{KNOWN_FEATURES, RawHeader};
use crate::node::{ReadFlags, SECTOR_BYTES, WriteFlags, write_first_sector_last};

/// Length of a header of version 2.
const V2_BYTES: usize = 72;
/// A smaller first cluster has no feature name table.
pub(super) const MIN_FEATURE_TABLE_CLUSTER: usize = 1024;
/// Longest name of a backing file in bytes.
const MAX_NAME_BYTES: usize = 1023;

impl Qcow2 {
    /// Names another backing file, or none. Takes effect when the image is opened again.
    pub(super) async fn rewrite_backing(&self, backing: Option<(&str, Option<&str>)>) -> Result<()> {
        let name = backing.map_or("", |(name, _)| name);
        if name.len() > MAX_NAME_BYTES {
            return Err(Error::invalid(alloc::format!(
                "the name of a backing file has at most {MAX_NAME_BYTES} bytes, not {}",
                name.len()
            )));
        }
        if backing.is_some() && self.is_data_file_raw() {
            return Err(Error::invalid("an image with a raw external data file cannot have a backing file"));
        }
        self.begin_changing().await?;
        self.write_back(&mut *self.lock_refcounts().await).await?;
        self.rewrite_header(&HeaderChange { backing: Some(backing), ..HeaderChange::default() }).await
    }

    /// Writes the first cluster anew. All tables are on disk.
    pub(super) async fn rewrite_header(&self, change: &HeaderChange<'_>) -> Result<()> {
        let room = self.header.cluster.size() as usize;
        let mut old = vec![0; room];
        self.file.read(0, &mut old, ReadFlags::default()).await?;
        let new = rewritten(&old, change)?;
        if new.len() > room {
            return Err(Error::new(
                ErrorKind::NoSpace,
                alloc::format!(
                    "the header with its names takes {} bytes and must fit into the first cluster of {room}",
                    new.len()
                ),
            ));
        }
        // All that the old header used is replaced.
        let used = old.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let mut new = new;
        new.resize(new.len().max(used).next_multiple_of(SECTOR_BYTES).min(room), 0);
        match within_a_sector(&old)? {
            // Meanwhile the first sector says the same without the others.
            Some(alone) if used > SECTOR_BYTES => {
                write_first_sector_last(&*self.file, 0, &alone).await?;
                write_first_sector_last(&*self.file, 0, &new).await
            }
            Some(_) => write_first_sector_last(&*self.file, 0, &new).await,
            None => {
                self.file.write(0, &new, WriteFlags::default()).await?;
                self.file.flush().await
            }
        }
    }
}

/// The first sector of a header that says the same as this one, but for names of features. `None` if more does not fit.
fn within_a_sector(old: &[u8]) -> Result<Option<Vec<u8>>> {
    let mut alone = rewritten(old, &HeaderChange { drop_feature_names: true, ..HeaderChange::default() })?;
    if alone.len() > SECTOR_BYTES {
        return Ok(None);
    }
    alone.resize(SECTOR_BYTES, 0);
    Ok(Some(alone))
}

/// What becomes of the first cluster. What is not mentioned stays.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct HeaderChange<'a> {
    /// The version. Features of version 3 are all unset after the change.
    pub(super) version: Option<u32>,
    /// The name of the external data file; an empty one for none.
    pub(super) data_file: Option<&'a str>,
    /// The backing file with its format, or none.
    pub(super) backing: Option<Option<(&'a str, Option<&'a str>)>>,
    /// Whether features have no names any more.
    pub(super) drop_feature_names: bool,
}

/// The header, extensions and names of a first cluster after a change.
fn rewritten(old: &[u8], change: &HeaderChange<'_>) -> Result<Vec<u8>> {
    let number = |at: usize| old.get(at..at + 4).map_or(0, BE::read_u32);
    let version = number(4);
    let start = if version == 2 { V2_BYTES } else { number(100) as usize };
    let mut new = old.get(..start).unwrap_or_default().to_vec();
    let extensions = extensions(old, start);
    let text = |kind| extensions.iter().find(|(other, _)| *other == kind).map(|(_, data)| data.to_vec());
    let upgraded = change.version.is_some_and(|wanted| wanted > version);
    match change.version {
        Some(2) => new.truncate(V2_BYTES),
        Some(_) if upgraded => {
            new.resize(RawHeader::SIZE, 0);
            let length = new.len() as u32;
            BE::write_u32(&mut new[96..100], 4);
            BE::write_u32(&mut new[100..104], length);
        }
        _ => {}
    }
    if let Some(version) = change.version {
        BE::write_u32(&mut new[4..8], version);
    }
    let name_at = old.get(8..16).map_or(0, BE::read_u64) as usize;
    let old_name = old.get(name_at..name_at + number(16) as usize).filter(|_| name_at != 0).unwrap_or_default();
    let (name, format) = match change.backing {
        Some(backing) => (
            backing.map_or(&[][..], |(name, _)| name.as_bytes()),
            backing.and_then(|(_, format)| format).map(|format| format.as_bytes().to_vec()),
        ),
        None => (old_name, text(BACKING_FORMAT)),
    };
    if let Some(format) = format {
        push(&mut new, BACKING_FORMAT, &format);
    }
    let data_file = match change.data_file {
        Some(name) => Some(name.as_bytes().to_vec()).filter(|name| !name.is_empty()),
        None => text(DATA_FILE),
    };
    if let Some(data_file) = data_file {
        push(&mut new, DATA_FILE, &data_file);
    }
    if upgraded && old.len() >= MIN_FEATURE_TABLE_CLUSTER {
        push(&mut new, FEATURE_NAMES, &feature_table());
    }
    for (kind, data) in extensions {
        let is_told = [BACKING_FORMAT, DATA_FILE].contains(&kind);
        // Version 2 has no features to name.
        let unnamed = change.version == Some(2) || upgraded || change.drop_feature_names;
        if !is_told && (kind != FEATURE_NAMES || !unnamed) {
            push(&mut new, kind, data);
        }
    }
    push(&mut new, 0, &[]);
    let offset = if name.is_empty() { 0 } else { new.len() as u64 };
    new.extend_from_slice(name);
    BE::write_u64(&mut new[8..16], offset);
    BE::write_u32(&mut new[16..20], name.len() as u32);
    Ok(new)
}

/// The contents of the feature name table.
pub(super) fn feature_table() -> Vec<u8> {
    let mut table = Vec::new();
    for (kind, bit, name) in KNOWN_FEATURES {
        table.extend_from_slice(&[*kind, *bit]);
        table.extend_from_slice(name.as_bytes());
        table.resize(table.len().next_multiple_of(48), 0);
    }
    table
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
