//! What watching costs on the running kernel: throughput, and the time until it watches.
//!
//! In: the tool and the peers. Out: for each way of watching the operations a second of the same
//! load, several times, in turns with the load alone, so that what else the machine does falls on
//! all alike; what is compared is the median of the ratios within a turn. And, in runs of their own, since it
//! costs something too, how long the programs ran as the kernel times them, which what else the machine does
//! moves least.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use statrs::statistics::{Data, OrderStatistics as _};

use super::{peers::Peers, scripts};
use crate::{command::shown, privilege::Privilege};

/// A way of watching the running kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watch {
    Nothing,
    /// The tool, as well as this kernel lets it.
    Tool,
    /// Empty programs on the same hooks: what the kernel needs to run programs, and to time them.
    Floor,
    /// Every contention of every lock, with eight frames of its stack.
    Bpftrace,
}

impl Watch {
    pub(crate) const ALL: [Self; 4] = [Self::Nothing, Self::Tool, Self::Floor, Self::Bpftrace];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "none",
            Self::Tool => "kcore-trace",
            Self::Floor => "floor",
            Self::Bpftrace => "bpftrace",
        }
    }
}

/// One run of the load.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) ops_per_s: f64,
    /// Seconds from exec to the start of the load.
    pub(crate) ready_s: f64,
    /// Part of the time of all CPUs that programs ran, in a run in which the kernel timed them.
    #[serde(default)]
    pub(crate) programs: Option<f64>,
    /// Why that is not known, where programs ran.
    #[serde(default)]
    pub(crate) programs_missing: Option<String>,
}

impl Run {
    /// What a load left: its rate, the times of its clock, and the share of programs where some ran.
    fn new(rate: f64, times: &str, programs: Option<Result<f64>>) -> Result<Self> {
        let (programs, missing) = match programs {
            Some(Ok(share)) => (Some(share), None),
            Some(Err(error)) => (None, Some(format!("{error:#}"))),
            None => (None, None),
        };
        Ok(Self {
            ops_per_s: rate,
            ready_s: seconds_between(times).context("the load left no times")?,
            programs,
            programs_missing: missing,
        })
    }
}

/// What came of each way of watching in a turn, or why nothing did.
pub(crate) type Turn = BTreeMap<String, Result<Run, String>>;

/// What measures on this machine.
pub(crate) struct Host<'a> {
    /// The tool, as `TOOL kcore-trace ARGUMENTS`.
    pub(crate) tool: &'a Path,
    pub(crate) peers: &'a Result<Peers, String>,
    pub(crate) folder: PathBuf,
    pub(crate) seconds: u32,
}

impl Host<'_> {
    /// Runs the load while that watches: alone, and where programs run, once more with the kernel timing
    /// them, which not every kernel does.
    pub(crate) fn run(&self, watch: Watch) -> Result<Run> {
        let (rate, times) = self.load(watch, false)?;
        let programs = (watch != Watch::Nothing).then(|| self.programs(watch));
        Run::new(rate, &times, programs)
    }

    /// The part of the time of all CPUs that programs run while that watches the load.
    fn programs(&self, watch: Watch) -> Result<f64> {
        let (_, times) = self.load(watch, true)?;
        share_of_cpus(&times).context("the clock left no times of programs")
    }

    /// Runs the load once while that watches: its rate, and what times its clock left.
    fn load(&self, watch: Watch, times_programs: bool) -> Result<(f64, String)> {
        mount_tracefs()?;
        let clock = self.folder.join("clock");
        let recording = self.folder.join("host.kct");
        let [tool, clock_path, recording] =
            [self.tool, &clock, &recording].map(|path| path.display().to_string());
        let began = now()?;
        let mut load: Vec<String> = [&tool, "--bench-clock", &clock_path, &began]
            .map(str::to_owned)
            .into();
        load.extend(times_programs.then(|| "programs".to_owned()));
        load.extend(["--", &tool, "kcore-trace", "stress", "--maps", "4", "-d"].map(str::to_owned));
        load.push(format!("{}s", self.seconds));
        let words = match watch {
            Watch::Nothing => load,
            Watch::Tool => {
                let record = [
                    &tool,
                    "kcore-trace",
                    "record",
                    "--force",
                    "-o",
                    &recording,
                    "--",
                ];
                record.map(str::to_owned).into_iter().chain(load).collect()
            }
            Watch::Floor => {
                let floor = [&tool, "--bench-floor", "full", "--"];
                floor.map(str::to_owned).into_iter().chain(load).collect()
            }
            Watch::Bpftrace => {
                let peers = self
                    .peers
                    .as_ref()
                    .map_err(|e| anyhow::Error::msg(e.clone()))?;
                let mut words = peers.command("bpftrace");
                words.extend(["-e", scripts::CONTENTION, "-c"].map(str::to_owned));
                words.push(load.join(" "));
                words
            }
        };
        let output = as_root(&words)?;
        let times = fs::read_to_string(&clock).context("the load left no times")?;
        let rate = rate(&output).with_context(|| format!("no rate in: {output}"))?;
        Ok((rate, times))
    }
}

