//! From the maps to what was measured: cumulative counters, subtracted.
//!
//! In: a [`Session`]. Out: a [`Measured`] for the time since the last one. Counters are never
//! reset; buckets are 32 bits wide and wrap, which a subtraction undoes as long as fewer than 2^32
//! samples fall into one bucket between two snapshots. Histograms are handed out from a pool: to
//! the series that a kernel of this plan is expected to have, before anything is attached, then to
//! those that turn up.
//!
//! Invariant: what is read is a difference; minimum and maximum are those since measuring began.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use aya::Pod;
use aya::maps::PerCpuValues;
use kcore_trace_ebpf::layout::{
    CellCounters, Durations, HISTOGRAMS, Histogram, OpCounters, Slot, miss, series, state,
};
use kcore_trace_ebpf::words::{Intent, Kind, Lock, Mode, Op, cell};
use kcore_trace_ebpf::{bucket, words};

use crate::distribution::{Distribution, Exact};
use crate::loader::Session;
use crate::model::{Cell, CellKey, Level, Loss, Measured, OpCell};
use crate::plan::{Hooks, Plan};

macro_rules! map_value {
    ($name:ident($inner:ty)) => {
        /// A value of the contract, for reading a map.
        #[derive(Clone, Copy)]
        #[repr(transparent)]
        struct $name($inner);

        // SAFETY: a struct of integers without padding.
        unsafe impl Pod for $name {}
    };
}

map_value!(CellValue(CellCounters));
map_value!(OpValue(OpCounters));
map_value!(HistogramValue(Histogram));
map_value!(SlotValue(Slot));

/// Reads the maps, and remembers what it read.
pub struct Snapshots {
    cells: Vec<CellCounters>,
    ops: Vec<OpCounters>,
    /// Buckets of each series that has a histogram, as they were.
    buckets: BTreeMap<usize, Vec<u32>>,
    /// The histogram of each series that has one.
    numbers: BTreeMap<usize, u32>,
    misses: [u64; miss::COUNT as usize],
    recursion_misses: u64,
}

impl Snapshots {
    /// Hands out histograms to the series that are expected.
    pub fn prepare(session: &mut Session) -> Result<Self> {
        let mut snapshots = Self {
            cells: vec![CellCounters::default(); cell::COUNT],
            ops: vec![OpCounters::default(); Op::COUNT],
            buckets: BTreeMap::new(),
            numbers: BTreeMap::new(),
            misses: [0; miss::COUNT as usize],
            recursion_misses: 0,
        };
        let expected = expected_series(&session.plan);
        snapshots.hand_out(session, expected)?;
        Ok(snapshots)
    }

    /// From here on it is measured.
    ///
    /// What was counted while hooks were being attached is half of the truth. Counters are
    /// subtracted; extremes, which nothing can be subtracted from, are set back, once: a sample
    /// that a program is just writing may be lost with them, and is before the beginning.
    pub fn begin(&mut self, session: &mut Session) -> Result<()> {
        let mut cells = session.per_cpu_mut::<CellValue>("CELLS")?;
        for index in 0..cell::COUNT as u32 {
            let values = cells
                .get(&index, 0)
                .context("failed to read the counters")?;
            if sum_cells(&values) == CellCounters::default() {
                continue;
            }
            let forgot = values.iter().map(|CellValue(cpu)| {
                CellValue(CellCounters {
                    wait: without_extremes(&cpu.wait),
                    hold: without_extremes(&cpu.hold),
                    ..*cpu
                })
            });
            let forgot = PerCpuValues::try_from(forgot.collect::<Vec<_>>())?;
            cells.set(index, forgot, 0).context("failed to begin")?;
        }
        let mut ops = session.per_cpu_mut::<OpValue>("OPS")?;
        for &op in Op::ALL {
            let values = ops
                .get(&(op as u32), 0)
                .context("failed to read the op counters")?;
            let forgot = values.iter().map(|OpValue(cpu)| {
                OpValue(OpCounters {
                    latency: without_extremes(&cpu.latency),
                    ..*cpu
                })
            });
            let forgot = PerCpuValues::try_from(forgot.collect::<Vec<_>>())?;
            ops.set(op as u32, forgot, 0).context("failed to begin")?;
        }
        self.take(session)?;
        Ok(())
    }

