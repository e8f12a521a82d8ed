//! What a range holds across a chain of images.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::engine::image::Image;
use crate::error::Result;
use crate::node::{Host, Node, Range, Role, State, Want};
use crate::sync::Mutex;

/// A stretch of a disk that is alike throughout, with the layer that decides it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// First guest byte.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// How many images down the deciding layer is; 0 is the image that was asked.
    pub depth: u32,
    /// Whether a layer says something about the range, rather than nobody.
    pub present: bool,
    /// Whether it reads as zeroes.
    pub zero: bool,
    /// Whether it is backed by stored data.
    pub data: bool,
    /// Whether the data is compressed.
    pub compressed: bool,
    /// Where it is stored, for data that is stored as it is.
    pub offset: Option<u64>,
    /// Name of the file that `offset` counts in.
    pub file: Option<String>,
}

impl Status {
    /// Whether `next` follows and differs in nothing but place.
    pub(crate) fn continues(&self, next: &Status) -> bool {
        self.start + self.len == next.start
            && (self.depth, self.present, self.zero, self.data, self.compressed)
                == (next.depth, next.present, next.zero, next.data, next.compressed)
            && match (self.offset, next.offset) {
                (Some(offset), Some(other)) => offset + self.len == other,
                (None, None) => true,
                _ => false,
            }
            && self.file == next.file
    }
}

/// A chain of nodes, top first, for repeated questions. Filters are no layers of their own.
pub struct Chain {
    /// Filters that may refuse to answer.
    filters: Vec<Arc<dyn Node>>,
    layers: Vec<Arc<dyn Node>>,
    holes: Vec<Mutex<Holes>>,
}

/// What [`Want::Recorded`] makes of holes in the file of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holes {
    /// They are not looked for.
    Ignored,
    /// They are what the layer says.
    Decide,
    /// They read as zeroes, and are space that is set aside.
    Reserved,
    /// They are that if at least so many clusters of the file are in use, and not looked for otherwise.
    ReservedIf(u64),
}

impl Holes {
    fn of(layer: &Arc<dyn Node>) -> Self {
        let Some(cluster) = layer.info().cluster_size.map(u64::from) else { return Holes::Decide };
        let Some(file) = layer.child(Role::File) else { return Holes::Ignored };
        // As QEMU guesses it: notably more clusters in use than the file takes space for.
        let stored = file.allocated().map(|bytes| bytes / cluster);
        match stored.map(|stored| (stored * 10 / 9).max(stored + 2)) {
            Some(enough) if file.info().length.div_ceil(cluster) >= enough => Holes::ReservedIf(enough),
            _ => Holes::Ignored,
        }
    }

    /// Settles what depends on how many clusters are in use.
    async fn settled(self, layer: &Arc<dyn Node>) -> Self {
        let Holes::ReservedIf(enough) = self else { return self };
        let image = layer.as_any().and_then(|any| any.downcast_ref::<Image>());
        let used = match image {
            // Where that cannot be told, nothing is guessed.
            Some(image) => image.clusters_in_use(enough).await.unwrap_or(0),
            None => enough,
        };
        if used >= enough { Holes::Reserved } else { Holes::Ignored }
    }
}

impl Chain {
    /// The node and everything behind it.
    pub fn of(top: Arc<dyn Node>) -> Self {
        let (mut filters, mut layers) = (Vec::new(), Vec::new());
        let mut next = Some(top);
        while let Some(node) = next.take() {
            if let Some(below) = node.filtered() {
                if node.listens() && node.as_any().is_none_or(|any| !any.is::<Image>()) {
                    filters.push(node);
                }
                next = Some(below);
            } else {
                next = node.child(Role::Backing);
                layers.push(node);
            }
        }
        let holes = layers.iter().map(|layer| Mutex::new(Holes::of(layer))).collect();
        Chain { filters, layers, holes }
    }

    /// The layers, top first.
    pub fn layers(&self) -> &[Arc<dyn Node>] {
        &self.layers
    }

