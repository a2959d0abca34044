//! The one test command.
//!
//! Owns the order of the checks: cheap before dear, each printing its name and
//! its time, a failure ending the run, but for what runs beside it. Whatever
//! happens, the last line of stdout is `N passed, N failed, N skipped`, and what
//! failed is before it.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::Value;

use crate::{
    beside::{Beside, THIS_PROGRAM},
    cargo,
    command::{self, shown},
    complaint,
    lab::{
        self,
        build::variants,
        cases::{self, Cases},
        kernels::{self, Kernel},
        protocol::Report,
    },
    places::{Places, wait_for_turn},
    privilege::Privilege,
    setup::{self, Kernels, Tools},
    tally::Tally,
};

#[derive(Args)]
pub(crate) struct Options {
    /// Only the VM tests, for work on them
    #[arg(long)]
    vm_only: bool,
    /// Only these kernels, as in `6.1` or `rwsem`
    #[arg(long, value_name = "LINE", requires = "vm_only", value_parser = kernel_line)]
    kernel: Vec<&'static str>,
    /// Put the guests' console logs and artefacts here
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Stop a guest after this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    boot_timeout: u64,
    /// Boot the guests too that passed before with the same kernel, guest binary and emulator
    #[arg(long)]
    again: bool,
    /// Only the VM cases with this in their name
    #[arg(requires = "vm_only")]
    filter: Option<String>,
}

fn kernel_line(name: &str) -> Result<&'static str, String> {
    let debian = kernels::LINES.iter().map(|line| line.name);
    let names = debian.chain(variants::TESTED);
    names
        .clone()
        .find(|line| *line == name)
        .ok_or_else(|| format!("the table has {}", names.collect::<Vec<_>>().join(", ")))
}

