//! From the counters to what was measured: cumulative counters, subtracted.
//!
//! In: a [`Session`]. Out: a [`Measured`] for the time since the last one. Buckets are 32 bits wide
//! and wrap, which a subtraction undoes as long as fewer than 2^32 samples fall into one bucket
//! between two snapshots. Histograms are handed out from a pool: to the series that a kernel of this
//! plan is expected to have, before anything is attached, then to those that turn up.
//!
//! A snapshot looks at what changes often; at rows that may have changed hands, and at what takes long
//! to name, every `FULL_EVERY` snapshots. Nothing is lost by that, since counters are cumulative.
//!
//! Invariant: what is read is a difference; minimum and maximum are those since measuring began.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;

use anyhow::{Context as _, Result};
use kcore_trace_ebpf::layout::{
    AuditRow, BlameRow, CopyCounters, Durations, InsideCounters, NodeCounters, OpCounters, READERS,
    ReaderRow, audit, blame, miss, node, reader, series,
};
use kcore_trace_ebpf::words::{
    self, Context as Word, Destination, Intent, Kind, Lock, Mode, Op, Source, cell,
};

use crate::cgroups::Cgroups;
use crate::counters::{CellSum, Counters};
use crate::distribution::{Distribution, Exact};
use crate::histograms::Expected;
use crate::kernel::symbols::Names;
use crate::loader::{ProgramCost, Session};
use crate::model::{
    Audit, AuditKey, Blame, BlameKey, Cell, CellKey, Copies, Inside, Level, Loss, Measured, Nodes,
    OpCell, Process, Purpose, Reader, ReaderKey, Task, WorstWait,
};
use crate::plan::{Hooks, Plan, PlannedLock};
use crate::probes;

/// Every so many snapshots all is looked at: blame, readers, the longest waits and audits are as late as
/// that.
pub const FULL_EVERY: u32 = 4;

/// As many counters of nodes are read in some microseconds, so that every snapshot does.
const FEW_NODE_VALUES: usize = 4096;

/// What is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Looks {
    /// What has changed by its counters, where it is likely.
    AtChanges,
    /// The same, and all rows and tables.
    AtRows,
    /// Everything there is.
    Everywhere,
}

/// A waiter or a holder is some calls deep. Where unwinding got no further than the hook itself, or
/// astray behind it, as at a return probe or an entry before 5.15, there is no stack.
fn whole(stack: Vec<String>) -> Vec<String> {
    match stack.len() {
        0..=2 => Vec::new(),
        _ => stack,
    }
}

/// Reads the counters, and remembers what it read.
pub struct Snapshots {
    counters: Counters,
    cells: Vec<CellSum>,
    ops: Vec<OpCounters>,
    /// The counters of each node's locks; none on kernels without nodes.
    nodes: Vec<[NodeCounters; node::LOCKS.len()]>,
    /// The counters of waiters by holder, by [`blame::row`].
    blame: Vec<BlameRow>,
    inside: Vec<InsideCounters>,
    copies: Vec<CopyCounters>,
    /// The rows of readers, whoever they belonged to.
    readers: Vec<ReaderRow>,
    cgroups: Cgroups,
    /// When these programs began to count the whole truth, by their clock.
    begun_ns: u64,
    /// The counts of the audit's rows, by CPU and number.
    audit: HashMap<(usize, usize), u64>,
    /// The audit's keys of which an example was handed on.
    exemplified: HashSet<u64>,
    names: Names,
    misses: [u64; miss::COUNT as usize],
    recursion_misses: u64,
    /// What the kernel said of the programs at the last call.
    programs: Vec<ProgramCost>,
    taken: u32,
}

