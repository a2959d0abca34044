//! `cargo xtask lab selftest`: whether `kcore-trace compare` finds differences where there are none.
//!
//! In: the folder of a run with repeats. Out: how many rows of comparisons of a kernel with itself
//! say "no difference". The repeats of each kernel and workload are dealt to two sides at random,
//! many times; the dice have a seed, so that a bad deal can be looked at again.
//!
//! Invariant: a row counts as right only if it says "no difference"; one that cannot be told is
//! neither hidden nor right.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use serde_json::Value;
use tempfile::TempDir;

use super::run::{self, Run};
use crate::{cargo, command::shown, places::Places, setup};

/// The fewest repeats that make two sides of which each knows how much it varies.
const FEWEST: usize = 4;
/// Of a hundred rows, so many have to say "no difference".
const WANTED: usize = 95;

#[derive(Args)]
pub(crate) struct Options {
    /// The folder of a run; the newest, unless one is named
    run: Option<PathBuf>,
    /// Only these kernels
    #[arg(long, value_name = "NAME")]
    kernel: Vec<String>,
    /// How often the repeats of each are dealt
    #[arg(long, value_name = "N", default_value_t = 20)]
    splits: u64,
    /// Where the dice begin
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

/// The command `cargo xtask lab selftest`.
pub(crate) fn command(places: &Places, options: Options) -> Result<ExitCode> {
    let folder = run::folder(places, options.run)?;
    let run = Run::read(&folder)?;
    let tools = setup::for_build(places)?;
    let tool = cargo::guest_binary(places, &tools)?;
    println!(
        "{} deals of the repeats of each, from {}\n",
        options.splits,
        folder.display()
    );
    println!(
        "{:18} {:22} {:>8} {:>6} {:>8} {:>8} {:>8}",
        "kernel", "workload", "repeats", "rows", "same", "differ", "unknown"
    );
    let mut all = Tally::default();
    for kernel in run.kernels.iter().filter(|name| {
        options.kernel.is_empty() || options.kernel.iter().any(|wanted| wanted == *name)
    }) {
        for workload in &run.workloads {
            let repeats = repeats(&folder.join(kernel).join(workload))?;
            if repeats.len() < FEWEST {
                continue;
            }
            let mut tally = Tally::default();
            for split in 0..options.splits {
                let sides = deal(&repeats, options.seed + split)?;
                tally.count(&compare(&tool, &sides)?);
            }
            println!("{kernel:18} {workload:22} {:>8} {tally}", repeats.len());
            all.add(tally);
        }
    }
    ensure!(
        all.rows() > 0,
        "the run has no kernel with {FEWEST} repeats of a workload; `cargo xtask lab run --repeats 10`"
    );
    println!("{:18} {:22} {:>8} {all}", "together", "", "");
    all.print_found();
    let right = all.same * 100 >= all.rows() * WANTED;
    let verdict = if right { "at least" } else { "fewer than" };
    println!("\n{verdict} {WANTED} % of the rows say \"no difference\"");
    Ok(ExitCode::from(u8::from(!right)))
}

/// The recordings of a workload on a kernel.
fn repeats(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let file = entry?.path();
        if file.extension().is_some_and(|end| end == "kct") {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

/// Deals recordings to two folders.
fn deal(repeats: &[PathBuf], seed: u64) -> Result<[TempDir; 2]> {
    let mut dealt = repeats.to_vec();
    fastrand::Rng::with_seed(seed).shuffle(&mut dealt);
    let (first, second) = dealt.split_at(dealt.len() / 2);
    let side = |files: &[PathBuf]| -> Result<TempDir> {
        let folder = tempfile::tempdir()?;
        for file in files {
            let name = file.file_name().context("a recording has a name")?;
            fs::copy(file, folder.path().join(name))?;
        }
        Ok(folder)
    };
    Ok([side(first)?, side(second)?])
}

/// What the tool says of two sides; its exit code tells a row that is worse from none.
fn compare(tool: &Path, sides: &[TempDir; 2]) -> Result<Value> {
    let mut command = Command::new(tool);
    command.args(["kcore-trace", "compare", "--format", "json"]);
    command.args(sides.iter().map(TempDir::path));
    let output = command.output()?;
    if !matches!(output.status.code(), Some(0 | 1)) {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{}: `{}`\n{}",
            output.status,
            shown(&command),
            complaint.trim()
        );
    }
    serde_json::from_slice(&output.stdout).context("the tool's comparison is no JSON")
}

/// Rows of comparisons by their verdicts.
#[derive(Debug, Default, PartialEq)]
struct Tally {
    same: usize,
    differ: usize,
    unknown: usize,
    /// What was found and cannot be there, or could not be told, and how often.
    found: BTreeMap<String, usize>,
}

impl Tally {
    fn rows(&self) -> usize {
        self.same + self.differ + self.unknown
    }

    fn count(&mut self, comparison: &Value) {
        for list in ["locks", "ops"] {
            for row in comparison[list].as_array().into_iter().flatten() {
                self.count_row(row);
            }
        }
    }

    fn count_row(&mut self, row: &Value) {
        // A row of one side only: nothing is compared.
        if row["baseline"].is_null() || row["candidate"].is_null() {
            return;
        }
        match row["verdict"].as_str() {
            Some("no-difference") => {
                self.same += 1;
                return;
            }
            Some("cannot-tell") => {
                self.unknown += 1;
                *self.found.entry(format!("{} ?", name(row))).or_default() += 1;
                return;
            }
            _ => self.differ += 1,
        }
        let numbers = row["numbers"].as_array().into_iter().flatten();
        for number in numbers.filter(|number| number["overruled"] == false) {
            if let Some("worse" | "better") = number["finding"].as_str() {
                let metric = number["metric"].as_str().unwrap_or_default();
                *self
                    .found
                    .entry(format!("{} {metric}", name(row)))
                    .or_default() += 1;
            }
        }
    }

    fn add(&mut self, other: Self) {
        self.same += other.same;
        self.differ += other.differ;
        self.unknown += other.unknown;
        for (name, count) in other.found {
            *self.found.entry(name).or_default() += count;
        }
    }

    fn print_found(&self) {
        if self.found.is_empty() {
            return;
        }
        println!("\nNot \"no difference\", and how often");
        let mut found: Vec<_> = self.found.iter().collect();
        found.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        for (name, count) in found {
            println!("{count:>6} {name}");
        }
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let percent = |part: usize| 100.0 * part as f64 / self.rows().max(1) as f64;
        write!(
            f,
            "{:>6} {:>6.1} % {:>6.1} % {:>6.1} %",
            self.rows(),
            percent(self.same),
            percent(self.differ),
            percent(self.unknown)
        )
    }
}

/// What a row is about.
fn name(row: &Value) -> String {
    let words = ["role", "op", "intent"].map(|word| row[word].as_str().unwrap_or_default());
    words.join(" ").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_cannot_be_told_is_not_right() {
        let row = |verdict: &str| {
            json!({
                "role": "purging", "op": "purge", "intent": "write", "verdict": verdict,
                "baseline": {}, "candidate": {},
                "numbers": [
                    { "metric": "hold_mean_ns", "finding": "worse", "overruled": false },
                    { "metric": "hold_p50_ns", "finding": "worse", "overruled": true },
                ],
            })
        };
        let alone = json!({ "verdict": "cannot-tell", "baseline": null, "candidate": {} });
        let mut tally = Tally::default();
        tally.count(&json!({
            "locks": [row("worse"), row("no-difference"), alone],
            "ops": [row("cannot-tell")],
        }));
        assert_eq!((tally.same, tally.differ, tally.unknown), (1, 1, 1));
        let found: Vec<_> = tally.found.keys().map(String::as_str).collect();
        assert_eq!(
            found,
            ["purging purge write ?", "purging purge write hold_mean_ns"]
        );
    }

    #[test]
    fn a_deal_has_every_repeat_once_and_is_the_same_for_a_seed() {
        let folder = tempfile::tempdir().unwrap();
        let files: Vec<_> = (0..10)
            .map(|number| folder.path().join(format!("{number}.kct")))
            .collect();
        for file in &files {
            fs::write(file, "").unwrap();
        }
        let dealt = |seed| {
            let names = |side: &TempDir| -> Vec<_> {
                let files = repeats(side.path()).unwrap();
                let names = files.iter().filter_map(|file| file.file_name());
                names.map(ToOwned::to_owned).collect()
            };
            deal(&files, seed).unwrap().each_ref().map(names)
        };
        let [first, second] = dealt(1);
        assert_eq!((first.len(), second.len()), (5, 5));
        assert!(first.iter().all(|name| !second.contains(name)));
        assert_eq!(dealt(1), [first, second]);
        assert_ne!(dealt(1), dealt(2));
    }
}
