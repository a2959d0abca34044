//! The counters of the programs, as userspace sees them.
//!
//! In: the maps of a loaded object. Out: sums over all CPUs. What is read often is mapped into our
//! memory, so that reading it is no system call: of the counters of cells, as many as there are cells
//! that occur. Nothing is ever reset, but for extremes, once. CPUs beyond the highest that was ever
//! seen running are passed over: a machine may have room for hundreds that it does not have.
//!
//! Invariant: the programs go on counting while this reads; each counter is read whole, and two of
//! them may be of different moments.

use std::fs;
use std::ptr::{read_volatile, write_volatile};

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::maps::{Array, MapData};
use kcore_trace_ebpf::layout::{
    AUDIT_ROWS, AUDIT_STACKS, ActiveCells, AuditRow, AuditTable, BlameRow, CellCounters,
    CopyCounters, CpuCounters, Durations, Holders, InsideCounters, NodeCounters, OpCounters,
    RareCounters, ReaderRow, Slot, Stack, WORST, WorstStacks, WorstTable, WorstWait, miss, node,
    state,
};
use kcore_trace_ebpf::words::{Op, cell};

use crate::histograms::{Expected, Histograms};
use crate::host::cpu_ids;
use crate::mapped::{Groups, Mapped, Plain};
use crate::sums;

/// What was counted until some moment, on all CPUs.
pub struct Counters {
    cpus: Mapped<CpuCounters>,
    cells: Groups<CellCounters>,
    rare: Groups<RareCounters>,
    /// The cells that have counted something, in the order in which they were found.
    active: Vec<usize>,
    tasks: Mapped<Slot>,
    nodes: Mapped<NodeCounters>,
    blame: Groups<BlameRow>,
    inside: Mapped<InsideCounters>,
    copies: Mapped<CopyCounters>,
    readers: Mapped<ReaderRow>,
    worst: Mapped<WorstTable>,
    worst_stacks: Mapped<WorstStacks>,
    /// When each of the longest waits ended that was read, by CPU: a place keeps its wait until a longer one
    /// takes it.
    worst_read: Vec<[u64; WORST]>,
    audit: Mapped<AuditTable>,
    histograms: Histograms,
    /// How many CPUs are looked at, from the first on. It never falls, so that no sum does.
    looked_at: usize,
}

/// The section of the programs that says which cells occur.
const ACTIVE: &str = ".bss.active";
/// The section of the programs that says who holds a lock.
const HOLDERS: &str = ".bss.holders";

/// A value of the contract, for reading a map and for writing it.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Whole<T>(T);

// SAFETY: an array of integers.
unsafe impl aya::Pod for Whole<ActiveCells> {}
// SAFETY: an array of structs of integers.
unsafe impl aya::Pod for Whole<Holders> {}

/// The only value of a section, by a system call.
fn section<T>(object: &Ebpf, name: &str) -> Result<T>
where
    Whole<T>: aya::Pod,
{
    let map = object
        .map(name)
        .with_context(|| format!("no map `{name}`"))?;
    let map: Array<_, Whole<T>> = Array::try_from(map)?;
    let Whole(value) = map
        .get(&0, 0)
        .with_context(|| format!("failed to read `{name}`"))?;
    Ok(value)
}

/// A cell over all CPUs. Extremes are those since the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CellSum {
    pub acquisitions: u64,
    pub contended: u64,
    pub aborted: u64,
    pub aborted_wait_ns: u64,
    pub try_failed: u64,
    pub releases: u64,
    pub wait: Durations,
    pub hold: Durations,
}

impl Counters {
    /// Those of an object and of the slots of tasks, which have to outlive them.
    pub fn new(object: &Ebpf, tasks: &MapData) -> Result<Self> {
        let cpus = Mapped::new(object, "COUNTERS")?;
        let count = cpus.len();
        let histograms = Histograms::new(object, count)?;
        let worst: Mapped<WorstTable> = Mapped::new(object, "WORST")?;
        let mut counters = Self {
            cpus,
            cells: Groups::new(object, "CELLS", count)?,
            rare: Groups::new(object, "RARE", count)?,
            active: Vec::new(),
            tasks: Mapped::of_value(tasks).context("failed to map the slots of tasks")?,
            nodes: Mapped::new(object, "NODE_COUNTERS")?,
            blame: Groups::new(object, "BLAME", count)?,
            inside: Mapped::new(object, "INSIDE")?,
            copies: Mapped::new(object, "COPIES")?,
            readers: Mapped::new(object, "READERS")?,
            worst_read: vec![[0; WORST]; worst.len()],
            worst,
            worst_stacks: Mapped::new(object, "WORST_STACKS")?,
            audit: Mapped::new(object, "AUDIT")?,
            histograms,
            looked_at: 0,
        };
        counters.look_at_running();
        Ok(counters)
    }

