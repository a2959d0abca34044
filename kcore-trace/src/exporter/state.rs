//! What is exported, as plain data that measuring writes and scrapes read.
//!
//! Owns [`State`]: the sums, what is known of kernel and plan, and the tool's own cost and traffic.
//! Invariant: everything in here is bounded by the plan and by the words of the domain, so that
//! memory and the number of series do not grow with time.

use std::time::{Duration, SystemTime};

use super::totals::{Expected, Totals};
use crate::loader::ProgramCost;
use crate::model::{Header, Level, Step};
use crate::plan::{Hooks, Plan, PlannedHook};
use crate::sampling::{Overhead, Sample};
use crate::snapshot;
use kcore_trace_ebpf::words::Op;

/// Everything that a scrape shows.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// Nothing until the hooks are attached.
    pub(crate) subject: Option<Subject>,
    pub(crate) totals: Totals,
    pub(crate) cost: Cost,
    pub(crate) traffic: Traffic,
}

/// What is measured.
#[derive(Debug)]
pub(crate) struct Subject {
    pub(crate) header: Header,
    pub(crate) hooks: Vec<PlannedHook>,
    /// Nothing while the guard has switched measuring off.
    pub(crate) level: Option<Level>,
    /// Changes of the level.
    pub(crate) steps: u64,
}

/// What measuring costs.
#[derive(Debug, Default)]
pub(crate) struct Cost {
    pub(crate) snapshots: u64,
    pub(crate) snapshot_time: Duration,
    pub(crate) last_snapshot: Option<SystemTime>,
    /// Nothing where it is not watched.
    pub(crate) overhead: Option<Overhead>,
    /// Empty where the kernel keeps no run time of programs.
    pub(crate) programs: Vec<ProgramCost>,
}

/// What scrapers did.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) text: u64,
    pub(crate) openmetrics: u64,
    pub(crate) protobuf: u64,
    pub(crate) connections: u64,
    /// Connections that were cut because they took too long.
    pub(crate) slow: u64,
    /// Connections that were cut to make place for others.
    pub(crate) crowded_out: u64,
    /// Connections that ended with an error: no HTTP, headers too long, or gone before the answer.
    pub(crate) broken: u64,
    pub(crate) encoding_time: Duration,
}

impl State {
    /// Says what is measured from now on.
    pub(crate) fn describe(&mut self, header: &Header, plan: &Plan) {
        self.totals = Totals::new(expected(header, plan));
        self.subject = Some(Subject {
            header: header.clone(),
            hooks: plan.programs.clone(),
            level: Some(header.level),
            steps: 0,
        });
    }

    /// Says what is measured from now on instead. Sums go on.
    pub(crate) fn step(&mut self, step: &Step, plan: &Plan) {
        let Some(subject) = &mut self.subject else {
            return;
        };
        let header = Header {
            level: plan.level,
            hooks: plan.hooks.name().into(),
            coverage: plan.coverage.clone(),
            without_waits: plan.without_waits(),
            without_holds: plan.without_holds(),
            inside: plan.sees_inside(),
            contexts: Vec::new(),
            stacks: false,
            ..subject.header.clone()
        };
        self.totals.expect(expected(&header, plan));
        *subject = Subject {
            header,
            hooks: match step.level {
                Some(_) => plan.programs.clone(),
                None => Vec::new(),
            },
            level: step.level,
            steps: subject.steps + 1,
        };
    }

    /// Adds an interval.
    pub(crate) fn add(&mut self, sample: &Sample) {
        self.totals.add(&sample.interval);
        if sample.level.is_some() {
            self.totals.measured_ns += sample.interval.end_ns - sample.interval.start_ns;
            self.cost.snapshots += 1;
            self.cost.snapshot_time += sample.snapshot;
        }
        self.cost.last_snapshot = Some(SystemTime::now());
        self.cost.overhead = sample.overhead;
        let counts_runs = sample.programs.iter().any(|program| program.runs > 0);
        if counts_runs || !self.cost.programs.is_empty() {
            self.cost.programs.clone_from(&sample.programs);
        }
    }

    pub(crate) fn sees_every_acquisition(&self) -> bool {
        self.subject
            .as_ref()
            .is_some_and(|subject| subject.level.is_some() && subject.header.sees_acquisitions())
    }
}

/// The series that are there from the start.
fn expected(header: &Header, plan: &Plan) -> Expected {
    let cells = plan.locks.iter().flat_map(snapshot::expected_keys);
    let locks = plan.locks.iter().map(|planned| planned.lock);
    let without_waits = locks.filter(|&lock| !header.sees_waits(lock));
    let holds = plan.locks.iter().filter(|planned| planned.holds);
    let timed = plan.hooks != Hooks::Tracepoint;
    // At level contended no hook is on an operation, but a tracepoint may count it.
    let ops = Op::ALL.iter().copied().filter(|op| *op != Op::Other);
    let ops = match header.level {
        Level::Full if timed => ops.collect(),
        Level::Full | Level::Contended => Vec::new(),
    };
    Expected {
        cells: cells.collect(),
        without_waits: without_waits.collect(),
        holds: holds.map(|planned| planned.lock).collect(),
        ops,
        timed,
    }
}
