//! The guest's half of the VM lab: one static binary that is PID 1, the runner
//! of the cases and the command-line tool.
//!
//! In: a list of cases, and on the kernel's command line the configuration and a
//! filter. Out: on the console one line per case, as `xtask/src/lab/protocol.rs`
//! reads them, and artefacts on the second serial port. As PID 1 it always ends
//! by powering off; a case that panics is a failed case and no more. With
//! `--native` the cases that allow it run on the machine's own kernel instead.

use std::{
    env,
    ffi::{CString, OsString},
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::fd::AsRawFd,
    panic::{self, AssertUnwindSafe},
    path::Path,
    process::ExitCode,
    sync::Mutex,
    thread,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{bench, load, reference, script, session, stuck, tool};

/// The first argument that makes this binary the command-line tool: a case runs
/// `/proc/self/exe kcore-trace record …`.
pub(crate) const TOOL: &str = "kcore-trace";

/// Where the modules of the running kernel are.
const MODULES: &str = "/module";

/// The command-line tool; its first argument is its name.
pub(crate) type Tool = fn(Vec<OsString>) -> ExitCode;

/// The configuration of the machine's own kernel.
const NATIVE: &str = "native";

/// What a case does.
pub(crate) type Run = fn(&mut Guest) -> Result<Outcome>;

/// One test of the tool on a live kernel.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) needs: Needs,
    pub(crate) run: Run,
}

/// What must be there before a case makes sense.
pub(crate) struct Needs {
    /// At least so many CPUs.
    pub(crate) cpus: usize,
    /// At most so many: what does not depend on their number is tried with one.
    pub(crate) most_cpus: usize,
    /// Whether the case also holds on a kernel that is not the lab's.
    pub(crate) native: bool,
    /// Whether it also runs on the lab's own builds, which differ in the type of a lock.
    pub(crate) variants: bool,
    /// Whether it needs a module that only the lab's own builds have.
    pub(crate) module: bool,
    /// Whether it runs only if the filter is its name.
    pub(crate) naming: bool,
}

/// How a case ended, unless it failed.
pub(crate) enum Outcome {
    Passed,
    /// The kernel cannot do it; the reason is shown to the user.
    Skipped(String),
}

/// The machine that the cases run on.
pub(crate) struct Guest {
    config: String,
    filter: String,
    /// The name and the era of a kernel that the lab built; nothing on others.
    variant: Option<(String, String)>,
    /// The second serial port; the machine's own kernel has none.
    artefacts: Option<File>,
    /// The only step of the script to follow; all, if it is empty.
    step: String,
}

impl Guest {
    /// The lab's name for this machine's shape, or `native`.
    pub(crate) fn config(&self) -> &str {
        &self.config
    }

    /// The era that a kernel of the lab's own was built to be.
    pub(crate) fn built_era(&self) -> Option<&str> {
        self.variant.as_ref().map(|(_, era)| era.as_str())
    }

    /// Where a module for this kernel is: in the same place on all, so that recordings of the
    /// same work name the same command.
    pub(crate) fn module(&self, name: &str) -> Result<String> {
        ensure!(self.variant.is_some(), "this kernel has no modules");
        Ok(format!("{MODULES}/{name}.ko"))
    }

    /// How many CPUs are online.
    pub(crate) fn cpus(&self) -> usize {
        thread::available_parallelism().map_or(1, usize::from)
    }

    /// How many CPUs there could be: those of `0-3` are four.
    pub(crate) fn possible_cpus(&self) -> Result<usize> {
        let path = "/sys/devices/system/cpu/possible";
        let text = fs::read_to_string(path).with_context(|| format!("failed to read {path}"))?;
        let last = text.trim().rsplit('-').next().unwrap_or_default();
        let last: usize = last
            .parse()
            .with_context(|| format!("{path} holds {text}"))?;
        Ok(last + 1)
    }

    /// The kernel's release, as `uname -r` has it.
    pub(crate) fn kernel_release(&self) -> String {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        release.trim().to_owned()
    }

    /// Sends a file to the lab, which keeps it if the user wants it.
    pub(crate) fn artefact(&mut self, name: &str, data: &[u8]) -> Result<()> {
        let Some(port) = &mut self.artefacts else {
            return Ok(());
        };
        let mut frame = u16::try_from(name.len())?.to_le_bytes().to_vec();
        frame.extend_from_slice(name.as_bytes());
        frame.extend_from_slice(&u32::try_from(data.len())?.to_le_bytes());
        frame.extend_from_slice(data);
        port.write_all(&frame)
            .with_context(|| format!("failed to send the artefact {name}"))
    }

