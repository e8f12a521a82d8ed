//! The header: bytes, then checked values (QEMU docs/interop/qcow2, "Header").

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use crate::error::{Error, ErrorKind, Result};
use crate::wire::on_disk;

/// `QFI\xfb`.
pub const MAGIC: u32 = 0x5146_49fb;
/// The offset mask of table entries allows host offsets below this.
pub const MAX_HOST_OFFSET: u64 = 1 << 56;
/// Largest L1 table in bytes that is opened.
pub const MAX_L1_BYTES: u64 = 32 << 20;
/// Largest refcount table in bytes that is opened.
pub const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
/// Most internal snapshots in an image that is opened.
pub const MAX_SNAPSHOTS: u32 = 65536;
/// Length of the shortest entry of a table of snapshots.
const MIN_SNAPSHOT_BYTES: u64 = 40;
/// Longest backing file name in bytes.
pub const MAX_BACKING_NAME: u32 = 1023;

/// Incompatible feature: refcounts may be wrong.
pub const INCOMPATIBLE_DIRTY: u64 = 1 << 0;
/// Incompatible feature: the image is known to be corrupt.
pub const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
/// Incompatible feature: guest data is in another file.
pub const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
/// Incompatible feature: a compression other than deflate.
pub const INCOMPATIBLE_COMPRESSION: u64 = 1 << 3;
/// Incompatible feature: L2 entries with subclusters.
pub const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;
/// Compatible feature: refcounts are written late.
pub const COMPATIBLE_LAZY_REFCOUNTS: u64 = 1 << 0;
/// Autoclear feature: the bitmaps extension is consistent.
pub const AUTOCLEAR_BITMAPS: u64 = 1 << 0;
/// Autoclear feature: the data file is a raw image of the disk.
pub const AUTOCLEAR_DATA_FILE_RAW: u64 = 1 << 1;

/// Names of the features that the specification defines: kind (0 incompatible, 1 compatible, 2 autoclear), bit, name.
pub const KNOWN_FEATURES: &[(u8, u8, &str)] = &[
    (0, 0, "dirty bit"),
    (0, 1, "corrupt bit"),
    (0, 2, "external data file"),
    (0, 3, "compression type"),
    (0, 4, "extended L2 entries"),
    (1, 0, "lazy refcounts"),
    (2, 0, "bitmaps"),
    (2, 1, "raw external data"),
];

on_disk! {
    /// The header as it is stored, with any values.
    pub struct RawHeader: 112 bytes {
        magic: u32 = 0, "Magic: the bytes QFI\\xfb.";
        version: u32 = 4, "Format version: 2 or 3.";
        backing_file_offset: u64 = 8, "Offset of the backing file name in the image file; 0 without one.";
        backing_file_size: u32 = 16, "Length of the backing file name in bytes; at most 1023.";
        cluster_bits: u32 = 20, "Cluster size is 2 to the power of this; 9 to 21.";
        size: u64 = 24, "Virtual disk size in bytes.";
        crypt_method: u32 = 32, "0: none, 1: AES-CBC, 2: LUKS.";
        l1_size: u32 = 36, "Entries in the active L1 table.";
        l1_table_offset: u64 = 40, "Offset of the active L1 table; cluster aligned.";
        refcount_table_offset: u64 = 48, "Offset of the refcount table; cluster aligned.";
        refcount_table_clusters: u32 = 56, "Clusters that the refcount table occupies.";
        nb_snapshots: u32 = 60, "Number of internal snapshots.";
        snapshots_offset: u64 = 64, "Offset of the snapshot table; cluster aligned.";
        incompatible_features: u64 = 72, "Features that must be understood to open the image.";
        compatible_features: u64 = 80, "Features that can be ignored.";
        autoclear_features: u64 = 88, "Features whose bits are cleared by writers that do not know them.";
        refcount_order: u32 = 96, "A refcount has 2 to the power of this bits; 0 to 6.";
        header_length: u32 = 100, "Length of the header in bytes.";
        compression_type: u8 = 104, "0: deflate, 1: zstd.";
        padding: [7] = 105, "Padding; zero.";
    }
}

