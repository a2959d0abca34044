//! Shapes of the maps, and the constants that userspace sets before the programs are loaded.
//!
//! Owns the value types of all maps, the fields of the constants, and the reasons of a miss.
//! Invariant: every value is a `repr(C)` struct of integers without padding, zero meaning
//! "nothing yet", so that a fresh map needs no initialisation.

use core::mem::offset_of;

use crate::bucket;
use crate::words::{Lock, Op, cell};

/// Largest number of call-site ranges; a power of two, since they are searched by halving.
pub const SITES: usize = 128;
/// Cached call sites; a power of two.
pub const SITE_CACHE: usize = 1024;
/// Task slots that one task may have; a power of two.
pub const SLOT_WAYS: u32 = 4;
/// Task slots unless userspace asks for more; a power of two.
pub const SLOTS: u32 = 1024;
/// Locks that one task can hold or wait for at once and be followed.
/// The deepest nesting known is three (`vmap_purge_lock`, `vmap_block.lock`, a queue's lock).
pub const HELD: usize = 6;
/// Frames of a stack that are looked at: two of ours, the slow path, the lock function, and the
/// way from the lock to the outermost vmalloc function.
pub const FRAMES: usize = 16;

/// Histograms there are per CPU, for waits and holds of those cells that occur and for ops.
pub const HISTOGRAMS: u32 = 97;

/// The first octave of the histogram of each series among those of all histograms, or [`no_histogram`]. The
/// last two are always zero, which the verifier cannot know.
pub type HistogramOf = [u32; series::ALWAYS_ZERO + 2];

/// Octaves of all histograms.
pub const ALL_OCTAVES: u32 = HISTOGRAMS * bucket::OCTAVES as u32;

/// Stands for the first octave where there is no histogram: none of the octaves from there on exists on any
/// of so many CPUs.
pub const fn no_histogram(cpus: u32) -> u32 {
    u32::MAX / cpus - bucket::OCTAVES as u32
}

/// One histogram: the samples in each bucket, wrapping.
pub type Histogram = [u32; bucket::COUNT];

/// An octave of one histogram on one CPU. All CPUs' stand together, so that userspace reads what has
/// changed on all of them at once, and nothing else.
pub type Octave = [u32; bucket::SUB as usize];

/// Numbers of the things that can have a histogram.
pub mod series {
    use super::{Op, cell};

    /// Room for all cells and for all ops: powers of two, so that a mask keeps a number inside.
    pub const CELLS: usize = cell::COUNT.next_power_of_two();
    pub const OPS: usize = Op::COUNT.next_power_of_two();
    /// Numbers that a series may have; not all stand for one.
    pub const COUNT: usize = 2 * CELLS + OPS;
    /// Where there is none any more, at a multiple of eight bytes.
    pub const ALWAYS_ZERO: usize = COUNT;

    /// The waits of a cell.
    #[inline(always)]
    pub const fn wait(cell: usize) -> usize {
        cell
    }

    /// The holds of a cell.
    #[inline(always)]
    pub const fn hold(cell: usize) -> usize {
        CELLS + cell
    }

    /// The latency of an op.
    #[inline(always)]
    pub const fn op(op: usize) -> usize {
        2 * CELLS + op
    }
}

/// Sum, minimum and maximum of durations, beside a count kept elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Durations {
    pub sum_ns: u64,
    /// `!minimum`, so that zero means that there is none.
    pub inverted_min_ns: u64,
    pub max_ns: u64,
}

/// The counters of one cell on one CPU; cumulative. A cache line: those of all CPUs stand together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CellCounters {
    pub acquisitions: u64,
    pub contended: u64,
    pub releases: u64,
    pub wait_sum_ns: u64,
    pub wait_max_ns: u64,
    pub hold: Durations,
}

const _: () = assert!(size_of::<CellCounters>() == 64);

/// What is seldom written of a cell, on one CPU; cumulative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RareCounters {
    /// As in [`Durations`].
    pub inverted_wait_min_ns: u64,
    pub aborted: u64,
    pub aborted_wait_ns: u64,
    pub try_failed: u64,
}

const _: () = assert!(size_of::<RareCounters>() == 32);

/// Which cells have counted something on any CPU: not zero. With room for as many as a mask lets through.
pub type ActiveCells = [u32; series::CELLS];

// What stands for no cell is none when masked either.
const _: () = assert!(cell::UNKNOWN as usize & (series::CELLS - 1) >= cell::COUNT);

/// The counters of one op on one CPU; cumulative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct OpCounters {
    pub count: u64,
    pub latency: Durations,
}

const _: () = assert!(size_of::<OpCounters>() == 32);

/// The counters of one lock of one node on one CPU; cumulative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct NodeCounters {
    pub acquisitions: u64,
    pub contended: u64,
    pub wait_sum_ns: u64,
}

const _: () = assert!(size_of::<NodeCounters>() == 24);

/// Waits of one kind of acquisition, by the kind of holder, on one CPU; cumulative. Cache lines of its
/// own: those of all CPUs stand together.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct BlameRow {
    pub wait_sum_ns: [u64; blame::COLUMNS],
    /// Wrapping.
    pub waits: [u32; blame::COLUMNS],
    pub unused: [u32; 8],
}

impl BlameRow {
    /// One in which nobody waited.
    pub const NONE: Self = Self {
        wait_sum_ns: [0; _],
        waits: [0; _],
        unused: [0; _],
    };
}

const _: () = assert!(size_of::<BlameRow>() == 320);
const _: () = assert!(offset_of!(BlameRow, waits).is_multiple_of(32));

