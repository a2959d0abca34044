//! Measuring a row in a guest whose clock counts instructions.
//!
//! In: kernels and rows. Out: for each pair what came of it, and in the run's folder what the guest
//! sent. One measurement a boot: what a kernel did before changes what the same work costs by
//! several percent, by the areas that wait to be purged.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{
    ledger::{Ledger, Measured},
    rows::{self, Row},
};
use crate::lab::{
    artefacts, cases, initramfs,
    kernels::Kernel,
    protocol::{Report, Verdict},
    qemu::{self, Ending, Files, Machine},
    report,
};

/// What all boots of a run share.
pub(crate) struct Bench<'a> {
    pub(crate) kernels: &'a [Kernel],
    pub(crate) binary: &'a Path,
    pub(crate) folder: PathBuf,
    pub(crate) timeout: Duration,
}

/// A row on a kernel.
pub(crate) struct Boot<'a> {
    kernel: &'a Kernel,
    row: &'static Row,
}

impl Boot<'_> {
    pub(crate) fn id(&self) -> String {
        id(self.kernel.line, self.row)
    }

    fn has_module(&self) -> bool {
        self.kernel.built.is_some()
    }

    fn step(&self) -> String {
        format!("{}-{}", self.kernel.line, self.row.name)
    }
}

/// The name of a measurement in the ledger.
pub(crate) fn id(kernel: &str, row: &Row) -> String {
    format!("{kernel}/{}", row.name)
}