/// The command `cargo xtask test`.
pub(crate) fn run(places: &Places, options: &Options) -> Result<ExitCode> {
    let mut run = Run {
        places,
        options,
        tally: Tally::default(),
    };
    let outcome = run.all();
    if let Err(error) = &outcome {
        println!("{}", complaint(error));
        // A run that ends early must not look like one without failures.
        run.tally.failed = run.tally.failed.max(1);
    }
    println!("{}", run.tally);
    Ok(if outcome.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

struct Run<'a> {
    places: &'a Places,
    options: &'a Options,
    tally: Tally,
}

impl Run<'_> {
    fn all(&mut self) -> Result<()> {
        if self.options.vm_only {
            let (tools, kernels) = self.step("set-up", |run| setup::for_tests(run.places))?;
            let guest = self.guest_binary(&tools)?;
            return self.step("VM tests", |run| run.vm_tests(kernels, &guest));
        }
        let (tools, kernels) = self.step("set-up", |run| Kernels::begin(run.places))?;
        self.step("format", |run| run.format())?;
        self.step("lints", |run| run.lints(&tools))?;
        self.step("unit and integration tests", |run| run.host_tests(&tools))?;
        let kernels = self.step("kernels, begun after the set-up", |run| {
            kernels.end(run.places)
        })?;
        let guest = self.guest_binary(&tools)?;
        // These wait for more than half of their time, and so does now and then each guest.
        Privilege::ask();
        let native = native_tests(&guest)?;
        let dashboards = dashboards()?;
        let in_guests = self.step("VM tests", |run| run.vm_tests(kernels, &guest));
        let natively = self.step("the running kernel, beside them", |run| {
            run.native_tests(native)
        });
        let shown = self.step("dashboards and rules, beside them", |run| {
            run.dashboards(dashboards)
        });
        // All of them are told; the last by who gets it.
        let mut failures: Vec<_> = [in_guests, natively, shown]
            .into_iter()
            .filter_map(Result::err)
            .collect();
        let last = failures.pop();
        for failure in failures {
            println!("{}", complaint(&failure));
        }
        last.map_or(Ok(()), Err)?;
        self.step("the lab, quickly", |run| run.lab(&guest))
    }

    fn guest_binary(&mut self, tools: &Tools) -> Result<PathBuf> {
        self.step("guest binary", |run| cargo::guest_binary(run.places, tools))
    }

    fn step<T>(&mut self, name: &str, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        println!("== {name}");
        let began = Instant::now();
        let outcome = work(self);
        let verdict = if outcome.is_ok() { "ok" } else { "FAILED" };
        println!(
            "== {name}: {verdict} ({:.1} s)\n",
            began.elapsed().as_secs_f64()
        );
        outcome
    }

    fn format(&self) -> Result<()> {
        let mut fmt = cargo::command(self.places);
        fmt.args(["fmt", "--all", "--check"]);
        command::run(&mut fmt).context("the format differs; `cargo fmt --all`")
    }

    fn lints(&self, tools: &Tools) -> Result<()> {
        let mut clippy = cargo::check(self.places, tools, "clippy")?;
        command::run(clippy.args(["--all-targets", "--", "-D", "warnings"]))?;
        let mut clippy = cargo::lint_programs(self.places, tools)?;
        command::run(clippy.args(["--", "-D", "warnings"]))
    }

    fn host_tests(&mut self, tools: &Tools) -> Result<()> {
        let mut test = cargo::check(self.places, tools, "test")?;
        let mut child = test
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("failed to start `{}`", shown(&test)))?;
        let stdout = child.stdout.take().expect("stdout was asked to be a pipe");
        for line in BufReader::new(stdout).lines() {
            let line = line?;
            println!("{line}");
            if let Some(tally) = Tally::from_libtest(&line) {
                self.tally += tally;
            }
        }
        let status = child.wait()?;
        if !status.success() {
            bail!("{status}: `{}`", shown(&test));
        }
        Ok(())
    }

    fn vm_tests(&mut self, mut kernels: Vec<Kernel>, guest: &Path) -> Result<()> {
        let wanted = &self.options.kernel;
        kernels.retain(|kernel| wanted.is_empty() || wanted.contains(&kernel.line));
        let lab = Cases {
            complete: wanted.is_empty(),
            kernels,
            filter: self.options.filter.as_deref(),
            keep: self.options.keep.as_deref(),
            timeout: Duration::from_secs(self.options.boot_timeout),
            again: self.options.again,
        };
        let outcome = lab.run(self.places, guest)?;
        self.tally += outcome.tally;
        if !outcome.problems.is_empty() {
            bail!("{}", outcome.problems.join("\n"));
        }
        Ok(())
    }

    /// A comparison from the boots to the verdict: what differs between these two kernels is known.
    fn lab(&mut self, guest: &Path) -> Result<()> {
        let lab = self.places.target.join("lab");
        let _turn = wait_for_turn(&lab, "other VM tests of this checkout are running")?;
        let folder = lab.join("quick");
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        let (folder, run) = lab::run::run(self.places, &lab::run::Options::quick(folder))?;
        let problems = run.problems();
        if !problems.is_empty() {
            bail!("{}", problems.join("\n"));
        }
        for workload in &run.workloads {
            let [baseline, candidate] =
                ["spinlock", "rwsem"].map(|kernel| folder.join(kernel).join(workload));
            let mut compare = Command::new(guest);
            compare.args(["kcore-trace", "compare", "--format", "json"]);
            compare.args([baseline, candidate]);
            let output = compare.stdin(Stdio::null()).output()?;
            let text = String::from_utf8_lossy(&output.stdout);
            let comparison: Value = serde_json::from_str(&text).with_context(|| {
                let complaint = String::from_utf8_lossy(&output.stderr);
                format!("`{}`: {}", shown(&compare), complaint.trim())
            })?;
            let kinds: Vec<_> = ["baseline", "candidate"]
                .iter()
                .map(|side| {
                    comparison[side]["kernel"]["era"]
                        .as_str()
                        .unwrap_or_default()
                })
                .collect();
            let rows = comparison["locks"].as_array().map_or(0, Vec::len);
            if kinds != ["spinlock", "rwsem"] || rows == 0 {
                bail!("`{}`: eras {kinds:?}, {rows} rows", shown(&compare));
            }
            println!(
                "  {workload}: {}",
                comparison["summary"].as_str().unwrap_or_default()
            );
            self.tally.passed += 1;
        }
        Ok(())
    }

    fn dashboards(&mut self, dashboards: Beside) -> Result<()> {
        let dashboards = dashboards.end(|_| ())?;
        for line in dashboards.stdout.lines() {
            println!("  {}", line.trim_start());
        }
        if !dashboards.status.success() {
            eprint!("{}", dashboards.stderr);
            bail!("{}: `cargo xtask dashboards`", dashboards.status);
        }
        let tally = dashboards.stdout.lines().last().and_then(Tally::from_own);
        self.tally += tally.context("`cargo xtask dashboards` counted nothing")?;
        Ok(())
    }

    fn native_tests(&mut self, native: Option<Beside>) -> Result<()> {
        let Some(native) = native else {
            self.tally.skipped += 1;
            println!("  skipped: not root, and no sudo without a password; `sudo -v` before this");
            return Ok(());
        };
        let native = native.end(|text| eprint!("{text}"))?;
        let report = Report::from_console(&native.stdout);
        let tally = report.tally();
        println!("  {tally}");
        cases::show_cases(&report);
        self.tally += tally;
        if let Some(trouble) = report.trouble() {
            bail!("the tests broke off, {trouble}; `{}`", native.line);
        }
        if tally.failed > 0 || !native.status.success() {
            bail!("{}: `{}`", native.status, native.line);
        }
        Ok(())
    }
}

/// Begins the tests on the running kernel, if there is a way to without asking anybody.
fn native_tests(guest: &Path) -> Result<Option<Beside>> {
    let native = Privilege::silent().command(guest);
    native
        .map(|mut native| Beside::start(native.arg("--native")))
        .transpose()
}

/// Begins the check of the dashboards, a chore of its own.
fn dashboards() -> Result<Beside> {
    Beside::start(Command::new(THIS_PROGRAM).arg("dashboards"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_option_names_the_lines_that_exist() {
        assert_eq!(kernel_line("6.1"), Ok("6.1"));
        assert!(kernel_line("4.4").unwrap_err().contains("5.10, 6.1"));
    }
}
