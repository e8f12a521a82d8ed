//! Making a new image.

use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use crate::crypto::{NewVolume, Parameters};
use crate::drivers::{CreateContext, CreateOption, KNOWN_NAMES, OpenContext, OpenOptions};
use crate::error::{Error, ErrorKind, Result};
use crate::formats::qcow2::encryption;
use crate::formats::qcow2::extension::{BACKING_FORMAT, DATA_FILE, ENCRYPTION, FEATURE_NAMES};
use crate::formats::qcow2::header::{
    AUTOCLEAR_DATA_FILE_RAW, COMPATIBLE_LAZY_REFCOUNTS, ClusterBits, Encryption, INCOMPATIBLE_COMPRESSION,
    INCOMPATIBLE_DATA_FILE, INCOMPATIBLE_EXTENDED_L2, MAGIC, MAX_BACKING_NAME, MAX_L1_BYTES, RawHeader,
};
use crate::formats::qcow2::rewrite::{MIN_FEATURE_TABLE_CLUSTER, feature_table};
use crate::formats::qcow2::table::{refcount_place, set_refcount};
use crate::node::{Node, Preallocation, Range, Role, WriteFlags, write_first_sector_last};
use crate::op::{BoxFuture, Op};
use crate::policy::{Budgets, Gate, Opener, Policy, Reference};
use crate::wire::parse_size;

/// The options of a new image, as QEMU lists them.
pub(super) const OPTIONS: &[CreateOption] = &[
    option("backing_file", "str", "File name of a base image"),
    option("backing_fmt", "str", "Image format of the base image"),
    option("cluster_size", "size", "qcow2 cluster size"),
    option("compat", "str", "Compatibility level (v2 [0.10] or v3 [1.1])"),
    option("compression_type", "str", "Compression method used for image cluster compression"),
    option("data_file", "str", "File name of an external data file"),
    option("data_file_raw", "bool (on/off)", "The external data file must stay valid as a raw image"),
    option("encrypt.cipher-alg", "str", "Name of encryption cipher algorithm"),
    option("encrypt.cipher-mode", "str", "Name of encryption cipher mode"),
    option("encrypt.format", "str", "Encrypt the image, format choices: 'aes', 'luks'"),
    option("encrypt.hash-alg", "str", "Name of encryption hash algorithm"),
    option("encrypt.iter-time", "num", "Time to spend in PBKDF in milliseconds"),
    option("encrypt.ivgen-alg", "str", "Name of IV generator algorithm"),
    option("encrypt.ivgen-hash-alg", "str", "Name of IV generator hash algorithm"),
    option("encrypt.key-secret", "str", "ID of secret providing qcow AES key or LUKS passphrase"),
    option(
        "encryption",
        "bool (on/off)",
        "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)",
    ),
    option("extended_l2", "bool (on/off)", "Extended L2 tables"),
    option("lazy_refcounts", "bool (on/off)", "Postpone refcount updates"),
    option("preallocation", "str", "Preallocation mode (allowed values: off, metadata, falloc, full)"),
    option("refcount_bits", "num", "Width of a reference count entry in bits"),
];

/// Zeroes are written in pieces of this many bytes.
const ZERO_PIECE_BYTES: usize = 1 << 16;
const fn option(name: &'static str, kind: &'static str, help: &'static str) -> CreateOption {
    CreateOption { name, kind, help }
}

pub(super) fn create(context: CreateContext<'_>) -> BoxFuture<'_, Result<()>> {
    alloc::boxed::Box::pin(create_image(context))
}

/// What was asked for, checked.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    size: u64,
    version: u32,
    cluster: ClusterBits,
    refcount_order: u32,
    lazy_refcounts: bool,
    extended: bool,
    zstd: bool,
    backing: Option<String>,
    backing_format: Option<String>,
    data_file: Option<String>,
    data_file_raw: bool,
    preallocation: Preallocation,
    encryption: Option<Encryption>,
    /// What the LUKS header is to be like, if there is to be one.
    luks: Option<Parameters>,
}

