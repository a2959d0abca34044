//! `cargo xtask lab report`: the table of the 2023 thread, from what was measured here.
//!
//! In: the folder of a run. Out: for each test of `test_vmalloc` the change of cycles between two
//! of its kernels, with its interval, beside the published one; what the locks did in each
//! workload; and, where a kernel counts locks itself, its counts beside ours. The tool reads its
//! own recordings.

/// The method is the one that `kcore-trace compare` uses.
#[path = "../../../kcore-trace/src/compare/stats.rs"]
mod stats;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::Value;

use super::{
    run::{self, Run},
    workloads::{WORKLOADS, Workload},
};
use crate::{cargo, command, places::Places, setup};

/// How sure an interval is.
const ERROR: f64 = 0.05;

/// Percent more cycles with the rwsem, as published (linux-mm, 19 March 2023, v2 2/4), by the
/// workload with one thread.
const PUBLISHED: [(&str, f64); 6] = [
    ("fix_size-1", 0.40),
    ("full_fit-1", 2.08),
    ("long_busy_list-1", 0.34),
    ("random_size-1", -0.25),
    ("random_size_align-1", 0.06),
    ("all-1", 0.2),
];

/// The counter-measurement of 20 March 2023: ten workers, mask 31.
const COUNTERED: (&str, &str) = ("all-4", "+6 to +8.6");

#[derive(Args)]
pub(crate) struct Options {
    /// The folder of a run; the newest, unless one is named
    run: Option<PathBuf>,
    /// The kernel to compare with
    #[arg(long, default_value = "spinlock")]
    baseline: String,
    /// The kernel that is compared
    #[arg(long, default_value = "rwsem")]
    candidate: String,
}

/// The command `cargo xtask lab report`.
pub(crate) fn command(places: &Places, options: Options) -> Result<ExitCode> {
    let folder = run::folder(places, options.run)?;
    let run = Run::read(&folder)?;
    let kernels = [options.baseline.as_str(), options.candidate.as_str()];
    for kernel in kernels {
        if !run.kernels.iter().any(|known| known == kernel) {
            bail!(
                "the run has the kernels {}, not {kernel}",
                run.kernels.join(", ")
            );
        }
    }
    let tools = setup::for_build(places)?;
    let results = Results {
        folder,
        tool: cargo::guest_binary(places, &tools)?,
    };
    println!(
        "{} against {}, {} repeats each, level {}, from {}\n",
        kernels[1],
        kernels[0],
        run.repeats,
        run.level,
        results.folder.display()
    );
    let problems = run.problems();
    if !problems.is_empty() {
        println!("What went wrong:\n  {}\n", problems.join("\n  "));
    }
    results.cycles(&run, kernels)?;
    results.locks(&run)?;
    results.events(&run)?;
    results.oracle(&run)?;
    println!("{LIMITS}");
    Ok(ExitCode::SUCCESS)
}

const LIMITS: &str = "\
What emulated CPUs can say and what not: counts and orders of events are those of a real machine.
With one CPU a cycle is an executed instruction: work that was added is seen to parts per million,
cache misses and atomics that cost more than others are not. With four, all CPUs share one thread
of the host, so that who waits for whom is real, and for how long is not. On bare metal: `cargo xtask
lab build --install-dir DIR`, boot each kernel in DIR, run `modprobe` or `insmod` of its
test_vmalloc under `kcore-trace record`, and give `kcore-trace compare` the two folders.";

struct Results {
    folder: PathBuf,
    /// The tool, as `TOOL kcore-trace ARGUMENTS`.
    tool: PathBuf,
}

impl Results {
    fn path(&self, kernel: &str, workload: &str, repeat: u32, end: &str) -> PathBuf {
        let name = format!("{repeat}.{end}");
        self.folder.join(kernel).join(workload).join(name)
    }

    /// A file of each repeat that has it.
    fn files(&self, kernel: &str, workload: &str, end: &str) -> Vec<PathBuf> {
        let repeats = (1..=100).map(|repeat| self.path(kernel, workload, repeat, end));
        repeats.filter(|path| path.is_file()).collect()
    }

