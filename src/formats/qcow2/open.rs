//! Opening: header, extensions, directories, the external data file.

use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec;
use core::sync::atomic::{AtomicBool, AtomicU32};

use crate::cache::Cache;
use crate::drivers::{OpenContext, OpenOptions, OpenedFormat, backing_reference};
use crate::engine::byte_granular;
use crate::error::{Error, ErrorKind, Result};
use crate::formats::qcow2::extension::Extensions;
use crate::formats::qcow2::header::{Header, INCOMPATIBLE_CORRUPT, Problem};
use crate::formats::qcow2::health::Health;
use crate::formats::qcow2::metadata::Metadata;
use crate::formats::qcow2::refcount::Refcounts;
use crate::formats::qcow2::settings::Settings;
use crate::formats::qcow2::{Geometry, Qcow2, bitmap, encryption::Crypt, snapshot};
use crate::node::{Node, Range, ReadFlags, Role};
use crate::op::BoxFuture;
use crate::options::Options;
use crate::policy::Reference;
use crate::sync::{Lock, Mutex};

pub(super) fn open(context: OpenContext<'_>) -> BoxFuture<'_, Result<OpenedFormat>> {
    Box::pin(async move {
        let (format, backing) = open_image(context).await?;
        Ok(OpenedFormat { format: Box::new(format), backing })
    })
}

/// Opens the image, and says what its backing image is.
pub(super) async fn open_image(context: OpenContext<'_>) -> Result<(Qcow2, Option<Reference>)> {
    let OpenContext { file, name, options } = context;
    let length = file.info().length;
    let mut head = vec![0; length.min(4096) as usize];
    file.read(0, &mut head, ReadFlags::default()).await?;
    let header = match options.for_check {
        true => header_for_check(&head, length)?,
        false => Header::parse(&head, length)?,
    };
    let cluster_bytes = header.cluster.size().min(length);
    if cluster_bytes > head.len() as u64 {
        let known = head.len();
        head.resize(cluster_bytes as usize, 0);
        if let Some(rest) = head.get_mut(known..) {
            file.read(known as u64, rest, ReadFlags::default()).await?;
        }
    }
    let extensions = parse_extensions(&header, &head)?;
    header.check_features(&extensions.feature_names)?;
    let raw = &header.raw;
    if !options.read_only && !options.for_check {
        check_writable(&header)?;
    }
    let backing_name = backing_name(&header, &head)?;
    let settings = Settings::new(&options.driver_options, &header, options.image.discard)?;
    let directory = match snapshot::read_table(&*file, &header).await {
        // A check says what is wrong with the table, and may put it right.
        Err(_) if options.for_check => snapshot::Directory::default(),
        directory => directory?,
    };
    let bitmaps = bitmap::read_directory(&*file, &header, &extensions).await?;
    let crypt = Crypt::open(&file, &header, &extensions, options).await?;
    let data = match (header.has_data_file(), options.structure_only) {
        (true, false) => Some(open_data_file(&*file, &extensions, name, options).await?),
        _ => None,
    };
    let backing =
        backing_name.as_deref().map(|backing| backing_reference(backing, extensions.backing_format.as_deref(), name));
    let format = Qcow2 {
        geometry: Mutex::new(Geometry {
            l1_offset: raw.l1_table_offset,
            l1_entries: raw.l1_size.into(),
            refcount_table: Range::new(
                raw.refcount_table_offset,
                u64::from(raw.refcount_table_clusters) << header.cluster.bits(),
            ),
            size: raw.size,
            incompatible: raw.incompatible_features,
            compatible: raw.compatible_features,
            autoclear: raw.autoclear_features,
        }),
        version: AtomicU32::new(raw.version),
        refcount_order: AtomicU32::new(raw.refcount_order),
        settings,
        writable: !options.read_only,
        #[cfg(feature = "write")]
        for_check: options.for_check,
        health: Health::new(options.report.clone()),
        metadata: Metadata::new(&extensions, &directory, &bitmaps.places()),
        refcounts: Lock::new(Refcounts::new(raw.refcount_table_offset, raw.refcount_table_clusters.into())),
        cache: Cache::new(cache_bytes(options, &settings, &header), super::TABLE_EVENTS),
        begun: AtomicBool::new(false),
        changing: AtomicBool::new(false),
        recording: AtomicBool::new(false),
        at_snapshot: false,
        expanded_bytes: options.budgets.expanded_bytes,
        check_bytes: options.budgets.check_bytes,
        expanded: Mutex::new(None),
        file,
        data,
        header,
        extensions,
        backing_name,
        directory: Mutex::new(directory),
        bitmaps: Mutex::new(bitmaps),
        crypt,
    };
    #[cfg(feature = "write")]
    if format.geometry().incompatible & super::header::INCOMPATIBLE_DIRTY != 0
        && !options.read_only
        && !options.for_check
    {
        format.repair_dirty().await?;
    }
    Ok((format, backing))
}

/// How many bytes of tables are kept in memory.
fn cache_bytes(options: &OpenOptions, settings: &Settings, header: &Header) -> usize {
    let most = options.budgets.metadata_bytes;
    let wanted = settings.cache_bytes.map_or(most, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX).min(most));
    wanted.max(8 * header.cluster.size() as usize)
}

