//! What a lock is for, whatever its name in an era.
//!
//! Owns the one table by which locks of different kernels are matched. Invariant: every lock has
//! exactly one role, and locks of one role guard the same thing, so that their numbers may be added
//! and set against each other.

use kcore_trace_ebpf::words::Lock;
use serde::Serialize;

use crate::model::Header;

/// What is guarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The index of busy areas: one lock up to 6.8, one for each node from 6.9 on.
    BusyAreas,
    /// The tree of free address ranges.
    FreeRanges,
    /// Ready areas of one size, which spare a walk of the free tree; from 6.9 on.
    ReadyAreas,
    /// Areas that were freed and not yet purged.
    LazyAreas,
    /// Purging, which is done by one task at a time.
    Purging,
    /// A block of vm_map_ram.
    Blocks,
    /// The segment list of /proc/kcore.
    KcoreSegments,
}

impl Role {
    pub(super) const fn of(lock: Lock) -> Self {
        match lock {
            Lock::VmapArea | Lock::NodeBusy => Self::BusyAreas,
            Lock::FreeVmapArea => Self::FreeRanges,
            Lock::NodePool => Self::ReadyAreas,
            Lock::PurgeVmapArea | Lock::NodeLazy => Self::LazyAreas,
            Lock::VmapPurge => Self::Purging,
            Lock::VmapBlock => Self::Blocks,
            Lock::Kclist => Self::KcoreSegments,
        }
    }

    /// The locks of all eras that have the role.
    pub(super) fn locks(self) -> impl Iterator<Item = Lock> {
        let locks = Lock::ALL.iter().copied();
        locks.filter(move |&lock| Self::of(lock) == self)
    }

    /// The lock that stands for the role wherever one name has to.
    pub(super) fn first_lock(self) -> Lock {
        let first = self.locks().next();
        first.expect("a role is that of some lock")
    }

    /// Whether a recording shows how its locks were waited for.
    pub(super) fn shows_waits(self, header: &Header) -> bool {
        self.locks().all(|lock| header.sees_waits(lock))
    }

    /// Whether a recording shows how long its locks were held.
    pub(super) fn shows_holds(self, header: &Header) -> bool {
        self.locks().all(|lock| header.sees_holds(lock))
    }

    /// What a reader of a comparison must know if only one side has [`Role::ReadyAreas`].
    pub(super) const POOLS: &'static str = "vmap_node.pool is on one side only: it serves \
                                            allocations that take free_vmap_area_lock on the other";
}
