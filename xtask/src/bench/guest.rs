//! Measuring a row in a guest whose clock counts instructions.
//!
//! In: kernels and rows. Out: for each pair what came of it, and in the run's folder what the guest
//! sent. One row a boot: what a kernel did before changes what the same work costs.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use super::{
    ledger::{Ledger, Measured},
    peers::Peers,
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
    /// The kernels that are compared on, by name.
    pub(crate) names: Vec<&'static str>,
    /// Those, and others that rows boot in their place.
    pub(crate) kernels: &'a [Kernel],
    pub(crate) binary: &'a Path,
    /// The other tools, or why they cannot be had.
    pub(crate) peers: Result<Peers, String>,
    pub(crate) folder: PathBuf,
    pub(crate) timeout: Duration,
}

/// A row on a kernel.
pub(crate) struct Boot<'a> {
    /// The kernel that it is compared on.
    name: &'static str,
    /// The kernel that is booted.
    kernel: &'a Kernel,
    row: &'static Row,
}

/// The file systems of the guests.
pub(crate) struct Initramfs {
    plain: PathBuf,
    with_peers: Option<PathBuf>,
}

impl Boot<'_> {
    pub(crate) fn id(&self) -> String {
        id(self.name, self.row)
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
        let boots = self
            .names
            .iter()
            .flat_map(|name| rows.iter().filter_map(|row| self.boot_of(name, row)));
        boots.filter(|boot| !ledger.has(&boot.id())).collect()
    }

    fn boot_of(&self, name: &'static str, row: &'static Row) -> Option<Boot<'_>> {
        let booted = row.kernel(name)?;
        let kernel = self.kernels.iter().find(|kernel| kernel.line == booted)?;
        Some(Boot { name, kernel, row })
    }

    /// Writes the file systems of the guests, the same for all but for the other tools.
    pub(crate) fn initramfs(&self) -> Result<Initramfs> {
        let mut steps = Vec::new();
        for name in &self.names {
            let boots = rows::ROWS.iter().filter_map(|row| self.boot_of(name, row));
            steps.extend(boots.map(|boot| boot.row.step(&boot.step(), name, boot.has_module())));
        }
        let script = vec![("lab.json".to_owned(), serde_json::to_vec(&steps)?)];
        let mut bytes = initramfs::with_modules(&fs::read(self.binary)?, self.kernels, script)?;
        let plain = self.write("initramfs", &bytes)?;
        let with_peers = match &self.peers {
            Ok(peers) => {
                bytes.extend(peers.archive()?);
                Some(self.write("initramfs-peers", &bytes)?)
            }
            Err(_) => None,
        };
        Ok(Initramfs { plain, with_peers })
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<PathBuf> {
        let path = self.folder.join(name);
        fs::write(&path, bytes)
            .with_context(|| format!("failed to write {}; `df .`", path.display()))?;
        Ok(path)
    }

    /// Measures one row.
    pub(crate) fn boot(&self, boot: &Boot<'_>, initramfs: &Initramfs) -> Result<Measured> {
        let initramfs = match (boot.row.needs_peers(), &self.peers, &initramfs.with_peers) {
            (true, Err(reason), _) => return Ok(Measured::not(reason.clone())),
            (true, _, Some(path)) => path,
            _ => &initramfs.plain,
        };
        let folder = self.folder.join(boot.name).join(boot.row.name);
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
        Ok(match trouble(&ending, &report, seconds) {
            Some(reason) => Measured::not(reason),
            None => sent.measured(boot.has_module()),
        }
        .after(seconds))
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
#[derive(Default)]
struct Sent {
    log: String,
    clock: String,
}

impl Sent {
    /// Puts it all into the folder of the row.
    fn keep(stream: &[u8], step: &str, folder: &Path) -> Result<Self> {
        let mut sent = Self::default();
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
    fn measured(&self, has_module: bool) -> Measured {
        let Some(times) = Times::read(&self.clock) else {
            return Measured::not("the guest sent no times".to_owned());
        };
        let (rounds, ops) = if has_module {
            (report::cycles_of_workers(&self.log), rows::LOOPS)
        } else {
            (times.rounds, rows::OPS)
        };
        if rounds.len() != rows::ROUNDS as usize {
            return Measured::not(format!("{} rounds came back", rounds.len()));
        }
        Measured {
            rounds: rounds.iter().map(|round| round / f64::from(ops)).collect(),
            ready_s: Some(times.ready / 1e9),
            reason: None,
            seconds: 0.0,
        }
    }
}

/// The clock around a load, in nanoseconds.
struct Times {
    /// From the start of what watches to that of the load.
    ready: f64,
    rounds: Vec<f64>,
}

impl Times {
    fn read(clock: &str) -> Option<Self> {
        let spans = clock.lines().map(|line| {
            let (began, ended) = line.split_once(' ')?;
            Some(ended.parse::<f64>().ok()? - began.parse::<f64>().ok()?)
        });
        let spans: Vec<_> = spans.collect::<Option<_>>()?;
        let (ready, rounds) = spans.split_first()?;
        Some(Self {
            ready: *ready,
            rounds: rounds.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock() -> String {
        (0..=rows::ROUNDS)
            .map(|round| format!("{round} {}\n", round + 4_000_000))
            .collect()
    }

    #[test]
    fn cycles_of_the_kernels_test_are_spread_over_its_loops() {
        let line = "test_vmalloc: All test took worker0=4200000 cycles\n";
        let sent = Sent {
            log: line.repeat(rows::ROUNDS as usize),
            clock: clock(),
        };
        assert_eq!(sent.measured(true).per_op(), Some(1000.0));
    }

    #[test]
    fn a_load_of_our_own_is_timed_by_the_clock_around_it() {
        let sent = Sent {
            log: String::new(),
            clock: clock(),
        };
        let measured = sent.measured(false);
        assert_eq!(measured.per_op(), Some(2000.0));
        assert_eq!(measured.ready_s, Some(0.004));
    }

    #[test]
    fn a_round_that_is_missing_is_a_reason_and_no_number() {
        let sent = Sent {
            log: "test_vmalloc: All test took worker0=4200000 cycles\n".into(),
            clock: clock(),
        };
        let measured = sent.measured(true);
        assert_eq!(measured.per_op(), None);
        assert_eq!(measured.reason.as_deref(), Some("1 rounds came back"));
    }
}
