//! The tests that need a kernel, on every kernel of the table.
//!
//! In: the static guest binary and the kernels. Out: the verdict of every case
//! on every boot, the guests' artefacts, and what went wrong beside failed
//! cases. A guest that panics or hangs fails the run and stops no other guest.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{
    artefacts,
    build::variants::Variant,
    initramfs,
    kernels::Kernel,
    passed::Common,
    protocol::{self, Report, Verdict},
    qemu::{self, Ending, Files, Machine},
    schedule,
};
use crate::{
    places::{Places, wait_for_turn},
    tally::Tally,
};

/// Lines of the console shown when a guest did not reach its end.
const SHOWN_LINES: usize = 30;

/// The emulator copies and clears by string instructions byte by byte. A kernel that is not told that they
/// are fast does so by words, and the tests measure nothing.
const CPU: &str = "max,-hypervisor,-erms,-fsrm";

/// A shape of the emulated machine; cases can ask for a number of CPUs.
struct Config {
    name: &'static str,
    cpus: u32,
}

const CONFIGS: [Config; 2] = [
    Config {
        name: "smp4",
        cpus: 4,
    },
    Config {
        name: "up",
        cpus: 1,
    },
];

/// What to boot and how.
pub(crate) struct Cases<'a> {
    pub(crate) kernels: Vec<Kernel>,
    /// Only cases whose name contains this.
    pub(crate) filter: Option<&'a str>,
    /// Where to put console logs and artefacts to keep.
    pub(crate) keep: Option<&'a Path>,
    pub(crate) timeout: Duration,
    /// Whether to boot also what has passed before.
    pub(crate) again: bool,
    /// Whether `kernels` is the whole table, so that a case which ran on none of
    /// them runs nowhere.
    pub(crate) complete: bool,
}

/// The sum of a run.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) tally: Tally,
    /// One line for each thing that must fail the run.
    pub(crate) problems: Vec<String>,
}

struct Boot {
    kernel: Kernel,
    config: &'static Config,
}

impl Boot {
    fn name(&self) -> String {
        format!("{}-{}", self.kernel.line, self.config.name)
    }
}

/// A finished boot.
struct Booted {
    name: String,
    line: &'static str,
    console: PathBuf,
    text: String,
    report: Report,
    trouble: Option<String>,
    time: Duration,
    /// How long ago it was, if it need not be repeated.
    ago: Option<Duration>,
}

impl Booted {
    /// Why this boot fails the run, if it does: whoever sees nothing but the end of a log must find
    /// it there.
    fn problem(&self) -> Option<String> {
        let failed = self
            .report
            .failed()
            .map(|(case, why)| format!("{case}: {why}"));
        let why: Vec<_> = self.trouble.iter().cloned().chain(failed).collect();
        if why.is_empty() {
            return None;
        }
        let (name, console, line) = (&self.name, self.console.display(), self.line);
        Some(format!(
            "{name}: {}; see {console}; again: `cargo xtask test --vm-only --kernel {line}`",
            why.join("; ")
        ))
    }
}

impl Cases<'_> {
    /// Boots every kernel in every configuration.
    pub(crate) fn run(&self, places: &Places, guest: &Path) -> Result<Outcome> {
        let folder = places.target.join("lab");
        fs::create_dir_all(&folder)?;
        let _turn = wait_for_turn(&folder, "other VM tests of this checkout are running")?;
        let initramfs = folder.join("initramfs");
        let binary =
            fs::read(guest).with_context(|| format!("failed to read {}", guest.display()))?;
        let unpacked = initramfs::with_modules(&binary, &self.kernels, Vec::new())?;
        fs::write(&initramfs, &unpacked)?;
        let common = Common::new(&folder, &unpacked)?;

        let mut booted = Vec::new();
        schedule::run(
            self.boots(),
            |boot| self.boot(&boot, &folder, &initramfs, &common),
            |result| {
                if let Ok(boot) = &result {
                    show(boot);
                }
                booted.push(result);
            },
        );
        let booted = booted.into_iter().collect::<Result<Vec<_>>>()?;
        Ok(self.sum(&booted))
    }

    /// The longest come first, so that none is left alone at the end: on Debian's kernels more is tried than
    /// on the lab's own, and a newer one has more functions to go through for each hook.
    fn boots(&self) -> Vec<Boot> {
        let (built, debian): (Vec<_>, Vec<_>) = self
            .kernels
            .iter()
            .partition(|kernel| kernel.built.is_some());
        let kernels = debian.into_iter().rev().chain(built);
        let boots = kernels.flat_map(|kernel| {
            CONFIGS.iter().map(move |config| Boot {
                kernel: kernel.clone(),
                config,
            })
        });
        boots.collect()
    }

    fn boot(
        &self,
        boot: &Boot,
        folder: &Path,
        initramfs: &Path,
        common: &Common,
    ) -> Result<Booted> {
        let name = boot.name();
        let (console, stream) = (format!("{name}.console"), format!("{name}.artefacts"));
        let filter = self
            .filter
            .map(|filter| format!(" kcore_trace.filter={filter}"));
        let machine = Machine {
            kernel: &boot.kernel.image,
            initramfs,
            cpus: boot.config.cpus,
            cpu: CPU,
            counts_instructions: false,
            words: words(boot.config.name, &boot.kernel) + &filter.unwrap_or_default(),
            timeout: self.timeout,
        };
        let mark = common.mark(&name, &machine)?;
        let is_there = folder.join(&console).exists() && folder.join(&stream).exists();
        let ago = mark.age().filter(|_| is_there && !self.again);
        let began = Instant::now();
        let ending = if ago.is_some() {
            Ending::Left
        } else {
            mark.remove()?;
            qemu::boot(
                &machine,
                &Files {
                    folder,
                    console: &console,
                    artefacts: &stream,
                },
            )?
        };
        let time = began.elapsed();

        let (console, stream) = (folder.join(console), folder.join(stream));
        let text = String::from_utf8_lossy(&fs::read(&console)?).into_owned();
        let report = Report::from_console(&text);
        let mut trouble = match ending {
            Ending::Left => report.trouble(),
            Ending::Failed(status) => Some(format!("QEMU failed with {status}")),
            Ending::TimedOut => Some(format!("it was stopped after {} s", time.as_secs())),
        };
        if let Some(keep) = self.keep {
            let unfinished = keep_files(&keep.join(&name), &console, &stream)?;
            trouble = trouble.or(unfinished);
        }
        if trouble.is_none() && report.tally().failed == 0 {
            mark.set()?;
        }
        Ok(Booted {
            line: boot.kernel.line,
            name,
            console,
            text,
            report,
            trouble,
            time,
            ago,
        })
    }

    fn sum(&self, booted: &[Booted]) -> Outcome {
        let mut outcome = Outcome::default();
        for boot in booted {
            outcome.tally += boot.report.tally();
            outcome.tally.failed += u64::from(boot.trouble.is_some());
            outcome.problems.extend(boot.problem());
        }
        if self.complete {
            for (case, reason) in protocol::never_run(booted.iter().map(|boot| &boot.report)) {
                outcome.tally.failed += 1;
                outcome
                    .problems
                    .push(format!("case {case} ran on no kernel: {reason}"));
            }
        }
        if let (Some(filter), true) = (self.filter, outcome.tally == Tally::default()) {
            outcome
                .problems
                .push(format!("no case has `{filter}` in its name"));
        }
        outcome
    }
}

