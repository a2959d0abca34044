//! Measuring over time: attach, then an interval after another until something ends it.
//!
//! In: what to measure and what ends it. Out: each interval as plain data, handed to whoever asked
//! for it as soon as it is over: a recording, the live line, the exporter. `record` and `serve` are
//! two users of this one loop.
//!
//! Where a limit was set to what measuring may cost, the guard changes the level on the way.
//!
//! Invariant: intervals follow on each other without a gap and each is of one level, and a user that
//! fails ends measuring with its reason; nothing else does but the end that was asked for.

pub(crate) mod command;
mod guard;
mod overhead;
mod signals;

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result};
use tokio::time::{MissedTickBehavior, interval_at, sleep_until};

use crate::allocator;
use crate::diagnostics::say;
use crate::host::Host;
use crate::kernel::Facts;
use crate::loader::{self, Preparation, ProgramCost, Session};
use crate::model::{End, Header, Interval, KernelName, Level, Measured, Step, StepReason};
use crate::plan::{Hooks, Plan, Request};
use crate::snapshot::{Snapshots, monotonic_ns};
use guard::Guard;
use overhead::Meter;
pub use overhead::Overhead;
pub(crate) use signals::{Caught, Signals};

/// Longer than any machine is up.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// What to measure, and how finely in time.
#[derive(Clone, Copy, Debug)]
pub struct Measuring {
    pub request: Request,
    pub interval: Duration,
    /// Nothing if it may cost whatever it does.
    pub limit: Option<Limit>,
}

/// What measuring may cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limit {
    /// Of the time of all CPUs.
    pub share: f64,
    /// Whether it is an error that the cost cannot be watched.
    pub required: bool,
}

/// What measuring hands on.
#[derive(Clone, Debug)]
pub enum Event {
    Sample(Box<Sample>),
    /// From the end of the last sample on, another level is measured, by this plan.
    Step(Step, Plan),
}

/// One interval, and what it cost to get it.
#[derive(Clone, Debug)]
pub struct Sample {
    pub interval: Interval,
    /// Nothing where nothing was measured.
    pub level: Option<Level>,
    /// What measuring costs, where it is watched.
    pub overhead: Option<Overhead>,
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

/// Measuring, and where it has got to.
pub(crate) struct Sampler {
    measuring: Measuring,
    /// Nothing while the guard has switched it off.
    active: Option<Active>,
    /// What is attached, or was at last.
    plan: Plan,
    watch: Option<Watch>,
    begun: Beginning,
    last_ns: u64,
}

/// When measuring began. Programs that are attached later go by it too.
#[derive(Clone, Copy)]
struct Beginning {
    at: Instant,
    /// The same by the clock of the programs.
    ns: u64,
}

impl Beginning {
    fn now() -> Self {
        Self {
            at: Instant::now(),
            ns: monotonic_ns(),
        }
    }
}

/// Reads what was counted since the last reading, and tells moments from the beginning.
type Take = fn(&mut Snapshots, &mut Session, u64) -> Result<Measured>;

/// The programs in the kernel, and what was read of them.
struct Active {
    session: Session,
    snapshots: Snapshots,
}

/// The guard at work.
struct Watch {
    guard: Guard,
    meter: Meter,
    /// When a window begins or ends.
    due: Instant,
    overhead: Option<Overhead>,
}

impl Active {
    fn attach(request: &Request) -> Result<(Self, Facts)> {
        let begun = Instant::now();
        let preparation = Preparation::start();
        let (facts, addresses) = Facts::gather()?;
        let gathered = begun.elapsed();
        let plan = Plan::choose(&facts, request)?;
        let mut session = Session::start(preparation, plan, &facts, &addresses)?;
        let mut snapshots = Snapshots::prepare(&mut session)?;
        snapshots.begin(&mut session)?;
        log::debug!(
            "{} programs attached {:.2?} after start ({gathered:.2?} of it facts)",
            session.program_count(),
            begun.elapsed(),
        );
        allocator::return_free_memory();
        Ok((Self { session, snapshots }, facts))
    }

