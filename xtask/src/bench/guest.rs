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
        let (per_op, reason) = match reason {
            Some(reason) => (None, Some(reason)),
            None => match sent.per_op(boot.has_module()) {
                Some(per_op) => (Some(per_op), None),
                None => (None, Some("the guest sent no measurement".to_owned())),
            },
        };
        Ok(Measured {
            per_op,
            reason,
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

    /// Instructions an op: cycles by the kernel's own test, nanoseconds by the clock around the
    /// load where there is no such test.
    fn per_op(&self, has_module: bool) -> Option<f64> {
        if has_module {
            return Some(report::cycles(&self.log)? / f64::from(rows::LOOPS));
        }
        let [_, began, ended] = times(&self.clock)?;
        Some((ended - began) / f64::from(rows::OPS))
    }
}

/// When the step and its work began, and when the work ended, in nanoseconds.
fn times(clock: &str) -> Option<[f64; 3]> {
    let numbers = clock.split_ascii_whitespace().map(str::parse);
    let numbers: Vec<f64> = numbers.collect::<Result<_, _>>().ok()?;
    numbers.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cycles_of_the_kernels_test_are_spread_over_its_loops() {
        let sent = Sent {
            log: "test_vmalloc: All test took worker0=376475327 cycles\n".into(),
            clock: "0 1 2".into(),
        };
        assert_eq!(sent.per_op(true), Some(3764.75327));
    }

    #[test]
    fn a_load_of_our_own_is_timed_from_its_start() {
        let sent = Sent {
            log: String::new(),
            clock: "5 1000 40001000".into(),
        };
        assert_eq!(
            sent.per_op(false),
            Some(40_000_000.0 / f64::from(rows::OPS))
        );
        assert_eq!(sent.per_op(true), None);
    }
}