    /// Cycles of each repeat, summed over its workers.
    fn cycles_of(&self, kernel: &str, workload: &str, end: &str) -> Result<Vec<f64>> {
        let logs = self.files(kernel, workload, end);
        let cycles = logs.iter().map(|log| {
            let text = fs::read(log)?;
            Ok(cycles(&String::from_utf8_lossy(&text)))
        });
        Ok(cycles
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .flatten()
            .collect())
    }

    /// The thread's table.
    fn cycles(&self, run: &Run, kernels: [&str; 2]) -> Result<()> {
        let was_run = |workload: &&Workload| run.workloads.iter().any(|name| name == workload.name);
        let benchmarks = WORKLOADS.iter().filter(|workload| workload.needs_module());
        let benchmarks: Vec<_> = benchmarks.filter(was_run).collect();
        if benchmarks.is_empty() {
            return Ok(());
        }
        println!("Cycles of test_vmalloc, change with its 95 % interval (Welch, ratio of means)\n");
        println!(
            "{:22} {:>26} {:>26} {:>14}",
            "test-threads", "as it is", "while recorded", "published"
        );
        for workload in benchmarks {
            let change = |end: &str| -> Result<String> {
                let [baseline, candidate] =
                    kernels.map(|kernel| self.cycles_of(kernel, workload.name, end));
                Ok(change(&baseline?, &candidate?))
            };
            println!(
                "{:22} {:>26} {:>26} {:>14}",
                workload.name,
                change("untraced.log")?,
                change("log")?,
                published(workload)
            );
        }
        println!();
        Ok(())
    }

    /// What the lock of the index did, in every kernel.
    fn locks(&self, run: &Run) -> Result<()> {
        println!(
            "The lock of the index of areas (all nodes together), in the first repeat of each\n"
        );
        println!(
            "{:22} {:18} {:>9} {:>10} {:>10} {:>10} {:>10}",
            "workload", "kernel", "per alloc", "contended", "wait mean", "hold mean", "hold p99"
        );
        for workload in &run.workloads {
            for kernel in &run.kernels {
                if let Some(path) = self.files(kernel, workload, "kct").first() {
                    let index = Index::of(&self.report(path)?);
                    println!("{workload:22} {kernel:18} {index}");
                }
            }
        }
        println!();
        Ok(())
    }

    fn report(&self, recording: &Path) -> Result<Value> {
        let mut tool = Command::new(&self.tool);
        tool.args(["kcore-trace", "report", "--format", "json"])
            .arg(recording);
        let text = command::output(&mut tool)?;
        serde_json::from_str(&text).context("the tool's report is no JSON")
    }

    /// How contended acquisitions of the whole kernel went on, where it counts that.
    fn events(&self, run: &Run) -> Result<()> {
        const SHOWN: [&str; 7] = [
            "lock_pending",
            "lock_slowpath",
            "rwsem_opt_lock",
            "rwsem_sleep_reader",
            "rwsem_sleep_writer",
            "rwsem_rlock",
            "rwsem_wlock",
        ];
        println!("What the kernel itself counted of contended acquisitions, of all its locks\n");
        println!(
            "{:22} {:18} {}",
            "workload",
            "kernel",
            SHOWN.map(|name| format!("{name:>18}")).join(" ")
        );
        for workload in &run.workloads {
            for kernel in &run.kernels {
                let Some(path) = self.files(kernel, workload, "events").into_iter().next() else {
                    continue;
                };
                let text = fs::read_to_string(path)?;
                let counts = SHOWN.map(|name| format!("{:>18}", event(&text, name)));
                let recording = self.files(kernel, workload, "kct").into_iter().next();
                let ours = match recording {
                    Some(recording) => contended_spinlocks(&self.report(&recording)?).to_string(),
                    None => "–".into(),
                };
                println!("{workload:22} {kernel:18} {ours:>9} {}", counts.join(" "));
            }
        }
        println!();
        Ok(())
    }