/// Who holds a lock, or had it last: a place of its own cache line, so that the holders of two locks do
/// not disturb each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Place {
    /// The number of the latest turn, twice, and one more while it goes on; zero if there was none.
    pub latest: u32,
    /// The [`blame::name`] of the lock whose turn it is, where others may have this place too.
    pub name: u32,
    /// The cell of the latest turn.
    pub cell: u32,
    /// The row of its reader, plus one; zero if it is none.
    pub reader: u32,
    /// The task of the latest turn: process and thread, in the upper and the lower half, or the address of
    /// its `task_struct`, of which the highest bit is set.
    pub task: u64,
    /// When it began, where the hold is kept here and not by its task; else zero.
    pub since_ns: u64,
    /// How many share it, by our own count: of two readers that leave together each would see the
    /// other in the lock's.
    pub sharing: u32,
    /// Where the last task that asked who is next waits; zero if nobody does.
    pub asking: u32,
    /// The turn that somebody waits for. Kept where stacks are.
    pub waited_for: u32,
    /// The CPU that it began on, where the hold is kept here: it is counted there.
    pub cpu: u32,
    /// Where the counters of the cell are on that CPU.
    pub counters: u32,
    pub unused: u32,
}

impl Place {
    /// One of a lock that was never taken.
    pub const NEVER: Self = Self {
        latest: 0,
        name: 0,
        cell: 0,
        reader: 0,
        task: 0,
        since_ns: 0,
        sharing: 0,
        asking: 0,
        waited_for: 0,
        cpu: 0,
        counters: 0,
        unused: 0,
    };

    /// The cell of a hold that is kept here and goes on: those of who shares the lock are not.
    pub const fn holds(&self) -> Option<u32> {
        match self.latest & 1 != 0 && self.since_ns != 0 && self.sharing == 0 {
            true => Some(self.cell),
            false => None,
        }
    }
}

/// Of every lock.
pub type Holders = [Place; holder::PLACES];

/// Where it is kept who holds a lock: one that has a fixed address has a place of its own, by its role, and
/// the locks of nodes by the number of the node; those of blocks are found by a hash.
pub mod holder {
    use super::blame::SPINLOCK_BITS;
    use super::node;
    use crate::words::Lock;

    const HASH_BITS: u32 = 9;
    /// Those of [`fixed`] locks, of which nodes may have 128 times three, and as many for all others.
    pub const PLACES: usize = 2 << HASH_BITS;
    /// The first place of a node's lock.
    const NODES: u64 = Lock::COUNT as u64;

    const _: () = assert!(NODES as usize + 128 * node::LOCKS.len() <= 1 << HASH_BITS);

    /// The place of a lock that has a fixed address and belongs to no node.
    #[inline(always)]
    pub const fn fixed(lock: u64) -> u64 {
        lock
    }

    /// The place of a node's lock, by the number of its role.
    #[inline(always)]
    pub const fn of_node(node: u64, lock: u64) -> u64 {
        NODES + node::counters(node, lock.wrapping_sub(node::LOCKS[0] as u64))
    }

    /// The place of another lock.
    #[inline(always)]
    pub const fn hashed(address: u64) -> u64 {
        // 2^64 over the golden ratio; the upper bits of the product are those that all others move.
        let product = (address >> SPINLOCK_BITS).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (1 << HASH_BITS) + (product >> (64 - HASH_BITS))
    }
}

/// Who waits for whom: for each lock a row for each intent and op of a waiter, in it a counter for
/// each intent and op of a holder, and one for a holder that is not known.
pub mod blame {
    use crate::words::{Intent, Lock, Op, cell};

    /// Ways to take a lock, whatever its mode.
    pub const PURPOSES: usize = Intent::COUNT * Op::COUNT;
    /// The holder of which nothing is known.
    pub const UNKNOWN: u32 = PURPOSES as u32;
    pub const HOLDERS: usize = PURPOSES + 1;
    /// Counters of a row, of which the last are unused: userspace reads 32 bytes at a time.
    pub const COLUMNS: usize = HOLDERS.next_multiple_of(8);
    /// Locks of one kernel, the most there are.
    const LOCKS: usize = 7;
    /// How many rows each CPU has: 48 KiB.
    pub const ROWS: usize = LOCKS * PURPOSES;

    /// The place of each lock; locks that no kernel has together share one.
    pub const PLACES: [u8; Lock::COUNT] = {
        let mut places = [0; Lock::COUNT];
        places[Lock::VmapArea.index()] = 0;
        places[Lock::NodeBusy.index()] = 0;
        places[Lock::PurgeVmapArea.index()] = 1;
        places[Lock::NodeLazy.index()] = 1;
        places[Lock::FreeVmapArea.index()] = 2;
        places[Lock::VmapPurge.index()] = 3;
        places[Lock::VmapBlock.index()] = 4;
        places[Lock::NodePool.index()] = 5;
        places[Lock::Kclist.index()] = 6;
        places
    };

    /// log2 of the size of a spinlock, the smallest lock: two of them can stand side by side.
    pub const SPINLOCK_BITS: u32 = 2;

    /// What tells a lock from others: locks have it in common if they are a multiple of 16 GiB apart,
    /// which none of one kernel's image are.
    #[inline(always)]
    pub const fn name(address: u64) -> u32 {
        (address >> SPINLOCK_BITS) as u32
    }

    /// A turn of a lock, never zero.
    #[inline(always)]
    pub const fn turn(address: u64, number: u16) -> u64 {
        (name(address) as u64) << 32 | 1 << 16 | number as u64
    }

    /// The purpose of a cell.
    #[inline(always)]
    pub const fn purpose(cell: u64) -> u64 {
        cell % PURPOSES as u64
    }

    /// The lock of a cell, by its number.
    #[inline(always)]
    pub const fn lock(cell: u64) -> u64 {
        cell / cell::PER_LOCK as u64
    }

    /// The row of a waiter with that purpose at the lock with that place.
    #[inline(always)]
    pub const fn row(place: u64, waiter: u64) -> u64 {
        place * PURPOSES as u64 + waiter
    }
}