impl Plan {
    pub(super) fn new(size: u64, options: &BTreeMap<String, String>) -> Result<Self> {
        for name in options.keys() {
            if name != "size" && !OPTIONS.iter().any(|option| option.name == name) {
                return Err(Error::invalid(alloc::format!("Invalid parameter '{name}'")));
            }
        }
        let text = |name: &str| options.get(name).filter(|value| !value.is_empty()).cloned();
        let flag = |name: &str| match options.get(name).map(String::as_str) {
            None | Some("off" | "no" | "n" | "false") => Ok(false),
            Some("on" | "yes" | "y" | "true") => Ok(true),
            Some(_) => Err(Error::invalid(alloc::format!("Parameter '{name}' expects 'on' or 'off'"))),
        };
        let version = match options.get("compat").map(String::as_str) {
            None | Some("1.1" | "v3") => 3,
            Some("0.10" | "v2") => 2,
            Some(other) => {
                return Err(Error::invalid(alloc::format!("Parameter 'version' does not accept value '{other}'")));
            }
        };
        let cluster_size = match options.get("cluster_size") {
            None => 65536,
            Some(size) => parse_size(size)
                .ok_or_else(|| Error::invalid("Parameter 'cluster_size' expects a non-negative number below 2^64"))?,
        };
        let cluster = cluster_size
            .is_power_of_two()
            .then(|| ClusterBits::new(cluster_size.trailing_zeros()))
            .flatten()
            .ok_or_else(|| Error::invalid("Cluster size must be a power of two between 512 and 2048k"))?;
        let refcount_bits: i64 = match options.get("refcount_bits") {
            None => 16,
            Some(bits) => bits.parse().map_err(|_| Error::invalid("Parameter 'refcount_bits' expects a number"))?,
        };
        let encryption = encryption::wanted(options)?;
        let luks = match encryption {
            Some(Encryption::Luks) => Some(Parameters::read(options, "encrypt.")?),
            _ => None,
        };
        let plan = Plan {
            encryption,
            luks,
            size: size
                .checked_next_multiple_of(512)
                .ok_or_else(|| Error::new(ErrorKind::TooLarge, "Image size is too large"))?,
            version,
            cluster,
            refcount_order: if refcount_bits > 0 && refcount_bits.count_ones() == 1 {
                refcount_bits.trailing_zeros()
            } else {
                u32::MAX
            },
            lazy_refcounts: flag("lazy_refcounts")?,
            extended: flag("extended_l2")?,
            zstd: match options.get("compression_type").map(String::as_str) {
                None | Some("zlib") => false,
                Some("zstd") => true,
                Some(other) => {
                    return Err(Error::invalid(alloc::format!(
                        "Parameter 'compression-type' does not accept value '{other}'"
                    )));
                }
            },
            backing: text("backing_file"),
            backing_format: text("backing_fmt"),
            data_file: text("data_file"),
            data_file_raw: flag("data_file_raw")?,
            preallocation: match options.get("preallocation").map(String::as_str) {
                None | Some("off") => Preallocation::Off,
                Some("metadata") => Preallocation::Metadata,
                Some("falloc") => Preallocation::Falloc,
                Some("full") => Preallocation::Full,
                Some(other) => {
                    return Err(Error::invalid(alloc::format!(
                        "Parameter 'preallocation' does not accept value '{other}'"
                    )));
                }
            },
        };
        plan.check()
    }

    fn check(mut self) -> Result<Self> {
        let refuse = |text: &str| Err(Error::invalid(text));
        if self.refcount_order > 6 {
            return refuse("Refcount width must be a power of two and may not exceed 64 bits");
        }
        if self.version < 3 {
            if self.refcount_order != 4 {
                return refuse(
                    "Different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 or greater)",
                );
            }
            if self.lazy_refcounts {
                return refuse(
                    "Lazy refcounts only supported with compatibility level 1.1 and above (use version=v3 or greater)",
                );
            }
            if self.extended {
                return refuse(
                    "Extended L2 entries are only supported with compatibility level 1.1 and above (use version=v3 or greater)",
                );
            }
            if self.data_file.is_some() {
                return refuse(
                    "External data files are only supported with compatibility level 1.1 and above (use version=v3 or greater)",
                );
            }
            if self.zstd {
                return refuse(
                    "Non-zlib compression type is only supported with compatibility level 1.1 and above (use version=v3 or greater)",
                );
            }
        }
        if self.extended && self.cluster.bits() < 14 {
            return refuse("Extended L2 entries are only supported with cluster sizes of at least 16384 bytes");
        }
        if self.data_file_raw && self.data_file.is_none() {
            return refuse("data-file-raw requires data-file");
        }
        if self.data_file_raw && self.backing.is_some() {
            return refuse("Backing file and data-file-raw cannot be used at the same time");
        }
        if self.preallocation != Preallocation::Off && self.backing.is_some() && !self.extended {
            return refuse("Backing file and preallocation can only be used at the same time if extended_l2 is on");
        }
        if let Some(format) = self.backing_format.as_ref().filter(|format| !KNOWN_NAMES.contains(&format.as_str())) {
            return Err(Error::invalid(alloc::format!("Parameter 'backing-fmt' does not accept value '{format}'")));
        }
        if self.backing_format.is_some() && self.backing.is_none() {
            return refuse("Backing format cannot be used without backing file");
        }
        if self.backing.as_ref().is_some_and(|name| name.len() > MAX_BACKING_NAME as usize) {
            return refuse("Backing file name too long");
        }
        if self.data_file_raw && self.preallocation == Preallocation::Off {
            self.preallocation = Preallocation::Metadata;
        }
        if self.l1_entries() * 8 > MAX_L1_BYTES {
            return Err(Error::new(
                ErrorKind::TooLarge,
                "The image size is too large for file format 'qcow2' (try using a larger cluster size)",
            ));
        }
        Ok(self)
    }

