//! What watching costs on the running kernel.

use std::fmt;

use serde::Serialize;

use super::number;
use crate::bench::{
    host::{self, Turn, Watch},
    ledger::Ledger,
};

/// A way of watching the running kernel.
#[derive(Debug, Serialize)]
pub(crate) struct HostLine {
    pub(crate) name: &'static str,
    /// Turns that were measured.
    pub(crate) turns: usize,
    pub(crate) ops_per_s: Option<f64>,
    /// Part of the throughput that is lost, the median of the turns.
    pub(crate) lost: Option<f64>,
    /// By what the other tool loses.
    pub(crate) lost_by_bpftrace: Option<f64>,
    /// Part of the time of all CPUs that programs ran, the median of the turns.
    pub(crate) programs: Option<f64>,
    /// Why it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) programs_missing: Option<String>,
    /// By what the programs of the other tool ran.
    pub(crate) programs_by_bpftrace: Option<f64>,
    /// Seconds from exec to the start of the load.
    pub(crate) ready_s: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
}

/// The running kernel.
pub(crate) struct Host {
    pub(crate) rows: Vec<HostLine>,
}

impl Host {
    pub(crate) fn of(ledger: &Ledger) -> Self {
        let turns = ledger.turns();
        let lost = |watch: Watch| host::median(losses(turns, watch));
        let runs = |watch: Watch| {
            let turns = turns.iter();
            turns.filter_map(move |turn| turn.get(watch.name())?.as_ref().ok())
        };
        let programs =
            |watch: Watch| host::median(runs(watch).filter_map(|run| run.programs).collect());
        let rows = Watch::ALL.map(|watch| {
            let reason = turns
                .iter()
                .find_map(|turn| turn.get(watch.name())?.as_ref().err());
            HostLine {
                name: watch.name(),
                turns: runs(watch).count(),
                ops_per_s: host::median(runs(watch).map(|run| run.ops_per_s).collect()),
                lost: lost(watch),
                lost_by_bpftrace: lost(watch).zip(lost(Watch::Bpftrace)).map(|(a, b)| a / b),
                programs: programs(watch),
                programs_missing: runs(watch).find_map(|run| run.programs_missing.clone()),
                programs_by_bpftrace: programs(watch)
                    .zip(programs(Watch::Bpftrace))
                    .map(|(a, b)| a / b),
                ready_s: host::median(runs(watch).map(|run| run.ready_s).collect()),
                reason: reason.cloned(),
            }
        });
        Self { rows: rows.into() }
    }
}

/// What watching loses in each turn, by the load alone in the same turn.
fn losses(turns: &[Turn], watch: Watch) -> Vec<f64> {
    let rate = |turn: &Turn, watch: Watch| {
        let run = turn.get(watch.name())?.as_ref().ok()?;
        Some(run.ops_per_s)
    };
    let losses = turns
        .iter()
        .filter_map(|turn| Some(1.0 - rate(turn, watch)? / rate(turn, Watch::Nothing)?));
    losses.collect()
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\nthe running kernel: four processes of map churn, medians\n"
        )?;
        writeln!(
            f,
            "  {:16} {:>5} {:>10} {:>8} {:>12} {:>14} {:>12} {:>9}",
            "",
            "turns",
            "ops/s",
            "lost",
            "by bpftrace",
            "programs' time",
            "by bpftrace",
            "attached"
        )?;
        for line in &self.rows {
            if let Some(reason) = &line.reason {
                writeln!(f, "  {:16} failed: {reason}", line.name)?;
            }
            if let Some(reason) = &line.programs_missing {
                writeln!(f, "  {:16} no programs' time: {reason}", line.name)?;
            }
            writeln!(
                f,
                "  {:16} {:>5} {:>10} {:>8} {:>12} {:>14} {:>12} {:>9}",
                line.name,
                line.turns,
                number(line.ops_per_s, 0, ""),
                number(line.lost.map(|lost| lost * 100.0), 1, " %"),
                number(line.lost_by_bpftrace, 2, ""),
                number(line.programs.map(|share| share * 100.0), 2, " %"),
                number(line.programs_by_bpftrace, 2, ""),
                number(line.ready_s, 3, " s"),
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_is_taken_within_a_turn() {
        let run = |ops_per_s| {
            Ok(host::Run {
                ops_per_s,
                ready_s: 0.0,
                programs: None,
                programs_missing: None,
            })
        };
        let turn = |none, ours| {
            Turn::from([
                ("none".to_owned(), run(none)),
                ("kcore-trace".to_owned(), run(ours)),
            ])
        };
        let turns = [turn(100.0, 90.0), turn(10.0, 8.0)];
        let lost = losses(&turns, Watch::Tool);
        assert!((lost[0] - 0.1).abs() < 1e-9 && (lost[1] - 0.2).abs() < 1e-9);
    }
}
