//! What tools say of a hold whose length is known, when nobody else wants the lock.
//!
//! In: a lab kernel. Out: for each tool the mean hold and wait that it reports of holds of a
//! thousand instructions, on `vmap_area_lock`, taken by the module `known_hold`. The thousand is
//! checked in a boot without any tool: the same loop with and without it differs by that. What is
//! reported above is the tool. An uncontended lock is waited for by the few instructions that take
//! it, so that a reported wait is all but entirely the tool.

use std::{path::Path, process::Command};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::scripts::{self, Hooks};
use crate::command;

/// How often the lock is taken.
const LOOPS: u32 = 10_000;

/// A way of watching.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tool {
    /// None: the truth.
    Truth,
    KcoreTrace,
    Bpftrace,
    Klockstat,
}

impl Tool {
    pub(crate) const ALL: [Self; 4] = [
        Self::Truth,
        Self::KcoreTrace,
        Self::Bpftrace,
        Self::Klockstat,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Truth => "truth",
            Self::KcoreTrace => "kcore-trace",
            Self::Bpftrace => "bpftrace",
            Self::Klockstat => "klockstat",
        }
    }

    pub(crate) fn needs_peers(self) -> bool {
        matches!(self, Self::Bpftrace | Self::Klockstat)
    }

    /// The step of a guest's script.
    pub(crate) fn step(self, name: &str, kernel: &str) -> Value {
        let kind = if kernel.starts_with("rwsem") {
            "rwsem"
        } else {
            "spinlock"
        };
        let mut step = json!({
            "name": name,
            "cpus": 1,
            "module": "known_hold",
            "parameters": [
                "lock=@vmap_area_lock".to_owned(),
                format!("kind={kind}"),
                format!("loops={LOOPS}"),
                format!("compare={}", u32::from(self == Self::Truth)),
            ],
            "bench": true,
        });
        match self {
            Self::Truth => (),
            Self::KcoreTrace => step["level"] = json!("full"),
            Self::Bpftrace => {
                let script = scripts::bpftrace(kernel, Hooks::Kprobe, "stats");
                step["around"] = json!(["/bin/bpftrace", "-e", script, "-c"]);
                step["as_one_word"] = json!(true);
            }
            Self::Klockstat => {
                let words = [
                    "/init",
                    "--bench-beside",
                    "/bin/klockstat",
                    "-L",
                    "vmap_area_lock",
                ];
                step["around"] = json!([&words[..], &["--"]].concat());
            }
        }
        step
    }

    /// What it reports, from the files that the guest sent.
    pub(crate) fn reported(self, folder: &Path, binary: &Path) -> Result<Reported> {
        let text = |name: &str| {
            let path = folder.join(name);
            std::fs::read_to_string(&path)
                .with_context(|| format!("the guest sent no {}", path.display()))
        };
        match self {
            Self::Truth => truth(&text("log")?).context("the module said nothing"),
            Self::KcoreTrace => {
                let mut report = Command::new(binary);
                report.args(["kcore-trace", "report", "--format", "json"]);
                let report = command::output(report.arg(folder.join("kct")))?;
                of_report(&serde_json::from_str(&report)?)
                    .context("its report does not have the holds of the module")
            }
            Self::Bpftrace => Ok(of_bpftrace(&text("out")?)),
            Self::Klockstat => Ok(of_klockstat(&text("out")?)),
        }
    }
}

/// Means in nanoseconds, which are instructions; nothing for what is not reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Reported {
    pub(crate) hold: Option<f64>,
    pub(crate) wait: Option<f64>,
}

/// What the loop of the module takes more with the hold than without.
fn truth(log: &str) -> Option<Reported> {
    // The kernel says more of the module than it says itself.
    log.lines().find_map(|line| {
        let (_, line) = line.split_once("known_hold: ")?;
        let words = line.split([' ', ',']);
        let numbers: Vec<f64> = words.filter_map(|word| word.parse().ok()).collect();
        let [loops, with, without] = numbers.as_slice() else {
            return None;
        };
        Some(Reported {
            hold: Some((with - without) / loops),
            wait: None,
        })
    })
}

