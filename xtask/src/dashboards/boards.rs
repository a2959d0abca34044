//! The tables of the dashboards: what is shown, in the order in which it is asked.
//!
//! *vmap locks* answers, from the top: is it vmap? which lock, which operation? how long? who holds?
//! can the numbers be trusted? *A/B* sets kernels side by side. *fleet* has the worst host first.

use super::grafana::{Board, Panel, Query, Row, Shape, Variable};
use super::promql::{WINDOW, buckets, joined_quantile, quantile, samples, seconds};

const WAIT: &str = "kcore_trace_wait_seconds";
const HOLD: &str = "kcore_trace_hold_seconds";
/// What the reader of *vmap locks* chose.
const CHOSEN: &str = r#"instance=~"$host",lock=~"$lock""#;
const SPINNING: &str = r#"instance=~"$host",lock=~"$lock",kind="spinlock""#;
const HOST: &str = r#"instance=~"$host""#;
/// What stands in a panel of nodes where the kernel has none.
const NO_NODES: &str = "No node's lock was waited for; kernels up to 6.8 have no nodes.";
/// What stands in a panel of holds where they are not measured.
const NO_HOLDS: &str = "Nothing was held, or it is not measured here: holds are seen at level full, not by tracepoints.";
/// What stands in a panel of readers where there are none.
const NOBODY_READS: &str =
    "Nobody read them, or it is not measured here: readers are seen at level full.";
/// What stands in a panel of what happens inside holds where nothing did.
const NO_FAULTS: &str = "It did not happen, or it is not measured here: it is seen at level full.";
/// The kernels that are compared. Grafana escapes what is special in a regular expression only in
/// variables that can have several values, and a release can have a plus.
const COMPARED: &str = r#"(kcore_trace_kernel_info{release="$baseline"} or kcore_trace_kernel_info{release=~"$candidate"})"#;

/// All dashboards.
pub(super) fn all() -> Vec<Board> {
    vec![locks(), kernels(), fleet()]
}

fn query(expr: impl Into<String>, legend: &'static str) -> Query {
    Query {
        expr: expr.into(),
        legend,
    }
}

