//! The `record` command: plan, attach, then a loop of ticks until something ends it.
//!
//! In: [`RecordOptions`]. Out: a recording on disk, a live line and a closing line on stderr.
//! What ends it: the duration, a signal, the command, or a failure; each is written into the
//! trailer. Every interval is on disk before the next begins.
//!
//! Invariant: what was measured stays. A failure after the first record still writes the trailer
//! if it can, and the file opens in any case.

mod command;
mod live;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval_at, sleep_until};

use crate::host::Host;
use crate::kernel::{Addresses, Facts};
use crate::loader::{self, Preparation, Session};
use crate::model::{End, Header, Interval, KernelName, Measured, Trailer};
use crate::plan::{Plan, Request};
use crate::recording::RecordingWriter;
use crate::snapshot::Snapshots;
use crate::units;
use command::Command;
use live::Live;

/// What to record, and where to.
#[derive(Clone, Debug)]
pub struct RecordOptions {
    pub output: PathBuf,
    /// Until a signal, where there is none and no command.
    pub duration: Option<Duration>,
    pub interval: Duration,
    pub request: Request,
    /// Whether an existing recording may be replaced.
    pub force: bool,
    /// The command to run, or nothing.
    pub command: Vec<OsString>,
}

/// Records until something ends it.
pub fn run(options: RecordOptions) -> Result<()> {
    let exec = Instant::now();
    loader::check_capabilities()?;
    let command = Command::find(&options.command)?;
    refuse_to_overwrite(&options)?;
    let preparation = Preparation::start();
    let (facts, addresses) = Facts::gather()?;
    let gathered = exec.elapsed();
    let plan = Plan::choose(&facts, &options.request)?;
    let mut recorder = Recorder::start(preparation, &options, plan, &facts, &addresses)?;
    log::debug!(
        "{} programs attached {:.0?} after start ({gathered:.0?} of it facts)",
        recorder.session.program_count(),
        exec.elapsed(),
    );
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start the event loop")?;
    runtime.block_on(recorder.record(&options, command))
}

/// Found out before anything is attached.
fn refuse_to_overwrite(options: &RecordOptions) -> Result<()> {
    let path = &options.output;
    anyhow::ensure!(
        options.force || !path.exists(),
        "recording `{}` exists; --force replaces it, -o names another",
        path.display()
    );
    Ok(())
}

struct Recorder {
    session: Session,
    snapshots: Snapshots,
    header: Header,
    begun: Instant,
    last_ns: u64,
}

impl Recorder {
    fn start(
        preparation: Preparation,
        options: &RecordOptions,
        plan: Plan,
        facts: &Facts,
        addresses: &Addresses,
    ) -> Result<Self> {
        let mut session = Session::start(preparation, plan, facts, addresses)?;
        let mut snapshots = Snapshots::prepare(&mut session)?;
        let header = header(options, &session.plan, facts);
        snapshots.begin(&mut session)?;
        Ok(Self {
            session,
            snapshots,
            header,
            begun: Instant::now(),
            last_ns: 0,
        })
    }