impl Snapshots {
    /// Hands out histograms to the series that are expected.
    pub fn prepare(session: &mut Session) -> Result<Self> {
        let mut counters = session.counters()?;
        session.hand_out(&mut counters, &expected_series(&session.plan))?;
        let nodes = counters.node_count();
        let readers = counters.reader_count();
        Ok(Self {
            counters,
            cells: vec![CellSum::default(); cell::COUNT],
            ops: vec![OpCounters::default(); Op::COUNT],
            nodes: vec![Default::default(); nodes],
            blame: vec![BlameRow::NONE; blame::ROWS],
            inside: vec![InsideCounters::default(); cell::COUNT],
            copies: vec![CopyCounters::default(); Destination::COUNT],
            readers: vec![ReaderRow::default(); readers],
            cgroups: Cgroups::new(),
            begun_ns: 0,
            audit: HashMap::new(),
            exemplified: HashSet::new(),
            names: Names::default(),
            misses: [0; miss::COUNT as usize],
            recursion_misses: 0,
            programs: Vec::new(),
            taken: 0,
        })
    }

    /// From here on it is measured.
    ///
    /// What was counted while hooks were being attached is half of the truth. Counters are
    /// subtracted; extremes, which nothing can be subtracted from, are set back, once.
    pub fn begin(&mut self, session: &mut Session) -> Result<()> {
        // The first reading maps what it reads, which counts as an op between one counter and the next.
        for _ in 0..2 {
            self.read(session, Looks::Everywhere, 0)?;
        }
        self.forget_extremes();
        self.begun_ns = monotonic_ns();
        // Nobody keeps what was read, and with it the examples.
        self.exemplified.clear();
        Ok(())
    }

    fn forget_extremes(&mut self) {
        self.counters.forget_extremes();
        let cells = self.cells.iter_mut();
        let of_cells = cells.flat_map(|cell| [&mut cell.wait, &mut cell.hold]);
        let of_ops = self.ops.iter_mut().map(|op| &mut op.latency);
        for durations in of_cells.chain(of_ops) {
            durations.inverted_min_ns = 0;
            durations.max_ns = 0;
        }
    }

    /// What the programs had cost when the counters were last read.
    pub fn programs(&self) -> &[ProgramCost] {
        &self.programs
    }

    /// Whether the counters may be read.
    pub fn try_reading(&mut self, session: &Session) -> Result<()> {
        session.look_for_cells(&mut self.counters)
    }

    /// What was counted since the last call. Moments are told from the start of measuring, which was
    /// at `origin_ns` by the clock of the programs.
    pub fn take(&mut self, session: &mut Session, origin_ns: u64) -> Result<Measured> {
        self.taken = self.taken.wrapping_add(1);
        let looks = match self.taken.is_multiple_of(FULL_EVERY) {
            true => Looks::AtRows,
            false => Looks::AtChanges,
        };
        self.read(session, looks, origin_ns)
    }

    /// The same, with everything looked at, of all CPUs that there may be: for the last.
    pub fn take_all(&mut self, session: &mut Session, origin_ns: u64) -> Result<Measured> {
        self.counters.look_at_all();
        self.read(session, Looks::Everywhere, origin_ns)
    }

    fn read(&mut self, session: &mut Session, looks: Looks, origin_ns: u64) -> Result<Measured> {
        let at_rows = looks != Looks::AtChanges;
        if at_rows {
            self.counters.look_at_running();
        }
        self.counters.close_idle();
        session.look_for_cells(&mut self.counters)?;
        if looks == Looks::Everywhere {
            session.look_at_held(&mut self.counters)?;
        }
        let cells = self.read_cells(looks)?;
        let ops = self.read_ops(session, looks)?;
        let nodes = self.read_nodes(at_rows || self.counters.node_values() <= FEW_NODE_VALUES);
        let blame = self.read_blame(&cells, at_rows)?;
        let inside = self.read_inside(at_rows)?;
        let copies = self.read_copies();
        let readers = self.read_readers(at_rows);
        let worst = self.read_worst(at_rows, origin_ns)?;
        let audit = self.read_audit(at_rows, &session.plan)?;
        let loss = self.read_loss(session, at_rows)?;
        let unserved = self.without_histogram();
        session.hand_out(&mut self.counters, &unserved)?;
        let mut measured = Measured {
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
        };
        measured.keep_worst();
        Ok(measured)
    }

