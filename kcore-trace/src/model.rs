//! What was measured, as plain data: everything to the right of the snapshot.
//!
//! Owns the types that the recorder fills and that recording and report read. A [`Measured`] is a
//! sum over some time, of one interval or of all; adding two of them is [`Measured::add`]. A sum stays
//! at the largest number there is: a file may hold any.
//!
//! Invariant: no kernel pointer is in here, only words, numbers and symbol names; and nothing here
//! needs root, a kernel or a file.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use kcore_trace_ebpf::layout::{STACK_FRAMES, blame};
use kcore_trace_ebpf::words::{Context, Destination, Intent, Kind, Lock, Mode, Op, Source, cell};
use serde::{Deserialize, Serialize};

use crate::distribution::Distribution;
use crate::host::Host;
use crate::units;
use crate::words::Key;

/// What an acquisition is counted under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CellKey {
    #[serde(with = "crate::words")]
    pub lock: Lock,
    #[serde(with = "crate::words")]
    pub mode: Mode,
    #[serde(with = "crate::words")]
    pub intent: Intent,
    #[serde(with = "crate::words")]
    pub op: Op,
}

impl Key for CellKey {
    const MOST: usize = cell::COUNT;
}

/// The acquisitions of one cell.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cell {
    /// Times the lock was taken; zero where only slow paths are hooked.
    pub acquisitions: u64,
    /// Acquisitions that entered the slow path and got the lock.
    pub contended: u64,
    /// Waits that ended without the lock: killed or interrupted.
    pub aborted: u64,
    /// Nanoseconds spent in waits that ended without the lock.
    pub aborted_wait_ns: u64,
    /// Trylocks that did not get the lock.
    pub try_failed: u64,
    /// Holds that ended.
    pub releases: u64,
    /// Waits of contended acquisitions, from the call to ownership.
    #[serde(skip_serializing_if = "Distribution::is_empty")]
    pub wait: Distribution,
    /// Holds that ended, from ownership to the call of the release function.
    #[serde(skip_serializing_if = "Distribution::is_empty")]
    pub hold: Distribution,
}

/// One vmalloc operation, counted when it ends.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct OpCell {
    /// Operations that ended (began, where only a tracepoint counts them).
    pub count: u64,
    /// Their duration; empty where only a tracepoint counts them.
    #[serde(skip_serializing_if = "Distribution::is_empty")]
    pub latency: Distribution,
}

/// What a lock is taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Purpose {
    #[serde(with = "crate::words")]
    pub intent: Intent,
    #[serde(with = "crate::words")]
    pub op: Op,
}

/// Who waits for whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BlameKey {
    #[serde(with = "crate::words")]
    pub lock: Lock,
    pub waiter: Purpose,
    /// Who held the lock when the wait began, the first where several share it; if it was just
    /// changing hands then, who got it next. Nothing if that is not known.
    pub holder: Option<Purpose>,
}

impl Key for BlameKey {
    const MOST: usize = Lock::COUNT * blame::PURPOSES * blame::HOLDERS;
}

/// The waits of one waiter for one holder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Blame {
    pub waits: u64,
    /// Nanoseconds waited in all, also for whoever came between.
    pub wait_sum_ns: u64,
}

/// What happened inside the holds of a cell, and in its waits. A fault or a time off the CPU inside
/// two holds is in both, and a fault may have time off the CPU in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Inside {
    /// Page faults that were served while the task held the lock.
    pub faults: u64,
    pub fault_ns: u64,
    /// Times that the holder left its CPU.
    pub switches: u64,
    /// Those in which it was preempted; in the others it went to sleep.
    pub preemptions: u64,
    pub off_cpu_ns: u64,
    /// Waits that ended with the lock in which the waiter went to sleep; in the others it spun.
    pub sleeps: u64,
    /// Nanoseconds of waits that waiters were off their CPU.
    pub sleep_ns: u64,
    /// Acquisitions of the index, where it is an rwsem, that shared it with other readers when they had
    /// it. Seen where holders are known.
    pub joined: u64,
}

