//! A machine with many CPUs that all count, on one that has few.
//!
//! In: a recorder. Out: counters of CPUs that are not there, in its maps: each of them allocates, frees
//! and purges, takes every lock for that which the recorder expects, and waits for it, a hundred times a
//! turn. The recorder is told of so many CPUs by the files that it reads; to the kernel nothing is
//! changed.
//!
//! Invariant: only what the programs would have written is written, each CPU's counts agree with its
//! histograms, and the CPUs that are there are left alone.

use std::ffi::CString;
use std::fs;
use std::io;
use std::ptr::null;

use anyhow::{Context as _, Result, ensure};
use aya::Pod;
use aya::maps::{Array, Map, MapData};
use kcore_trace_ebpf::bucket::SUB;
use kcore_trace_ebpf::layout::{
    ALL_OCTAVES, ActiveCells, BlameRow, CellCounters, CpuCounters, Durations, HistogramOf, Octave,
    OpCounters, blame, miss, series,
};
use kcore_trace_ebpf::words::{Op, cell};

/// CPUs that are made believe.
pub(super) const CPUS: usize = 256;

/// What says so, until it stands in the place of what is true.
const SAID: &str = "/tmp/cpus";

/// Has every process that this one starts read that there are so many CPUs.
pub(super) fn announce() -> Result<()> {
    fs::write(SAID, format!("0-{}\n", CPUS - 1))?;
    // SAFETY: no pointers.
    let own = unsafe { libc::unshare(libc::CLONE_NEWNS) };
    ensure!(
        own == 0,
        "no mounts of our own: {}",
        io::Error::last_os_error()
    );
    mount(None, "/", libc::MS_REC | libc::MS_PRIVATE)?;
    for file in ["possible", "online"] {
        let path = format!("/sys/devices/system/cpu/{file}");
        mount(Some(SAID), &path, libc::MS_BIND)?;
    }
    // Where it is mounted it stays.
    Ok(fs::remove_file(SAID)?)
}

fn mount(what: Option<&str>, to: &str, flags: libc::c_ulong) -> Result<()> {
    let (from, path) = (what.map(CString::new).transpose()?, CString::new(to)?);
    let from = from.as_ref().map_or(null(), |from| from.as_ptr());
    // SAFETY: the strings outlive the call; a bind mount takes no type and no data.
    let result = unsafe { libc::mount(from, path.as_ptr(), null(), flags, null()) };
    let error = io::Error::last_os_error();
    ensure!(result == 0, "failed to mount over {to}: {error}");
    Ok(())
}

/// Values of the contract, for aya.
macro_rules! plain {
    ($($name:ident($type:ty)),+) => {$(
        #[derive(Clone, Copy)]
        #[repr(transparent)]
        struct $name($type);

        // SAFETY: integers only, without padding.
        unsafe impl Pod for $name {}
    )+};
}

plain!(
    Cell(CellCounters),
    Cpu(CpuCounters),
    Row(BlameRow),
    Samples(Octave),
    Numbers(HistogramOf),
    Active(ActiveCells)
);

/// What they do.
const OPS: [Op; 3] = [Op::Alloc, Op::Free, Op::Purge];
/// Samples that a series of a CPU gets in a turn, in as many octaves: from 512 ns to 4 µs.
const SAMPLES: [(usize, u32); 3] = [(5, 60), (6, 30), (7, 10)];
const IN_A_TURN: u64 = 100;
/// Of a series, in a turn.
const TOGETHER_NS: u64 = 100 * 1024;

/// The maps of a recorder.
pub(super) struct Crowd {
    /// CPUs that are there.
    first: usize,
    turns: u64,
    active: Array<MapData, Active>,
    numbers: Array<MapData, Numbers>,
    cells: Array<MapData, Cell>,
    cpus: Array<MapData, Cpu>,
    blame: Array<MapData, Row>,
    octaves: Array<MapData, Samples>,
}

/// What changes in a turn.
#[derive(Clone, Copy, Default)]
pub(super) struct Written {
    /// Histograms of each CPU.
    pub(super) series: usize,
    pub(super) octaves: usize,
}

impl Crowd {
    /// Of maps by their ids.
    pub(super) fn of(maps: &[u32]) -> Result<Self> {
        Ok(Self {
            first: std::thread::available_parallelism()?.get(),
            turns: 0,
            active: named(maps, ".bss.active")?,
            numbers: named(maps, ".bss.hist_of")?,
            cells: named(maps, "CELLS")?,
            cpus: named(maps, "COUNTERS")?,
            blame: named(maps, "BLAME")?,
            octaves: named(maps, "HISTS")?,
        })
    }