    /// Our counts beside those of `/proc/lock_stat`, which a kernel may keep.
    fn oracle(&self, run: &Run) -> Result<()> {
        const LOCKS: [&str; 3] = [
            "vmap_area_lock",
            "free_vmap_area_lock",
            "purge_vmap_area_lock",
        ];
        let mut lines = Vec::new();
        for workload in &run.workloads {
            for kernel in &run.kernels {
                let Some(path) = self.files(kernel, workload, "lockstat").into_iter().next() else {
                    continue;
                };
                let Some(recording) = self.files(kernel, workload, "kct").into_iter().next() else {
                    continue;
                };
                let statistics = fs::read_to_string(path)?;
                let report = self.report(&recording)?;
                for lock in LOCKS {
                    let Some(oracle) = lock_stat(&statistics, lock) else {
                        continue;
                    };
                    let ours = Sums::of(&report, lock);
                    lines.push(format!("{workload:22} {lock:22} {}", oracle.beside(&ours)));
                }
            }
        }
        if !lines.is_empty() {
            println!("/proc/lock_stat of the same work, and our count or time less its\n");
            println!(
                "{:22} {:22} {:>12} {:>9} {:>12} {:>9} {:>11} {:>9} {:>11} {:>9}",
                "workload",
                "lock",
                "acquired",
                "ours",
                "contended",
                "ours",
                "wait mean",
                "ours",
                "hold mean",
                "ours"
            );
            println!("{}\n", lines.join("\n"));
        }
        Ok(())
    }
}

/// The cycles that `test_vmalloc` says its workers took, summed.
fn cycles(log: &str) -> Option<f64> {
    let workers = cycles_of_workers(log);
    (!workers.is_empty()).then(|| workers.iter().sum())
}

/// The cycles that `test_vmalloc` says each of its workers took.
pub(crate) fn cycles_of_workers(log: &str) -> Vec<f64> {
    let workers = log.lines().filter_map(|line| {
        let (_, rest) = line.split_once("All test took worker")?;
        let cycles = rest.split_once('=')?.1.split(' ').next()?;
        cycles.parse::<f64>().ok()
    });
    workers.collect()
}

/// A change in percent and the ends of its interval.
fn change(baseline: &[f64], candidate: &[f64]) -> String {
    let logs = |values: &[f64]| values.iter().map(|value| value.ln()).collect::<Vec<_>>();
    let percent = |difference: f64| (difference.exp() - 1.0) * 100.0;
    let (baseline, candidate) = (logs(baseline), logs(candidate));
    if baseline.is_empty() || candidate.is_empty() {
        return "not measured".into();
    }
    match stats::welch(&baseline, &candidate, ERROR, [0.0; 2]) {
        Some(estimate) => format!(
            "{:+.2} % ({:+.2} to {:+.2})",
            percent(estimate.difference),
            percent(estimate.low),
            percent(estimate.high)
        ),
        None => {
            let difference = stats::mean(&candidate) - stats::mean(&baseline);
            format!(
                "{:+.2} % (fewer than {})",
                percent(difference),
                stats::FEWEST
            )
        }
    }
}

fn published(workload: &Workload) -> String {
    if workload.name == COUNTERED.0 {
        return format!("{} %", COUNTERED.1);
    }
    let row = PUBLISHED.iter().find(|(name, _)| *name == workload.name);
    row.map_or_else(String::new, |(_, change)| format!("{change:+.2} %"))
}

fn event(text: &str, name: &str) -> u64 {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|count| count.parse().ok()).unwrap_or(0)
}

fn contended_spinlocks(report: &Value) -> u64 {
    let rows = report["locks"].as_array().into_iter().flatten();
    let spinlocks = rows.filter(|row| row["kind"] == "spinlock");
    spinlocks.filter_map(|row| row["contended"].as_u64()).sum()
}

/// Counts and times of a lock, over its rows.
#[derive(Debug, Default, PartialEq)]
struct Sums {
    acquisitions: u64,
    /// Nothing where waits are not seen.
    contended: Option<u64>,
    wait_ns: u64,
    holds: u64,
    hold_ns: u64,
    longest_p99_ns: u64,
}