/// [`Inside`], as far as it is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SeenInside {
    pub faults: u64,
    pub fault_ns: u64,
    pub switches: u64,
    pub preemptions: u64,
    pub off_cpu_ns: u64,
    /// Null where waits are not seen.
    pub sleeps: Option<u64>,
    pub sleep_ns: Option<u64>,
    pub joined: u64,
}

impl Inside {
    /// What is seen of it, with waits or without.
    pub(crate) fn seen(self, waits: bool) -> SeenInside {
        SeenInside {
            faults: self.faults,
            fault_ns: self.fault_ns,
            switches: self.switches,
            preemptions: self.preemptions,
            off_cpu_ns: self.off_cpu_ns,
            sleeps: waits.then_some(self.sleeps),
            sleep_ns: waits.then_some(self.sleep_ns),
            joined: self.joined,
        }
    }
}

/// How reads of /proc/kcore copied to one kind of destination.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Copies {
    /// Reads that ended.
    pub reads: u64,
    /// Bytes that they returned.
    pub bytes: u64,
    /// Passes over vmalloc memory: calls of the function that copies out of it.
    pub passes: u64,
    pub pass_bytes: u64,
    /// Passes of `vread_iter` that copied less than they were asked for, so that the rest was tried
    /// again.
    pub short_passes: u64,
    /// Buffers that were faulted in between two passes.
    pub fault_ins: u64,
    /// Page faults that were served in the reads, also while no vmap lock was held.
    pub faults: u64,
    pub fault_ns: u64,
}

/// Who reads what.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReaderKey {
    #[serde(with = "crate::words")]
    pub file: Source,
    /// Nothing for all that could not be told apart.
    pub process: Option<Process>,
}

impl Key for ReaderKey {
    /// And those that could not be told apart, of each file.
    const MOST: usize = READERS + Source::COUNT;
}

/// A process, as it was when it was first seen to read.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Process {
    pub pid: u32,
    pub comm: String,
    /// The path below the mount point of cgroup2; nothing if the cgroup is gone, or if there is no
    /// such mount.
    pub cgroup: Option<String>,
}

/// What a process read of a file, what it waited for and held meanwhile, and what others waited for
/// it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reader {
    /// Reads that ended.
    pub reads: u64,
    pub bytes: u64,
    pub read_ns: u64,
    /// Contended acquisitions in reads.
    pub waits: u64,
    pub wait_ns: u64,
    /// Holds of vmap locks in reads.
    pub holds: u64,
    pub hold_ns: u64,
    /// Waits of anyone for a lock that the reader held when they began, or got next.
    pub inflicted_waits: u64,
    pub inflicted_ns: u64,
}

/// One of the longest waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorstWait {
    pub wait_ns: u64,
    /// Nanoseconds of it that the waiter was off its CPU.
    pub slept_ns: u64,
    /// Nanoseconds from the start of measuring to its end.
    pub ended_ns: u64,
    pub key: CellKey,
    pub waiter: Task,
    /// Nothing if it is not known; else as in [`BlameKey`].
    pub holder: Option<Purpose>,
    pub holder_task: Option<Task>,
    /// Where the waiter was, the innermost function first; empty if stacks were not kept, or if there
    /// was none.
    #[serde(
        default,
        deserialize_with = "crate::words::at_most::<STACK_FRAMES, _, _>",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub stack: Vec<String>,
    /// Where the holder was when it released the lock; empty if that is not known.
    #[serde(
        default,
        deserialize_with = "crate::words::at_most::<STACK_FRAMES, _, _>",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub holder_stack: Vec<String>,
}

/// A thread.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    pub pid: u32,
    pub tid: u32,
    /// Nothing if it was gone before it was asked for.
    pub comm: Option<String>,
}

