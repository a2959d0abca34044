//! The metrics, and how they are written for a scraper.
//!
//! Owns the table of metric families: name, unit, help, and where the numbers come from. In: the
//! [`State`]. Out: the text format of Prometheus, OpenMetrics, or Prometheus's protobuf, which is
//! the one that carries native histograms.
//!
//! Invariant: base units; names and labels never depend on what was measured, so that a dashboard
//! written for one kernel finds its series on another; what was not measured has no series.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, UNIX_EPOCH};

use kcore_trace_ebpf::words::{Kind, Lock};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, NativeHistogram, NativeHistogramBuckets, NoLabelSet, prometheus_protobuf,
    prometheus_text, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::buckets;
use super::process::Process;
use super::state::{State, Subject};
use super::totals::{CellTotal, Series, Totals};
use crate::host::UNKNOWN;
use crate::model::{Blame, BlameKey, CellKey, Copies, Inside, Level, Nodes, Reader};

/// What stands before the name of every metric that is this tool's own.
const PREFIX: &str = "kcore_trace";

/// The name of all readers that have none of their own.
const OTHERS: &str = "(others)";

/// The level while nothing is measured.
const OFF: &str = "off";

/// How a scraper wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Text,
    OpenMetrics,
    /// With native histograms.
    Protobuf,
}

impl Format {
    pub(crate) const fn content_type(self) -> &'static str {
        match self {
            Self::Text => prometheus_text::CONTENT_TYPE,
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Protobuf => {
                "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
            }
        }
    }
}

/// What a scrape writes.
#[derive(Debug)]
pub(crate) struct Exposition {
    registry: Registry,
    state: Arc<Mutex<State>>,
}

impl Exposition {
    pub(crate) fn new(state: Arc<Mutex<State>>) -> Self {
        let mut registry = Registry::default();
        registry
            .sub_registry_with_prefix(PREFIX)
            .register_collector(Box::new(Own(Arc::clone(&state))));
        registry.register_collector(Box::new(Process));
        Self { registry, state }
    }

    /// A scrape, which is counted.
    pub(crate) fn scrape(&self, format: Format) -> Result<Vec<u8>, String> {
        let begun = Instant::now();
        let body = self.encode(format)?;
        let mut state = lock(&self.state);
        let traffic = &mut state.traffic;
        traffic.encoding_time += begun.elapsed();
        *match format {
            Format::Text => &mut traffic.text,
            Format::OpenMetrics => &mut traffic.openmetrics,
            Format::Protobuf => &mut traffic.protobuf,
        } += 1;
        Ok(body)
    }

    fn encode(&self, format: Format) -> Result<Vec<u8>, String> {
        let as_text = |write: fn(&mut String, &Registry) -> fmt::Result| {
            let mut body = String::new();
            write(&mut body, &self.registry).map_err(|error| error.to_string())?;
            Ok(body.into_bytes())
        };
        match format {
            Format::Text => as_text(prometheus_text::encode),
            Format::OpenMetrics => as_text(text::encode),
            Format::Protobuf => prometheus_protobuf::encode_to_vec(&self.registry)
                .map_err(|error| error.to_string()),
        }
    }
}

/// Measuring and scrapes both hold it for a moment only; none of them leaves it half written.
pub(crate) fn lock(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The units that occur.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Base {
    Seconds,
    Bytes,
}

/// A metric family.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Family {
    pub(crate) name: &'static str,
    pub(crate) unit: Option<Base>,
    pub(crate) kind: MetricType,
    pub(crate) help: &'static str,
}

const fn counter(name: &'static str, help: &'static str) -> Family {
    Family {
        name,
        unit: None,
        kind: MetricType::Counter,
        help,
    }
}

const fn gauge(name: &'static str, help: &'static str) -> Family {
    Family {
        kind: MetricType::Gauge,
        ..counter(name, help)
    }
}

const fn info(name: &'static str, help: &'static str) -> Family {
    Family {
        kind: MetricType::Info,
        ..counter(name, help)
    }
}

