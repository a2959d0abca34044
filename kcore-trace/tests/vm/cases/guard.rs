//! The guard: what costs more than it may is reduced step by step, and tried again later.
//!
//! What measuring costs on an emulated machine says nothing, so the limits are such that it is
//! always above or always below.

use std::io::{BufRead as _, BufReader};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::guest::{Guest, Outcome};
use crate::tool::{self, Report};

/// Less than the recorder itself takes.
const NOTHING: &str = "0.000001%";
const EVERYTHING: &str = "100%";

/// Records whatever happens until the level has changed so often. Attaching takes as long as it does
/// under emulation.
fn recorded(limit: &str, more: &[&str], changes: usize) -> Result<Report> {
    let path = tool::fresh("guard")?;
    let file = path.to_string_lossy();
    let args = ["record", "--max-overhead", limit, "-o", &file];
    let mut child = tool::start(&[&args, more].concat())?;
    let said = BufReader::new(child.stderr.take().context("stderr is a pipe")?);
    let mut changed = 0;
    for line in said.lines() {
        let line = line?;
        // For whoever reads the console of a failed boot.
        println!("{line}");
        changed += usize::from(line.contains("from here on") || line.contains(" again, after"));
        if changes > 0 && changed == changes {
            tool::signal(&child, libc::SIGINT);
        }
    }
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{}", output.status);
    let report = tool::report(&path)?;
    std::fs::remove_file(&path)?;
    Ok(report)
}

/// The levels from the first to the last.
fn levels(report: &Report) -> Vec<&str> {
    let later = report.0["reduced"]["steps"].as_array();
    let later = later.into_iter().flatten().map(|step| &step["level"]);
    std::iter::once(&report.0["recording"]["level"])
        .chain(later)
        .map(|level| level.as_str().unwrap_or("off"))
        .collect()
}

fn adds_up(report: &Report) -> Result<()> {
    let (recording, reduced) = (&report.0["recording"], &report.0["reduced"]);
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    let parts = number(&recording["measured_ns"]) + number(&reduced["duration_ns"]);
    ensure!(
        parts == number(&recording["duration_ns"]),
        "{recording} {reduced}"
    );
    Ok(())
}

pub(crate) fn leaves_alone(_: &mut Guest) -> Result<Outcome> {
    let report = recorded(EVERYTHING, &["--level", "contended", "-d", "3s"], 0)?;
    ensure!(report.0["reduced"].is_null(), "{}", report.0["reduced"]);
    Ok(Outcome::Passed)
}

pub(crate) fn reduces(_: &mut Guest) -> Result<Outcome> {
    let report = recorded(NOTHING, &["--hooks", "fentry", "-d", "3m"], 2)?;
    let levels = levels(&report);
    ensure!(
        levels.starts_with(&["full", "contended", "off"]),
        "{levels:?}"
    );
    adds_up(&report)?;
    Ok(Outcome::Passed)
}

pub(crate) fn tries_again(_: &mut Guest) -> Result<Outcome> {
    let report = recorded(NOTHING, &["--level", "contended", "-d", "3m"], 3)?;
    let levels = levels(&report);
    ensure!(
        levels.starts_with(&["contended", "off", "contended", "off"]),
        "{levels:?}"
    );
    adds_up(&report)?;
    Ok(Outcome::Passed)
}