/// Where a lock is taken, and in which context; or where a function is called.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AuditKey {
    /// Nothing for a call of a function instead.
    #[serde(with = "crate::words::maybe")]
    pub lock: Option<Lock>,
    #[serde(with = "crate::words")]
    pub mode: Mode,
    /// Whether it is only tried.
    pub tries: bool,
    #[serde(with = "crate::words")]
    pub op: Op,
    /// Return address as `function+0xoffset`, or the function that was called; nothing if it has no
    /// name.
    pub site: Option<String>,
    /// What forbids to sleep there; nothing in a task that may.
    #[serde(with = "crate::words::list")]
    pub contexts: Vec<Context>,
}

impl Key for AuditKey {
    /// More than any kernel has sites that take locks of vmalloc, each in several contexts.
    const MOST: usize = 1 << 16;
}

/// What happened at one site in one context.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Audit {
    pub count: u64,
    /// An example, the innermost function first; empty if none was kept.
    #[serde(
        deserialize_with = "crate::words::at_most::<STACK_FRAMES, _, _>",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub stack: Vec<String>,
}

impl Audit {
    fn add(&mut self, later: &Self) {
        let Self { count, stack } = later;
        self.count = self.count.saturating_add(*count);
        if self.stack.is_empty() {
            self.stack.clone_from(stack);
        }
    }

    /// The example stays.
    fn since(&self, earlier: &Self) -> Option<Self> {
        Some(Self {
            count: self.count.checked_sub(earlier.count)?,
            stack: self.stack.clone(),
        })
    }
}

/// The sum of numbers that may be any.
pub(crate) fn saturating_sum(numbers: impl IntoIterator<Item = u64>) -> u64 {
    numbers.into_iter().fold(0, u64::saturating_add)
}

/// How many of the longest waits are kept.
pub const WORST: usize = kcore_trace_ebpf::layout::WORST;

/// More nodes than any kernel has: 128, so far.
const MOST_NODES: usize = 4096;

/// The nodes of one lock that every node has, each at its number: all columns are as long as there
/// are nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Nodes {
    /// Times the lock was taken; zeros where only slow paths are hooked.
    #[serde(deserialize_with = "crate::words::at_most::<MOST_NODES, _, _>")]
    pub acquisitions: Vec<u64>,
    /// Acquisitions that entered the slow path and got the lock.
    #[serde(deserialize_with = "crate::words::at_most::<MOST_NODES, _, _>")]
    pub contended: Vec<u64>,
    /// Nanoseconds waited for the lock, in all.
    #[serde(deserialize_with = "crate::words::at_most::<MOST_NODES, _, _>")]
    pub wait_sum_ns: Vec<u64>,
}

/// What was lost, as counts that are exported, never hidden.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Loss {
    /// Runs of our programs that the kernel skipped because the program (by kprobe: any program by
    /// kprobe) was already running on that CPU, or for want of a kretprobe instance. An upper bound:
    /// the hooks are passed by every lock of the kernel, not only by the ones measured.
    pub recursion_misses: u64,
    /// Samples whose count and sum were kept but that found no histogram or no task slot free.
    pub map_full: u64,
    /// Reads of processes that could not be told apart from others, for want of room.
    pub unnamed_reads: u64,
    /// Waits that may have been among the longest and ended while another was written down.
    pub unlisted_waits: u64,
    /// Acquisitions of which the audit does not know the context, for want of a row.
    pub unaudited: u64,
    /// Releases of a lock whose acquisition was not seen after measuring began.
    pub unmatched_releases: u64,
    /// Acquisitions whose release was not seen: the same task took the lock again.
    pub unmatched_acquisitions: u64,
    /// Acquisitions whose call site could not be told; counted with intent write.
    pub unknown_sites: u64,
    /// Ops whose end was not seen: they are not counted. A return probe is skipped when too many
    /// tasks are in its function, or when it fires inside another.
    pub unfinished_ops: u64,
    /// Waits that were going on when measuring ended.
    pub in_flight_waits: u64,
    /// Holds that were going on when measuring ended.
    pub in_flight_holds: u64,
}

