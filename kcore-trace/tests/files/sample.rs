//! Invented measurements, the same at every run, for the tests of recordings and reports.

use std::collections::BTreeMap;

use kcore_trace::distribution::{Distribution, Exact};
use kcore_trace::host::Host;
use kcore_trace::model::{
    Audit, AuditKey, Blame, BlameKey, Cell, CellKey, Copies, Coverage, Header, HoldCoverage,
    Inside, Interval, KernelName, Level, Loss, Measured, Missing, Nodes, OpCell, Process, Purpose,
    Reader, ReaderKey, Task, WaitCoverage, WorstWait,
};
use kcore_trace_ebpf::bucket;
use kcore_trace_ebpf::words::{Context, Destination, Intent, Kind, Lock, Mode, Op, Source};

pub(crate) const SECOND_NS: u64 = 1_000_000_000;

/// Numbers that look random and are not.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    /// Durations around a typical one, a few of them much longer.
    pub(crate) fn durations(&mut self, count: u64, typical_ns: u64) -> Distribution {
        let mut buckets = Vec::new();
        let mut exact = Exact {
            min_ns: u64::MAX,
            ..Exact::default()
        };
        for _ in 0..count {
            let scale = typical_ns << (self.roll() | self.roll()).trailing_ones().min(5);
            let sample = scale / 2 + self.roll() % scale;
            buckets.push((bucket::index(sample), 1));
            exact.count += 1;
            exact.sum_ns += sample;
            exact.min_ns = exact.min_ns.min(sample);
            exact.max_ns = exact.max_ns.max(sample);
        }
        Distribution::from_buckets(exact, buckets)
    }

    /// A lock that was taken some times, of which some had to wait.
    pub(crate) fn cell(&mut self, taken: [u64; 2], wait_ns: u64, hold_ns: u64) -> Cell {
        let [acquisitions, contended] = taken;
        Cell {
            acquisitions,
            contended,
            releases: acquisitions,
            wait: self.durations(contended, wait_ns),
            hold: self.durations(acquisitions, hold_ns),
            ..Cell::default()
        }
    }

    fn op(&mut self, count: u64, typical_ns: u64) -> OpCell {
        OpCell {
            count,
            latency: self.durations(count, typical_ns),
        }
    }
}

pub(crate) fn key(lock: Lock, mode: Mode, intent: Intent, op: Op) -> CellKey {
    CellKey {
        lock,
        mode,
        intent,
        op,
    }
}

/// The key of a spinlock or a mutex.
pub(crate) fn exclusive(lock: Lock, intent: Intent, op: Op) -> CellKey {
    key(lock, Mode::Exclusive, intent, op)
}

/// A kernel with one spinlock for all, on a machine with eight CPUs.
pub(crate) fn header() -> Header {
    Header {
        tool_version: "0.1.0".into(),
        kernel: KernelName {
            release: "6.8.0-45-generic".into(),
            version: "#45-Ubuntu SMP PREEMPT_DYNAMIC Fri Aug 30 12:02:04 UTC 2024".into(),
            era: "spinlock-iter".into(),
        },
        host: host(),
        level: Level::Full,
        hooks: "fentry".into(),
        coverage: Coverage {
            waits: WaitCoverage::All,
            holds: HoldCoverage::All,
            missing: Vec::new(),
        },
        kinds: [
            (Lock::VmapArea, Kind::Spinlock),
            (Lock::FreeVmapArea, Kind::Spinlock),
            (Lock::PurgeVmapArea, Kind::Spinlock),
            (Lock::VmapPurge, Kind::Mutex),
            (Lock::VmapBlock, Kind::Spinlock),
            (Lock::Kclist, Kind::Rwsem),
        ]
        .into(),
        without_waits: Vec::new(),
        without_holds: Vec::new(),
        inside: false,
        pass: None,
        contexts: Vec::new(),
        stacks: false,
        command: ["kcore-trace", "stress", "--maps", "4", "--kcore", "2"]
            .map(String::from)
            .to_vec(),
        started_at: "2026-11-22T22:50:00Z".into(),
        interval_ns: SECOND_NS,
    }
}

fn host() -> Host {
    Host {
        cpu_model: "Example CPU @ 3.00GHz".into(),
        cpus_online: Some(8),
        cpus_possible: Some(8),
        nodes: Some(1),
        memory_bytes: Some(16 << 30),
        virtualisation: "kvm".into(),
        clocksource: "kvm-clock".into(),
        spinlocks: "pv".into(),
        ..Host::default()
    }
}