    /// What was counted since the last call.
    pub fn take(&mut self, session: &mut Session) -> Result<Measured> {
        let cells = self.read_cells(session)?;
        let ops = self.read_ops(session)?;
        let loss = self.read_loss(session)?;
        let unserved = self.without_histogram();
        self.hand_out(session, unserved)?;
        Ok(Measured { cells, ops, loss })
    }

    fn read_cells(&mut self, session: &Session) -> Result<BTreeMap<CellKey, Cell>> {
        let map = session.per_cpu::<CellValue>("CELLS")?;
        let read = |index: usize| {
            let values = map.get(&(index as u32), 0);
            Ok::<_, anyhow::Error>(sum_cells(&values.context("failed to read the counters")?))
        };
        let mut cells = BTreeMap::new();
        for index in 0..cell::COUNT {
            let before = self.cells[index];
            let seen = read(index)?;
            if seen == before {
                continue;
            }
            let waits = self.buckets_of(
                session,
                series::wait(index),
                seen.contended != before.contended,
            )?;
            let holds = self.buckets_of(
                session,
                series::hold(index),
                seen.releases != before.releases,
            )?;
            let after = settled(&before, &seen, read(index)?);
            self.cells[index] = after;
            cells.insert(key(index)?, cell(&before, &after, &waits, &holds));
        }
        Ok(cells)
    }

    fn read_ops(&mut self, session: &Session) -> Result<BTreeMap<Op, OpCell>> {
        let map = session.per_cpu::<OpValue>("OPS")?;
        let read = |op: Op| {
            let values = map.get(&(op as u32), 0);
            Ok::<_, anyhow::Error>(sum_ops(&values.context("failed to read the op counters")?))
        };
        // A tracepoint counts ops without timing them.
        let timed = session.plan.hooks != Hooks::Tracepoint;
        let mut ops = BTreeMap::new();
        for &op in Op::ALL {
            let before = self.ops[op.index()];
            if read(op)? == before {
                continue;
            }
            let buckets = self.buckets_of(session, series::op(op.index()), timed)?;
            let after = read(op)?;
            self.ops[op.index()] = after;
            let count = after.count - before.count;
            let samples = if timed { count } else { 0 };
            let latency = distribution(samples, &before.latency, &after.latency, &buckets);
            ops.insert(op, OpCell { count, latency });
        }
        Ok(ops)
    }

    /// Samples of each bucket since the last call; none of a series that did not change, or that
    /// has no histogram.
    fn buckets_of(&mut self, session: &Session, series: usize, changed: bool) -> Result<Vec<u64>> {
        match self.numbers.get(&series) {
            Some(&number) if changed => self.read_buckets(session, series, number),
            _ => Ok(Vec::new()),
        }
    }

    fn read_buckets(&mut self, session: &Session, series: usize, number: u32) -> Result<Vec<u64>> {
        let map = session.per_cpu::<HistogramValue>("HISTS")?;
        let values = map
            .get(&(number - 1), 0)
            .context("failed to read a histogram")?;
        let mut after = vec![0u32; bucket::COUNT];
        for HistogramValue(cpu) in values.iter() {
            for (sum, bucket) in after.iter_mut().zip(cpu) {
                *sum = sum.wrapping_add(*bucket);
            }
        }
        let before = self
            .buckets
            .entry(series)
            .or_insert_with(|| vec![0; bucket::COUNT]);
        let change = after
            .iter()
            .zip(before.iter())
            .map(|(a, b)| u64::from(a.wrapping_sub(*b)));
        let change = change.collect();
        *before = after;
        Ok(change)
    }