/// Everything counted over some time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Measured {
    #[serde(with = "crate::words::pairs")]
    pub cells: BTreeMap<CellKey, Cell>,
    #[serde(with = "crate::words::op_map")]
    pub ops: BTreeMap<Op, OpCell>,
    /// The locks of nodes by node; empty on a kernel that has none.
    #[serde(
        with = "crate::words::node_map",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub nodes: BTreeMap<Lock, Nodes>,
    /// Waits by who waited for whom; empty where holders are not known.
    #[serde(
        with = "crate::words::pairs",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub blame: BTreeMap<BlameKey, Blame>,
    /// What happened inside holds and waits; only cells of which there is something.
    #[serde(
        with = "crate::words::pairs",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub inside: BTreeMap<CellKey, Inside>,
    #[serde(
        with = "crate::words::copies_map",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub copies: BTreeMap<Destination, Copies>,
    /// At most [`READERS`] by name.
    #[serde(
        with = "crate::words::pairs",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub readers: BTreeMap<ReaderKey, Reader>,
    /// The longest waits, at most [`WORST`], the longest first.
    #[serde(
        deserialize_with = "crate::words::at_most::<WORST, _, _>",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub worst: Vec<WorstWait>,
    /// Acquisitions by site and context; empty where nobody looked.
    #[serde(
        with = "crate::words::pairs",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub audit: BTreeMap<AuditKey, Audit>,
    pub loss: Loss,
}

/// Readers that a sum tells apart; later ones are put together.
pub const READERS: usize = 1000;

impl Measured {
    /// Adds what was measured later.
    ///
    /// Waits and holds in flight are a state, not a sum: the later one stands.
    pub fn add(&mut self, later: &Self) {
        let Self {
            cells,
            ops,
            nodes,
            blame,
            inside,
            copies,
            readers,
            worst,
            audit,
            loss,
        } = later;
        for (key, cell) in cells {
            self.cells.entry(*key).or_default().add(cell);
        }
        for (op, cell) in ops {
            self.ops.entry(*op).or_default().add(cell);
        }
        for (lock, nodes) in nodes {
            self.nodes.entry(*lock).or_default().add(nodes);
        }
        for (key, blame) in blame {
            self.blame.entry(*key).or_default().add(blame);
        }
        for (key, inside) in inside {
            self.inside.entry(*key).or_default().add(inside);
        }
        for (key, copies) in copies {
            self.copies.entry(*key).or_default().add(copies);
        }
        for (key, reader) in readers {
            self.add_reader(key, reader);
        }
        self.worst.extend_from_slice(worst);
        self.keep_worst();
        for (key, audit) in audit {
            self.audit.entry(key.clone()).or_default().add(audit);
        }
        self.loss.add(loss);
    }

    /// Orders the longest waits, and keeps no more than there may be.
    pub(crate) fn keep_worst(&mut self) {
        self.worst.sort_by_key(|wait| Reverse(wait.wait_ns));
        self.worst.truncate(WORST);
    }

    fn add_reader(&mut self, key: &ReaderKey, reader: &Reader) {
        let known = self.readers.len() < READERS || self.readers.contains_key(key);
        let key = if known {
            key.clone()
        } else {
            ReaderKey {
                file: key.file,
                process: None,
            }
        };
        self.readers.entry(key).or_default().add(reader);
    }

    /// The shortest hold of any lock, which bounds what the tool adds to a hold: that is in every
    /// hold, and no true hold is shorter than nothing. A wait passes the same hooks.
    pub fn shortest_hold_ns(&self) -> Option<u64> {
        let holds = self.cells.values().map(|cell| &cell.hold);
        holds.filter_map(Distribution::min_ns).min()
    }

    /// Narrows the extremes, which the kernel keeps since measuring began, to what was measured here:
    /// see [`Distribution::narrow_extremes`].
    pub(crate) fn narrow_extremes(&mut self) {
        let of_cells = self.cells.values_mut();
        let of_cells = of_cells.flat_map(|cell| [&mut cell.wait, &mut cell.hold]);
        let of_ops = self.ops.values_mut().map(|op| &mut op.latency);
        of_cells
            .chain(of_ops)
            .for_each(Distribution::narrow_extremes);
    }