/// Where bpftrace finds tracepoints; not every machine mounts it by itself.
fn mount_tracefs() -> Result<()> {
    const PLACE: &str = "/sys/kernel/tracing";
    if Path::new(PLACE).join("events").exists() {
        return Ok(());
    }
    as_root(&["mount", "-t", "tracefs", "nodev", PLACE].map(str::to_owned)).map(drop)
}

/// The machine, in a few words.
pub(crate) fn machine() -> String {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let processors = text("/proc/cpuinfo");
    let model = processors
        .lines()
        .find(|line| line.starts_with("model name"));
    let model = model
        .and_then(|line| line.split_once(": "))
        .map_or("", |(_, model)| model);
    let count = cpus();
    let release = text("/proc/sys/kernel/osrelease");
    format!("{count} CPUs, {model}, Linux {}", release.trim())
}

/// Runs words as root and takes what they print.
pub(super) fn as_root(words: &[String]) -> Result<String> {
    let (program, arguments) = words.split_first().context("no command")?;
    let mut command: Command = Privilege::find()
        .command(program)
        .context("tracing needs root; run this with sudo, or as root")?;
    command.args(arguments).stdin(Stdio::null());
    let output = command.output()?;
    let said = [output.stdout.as_slice(), &output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    if !output.status.success() {
        bail!("{}: `{}`\n{}", output.status, shown(&command), said.trim());
    }
    Ok(said)
}

/// The clock that all processes share, in nanoseconds.
fn now() -> Result<String> {
    let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
    Ok(now.as_nanos().to_string())
}

/// The rate in the line that the load ends with.
fn rate(output: &str) -> Option<f64> {
    let line = output.lines().find(|line| line.starts_with("maps "))?;
    let (rest, _) = line.split_once(" ops/s")?;
    rest.rsplit(' ').next()?.parse().ok()
}

/// Seconds between the first two times of a line.
fn seconds_between(line: &str) -> Option<f64> {
    let [began, ready, ..] = numbers(line)[..] else {
        return None;
    };
    Some((ready - began) / 1e9)
}

/// The part of the time of all CPUs that programs ran, by the last two times of a line.
fn share_of_cpus(line: &str) -> Option<f64> {
    let [_, _, took, programs] = numbers(line)[..] else {
        return None;
    };
    Some(programs / took / cpus() as f64)
}

fn numbers(line: &str) -> Vec<f64> {
    let words = line.split_ascii_whitespace();
    words.filter_map(|word| word.parse().ok()).collect()
}

fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The median of some numbers.
pub(crate) fn median(values: Vec<f64>) -> Option<f64> {
    (!values.is_empty()).then(|| Data::new(values).median())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_read_from_the_line_of_the_load() {
        let line = "Attaching 2 probes...\nmaps             4 processes       335756 ops      4.001 s        83918 ops/s\n";
        assert_eq!(rate(line), Some(83918.0));
        assert_eq!(rate("maps of nothing"), None);
    }

    #[test]
    fn times_are_read_from_the_line_of_the_clock() {
        let line = "1000000000 1500000000 4000000000 100000000";
        assert_eq!(seconds_between(line), Some(0.5));
        assert_eq!(share_of_cpus(line), Some(0.025 / cpus() as f64));
        assert_eq!(share_of_cpus("1000000000 1500000000"), None);
    }

    #[test]
    fn a_kernel_that_times_no_programs_still_has_a_throughput() {
        let refused = Err(anyhow::Error::msg("the kernel times no programs"));
        let run = Run::new(83918.0, "1000000000 1500000000", Some(refused)).unwrap();
        assert_eq!((run.ops_per_s, run.programs), (83918.0, None));
        let missing = run.programs_missing.as_deref();
        assert_eq!(missing, Some("the kernel times no programs"));
        let alone = Run::new(90000.0, "1000000000 1500000000", None).unwrap();
        assert_eq!((alone.programs, alone.programs_missing), (None, None));
    }

    #[test]
    fn the_median_of_an_even_number_lies_between() {
        assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]), Some(2.5));
        assert_eq!(median(vec![]), None);
    }
}