impl Sums {
    fn of(report: &Value, lock: &str) -> Self {
        let rows = report["locks"].as_array().into_iter().flatten();
        let rows = rows.filter(|row| row["lock"] == lock);
        let mut sums = Self {
            contended: rows.clone().map(|row| row["contended"].as_u64()).sum(),
            ..Self::default()
        };
        for row in rows {
            let number = |value: &Value| value.as_u64().unwrap_or(0);
            sums.acquisitions += number(&row["acquisitions"]);
            sums.wait_ns += number(&row["wait"]["sum_ns"]);
            sums.holds += number(&row["hold"]["count"]);
            sums.hold_ns += number(&row["hold"]["sum_ns"]);
            sums.longest_p99_ns = sums.longest_p99_ns.max(number(&row["hold"]["p99_ns"]));
        }
        sums
    }

    fn wait_mean(&self) -> Option<f64> {
        mean(self.wait_ns, self.contended?)
    }
}

fn mean(sum_ns: u64, count: u64) -> Option<f64> {
    (count > 0).then(|| sum_ns as f64 / count as f64)
}

fn shown(ns: Option<f64>) -> String {
    ns.map_or_else(|| "–".into(), |ns| format!("{ns:.0} ns"))
}

/// The lock of the index of one recording.
struct Index {
    sums: Sums,
    allocations: u64,
}

impl Index {
    fn of(report: &Value) -> Self {
        let per_node = report["recording"]["kernel"]["era"] == "per-node";
        let lock = if per_node {
            "vmap_node.busy"
        } else {
            "vmap_area_lock"
        };
        let ops = report["ops"].as_array().into_iter().flatten();
        let alloc = ops
            .filter(|op| op["op"] == "alloc")
            .find_map(|op| op["count"].as_u64());
        Self {
            sums: Sums::of(report, lock),
            allocations: alloc.unwrap_or(0),
        }
    }
}

impl std::fmt::Display for Index {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { sums, allocations } = self;
        let per_alloc = sums.acquisitions as f64 / (*allocations).max(1) as f64;
        let percent = |contended| 100.0 * contended as f64 / sums.acquisitions.max(1) as f64;
        let contended = sums.contended.map(percent);
        write!(
            f,
            "{per_alloc:>9.2} {:>10} {:>10} {:>10} {:>10}",
            contended.map_or_else(|| "–".into(), |percent| format!("{percent:.2} %")),
            shown(sums.wait_mean()),
            shown(mean(sums.hold_ns, sums.holds)),
            shown((sums.holds > 0).then_some(sums.longest_p99_ns as f64)),
        )
    }
}

/// A row of `/proc/lock_stat` (`kernel/locking/lockdep_proc.c`, 6.1): times in microseconds.
#[derive(Debug, PartialEq)]
struct LockStat {
    contentions: u64,
    wait_mean_us: f64,
    acquisitions: u64,
    hold_mean_us: f64,
}

/// The row of a lock: name, then twelve numbers.
fn lock_stat(text: &str, lock: &str) -> Option<LockStat> {
    let row = text.lines().find_map(|line| {
        let (name, numbers) = line.rsplit_once(": ")?;
        (name.trim() == lock).then_some(numbers)
    })?;
    let numbers: Vec<f64> = row
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    let &[
        _bounces,
        contentions,
        _,
        _,
        _,
        wait_mean_us,
        _,
        acquisitions,
        _,
        _,
        _,
        hold_mean_us,
    ] = numbers.as_slice()
    else {
        return None;
    };
    Some(LockStat {
        contentions: contentions as u64,
        wait_mean_us,
        acquisitions: acquisitions as u64,
        hold_mean_us,
    })
}

