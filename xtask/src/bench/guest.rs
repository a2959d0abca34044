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
use statrs::statistics::Statistics as _;

use super::{
    accuracy::Tool,
    ledger::{Ledger, Measured},
    peers::Peers,
    rows::{self, Row},
    scale::{self, SHAPES, Seen, Shape},
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
    what: What,
}

/// What is measured in a boot.
#[derive(Clone, Copy)]
pub(crate) enum What {
    Row(&'static Row),
    /// What a tool says of holds of a known length.
    Accuracy(Tool),
    /// What recording takes where there may be many CPUs.
    Scale(&'static Shape),
}

impl What {
    fn all() -> Vec<Self> {
        let rows = rows::ROWS.iter().map(Self::Row);
        let tools = Tool::ALL.into_iter().map(Self::Accuracy);
        let scales = SHAPES.iter().map(Self::Scale);
        rows.chain(tools).chain(scales).collect()
    }

    fn needs_peers(self) -> bool {
        match self {
            Self::Row(row) => row.needs_peers(),
            Self::Accuracy(tool) => tool.needs_peers(),
            Self::Scale(_) => false,
        }
    }

    fn cpus(self) -> u32 {
        match self {
            Self::Row(_) | Self::Accuracy(_) => 1,
            Self::Scale(shape) => shape.cpus,
        }
    }

    fn cpu(self) -> &'static str {
        match self {
            Self::Row(_) | Self::Accuracy(_) => qemu::CPU,
            Self::Scale(_) => scale::CPU,
        }
    }

    /// Words for the kernel.
    fn words(self) -> &'static str {
        match self {
            Self::Row(_) | Self::Accuracy(_) => "",
            Self::Scale(shape) => shape.words,
        }
    }

    fn name(self) -> String {
        match self {
            Self::Row(row) => row.name.to_owned(),
            Self::Accuracy(tool) => format!("known-hold-{}", tool.name()),
            Self::Scale(shape) => shape.name.to_owned(),
        }
    }
}

/// The file systems of the guests.
pub(crate) struct Initramfs {
    plain: PathBuf,
    with_peers: Option<PathBuf>,
}

impl Boot<'_> {
    pub(crate) fn id(&self) -> String {
        id(self.name, self.what)
    }

    fn has_module(&self) -> bool {
        self.kernel.built.is_some()
    }

    fn step(&self) -> String {
        format!("{}-{}", self.kernel.line, self.what.name())
    }
}

/// The name of a measurement in the ledger.
pub(crate) fn id(kernel: &str, what: What) -> String {
    format!("{kernel}/{}", what.name())
}

impl Bench<'_> {
    /// What is still to be measured.
    pub(crate) fn boots(&self, wanted: &[What], ledger: &Ledger) -> Vec<Boot<'_>> {
        let boots = self
            .names
            .iter()
            .flat_map(|name| self.boots_of(name, wanted));
        boots.filter(|boot| !ledger.has(&boot.id())).collect()
    }

    /// What of it makes sense on a kernel.
    fn boots_of(&self, name: &'static str, wanted: &[What]) -> Vec<Boot<'_>> {
        let boots = wanted.iter().filter_map(|&what| {
            let booted = match what {
                What::Row(row) => row.kernel(name)?,
                What::Accuracy(_) | What::Scale(_) => name,
            };
            let kernel = self.kernels.iter().find(|kernel| kernel.line == booted)?;
            let boot = Boot { name, kernel, what };
            let fits = match what {
                What::Row(_) => true,
                What::Accuracy(_) => boot.has_module(),
                // Only Debian's kernels count the time that a thread is on a CPU.
                What::Scale(_) => !boot.has_module(),
            };
            fits.then_some(boot)
        });
        boots.collect()
    }

    /// Writes the file systems of the guests, the same for all but for the other tools.
    pub(crate) fn initramfs(&self) -> Result<Initramfs> {
        let mut steps = Vec::new();
        for name in &self.names {
            for boot in self.boots_of(name, &What::all()) {
                let step = boot.step();
                steps.push(match boot.what {
                    What::Row(row) => row.step(&step, name, boot.has_module()),
                    What::Accuracy(tool) => tool.step(&step, name),
                    What::Scale(shape) => shape.step(&step),
                });
            }
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

    /// Measures one thing.
    pub(crate) fn boot(&self, boot: &Boot<'_>, initramfs: &Initramfs) -> Result<Measured> {
        let initramfs = match (boot.what.needs_peers(), &self.peers, &initramfs.with_peers) {
            (true, Err(reason), _) => return Ok(Measured::not(reason.clone())),
            (true, _, Some(path)) => path,
            _ => &initramfs.plain,
        };
        let folder = self.folder.join(boot.name).join(boot.what.name());
        fs::create_dir_all(&folder)?;
        let machine = Machine {
            kernel: &boot.kernel.image,
            initramfs,
            cpus: boot.what.cpus(),
            cpu: boot.what.cpu(),
            counts_instructions: true,
            words: format!(
                "{} kcore_trace.step={} {}",
                cases::words("bench", boot.kernel),
                boot.step(),
                boot.what.words()
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
            None => match boot.what {
                What::Row(_) => sent.measured(boot.has_module()),
                What::Accuracy(tool) => self.reported(tool, &folder),
                What::Scale(_) => Measured::seen(Seen::read(&folder)),
            },
        }
        .after(seconds))
    }

    fn reported(&self, tool: Tool, folder: &Path) -> Measured {
        match tool.reported(folder, self.binary) {
            Ok(reported) => Measured {
                reported: Some(reported),
                ..Measured::default()
            },
            Err(error) => Measured::not(format!("{error:#}")),
        }
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
            ..Measured::default()
        }
    }
}

/// The clock around a load, in nanoseconds.
struct Times {
    /// From the start of what watches to that of the load, in the mean.
    ready: f64,
    rounds: Vec<f64>,
}

impl Times {
    fn read(clock: &str) -> Option<Self> {
        let spans = clock.lines().map(|line| {
            let (began, ended) = line.split_once(' ')?;
            Some(ended.parse::<f64>().ok()? - began.parse::<f64>().ok()?)
        });
        let spans: Vec<f64> = spans.collect::<Option<_>>()?;
        let starts = spans.chunks(1 + rows::ROUNDS_OF_START as usize);
        let starts: Vec<_> = starts.filter_map(|spans| spans.split_first()).collect();
        let ready: Vec<_> = starts.iter().map(|(ready, _)| **ready).collect();
        let rounds = starts.iter().flat_map(|(_, rounds)| rounds.iter().copied());
        (!ready.is_empty()).then(|| Self {
            ready: (&ready).mean(),
            rounds: rounds.collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock() -> String {
        let start = |start: u32| {
            let ready = format!("{start} {}\n", start + 3_000_000 + start * 2_000_000);
            let rounds =
                (0..rows::ROUNDS_OF_START).map(|round| format!("{round} {}\n", round + 4_000_000));
            ready + &rounds.collect::<String>()
        };
        (0..rows::STARTS).map(start).collect()
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
        // 3, 5, 7 and 9 ms.
        assert_eq!(measured.ready_s, Some(0.006));
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