    /// What was measured after `earlier`; nothing if that is no earlier state of this.
    pub fn since(&self, earlier: &Self) -> Option<Self> {
        let mut rest = self.clone();
        let Self {
            cells,
            ops,
            nodes,
            blame,
            inside,
            copies,
            readers,
            worst,
            audit,
            loss,
        } = earlier;
        for (key, before) in cells {
            let cell = rest.cells.get_mut(key)?;
            *cell = cell.since(before)?;
        }
        for (op, before) in ops {
            let cell = rest.ops.get_mut(op)?;
            *cell = cell.since(before)?;
        }
        for (lock, before) in nodes {
            let nodes = rest.nodes.get_mut(lock)?;
            *nodes = nodes.since(before)?;
        }
        for (key, before) in blame {
            let blame = rest.blame.get_mut(key)?;
            *blame = blame.since(before)?;
        }
        for (key, before) in inside {
            let inside = rest.inside.get_mut(key)?;
            *inside = inside.since(before)?;
        }
        for (key, before) in copies {
            let copies = rest.copies.get_mut(key)?;
            *copies = copies.since(before)?;
        }
        for (key, before) in readers {
            let reader = rest.readers.get_mut(key)?;
            *reader = reader.since(before)?;
        }
        rest.worst.retain(|wait| !worst.contains(wait));
        for (key, before) in audit {
            let audit = rest.audit.get_mut(key)?;
            *audit = audit.since(before)?;
        }
        rest.loss = rest.loss.since(loss)?;
        Some(rest)
    }
}

impl Cell {
    pub(crate) fn add(&mut self, later: &Self) {
        let Self {
            acquisitions,
            contended,
            aborted,
            aborted_wait_ns,
            try_failed,
            releases,
            wait,
            hold,
        } = later;
        for (sum, later) in [
            (&mut self.acquisitions, acquisitions),
            (&mut self.contended, contended),
            (&mut self.aborted, aborted),
            (&mut self.aborted_wait_ns, aborted_wait_ns),
            (&mut self.try_failed, try_failed),
            (&mut self.releases, releases),
        ] {
            *sum = sum.saturating_add(*later);
        }
        self.wait.add(wait);
        self.hold.add(hold);
    }

    fn since(&self, earlier: &Self) -> Option<Self> {
        let Self {
            acquisitions,
            contended,
            aborted,
            aborted_wait_ns,
            try_failed,
            releases,
            wait,
            hold,
        } = earlier;
        Some(Self {
            acquisitions: self.acquisitions.checked_sub(*acquisitions)?,
            contended: self.contended.checked_sub(*contended)?,
            aborted: self.aborted.checked_sub(*aborted)?,
            aborted_wait_ns: self.aborted_wait_ns.checked_sub(*aborted_wait_ns)?,
            try_failed: self.try_failed.checked_sub(*try_failed)?,
            releases: self.releases.checked_sub(*releases)?,
            wait: self.wait.since(wait)?,
            hold: self.hold.since(hold)?,
        })
    }
}

impl OpCell {
    fn add(&mut self, later: &Self) {
        let Self { count, latency } = later;
        self.count = self.count.saturating_add(*count);
        self.latency.add(latency);
    }

    fn since(&self, earlier: &Self) -> Option<Self> {
        let Self { count, latency } = earlier;
        Some(Self {
            count: self.count.checked_sub(*count)?,
            latency: self.latency.since(latency)?,
        })
    }
}

/// Structs that are sums: adding what was measured later, and taking away what was measured before.
macro_rules! sums {
    ($($name:ident { $($field:ident),+ $(,)? })+) => {$(
        impl $name {
            pub(crate) fn add(&mut self, later: &Self) {
                let Self { $($field),+ } = later;
                $(self.$field = self.$field.saturating_add(*$field);)+
            }

            pub(crate) fn since(&self, earlier: &Self) -> Option<Self> {
                let Self { $($field),+ } = earlier;
                Some(Self { $($field: self.$field.checked_sub(*$field)?),+ })
            }
        }
    )+};
}

