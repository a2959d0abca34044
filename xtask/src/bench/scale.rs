//! What recording takes for itself where there may be many CPUs.
//!
//! In: what a guest saw from outside the recorder. Out: its numbers by interval and by CPU. The
//! guest runs one CPU, so that its clock still counts instructions. It has 64, of which the others
//! sleep, or the recorder is made believe that there are 256 and finds that all of them count. That it is
//! made believe on the running kernel as well, which counts what it takes in its own time.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::host::as_root;

/// A machine.
#[derive(Debug)]
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    /// What users read.
    pub(crate) about: &'static str,
    /// CPUs that the guest has.
    pub(crate) cpus: u32,
    /// Words for its kernel.
    pub(crate) words: &'static str,
    /// Whether the recorder is made believe in more of them.
    crowded: bool,
}

/// Without the two features for which a kernel copies memory by one instruction that repeats itself for
/// each byte: a snapshot copies much, and counting would take each byte for an instruction.
pub(crate) const CPU: &str = "max,-hypervisor,-erms,-fsrm";

/// In place of a kernel's name: the one that is running.
pub(crate) const HOST: &str = "host";
/// What it is measured at, since not every kernel lets more be measured.
pub(crate) const HOST_LEVEL: &str = "contended";

pub(crate) static SHAPES: [Shape; 2] = [
    Shape {
        name: "scale",
        about: "one of them runs",
        cpus: 64,
        // All but one stay asleep, and may come at any time as far as the kernel knows.
        words: "maxcpus=1",
        crowded: false,
    },
    Shape {
        name: "scale-crowd",
        about: "all of them take and wait for the same locks (simulated)",
        cpus: 1,
        words: "",
        crowded: true,
    },
];

/// Intervals of a second that are watched.
const SECONDS: u32 = 20;

impl Shape {
    /// The step of a guest's script: a recorder at level full while something is recorded.
    pub(crate) fn step(&self, name: &str) -> Value {
        let seconds = SECONDS.to_string();
        let mut around = vec!["/init", "--bench-recorder", "full", seconds.as_str()];
        around.extend(self.crowded.then_some("crowd"));
        around.push("--");
        json!({
            "name": name,
            "cpus": 1,
            "bench": true,
            "around": around,
            "stress": ["--maps", "1", "-d", format!("{}s", SECONDS + 20)],
        })
    }
}

/// What a guest saw.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Seen {
    pub(crate) possible_cpus: u32,
    intervals: u32,
    cpu_ns: u64,
    pub(crate) resident_kib: u64,
    pub(crate) resident_peak_kib: u64,
    pub(crate) maps: u32,
    pub(crate) maps_bytes: u64,
    /// Histograms that all CPUs added to in each interval, and octaves of them.
    #[serde(default)]
    pub(crate) series: u32,
    #[serde(default)]
    pub(crate) octaves: u32,
}

impl Seen {
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("out");
        let said = std::fs::read_to_string(&path)
            .with_context(|| format!("the guest sent no {}", path.display()))?;
        Self::parse(&said)
    }

    /// What is seen of a recorder on the running kernel that is made believe in many CPUs.
    pub(crate) fn on_host(tool: &Path) -> Result<Self> {
        let tool = tool.display().to_string();
        let (seconds, load) = (SECONDS.to_string(), format!("{}s", SECONDS + 20));
        let words = [
            &tool,
            "--bench-recorder",
            HOST_LEVEL,
            &seconds,
            "crowd",
            "--",
            &tool,
            "kcore-trace",
            "stress",
            "--maps",
            "1",
            "-d",
            &load,
        ];
        Self::parse(&as_root(&words.map(str::to_owned))?)
    }

    fn parse(said: &str) -> Result<Self> {
        let line = said.lines().find(|line| line.starts_with('{'));
        let line = line.with_context(|| format!("nothing was seen: {said}"))?;
        Ok(serde_json::from_str(line)?)
    }

    /// CPU time of one interval: a snapshot, and writing it.
    pub(crate) fn interval_ns(&self) -> f64 {
        self.cpu_ns as f64 / f64::from(self.intervals)
    }

    /// Memory of the maps for each CPU that there may be.
    pub(crate) fn bytes_per_cpu(&self) -> f64 {
        self.maps_bytes as f64 / f64::from(self.possible_cpus)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::qemu;

    #[test]
    fn the_machine_is_that_of_the_other_rows_with_less() {
        assert!(CPU.starts_with(qemu::CPU));
    }

    #[test]
    fn what_was_seen_is_spread_over_intervals_and_cpus() {
        let folder = tempfile::tempdir().unwrap();
        let said = r#"{"intervals":20,"cpu_ns":40000000,"resident_kib":9000,"resident_peak_kib":9100,"maps":9,"maps_bytes":6400,"possible_cpus":64}"#;
        std::fs::write(folder.path().join("out"), said).unwrap();
        let seen = Seen::read(folder.path()).unwrap();
        assert!((seen.interval_ns() - 2e6).abs() < 1e-9);
        assert!((seen.bytes_per_cpu() - 100.0).abs() < 1e-9);
    }
}