const fn seconds(family: Family) -> Family {
    Family {
        unit: Some(Base::Seconds),
        ..family
    }
}

const fn histogram(name: &'static str, help: &'static str) -> Family {
    seconds(Family {
        kind: MetricType::Histogram,
        ..counter(name, help)
    })
}

/// The value of one series.
pub(crate) enum Value<'a> {
    Whole(u64),
    Real(f64),
    Histogram(&'a Series),
    Info,
}

type Labels<'a> = Vec<(&'static str, &'a str)>;
type Samples<'a> = Vec<(Labels<'a>, Value<'a>)>;

/// A family and where its series come from.
struct Row {
    family: Family,
    samples: fn(&State) -> Samples<'_>,
}

/// All families, in the order in which they are written.
static ROWS: &[Row] = &[
    Row {
        family: info("build", "The version of kcore-trace"),
        samples: |_| vec![(vec![("version", env!("CARGO_PKG_VERSION"))], Value::Info)],
    },
    Row {
        family: info(
            "kernel",
            "The kernel that is measured; era is the group of kernels that lock vmalloc alike",
        ),
        samples: |state| state.subject.iter().map(kernel).collect(),
    },
    Row {
        family: info(
            "coverage",
            "Which waits and holds are seen, at which level, by which kind of hook",
        ),
        samples: |state| state.subject.iter().map(coverage).collect(),
    },
    Row {
        family: gauge(
            "level",
            "1 for the level that is measured now: full, contended, or off",
        ),
        samples: |state| {
            let Some(subject) = &state.subject else {
                return vec![];
            };
            let now = subject.level.map_or(OFF, Level::name);
            let levels = [Level::Full.name(), Level::Contended.name(), OFF];
            let one = |level| (vec![("level", level)], Value::Whole((level == now).into()));
            levels.map(one).into()
        },
    },
    Row {
        family: counter(
            "level_changes",
            "Times the guard changed the level, to keep within what measuring may cost",
        ),
        samples: |state| {
            let subjects = state.subject.iter();
            subjects
                .map(|subject| (vec![], Value::Whole(subject.steps)))
                .collect()
        },
    },
    Row {
        family: gauge(
            "overhead_ratio",
            "What measuring takes of the time of all CPUs, where a limit is set: the programs, the \
             hooks that lead to them (estimated by their number), and this process",
        ),
        samples: |state| {
            let Some(overhead) = state.cost.overhead else {
                return vec![];
            };
            let parts = [
                ("programs", overhead.programs),
                ("hooks", overhead.hooks),
                ("process", overhead.process),
            ];
            let part = |(part, share)| (vec![("part", part)], Value::Real(share));
            parts.map(part).into()
        },
    },
    Row {
        family: gauge(
            "cpus_online",
            "CPUs that run, to tell a share of their time",
        ),
        samples: |state| {
            let cpus = state.subject.iter().flat_map(|s| s.header.host.cpus_online);
            cpus.map(|cpus| (vec![], Value::Whole(cpus.into())))
                .collect()
        },
    },
    Row {
        family: gauge(
            "hooks",
            "Hooks that are attached, and what is missing of the plan",
        ),
        samples: |state| {
            let Some(subject) = &state.subject else {
                return vec![];
            };
            let states = [
                ("attached", subject.hooks.len()),
                ("missing", subject.header.coverage.missing.len()),
            ];
            let sample = |(word, count)| (vec![("state", word)], Value::Whole(count as u64));
            states.map(sample).into()
        },
    },
    Row {
        family: info("hook", "A hook that is attached"),
        samples: |state| {
            let hooks = state.subject.iter().flat_map(|subject| &subject.hooks);
            let labels = hooks.map(|hook| {
                vec![
                    ("hook", &*hook.target),
                    ("attach", hook.attach.name()),
                    ("program", &*hook.program),
                    ("purpose", &*hook.purpose),
                ]
            });
            labels.map(|labels| (labels, Value::Info)).collect()
        },
    },
    Row {
        family: info(
            "hook_missing",
            "A hook, lock or operation that is not seen, and why",
        ),
        samples: |state| {
            let subjects = state.subject.iter();
            let missing = subjects.flat_map(|subject| &subject.header.coverage.missing);
            let labels =
                missing.map(|missing| vec![("hook", &*missing.hook), ("reason", &*missing.reason)]);
            labels.map(|labels| (labels, Value::Info)).collect()
        },
    },
    Row {
        family: histogram(
            "wait",
            "Waits of contended acquisitions, from the call to ownership",
        ),
        samples: |state| of_waits(state, |_, total| Some(Value::Histogram(&total.wait))),
    },
    Row {
        family: histogram(
            "hold",
            "Holds, from ownership to the call of the release function",
        ),
        samples: |state| {
            of_cells(state, |_, _, total| {
                total.hold.as_ref().map(Value::Histogram)
            })
        },
    },
    Row {
        family: counter("acquisitions", "Times a lock was taken, contended or not"),
        samples: |state| {
            let seen = state.sees_every_acquisition();
            of_cells(state, |_, _, total| {
                seen.then_some(Value::Whole(total.acquisitions))
            })
        },
    },
    Row {
        family: counter(
            "contended_acquisitions",
            "Acquisitions that entered the slow path and got the lock",
        ),
        samples: |state| of_waits(state, |_, total| Some(Value::Whole(total.contended))),
    },
    Row {
        family: counter(
            "aborted_waits",
            "Waits that ended without the lock: killed or interrupted",
        ),
        samples: |state| {
            of_waits(state, |sleeps, total| {
                (sleeps || total.aborted > 0).then_some(Value::Whole(total.aborted))
            })
        },
    },
    Row {
        family: seconds(counter(
            "aborted_wait",
            "Time spent in waits that ended without the lock",
        )),
        samples: |state| {
            of_waits(state, |sleeps, total| {
                let seen = sleeps || total.aborted > 0;
                seen.then_some(Value::Real(total.aborted_wait_ns as f64 / 1e9))
            })
        },
    },
    Row {
        family: counter(
            "failed_trylocks",
            "Attempts that did not wait and did not get the lock",
        ),
        samples: |state| {
            of_cells(state, |_, _, total| {
                (total.try_failed > 0).then_some(Value::Whole(total.try_failed))
            })
        },
    },
    Row {
        family: counter(
            "node_acquisitions",
            "Times the lock of a node was taken, contended or not",
        ),
        samples: |state| {
            if !state.sees_every_acquisition() {
                return vec![];
            }
            of_nodes(
                state,
                |_| true,
                |nodes, node| Value::Whole(nodes.acquisitions[node]),
            )
        },
    },
    Row {
        family: counter(
            "node_contended_acquisitions",
            "Acquisitions of the lock of a node that entered the slow path and got it",
        ),
        samples: |state| {
            let seen = |lock| state.totals.sees_waits(lock);
            of_nodes(state, seen, |nodes, node| {
                Value::Whole(nodes.contended[node])
            })
        },
    },
    Row {
        family: seconds(counter(
            "node_wait",
            "Time waited for the lock of a node, of waits that ended with it",
        )),
        samples: |state| {
            let seen = |lock| state.totals.sees_waits(lock);
            of_nodes(state, seen, |nodes, node| {
                Value::Real(nodes.wait_sum_ns[node] as f64 / 1e9)
            })
        },
    },
    Row {
        family: counter(
            "blamed_waits",
            "Waits by what the holder was doing when the wait began; only at level full",
        ),
        samples: |state| of_blame(state, |blame| Value::Whole(blame.waits)),
    },
    Row {
        family: seconds(counter(
            "blamed_wait",
            "Time waited by what the holder was doing when the wait began; only at level full",
        )),
        samples: |state| of_blame(state, |blame| Value::Real(blame.wait_sum_ns as f64 / 1e9)),
    },
    Row {
        family: counter(
            "hold_page_faults",
            "Page faults that were served while a lock was held that holders may sleep with",
        ),
        samples: |state| of_sleeping(state, |_, inside| Some(Value::Whole(inside.faults))),
    },
    Row {
        family: seconds(counter(
            "hold_page_fault",
            "Time of page faults that were served while a lock was held",
        )),
        samples: |state| {
            of_sleeping(state, |_, inside| {
                Some(Value::Real(seconds_of(inside.fault_ns)))
            })
        },
    },
    Row {
        family: seconds(counter(
            "hold_off_cpu",
            "Time that holders of a lock were off their CPU",
        )),
        samples: |state| {
            of_sleeping(state, |_, inside| {
                Some(Value::Real(seconds_of(inside.off_cpu_ns)))
            })
        },
    },
    Row {
        family: counter(
            "hold_preemptions",
            "Times that the holder of a lock was preempted",
        ),
        samples: |state| of_sleeping(state, |_, inside| Some(Value::Whole(inside.preemptions))),
    },
    Row {
        family: seconds(counter(
            "wait_sleep",
            "Time that waiters for a lock were off their CPU; the rest of their waits they spun",
        )),
        samples: |state| {
            of_sleeping(state, |key, inside| {
                let seen = state.totals.sees_waits(key.lock);
                seen.then(|| Value::Real(seconds_of(inside.sleep_ns)))
            })
        },
    },
    Row {
        family: counter(
            "kcore_reads",
            "Reads of /proc/kcore, by where they copied to; only at level full",
        ),
        samples: |state| of_copies(state, |copies| copies.reads),
    },
    Row {
        family: counter(
            "kcore_read_bytes",
            "Bytes that reads of /proc/kcore returned; only at level full",
        ),
        samples: |state| of_copies(state, |copies| copies.bytes),
    },
    Row {
        family: counter(
            "kcore_passes",
            "Times that a read of /proc/kcore went over vmalloc memory",
        ),
        samples: |state| of_copies(state, |copies| copies.passes),
    },
    Row {
        family: counter(
            "kcore_short_passes",
            "Those that stopped short, so that the rest was tried again",
        ),
        samples: |state| of_copies(state, |copies| copies.short_passes),
    },
    Row {
        family: counter(
            "kcore_page_faults",
            "Page faults that were served in reads of /proc/kcore, with and without a vmap lock",
        ),
        samples: |state| of_copies(state, |copies| copies.faults),
    },
    Row {
        family: counter(
            "reader_reads",
            "Reads of /proc/kcore and /proc/vmallocinfo by name of the process; only at level full",
        ),
        samples: |state| of_readers(state, |reader| Value::Whole(reader.reads)),
    },
    Row {
        family: counter("reader_bytes", "Bytes that they read"),
        samples: |state| of_readers(state, |reader| Value::Whole(reader.bytes)),
    },
    Row {
        family: seconds(counter(
            "reader_inflicted_wait",
            "Time that anyone waited for a lock that a reader held when the wait began",
        )),
        samples: |state| match state.totals.sees_waits_of_all() {
            true => of_readers(state, |reader| Value::Real(seconds_of(reader.inflicted_ns))),
            false => vec![],
        },
    },
    Row {
        family: histogram("operation", "Vmalloc operations, from entry to return"),
        samples: |state| {
            let ops = state.totals.ops.iter();
            let timed = ops.filter_map(|(op, total)| Some((op, total.latency.as_ref()?)));
            timed
                .map(|(op, series)| (vec![("op", op.name())], Value::Histogram(series)))
                .collect()
        },
    },
    Row {
        family: counter("operations", "Vmalloc operations"),
        samples: |state| {
            let ops = state.totals.ops.iter();
            ops.map(|(op, total)| (vec![("op", op.name())], Value::Whole(total.count)))
                .collect()
        },
    },
    Row {
        family: counter(
            "lost",
            "What could not be counted as it should; recursion misses are those of every lock of \
             the kernel, an upper bound",
        ),
        samples: losses,
    },
    Row {
        family: gauge(
            "waits_in_flight",
            "Waits that went on when the last interval ended",
        ),
        samples: |state| in_flight(state, state.totals.loss.in_flight_waits),
    },
    Row {
        family: gauge(
            "holds_in_flight",
            "Holds that went on when the last interval ended",
        ),
        samples: |state| in_flight(state, state.totals.loss.in_flight_holds),
    },
    Row {
        family: seconds(counter("measured", "Time that was measured")),
        samples: |state| match state.subject {
            Some(_) => vec![(vec![], Value::Real(state.totals.measured_ns as f64 / 1e9))],
            None => vec![],
        },
    },
    Row {
        family: counter("snapshots", "Times the counters of the kernel were read"),
        samples: |state| vec![(vec![], Value::Whole(state.cost.snapshots))],
    },
    Row {
        family: seconds(counter(
            "snapshot",
            "Time spent reading the counters of the kernel",
        )),
        samples: |state| vec![(vec![], Value::Real(state.cost.snapshot_time.as_secs_f64()))],
    },
    Row {
        family: seconds(gauge(
            "last_snapshot_timestamp",
            "When the counters were last read, since 1970",
        )),
        samples: |state| {
            let last = state.cost.last_snapshot.iter();
            let since = last.flat_map(|last| last.duration_since(UNIX_EPOCH));
            since
                .map(|since| (vec![], Value::Real(since.as_secs_f64())))
                .collect()
        },
    },
    Row {
        family: counter(
            "program_runs",
            "Runs of each program in the kernel; only where kernel.bpf_stats_enabled is on",
        ),
        samples: |state| {
            let programs = state.cost.programs.iter();
            programs
                .map(|program| {
                    (
                        vec![("program", &*program.name)],
                        Value::Whole(program.runs),
                    )
                })
                .collect()
        },
    },
    Row {
        family: seconds(counter(
            "program_run",
            "Time spent in each program in the kernel; only where kernel.bpf_stats_enabled is on",
        )),
        samples: |state| {
            let programs = state.cost.programs.iter();
            let seconds = |ns: u64| Value::Real(ns as f64 / 1e9);
            programs
                .map(|program| (vec![("program", &*program.name)], seconds(program.run_ns)))
                .collect()
        },
    },
    Row {
        family: counter("scrapes", "Scrapes that were answered, by format"),
        samples: |state| {
            let traffic = &state.traffic;
            let formats = [
                ("text", traffic.text),
                ("openmetrics", traffic.openmetrics),
                ("protobuf", traffic.protobuf),
            ];
            let sample = |(format, count)| (vec![("format", format)], Value::Whole(count));
            formats.map(sample).into()
        },
    },
    Row {
        family: seconds(counter("scrape_encoding", "Time spent writing scrapes")),
        samples: |state| {
            vec![(
                vec![],
                Value::Real(state.traffic.encoding_time.as_secs_f64()),
            )]
        },
    },
    Row {
        family: counter("connections", "Connections that were accepted"),
        samples: |state| vec![(vec![], Value::Whole(state.traffic.connections))],
    },
    Row {
        family: counter(
            "connection_errors",
            "Connections that were cut for taking too long or to make place, or that spoke no HTTP",
        ),
        samples: |state| {
            let traffic = &state.traffic;
            let reasons = [
                ("slow", traffic.slow),
                ("crowded-out", traffic.crowded_out),
                ("broken", traffic.broken),
            ];
            let sample = |(reason, count)| (vec![("reason", reason)], Value::Whole(count));
            reasons.map(sample).into()
        },
    },
];