/// Length of the header of version 2, and of that of version 3 at least.
const V2_SIZE: usize = 72;
const V3_SIZE: usize = 104;

impl RawHeader {
    /// Reads the start of a file. Fields that are missing, or that the version does not have, have the value that stands
    /// for them.
    pub(super) fn read(bytes: &[u8]) -> Self {
        let mut raw = [0; RawHeader::SIZE];
        raw.iter_mut().zip(bytes).for_each(|(place, byte)| *place = *byte);
        let mut raw = Self::of(&raw);
        if raw.version == 2 {
            (raw.incompatible_features, raw.compatible_features, raw.autoclear_features) = (0, 0, 0);
            (raw.refcount_order, raw.header_length, raw.compression_type) = (4, V2_SIZE as u32, 0);
        } else if raw.header_length <= V3_SIZE as u32 {
            raw.compression_type = 0;
        }
        raw
    }

    /// Bytes that the header takes up, as far as that is known.
    pub(super) fn stored_bytes(&self) -> usize {
        if self.version == 2 { V2_SIZE } else { (self.header_length as usize).max(V3_SIZE) }
    }
}

/// How compressed clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Raw deflate.
    Deflate,
    /// zstd.
    Zstd,
}

/// How guest data is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encryption {
    /// Not at all.
    None,
    /// AES-CBC with a key from the password.
    Aes,
    /// LUKS1.
    Luks,
}

/// What is wrong with an image, with position, what was found and what was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// Not a qcow2 file.
    #[error("Image is not in qcow2 format: the magic is {found:#010x}, expected 0x514649fb")]
    Magic {
        /// What stands there.
        found: u32,
    },
    /// A version that does not exist.
    #[error("Unsupported qcow2 version {found}, expected 2 or 3")]
    Version {
        /// What stands there.
        found: u32,
    },
    /// The file ends within something.
    #[error("the file ends within {what}: {found} bytes, expected at least {expected}")]
    Truncated {
        /// What is cut off.
        what: &'static str,
        /// Length of the file.
        found: u64,
        /// Length needed.
        expected: u64,
    },
    /// A header field has a value that is not allowed.
    #[error("{field} is {found}, expected {expected}")]
    Field {
        /// The field.
        field: &'static str,
        /// Its value.
        found: u64,
        /// What is allowed.
        expected: String,
    },
    /// Features that are not understood.
    #[error("Unsupported qcow2 feature(s): {names}")]
    Features {
        /// Their names, from the image's own table where it has them.
        names: String,
    },
    /// The metadata contradicts itself, so that nothing more may be written.
    #[error("{what}: {found:#x} stands there, expected {expected}")]
    Impossible {
        /// What is wrong, in QEMU's words.
        what: String,
        /// What stands there.
        found: u64,
        /// What is allowed.
        expected: &'static str,
    },
    /// A table entry has a value that is not allowed.
    #[error("{table} entry {index} is {found:#018x}, expected {expected}")]
    Entry {
        /// Which table.
        table: &'static str,
        /// Index in the table.
        index: u64,
        /// Its value.
        found: u64,
        /// What is allowed.
        expected: &'static str,
    },
}

impl Problem {
    /// Makes it an error of class [`ErrorKind::Corrupt`] at an offset of the file.
    pub fn corrupt_at(self, offset: u64) -> Error {
        Error::new(ErrorKind::Corrupt, self).at_offset(offset)
    }

    /// Makes it an error of class [`ErrorKind::Invalid`] at an offset of the file.
    pub fn invalid_at(self, offset: u64) -> Error {
        Error::new(ErrorKind::Invalid, self).at_offset(offset)
    }
}

/// Log2 of the cluster size, 9 to 21.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClusterBits(u8);

impl ClusterBits {
    /// 512 bytes.
    pub const SMALLEST: ClusterBits = ClusterBits(9);

