//! A guest that compares: it follows a script of workloads instead of running cases.
//!
//! In: `/lab.json`, as `xtask/src/lab/workloads.rs` writes it. Out: for each step a line on the
//! console as for a case, and as artefacts its recording, if it is recorded, or what another tool
//! around it said, what the kernel said meanwhile, and what it counted of the work of a module.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::bench::rounds::{self, Shape};
use crate::guest::{self, Guest, Outcome};
use crate::{load, tool};

/// Where the script is in the initramfs.
pub(crate) const PATH: &str = "/lab.json";

/// One workload, once.
#[derive(Deserialize)]
pub(crate) struct Step {
    pub(crate) name: String,
    /// CPUs of the guest that it is for.
    pub(crate) cpus: usize,
    /// How much is recorded; nothing, if it only runs.
    level: Option<String>,
    /// A module whose loading is the work.
    module: Option<String>,
    #[serde(default)]
    parameters: Vec<String>,
    /// Arguments of `kcore-trace stress`, where no module is named.
    #[serde(default)]
    stress: Vec<String>,
    /// What is run around the work in place of a recorder: its words come before those of the
    /// work.
    #[serde(default)]
    around: Vec<String>,
    /// Whether it takes the work as one word.
    #[serde(default)]
    as_one_word: bool,
    /// Arguments of `kcore-trace record` beside the level.
    #[serde(default)]
    record: Vec<String>,
    /// Whether it is the bench's.
    #[serde(default)]
    bench: bool,
    /// How the work is repeated, if the step is to say when each round began and ended.
    rounds: Option<Rounds>,
}

/// How often what watches is started, and how often the work is done in each of its runs.
#[derive(Deserialize)]
struct Rounds {
    starts: u64,
    each: u32,
}

/// This binary for any process: in one that has not begun it yet, `/proc/self/exe` is another.
const INIT: &str = "/init";

/// Where the times of the rounds are left.
const CLOCK: &str = "/tmp/clock";

/// The steps for a guest with so many CPUs; one of them only, if it is named.
pub(crate) fn read(cpus: usize, only: &str) -> Result<Vec<Step>> {
    let text = std::fs::read(PATH).with_context(|| format!("failed to read {PATH}"))?;
    let mut steps: Vec<Step> =
        serde_json::from_slice(&text).with_context(|| format!("{PATH} is no script"))?;
    steps.retain(|step| step.cpus == cpus && (only.is_empty() || step.name == only));
    Ok(steps)
}

impl Step {
    pub(crate) fn run(&self, guest: &mut Guest) -> Result<Outcome> {
        let Some(work) = self.work(guest)? else {
            return Ok(Outcome::Skipped(
                "this kernel was not built with the module".into(),
            ));
        };
        if self.bench {
            rounds::settle()?;
        }
        kernel_log()?;
        let done = match &self.rounds {
            Some(rounds) => self.in_rounds(guest, rounds, &work),
            None => self.once(guest, &work),
        };
        // What the kernel said matters most when the work failed.
        let log = kernel_log()?;
        guest.artefact(&format!("{}.log", self.name), &log)?;
        for (end, path) in load::COUNTERS {
            if let Ok(counters) = std::fs::read(path) {
                guest.artefact(&format!("{}.{end}", self.name), &counters)?;
                std::fs::remove_file(path)?;
            }
        }
        done.map(|()| Outcome::Passed)
    }

    fn once(&self, guest: &mut Guest, work: &[String]) -> Result<()> {
        match &self.level {
            Some(level) => self.recorded(guest, level, work),
            None => self.watched(guest, work),
        }
    }

    /// Begins again and again, and says when.
    fn in_rounds(&self, guest: &mut Guest, rounds: &Rounds, work: &[String]) -> Result<()> {
        let mut shape = Shape::new(rounds.starts)?;
        let mut times = String::new();
        for start in 0..rounds.starts {
            shape.change()?;
            let began = rounds::now().as_nanos();
            let numbers = [began, rounds.each.into(), start.into()].map(|n| n.to_string());
            let clock = [INIT, rounds::NAME, CLOCK].map(str::to_owned);
            let end = ["--".to_owned()];
            let work = [&clock[..], &numbers, &end, work].concat();
            self.once(guest, &work)?;
            times += &std::fs::read_to_string(CLOCK)?;
            std::fs::remove_file(CLOCK)?;
        }
        guest.artefact(&format!("{}.clock", self.name), times.as_bytes())
    }

