//! Storing clusters compressed (QEMU docs/interop/qcow2, "Compressed Clusters Descriptor").

use alloc::vec::Vec;

use crate::codec;
use crate::error::{Error, Result};
use crate::formats::qcow2::Qcow2;
use crate::formats::qcow2::header::{Compression, Encryption};
use crate::formats::qcow2::table::{L2Entry, compressed_word};
use crate::node::{Preallocation, WriteFlags};

/// The file ends with a whole sector, as readers of compressed data expect.
const SECTOR_BYTES: u64 = 512;

impl Qcow2 {
    pub(super) fn compress_cluster(&self, cluster: &[u8]) -> Result<Option<Vec<u8>>> {
        if self.header.has_data_file() {
            return Err(Error::unsupported("an image with an external data file has no compressed clusters"));
        }
        if self.header.encryption != Encryption::None {
            // They would be stored as they are.
            return Err(Error::unsupported("Compression and encryption not supported at the same time"));
        }
        match self.header.compression {
            Compression::Deflate => codec::deflate(cluster, cluster.len()),
            Compression::Zstd => codec::zstd(cluster, cluster.len()),
        }
    }

    /// Writes the compressed contents of the cluster at guest offset `at` and then lets its entry say so.
    pub(super) async fn store_cluster(&self, at: u64, compressed: &[u8]) -> Result<()> {
        self.begin_changing().await?;
        let len = compressed.len() as u64;
        let host = {
            let mut refcounts = self.lock_refcounts().await;
            self.make_room(&mut refcounts).await?;
            // The table comes before what it refers to.
            self.own_l2_table(&mut refcounts, at).await?;
            self.take_bytes(&mut refcounts, len).await?
        };
        // Something else may have been there.
        *self.expanded.lock() = None;
        let written = self.file.write(host, compressed, WriteFlags::default()).await;
        let mut refcounts = self.lock_refcounts().await;
        let entry = L2Entry { word: compressed_word(host, len, self.header.cluster), bitmap: 0 };
        let linked = match written {
            Ok(()) => self.own_l2_table(&mut refcounts, at).await,
            Err(error) => Err(error),
        };
        match linked {
            Ok(table) => {
                let index = at % self.header.l2_coverage() / self.header.cluster.size();
                let old = self.entry(table, index);
                self.set_entry(table, index, entry);
                self.release_entry(&mut refcounts, old);
                Ok(())
            }
            Err(error) => {
                self.release_entry(&mut refcounts, entry);
                Err(error)
            }
        }
    }

    /// Ends the file with a whole sector.
    pub(super) async fn pad_file(&self) -> Result<()> {
        let length = self.file.info().length;
        if length.is_multiple_of(SECTOR_BYTES) {
            return Ok(());
        }
        self.file.resize(length.next_multiple_of(SECTOR_BYTES), Preallocation::Off).await
    }
}