/// The state, as a collector of this tool's own families.
#[derive(Debug)]
struct Own(Arc<Mutex<State>>);

impl Collector for Own {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let state = lock(&self.0);
        ROWS.iter()
            .try_for_each(|row| write(&mut encoder, &row.family, (row.samples)(&state)))
    }
}

/// Writes a family, unless it has no series.
pub(crate) fn write(
    encoder: &mut DescriptorEncoder<'_>,
    family: &Family,
    samples: Samples<'_>,
) -> fmt::Result {
    if samples.is_empty() {
        return Ok(());
    }
    let unit = family.unit.map(|unit| match unit {
        Base::Seconds => Unit::Seconds,
        Base::Bytes => Unit::Bytes,
    });
    let (name, help) = (family.name, family.help);
    let mut rows = encoder.encode_descriptor(name, help, unit.as_ref(), family.kind)?;
    for (labels, value) in &samples {
        if let Value::Info = value {
            rows.encode_info(labels)?;
            continue;
        }
        let mut row = rows.encode_family(labels)?;
        match (value, family.kind) {
            (Value::Whole(value), MetricType::Counter) => {
                row.encode_counter::<NoLabelSet, _, u64>(value, None)?;
            }
            (Value::Real(value), MetricType::Counter) => {
                row.encode_counter::<NoLabelSet, _, f64>(value, None)?;
            }
            (Value::Whole(value), _) => row.encode_gauge(value)?,
            (Value::Real(value), _) => row.encode_gauge(value)?,
            (Value::Histogram(series), _) => {
                let native = buckets::native(series.buckets(), series.unknown());
                let none = NativeHistogramBuckets {
                    spans: &[],
                    deltas: &[],
                };
                row.encode_histogram_with_native::<NoLabelSet>(
                    series.sum_seconds(),
                    series.count(),
                    &buckets::classic(series.buckets(), series.unknown()),
                    None,
                    NativeHistogram {
                        schema: buckets::SCHEMA,
                        zero_threshold: buckets::ZERO_THRESHOLD,
                        zero_count: native.zeros,
                        negative: none,
                        positive: NativeHistogramBuckets {
                            spans: &native.spans,
                            deltas: &native.deltas,
                        },
                        created: None,
                    },
                )?;
            }
            (Value::Info, _) => {}
        }
    }
    Ok(())
}