    /// Follows the script in the initramfs, each step as if it were a case.
    fn follow_script(&mut self) {
        match script::read(self.cpus(), &self.step) {
            Ok(steps) => {
                for step in &steps {
                    println!("running {}, {:.1} s after boot", step.name, uptime_s());
                    let outcome = step.run(self);
                    tell(&step.name, outcome);
                }
                say(&format!("done {}", steps.len()));
            }
            Err(error) => println!("{error:#}"),
        }
    }

    /// Runs the cases that pass `wanted` and the filter; whether all is well.
    fn run(&mut self, cases: &[Case], wanted: fn(&Case) -> bool) -> bool {
        println!(
            "cases run on {}, configuration {}, {} CPUs",
            self.kernel_release(),
            self.config(),
            self.cpus()
        );
        panic::set_hook(Box::new(|panic| {
            let message = panic
                .payload_as_str()
                .unwrap_or("a panic without a message");
            let place = panic
                .location()
                .map(ToString::to_string)
                .unwrap_or_default();
            let (first, rest) = message.split_once('\n').unwrap_or((message, ""));
            let text = format!("{first} ({place})\n{rest}");
            *LAST_PANIC.lock().unwrap_or_else(|e| e.into_inner()) = text;
        }));
        let mut good = true;
        let mut count = 0;
        for case in cases.iter().filter(|case| wanted(case)) {
            let named = case.name == self.filter;
            if !case.name.contains(&self.filter) || (case.needs.naming && !named) {
                continue;
            }
            count += 1;
            good &= self.run_one(case);
        }
        if let Err(error) = session::end() {
            count += 1;
            good = tell("the_last_recorder_ends_in_order", Err(error));
        }
        say(&format!("done {count}"));
        good
    }

    fn run_one(&mut self, case: &Case) -> bool {
        let Case { name, needs, run } = case;
        if self.cpus() < needs.cpus {
            say(&format!("case {name} unfit needs {} CPUs", needs.cpus));
            return true;
        }
        if needs.module && self.variant.is_none() {
            say(&format!("case {name} unfit needs a module of the lab's"));
            return true;
        }
        if self.variant.is_some() && !needs.variants {
            say(&format!("case {name} unfit is tried with Debian's kernels"));
            return true;
        }
        if self.config != NATIVE && self.cpus() > needs.most_cpus {
            say(&format!(
                "case {name} unfit is tried with {} CPUs",
                needs.most_cpus
            ));
            return true;
        }
        println!("running {name}, {:.1} s after boot", uptime_s());
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| run(self)));
        let outcome = outcome.unwrap_or_else(|_panic| {
            let message = LAST_PANIC.lock().unwrap_or_else(|e| e.into_inner()).clone();
            Err(anyhow::Error::msg(message))
        });
        tell(name, outcome)
    }
}

/// Tells the lab how a case ended; whether all is well.
fn tell(name: &str, outcome: Result<Outcome>) -> bool {
    let message = match outcome {
        Ok(Outcome::Passed) => {
            say(&format!("case {name} ok"));
            return true;
        }
        Ok(Outcome::Skipped(reason)) => {
            say(&format!(
                "case {name} skipped {}",
                reason.replace('\n', " ")
            ));
            return true;
        }
        Err(error) => format!("{error:#}"),
    };
    let mut lines = message.lines();
    say(&format!(
        "case {name} FAILED {}",
        lines.next().unwrap_or("without a message")
    ));
    lines.for_each(|line| say(&format!("| {line}")));
    false
}

/// Seconds since boot.
fn uptime_s() -> f64 {
    let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds = uptime.split_ascii_whitespace().next();
    seconds.and_then(|word| word.parse().ok()).unwrap_or(0.0)
}

/// The message and place of the latest panic.
static LAST_PANIC: Mutex<String> = Mutex::new(String::new());

/// Runs the cases, or the tool, or says how to run the cases: whatever the
/// process number and the arguments ask for.
pub(crate) fn main(cases: &[Case], tool: Tool) -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().collect();
    if let Some(code) = bench::main(&arguments[1..]) {
        return code;
    }
    match arguments.get(1).and_then(|argument| argument.to_str()) {
        Some(TOOL) => tool(arguments[1..].to_vec()),
        _ if std::process::id() == 1 => as_init(cases),
        Some(load::MODULE) => load::main(&arguments[2..]),
        Some(stuck::READERS) => stuck::main(&arguments[2..]),
        Some(reference::WATCHED) => reference::main(&arguments[2..]),
        Some("--native") => {
            let filter = arguments
                .get(2)
                .map(|filter| filter.to_string_lossy().into_owned());
            native(cases, filter.unwrap_or_default())
        }
        _ => {
            println!(
                "The VM tests boot kernels: `cargo xtask test --vm-only`. \
                 On this machine's own kernel: `sudo {} --native`.",
                arguments[0].display()
            );
            ExitCode::SUCCESS
        }
    }
}