    fn read_cells(&mut self, looks: Looks) -> Result<BTreeMap<CellKey, Cell>> {
        let mut cells = BTreeMap::new();
        for index in self.counters.cells().to_vec() {
            let before = self.cells[index];
            let seen = self.counters.cell(index);
            if seen == before {
                continue;
            }
            let waited = [before.contended, seen.contended];
            let released = [before.releases, seen.releases];
            let waits = self.gained(series::wait(index), waited, &seen.wait, looks)?;
            let holds = self.gained(series::hold(index), released, &seen.hold, looks)?;
            let after = settled(&before, &seen, self.counters.cell(index));
            self.cells[index] = after;
            cells.insert(key(index)?, cell(&before, &after, waits, holds));
        }
        Ok(cells)
    }

    fn read_ops(&mut self, session: &Session, looks: Looks) -> Result<BTreeMap<Op, OpCell>> {
        // A tracepoint counts ops without timing them.
        let timed = session.plan.hooks != Hooks::Tracepoint;
        let mut ops = BTreeMap::new();
        for &op in Op::ALL {
            let before = self.ops[op.index()];
            let seen = self.counters.op(op);
            if seen == before {
                continue;
            }
            let timed_ops = if timed {
                [before.count, seen.count]
            } else {
                [0; 2]
            };
            let buckets = self.gained(series::op(op.index()), timed_ops, &seen.latency, looks)?;
            let after = self.counters.op(op);
            self.ops[op.index()] = after;
            let count = after.count - before.count;
            let samples = if timed { count } else { 0 };
            let latency = distribution(samples, &before.latency, &after.latency, buckets);
            ops.insert(op, OpCell { count, latency });
        }
        Ok(ops)
    }

    /// The locks of nodes that were taken or waited for, with all nodes of each. A machine with hundreds of
    /// CPUs has a hundred of them.
    fn read_nodes(&mut self, now: bool) -> BTreeMap<Lock, Nodes> {
        let mut nodes = BTreeMap::new();
        if !now {
            return nodes;
        }
        let sums = self.counters.nodes();
        for (before, after) in self.nodes.iter_mut().zip(sums) {
            let before = std::mem::replace(before, after);
            for ((lock, before), after) in node::LOCKS.into_iter().zip(before).zip(after) {
                let Nodes {
                    acquisitions,
                    contended,
                    wait_sum_ns,
                } = nodes.entry(lock).or_default();
                acquisitions.push(after.acquisitions - before.acquisitions);
                contended.push(after.contended - before.contended);
                wait_sum_ns.push(after.wait_sum_ns.wrapping_sub(before.wait_sum_ns));
            }
        }
        let any = |column: &[u64]| column.iter().any(|&number| number != 0);
        nodes
            .retain(|_, of_lock: &mut Nodes| any(&of_lock.acquisitions) || any(&of_lock.contended));
        nodes
    }

    /// The waiters that met a holder, and whom; of cells that nobody waited in nothing is read.
    fn read_blame(
        &mut self,
        changed: &BTreeMap<CellKey, Cell>,
        at_rows: bool,
    ) -> Result<BTreeMap<BlameKey, Blame>> {
        let waited = |index: usize| self.cells[index].contended > 0;
        let active = self.counters.cells().iter();
        let waiters: BTreeSet<(Lock, Purpose)> = active
            .filter(|&&index| waited(index))
            .filter_map(|&index| {
                let key = key(index).ok()?;
                let read = at_rows || changed.get(&key).is_some_and(|cell| cell.contended > 0);
                let CellKey {
                    lock, intent, op, ..
                } = key;
                read.then_some((lock, Purpose { intent, op }))
            })
            .collect();
        let mut blame = BTreeMap::new();
        for (lock, waiter) in waiters {
            let place = blame::PLACES[lock.index()].into();
            let row = blame::row(place, number(waiter)) as usize;
            let after = self.counters.blame(row)?;
            for (holder, gained) in blamed(&mut self.blame[row], &after) {
                let key = BlameKey {
                    lock,
                    waiter,
                    holder: purpose(holder),
                };
                blame.insert(key, gained);
            }
        }
        Ok(blame)
    }

