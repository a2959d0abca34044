//! How long `report` and `compare` take over recordings of a day.
//!
//! In: the tool. Out: the time of each command and the memory that it has, the median of several
//! runs on this machine. The days are made of real recordings of a few seconds, in which every
//! lock is busy, so that each interval is as large as intervals become.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::host::{self, as_root};

/// Runs of each command.
const RUNS: usize = 7;
/// Seconds that the short recordings last.
const SECONDS: &str = "8s";

/// What was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Day {
    pub(crate) bytes: u64,
    pub(crate) report: Usage,
    pub(crate) compare: Usage,
}

/// What a command takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Usage {
    pub(crate) seconds: f64,
    pub(crate) resident_kib: f64,
}

/// Makes two days, and reads them.
pub(crate) fn measure(tool: &Path, folder: &Path) -> Result<Day> {
    let path = |name: &str| folder.join(name).display().to_string();
    let tool = tool.display().to_string();
    let days = [path("day-a.kct"), path("day-b.kct")];
    for day in &days {
        let short = path("short.kct");
        let words = [
            &tool,
            "kcore-trace",
            "record",
            "--force",
            "-o",
            &short,
            "--",
            &tool,
            "kcore-trace",
            "stress",
            "--maps",
            "4",
            "--vmallocinfo",
            "2",
            "-d",
            SECONDS,
        ];
        as_root(&words.map(str::to_owned))?;
        as_root(&[&tool, "--bench-day", &short, day, "--"].map(str::to_owned))?;
    }
    let [a, b] = &days;
    let usage = path("usage");
    let taken = |arguments: &[&str]| {
        let mut words = vec![
            tool.as_str(),
            "--bench-usage",
            &usage,
            "--",
            &tool,
            "kcore-trace",
        ];
        words.extend(arguments);
        taken(&words, Path::new(&usage))
    };
    let day = Day {
        bytes: fs::metadata(a)?.len(),
        report: taken(&["report", a])?,
        compare: taken(&["compare", a, b])?,
    };
    for name in days.iter().chain([&usage]) {
        as_root(&["rm", "-f", name].map(str::to_owned))?;
    }
    Ok(day)
}

fn taken(words: &[&str], usage: &Path) -> Result<Usage> {
    let mut runs = Vec::new();
    for _ in 0..RUNS {
        let words: Vec<_> = words.iter().map(|&word| word.to_owned()).collect();
        // `compare` says by its exit code what it found.
        let _ = as_root(&words);
        let line = fs::read_to_string(usage).context("the command left no times")?;
        let numbers = line.trim().split_once(' ');
        let numbers = numbers.and_then(|(ns, kib)| Some((ns.parse().ok()?, kib.parse().ok()?)));
        let (ns, kib): (f64, f64) = numbers.context("the command left no times")?;
        runs.push((ns / 1e9, kib));
    }
    let median = |values: Vec<f64>| host::median(values).context("no run");
    Ok(Usage {
        seconds: median(runs.iter().map(|run| run.0).collect())?,
        resident_kib: median(runs.iter().map(|run| run.1).collect())?,
    })
}
