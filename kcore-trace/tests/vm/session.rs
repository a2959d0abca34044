//! A recorder that stays attached while one load after the other runs: attaching and detaching is
//! what takes long under emulation.
//!
//! In: flags and loads. Out: for each load the report of the intervals in which it ran, and some
//! background. Invariant: all that a load does is in its report, and nothing from before it, what is not
//! read each time included; and no two sessions run at once.
//!
//! The longest waits are those of all the time that a recorder ran: of a load after the first only
//! those are listed that are longer than others before.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use kcore_trace::recording::Recording;
use kcore_trace::snapshot;

use crate::tool::{self, Flags, Report};

/// Reading the counters takes an emulated CPU some hundredths of a second.
const INTERVAL: &str = "150ms";
/// After so many intervals everything was read that was counted before them: the one that was going on
/// and those up to the next at which all tables are.
const UNTIL_READ: u32 = 1 + snapshot::FULL_EVERY;
const POLL: Duration = Duration::from_millis(30);
/// Nothing takes that long, but on a machine that hangs.
const PATIENCE: Duration = Duration::from_secs(180);

/// The recorder that runs.
static SESSION: Mutex<Option<Session>> = Mutex::new(None);

struct Session {
    flags: Flags,
    recorder: Child,
    recording: PathBuf,
    /// What it writes to stderr.
    said: PathBuf,
}

/// Records a load with these flags, by the recorder that runs if it has the same.
pub(crate) fn record(flags: Flags, load: &[&str]) -> Result<Report> {
    let mut session = SESSION
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    let running = match session.take() {
        Some(running) if running.flags == flags => running,
        other => {
            other.map_or(Ok(()), Session::end)?;
            Session::start(flags)?
        }
    };
    session.insert(running).record(load)
}

/// Ends the recorder that runs, if there is one.
pub(crate) fn end() -> Result<()> {
    let mut session = SESSION
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    session.take().map_or(Ok(()), Session::end)
}

impl Session {
    fn start(flags: Flags) -> Result<Self> {
        let recording = tool::fresh("session")?;
        let said = recording.with_extension("said");
        let path = recording.to_str().context("a path that is not UTF-8")?;
        // What measuring costs under emulation says nothing.
        let mut args = vec![
            "record",
            "-o",
            path,
            "-i",
            INTERVAL,
            "--max-overhead",
            "off",
        ];
        args.extend(flags);
        let mut command = tool::command(&args);
        command.stdout(Stdio::null()).stderr(File::create(&said)?);
        let mut session = Self {
            flags,
            recorder: command.spawn()?,
            recording,
            said,
        };
        session.until(|recorded_ns| recorded_ns > 0)?;
        session.until_read()?;
        has_its_own_extremes(&Recording::open(&session.recording)?)?;
        // For whoever reads the console of a failed boot.
        println!("{}", session.complaint());
        Ok(session)
    }

    fn record(&mut self, load: &[&str]) -> Result<Report> {
        let from_ns = self.recorded_ns()?;
        println!("load: {}", load.join(" "));
        let output = Command::new(tool::EXE)
            .args(load)
            .stdin(Stdio::null())
            .output()?;
        ensure!(
            output.status.success(),
            "{load:?}: {}",
            tool::complaint(&output)
        );
        let to_ns = self.until_read()?;
        has_its_own_extremes(&Recording::open(&self.recording)?)?;
        let (from, to) = (format!("{from_ns}ns"), format!("{to_ns}ns"));
        let path = self
            .recording
            .to_str()
            .context("a path that is not UTF-8")?;
        let view = ["report", path, "--from", &from, "--to", &to];
        let mut views = vec![view.to_vec()];
        if self.flags.contains(&"--audit") {
            views.push([&view[..], &["--audit"]].concat());
        }
        for view in views {
            println!("{}", String::from_utf8_lossy(&tool::run(&view)?.stdout));
        }
        Ok(Report(tool::json(
            &[&view[..], &["--format", "json"]].concat(),
        )?))
    }

    /// Waits until everything that was counted so far is in the recording, and says how much time is.
    fn until_read(&mut self) -> Result<u64> {
        let mut recorded_ns = self.recorded_ns()?;
        for _ in 0..UNTIL_READ {
            recorded_ns = self.until(|now_ns| now_ns > recorded_ns)?;
        }
        Ok(recorded_ns)
    }

    /// Waits until so much is recorded, and says how much.
    fn until(&mut self, enough: impl Fn(u64) -> bool) -> Result<u64> {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if self.recorder.try_wait()?.is_some() {
                bail!("{}", self.complaint());
            }
            match self.recorded_ns() {
                Ok(recorded_ns) if enough(recorded_ns) => return Ok(recorded_ns),
                // It has not written anything yet.
                Ok(_) | Err(_) => sleep(POLL),
            }
        }
        bail!("it does not record: {}", self.complaint());
    }

    /// Nanoseconds from the start of measuring to the end of the last interval.
    fn recorded_ns(&self) -> Result<u64> {
        Ok(Recording::open(&self.recording)?.duration_ns)
    }

    fn complaint(&self) -> String {
        let said = fs::read_to_string(&self.said).unwrap_or_default();
        said.trim().to_owned()
    }

    fn end(mut self) -> Result<()> {
        tool::signal(&self.recorder, libc::SIGINT);
        let status = self.recorder.wait()?;
        ensure!(status.success(), "{status}: {}", self.complaint());
        let recording = Recording::open(&self.recording)?;
        ensure!(recording.is_complete(), "the recording has no end");
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // It may have ended on its own, and a file that stays is the smaller harm.
        self.recorder.kill().ok();
        self.recorder.wait().ok();
        fs::remove_file(&self.recording).ok();
        fs::remove_file(&self.said).ok();
    }
}

/// Extremes are set back when measuring begins, so that none is beyond the sum of all samples. Asked of a
/// short recording most of all: an excerpt's are narrowed, and a sum grows.
fn has_its_own_extremes(recording: &Recording) -> Result<()> {
    for (key, cell) in &recording.total.cells {
        for times in [&cell.wait, &cell.hold] {
            ensure!(
                times.max_ns().unwrap_or(0) <= times.sum_ns(),
                "an extreme from before the beginning: {key:?}, {cell:?}"
            );
        }
    }
    Ok(())
}