sums! {
    Blame { waits, wait_sum_ns }
    Inside {
        faults, fault_ns, switches, preemptions, off_cpu_ns, sleeps, sleep_ns, joined,
    }
    Copies {
        reads, bytes, passes, pass_bytes, short_passes, fault_ins, faults, fault_ns,
    }
    Reader {
        reads, bytes, read_ns, waits, wait_ns, holds, hold_ns, inflicted_waits, inflicted_ns,
    }
}

impl Nodes {
    /// How many nodes there are.
    pub fn count(&self) -> usize {
        let Self {
            acquisitions,
            contended,
            wait_sum_ns,
        } = self;
        let columns = [acquisitions, contended, wait_sum_ns];
        columns.map(Vec::len).into_iter().max().unwrap_or(0)
    }

    fn add(&mut self, later: &Self) {
        let Self {
            acquisitions,
            contended,
            wait_sum_ns,
        } = later;
        for (sums, later) in [
            (&mut self.acquisitions, acquisitions),
            (&mut self.contended, contended),
            (&mut self.wait_sum_ns, wait_sum_ns),
        ] {
            sums.resize(sums.len().max(later.len()), 0);
            for (sum, later) in sums.iter_mut().zip(later) {
                *sum = sum.saturating_add(*later);
            }
        }
    }

    fn since(&self, earlier: &Self) -> Option<Self> {
        let Self {
            acquisitions,
            contended,
            wait_sum_ns,
        } = earlier;
        let less = |now: &[u64], before: &[u64]| -> Option<Vec<u64>> {
            let before = before.iter().copied().chain(std::iter::repeat(0));
            let pairs = now.iter().zip(before);
            pairs.map(|(now, before)| now.checked_sub(before)).collect()
        };
        Some(Self {
            acquisitions: less(&self.acquisitions, acquisitions)?,
            contended: less(&self.contended, contended)?,
            wait_sum_ns: less(&self.wait_sum_ns, wait_sum_ns)?,
        })
    }
}

impl Loss {
    fn add(&mut self, later: &Self) {
        let Self {
            recursion_misses,
            map_full,
            unnamed_reads,
            unlisted_waits,
            unaudited,
            unmatched_releases,
            unmatched_acquisitions,
            unknown_sites,
            unfinished_ops,
            in_flight_waits,
            in_flight_holds,
        } = *later;
        for (sum, later) in [
            (&mut self.recursion_misses, recursion_misses),
            (&mut self.map_full, map_full),
            (&mut self.unnamed_reads, unnamed_reads),
            (&mut self.unlisted_waits, unlisted_waits),
            (&mut self.unaudited, unaudited),
            (&mut self.unmatched_releases, unmatched_releases),
            (&mut self.unmatched_acquisitions, unmatched_acquisitions),
            (&mut self.unknown_sites, unknown_sites),
            (&mut self.unfinished_ops, unfinished_ops),
        ] {
            *sum = sum.saturating_add(later);
        }
        self.in_flight_waits = in_flight_waits;
        self.in_flight_holds = in_flight_holds;
    }

    fn since(&self, earlier: &Self) -> Option<Self> {
        let Self {
            recursion_misses,
            map_full,
            unnamed_reads,
            unlisted_waits,
            unaudited,
            unmatched_releases,
            unmatched_acquisitions,
            unknown_sites,
            unfinished_ops,
            in_flight_waits: _,
            in_flight_holds: _,
        } = *earlier;
        Some(Self {
            recursion_misses: self.recursion_misses.checked_sub(recursion_misses)?,
            map_full: self.map_full.checked_sub(map_full)?,
            unnamed_reads: self.unnamed_reads.checked_sub(unnamed_reads)?,
            unlisted_waits: self.unlisted_waits.checked_sub(unlisted_waits)?,
            unaudited: self.unaudited.checked_sub(unaudited)?,
            unmatched_releases: self.unmatched_releases.checked_sub(unmatched_releases)?,
            unmatched_acquisitions: self
                .unmatched_acquisitions
                .checked_sub(unmatched_acquisitions)?,
            unknown_sites: self.unknown_sites.checked_sub(unknown_sites)?,
            unfinished_ops: self.unfinished_ops.checked_sub(unfinished_ops)?,
            ..*self
        })
    }
}

