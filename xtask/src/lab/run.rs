//! `cargo xtask lab run`: the same work on kernels that differ.
//!
//! In: kernels, workloads and a number of repeats. Out: a folder with a recording and the kernel's
//! own words for each, as `KERNEL/WORKLOAD/REPEAT.kct`, so that `kcore-trace compare` takes two of
//! its folders; `run.json` says what was done and what went wrong. Kernels take turns (A B A B …).
//!
//! Invariant: a guest that panics or hangs costs its own boot and no other; what it sent is kept.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde::{Deserialize, Serialize};

use super::{
    artefacts,
    build::variants,
    cases, initramfs,
    kernels::{self, Kernel},
    protocol::{Report, Verdict},
    qemu::{self, Ending, Files, Machine},
    schedule,
    workloads::{self, WORKLOADS, Workload},
};
use crate::{cargo, places::Places, setup};

/// The kernels of a comparison unless others are named.
const KERNELS: [&str; 6] = ["spinlock", "rwsem", "rwsem-iter", "6.1", "6.12", "7.3"];
const QUICK_KERNELS: [&str; 2] = ["spinlock", "rwsem"];

const REPEATS: u32 = 3;
const QUICK_REPEATS: u32 = 2;

/// Below cargo's target folder.
const RUNS: &str = "lab/runs";

#[derive(Args)]
pub(crate) struct Options {
    /// Two kernels, the shortest workloads, two repeats
    #[arg(long)]
    quick: bool,
    /// Only these kernels: variants of `lab build`, or lines of Debian's kernels as in `6.12`
    #[arg(long, value_name = "NAME", value_parser = kernel)]
    kernel: Vec<&'static str>,
    /// Only these workloads
    #[arg(long, value_name = "NAME", value_parser = workload)]
    workload: Vec<&'static Workload>,
    /// How often each kernel is booted
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    repeats: Option<u32>,
    /// How much is recorded
    #[arg(long, default_value = "full", value_parser = ["contended", "full"])]
    level: String,
    /// Where the results go; a new folder in the target folder, unless one is named
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Stop a guest after this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    boot_timeout: u64,
}

impl Options {
    /// What `--quick` into this folder asks for.
    pub(crate) fn quick(output: PathBuf) -> Self {
        Self {
            quick: true,
            kernel: Vec::new(),
            workload: Vec::new(),
            repeats: None,
            level: "full".into(),
            output: Some(output),
            boot_timeout: 900,
        }
    }

    fn kernels(&self) -> Vec<&'static str> {
        match (self.kernel.as_slice(), self.quick) {
            ([], true) => QUICK_KERNELS.to_vec(),
            ([], false) => KERNELS.to_vec(),
            (named, _) => named.to_vec(),
        }
    }

    fn workloads(&self) -> Vec<&'static Workload> {
        let all = WORKLOADS.iter();
        match (self.workload.as_slice(), self.quick) {
            ([], true) => all.filter(|workload| workload.quick).collect(),
            ([], false) => all.collect(),
            (named, _) => named.to_vec(),
        }
    }

    fn repeats(&self) -> u32 {
        let usual = if self.quick { QUICK_REPEATS } else { REPEATS };
        self.repeats.unwrap_or(usual)
    }
}

fn kernel(name: &str) -> Result<&'static str, String> {
    let names = variants::VARIANTS.iter().map(|variant| variant.name);
    let names = names.chain(kernels::LINES.iter().map(|line| line.name));
    let known: Vec<_> = names.collect();
    let found = known.iter().find(|known| **known == name);
    found
        .copied()
        .ok_or_else(|| format!("the tables have {}", known.join(", ")))
}

fn workload(name: &str) -> Result<&'static Workload, String> {
    workloads::named(name).ok_or_else(|| {
        let names: Vec<_> = WORKLOADS.iter().map(|workload| workload.name).collect();
        format!("the table has {}", names.join(", "))
    })
}

/// What `run.json` says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) level: String,
    pub(crate) kernels: Vec<String>,
    pub(crate) workloads: Vec<String>,
    pub(crate) repeats: u32,
    pub(crate) boots: Vec<BootRecord>,
}

/// One boot of a run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct BootRecord {
    pub(crate) kernel: String,
    pub(crate) cpus: u32,
    pub(crate) repeat: u32,
    pub(crate) seconds: f64,
    /// Why the guest did not reach its end, if it did not.
    pub(crate) trouble: Option<String>,
    /// Steps that failed or that this kernel cannot do, each with the reason.
    pub(crate) failed: Vec<(String, String)>,
    pub(crate) skipped: Vec<(String, String)>,
}