    fn read(&mut self, take: Take, begun: Beginning) -> Result<Measured> {
        let measured = take(&mut self.snapshots, &mut self.session, begun.ns)?;
        self.session.flush_log();
        Ok(measured)
    }
}

impl Watch {
    /// Nothing if the cost cannot be watched and need not be.
    fn start(limit: Limit, plan: &Plan) -> Result<Option<Self>> {
        if let Err(error) = loader::enable_statistics() {
            if limit.required {
                return Err(error.context("--max-overhead"));
            }
            say(format_args!(
                "what measuring costs is not watched: {error:#}"
            ));
            return Ok(None);
        }
        let ladder: &[Level] = match (plan.level, plan.hooks) {
            (Level::Full, Hooks::Fentry | Hooks::Kprobe) => &[Level::Full, Level::Contended],
            // Tracepoints show and cost the same at both levels.
            (Level::Full, Hooks::Tracepoint) => &[Level::Full],
            (Level::Contended, _) => &[Level::Contended],
        };
        Ok(Some(Self {
            guard: Guard::new(limit.share, ladder),
            meter: Meter::new(),
            due: Instant::now() + overhead::SOON,
            overhead: None,
        }))
    }

    fn after(&mut self, pause: Duration) {
        self.due = Instant::now() + pause;
    }
}

impl Sampler {
    /// Attaches what this kernel allows. From here on it is measured.
    pub(crate) fn start(measuring: &Measuring) -> Result<(Self, Facts)> {
        let (active, facts) = Active::attach(&measuring.request)?;
        let plan = active.session.plan.clone();
        let limit = measuring.limit;
        let watch = limit.map(|limit| Watch::start(limit, &plan));
        let sampler = Self {
            measuring: *measuring,
            active: Some(active),
            plan,
            watch: watch.transpose()?.flatten(),
            begun: Beginning::now(),
            last_ns: 0,
        };
        Ok((sampler, facts))
    }

    /// What is attached, or was at last, and what turned out to be missing.
    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Whether the level can change, for which all capabilities are needed again.
    pub(crate) fn is_guarded(&self) -> bool {
        self.watch.is_some()
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
            without_waits: plan.without_waits(),
            without_holds: plan.without_holds(),
            inside: plan.sees_inside(),
            pass: plan.pass().map(String::from),
            contexts: plan.contexts.clone(),
            stacks: plan.stacks,
            command,
            started_at: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            interval_ns: self.measuring.interval.as_nanos() as u64,
        }
    }

    /// Whether the counters may be read: most of them are in our own memory, whatever the
    /// capabilities.
    pub(crate) fn try_reading(&mut self) -> Result<()> {
        let active = self.active.as_mut();
        active.map_or(Ok(()), |active| {
            active.snapshots.try_reading(&active.session)
        })
    }

    /// Ends the interval that is running.
    pub(crate) fn sample(&mut self) -> Result<Sample> {
        self.sample_by(Snapshots::take)
    }

    /// Ends the last interval: nothing is left to a next one.
    pub(crate) fn last_sample(&mut self) -> Result<Sample> {
        self.sample_by(Snapshots::take_all)
    }

    fn sample_by(&mut self, take: Take) -> Result<Sample> {
        let asked = Instant::now();
        let active = self.active.as_mut();
        let measured = active.map(|active| active.read(take, self.begun));
        let measured = measured.transpose()?;
        let snapshot = asked.elapsed();
        let interval = self.end_interval(measured.unwrap_or_default());
        let active = self.active.as_ref();
        Ok(Sample {
            interval,
            level: active.map(|active| active.session.plan.level),
            overhead: self.watch.as_ref().and_then(|watch| watch.overhead),
            snapshot,
            programs: active.map_or_else(Vec::new, |active| active.snapshots.programs().to_vec()),
        })
    }

    fn end_interval(&mut self, measured: Measured) -> Interval {
        let end_ns = self.begun.at.elapsed().as_nanos() as u64;
        Interval {
            start_ns: std::mem::replace(&mut self.last_ns, end_ns),
            end_ns,
            measured,
        }
    }