    async fn record(&mut self, options: &RecordOptions, command: Option<Command>) -> Result<()> {
        let mut writer = RecordingWriter::create(&options.output, options.force, &self.header)?;
        let mut signals = Signals::new()?;
        let live = Live::new(&self.header);
        let begun = tokio::time::Instant::now();
        self.begun = begun.into_std();
        let mut child = match command.map(|command| command.spawn()).transpose() {
            Ok(child) => child,
            Err(error) => {
                writer.discard();
                return Err(error);
            }
        };
        let mut ticks = interval_at(begun + options.interval, options.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let deadline = begun + options.duration.unwrap_or(FOREVER);
        let end = loop {
            tokio::select! {
                _ = ticks.tick() => match self.tick(&mut writer) {
                    Ok(interval) => live.show(&interval, writer.total()),
                    Err(error) => break End::Failed(format!("{error:#}")),
                },
                () = sleep_until(deadline) => break End::Duration,
                name = signals.next() => match &mut child {
                    // The command decides what a signal means; recording ends when it ends.
                    Some(child) => child.signal(name),
                    None => break End::Signal(name.name.into()),
                },
                code = command::ended(&mut child) => break End::Command { code: code? },
            }
        };
        live.clear();
        self.finish(options, writer, end, child).await
    }

    /// One interval: read, write.
    fn tick(&mut self, writer: &mut RecordingWriter) -> Result<Interval> {
        let measured = self.snapshots.take(&mut self.session)?;
        self.append(writer, measured)
    }

    fn append(&mut self, writer: &mut RecordingWriter, measured: Measured) -> Result<Interval> {
        self.session.flush_log();
        let end_ns = self.begun.elapsed().as_nanos() as u64;
        let interval = Interval {
            start_ns: self.last_ns,
            end_ns,
            measured,
        };
        self.last_ns = end_ns;
        writer.append(&interval)?;
        Ok(interval)
    }

    fn last_tick(&mut self, writer: &mut RecordingWriter) -> Result<Interval> {
        let measured = self.snapshots.take_all(&mut self.session)?;
        self.append(writer, measured)
    }

    async fn finish(
        &mut self,
        options: &RecordOptions,
        mut writer: RecordingWriter,
        mut end: End,
        child: Option<command::Child>,
    ) -> Result<()> {
        let command_ns = child.as_ref().and_then(|child| child.ran_ns());
        if !matches!(end, End::Failed(_))
            && let Err(error) = self.last_tick(&mut writer)
        {
            end = End::Failed(format!("{error:#}"));
        }
        let total = writer.total().clone();
        let trailer = Trailer {
            end: end.clone(),
            duration_ns: self.last_ns,
            command_ns,
            total,
        };
        let written = writer.finish(&trailer);
        if let Some(child) = child {
            child.stop(&end).await;
        }
        let path = options.output.display();
        if let End::Failed(reason) = end {
            anyhow::bail!(
                "measuring stopped after {}: {reason}; what was measured until then is in `{path}`",
                units::elapsed(self.last_ns)
            );
        }
        written.with_context(|| {
            format!("the end of `{path}` could not be written, the rest is there")
        })?;
        if let End::Command { code } = end
            && code != 0
        {
            eprintln!("the command ended with exit code {code}");
        }
        eprintln!(
            "{} recorded in `{path}`; kcore-trace report shows it",
            units::elapsed(self.last_ns)
        );
        Ok(())
    }
}

/// Longer than any machine is up.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

fn header(options: &RecordOptions, plan: &Plan, facts: &Facts) -> Header {
    Header {
        tool_version: env!("CARGO_PKG_VERSION").into(),
        kernel: KernelName {
            release: facts.release.clone(),
            version: facts.version.clone(),
            era: plan.era.name().into(),
        },
        host: Host {
            spinlocks: facts.spinlocks.clone(),
            ..Host::read()
        },
        level: plan.level,
        hooks: plan.hooks.name().into(),
        coverage: plan.coverage.clone(),
        kinds: plan.kinds(),
        without_holds: plan.without_holds(),
        command: options
            .command
            .iter()
            .map(|word| word.to_string_lossy().into())
            .collect(),
        started_at: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
        interval_ns: options.interval.as_nanos() as u64,
    }
}

/// A signal that ends recording, or is passed on to the command.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caught {
    pub(crate) number: i32,
    pub(crate) name: &'static str,
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let catch = |kind| signal(kind).context("failed to catch signals");
        Ok(Self {
            interrupt: catch(SignalKind::interrupt())?,
            terminate: catch(SignalKind::terminate())?,
            hangup: catch(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Caught {
        tokio::select! {
            _ = self.interrupt.recv() => Caught { number: libc::SIGINT, name: "SIGINT" },
            _ = self.terminate.recv() => Caught { number: libc::SIGTERM, name: "SIGTERM" },
            _ = self.hangup.recv() => Caught { number: libc::SIGHUP, name: "SIGHUP" },
        }
    }
}