    /// All of them count for a turn.
    pub(super) fn turn(&mut self) -> Result<Written> {
        self.turns += 1;
        let Numbers(numbers) = self.numbers.get(&0, 0)?;
        let Active(mut active) = self.active.get(&0, 0)?;
        let mut written = Written::default();
        let count = self.turns * IN_A_TURN;
        let durations = Durations {
            sum_ns: self.turns * TOGETHER_NS,
            inverted_min_ns: !512,
            max_ns: 4095,
        };
        for (index, active) in active.iter_mut().enumerate() {
            let series = [series::wait(index), series::hold(index)];
            // Which waits are expected is known from the beginning, whatever is measured.
            let op = cell::words(index).map(|(_, _, _, op)| op);
            if numbers[series[0]] >= ALL_OCTAVES || !op.is_some_and(|op| OPS.contains(&op)) {
                continue;
            }
            *active = 1;
            let counters = CellCounters {
                acquisitions: count,
                contended: count,
                releases: count,
                wait_sum_ns: durations.sum_ns,
                wait_max_ns: durations.max_ns,
                hold: durations,
            };
            for cpu in self.first..CPUS {
                self.cells
                    .set((index * CPUS + cpu) as u32, Cell(counters), 0)?;
            }
            self.blame(index, count)?;
            for series in series {
                self.samples(numbers[series], &mut written)?;
            }
        }
        self.active.set(0, Active(active), 0)?;
        let mut counters = CpuCounters {
            ops: [OpCounters::default(); Op::COUNT],
            misses: [0; miss::COUNT as usize],
            spinning: 0,
            unused: [0; _],
        };
        for op in OPS {
            let number = numbers[series::op(op.index())];
            self.samples(number, &mut written)?;
            if number < ALL_OCTAVES {
                counters.ops[op.index()] = OpCounters {
                    count,
                    latency: durations,
                };
            }
        }
        for cpu in self.first..CPUS {
            self.cpus.set(cpu as u32, Cpu(counters), 0)?;
        }
        Ok(written)
    }

    /// Puts the waits of a cell down to four kinds of holders.
    fn blame(&mut self, cell: usize, waits: u64) -> Result<()> {
        // Where holders are not known there is one row.
        if self.blame.len() == 1 {
            return Ok(());
        }
        let cell = cell as u64;
        let place = blame::PLACES[blame::lock(cell) as usize].into();
        let row = blame::row(place, blame::purpose(cell)) as usize;
        let mut counters = BlameRow::NONE;
        for holder in 0..4 {
            counters.waits[holder] = (waits / 4) as u32;
            counters.wait_sum_ns[holder] = self.turns * TOGETHER_NS / 4;
        }
        for cpu in self.first..CPUS {
            self.blame
                .set((row * CPUS + cpu) as u32, Row(counters), 0)?;
        }
        Ok(())
    }

    /// The samples of all turns, in the histogram that begins with that octave, if there is one.
    fn samples(&mut self, first: u32, written: &mut Written) -> Result<()> {
        if first >= ALL_OCTAVES {
            return Ok(());
        }
        for (octave, samples) in SAMPLES {
            let mut buckets: Octave = [0; SUB as usize];
            buckets[3] = samples * self.turns as u32;
            let group = first as usize + octave;
            for cpu in self.first..CPUS {
                let index = (group * CPUS + cpu) as u32;
                self.octaves.set(index, Samples(buckets), 0)?;
            }
            written.octaves += 1;
        }
        written.series += 1;
        Ok(())
    }
}

fn named<T: Pod>(maps: &[u32], name: &str) -> Result<Array<MapData, T>> {
    for &id in maps {
        let map = MapData::from_id(id)?;
        if map.info()?.name_as_str() == Some(name) {
            return Ok(Array::try_from(Map::Array(map))?);
        }
    }
    None.with_context(|| format!("the recorder has no map {name}"))
}

const _: () = {
    let [(_, most), (_, some), (_, few)] = SAMPLES;
    assert!((most + some + few) as u64 == IN_A_TURN);
};
const _: () = assert!(ALL_OCTAVES as usize * CPUS < u32::MAX as usize);