/// A reader faults under the lock of /proc/kcore, and a purge is preempted.
fn inside() -> BTreeMap<CellKey, Inside> {
    BTreeMap::from([
        (
            key(Lock::Kclist, Mode::Shared, Intent::Read, Op::Vread),
            Inside {
                faults: 22,
                fault_ns: 31_000,
                ..Inside::default()
            },
        ),
        (
            exclusive(Lock::VmapPurge, Intent::Write, Op::Purge),
            Inside {
                switches: 3,
                preemptions: 2,
                off_cpu_ns: 4_100_000,
                ..Inside::default()
            },
        ),
    ])
}

/// A crash utility, and someone for whom there was no room.
fn readers() -> BTreeMap<ReaderKey, Reader> {
    let crash = Process {
        pid: 4711,
        comm: "crash".into(),
        cgroup: Some("/user.slice".into()),
    };
    let reader = |file, process| ReaderKey { file, process };
    BTreeMap::from([
        (
            reader(Source::Kcore, Some(crash)),
            Reader {
                reads: 310,
                bytes: 310 * 4096,
                read_ns: 133_000_000,
                waits: 55,
                wait_ns: 72_000,
                holds: 330,
                hold_ns: 127_000_000,
                inflicted_waits: 640,
                inflicted_ns: 3_100_000,
            },
        ),
        (
            reader(Source::Vmallocinfo, None),
            Reader {
                reads: 2,
                bytes: 9000,
                read_ns: 800_000,
                ..Reader::default()
            },
        ),
    ])
}

/// A recorder that looked inside holds and at readers.
pub(crate) fn looking_header() -> Header {
    Header {
        inside: true,
        pass: Some("vread_iter".into()),
        ..header()
    }
}

/// A recorder that also looked at contexts.
pub(crate) fn auditing_header() -> Header {
    use Context::{Hardirq, Nmi, PreemptionOff, Rcu, Softirq, SoftirqsOff, Spinlock};
    Header {
        contexts: vec![
            Softirq,
            Hardirq,
            Nmi,
            SoftirqsOff,
            PreemptionOff,
            Rcu,
            Spinlock,
        ],
        stacks: true,
        ..looking_header()
    }
}

/// What it saw beside [`looked`]: a block's lock in an RCU read section, a look-up with preemption
/// off, a trylock in an interrupt, and a free that was put off.
pub(crate) fn audited(seed: u64) -> Measured {
    let row = |lock, op, site: &str, contexts: &[Context], count| {
        let key = AuditKey {
            lock,
            mode: Mode::Exclusive,
            tries: site.starts_with("vmalloc_dump_obj"),
            op,
            site: (!site.is_empty()).then(|| site.into()),
            contexts: contexts.to_vec(),
        };
        let frames = [
            "_raw_spin_lock+0x13/",
            site,
            "vm_map_ram+0x84",
            "work+0x2b [vmap_ram]",
        ];
        let frames = frames.map(|frame| frame.trim_end_matches('/').to_owned());
        let stack = match contexts {
            [Context::Rcu, ..] => frames.to_vec(),
            _ => Vec::new(),
        };
        (key, Audit { count, stack })
    };
    use Context::{Hardirq, PreemptionOff, Rcu, Softirq};
    let index = Some(Lock::VmapArea);
    Measured {
        audit: BTreeMap::from([
            row(
                Some(Lock::VmapBlock),
                Op::MapRam,
                "vb_alloc+0x57",
                &[Rcu],
                1000,
            ),
            row(
                Some(Lock::VmapBlock),
                Op::UnmapRam,
                "vb_free+0x91",
                &[],
                1000,
            ),
            row(index, Op::Alloc, "alloc_vmap_area+0x7aa", &[], 4100),
            row(index, Op::Find, "find_vmap_area+0x1d", &[], 12),
            row(
                index,
                Op::Find,
                "find_vmap_area+0x1d",
                &[PreemptionOff],
                100,
            ),
            row(index, Op::Find, "vmalloc_dump_obj+0x28", &[Softirq], 3),
            row(
                Some(Lock::FreeVmapArea),
                Op::Alloc,
                "alloc_vmap_area+0x152",
                &[],
                4100,
            ),
            row(
                Some(Lock::PurgeVmapArea),
                Op::Vmallocinfo,
                "s_show+0x13f",
                &[Context::Spinlock],
                40,
            ),
            row(Some(Lock::Kclist), Op::Vread, "read_kcore+0x4c", &[], 310),
            row(None, Op::MapRam, "", &[Softirq], 7),
            row(None, Op::Free, "vfree", &[Hardirq], 10),
            row(None, Op::Free, "vfree_atomic", &[], 5),
        ]),
        ..looked(seed)
    }
}