impl LockStat {
    fn beside(&self, ours: &Sums) -> String {
        let share = |ours: u64, theirs: u64| match (ours, theirs) {
            (0, 0) => "0".into(),
            (ours, 0) => format!("+{ours}"),
            _ => format!("{:+.2} %", (ours as f64 / theirs as f64 - 1.0) * 100.0),
        };
        let less = |ours: Option<f64>, theirs_us: f64| {
            ours.map_or_else(
                || "–".into(),
                |ours| format!("{:+.0} ns", ours - theirs_us * 1e3),
            )
        };
        format!(
            "{:>12} {:>9} {:>12} {:>9} {:>8.0} ns {:>9} {:>8.0} ns {:>9}",
            self.acquisitions,
            share(ours.acquisitions, self.acquisitions),
            self.contentions,
            ours.contended
                .map_or_else(|| "–".into(), |ours| share(ours, self.contentions)),
            self.wait_mean_us * 1e3,
            less(ours.wait_mean(), self.wait_mean_us),
            self.hold_mean_us * 1e3,
            less(mean(ours.hold_ns, ours.holds), self.hold_mean_us),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cycles_are_summed_over_workers() {
        let log = "<6>Summary: x\n<6>All test took worker0=10 cycles\n<6>All test took worker1=5 cycles\n";
        assert_eq!(cycles(log), Some(15.0));
        assert_eq!(cycles("nothing"), None);
    }

    #[test]
    fn a_change_is_a_ratio_with_its_interval() {
        let text = change(&[100.0, 100.0, 100.0], &[102.0, 102.0, 102.0]);
        assert_eq!(text, "+2.00 % (+2.00 to +2.00)");
        assert!(change(&[100.0], &[101.0]).starts_with("+1.00 %"));
        assert_eq!(change(&[], &[1.0]), "not measured");
    }

    #[test]
    fn a_row_of_lock_stat_is_found_by_its_whole_name() {
        let text = "\
              purge_vmap_area_lock:   1   2   0.1   0.2   0.3   0.15   7   8   0.1   0.2   0.3   0.04
                    vmap_area_lock:   3   4   0.1   0.2   0.3   0.25   9  10   0.1   0.2   0.3   0.05
                    --------------
                    vmap_area_lock              4          [<00000000>] alloc_vmap_area+0x1/0x2
";
        let row = lock_stat(text, "vmap_area_lock").unwrap();
        assert_eq!((row.contentions, row.acquisitions), (4, 10));
        assert_eq!((row.wait_mean_us, row.hold_mean_us), (0.25, 0.05));
        assert_eq!(lock_stat(text, "free_vmap_area_lock"), None);
    }

    #[test]
    fn an_event_is_found_by_its_whole_name() {
        let text = "lock_pending 3\nlock_slowpath 4";
        assert_eq!((event(text, "lock_pending"), event(text, "lock")), (3, 0));
    }

    #[test]
    fn waits_that_cannot_be_seen_are_no_share_of_zero() {
        let row = |contended| {
            serde_json::json!({
                "lock": "vmap_area_lock", "acquisitions": 4, "contended": contended,
                "wait": { "sum_ns": 60 }, "hold": { "count": 4, "sum_ns": 8, "p99_ns": 2 },
            })
        };
        let sums =
            |rows: Vec<Value>| Sums::of(&serde_json::json!({ "locks": rows }), "vmap_area_lock");
        let seen = sums(vec![row(Some(2)), row(Some(1))]);
        assert_eq!((seen.contended, seen.wait_mean()), (Some(3), Some(40.0)));
        let unseen = sums(vec![row(None), row(Some(1))]);
        assert_eq!((unseen.contended, unseen.wait_mean()), (None, None));
        let index = Index {
            sums: unseen,
            allocations: 8,
        };
        assert!(
            index
                .to_string()
                .starts_with("     1.00          –          –"),
            "{index}"
        );
    }

    #[test]
    fn every_published_test_is_a_workload() {
        for (name, _) in PUBLISHED.iter().chain([&(COUNTERED.0, 0.0)]) {
            assert!(
                WORKLOADS.iter().any(|workload| workload.name == *name),
                "{name}"
            );
        }
    }
}