/// What a guest is told of itself on the kernel's command line.
pub(crate) fn words(config: &str, kernel: &Kernel) -> String {
    let mut words = format!("kcore_trace.config={config}");
    if let Some(built) = &kernel.built {
        let Variant { name, era, .. } = built.variant;
        words += &format!(" kcore_trace.variant={name} kcore_trace.era={era}");
    }
    words
}

/// Saves what a guest left behind; says so if its last artefact is unfinished.
fn keep_files(folder: &Path, console: &Path, stream: &Path) -> Result<Option<String>> {
    fs::create_dir_all(folder)
        .with_context(|| format!("failed to create {0}; `mkdir -p {0}`", folder.display()))?;
    fs::copy(console, folder.join("console.log"))?;
    let stream = fs::read(stream)?;
    let (artefacts, unfinished) = artefacts::parse(&stream);
    for artefact in artefacts {
        fs::write(folder.join(artefact.name), artefact.data)?;
    }
    Ok(unfinished.then(|| "its last artefact is not whole".to_owned()))
}

fn show(boot: &Booted) {
    let Booted {
        name,
        text,
        report,
        trouble,
        time,
        ago,
        ..
    } = boot;
    let when = match ago {
        Some(ago) => format!(
            "{} ago: nothing has changed, --again boots it",
            humantime::format_duration(Duration::from_secs(ago.as_secs()))
        ),
        None => format!("{:.1} s", time.as_secs_f64()),
    };
    println!("  {name:15} {} ({when})", report.tally());
    show_cases(report);
    if let Some(trouble) = trouble {
        println!("    {name}: {trouble}; from its console:");
        for line in telling(text) {
            println!("      {line}");
        }
    }
}

/// The lines of a dead guest's console that tell most: from the kernel's first
/// cry on, or the last ones if it died in silence.
fn telling(console: &str) -> Vec<&str> {
    let lines: Vec<&str> = console.lines().collect();
    let cry = |line: &&str| {
        ["Kernel panic", "BUG:", "Oops:"]
            .iter()
            .any(|cry| line.contains(cry))
    };
    let last = lines.len().saturating_sub(SHOWN_LINES);
    let first = lines.iter().position(cry).map_or(last, |cry| cry.min(last));
    lines[first..].iter().take(SHOWN_LINES).copied().collect()
}

/// Prints the cases that did not pass.
pub(crate) fn show_cases(report: &Report) {
    for case in &report.cases {
        match &case.verdict {
            Verdict::Failed(message) => println!("    {} FAILED: {message}", case.name),
            Verdict::Skipped(reason) => println!("    {} skipped: {reason}", case.name),
            Verdict::Passed | Verdict::Unfit(_) => (),
        }
        for detail in &case.details {
            println!("      {detail}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_that_of_the_lab_with_less() {
        assert!(CPU.starts_with(qemu::CPU));
    }

    #[test]
    fn boots_of_newer_kernels_come_first_in_every_shape() {
        let kernel = |line| Kernel {
            line,
            image: PathBuf::new(),
            built: None,
        };
        let cases = Cases {
            kernels: vec![kernel("5.10"), kernel("6.1")],
            filter: None,
            keep: None,
            timeout: Duration::ZERO,
            again: false,
            complete: false,
        };
        let names: Vec<_> = cases.boots().iter().map(Boot::name).collect();
        assert_eq!(names, ["6.1-smp4", "6.1-up", "5.10-smp4", "5.10-up"]);
    }

    #[test]
    fn panic_is_shown_from_its_first_line() {
        let trace = "[    1.0]  ? frame\n".repeat(100);
        let console = format!("boot\n[    1.0] Kernel panic - not syncing: x\n{trace}");
        let shown = telling(&console);
        assert!(shown[0].contains("not syncing") && shown.len() == SHOWN_LINES);
    }

    #[test]
    fn silent_death_is_shown_by_the_last_lines() {
        let shown = "line\n".repeat(100) + "running hold";
        assert_eq!(telling(&shown).last(), Some(&"running hold"));
        assert_eq!(telling("one line"), ["one line"]);
    }
}
