//! The dashboards and rules: written from tables, and run against a real Prometheus.
//!
//! Owns `cargo xtask dashboards`: an exporter on the running kernel under load, Prometheus beside
//! it, and every query of every dashboard and rule through its API. What has no data must be in the
//! list of what this kernel cannot show, with its reason, and is tried again on what a guest's
//! exporter answered at level full; what Prometheus makes of the histograms must be what `report`
//! says of the same recording.
//!
//! The JSON in `dashboards/` is written by `--write`; a test compares.

mod boards;
mod grafana;
mod live;
mod packages;
mod prometheus;
mod promql;
mod replay;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::{
    cargo, command, lab::kernels::Kernel, places::Places, privilege::Privilege, setup, tally::Tally,
};
use packages::Programs;

#[derive(Args)]
pub(crate) struct Options {
    /// Write the dashboards' JSON from their tables, and do nothing else
    #[arg(long)]
    write: bool,
    /// Leave Prometheus and the exporter running under load, to look at, until a line is read
    #[arg(long, conflicts_with = "write")]
    stay: bool,
    /// Show the pages of a guest's exporter at level full instead of the running kernel's
    #[arg(long, requires = "stay")]
    guest: bool,
}

/// The command `cargo xtask dashboards`.
pub(crate) fn run(places: &Places, options: &Options) -> Result<ExitCode> {
    if options.write {
        for (path, text) in files(places) {
            fs::write(&path, text)?;
            println!("{}", path.display());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let (tools, kernels) = setup::for_tests(places)?;
    let tool = cargo::guest_binary(places, &tools)?;
    let tally = check(places, &kernels, &tool, options)?;
    println!("{tally}");
    Ok(ExitCode::SUCCESS)
}

/// The files that the tables make.
fn files(places: &Places) -> Vec<(PathBuf, String)> {
    let folder = places.root.join("dashboards");
    let text = |board: &grafana::Board| format!("{:#}\n", board.document());
    boards::all()
        .iter()
        .map(|board| (folder.join(format!("{}.json", board.uid)), text(board)))
        .collect()
}

fn check(places: &Places, kernels: &[Kernel], tool: &Path, options: &Options) -> Result<Tally> {
    let programs = packages::provide(places)?;
    let mut tally = Tally::default();
    rules(places, &programs)?;
    tally.passed += 2;
    let kernel = kernels.iter().find(|kernel| kernel.line == replay::KERNEL);
    let kernel = kernel.context("a kernel of the table")?;
    if !options.stay || options.guest {
        tally += live::check_guest(places, &programs, kernel, tool, options.stay)?;
    }
    if options.guest {
        return Ok(tally);
    }
    let privilege = Privilege::find();
    if privilege.command(tool).is_none() {
        println!("  skipped: not root, and no sudo without a password; `sudo -v` before this");
        tally.skipped += 1;
        return Ok(tally);
    }
    tally += live::check(places, &programs, tool, privilege, options.stay)?;
    Ok(tally)
}

/// What promtool says of the rules, and of their tests.
fn rules(places: &Places, programs: &Programs) -> Result<()> {
    let folder = places.root.join("dashboards");
    let promtool = |arguments: &[&str]| {
        let mut promtool = Command::new(programs.promtool());
        promtool.args(arguments).current_dir(&folder);
        command::output(&mut promtool)
    };
    promtool(&["check", "rules", "rules.yaml"]).context("the rules")?;
    promtool(&["check", "config", "scrape.yaml"]).context("the scrape configuration")?;
    promtool(&["test", "rules", "rules.test.yaml"]).context("the tests of the rules")?;
    println!("  rules: checked, and their tests pass");
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn the_json_is_what_the_tables_say() {
        for (path, text) in files(&Places::find().unwrap()) {
            let kept = fs::read_to_string(&path).unwrap_or_default();
            assert!(
                kept == text,
                "{} differs; `cargo xtask dashboards --write`",
                path.display()
            );
        }
    }

    #[test]
    fn every_panel_says_what_it_shows_in_which_unit() {
        for board in boards::all() {
            let document = board.document();
            for panel in document["panels"].as_array().unwrap() {
                if panel["type"] == "row" {
                    continue;
                }
                let title = &panel["title"];
                let says = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
                assert!(says(&panel["description"]), "{title}");
                assert!(says(&panel["fieldConfig"]["defaults"]["unit"]), "{title}");
                assert!(!panel["targets"].as_array().unwrap().is_empty(), "{title}");
                let place = &panel["gridPos"];
                let [x, width] = ["x", "w"].map(|side| place[side].as_u64().unwrap());
                assert!(x + width <= 24, "{title}");
            }
        }
    }
}