/// What happened inside the holds of a cell, and in its waits, on all CPUs; cumulative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct InsideCounters {
    /// Page faults served while the lock was held.
    pub faults: u64,
    pub fault_ns: u64,
    /// Times that the holder left its CPU.
    pub switches: u64,
    /// Those in which it was preempted.
    pub preemptions: u64,
    pub off_cpu_ns: u64,
    /// Waits that ended with the lock in which the waiter left its CPU.
    pub sleeps: u64,
    pub sleep_ns: u64,
    /// Acquisitions of the index that shared it with other readers when they had it.
    pub joined: u64,
}

const _: () = assert!(size_of::<InsideCounters>() == 64);

/// Reads of /proc/kcore into one kind of destination, on all CPUs; cumulative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CopyCounters {
    pub reads: u64,
    /// Bytes that reads returned.
    pub bytes: u64,
    /// Calls of `vread_iter` or `vread`.
    pub passes: u64,
    /// Bytes that they copied.
    pub pass_bytes: u64,
    /// Passes of `vread_iter` that copied less than they were asked for.
    pub short_passes: u64,
    /// Calls of `fault_in_safe_writeable`.
    pub fault_ins: u64,
    /// Page faults served in reads, wherever.
    pub faults: u64,
    pub fault_ns: u64,
}

const _: () = assert!(size_of::<CopyCounters>() == 64);

/// Waits that each CPU keeps.
pub const WORST: usize = 20;

/// One of the longest waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct WorstWait {
    /// Zero when there is none.
    pub wait_ns: u64,
    /// By the clock of `bpf_ktime_get_ns`.
    pub ended_ns: u64,
    pub slept_ns: u64,
    /// Process and thread that waited, in the upper and the lower half.
    pub task: u64,
    pub comm: [u64; 2],
    /// The same of the holder; zero if it is not known.
    pub holder_task: u64,
    pub cell: u32,
    /// A [`blame::purpose`], or [`blame::UNKNOWN`].
    pub holder: u32,
}

const _: () = assert!(size_of::<WorstWait>() == 64);

/// The longest waits of a CPU.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct WorstTable {
    /// The shortest of them; zero while there is room.
    pub least_ns: u64,
    /// Not zero while one is being written.
    pub busy: u64,
    /// When a holder last left its stack on this CPU.
    pub left_ns: u64,
    pub waits: [WorstWait; WORST],
}

const _: () = assert!(size_of::<WorstTable>() == 24 + 64 * WORST);

/// Rows of the audit that each CPU has; a power of two.
pub const AUDIT_ROWS: usize = 128;
/// Rows that are looked at for one key.
pub const AUDIT_WAYS: usize = 8;
/// Example stacks of the audit that each CPU keeps.
pub const AUDIT_STACKS: usize = 48;
/// Frames of a stack that is kept, those of the program and its trampoline among them.
pub const STACK_FRAMES: usize = 24;

/// Return addresses, the innermost first; zeros behind the last.
pub type Stack = [u64; STACK_FRAMES];

/// The stacks of the longest waits of a CPU, at the same places: the waiter's and the holder's.
pub type WorstStacks = [[Stack; 2]; WORST];

/// Stacks of holders that are kept until their waiters have the lock; a power of two.
pub const HOLDER_STACKS: usize = 1024;

/// Where a holder released a lock that others waited for.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct HolderStack {
    /// [`blame::turn`]; zero while it is being written.
    pub turn: u64,
    /// When the hold ended.
    pub left_ns: u64,
    pub stack: Stack,
}

/// Acquisitions at one site in one context on one CPU; cumulative.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct AuditRow {
    /// [`audit::key`]; zero when the row is free.
    pub key: u64,
    pub count: u64,
    /// The example stack plus one; zero if none was kept, or not yet.
    pub stack: u64,
}

const _: () = assert!(size_of::<AuditRow>() == 24);

/// Where one CPU took vmap locks, and in which contexts.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct AuditTable {
    /// Address of this CPU's preempt count. Written by userspace.
    pub preempt_count_at: u64,
    /// Not zero while a row is being begun.
    pub busy: u64,
    /// Places for stacks that were given to rows.
    pub used_stacks: u64,
    pub rows: [AuditRow; AUDIT_ROWS],
    pub stacks: [Stack; AUDIT_STACKS],
}

const _: () = assert!(size_of::<AuditTable>() == 24 + 24 * AUDIT_ROWS + 192 * AUDIT_STACKS);

/// What the audit has to know beside, in a map of its own. Written by userspace, but for `seen`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct AuditState {
    /// Not zero once what follows is known.
    pub ready: u64,
    /// `task_struct` of the task whose acquisition of a spinlock is to be kept in `seen`.
    pub witness: u64,
    /// [`audit::words`] of that acquisition; zero while there was none.
    pub seen: u64,
    /// What the preempt count of a task that may sleep is in the hook on an acquired spinlock, and
    /// in any other.
    pub spinning: u64,
    pub sleeping: u64,
    /// What the depth of RCU read sections is there.
    pub rcu: u64,
}

/// Where a lock is taken, and in which context, in one word.
pub mod audit {
    use crate::words::{Context, Lock, Mode, Op};

    /// Stands for the lock of a row that counts calls of a function instead.
    pub const NO_LOCK: u64 = 15;
    /// Stands in the programs for the variable with the preempt count; userspace replaces it.
    pub const VARIABLE: u64 = 0x5072_6565_6d70_7443;
    /// Stands for the address of whichever function the op began with.
    pub const OP_FUNCTION: u64 = 0xffff;
    const _: () = assert!(Lock::COUNT <= NO_LOCK as usize && Op::COUNT <= 16);
    const _: () = assert!(Context::COUNT == 8);