    /// Of the cells that have counted something, or of all: a cell does when its first hold ends.
    fn read_inside(&mut self, of_all: bool) -> Result<BTreeMap<CellKey, Inside>> {
        let mut inside = BTreeMap::new();
        let cells = match of_all {
            true => (0..cell::COUNT).collect(),
            false => self.counters.cells().to_vec(),
        };
        for index in cells {
            let before = self.inside[index];
            let after = self.counters.inside(index).unwrap_or(before);
            if after != before {
                self.inside[index] = after;
                let change = inside_of(&after).since(&inside_of(&before));
                inside.insert(key(index)?, change.unwrap_or_default());
            }
        }
        Ok(inside)
    }

    fn read_copies(&mut self) -> BTreeMap<Destination, Copies> {
        let mut copies = BTreeMap::new();
        for (index, after) in self.counters.copies() {
            let before = std::mem::replace(&mut self.copies[index], after);
            let destination = Destination::from_index(index).filter(|_| after != before);
            if let Some(destination) = destination {
                let change = copies_of(&after).since(&copies_of(&before));
                copies.insert(destination, change.unwrap_or_default());
            }
        }
        copies
    }

    /// The readers whose rows were touched, or all of them.
    fn read_readers(&mut self, every_row: bool) -> BTreeMap<ReaderKey, Reader> {
        self.cgroups.refresh();
        let mut readers: BTreeMap<ReaderKey, Reader> = BTreeMap::new();
        for (index, before) in self.readers.iter_mut().enumerate() {
            if !every_row && self.counters.reader_touched_ns(index) == Some(before.touched_ns) {
                continue;
            }
            // A row that goes to another owner just now is read the next time.
            let Some(after) = self.counters.reader(index) else {
                continue;
            };
            let before = std::mem::replace(before, after);
            self.counters.reader_seen(index, after.touched_ns);
            let earlier = match before.generation == after.generation {
                true => reader_of(&before),
                false => Reader::default(),
            };
            let change = reader_of(&after).since(&earlier).unwrap_or_default();
            if change != Reader::default()
                && let Some(key) = reader_key(index, &after, &mut self.cgroups)
            {
                readers.entry(key).or_default().add(&change);
            }
        }
        readers
    }

    /// The longest waits that were not read before. They stay where they are, and to name a stack takes
    /// as long as all else: it is not done for every interval.
    fn read_worst(&mut self, at_rows: bool, origin_ns: u64) -> Result<Vec<WorstWait>> {
        if !at_rows {
            return Ok(Vec::new());
        }
        let mut waits = self.counters.worst();
        waits.retain(|(wait, _)| wait.ended_ns > self.begun_ns);
        self.names
            .learn(waits.iter().flat_map(|(_, stacks)| stacks.concat()))?;
        let waits = waits.into_iter().map(|(wait, stacks)| {
            let holder = wait.holder_task;
            Ok(WorstWait {
                wait_ns: wait.wait_ns,
                slept_ns: wait.slept_ns,
                // One that ended before is counted too, if these programs saw all of it.
                ended_ns: wait.ended_ns.saturating_sub(origin_ns),
                key: key(wait.cell as usize)?,
                waiter: task(wait.task, Some(text(&wait.comm))),
                holder: purpose(wait.holder as usize),
                holder_task: (holder != 0).then(|| task(holder, comm_of(holder))),
                stack: whole(self.names.frames(&stacks[0])),
                holder_stack: whole(self.names.frames(&stacks[1])),
            })
        });
        waits.collect()
    }