    pub(super) fn cluster(&self) -> ClusterBits {
        self.cluster
    }

    pub(super) fn preallocation(&self) -> Preallocation {
        self.preallocation
    }

    /// Whether space for all data is set aside.
    pub(super) fn is_filled(&self) -> bool {
        matches!(self.preallocation, Preallocation::Falloc | Preallocation::Full)
    }

    pub(super) fn has_backing(&self) -> bool {
        self.backing.is_some()
    }

    pub(super) fn is_version_3(&self) -> bool {
        self.version >= 3
    }

    /// Bytes of metadata once `size` bytes of data are stored: header, refcounts, L1 and L2 tables.
    pub(super) fn metadata_bytes(&self, size: u64) -> u64 {
        let cluster = self.cluster.size();
        let entry = if self.extended { 16 } else { 8 };
        let l2_tables = (size / cluster).div_ceil(cluster / entry);
        let l1 = (l2_tables * 8).div_ceil(cluster);
        let described = 1 + l1 + l2_tables + size / cluster;
        let per_block = (cluster * 8) >> self.refcount_order;
        // Refcounts count the clusters that they take themselves.
        let (mut blocks, mut table) = (0, 0);
        loop {
            let more = (described + blocks + table).div_ceil(per_block);
            let larger = (more * 8).div_ceil(cluster);
            if (more, larger) == (blocks, table) {
                break;
            }
            (blocks, table) = (more, larger);
        }
        (1 + l1 + l2_tables + blocks + table) * cluster
    }

    /// Bytes of the LUKS header, in whole clusters.
    pub(super) fn encryption_bytes(&self) -> u64 {
        self.luks.as_ref().map_or(0, |parameters| parameters.header_bytes().next_multiple_of(self.cluster.size()))
    }

    fn l1_entries(&self) -> u64 {
        let entry = if self.extended { 16 } else { 8 };
        self.size.div_ceil(self.cluster.size() / entry * self.cluster.size())
    }

    fn features(&self) -> (u64, u64, u64) {
        let bit = |set: bool, bit: u64| if set { bit } else { 0 };
        (
            bit(self.data_file.is_some(), INCOMPATIBLE_DATA_FILE)
                | bit(self.zstd, INCOMPATIBLE_COMPRESSION)
                | bit(self.extended, INCOMPATIBLE_EXTENDED_L2),
            bit(self.lazy_refcounts, COMPATIBLE_LAZY_REFCOUNTS),
            bit(self.data_file_raw, AUTOCLEAR_DATA_FILE_RAW),
        )
    }

