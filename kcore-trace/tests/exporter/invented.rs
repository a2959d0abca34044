//! Measurements that never happened: plans from the facts of the lab's kernels, and intervals.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use kcore_trace::distribution::{Distribution, Exact};
use kcore_trace::exporter::Exporter;
use kcore_trace::host::Host;
use kcore_trace::kernel::Facts;
use kcore_trace::loader::ProgramCost;
use kcore_trace::model::{
    Blame, BlameKey, Cell, CellKey, Copies, Header, Inside, Interval, KernelName, Level, Loss,
    Measured, Nodes, OpCell, Process, Purpose, Reader, ReaderKey,
};
use kcore_trace::plan::{Plan, Request};
use kcore_trace::sampling::{Overhead, Sample};
use kcore_trace_ebpf::bucket;
use kcore_trace_ebpf::layout::node;
use kcore_trace_ebpf::words::{Destination, Intent, Lock, Mode, Op, Source, cell};

pub(crate) const ANY_PORT: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);
pub(crate) const SECOND_NS: u64 = 1_000_000_000;
pub(crate) const CPUS: u32 = 256;
/// The most that a kernel has (`vmap_init_nodes`, 6.9 to 7.3).
pub(crate) const NODES: u64 = 128;

pub(crate) fn plan(kernel: &str, level: Level) -> (Facts, Plan) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/plans");
    let text = std::fs::read_to_string(folder.join(format!("{kernel}.facts.json"))).unwrap();
    let facts = serde_json::from_str(&text).unwrap();
    let request = Request {
        level,
        ..Request::default()
    };
    let plan = Plan::choose(&facts, &request).unwrap();
    (facts, plan)
}

pub(crate) fn header(facts: &Facts, plan: &Plan) -> Header {
    Header {
        tool_version: "0.1.0".into(),
        kernel: KernelName {
            release: facts.release.clone(),
            version: facts.version.clone(),
            era: plan.era.name().into(),
        },
        host: Host {
            cpus_online: Some(CPUS),
            ..Host::default()
        },
        level: plan.level,
        hooks: plan.hooks.name().into(),
        coverage: plan.coverage.clone(),
        kinds: plan.kinds(),
        without_waits: plan.without_waits(),
        without_holds: plan.without_holds(),
        inside: plan.sees_inside(),
        pass: plan.pass().map(String::from),
        contexts: Vec::new(),
        stacks: false,
        command: Vec::new(),
        started_at: "2026-11-22T22:50:00Z".into(),
        interval_ns: SECOND_NS,
    }
}

/// An exporter that knows what is measured, and has no interval yet.
pub(crate) fn exporter(kernel: &str, level: Level) -> Exporter {
    let exporter = Exporter::start(ANY_PORT).unwrap();
    let (facts, plan) = plan(kernel, level);
    exporter.describe(&header(&facts, &plan), &plan);
    exporter
}

pub(crate) const WAITED: CellKey = CellKey {
    lock: Lock::NodeBusy,
    mode: Mode::Exclusive,
    intent: Intent::Write,
    op: Op::Alloc,
};

/// So many samples of each of these durations.
pub(crate) fn durations(samples: &[(u64, u64)]) -> Distribution {
    let buckets = samples
        .iter()
        .map(|&(ns, count)| (bucket::index(ns), count));
    let mut exact = Exact {
        min_ns: u64::MAX,
        ..Exact::default()
    };
    for &(ns, count) in samples {
        exact.count += count;
        exact.sum_ns += ns * count;
        exact.min_ns = exact.min_ns.min(ns);
        exact.max_ns = exact.max_ns.max(ns);
    }
    Distribution::from_buckets(exact, buckets)
}

/// A cell with these waits, and as many holds.
pub(crate) fn cell_of(waits: &[(u64, u64)]) -> Cell {
    let wait = durations(waits);
    Cell {
        acquisitions: 2 * wait.count(),
        contended: wait.count(),
        releases: wait.count(),
        hold: wait.clone(),
        wait,
        ..Cell::default()
    }
}

pub(crate) fn sample(second: u64, measured: Measured) -> Sample {
    Sample {
        interval: Interval {
            start_ns: second * SECOND_NS,
            end_ns: (second + 1) * SECOND_NS,
            measured,
        },
        level: Some(Level::Full),
        overhead: Some(OVERHEAD),
        snapshot: Duration::from_millis(1),
        programs: vec![ProgramCost {
            name: "spinslow_fx".into(),
            runs: 10 * (second + 1),
            run_ns: 1000 * (second + 1),
            recursion_misses: 0,
        }],
    }
}