    /// Bits of a preempt count (`include/linux/preempt.h`, 5.10 to 7.3).
    pub const PREEMPT: u64 = 0xff;
    pub const SERVING_SOFTIRQ: u64 = 0x100;
    pub const SOFTIRQS_OFF: u64 = 0xfe00;
    pub const HARDIRQ: u64 = 0xf_0000;
    pub const NMI: u64 = 0xf0_0000;
    pub const ALL: u64 = PREEMPT | SERVING_SOFTIRQ | SOFTIRQS_OFF | HARDIRQ | NMI;

    /// Says that words were seen at all.
    const SEEN: u64 = 1 << 63;

    /// Preempt count and depth of RCU read sections.
    #[inline(always)]
    pub const fn words(preempt_count: u32, rcu: u32) -> u64 {
        SEEN | (rcu as u64) << 32 | preempt_count as u64
    }

    /// Both of such words.
    pub const fn seen(words: u64) -> (u64, u64) {
        (words & 0xffff_ffff, words >> 32 & 0x7fff_ffff)
    }

    /// How the lock was taken, below the contexts of a key.
    #[inline(always)]
    pub const fn how(lock: u64, mode: Mode, tries: bool, op: u64) -> u64 {
        lock | (mode as u64) << 4 | (tries as u64) << 5 | op << 6
    }

    /// Where, how, and in which contexts: never zero. The low half of an address in kernel text
    /// tells it from all others.
    #[inline(always)]
    pub const fn key(address: u64, how: u64, contexts: u64) -> u64 {
        (contexts << 16 | how << 1 | 1) << 32 | (address & 0xffff_ffff)
    }

    /// What a key stands for.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Parts {
        pub address: u64,
        /// Nothing for a call of a function.
        pub lock: Option<Lock>,
        pub mode: Mode,
        pub tries: bool,
        pub op: Op,
        /// Bits by number of the [`Context`].
        pub contexts: u8,
    }

    /// The parts of a key; nothing for what is none.
    pub fn parts(key: u64) -> Option<Parts> {
        let how = key >> 33 & 0x7fff;
        if key >> 32 & 1 == 0 {
            return None;
        }
        let lock = how & 15;
        Some(Parts {
            address: 0xffff_ffff << 32 | (key & 0xffff_ffff),
            lock: match lock {
                NO_LOCK => None,
                lock => Some(Lock::from_index(lock as usize)?),
            },
            mode: Mode::from_index((how >> 4 & 1) as usize)?,
            tries: how >> 5 & 1 != 0,
            op: Op::from_index((how >> 6 & 15) as usize)?,
            contexts: (key >> 48) as u8,
        })
    }
}

/// Readers that can be told apart at a time, in sets of [`READER_WAYS`]; behind them a row for each
/// [`crate::words::Source`] counts those that found no room.
pub const READERS: u32 = 512;
/// Rows of one hash value.
pub const READER_WAYS: u32 = 4;

/// What one process reads of one file; cumulative, on all CPUs.
///
/// A row that userspace has read whole since it was last touched may go to another reader.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ReaderRow {
    /// [`reader::owner`]; zero when the row is free.
    pub owner: u64,
    /// How many owners it has had.
    pub generation: u64,
    /// `task_struct.comm` when the row was taken.
    pub comm: [u64; 2],
    /// Id of the cgroup (v2) then; zero where the kernel has none.
    pub cgroup: u64,
    pub touched_ns: u64,
    /// The `touched_ns` up to which userspace has read the row, which writes this.
    pub seen_ns: u64,
    pub reads: u64,
    pub bytes: u64,
    pub read_ns: u64,
    /// Waits of the reader for vmap locks that ended with the lock.
    pub waits: u64,
    pub wait_ns: u64,
    /// Holds of vmap locks; `kclist_lock`, which is held for a whole read, is none.
    pub holds: u64,
    pub hold_ns: u64,
    /// Waits of anyone for a lock that the reader held.
    pub inflicted_waits: u64,
    pub inflicted_ns: u64,
}

const _: () = assert!(size_of::<ReaderRow>() == 128);

/// Who reads what, in one word.
pub mod reader {
    use crate::words::Source;

    /// The word, which is never zero.
    #[inline(always)]
    pub const fn owner(process: u32, source: Source) -> u64 {
        (process as u64) << 8 | (source as u64 + 1)
    }

    /// Whether it is a reader of that file.
    #[inline(always)]
    pub const fn reads_file(owner: u64, source: Source) -> bool {
        owner as u8 == source as u8 + 1
    }

    /// Process and file.
    pub fn words(owner: u64) -> Option<(u32, Source)> {
        let source = Source::from_index((owner as u8 as usize).checked_sub(1)?)?;
        Some(((owner >> 8) as u32, source))
    }
}

/// The counters of one CPU beside those of cells; cumulative.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct CpuCounters {
    pub ops: [OpCounters; Op::COUNT],
    pub misses: [u64; miss::COUNT as usize],
    /// How many waits for spinlocks go on here, where nothing but slow paths is hooked; no counter.
    pub spinning: u64,
    pub unused: [u64; UNUSED],
}

/// What fills a cache line.
const UNUSED: usize = {
    let used = 4 * Op::COUNT + miss::COUNT as usize + 1;
    used.next_multiple_of(8) - used
};

const _: () = assert!(size_of::<CpuCounters>().is_multiple_of(64));
const _: () = assert!(offset_of!(CpuCounters, ops).is_multiple_of(32));

/// State of a followed lock: [`Held::state`].
pub mod state {
    pub const FREE: u32 = 0;
    /// Owned since `since_ns`.
    pub const HELD: u32 = 1;
    /// In the slow path; the wait began at `since_ns`.
    pub const WAITING: u32 = 2;
    /// In an acquire function that may fail, called at `since_ns`.
    pub const TRYING: u32 = 3;
    /// In an acquire function that may fail, and in its slow path.
    pub const TRYING_WAITING: u32 = 4;
}