    /// What the audit counted. To name addresses takes as long as all else, so that it is not done
    /// for every interval.
    fn read_audit(&mut self, at_rows: bool, plan: &Plan) -> Result<BTreeMap<AuditKey, Audit>> {
        let mut audit: BTreeMap<AuditKey, Audit> = BTreeMap::new();
        if plan.contexts.is_empty() || !at_rows {
            return Ok(audit);
        }
        let rows: Vec<_> = self.counters.audit().collect();
        let stack = |cpu, row: &AuditRow| self.counters.audit_stack(cpu, row.stack);
        let addresses = rows.iter().flat_map(|((cpu, _), row)| {
            let site = audit::parts(row.key).filter(|parts| parts.lock.is_some());
            let site = site.map(|parts| parts.address);
            site.into_iter()
                .chain(stack(*cpu, row).into_iter().flatten())
        });
        let addresses: Vec<_> = addresses.collect();
        self.names.learn(addresses)?;
        for ((cpu, index), row) in rows {
            let before = self.audit.insert((cpu, index), row.count);
            let count = row.count - before.unwrap_or(0);
            if count > 0
                && let Some(key) = self.audit_key(row.key)
            {
                let counted = audit.entry(key).or_default();
                counted.count += count;
                if !self.exemplified.contains(&row.key)
                    && let Some(stack) = self.counters.audit_stack(cpu, row.stack)
                {
                    counted.stack = self.names.frames(&stack);
                    self.exemplified.insert(row.key);
                }
            }
        }
        Ok(audit)
    }

    fn audit_key(&self, key: u64) -> Option<AuditKey> {
        let parts = audit::parts(key)?;
        let site = match parts.lock {
            Some(_) => self.names.of(parts.address).map(str::to_owned),
            None => {
                let number = parts.address as u32 as usize;
                probes::AUDIT
                    .get(number)
                    .map(|(symbol, _)| (*symbol).to_owned())
            }
        };
        let is_set = |context: &Word| parts.contexts >> context.index() & 1 != 0;
        Some(AuditKey {
            lock: parts.lock,
            mode: parts.mode,
            tries: parts.tries,
            op: parts.op,
            site,
            contexts: Word::ALL.iter().copied().filter(is_set).collect(),
        })
    }

    /// The buckets with samples since the last call, and how many; none of a series that did not change, or
    /// that has no histogram. In come the samples that it had then, and has now.
    fn gained(
        &mut self,
        series: usize,
        samples: [u64; 2],
        durations: &Durations,
        looks: Looks,
    ) -> Result<Vec<(u32, u64)>> {
        let [before, now] = samples;
        if now == before {
            return Ok(Vec::new());
        }
        let expected = Expected {
            samples: now,
            shortest_ns: !durations.inverted_min_ns,
            longest_ns: durations.max_ns,
            everything: looks == Looks::Everywhere,
        };
        self.counters.gained(series, &expected)
    }

    fn read_loss(&mut self, session: &Session, at_rows: bool) -> Result<Loss> {
        let after = self.counters.misses();
        let before = std::mem::replace(&mut self.misses, after);
        let lost = |reason: u32| after[reason as usize] - before[reason as usize];
        if at_rows {
            self.programs = session.program_costs();
        }
        let programs = self.programs.iter();
        let misses: u64 = programs.map(|program| program.recursion_misses).sum();
        let (in_flight_waits, in_flight_holds) = session.in_flight(&self.counters)?;
        Ok(Loss {
            recursion_misses: misses
                .saturating_sub(std::mem::replace(&mut self.recursion_misses, misses)),
            map_full: lost(miss::NO_HISTOGRAM) + lost(miss::NO_SLOT),
            unnamed_reads: lost(miss::NO_READER),
            unlisted_waits: lost(miss::WORST_BUSY),
            unaudited: lost(miss::NO_AUDIT_ROW),
            unmatched_releases: lost(miss::UNMATCHED_RELEASE),
            unmatched_acquisitions: lost(miss::UNMATCHED_ACQUISITION),
            unknown_sites: lost(miss::UNKNOWN_SITE),
            unfinished_ops: lost(miss::UNFINISHED_OP),
            in_flight_waits,
            in_flight_holds,
        })
    }