/// A header without what a check can do without: a table of snapshots that is nowhere, a refcount table.
fn header_for_check(head: &[u8], length: u64) -> Result<Header> {
    let mut known = head.to_vec();
    let without_refcounts = match known.get_mut(56..60) {
        Some(clusters) if *clusters == [0; 4] => {
            clusters.copy_from_slice(&1u32.to_be_bytes());
            true
        }
        _ => false,
    };
    let mut header = Header::parse(&known, length).or_else(|error| {
        known.get_mut(60..72).ok_or(error)?.fill(0);
        Header::parse(&known, length)
    })?;
    if without_refcounts {
        header.raw.refcount_table_clusters = 0;
    }
    Ok(header)
}

fn parse_extensions(header: &Header, head: &[u8]) -> Result<Extensions> {
    let start = header.raw.header_length as usize;
    let end = match header.raw.backing_file_offset {
        0 => head.len(),
        offset => (offset as usize).min(head.len()),
    };
    match head.get(start..end) {
        Some(bytes) => Extensions::parse(bytes, start as u64),
        None => Ok(Extensions::default()),
    }
}

fn check_writable(header: &Header) -> Result<()> {
    let bits = header.raw.incompatible_features;
    let refuse = |text: &str| Err(Error::new(ErrorKind::Denied, text.to_string()).at_offset(72));
    if bits & INCOMPATIBLE_CORRUPT != 0 {
        return refuse("Image is corrupt; cannot be opened read/write. Open it read-only to save what can be read")
            .map_err(|error: Error| error.with_headline("qcow2: Image is corrupt; cannot be opened read/write"));
    }
    Ok(())
}

fn backing_name(header: &Header, head: &[u8]) -> Result<Option<String>> {
    let start = header.raw.backing_file_offset;
    if start == 0 {
        return Ok(None);
    }
    let end = start + u64::from(header.raw.backing_file_size);
    match head.get(start as usize..end as usize) {
        Some([]) => Ok(None),
        Some(name) => Ok(Some(String::from_utf8_lossy(name).into_owned())),
        None => {
            Err(Problem::Truncated { what: "the backing file name", found: head.len() as u64, expected: end }
                .invalid_at(8))
        }
    }
}

async fn open_data_file(
    file: &dyn Node,
    extensions: &Extensions,
    from: &str,
    options: &OpenOptions,
) -> Result<Arc<dyn Node>> {
    if let Some(node) = options.child("data-file") {
        return Ok(node.clone());
    }
    let overridden =
        options.driver_options.get("data-file.filename").or_else(|| options.driver_options.get("data-file"));
    let Some(name) = overridden.or(extensions.data_file.as_ref()) else {
        return Err(Error::invalid("'data-file' is required for this image: it has no name of its external data file")
            .with_headline("'data-file' is required for this image"));
    };
    let reference = Reference {
        name: name.clone(),
        format: Some("raw".to_string()),
        role: Role::DataFile,
        from: from.to_string(),
        writable: !options.read_only,
        options: Options::new(),
    };
    let node = options.gate.open(&reference).await.map_err(|error| {
        let headline = alloc::format!("Could not open '{name}': {}", error.kind().reason());
        Error::new(error.kind(), alloc::format!("Could not open the external data file: {error}"))
            .at_path(from)
            .with_headline(headline)
    })?;
    let identity = node.identity();
    if !identity.is_empty() && identity == file.identity() {
        return Err(Error::invalid("the image names itself as its external data file").at_path(from));
    }
    Ok(byte_granular(node))
}