/// A lock that a task holds or waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Held {
    pub address: u64,
    pub since_ns: u64,
    /// [`cell`] number; valid when the state is not waiting or the level is contended. Of a wait
    /// otherwise, [`cell::UNKNOWN`] where the lock may be none of ours.
    pub cell: u32,
    pub state: u32,
    /// Who held the lock when the wait began: a [`blame::purpose`], or [`blame::UNKNOWN`] while it
    /// was changing hands.
    pub holder: u16,
    /// The row of that holder among readers, plus one; zero if it was none.
    pub holding_reader: u16,
    /// The row of the task itself, plus one; zero if it reads nothing.
    pub reader: u16,
    /// Which turn of the lock is that of the holder waited for, or, of a lock that is held, its own:
    /// the lower half of its number.
    pub turn: u16,
    /// Nanoseconds of the wait that the task was off its CPU.
    pub slept_ns: u64,
    /// Process and thread of that holder, in the upper and the lower half; zero if it is not known.
    /// While the lock is changing hands, the turn that is over, in the lower half, and in the upper one
    /// a reference to who asked for the next holder before.
    pub holder_task: u64,
}

/// An op that a task is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct OpFrame {
    /// Stack address of the op's entry; zero when there is no op.
    pub frame: u64,
    pub since_ns: u64,
    pub op: u32,
    /// Which of the op's functions was entered.
    pub function: u32,
}

/// A read of a [`Source`] that a task is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ReadFrame {
    /// Stack address of its entry; zero when there is no read.
    pub frame: u64,
    pub since_ns: u64,
    /// [`reader::owner`].
    pub owner: u64,
    /// The `seq_file` that is filled; zero if none is.
    pub seq_file: u64,
    /// When the page fault began that the task is in; zero if it is in none.
    pub fault_since_ns: u64,
    /// How many bytes the pass was asked for, where only its entry tells.
    pub wanted: u64,
    /// The row among readers.
    pub row: u32,
    /// [`crate::words::Destination`].
    pub destination: u32,
}

/// What is known of one task while it is in an op or near a lock.
///
/// Written only by the task itself and by interrupts on top of it, which are over before the task
/// goes on, so that nothing here needs to be atomic. The holder that it waits for may be told by
/// another task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Slot {
    /// The `task_struct`; zero when the slot is free.
    pub owner: u64,
    pub touched_ns: u64,
    /// Frame of the outermost function that may take a `vmap_block.lock`.
    pub block_scope: u64,
    /// How many of the locks are not free.
    pub in_use: u64,
    /// Frame of a look-up inside another op; zero when there is none.
    pub look_up: u64,
    /// The task's op, and that of an interrupt on top of it.
    pub ops: [OpFrame; 2],
    pub read: ReadFrame,
    /// When the task left its CPU with locks held or waited for; zero if it did not.
    pub off_since_ns: u64,
    /// Whether it was preempted then.
    pub preempted: u32,
    /// Where the slot is among all, plus one.
    pub number: u32,
    pub held: [Held; HELD],
}

const _: () = assert!(size_of::<Slot>() == 40 + 2 * 24 + 56 + 16 + HELD * 48);

/// The text range of a function that takes a lock or is on the way to it, or by which one is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SiteRange {
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// The op that the function belongs to, where no op is known to be going on.
    pub op: u32,
    /// [`crate::words::Intent`] of an acquisition of an index lock in it.
    pub intent: u32,
    /// Whether it may take a `vmap_block.lock`.
    pub takes_block_lock: u32,
    /// Whether it is none of those functions but one by which they take a lock.
    pub is_lock_function: u32,
}

const _: () = assert!(size_of::<SiteRange>() == 32);

/// The text ranges of all sites, ascending, the rest at the end of the address space.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct SiteTable {
    /// Where a search begins: zero.
    pub first: u64,
    pub ranges: [SiteRange; SITES],
}

impl SiteTable {
    /// Not yet written.
    pub const BLANK: Self = Self {
        first: 0,
        ranges: [SiteRange {
            start: 0,
            end: 0,
            op: 0,
            intent: 0,
            takes_block_lock: 0,
            is_lock_function: 0,
        }; SITES],
    };
}

const _: () = assert!(size_of::<SiteTable>() == 8 + 32 * SITES);

/// Constants that are immediates of the code.
pub mod constant {
    /// Arrays of constants.
    pub const LOCKS: u8 = 0;
    pub const NODES: u8 = 1;
    pub const BLOCKS: u8 = 2;
    pub const TEXT: u8 = 3;
    pub const FLAGS: u8 = 4;
    pub const ARRAYS: usize = 5;

    /// Numbers that an instruction calculates with.
    ///
    /// Task slots less one.
    pub const SLOT_MASK: u32 = 0;
    /// Possible CPUs.
    pub const CPUS: u32 = 1;
    pub const NUMBERS: usize = 2;

    const MARK: u64 = 0x6b63_6f72_0000_0000;

    /// Stands for a constant in the code, until userspace replaces it.
    pub const fn mark(array: u8, index: usize) -> u64 {
        assert!(index < 1 << 8);
        MARK | (array as u64) << 8 | index as u64
    }

    /// Stands for the address of the slots of tasks.
    pub const TASKS: u64 = 0x6b63_7461_736b_7300;

    const SHORT_MARK: u32 = 0x6b63_7400;

    /// Stands for a number in an instruction that calculates with it.
    pub const fn short_mark(number: u32) -> u32 {
        SHORT_MARK | number
    }

    /// The number that the immediate of a calculation stands for, if it does.
    pub const fn short_marked(immediate: u32) -> Option<usize> {
        let number = (immediate ^ SHORT_MARK) as usize;
        match number < NUMBERS {
            true => Some(number),
            false => None,
        }
    }