/// An allocator waited for a reader, and a purge for someone unknown.
fn worst(seed: u64) -> Vec<WorstWait> {
    let task = |pid, comm: Option<&str>| Task {
        pid,
        tid: pid,
        comm: comm.map(String::from),
    };
    let allocator = WorstWait {
        wait_ns: 12_900_000 + seed,
        slept_ns: 0,
        ended_ns: 400_000_000,
        key: exclusive(Lock::VmapArea, Intent::Write, Op::Alloc),
        waiter: task(77, Some("modprobe")),
        holder: Some(Purpose {
            intent: Intent::Read,
            op: Op::Vread,
        }),
        holder_task: Some(task(4711, Some("crash"))),
        stack: [
            "_raw_spin_lock+0x21",
            "alloc_vmap_area+0x7aa",
            "load_module+0x3c",
        ]
        .map(String::from)
        .to_vec(),
        holder_stack: ["_raw_spin_unlock+0x5", "vread+0x218", "read_kcore+0x31c"]
            .map(String::from)
            .to_vec(),
    };
    let purge = WorstWait {
        wait_ns: 900_000,
        slept_ns: 850_000,
        ended_ns: 700_000_000,
        key: exclusive(Lock::VmapPurge, Intent::Write, Op::Purge),
        waiter: task(9, Some("kworker/1:2")),
        holder: None,
        holder_task: None,
        stack: Vec::new(),
        holder_stack: Vec::new(),
    };
    let gone = WorstWait {
        wait_ns: 700_000,
        holder_task: Some(task(4712, None)),
        ..allocator.clone()
    };
    vec![allocator, purge, gone]
}

/// What it saw beside [`busy`].
pub(crate) fn looked(seed: u64) -> Measured {
    Measured {
        inside: inside(),
        copies: BTreeMap::from([(
            Destination::Ubuf,
            Copies {
                reads: 310,
                bytes: 310 * 4096,
                passes: 330,
                pass_bytes: 310 * 4096,
                short_passes: 20,
                fault_ins: 20,
                faults: 22,
                fault_ns: 31_000,
            },
        )]),
        readers: readers(),
        worst: worst(seed),
        ..busy(seed)
    }
}

/// One second of allocating, freeing and reading.
pub(crate) fn busy(seed: u64) -> Measured {
    use Intent::{Read, Write};
    let mut dice = Dice::new(seed);
    Measured {
        cells: BTreeMap::from([
            (
                exclusive(Lock::VmapArea, Write, Op::Alloc),
                dice.cell([4100, 610], 900, 240),
            ),
            (
                exclusive(Lock::VmapArea, Read, Op::Free),
                dice.cell([4080, 402], 1100, 190),
            ),
            (
                exclusive(Lock::VmapArea, Read, Op::Vread),
                dice.cell([310, 55], 1300, 410_000),
            ),
            (
                exclusive(Lock::FreeVmapArea, Write, Op::Alloc),
                dice.cell([4100, 77], 350, 310),
            ),
            (
                exclusive(Lock::FreeVmapArea, Write, Op::Purge),
                dice.cell([9, 4], 500, 41_000),
            ),
            (
                exclusive(Lock::PurgeVmapArea, Write, Op::Free),
                dice.cell([4080, 12], 150, 70),
            ),
            (
                exclusive(Lock::VmapPurge, Write, Op::Purge),
                dice.cell([9, 0], 1, 900_000),
            ),
            (
                key(Lock::Kclist, Mode::Shared, Read, Op::Vread),
                dice.cell([310, 0], 1, 450_000),
            ),
        ]),
        ops: BTreeMap::from([
            (Op::Alloc, dice.op(4100, 2_900)),
            (Op::Free, dice.op(4080, 1_700)),
            (Op::Vread, dice.op(310, 430_000)),
            (Op::Purge, dice.op(9, 1_100_000)),
        ]),
        ..Measured::default()
    }
}

/// What nodes have of a cell, in parts of these weights; the last gets what is left.
pub(crate) fn spread(cell: &Cell, weights: &[u64]) -> Nodes {
    let all: u64 = weights.iter().sum();
    let column = |number: u64| {
        let mut column: Vec<_> = weights.iter().map(|part| number * part / all).collect();
        let rest = number - column.iter().sum::<u64>();
        if let Some(last) = column.last_mut() {
            *last += rest;
        }
        column
    };
    Nodes {
        acquisitions: column(cell.acquisitions),
        contended: column(cell.contended),
        wait_sum_ns: column(cell.wait.sum_ns()),
    }
}