    /// Checks the range.
    pub fn new(bits: u32) -> Option<Self> {
        (9..=21).contains(&bits).then_some(ClusterBits(bits as u8))
    }

    /// The exponent.
    pub fn bits(self) -> u32 {
        u32::from(self.0)
    }

    /// Cluster size in bytes.
    pub fn size(self) -> u64 {
        1 << self.0
    }

    /// Offset within a cluster.
    pub fn within(self, at: u64) -> u64 {
        at & (self.size() - 1)
    }

    /// Whether `at` starts a cluster.
    pub fn is_aligned(self, at: u64) -> bool {
        self.within(at) == 0
    }

    /// Number of clusters that `bytes` take.
    pub fn count(self, bytes: u64) -> u64 {
        bytes.div_ceil(self.size())
    }
}

impl fmt::Debug for ClusterBits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "2^{}", self.0)
    }
}

/// A checked header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// As it is stored; version 2 fields are extended by their version 3 defaults.
    pub raw: RawHeader,
    /// Cluster size.
    pub cluster: ClusterBits,
    /// How compressed clusters are compressed.
    pub compression: Compression,
    /// How guest data is encrypted.
    pub encryption: Encryption,
}

impl Header {
    /// Checks the header that starts a file of `length` bytes.
    ///
    /// # Errors
    /// Any value that is out of range. Feature bits are checked by [`Header::check_features`].
    pub fn parse(bytes: &[u8], length: u64) -> Result<Self> {
        let truncated = |what, expected: usize| {
            Problem::Truncated { what, found: length.min(bytes.len() as u64), expected: expected as u64 }.invalid_at(0)
        };
        let available = bytes.len().min(RawHeader::SIZE);
        let raw = RawHeader::read(bytes);
        if available >= 4 && raw.magic != MAGIC {
            return Err(Problem::Magic { found: raw.magic }
                .invalid_at(0)
                .with_headline("Image is not in qcow2 format"));
        }
        if available >= 8 && !(2..=3).contains(&raw.version) {
            return Err(Error::new(ErrorKind::Unsupported, Problem::Version { found: raw.version })
                .at_offset(4)
                .with_headline(alloc::format!("Unsupported qcow2 version {}", raw.version)));
        }
        if available < V2_SIZE || (raw.version == 3 && available < V3_SIZE) {
            return Err(truncated("the header", if raw.version == 3 { V3_SIZE } else { V2_SIZE }));
        }
        let field = |field, offset, found: u64, expected: &str| -> Error {
            Problem::Field { field, found, expected: expected.to_string() }.invalid_at(offset)
        };
        let Some(cluster) = ClusterBits::new(raw.cluster_bits) else {
            return Err(field("cluster_bits", 20, raw.cluster_bits.into(), "9 to 21")
                .with_headline(alloc::format!("Unsupported cluster size: 2^{}", raw.cluster_bits)));
        };
        if raw.version == 3 {
            if u64::from(raw.header_length) > cluster.size() {
                return Err(field("header_length", 100, raw.header_length.into(), "at most one cluster")
                    .with_headline("qcow2 header exceeds cluster size"));
            }
            if (raw.header_length as usize) < V3_SIZE || !raw.header_length.is_multiple_of(8) {
                return Err(field("header_length", 100, raw.header_length.into(), "a multiple of 8, at least 104")
                    .with_headline("qcow2 header too short"));
            }
        }
        if raw.refcount_order > 6 {
            return Err(field("refcount_order", 96, raw.refcount_order.into(), "0 to 6")
                .with_headline("Reference count entry width too large; may not exceed 64 bits"));
        }
        let encryption = match raw.crypt_method {
            0 => Encryption::None,
            1 => Encryption::Aes,
            2 => Encryption::Luks,
            other => return Err(field("crypt_method", 32, other.into(), "0 (none), 1 (AES) or 2 (LUKS)")),
        };
        let flagged = raw.incompatible_features & INCOMPATIBLE_COMPRESSION != 0;
        let compression = match (raw.compression_type, flagged) {
            (0, false) => Compression::Deflate,
            (1, true) => Compression::Zstd,
            (0 | 1, _) => {
                let expected = if flagged {
                    "not 0, as the compression feature bit is set"
                } else {
                    "0, as the compression feature bit is not set"
                };
                return Err(field("compression_type", 104, raw.compression_type.into(), expected));
            }
            (other, _) => return Err(field("compression_type", 104, other.into(), "0 (zlib) or 1 (zstd)")),
        };
        let header = Header { raw, cluster, compression, encryption };
        header.check_tables(length)?;
        Ok(header)
    }