    /// The first cluster: header, extensions, backing file name.
    fn first_cluster(&self, places: &Places) -> Result<Vec<u8>> {
        let (incompatible_features, compatible_features, autoclear_features) = self.features();
        let mut raw = RawHeader {
            magic: MAGIC,
            version: self.version,
            backing_file_offset: 0,
            backing_file_size: 0,
            cluster_bits: self.cluster.bits(),
            size: self.size,
            crypt_method: match self.encryption {
                Some(Encryption::Luks) => 2,
                Some(Encryption::Aes) => 1,
                _ => 0,
            },
            l1_size: self.l1_entries() as u32,
            l1_table_offset: places.l1_table,
            refcount_table_offset: places.refcount_table,
            refcount_table_clusters: places.refcount_table_clusters as u32,
            nb_snapshots: 0,
            snapshots_offset: 0,
            incompatible_features,
            compatible_features,
            autoclear_features,
            refcount_order: self.refcount_order,
            header_length: if self.version == 2 { 72 } else { RawHeader::SIZE as u32 },
            compression_type: self.zstd.into(),
            padding: [0; 7],
        };
        let mut extensions = Vec::new();
        let mut extension = |kind: u32, data: &[u8]| {
            extensions.extend_from_slice(&kind.to_be_bytes());
            extensions.extend_from_slice(&(data.len() as u32).to_be_bytes());
            extensions.extend_from_slice(data);
            extensions.resize(extensions.len().next_multiple_of(8), 0);
        };
        if let Some(format) = &self.backing_format {
            extension(BACKING_FORMAT, format.as_bytes());
        }
        if let Some(name) = &self.data_file {
            extension(DATA_FILE, name.as_bytes());
        }
        if let Some(parameters) = &self.luks {
            extension(ENCRYPTION, &[places.luks.to_be_bytes(), parameters.header_bytes().to_be_bytes()].concat());
        }
        let room = self.cluster.size() as usize;
        if self.version >= 3 && room >= MIN_FEATURE_TABLE_CLUSTER {
            extension(FEATURE_NAMES, &feature_table());
        }
        extension(0, &[]);
        let start = raw.header_length as usize;
        if let Some(name) = &self.backing {
            raw.backing_file_offset = (start + extensions.len()) as u64;
            raw.backing_file_size = name.len() as u32;
        }
        let mut cluster = Vec::new();
        cluster.extend_from_slice(raw.emit().get(..start).unwrap_or_default());
        cluster.extend_from_slice(&extensions);
        cluster.extend_from_slice(self.backing.as_deref().unwrap_or_default().as_bytes());
        if cluster.len() > room {
            return Err(Error::new(
                ErrorKind::NoSpace,
                alloc::format!(
                    "the header with its names takes {} bytes and must fit into the first cluster of {room}; use a larger cluster size",
                    cluster.len()
                ),
            ));
        }
        cluster.resize(room, 0);
        Ok(cluster)
    }
}

/// Where the first tables go: header, refcount table, refcount blocks, L1 table, LUKS header.
struct Places {
    refcount_table: u64,
    refcount_table_clusters: u64,
    blocks: u64,
    l1_table: u64,
    luks: u64,
    end: u64,
}

impl Places {
    fn of(plan: &Plan) -> Self {
        let cluster = plan.cluster;
        let per_block = (cluster.size() * 8) >> plan.refcount_order;
        let l1_clusters = cluster.count(plan.l1_entries() * 8);
        let luks_clusters = plan.luks.as_ref().map_or(0, |parameters| cluster.count(parameters.header_bytes()));
        let (mut blocks, mut table) = (1, 1);
        loop {
            let used = 1 + table + blocks + l1_clusters + luks_clusters;
            let needed = used.div_ceil(per_block);
            let table_needed = cluster.count(needed * 8);
            if needed <= blocks && table_needed <= table {
                break;
            }
            (blocks, table) = (blocks.max(needed), table.max(table_needed));
        }
        let at = |index: u64| index << cluster.bits();
        Places {
            refcount_table: at(1),
            refcount_table_clusters: table,
            blocks,
            // An empty disk has no table.
            l1_table: if l1_clusters == 0 { 0 } else { at(1 + table + blocks) },
            luks: at(1 + table + blocks + l1_clusters),
            end: 1 + table + blocks + l1_clusters + luks_clusters,
        }
    }
}

async fn create_image(context: CreateContext<'_>) -> Result<()> {
    let plan = Plan::new(context.size, context.options)?;
    let file = crate::engine::byte_granular(context.file.clone());
    let passphrase = match plan.encryption {
        Some(_) => {
            let secret =
                context.options.get(encryption::KEY_SECRET).filter(|name| !name.is_empty()).ok_or_else(|| {
                    Error::invalid(alloc::format!("Parameter '{}' is required for cipher", encryption::KEY_SECRET))
                })?;
            Some(context.keyring.passphrase(secret)?)
        }
        None => None,
    };
    let places = Places::of(&plan);
    let cluster = plan.cluster;
    let first = plan.first_cluster(&places)?;
    if plan.data_file.is_some() && context.data_file.is_none() {
        return Err(Error::invalid("the external data file was not opened"));
    }
    let metadata = Range::new(0, places.end << cluster.bits());
    if file.info().zero_init {
        file.resize(0, Preallocation::Off).await?;
        // The L1 table comes last, and the rest of its last cluster need not be there.
        let l1_end = places.l1_table + plan.l1_entries() * 8;
        let is_last = places.l1_table > 0 && places.luks == metadata.len && plan.preallocation == Preallocation::Off;
        file.resize(if is_last { l1_end } else { metadata.len }, Preallocation::Off).await?;
    } else {
        zero_out(&*file, metadata).await?;
    }
    let mut table = vec![0; (places.refcount_table_clusters << cluster.bits()) as usize];
    let per_block = (cluster.size() * 8) >> plan.refcount_order;
    for index in 0..places.blocks {
        let at = (1 + places.refcount_table_clusters + index) << cluster.bits();
        if let Some(entry) = table.get_mut(index as usize * 8..index as usize * 8 + 8) {
            entry.copy_from_slice(&at.to_be_bytes());
        }
        let mut block = vec![0; cluster.size() as usize];
        for entry in 0..places.end.saturating_sub(index * per_block).min(per_block) {
            let (start, len) = refcount_place(entry, plan.refcount_order);
            if let Some(place) = block.get_mut(start..start + len) {
                set_refcount(place, entry, plan.refcount_order, 1);
            }
        }
        file.write(at, &block, WriteFlags::default()).await?;
    }
    file.write(places.refcount_table, &table, WriteFlags::default()).await?;
    if let (Some(parameters), Some(passphrase)) = (&plan.luks, &passphrase) {
        NewVolume { file: &*file, at: places.luks, parameters, detached: false, passphrase, keyring: context.keyring }
            .create()
            .await?;
    }
    // Until the header is there, it is not an image.
    file.flush().await?;
    write_first_sector_last(&*file, 0, &first).await?;
    if let Some(data) = &context.data_file {
        let mode = if plan.preallocation == Preallocation::Metadata { Preallocation::Off } else { plan.preallocation };
        data.resize(plan.size, mode).await?;
    }
    if plan.preallocation != Preallocation::Off {
        preallocate(&plan, file, &context).await?;
    }
    Ok(())
}

