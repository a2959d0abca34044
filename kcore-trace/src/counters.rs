//! The counters of the programs, as userspace sees them.
//!
//! In: the maps of a loaded object. Out: sums over all CPUs. Counters and what tasks are doing are
//! mapped into our memory, so that reading them is no system call; a histogram is read for all CPUs
//! in one. Nothing is ever reset, but for extremes, once. CPUs beyond the highest that was ever seen
//! running are passed over: a machine may have room for hundreds that it does not have.
//!
//! Invariant: the programs go on counting while this reads; each counter is read whole, and two of
//! them may be of different moments.

use std::fs;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::ptr::{NonNull, null_mut, read_volatile, write_volatile};

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::maps::{Array, Map};
use aya_obj::generated::bpf_cmd;
use kcore_trace_ebpf::bucket;
use kcore_trace_ebpf::layout::{
    AUDIT_ROWS, AUDIT_STACKS, AuditRow, AuditTable, BlameCounters, CellCounters, CopyCounters,
    CpuCounters, Durations, Histogram, HistogramOf, InsideCounters, NodeCounters, OpCounters,
    ReaderRow, Slot, Stack, WORST, WorstStacks, WorstTable, WorstWait, blame, miss, node, series,
    state,
};
use kcore_trace_ebpf::words::{Destination, Op, cell};

use crate::host::cpu_ids;
use crate::syscall;

/// What was counted until some moment, on all CPUs.
pub struct Counters {
    cpus: Mapped<CpuCounters>,
    tasks: Mapped<Slot>,
    nodes: Mapped<NodeCounters>,
    blame: Mapped<BlameCounters>,
    inside: Mapped<InsideCounters>,
    copies: Mapped<CopyCounters>,
    readers: Mapped<ReaderRow>,
    worst: Mapped<WorstTable>,
    worst_stacks: Mapped<WorstStacks>,
    audit: Mapped<AuditTable>,
    histograms: Histograms,
    /// How many CPUs are looked at, from the first on. It never falls, so that no sum does.
    looked_at: usize,
    /// Which histogram each series has, plus one, as the kernel's side sees it.
    numbers: HistogramOf,
}

/// The section of the programs that is this map.
const HIST_OF: &str = ".bss.hist_of";

/// A value of the contract, for writing a map.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Numbers(HistogramOf);

// SAFETY: an array of integers.
unsafe impl aya::Pod for Numbers {}