/// The row of acquisitions outside of any op of vmalloc, which are the module's.
fn of_report(report: &Value) -> Option<Reported> {
    let row = report["locks"].as_array()?.iter().find(|row| {
        row["lock"] == "vmap_area_lock"
            && row["acquisitions"].as_u64() >= Some(LOOPS.into())
            && row["op"] == "other"
    })?;
    let mean = |of: &Value| Some(of["sum_ns"].as_f64()? / of["count"].as_f64()?);
    let waits = row["wait"]["count"].as_u64().filter(|count| *count > 0);
    Some(Reported {
        hold: mean(&row["hold"]),
        wait: waits.and_then(|_| mean(&row["wait"])),
    })
}

/// Of each map the line with most samples, which are the module's.
fn of_bpftrace(said: &str) -> Reported {
    let mean = |map: &str| {
        let lines = said.lines().filter(|line| line.starts_with(map));
        let numbers = lines.filter_map(|line| {
            let after = |word: &str| {
                let (_, rest) = line.split_once(word)?;
                rest.split([',', ' ']).next()?.parse::<f64>().ok()
            };
            Some((after("count ")?, after("total ")?))
        });
        let (count, total) = numbers.max_by(|a, b| a.0.total_cmp(&b.0))?;
        (count >= f64::from(LOOPS)).then_some(total / count)
    };
    Reported {
        hold: mean("@hold["),
        wait: mean("@wait["),
    }
}

/// Of both tables the row with so many acquisitions; its times have a digit after the point.
fn of_klockstat(said: &str) -> Reported {
    let mut reported = Reported::default();
    let mut in_holds = false;
    for line in said.lines() {
        if line.contains("Avg Hold") {
            in_holds = true;
        } else if line.contains("Avg Wait") {
            in_holds = false;
        }
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let count = words
            .iter()
            .position(|word| word.parse::<u32>().is_ok_and(|count| count >= LOOPS));
        let Some(count) = count.filter(|count| *count >= 2) else {
            continue;
        };
        let time = duration(words[count - 2], words[count - 1]);
        let place = if in_holds {
            &mut reported.hold
        } else {
            &mut reported.wait
        };
        *place = place.or(time);
    }
    reported
}

/// A time and its unit, in nanoseconds.
fn duration(number: &str, unit: &str) -> Option<f64> {
    let unit = match unit {
        "ns" => 1.0,
        "us" => 1e3,
        "ms" => 1e6,
        _ => return None,
    };
    Some(number.parse::<f64>().ok()? * unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_truth_is_what_the_hold_adds_to_a_loop() {
        let log = "<4>known_hold: loading out-of-tree module taints kernel.\n\
                   <6>known_hold: 10000 loops, 10200000 cycles, 200000 without the hold\n";
        assert_eq!(truth(log).unwrap().hold, Some(1000.0));
    }

    #[test]
    fn bpftrace_says_most_of_the_lock_that_the_module_takes() {
        let said = "@hold[-1]: count 3, average 9, total 27\n\
                    @hold[-2]: count 10001, average 4000, total 40004000\n\
                    @wait[-2]: count 10001, average 3, total 30003\n";
        let reported = of_bpftrace(said);
        assert_eq!(
            reported,
            Reported {
                hold: Some(4000.0),
                wait: Some(3.0)
            }
        );
    }

    #[test]
    fn klockstat_says_waits_and_holds_in_two_tables() {
        let said = "  Caller  Avg Wait  Count  Max Wait  Total Wait\n\
                    x+0x1  930 ns  10000  2.0 us  9.3 ms\n\n\
                    Caller  Avg Hold  Count  Max Hold  Total Hold\n\
                    x+0x1  1.9 us  10000  2.0 us  19.3 ms\n";
        let reported = of_klockstat(said);
        assert_eq!(
            reported,
            Reported {
                hold: Some(1900.0),
                wait: Some(930.0)
            }
        );
    }
}