fn kernel(subject: &Subject) -> (Labels<'_>, Value<'_>) {
    let (kernel, host) = (&subject.header.kernel, &subject.header.host);
    let labels = vec![
        ("release", &*kernel.release),
        ("version", &*kernel.version),
        ("era", &*kernel.era),
        ("spinlocks", &*host.spinlocks),
        ("virtualisation", &*host.virtualisation),
    ];
    (labels, Value::Info)
}

fn coverage(subject: &Subject) -> (Labels<'_>, Value<'_>) {
    use crate::model::{HoldCoverage, WaitCoverage};

    let header = &subject.header;
    let waits = match header.coverage.waits {
        WaitCoverage::All => "all",
        WaitCoverage::SlowPath => "slow-path",
        WaitCoverage::Tracepoint => "tracepoint",
    };
    let holds = match header.coverage.holds {
        HoldCoverage::All => "all",
        HoldCoverage::Partial => "partial",
        HoldCoverage::None => "none",
    };
    let labels = vec![
        ("waits", waits),
        ("holds", holds),
        ("level", header.level.name()),
        ("hooks", &*header.hooks),
    ];
    (labels, Value::Info)
}

/// A value for each cell that has one; told with whether its lock is one that waiters sleep for.
fn of_cells<'a>(
    state: &'a State,
    value: impl Fn(&CellKey, bool, &'a CellTotal) -> Option<Value<'a>>,
) -> Samples<'a> {
    let kind = |key: &CellKey| {
        let subject = state.subject.as_ref()?;
        subject.header.kinds.get(&key.lock).copied()
    };
    let sample = |(key, total): (&CellKey, &'a CellTotal)| {
        let kind = kind(key);
        let sleeps = kind.is_some_and(|kind| kind != Kind::Spinlock);
        let labels = vec![
            ("lock", key.lock.name()),
            ("kind", kind.map_or(UNKNOWN, Kind::name)),
            ("mode", key.mode.name()),
            ("intent", key.intent.name()),
            ("op", key.op.name()),
        ];
        Some((labels, value(key, sleeps, total)?))
    };
    state.totals.cells.iter().filter_map(sample).collect()
}