fn as_init(cases: &[Case]) -> ExitCode {
    match start_guest() {
        Ok(mut guest) => {
            if Path::new(script::PATH).exists() {
                guest.follow_script();
            } else {
                guest.run(cases, |_| true);
            }
            guest.artefacts.as_ref().into_iter().for_each(drain);
        }
        // Without `done` on the console the lab takes the boot for failed.
        Err(error) => println!("the guest did not start: {error:#}"),
    }
    drain(&io::stdout());
    // SAFETY: both calls take no pointer; nothing of this system is needed after.
    unsafe {
        libc::sync();
        libc::reboot(libc::RB_POWER_OFF);
    }
    ExitCode::FAILURE
}

fn start_guest() -> Result<Guest> {
    for (kind, place) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/tmp"),
        ("tracefs", "/sys/kernel/tracing"),
        ("debugfs", "/sys/kernel/debug"),
        ("cgroup2", "/sys/fs/cgroup"),
    ] {
        mount(kind, place)?;
    }
    let words = fs::read_to_string("/proc/cmdline").context("failed to read /proc/cmdline")?;
    let word = |name: &str| {
        let value = words
            .split_ascii_whitespace()
            .find_map(|word| word.strip_prefix(name));
        value.unwrap_or_default().to_owned()
    };
    let variant = Some(word("kcore_trace.variant=")).filter(|name| !name.is_empty());
    if let Some(name) = &variant {
        std::os::unix::fs::symlink(format!("/modules/{name}"), MODULES)
            .with_context(|| format!("failed to create {MODULES}"))?;
    }
    Ok(Guest {
        variant: variant.map(|name| (name, word("kcore_trace.era="))),
        config: word("kcore_trace.config="),
        filter: word("kcore_trace.filter="),
        artefacts: Some(raw_serial("/dev/ttyS1")?),
        step: word("kcore_trace.step="),
    })
}

fn native(cases: &[Case], filter: String) -> ExitCode {
    // SAFETY: the call has no arguments and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!(
            "tracing needs root; `sudo {} --native`",
            env::args().next().unwrap_or_default()
        );
        return ExitCode::FAILURE;
    }
    if !Path::new("/sys/kernel/tracing/events").exists()
        && let Err(error) = mount("tracefs", "/sys/kernel/tracing")
    {
        eprintln!("{error:#}");
    }
    let mut guest = Guest {
        config: NATIVE.to_owned(),
        filter,
        variant: None,
        artefacts: None,
        step: String::new(),
    };
    let passed = guest.run(cases, |case| case.needs.native);
    match tool::remove_files() {
        Ok(()) if passed => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Says a line to the lab, by one write and waiting until it is out, so that
/// kernel messages come before or after it.
fn say(words: &str) {
    let mut stdout = io::stdout().lock();
    // The console is all there is: nobody could be told that it failed.
    let _told = stdout
        .write_all(format!("KCT {words}\n").as_bytes())
        .and_then(|()| stdout.flush());
    drain(&stdout);
}

fn drain(port: &impl AsRawFd) {
    // SAFETY: the descriptor is open while `port` is borrowed; on one that is no
    // terminal the call only fails.
    unsafe { libc::tcdrain(port.as_raw_fd()) };
}

/// Mounts a file system that has no device. What is there already is fine.
fn mount(kind: &str, place: &str) -> Result<()> {
    let (c_kind, c_place) = (CString::new(kind)?, CString::new(place)?);
    // SAFETY: the three strings live until the call returns, and these file
    // systems take no data.
    let mounted = unsafe {
        libc::mount(
            c_kind.as_ptr(),
            c_place.as_ptr(),
            c_kind.as_ptr(),
            0,
            std::ptr::null(),
        )
    };
    let error = io::Error::last_os_error();
    if mounted != 0 && error.raw_os_error() != Some(libc::EBUSY) {
        bail!("failed to mount {kind} on {place}: {error}");
    }
    Ok(())
}

/// Opens a serial port that passes every byte as it is.
fn raw_serial(path: &str) -> Result<File> {
    let port = OpenOptions::new().write(true).open(path);
    let port = port.with_context(|| format!("failed to open {path}"))?;
    // SAFETY: a termios of zeros is a valid value, filled in by tcgetattr; the
    // descriptor is open and the pointers are to a local variable.
    let set = unsafe {
        let mut settings: libc::termios = std::mem::zeroed();
        libc::tcgetattr(port.as_raw_fd(), &raw mut settings);
        libc::cfmakeraw(&raw mut settings);
        libc::tcsetattr(port.as_raw_fd(), libc::TCSANOW, &raw const settings)
    };
    if set != 0 {
        bail!("failed to make {path} raw: {}", io::Error::last_os_error());
    }
    Ok(port)
}