impl Bench<'_> {
    /// What is still to be measured.
    pub(crate) fn boots(&self, rows: &[&'static Row], ledger: &Ledger) -> Vec<Boot<'_>> {
        let kernels = self.kernels.iter();
        let all = kernels.flat_map(|kernel| rows.iter().map(move |row| Boot { kernel, row }));
        all.filter(|boot| !ledger.has(&boot.id())).collect()
    }

    /// Writes the file system of the guests, the same for all.
    pub(crate) fn initramfs(&self) -> Result<PathBuf> {
        let mut steps = Vec::new();
        for kernel in self.kernels {
            for row in &rows::ROWS {
                let boot = Boot { kernel, row };
                steps.push(row.step(&boot.step(), boot.has_module()));
            }
        }
        let script = vec![("lab.json".to_owned(), serde_json::to_vec(&steps)?)];
        let path = self.folder.join("initramfs");
        let bytes = initramfs::with_modules(&fs::read(self.binary)?, self.kernels, script)?;
        fs::write(&path, bytes)
            .with_context(|| format!("failed to write {}; `df .`", path.display()))?;
        Ok(path)
    }

    /// Measures one row.
    pub(crate) fn boot(&self, boot: &Boot<'_>, initramfs: &Path) -> Result<Measured> {
        let folder = self.folder.join(boot.kernel.line).join(boot.row.name);
        fs::create_dir_all(&folder)?;
        let machine = Machine {
            kernel: &boot.kernel.image,
            initramfs,
            cpus: 1,
            counts_instructions: true,
            words: format!(
                "{} kcore_trace.step={}",
                cases::words("bench", boot.kernel),
                boot.step()
            ),
            timeout: self.timeout,
        };
        let files = Files {
            folder: &folder,
            console: "console",
            artefacts: "artefacts",
        };
        let began = Instant::now();
        let ending = qemu::boot(&machine, &files)?;
        let seconds = began.elapsed().as_secs_f64();
        let stream = fs::read(folder.join("artefacts"))?;
        fs::remove_file(folder.join("artefacts"))?;
        let sent = Sent::keep(&stream, &boot.step(), &folder)?;
        let console = fs::read(folder.join("console"))?;
        let report = Report::from_console(&String::from_utf8_lossy(&console));
        let reason = trouble(&ending, &report, seconds);
        let rounds = sent.rounds(boot.has_module());
        let middle = reason.is_none().then(|| middle(rounds)).flatten();
        let silent = || {
            middle
                .is_none()
                .then(|| "the guest sent no measurement".to_owned())
        };
        Ok(Measured {
            per_op: middle.map(|(median, _)| median),
            spread: middle.map(|(_, spread)| spread),
            reason: reason.or_else(silent),
            note: None,
            seconds,
        })
    }
}

/// Why a boot measured nothing, if it did not.
fn trouble(ending: &Ending, report: &Report, seconds: f64) -> Option<String> {
    match ending {
        Ending::Left => (),
        Ending::Failed(status) => return Some(format!("QEMU failed with {status}")),
        Ending::TimedOut => return Some(format!("it was stopped after {seconds:.0} s")),
    }
    let failed = report.cases.iter().find_map(|case| match &case.verdict {
        Verdict::Failed(why) => {
            let lines = [why.clone()].into_iter().chain(case.details.clone());
            Some(lines.collect::<Vec<_>>().join(" "))
        }
        Verdict::Skipped(why) => Some(why.clone()),
        Verdict::Passed | Verdict::Unfit(_) => None,
    });
    failed.or_else(|| report.trouble())
}

/// What a guest sent, by the end of its name.
struct Sent {
    log: String,
    clock: String,
}

impl Sent {
    /// Puts it all into the folder of the row.
    fn keep(stream: &[u8], step: &str, folder: &Path) -> Result<Self> {
        let mut sent = Self {
            log: String::new(),
            clock: String::new(),
        };
        let (artefacts, _cut) = artefacts::parse(stream);
        for artefact in artefacts {
            let end = artefact.name.strip_prefix(step).unwrap_or(&artefact.name);
            let end = end.trim_start_matches('.');
            fs::write(folder.join(end), artefact.data)?;
            let text = || String::from_utf8_lossy(artefact.data).into_owned();
            match end {
                "log" => sent.log = text(),
                "clock" => sent.clock = text(),
                _ => (),
            }
        }
        Ok(sent)
    }

    /// Instructions an op in each round: cycles by the kernel's own test, nanoseconds by the clock
    /// around the load where there is no such test.
    fn rounds(&self, has_module: bool) -> Vec<f64> {
        let (rounds, ops) = if has_module {
            (report::cycles_of_workers(&self.log), rows::LOOPS)
        } else {
            let times = Times::read(&self.clock).map(|times| times.rounds);
            (times.unwrap_or_default(), rows::OPS)
        };
        rounds.iter().map(|round| round / f64::from(ops)).collect()
    }
}

/// The clock around a load, in nanoseconds.
struct Times {
    rounds: Vec<f64>,
}

impl Times {
    fn read(clock: &str) -> Option<Self> {
        let mut lines = clock.lines();
        lines.next()?;
        let rounds = lines.map(|line| {
            let (began, ended) = line.split_once(' ')?;
            Some(ended.parse::<f64>().ok()? - began.parse::<f64>().ok()?)
        });
        Some(Self {
            rounds: rounds.collect::<Option<_>>()?,
        })
    }
}

/// The middle of some numbers, and half of what lies between their quartiles.
fn middle(mut values: Vec<f64>) -> Option<(f64, f64)> {
    values.sort_by(f64::total_cmp);
    let at = |part: f64| {
        let index = part * (values.len().checked_sub(1)?) as f64;
        let below = values[index as usize];
        let above = values[(index.ceil()) as usize];
        Some(below + (above - below) * index.fract())
    };
    Some((at(0.5)?, (at(0.75)? - at(0.25)?) / 2.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cycles_of_the_kernels_test_are_spread_over_its_loops() {
        let sent = Sent {
            log: "test_vmalloc: All test took worker0=4200000 cycles\n".into(),
            clock: "0\n1 2\n".into(),
        };
        assert_eq!(sent.rounds(true), [1000.0]);
    }

    #[test]
    fn a_load_of_our_own_is_timed_by_the_clock_around_it() {
        let sent = Sent {
            log: String::new(),
            clock: "5\n1000 4001000\n5000000 9000000\n".into(),
        };
        assert_eq!(sent.rounds(false), [2000.0, 2000.0]);
        assert!(sent.rounds(true).is_empty());
    }

    #[test]
    fn one_strange_round_does_not_move_the_middle() {
        assert_eq!(middle(vec![3.0, 1.0, 2.0, 900.0, 2.0]), Some((2.0, 0.5)));
        assert_eq!(middle(vec![]), None);
    }
}