impl Counters {
    /// Those of an object, which has to outlive them.
    pub fn new(object: &Ebpf) -> Result<Self> {
        let cpus = Mapped::new(object, "COUNTERS")?;
        let count = cpus.len();
        let histograms = Histograms::new(object, count)?;
        let mut counters = Self {
            cpus,
            tasks: Mapped::new(object, "TASKS")?,
            nodes: Mapped::new(object, "NODE_COUNTERS")?,
            blame: Mapped::new(object, "BLAME")?,
            inside: Mapped::new(object, "INSIDE")?,
            copies: Mapped::new(object, "COPIES")?,
            readers: Mapped::new(object, "READERS")?,
            worst: Mapped::new(object, "WORST")?,
            worst_stacks: Mapped::new(object, "WORST_STACKS")?,
            audit: Mapped::new(object, "AUDIT")?,
            histograms,
            looked_at: 0,
            numbers: [0; series::COUNT],
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

    fn running(&self) -> impl Iterator<Item = *mut CpuCounters> {
        self.cpus.iter().take(self.looked_at)
    }

    /// The sum of a cell. Extremes are those since the beginning.
    pub fn cell(&self, index: usize) -> CellCounters {
        let mut sum = CellCounters::default();
        for cpu in self.running() {
            // SAFETY: a value of the map, plain integers.
            let cpu = unsafe { read_volatile(&raw const (*cpu).cells[index]) };
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

    /// The sum of an op.
    pub fn op(&self, op: Op) -> OpCounters {
        let mut sum = OpCounters::default();
        for cpu in self.running() {
            // SAFETY: as above.
            let cpu = unsafe { read_volatile(&raw const (*cpu).ops[op.index()]) };
            sum.count += cpu.count;
            add_durations(&mut sum.latency, &cpu.latency);
        }
        sum
    }

    /// How many nodes are counted one by one; none on a kernel that has no nodes.
    pub fn node_count(&self) -> usize {
        self.nodes.len() / self.cpus.len() / node::LOCKS.len()
    }

    /// The sum of a lock of a node, one of [`node::LOCKS`].
    pub fn node(&self, number: usize, lock: usize) -> NodeCounters {
        let of_cpu = self.node_count() * node::LOCKS.len();
        let index = node::counters(number as u64, lock as u64) as usize;
        let mut sum = NodeCounters::default();
        let cpus = self.nodes.iter().skip(index).step_by(of_cpu);
        for cpu in cpus.take(self.looked_at) {
            // SAFETY: a value of the map, plain integers.
            let cpu = unsafe { read_volatile(cpu) };
            sum.acquisitions += cpu.acquisitions;
            sum.contended += cpu.contended;
            sum.wait_sum_ns = sum.wait_sum_ns.wrapping_add(cpu.wait_sum_ns);
        }
        sum
    }

    /// The sum of a waiter and a holder, by [`blame::index`].
    pub fn blame(&self, index: usize) -> BlameCounters {
        let mut sum = BlameCounters::default();
        let cpus = self.blame.iter().skip(index).step_by(blame::COUNT);
        for cpu in cpus.take(self.looked_at) {
            // SAFETY: a value of the map, plain integers.
            let cpu = unsafe { read_volatile(cpu) };
            sum.waits += cpu.waits;
            sum.wait_sum_ns = sum.wait_sum_ns.wrapping_add(cpu.wait_sum_ns);
        }
        sum
    }

    /// What happened inside the holds of each cell; nothing where it is not looked at.
    pub fn inside(&self) -> impl Iterator<Item = (usize, InsideCounters)> {
        self.inside
            .values()
            .take(self.inside_len(cell::COUNT))
            .enumerate()
    }

    /// Reads by destination; nothing where they are not looked at.
    pub fn copies(&self) -> impl Iterator<Item = (usize, CopyCounters)> {
        self.copies
            .values()
            .take(self.inside_len(Destination::COUNT))
            .enumerate()
    }

    /// How many rows of readers there are.
    pub fn reader_count(&self) -> usize {
        self.inside_len(self.readers.len())
    }

    /// The longest waits of each CPU, as far as none is being written; nothing where they are not
    /// looked at. The stacks of waiter and holder are zeros where they are not kept.
    pub fn worst(&self) -> impl Iterator<Item = (WorstWait, [Stack; 2])> {
        let tables = self.worst.iter().take(self.inside_len(self.looked_at));
        let whole = tables.enumerate().filter_map(|(cpu, table)| {
            // Where none are kept, the map has one value for all.
            let stacks = self.worst_stacks.at(cpu);
            // SAFETY: values of the maps, plain integers.
            unsafe {
                let waits = read_volatile(&raw const (*table).waits);
                let stacks = stacks.map_or([[Stack::default(); 2]; WORST], |at| read_volatile(at));
                let idle = read_volatile(&raw const (*table).busy) == 0;
                let same = read_volatile(&raw const (*table).waits) == waits;
                (idle && same).then(|| waits.into_iter().zip(stacks))
            }
        });
        whole.flatten().filter(|(wait, _)| wait.wait_ns != 0)
    }

    /// The rows of the audit that are taken, by CPU and number; nothing where nobody looks. A row
    /// keeps its key and its stack.
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

    fn inside_len(&self, len: usize) -> usize {
        // Where nothing is looked at, each of these maps has one value.
        if self.inside.len() > 1 { len } else { 0 }
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
        for cpu in self.running() {
            for index in 0..cell::COUNT {
                // SAFETY: a value of the map.
                unsafe {
                    let cell = &raw mut (*cpu).cells[index];
                    forget(&raw mut (*cell).wait);
                    forget(&raw mut (*cell).hold);
                }
            }
            for index in 0..Op::COUNT {
                // SAFETY: as above.
                unsafe { forget(&raw mut (*cpu).ops[index].latency) };
            }
        }
    }

    /// Waits and holds that are going on.
    pub fn in_flight(&self) -> (u64, u64) {
        let (mut waits, mut holds) = (0, 0);
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
                    state::HELD => holds += 1,
                    _ => {}
                }
            }
        }
        (waits, holds)
    }

    /// Gives histograms to series, as long as there are some.
    pub fn hand_out(&mut self, object: &mut Ebpf, wanted: &[usize]) -> Result<()> {
        let mut next = self.numbers.iter().max().copied().unwrap_or(0);
        let before = next;
        for &series in wanted {
            if self.numbers[series] == 0 && next < self.histograms.count() {
                next += 1;
                self.numbers[series] = next;
            }
        }
        if next == before {
            return Ok(());
        }
        let map = object.map_mut(HIST_OF);
        let map = map.with_context(|| format!("no map `{HIST_OF}`"))?;
        let mut map: Array<_, Numbers> = Array::try_from(map)?;
        map.set(0, Numbers(self.numbers), 0)
            .context("failed to hand out histograms")
    }

    /// Whether a series has a histogram.
    pub fn has_histogram(&self, series: usize) -> bool {
        self.numbers[series] != 0
    }

    /// Reads something that takes a system call, to learn whether the kernel allows it.
    pub fn try_reading(&mut self) -> Result<()> {
        self.histograms.sum(0, self.looked_at).map(drop)
    }

    /// The buckets of a series, summed over all CPUs, wrapping; nothing if it has no histogram.
    pub fn buckets(&mut self, series: usize) -> Result<Option<Box<Histogram>>> {
        match self.numbers[series] {
            0 => Ok(None),
            number => self.histograms.sum(number - 1, self.looked_at).map(Some),
        }
    }
}

/// The pool of histograms: those of one number for all CPUs stand together.
struct Histograms {
    map: std::os::fd::OwnedFd,
    cpus: usize,
    count: u32,
    /// One number for the CPUs that are looked at, as it was read last.
    read: Vec<Histogram>,
}

impl Histograms {
    fn new(object: &Ebpf, cpus: usize) -> Result<Self> {
        let (fd, elements) = array(object, "HISTS")?;
        let map = fd.try_clone_to_owned();
        Ok(Self {
            map: map.context("failed to keep the map of histograms")?,
            cpus,
            count: elements / cpus as u32,
            read: Vec::new(),
        })
    }