    /// Series that have samples and no histogram.
    fn without_histogram(&self) -> Vec<usize> {
        let cells = self.cells.iter().enumerate().flat_map(|(index, counters)| {
            let wait = (counters.contended > 0).then_some(series::wait(index));
            let hold = (counters.releases > 0).then_some(series::hold(index));
            wait.into_iter().chain(hold)
        });
        cells
            .filter(|&series| !self.counters.has_histogram(series))
            .collect()
    }
}

/// What the kernel counts as the sums that are kept, field by field.
macro_rules! sums {
    ($($name:ident: $from:ty => $to:ident { $($field:ident),+ $(,)? })+) => {$(
        fn $name(counted: &$from) -> $to {
            $to { $($field: counted.$field),+ }
        }
    )+};
}

sums! {
    inside_of: InsideCounters => Inside {
        faults, fault_ns, switches, preemptions, off_cpu_ns, sleeps, sleep_ns, joined,
    }
    copies_of: CopyCounters => Copies {
        reads, bytes, passes, pass_bytes, short_passes, fault_ins, faults, fault_ns,
    }
    reader_of: ReaderRow => Reader {
        reads, bytes, read_ns, waits, wait_ns, holds, hold_ns, inflicted_waits, inflicted_ns,
    }
}

/// Whom a row belongs to; one without an owner is that of all who have none of their own.
fn reader_key(index: usize, row: &ReaderRow, cgroups: &mut Cgroups) -> Option<ReaderKey> {
    let Some((pid, file)) = reader::words(row.owner) else {
        let file = Source::from_index(index.checked_sub(READERS as usize)?)?;
        return Some(ReaderKey {
            file,
            process: None,
        });
    };
    let process = Process {
        pid,
        comm: text(&row.comm),
        cgroup: cgroups.name(row.cgroup),
    };
    Some(ReaderKey {
        file,
        process: Some(process),
    })
}

/// A name of a task, as the programs have it.
fn text(comm: &[u64; 2]) -> String {
    let bytes: Vec<u8> = comm.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let name = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
    name_of(name)
}

/// A name of a task, which may be any bytes.
fn name_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Process and thread, in the upper and the lower half.
fn task(number: u64, comm: Option<String>) -> Task {
    Task {
        pid: (number >> 32) as u32,
        tid: number as u32,
        comm,
    }
}

/// The name of a thread that may be gone.
fn comm_of(number: u64) -> Option<String> {
    let (pid, tid) = (number >> 32, number as u32);
    let line = fs::read(format!("/proc/{pid}/task/{tid}/comm")).ok()?;
    Some(name_of(line.strip_suffix(b"\n").unwrap_or(&line)))
}

/// Now, by the clock of the programs, which is that of `bpf_ktime_get_ns`.
pub(crate) fn monotonic_ns() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the call writes to a local variable.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// The number of a purpose, as the programs have it.
fn number(purpose: Purpose) -> u64 {
    let Purpose { intent, op } = purpose;
    blame::purpose(cell::index(Lock::VmapArea, Mode::Exclusive, intent, op) as u64)
}

/// The purpose with that number; nothing for [`blame::UNKNOWN`].
fn purpose(number: usize) -> Option<Purpose> {
    let known = number < blame::PURPOSES;
    let (_, _, intent, op) = known.then(|| cell::words(number)).flatten()?;
    Some(Purpose { intent, op })
}

fn key(index: usize) -> Result<CellKey> {
    let (lock, mode, intent, op) = words::cell::words(index).context("a cell out of range")?;
    Ok(CellKey {
        lock,
        mode,
        intent,
        op,
    })
}

/// The waits that a row has gained, by the number of their holder. The time of one that was being counted
/// when the row was read comes with the next.
fn blamed(before: &mut BlameRow, after: &BlameRow) -> Vec<(usize, Blame)> {
    let mut gained = Vec::new();
    for holder in 0..blame::HOLDERS {
        let [waits, waits_before] = [after.waits[holder], before.waits[holder]];
        if waits == waits_before {
            continue;
        }
        let sums = [after.wait_sum_ns[holder], before.wait_sum_ns[holder]];
        let of_holder = Blame {
            waits: waits.wrapping_sub(waits_before).into(),
            wait_sum_ns: sums[0].wrapping_sub(sums[1]),
        };
        gained.push((holder, of_holder));
        before.waits[holder] = waits;
        before.wait_sum_ns[holder] = sums[0];
    }
    gained
}

