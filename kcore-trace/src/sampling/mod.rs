//! Measuring over time: attach, then an interval after another until something ends it.
//!
//! In: what to measure and what ends it. Out: each interval as plain data, handed to whoever asked
//! for it as soon as it is over: a recording, the live line, the exporter. `record` and `serve` are
//! two users of this one loop.
//!
//! Invariant: intervals follow on each other without a gap, and a user that fails ends measuring
//! with its reason; nothing else does but the end that was asked for.

pub(crate) mod command;

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval_at, sleep_until};

use crate::host::Host;
use crate::kernel::Facts;
use crate::loader::{Preparation, ProgramCost, Session};
use crate::model::{End, Header, Interval, KernelName, Measured};
use crate::plan::{Plan, Request};
use crate::snapshot::Snapshots;

/// Longer than any machine is up.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// What to measure, and how finely in time.
#[derive(Clone, Copy, Debug)]
pub struct Measuring {
    pub request: Request,
    pub interval: Duration,
}

/// One interval, and what it cost to get it.
#[derive(Clone, Debug)]
pub struct Sample {
    pub interval: Interval,
    /// How long reading the counters took.
    pub snapshot: Duration,
    /// What the kernel says of the run time of each program, since it was loaded.
    pub programs: Vec<ProgramCost>,
}

/// What ends the loop, beside a failure.
pub(crate) struct Until {
    pub(crate) duration: Option<Duration>,
    /// The command whose end ends measuring; it gets the signals then.
    pub(crate) child: Option<command::Child>,
}

/// The programs in the kernel, and where reading them has got to.
pub(crate) struct Sampler {
    session: Session,
    snapshots: Snapshots,
    interval: Duration,
    begun: Instant,
    last_ns: u64,
}

impl Sampler {
    /// Attaches what this kernel allows. From here on it is measured.
    pub(crate) fn start(measuring: &Measuring) -> Result<(Self, Facts)> {
        let exec = Instant::now();
        let preparation = Preparation::start();
        let (facts, addresses) = Facts::gather()?;
        let gathered = exec.elapsed();
        let plan = Plan::choose(&facts, &measuring.request)?;
        let session = Session::start(preparation, plan, &facts, &addresses)?;
        let sampler = Self::begin_with(session, measuring.interval)?;
        log::debug!(
            "{} programs attached {:.0?} after start ({gathered:.0?} of it facts)",
            sampler.session.program_count(),
            exec.elapsed(),
        );
        Ok((sampler, facts))
    }

    fn begin_with(mut session: Session, interval: Duration) -> Result<Self> {
        let mut snapshots = Snapshots::prepare(&mut session)?;
        snapshots.begin(&mut session)?;
        Ok(Self {
            session,
            snapshots,
            interval,
            begun: Instant::now(),
            last_ns: 0,
        })
    }

    /// What is attached, and what turned out to be missing.
    pub(crate) fn plan(&self) -> &Plan {
        &self.session.plan
    }

    /// Nanoseconds from the start of measuring to the end of the last interval.
    pub(crate) fn measured_ns(&self) -> u64 {
        self.last_ns
    }

    /// The head of what is measured from now on.
    pub(crate) fn header(&self, facts: &Facts, command: Vec<String>) -> Header {
        let plan = self.plan();
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
            command,
            started_at: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            interval_ns: self.interval.as_nanos() as u64,
        }
    }

    /// Whether the counters may be read: most of them are in our own memory, whatever the
    /// capabilities.
    pub(crate) fn try_reading(&mut self) -> Result<()> {
        self.snapshots.try_reading()
    }

    /// Ends the interval that is running.
    pub(crate) fn sample(&mut self) -> Result<Sample> {
        self.sample_by(Snapshots::take)
    }

    /// Ends the last interval: nothing is left to a next one.
    pub(crate) fn last_sample(&mut self) -> Result<Sample> {
        self.sample_by(Snapshots::take_all)
    }

    fn sample_by(
        &mut self,
        take: fn(&mut Snapshots, &mut Session) -> Result<Measured>,
    ) -> Result<Sample> {
        let begun = Instant::now();
        let measured = take(&mut self.snapshots, &mut self.session)?;
        let snapshot = begun.elapsed();
        self.session.flush_log();
        let end_ns = self.begun.elapsed().as_nanos() as u64;
        let interval = Interval {
            start_ns: self.last_ns,
            end_ns,
            measured,
        };
        self.last_ns = end_ns;
        Ok(Sample {
            interval,
            snapshot,
            programs: self.snapshots.programs().to_vec(),
        })
    }

    /// Measures until something ends it, and hands on each interval.
    pub(crate) async fn run(
        &mut self,
        until: &mut Until,
        signals: &mut Signals,
        mut each: impl FnMut(Sample) -> Result<()>,
    ) -> Result<End> {
        let begun = tokio::time::Instant::from_std(self.begun);
        let mut ticks = interval_at(begun + self.interval, self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let deadline = begun + until.duration.unwrap_or(FOREVER);
        let child = &mut until.child;
        loop {
            tokio::select! {
                _ = ticks.tick() => if let Err(error) = self.sample().and_then(&mut each) {
                    return Ok(End::Failed(format!("{error:#}")));
                },
                () = sleep_until(deadline) => return Ok(End::Duration),
                name = signals.next() => match child {
                    // The command decides what a signal means; measuring ends when it ends.
                    Some(child) => child.signal(name),
                    None => return Ok(End::Signal(name.name.into())),
                },
                code = command::ended(child) => return Ok(End::Command { code: code? }),
            }
        }
    }

    /// Sets the beginning of the first interval to now.
    pub(crate) fn begin(&mut self) {
        self.begun = Instant::now();
    }
}

/// An event loop on this thread.
pub(crate) fn event_loop() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start the event loop")
}

/// A signal that ends measuring, or is passed on to the command.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caught {
    pub(crate) number: i32,
    pub(crate) name: &'static str,
}

/// The signals that end measuring.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    pub(crate) fn new() -> Result<Self> {
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