/// What it costs.
pub(crate) const OVERHEAD: Overhead = Overhead {
    programs: 0.004,
    hooks: 0.002,
    process: 0.001,
};

/// An interval with waits in one cell.
pub(crate) fn waits(second: u64, waits: &[(u64, u64)]) -> Sample {
    sample(
        second,
        Measured {
            cells: [(WAITED, cell_of(waits))].into(),
            ..Measured::default()
        },
    )
}

/// Nodes of which each has one acquisition more than the one before, half of them contended.
pub(crate) fn nodes(count: u64) -> Nodes {
    let acquisitions: Vec<_> = (0..count).map(|node| 2 * (node + 1)).collect();
    let contended: Vec<_> = acquisitions.iter().map(|number| number / 2).collect();
    Nodes {
        wait_sum_ns: contended.iter().map(|number| number * SECOND_NS).collect(),
        acquisitions,
        contended,
    }
}

/// Everybody waits once for everybody and for somebody unknown, at the locks of one kernel.
fn blame() -> BTreeMap<BlameKey, Blame> {
    let purposes = || {
        let ops = Op::ALL.iter().copied();
        ops.flat_map(|op| [Intent::Read, Intent::Write].map(|intent| Purpose { intent, op }))
    };
    let locks = Lock::ALL.iter().copied();
    let locks = locks.filter(|lock| !matches!(lock, Lock::VmapArea | Lock::PurgeVmapArea));
    let met = Blame {
        waits: 1,
        wait_sum_ns: 1_000,
    };
    let keys = locks.flat_map(|lock| {
        purposes().flat_map(move |waiter| {
            let holders = purposes().map(Some).chain([None]);
            holders.map(move |holder| BlameKey {
                lock,
                waiter,
                holder,
            })
        })
    });
    keys.map(|key| (key, met)).collect()
}

const INSIDE: Inside = Inside {
    faults: 1,
    fault_ns: 2,
    switches: 3,
    preemptions: 4,
    off_cpu_ns: 5,
    sleeps: 6,
    sleep_ns: 7,
    joined: 8,
};

const COPIES: Copies = Copies {
    reads: 1,
    bytes: 2,
    passes: 3,
    pass_bytes: 4,
    short_passes: 5,
    fault_ins: 6,
    faults: 7,
    fault_ns: 8,
};

fn keys() -> impl Iterator<Item = CellKey> {
    (0..cell::COUNT).map(|index| {
        let (lock, mode, intent, op) = cell::words(index).unwrap();
        CellKey {
            lock,
            mode,
            intent,
            op,
        }
    })
}

/// More processes read both files than an exporter has names for.
fn readers() -> BTreeMap<ReaderKey, Reader> {
    let process = |pid| Process {
        pid,
        comm: format!("reader-{pid}"),
        cgroup: None,
    };
    let files = Source::ALL.iter().copied();
    let keys = files.flat_map(|file| {
        (1..=200).map(move |pid| ReaderKey {
            file,
            process: Some(process(pid)),
        })
    });
    let read = Reader {
        reads: 1,
        bytes: 4096,
        inflicted_waits: 2,
        inflicted_ns: SECOND_NS,
        ..Reader::default()
    };
    keys.map(|key| (key, read)).collect()
}

/// An interval in which everything happens that there are words for, in long and short.
pub(crate) fn everything(second: u64) -> Sample {
    let spread: Vec<_> = (0..36).map(|power| (3 << power >> 1, 5)).collect();
    let cells = keys().map(|key| {
        let cell = Cell {
            aborted: 1,
            aborted_wait_ns: 2_000_000_000,
            try_failed: 1,
            ..cell_of(&spread)
        };
        (key, cell)
    });
    let ops = Op::ALL.iter().map(|op| {
        let latency = durations(&spread);
        let count = latency.count();
        (*op, OpCell { count, latency })
    });
    let measured = Measured {
        cells: cells.collect(),
        ops: ops.collect(),
        nodes: node::LOCKS.map(|lock| (lock, nodes(NODES))).into(),
        blame: blame(),
        inside: keys().map(|key| (key, INSIDE)).collect(),
        copies: Destination::ALL.iter().map(|to| (*to, COPIES)).collect(),
        readers: readers(),
        worst: Vec::new(),
        audit: BTreeMap::new(),
        loss: Loss {
            recursion_misses: 1,
            map_full: 2,
            unnamed_reads: 9,
            unlisted_waits: 10,
            unaudited: 0,
            unmatched_releases: 3,
            unmatched_acquisitions: 4,
            unknown_sites: 5,
            unfinished_ops: 6,
            in_flight_waits: 7,
            in_flight_holds: 8,
        },
    };
    sample(second, measured)
}