    /// The command that does the work; nothing where the kernel lacks the module.
    fn work(&self, guest: &Guest) -> Result<Option<Vec<String>>> {
        let exe = if self.bench { INIT } else { tool::EXE };
        let Some(module) = &self.module else {
            let mut words = vec![exe.to_owned(), guest::TOOL.into(), "stress".into()];
            words.extend(self.stress.iter().cloned());
            return Ok(Some(words));
        };
        let Ok(file) = guest.module(module) else {
            return Ok(None);
        };
        ensure!(Path::new(&file).exists(), "{file} is not in the initramfs");
        let mut words = vec![exe.to_owned(), load::MODULE.into(), file];
        for parameter in &self.parameters {
            words.push(with_address(parameter)?);
        }
        Ok(Some(words))
    }

    fn recorded(&self, guest: &mut Guest, level: &str, work: &[String]) -> Result<()> {
        let path = tool::fresh(&self.name)?;
        let file = path.to_str().context("a path that is not UTF-8")?;
        let mut args = vec!["record", "-o", file, "--level", level];
        args.extend(self.record.iter().map(String::as_str));
        args.push("--");
        args.extend(work.iter().map(String::as_str));
        let output = tool::run(&args)?;
        println!("{}", tool::complaint(&output));
        if let Ok(recording) = std::fs::read(&path) {
            guest.artefact(&format!("{}.kct", self.name), &recording)?;
            std::fs::remove_file(&path)?;
        }
        ensure!(output.status.success(), "{}", tool::complaint(&output));
        Ok(())
    }

    /// Runs the work alone, or in what is to be run around it.
    fn watched(&self, guest: &mut Guest, work: &[String]) -> Result<()> {
        let mut words = self.around.clone();
        if self.as_one_word {
            words.push(work.join(" "));
        } else {
            words.extend_from_slice(work);
        }
        let (program, args) = words.split_first().context("an empty command")?;
        let mut command = std::process::Command::new(program);
        let output = command.args(args).stdin(Stdio::null()).output();
        let output = output.with_context(|| format!("failed to start {program}"))?;
        if !self.around.is_empty() {
            let said = [output.stdout.as_slice(), &output.stderr].concat();
            guest.artefact(&format!("{}.out", self.name), &said)?;
        }
        ensure!(output.status.success(), "{}", tool::complaint(&output));
        Ok(())
    }
}

/// A parameter; for `NAME=@SYMBOL`, with the address of that variable.
fn with_address(parameter: &str) -> Result<String> {
    let Some((name, symbol)) = parameter.split_once("=@") else {
        return Ok(parameter.to_owned());
    };
    let symbols = std::fs::read_to_string("/proc/kallsyms").context("no /proc/kallsyms")?;
    let address = symbols.lines().find_map(|line| {
        let (address, rest) = line.split_once(' ')?;
        let (_, found) = rest.split_once(' ')?;
        (found == symbol).then_some(address)
    });
    let address = address.with_context(|| format!("this kernel has no {symbol}"))?;
    Ok(format!("{name}=0x{address}"))
}

/// What the kernel said since the last call.
fn kernel_log() -> Result<Vec<u8>> {
    /// `SYSLOG_ACTION_READ_CLEAR` of syslog(2).
    const READ_AND_CLEAR: i32 = 4;
    let mut log = vec![0u8; 1 << 20];
    // SAFETY: the buffer is as long as it is said to be.
    let read = unsafe { libc::klogctl(READ_AND_CLEAR, log.as_mut_ptr().cast(), log.len() as i32) };
    let read = usize::try_from(read)
        .map_err(|_| std::io::Error::last_os_error())
        .context("failed to read the kernel's log")?;
    log.truncate(read);
    Ok(log)
}