    /// The array and the index that an immediate stands for, if it does.
    pub const fn marked(immediate: u64) -> Option<(usize, usize)> {
        let number = (immediate ^ MARK) as usize;
        match number >> 8 < ARRAYS {
            true => Some((number >> 8, number & 0xff)),
            false => None,
        }
    }
}

/// Constants set before loading: an index into the `LOCKS` constant, which holds an address
/// each, or zero for a lock that this kernel does not have as that kind.
pub mod address {
    pub const SPIN_VMAP_AREA: usize = 0;
    pub const SPIN_FREE_VMAP_AREA: usize = 1;
    pub const SPIN_PURGE_VMAP_AREA: usize = 2;
    pub const RWSEM_VMAP_AREA: usize = 3;
    pub const RWSEM_KCLIST: usize = 4;
    pub const MUTEX_VMAP_PURGE: usize = 5;
    pub const COUNT: usize = 6;
}

/// Constants set before loading: an index into the `NODES` constant.
pub mod node {
    /// Address of the first `struct vmap_node`; zero when it is not known or there is none.
    pub const BASE: usize = 0;
    /// Size of all nodes in bytes; zero in eras without nodes.
    pub const SPAN: usize = 1;
    /// `sizeof(struct vmap_node)`.
    pub const STRIDE: usize = 2;
    pub const BUSY_OFFSET: usize = 3;
    pub const LAZY_OFFSET: usize = 4;
    pub const POOL_OFFSET: usize = 5;
    /// Where the base is not known: the alignment of the array, a power of two.
    pub const ALIGN: usize = 6;
    /// [`reciprocal`] of the stride.
    pub const RECIPROCAL: usize = 7;
    /// How many counters of nodes each CPU has.
    pub const COUNTERS: usize = 8;
    pub const COUNT: usize = 9;

    use crate::words::Lock;

    /// The locks that each node has, in the order of their counters.
    pub const LOCKS: [Lock; 3] = [Lock::NodeBusy, Lock::NodeLazy, Lock::NodePool];

    const SHIFT: u32 = 40;

    /// What [`number`] multiplies with instead of dividing by the stride.
    pub const fn reciprocal(stride: u64) -> u64 {
        (1 << SHIFT) / stride + 1
    }

    /// The node that lies at a distance from the first: exact while the distance times the stride
    /// is below 2^40, and no node is as large as the 64 KiB that this takes with 128 of them.
    #[inline(always)]
    pub const fn number(distance: u64, reciprocal: u64) -> u64 {
        (distance * reciprocal) >> SHIFT
    }

    /// The index of the counters of a node's lock, one of [`LOCKS`].
    #[inline(always)]
    pub const fn counters(node: u64, lock: u64) -> u64 {
        node * LOCKS.len() as u64 + lock
    }
}

/// Constants set before loading: an index into the `BLOCKS` constant, about `vmap_block.lock`.
pub mod block {
    /// 1 when it is a spinlock, 2 when it is a mutex, zero when it is not followed.
    pub const KIND: usize = 0;
    pub const SPINLOCK: u64 = 1;
    pub const MUTEX: u64 = 2;
    /// Bytes from the lock to `vmap_block.va`, which `vmap_block.free` follows (5.10 to 7.3).
    pub const WORDS_DISTANCE: usize = 1;
    /// Where the kernel's half of the address space begins.
    pub const KERNEL: u64 = 1 << 63;
    /// Largest value of `vmap_block.free`: the pages of a block, of any configuration.
    pub const MAX_PAGES: u64 = 4096;
    pub const COUNT: usize = 2;
}

/// Constants set before loading: an index into the `READS` constant, about what reads are told by.
pub mod read {
    /// Offset of `iov_iter.iter_type` plus one; zero where it is not known.
    pub const TYPE_OFFSET: usize = 0;
    /// Offset of `seq_file.count` plus one; zero where it is not known.
    pub const COUNT_OFFSET: usize = 1;
    /// Whether programs can ask for the cgroup.
    pub const CGROUPS: usize = 2;
    /// Where the values of `enum iter_type` begin, each plus one, by
    /// [`crate::words::Destination`]; zero for one that this kernel does not have.
    pub const TYPES: usize = 3;
    pub const COUNT: usize = TYPES + crate::words::Destination::COUNT;
}

/// Constants set before loading: an index into the `TEXT` constant.
pub mod text {
    /// Core kernel text.
    pub const START: usize = 0;
    pub const END: usize = 1;
    /// Core kernel image, data included, where statically allocated locks live.
    pub const IMAGE_START: usize = 2;
    pub const IMAGE_END: usize = 3;
    /// Where the image has ended in any case and modules begin
    /// (`Documentation/arch/x86/x86_64/mm.rst`, 5.10 to 7.3).
    pub const IMAGE_ROOM_END: u64 = 0xffff_ffff_c000_0000;
    /// From the first to the last function that takes a `vmap_block.lock`.
    pub const BLOCK_TAKERS_START: usize = 4;
    pub const BLOCK_TAKERS_END: usize = 5;
    pub const COUNT: usize = 6;
}

