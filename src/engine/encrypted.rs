//! Data that is stored encrypted: whole sectors pass through the format's cipher on their way.

use alloc::vec;
use alloc::vec::Vec;

use crate::crypto::SECTOR_BYTES;
use crate::engine::image::Image;
use crate::error::{Error, ErrorKind, Result};
use crate::node::{Host, Range, WriteFlags};
use crate::op::Op;

/// At most this many bytes are encrypted and written at a time.
const PIECE_BYTES: usize = 1 << 20;

impl Image {
    /// The unit in which data is stored: a sector if it is encrypted, else a byte.
    pub(super) fn sector(&self) -> u64 {
        if self.format.is_encrypted() { SECTOR_BYTES } else { 1 }
    }

    /// Whether the range has whole sectors only.
    pub(super) fn is_in_sectors(&self, range: Range) -> bool {
        let sector = self.sector();
        range.start.is_multiple_of(sector) && range.len.is_multiple_of(sector)
    }

    /// Reads and decrypts. What begins or ends within a sector is cut out of the whole one.
    pub(super) fn read_encrypted<'a>(&'a self, at: u64, host: Host, into: &'a mut [u8]) -> Op<'a, ()> {
        if let Some(option) = self.format.missing_key() {
            return Op::err(Error::new(
                ErrorKind::Denied,
                alloc::format!(
                    "the data is encrypted and no key was given ('{option}'); only the structure of the image can be looked at"
                ),
            ));
        }
        let wide = Range::new(at, into.len() as u64).widen(SECTOR_BYTES);
        let skip = at - wide.start;
        let Some(start) = host.at.checked_sub(skip) else {
            return Op::err(
                Error::new(ErrorKind::Corrupt, "encrypted data does not begin with a sector").at_offset(host.at),
            );
        };
        let host = Host { at: start, ..host };
        Op::future(async move {
            let storage = self.storage(host.role)?;
            if wide.len == into.len() as u64 {
                self.read_stored(storage, host.at, into).await?;
                return self.format.decrypt(host, wide.start, into);
            }
            let mut sectors = vec![0; wide.len as usize];
            self.read_stored(storage, host.at, &mut sectors).await?;
            self.format.decrypt(host, wide.start, &mut sectors)?;
            match sectors.get(skip as usize..skip as usize + into.len()) {
                Some(part) => into.copy_from_slice(part),
                None => into.fill(0),
            }
            Ok(())
        })
    }

    /// Writes to where data is stored, encrypted if that is how it is stored.
    pub(super) async fn store(&self, host: Host, guest: u64, from: &[u8]) -> Result<()> {
        let storage = self.storage(host.role)?;
        if !self.format.is_encrypted() {
            return storage.write(host.at, from, WriteFlags::default()).await;
        }
        let mut piece = Vec::with_capacity(from.len().min(PIECE_BYTES));
        for (index, part) in (0u64..).zip(from.chunks(PIECE_BYTES)) {
            piece.clear();
            piece.extend_from_slice(part);
            let skip = index * PIECE_BYTES as u64;
            self.store_own(Host { at: host.at + skip, ..host }, guest + skip, &mut piece).await?;
        }
        Ok(())
    }

    /// Like [`Image::store`], from a buffer that may be overwritten.
    pub(super) async fn store_own(&self, host: Host, guest: u64, from: &mut [u8]) -> Result<()> {
        if self.format.is_encrypted() {
            if !self.is_in_sectors(Range::new(guest, from.len() as u64)) || !host.at.is_multiple_of(SECTOR_BYTES) {
                return Err(Error::new(ErrorKind::Corrupt, "encrypted data comes in whole sectors").at_offset(host.at));
            }
            self.format.encrypt(host, guest, from)?;
        }
        self.storage(host.role)?.write(host.at, from, WriteFlags::default()).await
    }

    /// The bytes with what is around them in their first and last sector. The caller's request covers whole sectors.
    pub(super) async fn fill_up_sectors(&self, at: u64, from: &[u8]) -> Result<(u64, Vec<u8>)> {
        let range = Range::new(at, from.len() as u64);
        let wide = range.widen(SECTOR_BYTES);
        let mut sectors = vec![0; wide.len as usize];
        let (head, tail) = ((range.start - wide.start) as usize, (wide.end() - range.end()) as usize);
        let (before, rest) = sectors.split_at_mut(head);
        let (data, after) = rest.split_at_mut(from.len());
        if head > 0 {
            self.read_old(wide.start, before).await?;
        }
        data.copy_from_slice(from);
        if tail > 0 {
            self.read_old(range.end(), after).await?;
        }
        Ok((wide.start, sectors))
    }
}