/// One record of a recording.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Nanoseconds from the start of measuring to the start of the interval.
    pub start_ns: u64,
    /// Nanoseconds from the start of measuring to its end.
    pub end_ns: u64,
    /// What was counted in between.
    pub measured: Measured,
}

/// How much is measured.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Only slow paths are hooked: an uncontended acquisition passes no hook of ours.
    Contended,
    /// Every acquisition: waits, holds, and the latency of every op.
    #[default]
    Full,
}

/// Which waits are seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WaitCoverage {
    /// Every acquisition is seen; the wait of each that entered the slow path is measured, but of
    /// some locks where the header says so.
    All,
    /// Only acquisitions that entered the slow path are seen, all of them measured.
    SlowPath,
    /// Only what `lock:contention_begin` and `contention_end` show.
    Tracepoint,
}

/// Which holds are seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HoldCoverage {
    All,
    /// Of some locks; the header says of which not.
    Partial,
    None,
}

/// A hook that could not be had, or a lock or op that is not seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// The function, tracepoint, lock or op.
    pub hook: String,
    /// Why, as a phrase for a person.
    pub reason: String,
}

/// What the numbers of a recording cover.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coverage {
    pub waits: WaitCoverage,
    pub holds: HoldCoverage,
    pub missing: Vec<Missing>,
}

/// The kernel that was measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelName {
    /// `uname -r`.
    pub release: String,
    /// `uname -v`: the build.
    pub version: String,
    /// `spinlock`, `spinlock-iter`, `rwsem`, `rwsem-iter`, `per-node` or `unknown`.
    pub era: String,
}

/// What stands at the head of a recording.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// Version of kcore-trace that wrote it.
    pub tool_version: String,
    pub kernel: KernelName,
    pub host: Host,
    pub level: Level,
    /// How the programs are attached: `fentry`, `kprobe`, `tracepoint`.
    pub hooks: String,
    pub coverage: Coverage,
    /// The type of each lock that this kernel has.
    #[serde(with = "crate::words::kind_map")]
    pub kinds: BTreeMap<Lock, Kind>,
    /// Locks of which acquisitions are seen, and not whether they waited.
    #[serde(
        default,
        with = "crate::words::list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub without_waits: Vec<Lock>,
    /// Locks whose holds are not seen.
    #[serde(default, with = "crate::words::list")]
    pub without_holds: Vec<Lock>,
    /// Whether it is seen what happens inside holds, and who reads.
    #[serde(default)]
    pub inside: bool,
    /// The function that copies out of vmalloc memory, where its passes are seen: `vread` copies to
    /// a buffer of the kernel's, `vread_iter` to the destination.
    #[serde(default)]
    pub pass: Option<String>,
    /// The contexts that an audit tells from one where a task may sleep; empty where nobody looked.
    #[serde(default, with = "crate::words::list")]
    pub contexts: Vec<Context>,
    /// Whether the stacks of the longest waits were kept.
    #[serde(default)]
    pub stacks: bool,
    /// The command that was run, or empty when the whole system was watched for a while.
    pub command: Vec<String>,
    /// RFC 3339, UTC.
    pub started_at: String,
    /// Nanoseconds between two records.
    pub interval_ns: u64,
}

impl Header {
    /// Whether a lock that was taken without waiting is seen.
    pub fn sees_acquisitions(&self) -> bool {
        self.coverage.waits == WaitCoverage::All
    }

    /// Whether it is seen of what was taken if, and how long, it was waited for. Where only waits are
    /// seen, there is nothing of a lock of which there are none.
    pub fn sees_waits(&self, lock: Lock) -> bool {
        !self.sees_acquisitions() || !self.without_waits.contains(&lock)
    }