fn panel(
    (shape, unit, [width, height]): (Shape, &'static str, [u32; 2]),
    title: &'static str,
    description: &'static str,
    queries: impl Into<Vec<Query>>,
) -> Panel {
    Panel {
        title,
        description,
        shape,
        unit,
        width,
        height,
        queries: queries.into(),
        limits: None,
        absent: "No data",
        units: Vec::new(),
    }
}

impl Panel {
    fn limits(mut self, look: f64, alarm: f64) -> Self {
        self.limits = Some([look, alarm]);
        self
    }

    fn absent(mut self, why: &'static str) -> Self {
        self.absent = why;
        self
    }

    fn units(mut self, units: &[(&'static str, &'static str)]) -> Self {
        self.units = units.to_vec();
        self
    }
}

fn several(name: &'static str, label: &'static str, query: &str) -> Variable {
    Variable {
        name,
        label,
        query: query.into(),
        several: true,
        narrowed: false,
    }
}

/// A choice among what others leave.
fn narrowed(name: &'static str, label: &'static str, query: &str) -> Variable {
    Variable {
        narrowed: true,
        ..several(name, label, query)
    }
}

fn one(name: &'static str, label: &'static str, query: &str) -> Variable {
    Variable {
        several: false,
        ..several(name, label, query)
    }
}

const STAT: [u32; 2] = [4, 4];
const HALF: [u32; 2] = [12, 8];
const WHOLE: [u32; 2] = [24, 8];

fn locks() -> Board {
    let hosts =
        r#"label_values(kcore_trace_kernel_info{era=~"$era",release=~"$kernel"}, instance)"#;
    Board {
        uid: "kcore-trace-locks",
        title: "kcore-trace: vmap locks",
        description: "Who waits for, and who holds, the locks of vmalloc.",
        variables: vec![
            several("era", "Era", "label_values(kcore_trace_kernel_info, era)"),
            several(
                "kernel",
                "Kernel",
                r#"label_values(kcore_trace_kernel_info{era=~"$era"}, release)"#,
            ),
            narrowed("host", "Host", hosts),
            several(
                "lock",
                "Lock",
                // Either is missing where it is not seen.
                r#"label_values({__name__=~"kcore_trace_acquisitions_total|kcore_trace_contended_acquisitions_total",instance=~"$host"}, lock)"#,
            ),
        ],
        rows: vec![
            is_it_vmap(),
            which_lock(),
            how_long(),
            who_holds(),
            what_happens_inside(),
            which_nodes(),
            trust(),
        ],
    }
}

fn is_it_vmap() -> Row {
    let waiting = seconds(WAIT, CHOSEN);
    let spinning = seconds(WAIT, SPINNING);
    Row {
        title: "Is it vmap?",
        panels: vec![
            panel(
                (Shape::Stat, "percentunit", STAT),
                "CPU time lost",
                "Time that CPUs spent spinning for vmap spinlocks, as a share of all CPU time of the chosen hosts. Below 1 % it is hardly vmap.",
                [query(format!("sum({spinning}) / sum(kcore_trace_cpus_online{{{HOST}}})"), "share")],
            )
            .limits(0.01, 0.05),
            panel(
                (Shape::Stat, "short", STAT),
                "Waiters at a time",
                "How many tasks wait for a vmap lock at a time, on average: spinning or asleep.",
                [query(format!("sum({waiting})"), "waiters")],
            )
            .limits(0.1, 1.0),
            panel(
                (Shape::Stat, "s", STAT),
                "Slowest waits (p99)",
                "One in a hundred contended acquisitions waited longer than this.",
                [query(quantile(0.99, WAIT, CHOSEN, ""), "p99")],
            )
            .limits(0.001, 0.01)
            .absent("No waits"),
            panel(
                (Shape::Stat, "percentunit", STAT),
                "Worst lock",
                "The lock that is waited for most, and its share of all waiting.",
                [query(
                    format!("(topk(1, sum by (lock) ({waiting})) / scalar(sum({waiting}))) >= 0"),
                    "{{lock}}",
                )],
            )
            .absent("No waits"),
            panel(
                (Shape::Stat, "short", STAT),
                "Lost in this range",
                "What could not be counted as it should, of all kinds but skipped runs of a program, which are counted for every lock of the kernel. Anything above zero means that numbers are too low.",
                [query(format!(r#"sum(increase(kcore_trace_lost_total{{{HOST},reason!="recursion-miss"}}[$__range]))"#), "lost")],
            )
            .limits(0.5, 100.0),
            panel(
                (Shape::Stat, "short", STAT),
                "Hooks that are missing",
                "Hooks, locks and operations that the kernel does not let be seen; the table below says why.",
                [query(format!(r#"sum(kcore_trace_hooks{{{HOST},state="missing"}})"#), "missing")],
            ),
            panel(
                (Shape::Stack, "percentunit", WHOLE),
                "CPU time lost to spinning, by lock",
                "Time spent spinning for each vmap spinlock, as a share of all CPU time of the chosen hosts.",
                [query(format!("sum by (lock) ({spinning}) / scalar(sum(kcore_trace_cpus_online{{{HOST}}}))"), "{{lock}}")],
            ),
        ],
    }
}

fn which_lock() -> Row {
    let waiting = seconds(WAIT, CHOSEN);
    let contended = format!("rate(kcore_trace_contended_acquisitions_total{{{CHOSEN}}}[{WINDOW}])");
    let by = "lock, kind, mode, intent, op";
    Row {
        title: "Which lock, which operation?",
        panels: vec![
            panel(
                (Shape::Stack, "short", HALF),
                "Waiters at a time, by lock",
                "How many tasks wait for each lock at a time, on average: spinning or asleep.",
                [query(format!("sum by (lock) ({waiting})"), "{{lock}}")],
            ),
            panel(
                (Shape::Stack, "short", HALF),
                "Waiters at a time, by operation",
                "What the waiting tasks were doing: allocating, freeing, reading /proc/kcore (vread) or /proc/vmallocinfo, …",
                [query(format!("sum by (op) ({waiting})"), "{{op}}")],
            ),
            panel(
                (Shape::Table, "short", [24, 9]),
                "Every lock and operation",
                "One row for each way in which a lock is waited for, the one that costs most time first. Intent is what the code needs the lock for: a look-up reads, whatever the type of the lock.",
                [
                    query(format!("sum by ({by}) ({waiting}) > 0"), "waiters at a time"),
                    query(format!("sum by ({by}) ({contended}) > 0"), "contended per second"),
                    query(quantile(0.5, WAIT, CHOSEN, by), "wait p50"),
                    query(quantile(0.99, WAIT, CHOSEN, by), "wait p99"),
                ],
            )
            .absent("Nobody waited.")
            .units(&[
                ("waiters at a time", "short"),
                ("contended per second", "cps"),
                ("wait p50", "s"),
                ("wait p99", "s"),
            ]),
        ],
    }
}

fn how_long() -> Row {
    let [native, classic] = buckets(WAIT, CHOSEN);
    Row {
        title: "How long are the waits?",
        panels: vec![
            panel(
                (Shape::Heatmap, "s", HALF),
                "Waits, by how long they took",
                "How many contended acquisitions waited how long. Two bands mean two kinds of holders. Of hosts with native histograms, where some of the chosen ones have them.",
                [query(native, ""), query(classic, "{{le}}")],
            ),
            panel(
                (Shape::Lines, "s", HALF),
                "Percentiles of waits",
                "Of all contended acquisitions of the chosen locks.",
                [
                    query(quantile(0.5, WAIT, CHOSEN, ""), "p50"),
                    query(quantile(0.9, WAIT, CHOSEN, ""), "p90"),
                    query(quantile(0.99, WAIT, CHOSEN, ""), "p99"),
                ],
            ),
            panel(
                (Shape::Lines, "s", HALF),
                "Slowest waits (p99), by lock",
                "One in a hundred contended acquisitions of the lock waited longer.",
                [query(quantile(0.99, WAIT, CHOSEN, "lock"), "{{lock}}")],
            ),
            panel(
                (Shape::Lines, "s", HALF),
                "Slowest waits (p99), by operation",
                "One in a hundred contended acquisitions by the operation waited longer.",
                [query(quantile(0.99, WAIT, CHOSEN, "op"), "{{op}}")],
            ),
        ],
    }
}

fn who_holds() -> Row {
    let holding = seconds(HOLD, CHOSEN);
    let readers = format!(r#"{CHOSEN},op=~"vread|vmallocinfo""#);
    let allocators = format!(r#"{CHOSEN},op=~"alloc|free|map_ram|unmap_ram""#);
    Row {
        title: "Who holds the locks?",
        panels: vec![
            panel(
                (Shape::Stack, "percentunit", HALF),
                "Time that locks are held, by operation",
                "Seconds per second that a chosen lock is held by each operation; more than 100 % where there are several locks. Measured at level full only.",
                [query(format!("sum by (op) ({holding})"), "{{op}}")],
            )
            .absent(NO_HOLDS),
            panel(
                (Shape::Lines, "s", HALF),
                "Longest holds (p99), by operation",
                "One in a hundred holds by the operation lasted longer. Measured at level full only.",
                [query(quantile(0.99, HOLD, CHOSEN, "op"), "{{op}}")],
            )
            .absent(NO_HOLDS),
            panel(
                (Shape::Stack, "short", WHOLE),
                "Waiters at a time, by what the holder was doing",
                "How many tasks wait at a time, on average, for a lock that was held by each operation when the wait began. Measured at level full only.",
                [query(
                    format!("sum by (holder_op) (rate(kcore_trace_blamed_wait_seconds_total{{{CHOSEN}}}[{WINDOW}]))"),
                    "held by {{holder_op}}",
                )],
            )
            .absent(NO_HOLDS),
            panel(
                (Shape::Lines, "cps", HALF),
                "Contended acquisitions by readers of /proc/kcore and /proc/vmallocinfo",
                "Each of them waited for an allocator, or an allocator for it.",
                [query(
                    format!("sum by (op) ({})", samples(WAIT, &readers)),
                    "{{op}}",
                )],
            ),
            panel(
                (Shape::Lines, "short", HALF),
                "Allocators that wait at a time",
                "How many tasks that allocate or free wait for a vmap lock at a time, on average. Compare its shape with that of the readers.",
                [query(
                    format!("sum by (op) ({})", seconds(WAIT, &allocators)),
                    "{{op}}",
                )],
            ),
        ],
    }
}

fn what_happens_inside() -> Row {
    let rate =
        |of: &str, labels: &str| format!("rate(kcore_trace_{of}_total{{{labels}}}[{WINDOW}])");
    let by_lock = |of: &str| format!("sum by (lock, op) ({}) > 0", rate(of, CHOSEN));
    let by_process = |of: &str| format!("topk(10, sum by (comm, file) ({}))", rate(of, HOST));
    Row {
        title: "Who reads, and what happens inside? (level full)",
        panels: vec![
            panel(
                (Shape::Lines, "short", HALF),
                "Tasks that wait for a reader at a time, by its process",
                "How many tasks wait, on average, for a lock that a process held while it read /proc/kcore or /proc/vmallocinfo. The ten worst, by name.",
                [query(by_process("reader_inflicted_wait_seconds"), "{{comm}}, {{file}}")],
            )
            .absent(NOBODY_READS),
            panel(
                (Shape::Lines, "reqps", HALF),
                "Reads of /proc/kcore and /proc/vmallocinfo, by process",
                "The ten that read most often, by name.",
                [query(by_process("reader_reads"), "{{comm}}, {{file}}")],
            )
            .absent(NOBODY_READS),
            panel(
                (Shape::Lines, "cps", HALF),
                "Page faults while a lock is held",
                "Page faults that a task served while it held a lock that one may sleep with. Each of them can take as long as a disk does, and everybody else waits.",
                [query(by_lock("hold_page_faults"), "{{lock}}, {{op}}")],
            )
            .absent(NO_FAULTS),
            panel(
                (Shape::Stack, "percentunit", HALF),
                "Time that holders are off their CPU",
                "Seconds per second that the holder of a lock was asleep or preempted, with the lock held.",
                [query(by_lock("hold_off_cpu_seconds"), "{{lock}}, {{op}}")],
            )
            .absent(NO_FAULTS),
            panel(
                (Shape::Stack, "short", HALF),
                "Waiters asleep at a time",
                "How many tasks wait asleep for a lock at a time, on average; those who spin instead are in the panels above.",
                [query(by_lock("wait_sleep_seconds"), "{{lock}}, {{op}}")],
            )
            .absent(NO_FAULTS),
            panel(
                (Shape::Lines, "cps", HALF),
                "Reads of /proc/kcore that had to try again",
                "Passes over vmalloc memory, and those that stopped short because the memory to copy to was not there: each takes the lock once more.",
                [
                    query(format!("sum({})", rate("kcore_passes", HOST)), "passes"),
                    query(
                        format!("sum({})", rate("kcore_short_passes", HOST)),
                        "stopped short",
                    ),
                ],
            )
            .absent(NOBODY_READS),
        ],
    }
}

fn which_nodes() -> Row {
    let rate = |of: &str| format!("rate(kcore_trace_node_{of}_total{{{CHOSEN}}}[{WINDOW}])");
    let (waiting, contended) = (rate("wait_seconds"), rate("contended_acquisitions"));
    let by_host = |of: &str| format!("{of} by (instance, lock) ({contended})");
    let (most, mean) = (by_host("max"), by_host("avg"));
    Row {
        title: "Which nodes? (kernels from 6.9 on)",
        panels: vec![
            panel(
                (Shape::Stack, "short", HALF),
                "Waiters at a time, ten worst nodes",
                "How many tasks wait for a lock of each node at a time, on average. An area belongs to a node by its address; one node alone on top means that the work falls on few addresses.",
                [query(
                    format!("topk(10, sum by (lock, node) ({waiting}))"),
                    "{{lock}} {{node}}",
                )],
            )
            .absent(NO_NODES),
            panel(
                (Shape::Lines, "short", HALF),
                "Imbalance between nodes",
                "Contended acquisitions of the busiest node, divided by the mean of all nodes of the host. 1 is even; as many as there are nodes means that one has them all.",
                [query(
                    format!("max by (lock) ({most} / {mean}) >= 0"),
                    "{{lock}}",
                )],
            )
            .absent(NO_NODES),
        ],
    }
}

fn trust() -> Row {
    Row {
        title: "Can these numbers be trusted, and what do they cost?",
        panels: vec![
            panel(
                (Shape::Table, "short", [24, 6]),
                "What is seen",
                "waits: all, slow-path (each contended one) or tracepoint (most of them); holds: all, partial or none.",
                [query(
                    format!(
                        "max by (instance, level, hooks, waits, holds) (kcore_trace_coverage_info{{{HOST}}})"
                    ),
                    "hosts",
                )],
            ),
            panel(
                (Shape::Table, "short", [24, 9]),
                "What is missing, and why",
                "Hooks, locks and operations that the kernel does not let be seen.",
                [query(
                    format!("count by (hook, reason) (kcore_trace_hook_missing_info{{{HOST}}})"),
                    "hosts",
                )],
            )
            .absent("Nothing is missing."),
            panel(
                (Shape::Lines, "cps", HALF),
                "Losses",
                "What could not be counted as it should. Recursion misses are an upper bound: the hooks are passed by every lock of the kernel.",
                [query(
                    format!("sum by (reason) (rate(kcore_trace_lost_total{{{HOST}}}[{WINDOW}]))"),
                    "{{reason}}",
                )],
            ),
            panel(
                (Shape::Lines, "percentunit", HALF),
                "CPU time of kcore-trace",
                "Of the process, and how long reading the counters took by the clock, which is more where CPUs are scarce; summed over the chosen hosts, 100 % is one CPU. The programs in the kernel are in it only where kernel.bpf_stats_enabled is on.",
                [
                    query(
                        format!(
                            r#"sum(rate(process_cpu_seconds_total{{{HOST}}}[{WINDOW}]) and on (instance) kcore_trace_build_info)"#
                        ),
                        "process",
                    ),
                    query(
                        format!(
                            "sum(rate(kcore_trace_snapshot_seconds_total{{{HOST}}}[{WINDOW}]))"
                        ),
                        "reading counters",
                    ),
                    query(
                        format!(
                            "sum(rate(kcore_trace_program_run_seconds_total{{{HOST}}}[{WINDOW}]))"
                        ),
                        "programs in the kernel",
                    ),
                ],
            ),
            panel(
                (Shape::Lines, "percentunit", HALF),
                "What measuring costs",
                "Share of the time of all CPUs: the programs in the kernel, the hooks that lead to them (estimated by their number), and the process. Only where --max-overhead sets a limit.",
                [query(
                    format!(
                        "sum by (part) (kcore_trace_overhead_ratio{{{HOST}}}) / scalar(count(kcore_trace_build_info{{{HOST}}}))"
                    ),
                    "{{part}}",
                )],
            ),
            panel(
                (Shape::Lines, "short", HALF),
                "Level that is measured",
                "Hosts by level. The guard reduces full to contended, and that to off, where measuring costs more than it may.",
                [query(
                    format!("sum by (level) (kcore_trace_level{{{HOST}}})"),
                    "{{level}}",
                )],
            ),
            panel(
                (Shape::Lines, "bytes", HALF),
                "Memory of kcore-trace",
                "Resident memory of the process. It does not grow with time.",
                [query(
                    format!(
                        "process_resident_memory_bytes{{{HOST}}} and on (instance) kcore_trace_build_info"
                    ),
                    "{{instance}}",
                )],
            ),
            panel(
                (Shape::Lines, "s", HALF),
                "Age of the numbers",
                "Time since the counters were last read. It stays below the interval, or measuring hangs.",
                [query(
                    format!("time() - kcore_trace_last_snapshot_timestamp_seconds{{{HOST}}}"),
                    "{{instance}}",
                )],
            ),
        ],
    }
}

/// A kernel against others, whichever hosts run them.
fn kernels() -> Board {
    let waiting = seconds(WAIT, "");
    let compared = format!(" * on (instance) group_left (release) {COMPARED}");
    let by_release = |of: &str| format!("sum by (release) ({of}{compared})");
    let cpus = by_release("kcore_trace_cpus_online");
    let contended = format!("rate(kcore_trace_contended_acquisitions_total[{WINDOW}])");
    let spinning = seconds(WAIT, r#"kind="spinlock""#);
    let p99 = |by: &str| joined_quantile(0.99, WAIT, "", by, &compared);
    let ratio = |of: &dyn Fn(&str) -> String| {
        let candidate = of(r#"release=~"$candidate""#);
        let baseline = of(r#"release="$baseline""#);
        format!("({candidate} / on () group_left () {baseline}) >= 0")
    };
    let only = |release: &str| {
        format!(" * on (instance) group_left (release) kcore_trace_kernel_info{{{release}}}")
    };
    let mean_of = |release: &str| {
        let join = only(release);
        format!("(sum by (release) ({waiting}{join}) / sum by (release) ({contended}{join}))")
    };
    let p99_of = |release: &str| joined_quantile(0.99, WAIT, "", "release", &only(release));
    let share_of = |release: &str| {
        let join = only(release);
        format!(
            "(sum by (release) ({spinning}{join}) / sum by (release) (kcore_trace_cpus_online{join}))"
        )
    };
    let releases = "label_values(kcore_trace_kernel_info, release)";
    Board {
        uid: "kcore-trace-kernels",
        title: "kcore-trace: A/B of kernels",
        description: "The same numbers on two or more kernels. Compare hosts that do the same work, or `kcore-trace compare` will be the better judge.",
        variables: vec![
            one("baseline", "Baseline", releases),
            several("candidate", "Candidates", releases),
        ],
        rows: vec![
            Row {
                title: "Candidate against baseline: above 1 is worse",
                panels: vec![
                    panel(
                        (Shape::Lines, "short", HALF),
                        "Mean wait, ratio",
                        "Mean wait of a contended acquisition, divided by that of the baseline.",
                        [query(ratio(&mean_of), "{{release}}")],
                    ),
                    panel(
                        (Shape::Lines, "short", HALF),
                        "Slowest waits (p99), ratio",
                        "p99 of waits, divided by that of the baseline.",
                        [query(ratio(&p99_of), "{{release}}")],
                    ),
                    panel(
                        (Shape::Lines, "short", WHOLE),
                        "CPU time lost to spinning, ratio",
                        "Share of CPU time spent spinning for vmap locks, divided by that of the baseline.",
                        [query(ratio(&share_of), "{{release}}")],
                    ),
                ],
            },
            Row {
                title: "Side by side",
                panels: vec![
                    panel(
                        (Shape::Lines, "percentunit", HALF),
                        "CPU time lost to spinning",
                        "Time spent spinning for vmap spinlocks, as a share of all CPU time of the hosts with that kernel.",
                        [query(
                            format!("{} / {cpus}", by_release(&spinning)),
                            "{{release}}",
                        )],
                    ),
                    panel(
                        (Shape::Lines, "cps", HALF),
                        "Contended acquisitions per CPU",
                        "Per second and CPU.",
                        [query(
                            format!("{} / {cpus}", by_release(&contended)),
                            "{{release}}",
                        )],
                    ),
                    panel(
                        (Shape::Lines, "s", HALF),
                        "Slowest waits (p99)",
                        "One in a hundred contended acquisitions waited longer.",
                        [query(p99("release"), "{{release}}")],
                    ),
                    panel(
                        (Shape::Lines, "s", HALF),
                        "Slowest waits (p99), by operation",
                        "One in a hundred contended acquisitions by the operation waited longer; operations mean the same on every kernel, locks do not.",
                        [query(p99("release, op"), "{{release}} {{op}}")],
                    ),
                    panel(
                        (Shape::Table, "short", [24, 6]),
                        "Kernels",
                        "Which kernels run on how many hosts, and how they lock vmalloc.",
                        [query(
                            format!(
                                "count by (release, era, spinlocks, virtualisation) ({COMPARED})"
                            ),
                            "hosts",
                        )],
                    ),
                ],
            },
        ],
    }
}

fn fleet() -> Board {
    let spinning = seconds(WAIT, SPINNING);
    let share = format!("sum by (instance) ({spinning}) / on (instance) kcore_trace_cpus_online");
    let chosen_kernel = r#" and on (instance) kcore_trace_kernel_info{era=~"$era"}"#;
    let contended = format!(
        "sum by (instance) (rate(kcore_trace_contended_acquisitions_total{{{CHOSEN}}}[{WINDOW}]))"
    );
    let missing = format!(r#"sum by (instance) (kcore_trace_hooks{{{HOST},state="missing"}})"#);
    // All columns of a row have the same labels, by which they are merged.
    let known = |of: &str| {
        format!(
            r#"({of}) * on (instance) group_left (release, era) kcore_trace_kernel_info{{era=~"$era"}}"#
        )
    };
    Board {
        uid: "kcore-trace-fleet",
        title: "kcore-trace: fleet",
        description: "Many hosts, the worst first.",
        variables: vec![
            several("era", "Era", "label_values(kcore_trace_kernel_info, era)"),
            narrowed("host", "Host", r#"label_values(kcore_trace_kernel_info{era=~"$era"}, instance)"#),
            several("lock", "Lock", "label_values(kcore_trace_contended_acquisitions_total, lock)"),
        ],
        rows: vec![
            Row {
                title: "Worst first",
                panels: vec![
                    panel((Shape::Stat, "short", [4, 8]), "Hosts measured", "Hosts whose exporter answers.", [query(format!("count(kcore_trace_build_info{{{HOST}}})"), "hosts")]),
                    panel((Shape::Stat, "short", [4, 8]), "Hosts above 1 %", "Hosts that lose more than 1 % of their CPU time to spinning for vmap locks.", [query(format!("count(({share}) > 0.01) or vector(0)"), "hosts")]).limits(1.0, 10.0),
                    panel((Shape::Stat, "short", [4, 8]), "Hosts with losses", "Hosts where something could not be counted as it should in the last hour.", [query(format!(r#"count(sum by (instance) (increase(kcore_trace_lost_total{{{HOST},reason!="recursion-miss"}}[1h])) > 0) or vector(0)"#), "hosts")]).limits(1.0, 10.0),
                    panel((Shape::Lines, "percentunit", [12, 8]), "CPU time lost to spinning, ten worst", "Share of the host's CPU time spent spinning for vmap locks.", [query(format!("topk(10, ({share}){chosen_kernel})"), "{{instance}}")]),
                    panel(
                        (Shape::Table, "short", [24, 12]),
                        "Hosts",
                        "Every host, that which loses most CPU time first.",
                        [
                            query(known(&share), "CPU time lost"),
                            query(known(&quantile(0.99, WAIT, CHOSEN, "instance")), "wait p99"),
                            query(known(&contended), "contended per second"),
                            query(known(&missing), "missing hooks"),
                        ],
                    )
                    .units(&[("CPU time lost", "percentunit"), ("wait p99", "s"), ("contended per second", "cps")]),
                ],
            },
            Row {
                title: "The fleet as a whole",
                panels: vec![
                    panel((Shape::Lines, "percentunit", HALF), "CPU time lost to spinning, by era", "Mean over the hosts of each era.", [query(format!("avg by (era) (({share}) * on (instance) group_left (era) kcore_trace_kernel_info{{era=~\"$era\"}})"), "{{era}}")]),
                    panel((Shape::Stack, "short", HALF), "Hosts by kernel", "How many hosts run which kernel.", [query(r#"count by (release) (kcore_trace_kernel_info{era=~"$era",instance=~"$host"})"#, "{{release}}")]),
                ],
            },
        ],
    }
}