/// Answers the one reference that a new image makes.
struct DataFile(Arc<dyn Node>);

impl Opener for DataFile {
    fn open<'a>(&'a self, reference: &'a Reference, _gate: &'a Gate) -> Op<'a, Arc<dyn Node>> {
        match reference.role {
            Role::DataFile => Op::ok(self.0.clone()),
            _ => Op::err(Error::unsupported("only the data file is needed here")),
        }
    }
}

/// Allocates every cluster of the disk.
async fn preallocate(plan: &Plan, file: Arc<dyn Node>, context: &CreateContext<'_>) -> Result<()> {
    let gate =
        context.data_file.clone().map_or_else(Gate::closed, |data| Gate::new(Policy::Allow, Arc::new(DataFile(data))));
    let secret = context.options.get(encryption::KEY_SECRET).cloned();
    let options = OpenOptions {
        read_only: false,
        gate,
        driver_options: secret.map(|secret| (encryption::KEY_SECRET.to_string(), secret)).into_iter().collect(),
        keyring: context.keyring.clone(),
        // The image is our own.
        budgets: Budgets { key_iterations: u32::MAX, ..Budgets::default() },
        ..OpenOptions::default()
    };
    let name = file.name().to_string();
    let (format, _) =
        super::open::open_image(OpenContext { file: file.clone(), name: &name, options: &options }).await?;
    let mut at = 0;
    while at < plan.size {
        let allocation = format.prepare_write(Range::new(at, plan.size - at)).await?;
        if plan.data_file.is_none() {
            let end = allocation.host.at + allocation.guest.len.next_multiple_of(plan.cluster.size());
            grow(&*file, end, plan.preallocation).await?;
            if !file.info().zero_init {
                zero_out(&*file, Range::new(allocation.host.at, end - allocation.host.at)).await?;
            }
        }
        // With subclusters, space alone does not hide a backing image. A raw data file is the disk already.
        format.link(&allocation, plan.data_file_raw).await?;
        at = allocation.guest.end();
    }
    format.end_changing().await
}

/// Zeroes what a device held before.
async fn zero_out(file: &dyn Node, range: Range) -> Result<()> {
    match file.write_zeroes(range, WriteFlags::default()).await {
        Err(error) if error.kind() == ErrorKind::Unsupported => {}
        result => return result,
    }
    let zeroes = vec![0; ZERO_PIECE_BYTES];
    let mut at = range.start;
    while at < range.end() {
        let len = (range.end() - at).min(ZERO_PIECE_BYTES as u64) as usize;
        file.write(at, zeroes.get(..len).unwrap_or_default(), WriteFlags::default()).await?;
        at += len as u64;
    }
    Ok(())
}

async fn grow(file: &dyn Node, end: u64, preallocation: Preallocation) -> Result<()> {
    if end <= file.info().length {
        return Ok(());
    }
    let mode = if preallocation == Preallocation::Metadata { Preallocation::Off } else { preallocation };
    file.resize(end, mode).await.map_err(|error| {
        let brief = alloc::format!("Could not resize image: {}", error.brief());
        error.with_headline(brief)
    })
}