impl Run {
    pub(crate) const FILE: &str = "run.json";

    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(Self::FILE);
        let text = fs::read(&path)
            .with_context(|| format!("{} holds no run; `cargo xtask lab run`", folder.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))
    }

    /// What went wrong, a line each.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for boot in &self.boots {
            let name = format!(
                "{}, {} CPUs, repeat {}",
                boot.kernel, boot.cpus, boot.repeat
            );
            problems.extend(boot.trouble.iter().map(|why| format!("{name}: {why}")));
            for (step, why) in &boot.failed {
                problems.push(format!("{name}: {step}: {why}"));
            }
        }
        problems
    }
}

/// Where the results of a run are: the named folder, or the newest.
pub(crate) fn folder(places: &Places, named: Option<PathBuf>) -> Result<PathBuf> {
    if let Some(folder) = named {
        return Ok(folder);
    }
    let runs = places.target.join(RUNS);
    let entries = fs::read_dir(&runs).into_iter().flatten();
    let newest = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|folder| folder.join(Run::FILE).is_file())
        .max();
    newest.with_context(|| format!("no run in {}; `cargo xtask lab run`", runs.display()))
}

/// The command `cargo xtask lab run`.
pub(crate) fn command(places: &Places, options: &Options) -> Result<ExitCode> {
    let (folder, run) = run(places, options)?;
    let problems = run.problems();
    println!("\nresults in {}", folder.display());
    if problems.is_empty() {
        println!("`cargo xtask lab report` shows them");
        return Ok(ExitCode::SUCCESS);
    }
    for problem in &problems {
        eprintln!("{problem}");
    }
    eprintln!(
        "the rest was measured; consoles are in {}",
        folder.join("consoles").display()
    );
    Ok(ExitCode::FAILURE)
}

/// Boots every kernel so often and keeps what comes back.
pub(crate) fn run(places: &Places, options: &Options) -> Result<(PathBuf, Run)> {
    let folder = match &options.output {
        Some(folder) => folder.clone(),
        None => places.target.join(RUNS).join(now()),
    };
    if folder.join(Run::FILE).exists() {
        bail!(
            "{} holds a run already; name another folder",
            folder.display()
        );
    }
    fs::create_dir_all(folder.join("consoles"))
        .with_context(|| format!("failed to create {0}; `ls -ld {0}`", folder.display()))?;
    let (tools, kernels) = setup::for_lab(places, &options.kernels())?;
    let guest = cargo::guest_binary(places, &tools)?;

    let workloads = options.workloads();
    println!(
        "\nOn {} kernels, {} times each:",
        kernels.len(),
        options.repeats()
    );
    for workload in &workloads {
        println!("  {:22} {}", workload.name, workload.about);
    }
    let script = workloads::script(&workloads, &options.level);
    let extras = vec![("lab.json".to_owned(), serde_json::to_vec(&script)?)];
    let binary = fs::read(&guest)?;
    let scratch = tempfile::tempdir_in(&folder)?;
    let initramfs = scratch.path().join("initramfs");
    fs::write(
        &initramfs,
        initramfs::with_modules(&binary, &kernels, extras)?,
    )?;

    let mut run = Run {
        level: options.level.clone(),
        kernels: kernels.iter().map(|kernel| kernel.line.into()).collect(),
        workloads: workloads
            .iter()
            .map(|workload| workload.name.into())
            .collect(),
        repeats: options.repeats(),
        boots: Vec::new(),
    };
    let mut shapes: Vec<u32> = workloads.iter().map(|workload| workload.cpus()).collect();
    shapes.sort_unstable();
    shapes.dedup();
    let mut boots = Vec::new();
    for repeat in 1..=run.repeats {
        for &cpus in &shapes {
            boots.extend(kernels.iter().map(|kernel| Boot {
                kernel,
                cpus,
                repeat,
            }));
        }
    }
    let progress = Progress::new(boots.len());
    let timeout = Duration::from_secs(options.boot_timeout);
    let mut broken = None;
    schedule::run(
        boots,
        |boot| boot.run(&initramfs, scratch.path(), &folder, timeout),
        |booted| match booted {
            Ok(record) => {
                progress.show(run.boots.len() + 1, &record);
                run.boots.push(record);
                // Written anew each time: a run that is killed is a shorter one.
                broken = broken.take().or(write(&folder, &run).err());
            }
            Err(error) => broken = broken.take().or(Some(error)),
        },
    );
    match broken {
        Some(error) => Err(error),
        None => Ok((folder, run)),
    }
}