/// A value for each cell that has one, of locks whose waits are seen; told with whether waiters sleep.
fn of_waits<'a>(
    state: &'a State,
    value: impl Fn(bool, &'a CellTotal) -> Option<Value<'a>>,
) -> Samples<'a> {
    of_cells(state, |key, sleeps, total| {
        let seen = state.totals.sees_waits(key.lock);
        seen.then(|| value(sleeps, total)).flatten()
    })
}

/// A value for each node of each lock that nodes have and of which it is seen.
fn of_nodes<'a>(
    state: &'a State,
    seen: impl Fn(Lock) -> bool,
    value: impl Fn(&Nodes, usize) -> Value<'a>,
) -> Samples<'a> {
    let Totals {
        nodes, node_names, ..
    } = &state.totals;
    let nodes = nodes.iter().filter(|(lock, _)| seen(**lock));
    let each = nodes.flat_map(|(lock, nodes)| {
        let numbers = (0..nodes.count()).zip(node_names);
        numbers.map(|(node, name)| {
            let labels = vec![("lock", lock.name()), ("node", &**name)];
            (labels, value(nodes, node))
        })
    });
    each.collect()
}

/// A value for each waiter and holder that met.
fn of_blame<'a>(state: &'a State, value: impl Fn(&Blame) -> Value<'a>) -> Samples<'a> {
    let sample = |(key, blame): (&BlameKey, &Blame)| {
        let holder = key.holder;
        let labels = vec![
            ("lock", key.lock.name()),
            ("intent", key.waiter.intent.name()),
            ("op", key.waiter.op.name()),
            (
                "holder_intent",
                holder.map_or(UNKNOWN, |it| it.intent.name()),
            ),
            ("holder_op", holder.map_or(UNKNOWN, |it| it.op.name())),
        ];
        (labels, value(blame))
    };
    state.totals.blame.iter().map(sample).collect()
}