    /// Begins a window of watching, or ends it and does what follows from it.
    fn watch(&mut self, each: &mut impl FnMut(Event) -> Result<()>) -> Result<()> {
        let Some(watch) = &mut self.watch else {
            return Ok(());
        };
        let session = self.active.as_ref().map(|active| &active.session);
        let Some(overhead) = watch.meter.close(session) else {
            // A window that cannot be had is tried again, and the level stays as it is.
            match watch.meter.open(session) {
                Ok(()) => watch.after(overhead::WINDOW),
                Err(error) => {
                    log::warn!("{error:#}");
                    watch.after(overhead::PERIOD);
                }
            }
            return Ok(());
        };
        log::debug!(
            "measuring costs {:.3} % of the CPU time: {overhead:?}",
            overhead.share() * 100.0
        );
        watch.overhead = Some(overhead);
        let verdict = watch.guard.judge(self.begun.at.elapsed(), overhead.share());
        watch.after(if watch.guard.is_in_doubt() {
            overhead::SOON
        } else {
            overhead::PERIOD
        });
        match verdict {
            Some((level, reason)) => self.change(level, reason, each),
            None => Ok(()),
        }
    }

    /// Goes on at another level. The time that no program is attached for belongs to the lower one.
    fn change(
        &mut self,
        level: Option<Level>,
        reason: StepReason,
        each: &mut impl FnMut(Event) -> Result<()>,
    ) -> Result<()> {
        let last = self.last_sample()?;
        let rises = level > last.level;
        let idle = Sample {
            snapshot: Duration::ZERO,
            ..last.clone()
        };
        each(Event::Sample(last.into()))?;
        self.active = None;
        let request = level.map(|level| Request {
            level,
            ..self.measuring.request
        });
        let attached = request.map(|request| Active::attach(&request)).transpose();
        let (level, reason) = match attached {
            Ok(attached) => {
                if let Some((active, _)) = &attached {
                    self.plan = active.session.plan.clone();
                }
                self.active = attached.map(|(active, _)| active);
                if rises {
                    let interval = self.end_interval(Measured::default());
                    each(Event::Sample(Box::new(Sample { interval, ..idle })))?;
                }
                (level, reason)
            }
            Err(error) => (None, StepReason::Failed(format!("{error:#}"))),
        };
        if let Some(watch) = &mut self.watch {
            watch.meter.forget();
            watch.after(overhead::SOON);
            if matches!(reason, StepReason::Failed(_)) {
                watch.guard.failed(self.begun.at.elapsed());
            }
        }
        let step = Step {
            at_ns: self.last_ns,
            level,
            reason,
        };
        each(Event::Step(step, self.plan.clone()))
    }

    /// Measures until something ends it, and hands on each interval.
    pub(crate) async fn run(
        &mut self,
        until: &mut Until,
        signals: &mut Signals,
        mut each: impl FnMut(Event) -> Result<()>,
    ) -> End {
        let begun = tokio::time::Instant::from_std(self.begun.at);
        let interval = self.measuring.interval;
        let mut ticks = interval_at(begun + interval, interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let deadline = begun + until.duration.unwrap_or(FOREVER);
        let child = &mut until.child;
        let failed = |error: anyhow::Error| End::Failed(format!("{error:#}"));
        loop {
            let due = self
                .watch
                .as_ref()
                .map_or(begun + FOREVER, |watch| watch.due.into());
            tokio::select! {
                _ = ticks.tick() => {
                    let sampled = self.sample();
                    if let Err(error) = sampled.and_then(|sample| each(Event::Sample(sample.into()))) {
                        return failed(error);
                    }
                }
                () = sleep_until(due) => if let Err(error) = self.watch(&mut each) {
                    return failed(error);
                },
                () = sleep_until(deadline) => return End::Duration,
                name = signals.next() => match child {
                    // The command decides what a signal means; measuring ends when it ends.
                    Some(child) => child.signal(name),
                    None => return End::Signal(name.name.into()),
                },
                code = command::ended(child) => {
                    return code.map_or_else(failed, |code| End::Command { code });
                }
            }
        }
    }

    /// Sets the beginning of the first interval to now.
    pub(crate) fn begin(&mut self) {
        self.begun = Beginning::now();
        if let Some(watch) = &mut self.watch {
            watch.meter.forget();
            watch.after(overhead::SOON);
        }
    }
}

/// An event loop on this thread.
pub(crate) fn event_loop() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start the event loop")
}
