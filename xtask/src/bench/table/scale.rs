//! What recording takes for itself.

use std::fmt;

use serde::Serialize;

use super::number;
use crate::bench::{
    guest::{self, What},
    ledger::Ledger,
    scale::{HOST, HOST_LEVEL, SHAPES},
};

/// What recording takes for itself on a kernel that may have many CPUs.
#[derive(Debug, Serialize)]
pub(crate) struct ScaleLine {
    pub(crate) name: &'static str,
    pub(crate) kernel: &'static str,
    pub(crate) level: &'static str,
    pub(crate) about: &'static str,
    pub(crate) possible_cpus: Option<u32>,
    /// CPU time of one interval, of a second.
    pub(crate) interval_s: Option<f64>,
    pub(crate) resident_kib: Option<u64>,
    pub(crate) resident_peak_kib: Option<u64>,
    pub(crate) maps_bytes: Option<u64>,
    pub(crate) maps_bytes_per_cpu: Option<f64>,
    /// Histograms that all CPUs add to in an interval, and octaves of them; where it is simulated.
    pub(crate) series: Option<u32>,
    pub(crate) octaves: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
}

pub(crate) struct Scales {
    pub(crate) rows: Vec<ScaleLine>,
}

impl Scales {
    pub(crate) fn of(ledger: &Ledger, kernels: &[&'static str], on_host: bool) -> Self {
        let kernels = kernels.iter().copied();
        let shapes = kernels
            .chain(on_host.then_some(HOST))
            .flat_map(|kernel| SHAPES.iter().map(move |shape| (kernel, shape)));
        let rows = shapes.filter_map(|(kernel, shape)| {
            let own = ledger.get(&guest::id(kernel, What::Scale(shape)))?;
            let seen = own.seen;
            let busy = seen.filter(|seen| seen.series > 0);
            Some(ScaleLine {
                name: shape.name,
                kernel,
                level: if kernel == HOST { HOST_LEVEL } else { "full" },
                about: shape.about,
                possible_cpus: seen.map(|seen| seen.possible_cpus),
                interval_s: seen.map(|seen| seen.interval_ns() / 1e9),
                resident_kib: seen.map(|seen| seen.resident_kib),
                resident_peak_kib: seen.map(|seen| seen.resident_peak_kib),
                maps_bytes: seen.map(|seen| seen.maps_bytes),
                maps_bytes_per_cpu: seen.map(|seen| seen.bytes_per_cpu()),
                series: busy.map(|seen| seen.series),
                octaves: busy.map(|seen| seen.octaves),
                reason: own.reason.clone(),
            })
        });
        Self {
            rows: rows.collect(),
        }
    }
}

impl fmt::Display for Scales {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |kib: Option<u64>| number(kib.map(|kib| kib as f64 / 1024.0), 1, " MiB");
        for line in &self.rows {
            writeln!(
                f,
                "\nrecording at level {}, one interval a second, {}\n",
                line.level, line.kernel
            )?;
            let of_what = match line.kernel {
                HOST => "",
                _ => " of 1,000 instructions a µs",
            };
            if let Some(reason) = &line.reason {
                writeln!(f, "  not measured: {reason}")?;
                continue;
            }
            let cpus = line.possible_cpus.unwrap_or_default();
            writeln!(
                f,
                "  {cpus} possible CPUs, {}: {} of a CPU{of_what}; resident {}, at most {}; maps {}, {} for \
                 each CPU",
                line.about,
                number(line.interval_s.map(|s| s * 100.0), 2, " %"),
                mib(line.resident_kib),
                mib(line.resident_peak_kib),
                mib(line.maps_bytes.map(|bytes| bytes / 1024)),
                number(
                    line.maps_bytes_per_cpu.map(|bytes| bytes / 1024.0),
                    0,
                    " KiB"
                ),
            )?;
            if let (Some(series), Some(octaves)) = (line.series, line.octaves) {
                writeln!(
                    f,
                    "  in each interval {series} histograms of each CPU change, {octaves} octaves of them"
                )?;
            }
        }
        Ok(())
    }
}