    fn count(&self) -> u32 {
        self.count
    }

    /// Of the first CPUs.
    fn sum(&mut self, number: u32, cpus: usize) -> Result<Box<Histogram>> {
        self.read(number, cpus)
            .context("failed to read a histogram")?;
        let mut sum = Box::new([0u32; bucket::COUNT]);
        for cpu in &self.read {
            for (sum, bucket) in sum.iter_mut().zip(cpu) {
                *sum = sum.wrapping_add(*bucket);
            }
        }
        Ok(sum)
    }

    /// One system call for the first CPUs (`BPF_MAP_LOOKUP_BATCH`, for arrays from 5.6 on).
    fn read(&mut self, number: u32, cpus: usize) -> io::Result<()> {
        self.read.resize(cpus, [0; bucket::COUNT]);
        let mut done = 0;
        // The batch begins behind the index that it is given.
        let mut behind = (number * self.cpus as u32).checked_sub(1);
        let mut keys = vec![0u32; cpus];
        while done < cpus {
            let mut out = 0u32;
            let mut attr = syscall::attributes();
            attr.batch.in_batch = behind
                .as_ref()
                .map_or(0, |behind| &raw const *behind as u64);
            attr.batch.out_batch = &raw mut out as u64;
            attr.batch.keys = keys.as_mut_ptr() as u64;
            attr.batch.values = self.read[done..].as_mut_ptr() as u64;
            attr.batch.count = (cpus - done) as u32;
            attr.batch.map_fd = self.map.as_raw_fd() as u32;
            // SAFETY: keys and values have room for as many as are asked for.
            let result = unsafe { syscall::bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) };
            // SAFETY: the kernel has written how many it read.
            let read = unsafe { attr.batch.count } as usize;
            done += read;
            behind = Some(out);
            match result {
                // The end of the map.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) && done == cpus => {}
                Err(error) => return Err(error),
                Ok(_) if read == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
            }
        }
        Ok(())
    }
}