    /// From here on also looks at CPUs that have come meanwhile.
    pub fn look_at_running(&mut self) {
        let online = fs::read_to_string("/sys/devices/system/cpu/online");
        let ids = online.ok().and_then(|online| cpu_ids(&online));
        let running = ids.map_or(self.cpus.len(), |ids| ids as usize);
        self.looked_at = self.looked_at.max(running.min(self.cpus.len()));
    }

    /// From here on looks at all CPUs that there may be: one may have come and gone unseen.
    pub fn look_at_all(&mut self) {
        self.looked_at = self.cpus.len();
    }

    fn running(&self) -> impl Iterator<Item = *mut CpuCounters> + Clone {
        self.cpus.iter().take(self.looked_at)
    }

    /// Looks for cells that have counted something for the first time.
    pub fn look_for_cells(&mut self, object: &Ebpf) -> Result<()> {
        let active: ActiveCells = section(object, ACTIVE)?;
        for (index, &active) in active.iter().enumerate() {
            if active != 0 {
                self.look_at(index)?;
            }
        }
        Ok(())
    }

    /// Gives back memory that no snapshot has looked at since the last call.
    pub fn close_idle(&mut self) {
        self.histograms.close_idle();
    }

    /// From here on looks at a cell.
    fn look_at(&mut self, cell: usize) -> Result<()> {
        if cell < cell::COUNT && !self.active.contains(&cell) {
            self.cells.map(cell)?;
            self.rare.map(cell)?;
            self.active.push(cell);
        }
        Ok(())
    }

    /// From here on looks at the cells of holds that are going on, as [`Self::in_flight`] finds them.
    pub fn look_at_held(&mut self, kept_by: Option<&Ebpf>) -> Result<()> {
        let (_, holds) = self.in_flight(kept_by)?;
        holds.into_iter().try_for_each(|cell| self.look_at(cell))
    }

    /// The cells that have counted something.
    pub fn cells(&self) -> &[usize] {
        &self.active
    }

    /// The sum of a cell that has counted something.
    pub fn cell(&self, index: usize) -> CellSum {
        let cells = self.cells.group(index).take(self.looked_at);
        let rare = self.rare.group(index).take(self.looked_at);
        // SAFETY: values of the maps, of counters of 64 bits, in whole 32 bytes.
        let ((sum, max), (rare, rare_max)) = unsafe {
            (
                sums::with_maxima::<_, 2>(cells),
                sums::with_maxima::<_, 1>(rare),
            )
        };
        CellSum {
            acquisitions: sum.acquisitions,
            contended: sum.contended,
            aborted: rare.aborted,
            aborted_wait_ns: rare.aborted_wait_ns,
            try_failed: rare.try_failed,
            releases: sum.releases,
            wait: Durations {
                sum_ns: sum.wait_sum_ns,
                inverted_min_ns: rare_max.inverted_wait_min_ns,
                max_ns: max.wait_max_ns,
            },
            hold: over_all(&sum.hold, max.hold),
        }
    }

    /// The sum of an op.
    pub fn op(&self, op: Op) -> OpCounters {
        let cpus = self.running();
        // SAFETY: the same; the index is inside the array.
        let (sum, max) = unsafe {
            let cpus = cpus.map(|cpu| &raw mut (*cpu).ops[op.index()]);
            sums::with_maxima::<_, 1>(cpus)
        };
        OpCounters {
            count: sum.count,
            latency: over_all(&sum.latency, max.latency),
        }
    }

    /// How many nodes are counted one by one; none on a kernel that has no nodes.
    pub fn node_count(&self) -> usize {
        self.nodes.len() / self.cpus.len() / node::LOCKS.len()
    }

    /// How many counters of nodes there are to look at.
    pub fn node_values(&self) -> usize {
        self.node_count() * node::LOCKS.len() * self.looked_at
    }

    /// The sums of the locks of each node, in the order of [`node::LOCKS`].
    pub fn nodes(&self) -> Vec<[NodeCounters; node::LOCKS.len()]> {
        let mut sums = vec![[NodeCounters::default(); node::LOCKS.len()]; self.node_count()];
        let of_cpu = self.node_count() * node::LOCKS.len();
        // In the order of memory: those of a CPU are some pages.
        let mut counters = self.nodes.values();
        for _ in 0..self.looked_at {
            let of_cpu = counters.by_ref().take(of_cpu);
            for (sum, cpu) in sums.as_flattened_mut().iter_mut().zip(of_cpu) {
                sum.acquisitions += cpu.acquisitions;
                sum.contended += cpu.contended;
                sum.wait_sum_ns = sum.wait_sum_ns.wrapping_add(cpu.wait_sum_ns);
            }
        }
        sums
    }