fn seconds_of(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// A value for each cell of a lock that holders and waiters may sleep with.
fn of_sleeping<'a>(
    state: &'a State,
    value: impl Fn(&CellKey, &Inside) -> Option<Value<'a>>,
) -> Samples<'a> {
    let subject = state.subject.as_ref();
    if !subject.is_some_and(|subject| subject.header.inside) {
        return vec![];
    }
    of_cells(state, |key, sleeps, _| {
        let inside = state.totals.inside.get(key).copied().unwrap_or_default();
        sleeps.then(|| value(key, &inside)).flatten()
    })
}

/// A value for each destination that a read copied to.
fn of_copies(state: &State, value: impl Fn(&Copies) -> u64) -> Samples<'_> {
    let copies = state.totals.copies.iter();
    copies
        .map(|(destination, copies)| {
            let labels = vec![("destination", destination.name())];
            (labels, Value::Whole(value(copies)))
        })
        .collect()
}

/// A value for each file and name of a process that read it.
fn of_readers<'a>(state: &'a State, value: impl Fn(&Reader) -> Value<'a>) -> Samples<'a> {
    let readers = state.totals.readers.iter();
    readers
        .map(|((file, comm), reader)| {
            let comm = if comm.is_empty() { OTHERS } else { comm };
            let labels = vec![("file", file.name()), ("comm", comm)];
            (labels, value(reader))
        })
        .collect()
}

fn losses(state: &State) -> Samples<'_> {
    let loss = &state.totals.loss;
    let reasons = [
        ("recursion-miss", loss.recursion_misses),
        ("map-full", loss.map_full),
        ("unnamed-read", loss.unnamed_reads),
        ("unlisted-wait", loss.unlisted_waits),
        ("unaudited-acquisition", loss.unaudited),
        ("unmatched-release", loss.unmatched_releases),
        ("unmatched-acquisition", loss.unmatched_acquisitions),
        ("unknown-site", loss.unknown_sites),
        ("unfinished-op", loss.unfinished_ops),
    ];
    let sample = |(reason, count)| (vec![("reason", reason)], Value::Whole(count));
    match state.subject {
        Some(_) => reasons.map(sample).into(),
        None => vec![],
    }
}

fn in_flight(state: &State, count: u64) -> Samples<'_> {
    let measured = state.subject.iter();
    measured.map(|_| (vec![], Value::Whole(count))).collect()
}