    fn read_loss(&mut self, session: &Session) -> Result<Loss> {
        let map = session.per_cpu::<u64>("MISSES")?;
        let mut lost = [0; miss::COUNT as usize];
        for (reason, (before, lost)) in (0..).zip(self.misses.iter_mut().zip(&mut lost)) {
            let values = map.get(&reason, 0).context("failed to read the misses")?;
            let after: u64 = values.iter().sum();
            *lost = after - std::mem::replace(before, after);
        }
        let misses = session.recursion_misses();
        let (in_flight_waits, in_flight_holds) = in_flight(session)?;
        let lost = |reason: u32| lost[reason as usize];
        Ok(Loss {
            recursion_misses: misses
                .saturating_sub(std::mem::replace(&mut self.recursion_misses, misses)),
            map_full: lost(miss::NO_HISTOGRAM) + lost(miss::NO_SLOT),
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
            .filter(|series| !self.numbers.contains_key(series))
            .collect()
    }

    fn hand_out(&mut self, session: &mut Session, wanted: Vec<usize>) -> Result<()> {
        let mut map = session.array_mut::<u32>("HIST_OF")?;
        for series in wanted {
            let next = self.numbers.len() as u32 + 1;
            if next > HISTOGRAMS || self.numbers.contains_key(&series) {
                continue;
            }
            map.set(series as u32, next, 0)
                .context("failed to hand out a histogram")?;
            self.numbers.insert(series, next);
        }
        Ok(())
    }
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

/// What counts as read: the programs go on counting. Buckets are read between two reads of the
/// counters, so that in the long run no histogram has more samples than were counted; durations
/// that had not changed when the buckets were skipped are left to the next time.
fn settled(before: &CellCounters, seen: &CellCounters, after: CellCounters) -> CellCounters {
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

fn cell(before: &CellCounters, after: &CellCounters, waits: &[u64], holds: &[u64]) -> Cell {
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
    buckets: &[u64],
) -> Distribution {
    let exact = Exact {
        count,
        sum_ns: after.sum_ns.wrapping_sub(before.sum_ns),
        min_ns: !after.inverted_min_ns,
        max_ns: after.max_ns,
    };
    Distribution::from_buckets(exact, buckets)
}

fn without_extremes(durations: &Durations) -> Durations {
    Durations {
        inverted_min_ns: 0,
        max_ns: 0,
        ..*durations
    }
}

fn sum_cells(values: &PerCpuValues<CellValue>) -> CellCounters {
    let mut sum = CellCounters::default();
    for CellValue(cpu) in values.iter() {
        sum.acquisitions += cpu.acquisitions;
        sum.contended += cpu.contended;
        sum.aborted += cpu.aborted;
        sum.aborted_wait_ns += cpu.aborted_wait_ns;
        sum.try_failed += cpu.try_failed;
        sum.releases += cpu.releases;
        add_durations(&mut sum.wait, &cpu.wait);
        add_durations(&mut sum.hold, &cpu.hold);
    }
    sum
}

fn sum_ops(values: &PerCpuValues<OpValue>) -> OpCounters {
    let mut sum = OpCounters::default();
    for OpValue(cpu) in values.iter() {
        sum.count += cpu.count;
        add_durations(&mut sum.latency, &cpu.latency);
    }
    sum
}

fn add_durations(sum: &mut Durations, cpu: &Durations) {
    sum.sum_ns = sum.sum_ns.wrapping_add(cpu.sum_ns);
    sum.inverted_min_ns = sum.inverted_min_ns.max(cpu.inverted_min_ns);
    sum.max_ns = sum.max_ns.max(cpu.max_ns);
}

/// Waits and holds that are going on.
fn in_flight(session: &Session) -> Result<(u64, u64)> {
    let (mut waits, mut holds) = (0, 0);
    for slot in session.array::<SlotValue>("TASKS")?.iter() {
        let SlotValue(slot) = slot.context("failed to read what tasks are doing")?;
        for held in slot.held {
            match held.state {
                state::WAITING | state::TRYING_WAITING => waits += 1,
                state::HELD => holds += 1,
                _ => {}
            }
        }
    }
    Ok((waits, holds))
}

/// The series that a kernel of this plan is expected to have: from which ops a lock is taken, with
/// which intent, by the tables of `mm/vmalloc.c` and `fs/proc/kcore.c`, 5.10 to 7.3.
fn expected_series(plan: &Plan) -> Vec<usize> {
    let full = plan.level == Level::Full && plan.hooks != Hooks::Tracepoint;
    let mut expected = Vec::new();
    for planned in &plan.locks {
        for &(intent, op) in expected_cells(planned.lock) {
            let mode = match (planned.kind, intent) {
                (Kind::Rwsem, Intent::Read) => Mode::Shared,
                _ => Mode::Exclusive,
            };
            let index = cell::index(planned.lock, mode, intent, op);
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
