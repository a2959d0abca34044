//! How long recordings of a day take to read.

use std::fmt;

use serde::Serialize;

use super::number;
use crate::bench::{day::Usage, ledger::Ledger};

/// A command that reads them.
#[derive(Debug, Serialize)]
pub(crate) struct DayLine {
    pub(crate) name: &'static str,
    /// Size of each recording.
    pub(crate) bytes: Option<u64>,
    pub(crate) seconds: Option<f64>,
    /// The most memory that it has resident.
    pub(crate) resident_kib: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
}

pub(crate) struct Days {
    pub(crate) rows: Vec<DayLine>,
}

impl Days {
    pub(crate) fn of(ledger: &Ledger) -> Self {
        let day = ledger.day();
        let line = |name, usage: fn(&crate::bench::day::Day) -> Usage| DayLine {
            name,
            bytes: day.as_ref().ok().map(|day| day.bytes),
            seconds: day.as_ref().ok().map(|day| usage(day).seconds),
            resident_kib: day.as_ref().ok().map(|day| usage(day).resident_kib),
            reason: day.as_ref().err().cloned(),
        };
        Self {
            rows: vec![
                line("report", |day| day.report),
                line("compare", |day| day.compare),
            ],
        }
    }
}

impl fmt::Display for Days {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib =
            |bytes: Option<f64>| number(bytes.map(|bytes| bytes / f64::from(1 << 20)), 1, " MiB");
        writeln!(
            f,
            "\nrecordings of a day, 86,400 intervals of a second, medians\n"
        )?;
        for line in &self.rows {
            match &line.reason {
                Some(reason) => writeln!(f, "  {:16} not measured: {reason}", line.name)?,
                None => writeln!(
                    f,
                    "  {:16} {:>9} resident {:>10}, of recordings of {}",
                    line.name,
                    number(line.seconds, 3, " s"),
                    mib(line.resident_kib.map(|kib| kib * 1024.0)),
                    mib(line.bytes.map(|bytes| bytes as f64)),
                )?,
            }
        }
        Ok(())
    }
}