    /// What the start of `range` holds. Metadata only.
    ///
    /// With [`Want::Precise`] holes of the host file are reported as zeroes.
    pub async fn status(&self, range: Range, want: Want) -> Result<Status> {
        for filter in &self.filters {
            filter.map(range, want).await?;
        }
        let mut len = range.len;
        for (depth, layer) in (0u32..).zip(&self.layers) {
            let available = layer.info().length.saturating_sub(range.start);
            len = len.min(available);
            let extent = layer.map(Range::new(range.start, len), want).await?;
            len = extent.len.min(len);
            let mut status = Status { depth, len, ..Self::zeroes(range) };
            match extent.state {
                // Beyond the end of a shorter backing image this layer decides, and it reads as zeroes.
                State::Unallocated if self.reaches(depth as usize + 1, range.start) => continue,
                // Space may be set aside all the same. What a backing image that was not opened holds is not known.
                State::Unallocated => {
                    status.zero = !lacks_backing(layer);
                    self.locate(&mut status, layer, extent.host);
                }
                State::Zero => {
                    status.present = true;
                    self.locate(&mut status, layer, extent.host);
                }
                State::Data => {
                    (status.present, status.data, status.zero) = (true, true, false);
                    self.locate(&mut status, layer, extent.host);
                    let holes =
                        if want == Want::Recorded { self.holes(depth as usize, layer).await } else { Holes::Ignored };
                    let refined = want == Want::Precise || (want == Want::Recorded && holes != Holes::Ignored);
                    if let (true, Some(host)) = (refined, extent.host) {
                        refine(layer, host, &mut status).await?;
                        status.data |= want == Want::Recorded && holes == Holes::Reserved;
                    }
                }
                State::Compressed { .. } => {
                    (status.present, status.data, status.zero, status.compressed) = (true, true, false, true);
                }
                State::Encrypted => {
                    (status.present, status.data, status.zero) = (true, true, false);
                }
            }
            return Ok(status);
        }
        Ok(Status { len, ..Self::zeroes(range) })
    }

    async fn holes(&self, depth: usize, layer: &Arc<dyn Node>) -> Holes {
        let Some(known) = self.holes.get(depth) else { return Holes::Ignored };
        let before = *known.lock();
        let settled = before.settled(layer).await;
        if settled != before {
            *known.lock() = settled;
        }
        settled
    }

    /// Whether there is a layer `depth` that is longer than `at`.
    fn reaches(&self, depth: usize, at: u64) -> bool {
        self.layers.get(depth).is_some_and(|layer| layer.info().length > at)
    }

    /// All of `range`, with neighbours that continue each other joined, handed to `each` in order.
    pub async fn walk(&self, range: Range, want: Want, mut each: impl FnMut(Status)) -> Result<()> {
        let mut current: Option<Status> = None;
        let mut at = range.start;
        while at < range.end() {
            let next = self.status(Range::new(at, range.end() - at), want).await?;
            at += next.len.max(1);
            match &mut current {
                Some(status) if status.continues(&next) => status.len += next.len,
                _ => {
                    if let Some(status) = current.replace(next) {
                        each(status);
                    }
                }
            }
        }
        if let Some(status) = current {
            each(status);
        }
        Ok(())
    }

    fn zeroes(range: Range) -> Status {
        Status {
            start: range.start,
            len: range.len,
            depth: 0,
            present: false,
            zero: true,
            data: false,
            compressed: false,
            offset: None,
            file: None,
        }
    }

    fn locate(&self, status: &mut Status, layer: &Arc<dyn Node>, host: Option<Host>) {
        if let Some(host) = host {
            status.offset = Some(host.at);
            status.file = layer.child(host.role).map(|node| node.name());
        }
    }
}

/// Whether the layer names a backing image that was not opened.
fn lacks_backing(layer: &Arc<dyn Node>) -> bool {
    let image = layer.as_any().and_then(|any| any.downcast_ref::<Image>());
    image.is_some_and(|image| image.missing_backing().is_some())
}

/// Asks the file below whether stored data is a hole there.
async fn refine(layer: &Arc<dyn Node>, host: Host, status: &mut Status) -> Result<()> {
    let Some(file) = layer.child(host.role) else { return Ok(()) };
    let available = file.info().length.saturating_sub(host.at);
    if available == 0 {
        // Data beyond the end of its file is missing, not zero; reading it fails.
        return Ok(());
    }
    let below = file.map(Range::new(host.at, status.len.min(available)), Want::Precise).await?;
    status.len = status.len.min(below.len);
    match below.state {
        // Zeroes that have a place in a file are stored there. Those of an image only have it set aside.
        State::Zero => (status.zero, status.data) = (true, below.host.is_some() && !file.is_disk()),
        // A file that says nothing of a range may hold anything there.
        State::Unallocated if !file.is_disk() => {
            (status.present, status.data) = (false, false);
            (status.offset, status.file) = (None, None);
        }
        _ => {}
    }
    Ok(())
}