/// A kernel with four nodes.
pub(crate) fn per_node_header() -> Header {
    let mut header = header();
    header.kernel.release = "6.12.9-amd64".into();
    header.kernel.era = "per-node".into();
    header.kinds.remove(&Lock::VmapArea);
    header.kinds.remove(&Lock::PurgeVmapArea);
    header.kinds.insert(Lock::NodeBusy, Kind::Spinlock);
    header.kinds.insert(Lock::NodeLazy, Kind::Spinlock);
    header
}

/// One second of [`busy`] on four nodes, of which one is used most and one not at all.
pub(crate) fn per_node(seed: u64) -> Measured {
    let mut measured = busy(seed);
    let renamed = std::mem::take(&mut measured.cells).into_iter();
    for (mut key, cell) in renamed {
        key.lock = match key.lock {
            Lock::VmapArea => Lock::NodeBusy,
            Lock::PurgeVmapArea => Lock::NodeLazy,
            other => other,
        };
        if matches!(key.lock, Lock::NodeBusy | Lock::NodeLazy) {
            let nodes = spread(&cell, &[5, 1, 0, 2]);
            let earlier = Measured {
                nodes: [(key.lock, nodes)].into(),
                blame: blame(&key, &cell),
                ..Measured::default()
            };
            measured.add(&earlier);
        }
        measured.cells.insert(key, cell);
    }
    measured
}

/// Of three waits two were for a reader of /proc/kcore, if the lock is one that it takes, the others
/// for a writer.
fn blame(key: &CellKey, cell: &Cell) -> BTreeMap<BlameKey, Blame> {
    let holder = |intent, op| Some(Purpose { intent, op });
    let by_reader = match key.lock {
        Lock::NodeBusy => cell.contended * 2 / 3,
        _ => 0,
    };
    let by_writer = cell.contended - by_reader;
    let holders = [
        (by_reader, holder(Intent::Read, Op::Vread)),
        (by_writer, holder(Intent::Write, Op::Alloc)),
    ];
    let met = holders.into_iter().filter(|(waits, _)| *waits > 0);
    let met = met.map(|(waits, holder)| {
        let key = BlameKey {
            lock: key.lock,
            waiter: Purpose {
                intent: key.intent,
                op: key.op,
            },
            holder,
        };
        let wait_sum_ns = cell.wait.sum_ns() / cell.contended * waits;
        (key, Blame { waits, wait_sum_ns })
    });
    met.collect()
}

/// The interval with a number, of a second each.
pub(crate) fn interval(index: u64, measured: Measured) -> Interval {
    Interval {
        start_ns: index * SECOND_NS,
        end_ns: (index + 1) * SECOND_NS,
        measured,
    }
}

/// The sum of some intervals.
pub(crate) fn sum(intervals: &[Interval]) -> Measured {
    let mut total = Measured::default();
    for interval in intervals {
        total.add(&interval.measured);
    }
    total
}

/// A kernel where only the tracepoints of lock contention could be had.
pub(crate) fn degraded_header() -> Header {
    Header {
        hooks: "tracepoint".into(),
        coverage: Coverage {
            waits: WaitCoverage::Tracepoint,
            holds: HoldCoverage::None,
            missing: [
                (
                    "_raw_spin_lock",
                    "the kernel has no BTF and kprobes are off",
                ),
                ("vread_iter", "there is no function of that name"),
            ]
            .map(|(hook, reason)| Missing {
                hook: hook.into(),
                reason: reason.into(),
            })
            .to_vec(),
        },
        command: Vec::new(),
        ..header()
    }
}

/// What tracepoints show of [`busy`]: waits and counts of ops, some of them lost.
pub(crate) fn degraded(seed: u64) -> Measured {
    let mut measured = busy(seed);
    for cell in measured.cells.values_mut() {
        (cell.acquisitions, cell.releases) = (0, 0);
        cell.hold = Distribution::default();
    }
    for op in measured.ops.values_mut() {
        op.latency = Distribution::default();
    }
    measured.loss = Loss {
        recursion_misses: 3,
        map_full: 17,
        unknown_sites: 1_204,
        in_flight_waits: 1,
        ..Loss::default()
    };
    measured
}

/// One second in which nobody had to wait.
pub(crate) fn calm(seed: u64) -> Measured {
    let mut measured = busy(seed);
    for cell in measured.cells.values_mut() {
        cell.contended = 0;
        cell.wait = Distribution::default();
    }
    measured
}
