//! What tools say of a hold of known length.

use std::fmt;

use serde::Serialize;

use super::number;
use crate::bench::{
    accuracy::Tool,
    guest::{self, What},
    ledger::Ledger,
};

/// What a tool says of holds of a known length.
#[derive(Debug, Serialize)]
pub(crate) struct HoldLine {
    pub(crate) name: &'static str,
    pub(crate) kernel: &'static str,
    /// Instructions that the lock is held for.
    pub(crate) hold_true: Option<f64>,
    pub(crate) hold_reported: Option<f64>,
    /// How much of the reported hold is the tool.
    pub(crate) hold_inflated_by: Option<f64>,
    pub(crate) wait_reported: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
}

pub(crate) struct Holds {
    pub(crate) rows: Vec<HoldLine>,
}

impl Holds {
    pub(crate) fn of(ledger: &Ledger, kernels: &[&'static str], tools: &[Tool]) -> Self {
        let rows = kernels.iter().flat_map(|kernel| {
            let measured = |tool| ledger.get(&guest::id(kernel, What::Accuracy(tool)));
            let truth = measured(Tool::Truth).and_then(|truth| truth.reported?.hold);
            tools.iter().filter_map(move |&tool| {
                let own = measured(tool)?;
                let reported = own.reported.unwrap_or_default();
                let silent = || {
                    reported
                        .hold
                        .is_none()
                        .then(|| "it reported no hold".to_owned())
                };
                Some(HoldLine {
                    name: tool.name(),
                    kernel,
                    hold_true: truth,
                    hold_reported: reported.hold,
                    hold_inflated_by: reported.hold.zip(truth).map(|(said, truth)| said - truth),
                    wait_reported: reported.wait,
                    reason: own.reason.clone().or_else(silent),
                })
            })
        });
        Self {
            rows: rows.collect(),
        }
    }
}

impl fmt::Display for Holds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.rows.is_empty() {
            return Ok(());
        }
        writeln!(
            f,
            "\nvmap_area_lock, which nobody else wants, taken for so many instructions\n"
        )?;
        writeln!(
            f,
            "  {:16} {:16} {:>9} {:>9} {:>9} {:>9}",
            "", "kernel", "true", "said", "too much", "wait said"
        )?;
        for line in self
            .rows
            .iter()
            .filter(|line| line.name != Tool::Truth.name())
        {
            if let Some(reason) = &line.reason {
                writeln!(
                    f,
                    "  {:16} {:16} not measured: {reason}",
                    line.name, line.kernel
                )?;
                continue;
            }
            writeln!(
                f,
                "  {:16} {:16} {:>9} {:>9} {:>9} {:>9}",
                line.name,
                line.kernel,
                number(line.hold_true, 1, ""),
                number(line.hold_reported, 1, ""),
                number(line.hold_inflated_by, 1, ""),
                number(line.wait_reported, 1, ""),
            )?;
        }
        Ok(())
    }
}