/// What counts as read: the programs go on counting. Buckets are read between two reads of the
/// counters, so that in the long run no histogram has more samples than were counted; durations
/// that had not changed when the buckets were skipped are left to the next time.
fn settled(before: &CellSum, seen: &CellSum, after: CellSum) -> CellSum {
    let mut settled = after;
    if seen.contended == before.contended {
        settled.contended = before.contended;
        settled.wait = before.wait;
    }
    if seen.releases == before.releases {
        settled.releases = before.releases;
        settled.hold = before.hold;
    }
    settled
}

fn cell(before: &CellSum, after: &CellSum, waits: Vec<(u32, u64)>, holds: Vec<(u32, u64)>) -> Cell {
    let contended = after.contended - before.contended;
    let releases = after.releases - before.releases;
    Cell {
        acquisitions: after.acquisitions - before.acquisitions,
        contended,
        aborted: after.aborted - before.aborted,
        aborted_wait_ns: after.aborted_wait_ns - before.aborted_wait_ns,
        try_failed: after.try_failed - before.try_failed,
        releases,
        wait: distribution(contended, &before.wait, &after.wait, waits),
        hold: distribution(releases, &before.hold, &after.hold, holds),
    }
}

fn distribution(
    count: u64,
    before: &Durations,
    after: &Durations,
    buckets: Vec<(u32, u64)>,
) -> Distribution {
    let exact = Exact {
        count,
        sum_ns: after.sum_ns.wrapping_sub(before.sum_ns),
        min_ns: !after.inverted_min_ns,
        max_ns: after.max_ns,
    };
    Distribution::from_buckets(exact, buckets)
}

/// The series that a kernel of this plan is expected to have: from which ops a lock is taken, with
/// which intent, by the tables of `mm/vmalloc.c` and `fs/proc/kcore.c`, 5.10 to 7.3.
fn expected_series(plan: &Plan) -> Vec<usize> {
    let full = plan.level == Level::Full && plan.hooks != Hooks::Tracepoint;
    let mut expected = Vec::new();
    for planned in &plan.locks {
        for key in expected_keys(planned) {
            let index = cell::index(key.lock, key.mode, key.intent, key.op);
            expected.push(series::wait(index));
            if planned.holds {
                expected.push(series::hold(index));
            }
        }
    }
    if full {
        expected.extend(Op::ALL.iter().map(|op| series::op(op.index())));
    }
    expected
}

/// The cells of a planned lock that a kernel is expected to have.
pub(crate) fn expected_keys(planned: &PlannedLock) -> impl Iterator<Item = CellKey> {
    let (lock, kind) = (planned.lock, planned.kind);
    expected_cells(lock)
        .iter()
        .map(move |&(intent, op)| CellKey {
            lock,
            mode: match (kind, intent) {
                (Kind::Rwsem, Intent::Read) => Mode::Shared,
                _ => Mode::Exclusive,
            },
            intent,
            op,
        })
}

