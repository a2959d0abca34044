//! Every map. Arrays only, created whole before anything is attached.
//!
//! Counters are cumulative and each CPU writes its own; userspace subtracts snapshots and never
//! resets. They are plain arrays indexed by CPU: a look-up in one is a few instructions everywhere,
//! while one in a per-CPU array is a call before 6.10, and userspace can map them into its memory.

use core::cell::UnsafeCell;

use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;
use kcore_trace_ebpf::layout::{
    ActiveCells, AuditTable, BlameRow, CellCounters, CopyCounters, CpuCounters, HistogramOf,
    HolderStack, Holders, InsideCounters, NodeCounters, Octave, Place, RareCounters, ReaderRow,
    SITE_CACHE, SiteTable, WorstStacks, WorstTable, holder, series,
};

/// `BPF_F_MMAPABLE` of `include/uapi/linux/bpf.h`.
const MAPPABLE: u32 = 1 << 10;

/// The counters of cells: 25 KiB for each CPU, those of a cell together, so that userspace looks at
/// nothing else than the cells that occur, a tenth of all.
#[map]
pub(crate) static CELLS: Array<CellCounters> = Array::with_max_entries(1, MAPPABLE);

/// In the same order, what is seldom written of them: 12 KiB for each CPU.
#[map]
pub(crate) static RARE: Array<RareCounters> = Array::with_max_entries(1, MAPPABLE);

/// Which cells occur.
#[unsafe(link_section = ".bss.active")]
#[unsafe(no_mangle)]
pub(crate) static ACTIVE: Shared<ActiveCells> = Shared::new([0; series::CELLS]);

/// The other counters, one element per possible CPU.
#[map]
pub(crate) static COUNTERS: Array<CpuCounters> = Array::with_max_entries(1, MAPPABLE);

/// One per lock of a node, those of a CPU together: 72 bytes per CPU for each node. A kernel without
/// nodes has one that nothing writes.
#[map]
pub(crate) static NODE_COUNTERS: Array<NodeCounters> = Array::with_max_entries(1, MAPPABLE);

/// Who waits for whom: 48 KiB for each CPU, the rows of one kind of waiter together; one that nothing
/// writes where holders are not known.
#[map]
pub(crate) static BLAME: Array<BlameRow> = Array::with_max_entries(1, MAPPABLE);

/// A pool of histograms, 388 KiB for each CPU: the octaves of one number follow each other, each with a
/// value for every CPU. A tenth of the cells occurs on any one kernel, so userspace hands the numbers out.
#[map]
pub(crate) static HISTS: Array<Octave> = Array::with_max_entries(1, MAPPABLE);

/// What happens inside the holds of each cell: 22 KiB. All CPUs share it, since nothing of it is
/// frequent; one that nothing writes where it is not looked at.
#[map]
pub(crate) static INSIDE: Array<InsideCounters> = Array::with_max_entries(1, MAPPABLE);

/// Reads of /proc/kcore by destination.
#[map]
pub(crate) static COPIES: Array<CopyCounters> = Array::with_max_entries(1, MAPPABLE);

/// Who reads: 64 KiB, or one that nothing writes.
#[map]
pub(crate) static READERS: Array<ReaderRow> = Array::with_max_entries(1, MAPPABLE);

/// The longest waits of each CPU: 1.3 KiB each, or one that nothing writes.
#[map]
pub(crate) static WORST: Array<WorstTable> = Array::with_max_entries(1, MAPPABLE);

/// The stacks of those waits, at the same places: 7.5 KiB for each CPU, or one that nothing writes.
#[map]
pub(crate) static WORST_STACKS: Array<WorstStacks> = Array::with_max_entries(1, MAPPABLE);

/// Stacks of holders that others wait for, of all CPUs: 208 KiB, or one that nothing writes.
#[map]
pub(crate) static HOLDER_STACKS: Array<HolderStack> = Array::with_max_entries(1, 0);

/// In which contexts locks are taken: 12 KiB for each CPU, or one that nothing writes.
#[map]
pub(crate) static AUDIT: Array<AuditTable> = Array::with_max_entries(1, MAPPABLE);

/// Which histogram each series has. Written by userspace, as the map that the section becomes: its
/// address is known to the programs, so that no look-up is needed.
#[unsafe(link_section = ".bss.hist_of")]
#[unsafe(no_mangle)]
pub(crate) static HIST_OF: Shared<HistogramOf> = Shared::new([0; series::ALWAYS_ZERO + 2]);

/// Who holds a lock, and the holds that are kept there: 64 KiB.
#[unsafe(link_section = ".bss.holders")]
#[unsafe(no_mangle)]
pub(crate) static HOLDERS: Shared<Holders> = Shared::new([Place::NEVER; holder::PLACES]);

/// Text ranges of the vmalloc functions. Written by userspace before anything is attached.
#[unsafe(link_section = ".bss.sites")]
#[unsafe(no_mangle)]
pub(crate) static SITE_RANGES: Shared<SiteTable> = Shared::new(SiteTable::BLANK);

/// Return addresses that were looked up: the low half of the address, the site above it.
pub(crate) static SITE_MEMO: Shared<[u64; SITE_CACHE]> = Shared::new([0; SITE_CACHE]);

/// What all CPUs read and write.
#[repr(transparent)]
pub(crate) struct Shared<T>(UnsafeCell<T>);

// SAFETY: plain words; each is read and written whole.
unsafe impl<T> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    pub(crate) const fn get(&self) -> *mut T {
        self.0.get()
    }
}
