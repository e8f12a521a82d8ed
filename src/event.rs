//! [`Event`]: what a format or the engine is about to do, told to the node below so that faults can be put just there.

use crate::error::Result;
use crate::node::Node;

/// Tells `node` of an event if it cares.
///
/// # Errors
/// As the node says.
pub(crate) async fn announce(node: &dyn Node, event: Event) -> Result<()> {
    if cfg!(feature = "write") && node.listens() { node.event(event).await } else { Ok(()) }
}

/// A step of a request. The names are those of QEMU's `blkdebug` driver (qapi, `BlkdebugEvent`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Event {
    /// An entry of the L1 table is written.
    L1Update,
    /// A larger L1 table is set aside.
    L1GrowAllocTable,
    /// A larger L1 table is written.
    L1GrowWriteTable,
    /// The header is pointed to a larger L1 table.
    L1GrowActivateTable,
    /// An L2 table is read.
    L2Load,
    /// An L2 table is written.
    L2Update,
    /// An L2 entry of a compressed cluster is written.
    L2UpdateCompressed,
    /// A shared L2 table is read to be copied.
    L2AllocCowRead,
    /// A new L2 table is written.
    L2AllocWrite,
    /// Guest data is read.
    ReadAio,
    /// Guest data is read from the backing image.
    ReadBackingAio,
    /// A compressed cluster is read.
    ReadCompressed,
    /// Guest data is written.
    WriteAio,
    /// A compressed cluster is written.
    WriteCompressed,
    /// VM state is read.
    VmstateLoad,
    /// VM state is written.
    VmstateSave,
    /// Old contents are read to be copied.
    CowRead,
    /// Old contents are written.
    CowWrite,
    /// The refcount table is read.
    ReftableLoad,
    /// The refcount table is made larger.
    ReftableGrow,
    /// An entry of the refcount table is written.
    ReftableUpdate,
    /// A refcount block is read.
    RefblockLoad,
    /// A refcount block is written.
    RefblockUpdate,
    /// A part of a refcount block is written.
    RefblockUpdatePart,
    /// A refcount block is set aside.
    RefblockAlloc,
    /// A new refcount block is linked.
    RefblockAllocHookup,
    /// A new refcount block is written.
    RefblockAllocWrite,
    /// The refcount blocks of a larger refcount table are written.
    RefblockAllocWriteBlocks,
    /// A larger refcount table is written.
    RefblockAllocWriteTable,
    /// The header is pointed to a larger refcount table.
    RefblockAllocSwitchTable,
    /// Clusters are set aside.
    ClusterAlloc,
    /// Room for compressed data is set aside.
    ClusterAllocBytes,
    /// Clusters are given back.
    ClusterFree,
    /// Metadata is handed to the operating system.
    FlushToOs,
    /// The disk is asked to store everything.
    FlushToDisk,
    /// The first block of an unaligned write is read.
    PwritevRmwHead,
    /// The first block of an unaligned write has been read.
    PwritevRmwAfterHead,
    /// The last block of an unaligned write is read.
    PwritevRmwTail,
    /// The last block of an unaligned write has been read.
    PwritevRmwAfterTail,
    /// A whole number of blocks is written.
    Pwritev,
    /// A whole number of blocks is zeroed.
    PwritevZero,
    /// A write is over.
    PwritevDone,
    /// An image is about to be emptied.
    EmptyImagePrepare,
    /// The L1 table is written with its tail cut off.
    L1ShrinkWriteTable,
    /// The L2 tables of the part cut off are given back.
    L1ShrinkFreeL2Clusters,
    /// What was read from the backing image is stored.
    CorWrite,
    /// Nothing in particular: for rules about every request.
    None,
}

/// All events with their names.
const NAMES: &[(Event, &str)] = &[
    (Event::L1Update, "l1_update"),
    (Event::L1GrowAllocTable, "l1_grow_alloc_table"),
    (Event::L1GrowWriteTable, "l1_grow_write_table"),
    (Event::L1GrowActivateTable, "l1_grow_activate_table"),
    (Event::L2Load, "l2_load"),
    (Event::L2Update, "l2_update"),
    (Event::L2UpdateCompressed, "l2_update_compressed"),
    (Event::L2AllocCowRead, "l2_alloc_cow_read"),
    (Event::L2AllocWrite, "l2_alloc_write"),
    (Event::ReadAio, "read_aio"),
    (Event::ReadBackingAio, "read_backing_aio"),
    (Event::ReadCompressed, "read_compressed"),
    (Event::WriteAio, "write_aio"),
    (Event::WriteCompressed, "write_compressed"),
    (Event::VmstateLoad, "vmstate_load"),
    (Event::VmstateSave, "vmstate_save"),
    (Event::CowRead, "cow_read"),
    (Event::CowWrite, "cow_write"),
    (Event::ReftableLoad, "reftable_load"),
    (Event::ReftableGrow, "reftable_grow"),
    (Event::ReftableUpdate, "reftable_update"),
    (Event::RefblockLoad, "refblock_load"),
    (Event::RefblockUpdate, "refblock_update"),
    (Event::RefblockUpdatePart, "refblock_update_part"),
    (Event::RefblockAlloc, "refblock_alloc"),
    (Event::RefblockAllocHookup, "refblock_alloc_hookup"),
    (Event::RefblockAllocWrite, "refblock_alloc_write"),
    (Event::RefblockAllocWriteBlocks, "refblock_alloc_write_blocks"),
    (Event::RefblockAllocWriteTable, "refblock_alloc_write_table"),
    (Event::RefblockAllocSwitchTable, "refblock_alloc_switch_table"),
    (Event::ClusterAlloc, "cluster_alloc"),
    (Event::ClusterAllocBytes, "cluster_alloc_bytes"),
    (Event::ClusterFree, "cluster_free"),
    (Event::FlushToOs, "flush_to_os"),
    (Event::FlushToDisk, "flush_to_disk"),
    (Event::PwritevRmwHead, "pwritev_rmw_head"),
    (Event::PwritevRmwAfterHead, "pwritev_rmw_after_head"),
    (Event::PwritevRmwTail, "pwritev_rmw_tail"),
    (Event::PwritevRmwAfterTail, "pwritev_rmw_after_tail"),
    (Event::Pwritev, "pwritev"),
    (Event::PwritevZero, "pwritev_zero"),
    (Event::PwritevDone, "pwritev_done"),
    (Event::EmptyImagePrepare, "empty_image_prepare"),
    (Event::L1ShrinkWriteTable, "l1_shrink_write_table"),
    (Event::L1ShrinkFreeL2Clusters, "l1_shrink_free_l2_clusters"),
    (Event::CorWrite, "cor_write"),
    (Event::None, "none"),
];

impl Event {
    /// The name, such as `l2_update`.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(event, _)| *event == self).map_or("none", |(_, name)| name)
    }

    /// The event of that name.
    pub fn by_name(name: &str) -> Option<Self> {
        NAMES.iter().find(|(_, known)| *known == name).map(|(event, _)| *event)
    }
}

#[cfg(test)]
mod tests {
    use super::{Event, NAMES};

    #[test]
    fn names_lead_back_to_their_events() {
        for (event, name) in NAMES {
            assert_eq!(Event::by_name(name), Some(*event));
            assert_eq!(event.name(), *name);
        }
        assert_eq!(Event::by_name("bogus"), None);
    }
}