    /// The sums of a kind of waiter by holder; by [`blame::row`].
    pub fn blame(&mut self, row: usize) -> Result<BlameRow> {
        self.blame.map(row)?;
        let rows = || self.blame.group(row).take(self.looked_at);
        // SAFETY: the same, and of counters of 32 bits.
        Ok(unsafe {
            BlameRow {
                wait_sum_ns: sums::of::<u64, _, 6>(rows().map(|row| &raw mut (*row).wait_sum_ns)),
                waits: sums::of::<u32, _, 3>(rows().map(|row| &raw mut (*row).waits)),
                ..BlameRow::NONE
            }
        })
    }

    /// What happened inside the holds of a cell; nothing where it is not looked at.
    pub fn inside(&self, cell: usize) -> Option<InsideCounters> {
        let counters = self.inside.at(cell)?;
        // SAFETY: a value of the map, plain integers.
        Some(unsafe { read_volatile(counters) })
    }

    /// Reads by destination; nothing where they are not looked at.
    pub fn copies(&self) -> impl Iterator<Item = (usize, CopyCounters)> {
        self.copies.values().enumerate()
    }

    /// How many rows of readers there are.
    pub fn reader_count(&self) -> usize {
        self.readers.len()
    }

    /// Of the longest waits of each CPU those that were not read yet, as far as none is being written; nothing
    /// where they are not looked at. The stacks of waiter and holder are zeros where they are not kept.
    pub fn worst(&mut self) -> Vec<(WorstWait, [Stack; 2])> {
        let mut new = Vec::new();
        let tables = self.worst.iter().take(self.looked_at).enumerate();
        for ((cpu, table), read) in tables.zip(&mut self.worst_read) {
            let stacks = self.worst_stacks.at(cpu);
            for (index, read) in read.iter_mut().enumerate() {
                // SAFETY: values of the maps, plain integers; the index is inside the arrays.
                unsafe {
                    let place = &raw const (*table).waits[index];
                    let idle = || read_volatile(&raw const (*table).busy) == 0;
                    let ended_ns = read_volatile(&raw const (*place).ended_ns);
                    if ended_ns == *read || !idle() {
                        continue;
                    }
                    let stacks = stacks.map(|stacks| read_volatile(&raw const (*stacks)[index]));
                    let wait = read_volatile(place);
                    // Stacks are written behind the wait that they belong to.
                    if idle() && read_volatile(place) == wait && wait.ended_ns == ended_ns {
                        *read = ended_ns;
                        new.push((wait, stacks.unwrap_or_default()));
                    }
                }
            }
        }
        new
    }

    /// The rows of the audit that are taken, by CPU and number; nothing where nobody looks. A row
    /// keeps its key; its stack may come a little later.
    pub fn audit(&self) -> impl Iterator<Item = ((usize, usize), AuditRow)> {
        let tables = self.audit.iter().take(self.looked_at).enumerate();
        let rows = tables.flat_map(|(cpu, table)| {
            (0..AUDIT_ROWS).map(move |index| {
                // SAFETY: a value of the map, plain integers.
                let row = unsafe { read_volatile(&raw const (*table).rows[index]) };
                ((cpu, index), row)
            })
        });
        rows.filter(|(_, row)| row.key != 0)
    }

    /// An example stack of a CPU, by [`AuditRow::stack`].
    pub fn audit_stack(&self, cpu: usize, number: u64) -> Option<Stack> {
        let index = usize::try_from(number).ok()?.checked_sub(1)?;
        let table = self.audit.at(cpu)?;
        // SAFETY: a value of the map, plain integers.
        (index < AUDIT_STACKS).then(|| unsafe { read_volatile(&raw const (*table).stacks[index]) })
    }

    /// When something was last counted in a row of readers.
    pub fn reader_touched_ns(&self, index: usize) -> Option<u64> {
        let row = self.readers.at(index)?;
        // SAFETY: a value of the map, plain integers.
        Some(unsafe { read_volatile(&raw const (*row).touched_ns) })
    }

    /// A row of readers; nothing if it is going to another owner at this moment.
    pub fn reader(&self, index: usize) -> Option<ReaderRow> {
        let row = self.readers.at(index)?;
        // SAFETY: a value of the map, plain integers.
        unsafe {
            let touched_ns = read_volatile(&raw const (*row).touched_ns);
            let values = read_volatile(row);
            let same = read_volatile(&raw const (*row).generation) == values.generation
                && read_volatile(&raw const (*row).owner) == values.owner;
            same.then_some(ReaderRow {
                touched_ns,
                ..values
            })
        }
    }

    /// Says that everything of a row was read that was counted until it was touched then.
    pub fn reader_seen(&self, index: usize, touched_ns: u64) {
        if let Some(row) = self.readers.at(index) {
            // SAFETY: a value of the map, of which only this side writes that word.
            unsafe { write_volatile(&raw mut (*row).seen_ns, touched_ns) };
        }
    }