/// Functions that take a lock: their addresses are an array of constants in this order, so that
/// the return into their own head can be told from the return to their caller.
pub mod acquire {
    /// Symbols, by index.
    pub const SYMBOLS: [&str; COUNT] = [
        "_raw_spin_lock",
        "_raw_spin_trylock",
        "down_read",
        "down_read_interruptible",
        "down_read_killable",
        "down_read_trylock",
        "down_write",
        "down_write_killable",
        "down_write_trylock",
        "mutex_lock",
        "mutex_lock_interruptible",
        "mutex_lock_killable",
        "mutex_trylock",
    ];
    pub const RAW_SPIN_LOCK: usize = 0;
    pub const RAW_SPIN_TRYLOCK: usize = 1;
    pub const DOWN_READ: usize = 2;
    pub const DOWN_READ_INTERRUPTIBLE: usize = 3;
    pub const DOWN_READ_KILLABLE: usize = 4;
    pub const DOWN_READ_TRYLOCK: usize = 5;
    pub const DOWN_WRITE: usize = 6;
    pub const DOWN_WRITE_KILLABLE: usize = 7;
    pub const DOWN_WRITE_TRYLOCK: usize = 8;
    pub const MUTEX_LOCK: usize = 9;
    pub const MUTEX_LOCK_INTERRUPTIBLE: usize = 10;
    pub const MUTEX_LOCK_KILLABLE: usize = 11;
    pub const MUTEX_TRYLOCK: usize = 12;
    pub const COUNT: usize = 13;
}

/// Constants set before loading: an index into the `FLAGS` constant.
pub mod flag {
    /// Every acquisition is seen, so that ops and holds are known; else the stack is asked.
    pub const EVERY_ACQUISITION: usize = 0;
    /// Acquire functions are hooked at their entry, before their slow path.
    pub const AT_ENTRY: usize = 1;
    /// Releases of spinlocks are seen, so that their holders are remembered.
    pub const SPIN_RELEASES: usize = 2;
    /// It is seen what happens inside holds, and who reads.
    pub const INSIDE: usize = 3;
    /// It is seen in which context each acquisition is made.
    pub const AUDIT: usize = 4;
    /// Offset of `task_struct.rcu_read_lock_nesting` plus one; zero where it is not known.
    pub const RCU_OFFSET: usize = 5;
    /// The locks that are spinlocks: bits by number.
    pub const SPINLOCKS: usize = 6;
    /// The stacks of the longest waits are kept.
    pub const STACKS: usize = 7;
    /// A program may read the current task's memory by its type.
    pub const TYPED_TASK: usize = 8;
    /// Offset of the preempt count in the variable that [`audit::VARIABLE`] stands for, plus one; zero
    /// where a program may not read it by its type.
    ///
    /// [`audit::VARIABLE`]: super::audit::VARIABLE
    pub const COUNT_OFFSET: usize = 9;
    /// A free may look up what it then removes, by a function that is not hooked.
    pub const FREES_READ: usize = 10;
    /// A program may ask for an argument whatever its type.
    pub const ARGUMENT_HELPER: usize = 11;
    /// Exclusive holds of locks that have a fixed address are kept at the [`Place`] of the lock, not by tasks.
    ///
    /// [`Place`]: super::Place
    pub const HOLDS_AT_PLACE: usize = 12;
    /// Offset of `task_struct.pid`, which `tgid` follows, plus one; zero where it is not known.
    pub const TASK_IDS: usize = 13;
    /// Somebody reads what programs log.
    pub const LOGS: usize = 14;
    pub const COUNT: usize = 15;
}

/// Bytes at the head of a function within which the call to its tracer returns.
pub const ENTRY_BYTES: u64 = 32;

/// Why something was not counted as it should: index into the `MISSES` map.
pub mod miss {
    /// The series has no histogram (yet); its sum and count are right.
    pub const NO_HISTOGRAM: u32 = 0;
    /// No task slot, or no room in it.
    pub const NO_SLOT: u32 = 1;
    /// A release of a lock that the task does not hold as far as we know.
    pub const UNMATCHED_RELEASE: u32 = 2;
    /// An acquisition of a lock that the task holds already as far as we know.
    pub const UNMATCHED_ACQUISITION: u32 = 3;
    /// The call site of an acquisition is not in the table.
    pub const UNKNOWN_SITE: u32 = 4;
    /// An op whose end was not seen: another began at the same place of the stack or above.
    pub const UNFINISHED_OP: u32 = 5;
    /// No row for a reader: it is counted with others.
    pub const NO_READER: u32 = 6;
    /// One of the longest waits ended while another was being written down.
    pub const WORST_BUSY: u32 = 7;
    /// The audit has no row for an acquisition.
    pub const NO_AUDIT_ROW: u32 = 8;
    pub const COUNT: u32 = 9;
}