    /// The same of all locks.
    pub fn sees_waits_of_all(&self) -> bool {
        self.kinds.keys().all(|&lock| self.sees_waits(lock))
    }

    pub fn sees_holds(&self, lock: Lock) -> bool {
        match self.coverage.holds {
            HoldCoverage::All => true,
            HoldCoverage::Partial => !self.without_holds.contains(&lock),
            HoldCoverage::None => false,
        }
    }
}

/// A change of how much is measured, by the guard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Nanoseconds from the start of measuring.
    pub at_ns: u64,
    /// From then on; nothing is measured where there is none.
    pub level: Option<Level>,
    pub reason: StepReason,
}

/// Why the guard changed how much is measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepReason {
    /// Measuring took this share of the time of all CPUs, which is more than it may; right after a
    /// return it has to stay well below the limit.
    Overhead { share: f64, limit: f64 },
    /// It was cheap enough, or off, for this long.
    Retry { after_ns: u64 },
    /// The hooks could not be attached again.
    Failed(String),
}

/// How many changes of the level a sum has: a guard whose trials all fail makes two in an hour.
pub const STEPS: usize = 1 << 16;

/// What was measured while the guard had reduced the level: kept apart, since a sum of two levels
/// would be true of neither.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reduced {
    /// Nanoseconds in all, also those in which nothing was measured.
    pub duration_ns: u64,
    /// Those in which nothing was measured.
    pub off_ns: u64,
    /// All changes, in order of time; of more than [`STEPS`] the first, and the last one.
    #[serde(deserialize_with = "crate::words::at_most::<STEPS, _, _>")]
    pub steps: Vec<Step>,
    /// The sum of all intervals at a level below that of the header.
    pub total: Measured,
}

impl Reduced {
    /// Whether everything was measured at the level of the header.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Adds a change of the level, for the intervals after it.
    pub fn step(&mut self, step: Step) {
        self.steps.truncate(STEPS - 1);
        self.steps.push(step);
    }

    /// Adds an interval after the last step.
    pub fn add(&mut self, interval: &Interval) {
        let ns = interval.end_ns.saturating_sub(interval.start_ns);
        self.duration_ns = self.duration_ns.saturating_add(ns);
        if self.steps.last().is_some_and(|step| step.level.is_none()) {
            self.off_ns = self.off_ns.saturating_add(ns);
        }
        self.total.add(&interval.measured);
    }
}

/// Why a recording ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// The duration was over.
    Duration,
    /// The user ended it.
    Signal(String),
    /// The command ended, with this exit code (128 + signal when it was killed).
    Command { code: i32 },
    /// Measuring had to stop.
    Failed(String),
}

/// What stands at the end of a recording that was ended in order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trailer {
    pub end: End,
    /// Nanoseconds from the start of measuring to its end.
    pub duration_ns: u64,
    /// How long the command ran, where there was one.
    pub command_ns: Option<u64>,
    /// The sum of all intervals at the level of the header.
    pub total: Measured,
    #[serde(default, skip_serializing_if = "Reduced::is_empty")]
    pub reduced: Reduced,
}

impl Step {
    /// What happened, for a person.
    pub fn sentence(&self) -> String {
        let level = self.level.map_or_else(
            || "nothing is measured".into(),
            |level| format!("level {}", level.name()),
        );
        match &self.reason {
            StepReason::Overhead { share, limit } => {
                let than = if share > limit {
                    "more than"
                } else {
                    "too near to"
                };
                let [share, limit] = [share, limit].map(|part| units::fraction(*part));
                format!(
                    "measuring took {share} of the CPU time, {than} {limit}: {level} from here on"
                )
            }
            StepReason::Retry { after_ns } => {
                format!("{level} again, after {}", units::elapsed(*after_ns))
            }
            StepReason::Failed(reason) => {
                format!("{level} from here on: the hooks could not be attached again: {reason}")
            }
        }
    }
}

impl Level {
    /// The name as users write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Contended => "contended",
            Self::Full => "full",
        }
    }
}
