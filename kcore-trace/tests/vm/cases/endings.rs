//! How a recording can end, and that what was measured is there.

use std::ffi::CString;
use std::io::{self, BufRead as _, BufReader};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};
use std::{fs, ptr};

use anyhow::{Context as _, Result, bail, ensure};

use crate::guest::{self, Guest, Outcome};
use crate::{session, tool};

/// The least there is to attach: emulated kernels take long.
pub(crate) const QUICK: [&str; 4] = ["--level", "contended", "--hooks", "tracepoint"];
/// A command that goes on until it is told to end.
const ENDLESS: [&str; 7] = [
    tool::EXE,
    guest::TOOL,
    "stress",
    "--threads",
    "1",
    "-d",
    "1h",
];
/// Nothing takes that long, but on a machine that hangs.
const PATIENCE: Duration = Duration::from_secs(60);

fn recorder(path: &Path, more: &[&str]) -> Result<Option<Child>> {
    if !has_tracepoints()? {
        return Ok(None);
    }
    let path = path.to_str().context("not UTF-8")?;
    let args = [["record", "-o", path].as_slice(), &QUICK, more].concat();
    tool::start(&args).map(Some)
}

pub(crate) fn has_tracepoints() -> Result<bool> {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    if let Some(&answer) = ANSWER.get() {
        return Ok(answer);
    }
    let plan = tool::run(&["plan", "--hooks", "tracepoint"])?;
    Ok(*ANSWER.get_or_init(|| plan.status.success()))
}

pub(crate) fn no_tracepoints() -> Result<Outcome> {
    Ok(Outcome::Skipped(
        "this kernel has no contention tracepoints, which attach quickest".into(),
    ))
}

/// Waits until there are some intervals in the file.
pub(crate) fn until_it_measures(path: &Path) -> Result<()> {
    let begun = Instant::now();
    let mut sizes = Vec::new();
    while begun.elapsed() < PATIENCE {
        let size = fs::metadata(path).map_or(0, |file| file.len());
        if size > 0 && !sizes.contains(&size) {
            sizes.push(size);
        }
        if sizes.len() > 3 {
            return Ok(());
        }
        sleep(Duration::from_millis(20));
    }
    bail!("`{}` does not grow: {sizes:?}", path.display())
}

fn end(child: Child) -> Result<Output> {
    Ok(child.wait_with_output()?)
}

fn ends_well(child: Child) -> Result<()> {
    let output = end(child)?;
    let complaint = tool::complaint(&output);
    ensure!(output.status.success(), "{}: {complaint}", output.status);
    Ok(())
}

pub(crate) fn killed(_: &mut Guest) -> Result<Outcome> {
    let path = tool::fresh("killed")?;
    let Some(child) = recorder(&path, &["-i", "100ms"])? else {
        return no_tracepoints();
    };
    until_it_measures(&path)?;
    tool::signal(&child, libc::SIGKILL);
    let output = end(child)?;
    ensure!(
        output.status.signal() == Some(libc::SIGKILL),
        "{}",
        output.status
    );
    let report = tool::report(&path)?;
    ensure!(
        report.0["recording"]["complete"] == false,
        "{}",
        report.0["recording"]
    );
    ensure!(
        report.0["recording"]["duration_ns"].as_u64() >= Some(100_000_000),
        "nothing is left"
    );
    Ok(Outcome::Passed)
}

pub(crate) fn interrupted(_: &mut Guest) -> Result<Outcome> {
    let path = tool::fresh("interrupted")?;
    let Some(child) = recorder(&path, &["-i", "100ms"])? else {
        return no_tracepoints();
    };
    until_it_measures(&path)?;
    tool::signal(&child, libc::SIGINT);
    ends_well(child)?;
    let report = tool::report(&path)?;
    ensure!(
        report.0["recording"]["complete"] == true,
        "{}",
        report.0["recording"]
    );
    Ok(Outcome::Passed)
}