    fn check_tables(&self, length: u64) -> Result<()> {
        let Header { raw, cluster, .. } = self;
        let field = |field, offset, found: u64, expected: &str, headline: &'static str| -> Result<()> {
            Err(Problem::Field { field, found, expected: expected.to_string() }
                .invalid_at(offset)
                .with_headline(headline))
        };
        if raw.backing_file_offset != 0 {
            if raw.backing_file_size > MAX_BACKING_NAME {
                return field(
                    "backing_file_size",
                    16,
                    raw.backing_file_size.into(),
                    "at most 1023",
                    "Backing file name too long",
                );
            }
            if raw.backing_file_offset.saturating_add(raw.backing_file_size.into()) > cluster.size() {
                return field(
                    "backing_file_offset",
                    8,
                    raw.backing_file_offset,
                    "a name within the first cluster",
                    "Invalid backing file offset",
                );
            }
        }
        let l1_bytes = u64::from(raw.l1_size) * 8;
        if self.l1_entries_for(raw.size) > i32::MAX as u64 {
            return field("size", 24, raw.size, "a size that 2^31 L1 entries can cover", "Image is too big");
        }
        if l1_bytes > MAX_L1_BYTES {
            return field("l1_size", 36, raw.l1_size.into(), "at most 4194304", "Active L1 table too large");
        }
        if u64::from(raw.l1_size) < self.l1_entries_for(raw.size) {
            return field("l1_size", 36, raw.l1_size.into(), "enough entries for the size", "L1 table is too small");
        }
        if !cluster.is_aligned(raw.l1_table_offset) || raw.l1_table_offset >= MAX_HOST_OFFSET {
            return field(
                "l1_table_offset",
                40,
                raw.l1_table_offset,
                "a multiple of the cluster size",
                "Active L1 table offset invalid",
            );
        }
        if l1_bytes > 0 && raw.l1_table_offset.saturating_add(l1_bytes) > length {
            return field(
                "l1_table_offset",
                40,
                raw.l1_table_offset,
                "a table within the file",
                "Could not read L1 table",
            );
        }
        let refcount_bytes = u64::from(raw.refcount_table_clusters) << cluster.bits();
        if refcount_bytes > MAX_REFCOUNT_TABLE_BYTES {
            return field(
                "refcount_table_clusters",
                56,
                raw.refcount_table_clusters.into(),
                "at most 8 MiB of clusters",
                "Reference count table too large",
            );
        }
        if raw.refcount_table_clusters == 0 {
            return field(
                "refcount_table_clusters",
                56,
                0,
                "at least 1",
                "Image does not contain a reference count table",
            );
        }
        if !cluster.is_aligned(raw.refcount_table_offset) || raw.refcount_table_offset >= MAX_HOST_OFFSET {
            return field(
                "refcount_table_offset",
                48,
                raw.refcount_table_offset,
                "a multiple of the cluster size",
                "Reference count table offset invalid",
            );
        }
        if raw.nb_snapshots > MAX_SNAPSHOTS {
            return field("nb_snapshots", 60, raw.nb_snapshots.into(), "at most 65536", "Snapshot table too large");
        }
        let table_end = raw.snapshots_offset.checked_add(u64::from(raw.nb_snapshots) * MIN_SNAPSHOT_BYTES);
        if !cluster.is_aligned(raw.snapshots_offset) || table_end.is_none_or(|end| end > i64::MAX as u64) {
            return field(
                "snapshots_offset",
                64,
                raw.snapshots_offset,
                "a multiple of the cluster size",
                "Snapshot table offset invalid",
            );
        }
        if self.is_extended() && cluster.bits() < 14 {
            return field(
                "cluster_bits",
                20,
                cluster.bits().into(),
                "at least 14 with extended L2 entries",
                "Cluster size too small for extended L2 entries",
            );
        }
        Ok(())
    }

    /// Refuses unknown incompatible features, naming them from the image's own table where it has them.
    pub fn check_features(&self, table: &[FeatureName]) -> Result<()> {
        let known = INCOMPATIBLE_DIRTY
            | INCOMPATIBLE_CORRUPT
            | INCOMPATIBLE_DATA_FILE
            | INCOMPATIBLE_COMPRESSION
            | INCOMPATIBLE_EXTENDED_L2;
        let unknown = self.raw.incompatible_features & !known;
        if unknown == 0 {
            return Ok(());
        }
        let bits = || (0..64).filter(|bit| unknown >> bit & 1 == 1);
        let name_of = |bit: &u32| table.iter().find(|feature| feature.kind == 0 && u32::from(feature.bit) == *bit);
        let names: Vec<String> = bits()
            .map(|bit| match name_of(&bit) {
                Some(feature) => alloc::format!("{} (incompatible bit {bit})", feature.name),
                None => alloc::format!("Unknown incompatible feature: {:x} (incompatible bit {bit})", 1u64 << bit),
            })
            .collect();
        // QEMU names those that have a name in the order of the table, and all others by one number.
        let named = table.iter().filter(|feature| feature.kind == 0 && unknown >> feature.bit & 1 == 1);
        let mut brief: Vec<String> = named.map(|feature| feature.name.clone()).collect();
        let nameless: u64 = bits().filter(|bit| name_of(bit).is_none()).map(|bit| 1u64 << bit).sum();
        if nameless != 0 {
            brief.push(alloc::format!("Unknown incompatible feature: {nameless:x}"));
        }
        Err(Error::new(ErrorKind::Unsupported, Problem::Features { names: names.join(", ") })
            .at_offset(72)
            .with_headline(alloc::format!("Unsupported qcow2 feature(s): {}", brief.join(", "))))
    }

    /// Whether L2 entries have subclusters.
    pub fn is_extended(&self) -> bool {
        self.raw.incompatible_features & INCOMPATIBLE_EXTENDED_L2 != 0
    }

    /// Whether guest data is in another file.
    pub fn has_data_file(&self) -> bool {
        self.raw.incompatible_features & INCOMPATIBLE_DATA_FILE != 0
    }

    /// Whether that file is a raw image of the disk.
    pub fn is_data_file_raw(&self) -> bool {
        self.has_data_file() && self.raw.autoclear_features & AUTOCLEAR_DATA_FILE_RAW != 0
    }

    /// Bytes of an L2 entry.
    pub fn l2_entry_size(&self) -> u64 {
        if self.is_extended() { 16 } else { 8 }
    }

    /// Entries of an L2 table.
    pub fn l2_entries(&self) -> u64 {
        self.cluster.size() / self.l2_entry_size()
    }

    /// Guest bytes that one L2 table covers.
    pub fn l2_coverage(&self) -> u64 {
        self.l2_entries() * self.cluster.size()
    }

    /// L1 entries that a disk of `size` bytes needs.
    pub fn l1_entries_for(&self, size: u64) -> u64 {
        size.div_ceil(self.l2_coverage())
    }

    /// Bits of a refcount.
    pub fn refcount_bits(&self) -> u32 {
        1 << self.raw.refcount_order
    }

    /// Refcounts in a refcount block.
    pub fn refcounts_per_block(&self) -> u64 {
        self.cluster.size() * 8 / u64::from(self.refcount_bits())
    }
}

/// A name for a feature bit, from the feature name table extension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeatureName {
    /// 0 incompatible, 1 compatible, 2 autoclear.
    pub kind: u8,
    /// Bit number.
    pub bit: u8,
    /// The name.
    pub name: String,
}