/// Role of a lock in a node by its offset in `struct vmap_node`.
#[inline(always)]
pub fn node_lock(offset: u64, busy: u64, lazy: u64, pool: u64) -> Option<Lock> {
    if offset == busy {
        Some(Lock::NodeBusy)
    } else if offset == lazy {
        Some(Lock::NodeLazy)
    } else if offset == pool {
        Some(Lock::NodePool)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::node::{counters, number, reciprocal};
    use super::{
        ALL_OCTAVES, AuditTable, BlameRow, CellCounters, CpuCounters, HISTOGRAMS, Histogram,
        NodeCounters, Place, RareCounters, WorstStacks, WorstTable, audit, blame, bucket, holder,
        no_histogram, node, reader,
    };
    use crate::words::{self, Lock, Mode, Op, Source, cell};

    #[test]
    fn where_there_is_no_histogram_there_is_no_octave() {
        for cpus in [1, 2, 3, 64, 255, 256, 4096, 8192] {
            let octaves = u64::from(no_histogram(cpus))..;
            for octave in octaves.take(bucket::OCTAVES) {
                // As the programs calculate it, where a number of 32 bits must not begin again.
                let number = octave * u64::from(cpus) + u64::from(cpus) - 1;
                let all = u64::from(ALL_OCTAVES) * u64::from(cpus);
                assert!((all..=u32::MAX.into()).contains(&number), "{cpus} CPUs");
            }
        }
    }

    #[test]
    fn a_node_is_told_by_multiplying_as_by_dividing() {
        for stride in (64..4096).chain([6208, 6720, 8191, 16 << 10, 64 << 10]) {
            let reciprocal = reciprocal(stride);
            for node in 0..128 {
                for offset in [0, 1, stride / 2, stride - 1] {
                    assert_eq!(number(node * stride + offset, reciprocal), node, "{stride}");
                }
            }
        }
    }

    #[test]
    fn purposes_of_waiters_have_a_row_each() {
        let words = |cell| words::cell::words(cell).unwrap();
        let mut seen = BTreeSet::new();
        for cell in 0..words::cell::COUNT {
            let (lock, mode, intent, op) = words(cell);
            assert_eq!(blame::lock(cell as u64), lock.index() as u64);
            let purpose = blame::purpose(cell as u64);
            assert_eq!(purpose, (intent.index() * Op::COUNT + op.index()) as u64);
            if mode == Mode::Exclusive && lock != Lock::VmapArea && lock != Lock::PurgeVmapArea {
                let place = blame::PLACES[lock.index()].into();
                assert!(seen.insert(blame::row(place, purpose)));
            }
        }
        assert_eq!(seen.len(), blame::ROWS);
        assert_eq!(seen.last(), Some(&(blame::ROWS as u64 - 1)));
    }

    #[test]
    fn spinlocks_with_a_fixed_address_have_a_place_each() {
        let of_nodes =
            (0..128).flat_map(|node| node::LOCKS.map(|lock| holder::of_node(node, lock as u64)));
        let others = Lock::ALL.iter().filter(|lock| !node::LOCKS.contains(lock));
        let mut seen = BTreeSet::new();
        for place in of_nodes.chain(others.map(|&lock| holder::fixed(lock as u64))) {
            assert!(seen.insert(place), "{place}");
        }
        let least = (0..4096)
            .map(|n| holder::hashed(0xffff_8881_0040_0000 + 4 * n))
            .min();
        assert!(seen.last().copied() < least);
    }

    #[test]
    fn locks_of_many_blocks_are_spread() {
        // `struct vmap_block` is allocated; a cache line or more lies between two.
        let places = |size: u64| {
            let blocks = (0..256).map(move |n| holder::hashed(0xffff_8881_0040_0000 + n * size));
            blocks.collect::<BTreeSet<u64>>()
        };
        for size in [64, 192, 256, 6272] {
            let distinct = places(size);
            assert!(
                distinct.len() > 200,
                "{} of 256, {size} apart",
                distinct.len()
            );
            assert!(distinct.iter().all(|place| *place < holder::PLACES as u64));
        }
    }

    #[test]
    fn a_place_tells_whether_a_hold_is_kept_there() {
        let going_on = Place {
            latest: 3,
            cell: 7,
            since_ns: 1,
            ..Place::NEVER
        };
        assert_eq!(going_on.holds(), Some(7));
        let over = Place {
            latest: 4,
            ..going_on
        };
        assert_eq!(over.holds(), None);
        let kept_by_the_task = Place {
            since_ns: 0,
            ..going_on
        };
        assert_eq!(kept_by_the_task.holds(), None);
        assert_eq!(Place::NEVER.holds(), None);
    }

    #[test]
    fn spinlocks_side_by_side_are_told_apart() {
        // `free_vmap_area_lock` and `vmap_area_lock` of a 6.1 build.
        let [free, busy] = [0xffff_ffff_821b_58f8, 0xffff_ffff_821b_58fc].map(blame::name);
        assert_ne!(free, busy);
        assert!(free != 0 && busy != 0);
    }

    #[test]
    fn a_cpu_has_at_most_half_a_mebibyte_of_counters() {
        let nodes = 128 * node::LOCKS.len() * size_of::<NodeCounters>();
        let cells = cell::COUNT * (size_of::<CellCounters>() + size_of::<RareCounters>());
        let blame = blame::ROWS * size_of::<BlameRow>();
        let histograms = HISTOGRAMS as usize * size_of::<Histogram>();
        let worst = size_of::<WorstTable>() + size_of::<WorstStacks>();
        let audit = size_of::<AuditTable>();
        let all = size_of::<CpuCounters>() + cells + nodes + blame + histograms + worst + audit;
        assert!(all <= 512 << 10, "{all} bytes");
    }

    #[test]
    fn a_reader_is_one_of_its_file_alone_and_never_nobody() {
        for &file in Source::ALL {
            for process in [0, 1, u32::MAX] {
                let owner = reader::owner(process, file);
                assert_eq!(reader::words(owner), Some((process, file)));
                for &other in Source::ALL {
                    assert_eq!(reader::reads_file(owner, other), other == file);
                }
            }
        }
        assert_eq!(reader::words(0), None);
    }

    #[test]
    fn a_key_of_the_audit_leads_back_to_its_parts() {
        let address = 0xffff_ffff_8123_4567;
        for (number, &op) in Op::ALL.iter().enumerate() {
            for (lock, &mode) in (0..Lock::COUNT).zip(Mode::ALL.iter().cycle()) {
                let tries = number % 2 == 0;
                let contexts = (number * 37 + lock) as u8;
                let how = audit::how(lock as u64, mode, tries, op as u64);
                let parts = audit::parts(audit::key(address, how, contexts.into()));
                let wanted = audit::Parts {
                    address,
                    lock: Lock::from_index(lock),
                    mode,
                    tries,
                    op,
                    contexts,
                };
                assert_eq!(parts, Some(wanted));
            }
        }
        let call = audit::how(audit::NO_LOCK, Mode::Exclusive, false, Op::Free as u64);
        let parts = audit::parts(audit::key(0, call, 0)).unwrap();
        assert_eq!((parts.lock, parts.op), (None, Op::Free));
        assert_eq!(audit::parts(0), None);
    }

    #[test]
    fn counters_of_nodes_do_not_overlap() {
        let all = (0..128).flat_map(|node| (0..3).map(move |lock| counters(node, lock)));
        assert!(all.eq(0..384));
    }
}