pub(crate) fn hung_up(_: &mut Guest) -> Result<Outcome> {
    let path = tool::fresh("hung-up")?;
    // As `nohup` does.
    let Some(child) = hangup_ignored(|| recorder(&path, &["-i", "100ms"]))? else {
        return no_tracepoints();
    };
    until_it_measures(&path)?;
    tool::signal(&child, libc::SIGHUP);
    until_it_measures(&path)?;
    tool::signal(&child, libc::SIGINT);
    ends_well(child)?;
    let report = tool::report(&path)?;
    let end = &report.0["recording"]["end"];
    ensure!(end["signal"] == "SIGINT", "ended by {end}");
    Ok(Outcome::Passed)
}

/// What is started meanwhile ignores a hangup.
fn hangup_ignored<T>(start: impl FnOnce() -> T) -> T {
    // SAFETY: no handler is installed, and the one that there was is put back.
    let before = unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
    let started = start();
    // SAFETY: as above.
    unsafe { libc::signal(libc::SIGHUP, before) };
    started
}

pub(crate) fn unheard(_: &mut Guest) -> Result<Outcome> {
    let path = tool::fresh("unheard")?;
    let Some(mut child) = recorder(&path, &["-i", "100ms"])? else {
        return no_tracepoints();
    };
    until_it_measures(&path)?;
    drop(child.stderr.take());
    tool::signal(&child, libc::SIGINT);
    let output = end(child)?;
    ensure!(output.status.success(), "{}", output.status);
    Ok(Outcome::Passed)
}

/// A file system of a few pages, unmounted when it goes.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount() -> Result<Self> {
        let folder = tool::files()?.join("small-disk");
        fs::create_dir_all(&folder)?;
        let at = c_string(&folder)?;
        let (none, tmpfs, size) = (c"none".as_ptr(), c"tmpfs".as_ptr(), c"size=32k".as_ptr());
        // SAFETY: all strings live until the call returns.
        let failed = unsafe { libc::mount(none, at.as_ptr(), tmpfs, 0, size.cast()) } != 0;
        ensure!(
            !failed,
            "failed to mount a small disk: {}",
            std::io::Error::last_os_error()
        );
        Ok(Self(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // A disk that stays is the smaller harm.
        let Ok(at) = c_string(&self.0) else { return };
        // SAFETY: the string lives until the call returns.
        unsafe { libc::umount2(at.as_ptr(), libc::MNT_DETACH) };
    }
}

fn c_string(path: &Path) -> Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

pub(crate) fn full_disk(_: &mut Guest) -> Result<Outcome> {
    let disk = SmallDisk::mount()?;
    let path = disk.0.join("full.kct");
    let Some(child) = recorder(&path, &["-i", "10ms", "-d", "30s"])? else {
        return no_tracepoints();
    };
    let output = end(child)?;
    let complaint = tool::complaint(&output);
    ensure!(
        output.status.code() == Some(2),
        "{}: {complaint}",
        output.status
    );
    ensure!(
        complaint.contains("full") && complaint.contains("full.kct"),
        "{complaint}"
    );
    let report = tool::report(&path)?;
    ensure!(
        report.0["recording"]["duration_ns"].as_u64() > Some(0),
        "nothing is left"
    );
    Ok(Outcome::Passed)
}

/// A terminal that a recorder is started in the foreground of.
struct Terminal {
    _keys: OwnedFd,
    screen: OwnedFd,
}