fn write(folder: &Path, run: &Run) -> Result<()> {
    let text = serde_json::to_vec_pretty(run)?;
    let path = folder.join(Run::FILE);
    fs::write(&path, text).with_context(|| format!("failed to write {}; `df .`", path.display()))
}

/// One boot to do.
struct Boot<'a> {
    kernel: &'a Kernel,
    cpus: u32,
    repeat: u32,
}

impl Boot<'_> {
    fn run(
        &self,
        initramfs: &Path,
        scratch: &Path,
        folder: &Path,
        timeout: Duration,
    ) -> Result<BootRecord> {
        let name = format!("{}-{}cpu-{}", self.kernel.line, self.cpus, self.repeat);
        let (console, stream) = (format!("{name}.console"), format!("{name}.artefacts"));
        let machine = Machine {
            kernel: &self.kernel.image,
            initramfs,
            cpus: self.cpus,
            cpu: qemu::CPU,
            // Kernels hang on their second CPU where the clock counts instructions.
            counts_instructions: self.cpus == 1,
            words: cases::words("lab", self.kernel),
            timeout,
        };
        let files = Files {
            folder: scratch,
            console: &console,
            artefacts: &stream,
        };
        let began = Instant::now();
        let ending = qemu::boot(&machine, &files)?;
        let seconds = began.elapsed().as_secs_f64();
        let text = fs::read(scratch.join(&console))?;
        fs::write(folder.join("consoles").join(&console), &text)?;
        keep(&fs::read(scratch.join(&stream))?, self, folder)?;
        fs::remove_file(scratch.join(&stream))?;
        let report = Report::from_console(&String::from_utf8_lossy(&text));
        let trouble = match ending {
            Ending::Left => report.trouble(),
            Ending::Failed(status) => Some(format!("QEMU failed with {status}")),
            Ending::TimedOut => Some(format!("it was stopped after {seconds:.0} s")),
        };
        let mut record = BootRecord {
            kernel: self.kernel.line.into(),
            cpus: self.cpus,
            repeat: self.repeat,
            seconds,
            trouble,
            failed: Vec::new(),
            skipped: Vec::new(),
        };
        for case in report.cases {
            match case.verdict {
                Verdict::Failed(why) => record.failed.push((case.name, why)),
                Verdict::Skipped(why) => record.skipped.push((case.name, why)),
                Verdict::Passed | Verdict::Unfit(_) => (),
            }
        }
        Ok(record)
    }
}

/// Puts each file that a guest sent where its workload's results are.
fn keep(stream: &[u8], boot: &Boot<'_>, folder: &Path) -> Result<()> {
    let (artefacts, _cut) = artefacts::parse(stream);
    for artefact in artefacts {
        let name = &artefact.name;
        let (workload, end) = name
            .split_once('.')
            .with_context(|| format!("a guest sent a file of the name {name}"))?;
        let into = folder.join(boot.kernel.line).join(workload);
        fs::create_dir_all(&into)?;
        fs::write(into.join(format!("{}.{end}", boot.repeat)), artefact.data)?;
    }
    Ok(())
}

/// A name for a folder that sorts by time.
pub(crate) fn now() -> String {
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    now.replace(':', "")
}

/// Says how far a run is.
struct Progress {
    boots: usize,
    began: Instant,
}

impl Progress {
    fn new(boots: usize) -> Self {
        Self {
            boots,
            began: Instant::now(),
        }
    }

    fn show(&self, done: usize, record: &BootRecord) {
        let each = self.began.elapsed().as_secs_f64() / done as f64;
        let left = each * (self.boots - done) as f64;
        let left = humantime::format_duration(Duration::from_secs(left as u64));
        let verdict = match (&record.trouble, record.failed.len()) {
            (Some(trouble), _) => trouble.clone(),
            (None, 0) => "ok".to_owned(),
            (None, failed) => format!("{failed} steps failed"),
        };
        println!(
            "  [{done}/{}] {}, {} CPUs, repeat {}: {verdict} ({:.0} s), {left} left",
            self.boots, record.kernel, record.cpus, record.repeat, record.seconds
        );
    }
}