/// Values of the contract that are integers only: any bytes are one.
///
/// # Safety
///
/// The type is `repr(C)` and made of integers.
unsafe trait Plain {}

// SAFETY: integers only.
unsafe impl Plain for CpuCounters {}
// SAFETY: integers only.
unsafe impl Plain for Slot {}
// SAFETY: integers only.
unsafe impl Plain for NodeCounters {}
// SAFETY: integers only.
unsafe impl Plain for BlameCounters {}
// SAFETY: integers only.
unsafe impl Plain for InsideCounters {}
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

/// An array of the kernel in our own memory.
struct Mapped<T> {
    first: NonNull<T>,
    len: usize,
    values: PhantomData<T>,
}

impl<T: Plain> Mapped<T> {
    fn new(object: &Ebpf, name: &str) -> Result<Self> {
        Self::of(object, name).with_context(|| format!("failed to map `{name}`"))
    }

    fn of(object: &Ebpf, name: &str) -> Result<Self> {
        let (fd, elements) = array(object, name)?;
        let len = elements as usize;
        // SAFETY: a new mapping; the kernel checks its length against that of the map.
        let first = unsafe {
            libc::mmap(
                null_mut(),
                len * size_of::<T>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if first == libc::MAP_FAILED {
            return Err(io::Error::last_os_error().into());
        }
        let first = NonNull::new(first.cast()).context("mapped to zero")?;
        Ok(Self {
            first,
            len,
            values: PhantomData,
        })
    }

    fn len(&self) -> usize {
        self.len
    }

    fn at(&self, index: usize) -> Option<*mut T> {
        // SAFETY: inside the mapping.
        (index < self.len).then(|| unsafe { self.first.as_ptr().add(index) })
    }

    /// The values as they are at this moment.
    fn values(&self) -> impl Iterator<Item = T> {
        // SAFETY: values of the map, plain integers.
        self.iter().map(|value| unsafe { read_volatile(value) })
    }

    /// Pointers to the values, which the kernel goes on writing.
    fn iter(&self) -> impl Iterator<Item = *mut T> {
        // SAFETY: inside the mapping.
        (0..self.len).map(|index| unsafe { self.first.as_ptr().add(index) })
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: our own mapping, which nothing refers to any more.
        unsafe { libc::munmap(self.first.as_ptr().cast(), self.len * size_of::<T>()) };
    }
}

/// The descriptor of an array and its number of elements.
fn array<'a>(object: &'a Ebpf, name: &str) -> Result<(BorrowedFd<'a>, u32)> {
    let Some(Map::Array(map)) = object.map(name) else {
        anyhow::bail!("the object has no array `{name}`");
    };
    let elements = map.info().map(|info| info.max_entries());
    let elements = elements.with_context(|| format!("failed to ask for the size of `{name}`"))?;
    Ok((map.fd().as_fd(), elements))
}

fn add_durations(sum: &mut Durations, cpu: &Durations) {
    sum.sum_ns = sum.sum_ns.wrapping_add(cpu.sum_ns);
    sum.inverted_min_ns = sum.inverted_min_ns.max(cpu.inverted_min_ns);
    sum.max_ns = sum.max_ns.max(cpu.max_ns);
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