    /// The sums of what could not be counted as it should, by reason.
    pub fn misses(&self) -> [u64; miss::COUNT as usize] {
        let mut sums = [0; miss::COUNT as usize];
        for cpu in self.running() {
            // SAFETY: as above.
            let cpu = unsafe { read_volatile(&raw const (*cpu).misses) };
            for (sum, cpu) in sums.iter_mut().zip(cpu) {
                *sum += cpu;
            }
        }
        sums
    }

    /// Sets all extremes back: nothing can be subtracted from them. A sample that a program is just
    /// writing may be lost with them.
    pub fn forget_extremes(&self) {
        for &index in &self.active {
            let cpus = self.cells.group(index).zip(self.rare.group(index));
            for (cell, rare) in cpus {
                // SAFETY: values of the maps; a field is written whole.
                unsafe {
                    write_volatile(&raw mut (*cell).wait_max_ns, 0);
                    write_volatile(&raw mut (*rare).inverted_wait_min_ns, 0);
                    forget(&raw mut (*cell).hold);
                }
            }
        }
        for cpu in self.running() {
            for index in 0..Op::COUNT {
                // SAFETY: as above.
                unsafe { forget(&raw mut (*cpu).ops[index].latency) };
            }
        }
    }

    /// Waits and holds that are going on, and the cells of the latter: the first hold of a cell is counted
    /// before the cell is said to occur. Holds that are kept at the places of locks are those of `kept_by`:
    /// to read them the kernel needs 64 KiB in one piece, so nobody asks where none are kept.
    pub fn in_flight(&self, kept_by: Option<&Ebpf>) -> Result<(u64, Vec<usize>)> {
        let (mut waits, mut holds) = (0, Vec::new());
        if let Some(object) = kept_by {
            let places: Holders = section(object, HOLDERS)?;
            let cells = places.iter().filter_map(|place| place.holds());
            holds.extend(cells.map(|cell| cell as usize));
        }
        for slot in self.tasks.iter() {
            // SAFETY: a value of the map, plain integers.
            let in_use = unsafe { read_volatile(&raw const (*slot).in_use) };
            if in_use == 0 {
                continue;
            }
            // SAFETY: as above.
            let slot = unsafe { read_volatile(slot) };
            for held in slot.held {
                match held.state {
                    state::WAITING | state::TRYING_WAITING => waits += 1,
                    state::HELD => holds.push(held.cell as usize),
                    _ => {}
                }
            }
        }
        Ok((waits, holds))
    }

    /// Gives histograms to series, as long as there are some.
    pub fn hand_out(&mut self, object: &mut Ebpf, wanted: &[usize]) -> Result<()> {
        self.histograms.hand_out(object, wanted)
    }

    /// Whether a series has a histogram.
    pub fn has_histogram(&self, series: usize) -> bool {
        self.histograms.has(series)
    }

    /// The buckets of a series that have gained samples since the last call, and how many, over all CPUs;
    /// none if it has no histogram.
    pub(crate) fn gained(&mut self, series: usize, expected: &Expected) -> Result<Vec<(u32, u64)>> {
        self.histograms.gained(series, expected, self.looked_at)
    }
}

// SAFETY: integers only.
unsafe impl Plain for CpuCounters {}
// SAFETY: integers only.
unsafe impl Plain for Slot {}
// SAFETY: integers only.
unsafe impl Plain for NodeCounters {}
// SAFETY: integers only.
unsafe impl Plain for BlameRow {}
// SAFETY: integers only.
unsafe impl Plain for CellCounters {}
// SAFETY: integers only.
unsafe impl Plain for RareCounters {}
// SAFETY: integers only.
unsafe impl Plain for InsideCounters {}
// SAFETY: integers only.
unsafe impl Plain for OpCounters {}
// SAFETY: integers only.
unsafe impl Plain for CopyCounters {}
// SAFETY: integers only.
unsafe impl Plain for ReaderRow {}
// SAFETY: integers only.
unsafe impl Plain for WorstTable {}
// SAFETY: integers only.
unsafe impl Plain for AuditTable {}
// SAFETY: integers only.
unsafe impl Plain for WorstStacks {}

/// The sum of durations, beside the extremes of all of them.
fn over_all(sum: &Durations, extremes: Durations) -> Durations {
    Durations {
        sum_ns: sum.sum_ns,
        ..extremes
    }
}

/// # Safety
///
/// `durations` points into a map.
unsafe fn forget(durations: *mut Durations) {
    // SAFETY: the caller says that it is valid; a field is written whole.
    unsafe {
        write_volatile(&raw mut (*durations).inverted_min_ns, 0);
        write_volatile(&raw mut (*durations).max_ns, 0);
    }
}