const fn expected_cells(lock: Lock) -> &'static [(Intent, Op)] {
    use Intent::{Read as R, Write as W};
    use Op::{Alloc, Find, Free, MapRam, Pcpu, Purge, UnmapAliases, UnmapRam, Vmallocinfo, Vread};
    // A new block is an area, and an empty one is freed wherever that is found out.
    match lock {
        Lock::VmapArea => &[
            (W, MapRam),
            (W, UnmapAliases),
            (W, Purge),
            (W, Alloc),
            (R, Free),
            (W, Free),
            (R, Find),
            (R, Vread),
            (R, Vmallocinfo),
            (W, Pcpu),
            (W, UnmapRam),
        ],
        Lock::FreeVmapArea => &[
            (W, Alloc),
            (W, Purge),
            (W, Free),
            (W, Pcpu),
            (W, UnmapAliases),
            (W, MapRam),
        ],
        Lock::PurgeVmapArea => &[
            (W, Free),
            (W, Purge),
            (R, Vmallocinfo),
            (W, UnmapAliases),
            (W, UnmapRam),
        ],
        // Freeing memory that was executable flushes lazy mappings at once, as purging does.
        Lock::VmapPurge => &[
            (W, Purge),
            (W, Alloc),
            (W, Free),
            (W, UnmapAliases),
            (R, Vmallocinfo),
        ],
        Lock::VmapBlock => &[
            (W, MapRam),
            (W, UnmapRam),
            (W, Purge),
            (W, Free),
            (W, UnmapAliases),
            (R, Vread),
        ],
        Lock::NodeBusy => &[
            (W, Alloc),
            (W, Free),
            (R, Find),
            (R, Vread),
            (R, Vmallocinfo),
            (W, Pcpu),
            (W, MapRam),
            (R, UnmapRam),
            (W, UnmapRam),
            (W, UnmapAliases),
            (W, Purge),
        ],
        Lock::NodeLazy => &[
            (W, Free),
            (W, Purge),
            (R, Vmallocinfo),
            (W, UnmapRam),
            (W, UnmapAliases),
        ],
        Lock::NodePool => &[(W, Alloc), (W, Purge), (W, Free), (W, UnmapAliases)],
        Lock::Kclist => &[(R, Vread)],
    }
}

#[cfg(test)]
mod tests {
    use kcore_trace_ebpf::layout::HISTOGRAMS;

    use super::*;
    use crate::kernel::Facts;
    use crate::plan::Request;

    /// Series that no table expects, of which a kernel has some.
    const UNEXPECTED: usize = 10;

    #[test]
    fn a_thread_has_a_name_whatever_its_bytes() {
        // SAFETY: the name ends with a zero, and the other call takes nothing.
        let tid = unsafe {
            libc::prctl(libc::PR_SET_NAME, c"\xffodd\n ".as_ptr());
            libc::gettid()
        };
        let number = u64::from(std::process::id()) << 32 | tid as u64;
        assert_eq!(comm_of(number).as_deref(), Some("\u{fffd}odd\n "));
        assert_eq!(comm_of(u64::from(u32::MAX)), None);
    }

    #[test]
    fn the_time_of_a_wait_that_was_being_counted_comes_with_the_next() {
        let (mut before, mut after) = (BlameRow::NONE, BlameRow::NONE);
        let mut read = |waits: u32, wait_sum_ns: u64| {
            after.waits[3] = waits;
            after.wait_sum_ns[3] = wait_sum_ns;
            let gained = blamed(&mut before, &after).into_iter();
            let of_holder = gained.map(|(holder, blame)| (holder, blame.waits, blame.wait_sum_ns));
            of_holder.collect::<Vec<_>>()
        };
        assert_eq!(read(2, 700), [(3, 2, 700)]);
        // Counted, but its time was read before it was added.
        assert_eq!(read(3, 700), [(3, 1, 0)]);
        assert_eq!(read(3, 1000), []);
        assert_eq!(read(4, 1100), [(3, 1, 400)]);
        // Waits wrap.
        assert_eq!(read(1, 1200), [(3, u64::from(u32::MAX - 2), 100)]);
    }

    #[test]
    fn every_expected_series_of_a_kernel_has_a_histogram_and_some_are_left() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/plans");
        let files = fs::read_dir(folder)
            .unwrap()
            .map(|file| file.unwrap().path());
        let mut plans = 0;
        for file in files.filter(|file| file.to_string_lossy().ends_with(".facts.json")) {
            let facts: Facts = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
            let request = Request::default();
            let Ok(plan) = Plan::choose(&facts, &request) else {
                continue;
            };
            let expected = expected_series(&plan).len();
            let name = file.display();
            assert!(
                expected + UNEXPECTED <= HISTOGRAMS as usize,
                "{name}: {expected}"
            );
            plans += 1;
        }
        assert!(plans >= 5, "{plans} plans");
    }
}