impl Terminal {
    fn open() -> Result<Self> {
        if !Path::new("/dev/pts/ptmx").exists() {
            fs::create_dir_all("/dev/pts")?;
            let (devpts, at) = (c"devpts".as_ptr(), c"/dev/pts".as_ptr());
            // SAFETY: all strings are static.
            let failed = unsafe { libc::mount(devpts, at, devpts, 0, ptr::null()) } != 0;
            ensure!(!failed, "no devpts: {}", io::Error::last_os_error());
        }
        let flags = libc::O_RDWR | libc::O_NOCTTY;
        // SAFETY: the calls take numbers only, and what they return is nobody else's.
        unsafe {
            let keys = libc::posix_openpt(flags);
            ensure!(keys >= 0, "no terminal: {}", io::Error::last_os_error());
            let keys = OwnedFd::from_raw_fd(keys);
            libc::unlockpt(keys.as_raw_fd());
            let screen = libc::ioctl(keys.as_raw_fd(), libc::TIOCGPTPEER, flags);
            ensure!(screen >= 0, "no terminal: {}", io::Error::last_os_error());
            Ok(Self {
                _keys: keys,
                screen: OwnedFd::from_raw_fd(screen),
            })
        }
    }

    fn start(&self, mut command: Command) -> Result<Child> {
        command.stdin(self.screen.try_clone()?);
        let become_foreground = || {
            // SAFETY: the calls take numbers only; stdin is the terminal.
            match unsafe { libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 } {
                true => Err(io::Error::last_os_error()),
                false => Ok(()),
            }
        };
        // SAFETY: system calls are all there is in it.
        unsafe { command.pre_exec(become_foreground) };
        Ok(command.stderr(Stdio::piped()).spawn()?)
    }
}

pub(crate) fn forwarded_in_terminal(_: &mut Guest) -> Result<Outcome> {
    if !has_tracepoints()? {
        return no_tracepoints();
    }
    session::end()?;
    let path = tool::fresh("terminal")?;
    let file = path.to_string_lossy();
    let record = ["record", "-i", "100ms", "-o", &file];
    let args = [record.as_slice(), &QUICK, &["--"], &ENDLESS].concat();
    let terminal = Terminal::open()?;
    let child = terminal.start(tool::command(&args))?;
    until_it_measures(&path)?;
    // From elsewhere, where no key was pressed.
    tool::signal(&child, libc::SIGINT);
    ends_well(child)?;
    Ok(Outcome::Passed)
}

pub(crate) fn full_disk_with_command(_: &mut Guest) -> Result<Outcome> {
    let disk = SmallDisk::mount()?;
    let path = disk.0.join("full.kct");
    let flags = ["-i", "10ms", "--"];
    let Some(mut child) = recorder(&path, &[flags.as_slice(), &ENDLESS].concat())? else {
        return no_tracepoints();
    };
    let stderr = child.stderr.take().context("stderr is a pipe")?;
    let mut said = BufReader::new(stderr).lines();
    // The command goes on until it is told of it.
    let told = said.find(|line| line.as_ref().is_ok_and(|line| line.contains("full.kct")));
    ensure!(told.is_some(), "nothing was said of the full disk");
    tool::signal(&child, libc::SIGTERM);
    let output = end(child)?;
    ensure!(output.status.code() == Some(2), "{}", output.status);
    let report = tool::report(&path)?;
    ensure!(
        report.0["recording"]["duration_ns"].as_u64() > Some(0),
        "nothing is left"
    );
    Ok(Outcome::Passed)
}

pub(crate) fn forwarded(_: &mut Guest) -> Result<Outcome> {
    let path = tool::fresh("forwarded")?;
    let args = [["-i", "100ms", "--"].as_slice(), &ENDLESS].concat();
    let Some(child) = recorder(&path, &args)? else {
        return no_tracepoints();
    };
    until_it_measures(&path)?;
    tool::signal(&child, libc::SIGTERM);
    let begun = Instant::now();
    let output = end(child)?;
    ensure!(
        begun.elapsed() < Duration::from_secs(40),
        "the command did not get the signal"
    );
    ensure!(
        output.status.success(),
        "{}: {}",
        output.status,
        tool::complaint(&output)
    );
    let report = tool::report(&path)?;
    ensure!(
        report.0["recording"]["complete"] == true,
        "{}",
        report.0["recording"]
    );
    ensure!(
        report.0["recording"]["command_ns"].as_u64() > Some(0),
        "no duration of the command"
    );
    Ok(Outcome::Passed)
}
