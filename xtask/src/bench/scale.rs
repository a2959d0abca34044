//! What recording takes for itself where there may be many CPUs.
//!
//! In: what a guest saw from outside the recorder. Out: its numbers by interval and by CPU. The
//! guest runs one of its CPUs, so that maps and snapshots are those of a big machine
//! while its clock still counts instructions.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// CPUs that the guest has.
pub(crate) const CPUS: u32 = 64;
/// All but one of them stay asleep, and may come at any time as far as the kernel knows.
pub(crate) const WORDS: &str = "maxcpus=1";

/// Intervals of a second that are watched.
const SECONDS: u32 = 20;

/// The step of a guest's script: a recorder at level full while something is recorded.
pub(crate) fn step(name: &str) -> Value {
    let seconds = SECONDS.to_string();
    json!({
        "name": name,
        "cpus": 1,
        "bench": true,
        "around": ["/init", "--bench-recorder", "full", seconds, "--"],
        "stress": ["--maps", "1", "-d", format!("{}s", SECONDS + 10)],
    })
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
}

impl Seen {
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("out");
        let said = std::fs::read_to_string(&path)
            .with_context(|| format!("the guest sent no {}", path.display()))?;
        let line = said.lines().find(|line| line.starts_with('{'));
        Ok(serde_json::from_str(
            line.context("the guest saw nothing")?,
        )?)
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
