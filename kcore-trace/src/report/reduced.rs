//! What was measured while the guard had reduced the level.
//!
//! In: the sums of that time. Out: when and why the level changed, and the waits of each lock
//! meanwhile. Invariant: nothing of it is in the other tables.

use kcore_trace_ebpf::words::Lock;
use serde::Serialize;

use super::{Dist, group};
use crate::model::{Reduced, Step};
use crate::units;

/// Steps that are shown to a person: they become rare, and the first say what happened.
const SHOWN: usize = 6;

/// The time at a lower level than the one that was asked for.
#[derive(Clone, Debug, Serialize)]
pub struct Reduction {
    pub duration_ns: u64,
    /// Nanoseconds in which nothing was measured.
    pub off_ns: u64,
    pub steps: Vec<Step>,
    /// The lock that was waited for longest first.
    pub locks: Vec<ReducedLock>,
}

/// What was seen of a lock in that time: slow paths only.
#[derive(Clone, Debug, Serialize)]
pub struct ReducedLock {
    #[serde(with = "crate::words")]
    pub lock: Lock,
    pub contended: u64,
    pub wait: Dist,
}

impl Reduction {
    pub(super) fn new(reduced: &Reduced) -> Option<Self> {
        if reduced.is_empty() {
            return None;
        }
        let locks = group(&reduced.total.cells)
            .into_iter()
            .map(|cells| ReducedLock {
                lock: cells.lock,
                contended: cells.sum.contended,
                wait: Dist::new(&cells.sum.wait),
            });
        Some(Self {
            duration_ns: reduced.duration_ns,
            off_ns: reduced.off_ns,
            steps: reduced.steps.clone(),
            locks: locks.collect(),
        })
    }
}

/// Lines for the head of the report.
pub(super) fn text(reduction: &Reduction, duration_ns: u64) -> Vec<String> {
    let Reduction {
        duration_ns: reduced_ns,
        off_ns,
        steps,
        locks,
    } = reduction;
    let mut lines = vec![format!(
        "for {} of {}, {} of it without any measuring: none of it is in the tables",
        units::elapsed(*reduced_ns),
        units::elapsed(duration_ns),
        units::elapsed(*off_ns),
    )];
    let step = |step: &Step| format!("at {}: {}", units::elapsed(step.at_ns), step.sentence());
    lines.extend(steps.iter().take(SHOWN).map(step));
    if steps.len() > SHOWN {
        let more = units::counted((steps.len() - SHOWN) as u64, "more change");
        lines.push(format!("{more} of the level; --format json has all"));
    }
    let waited = locks.iter().filter(|lock| lock.contended > 0);
    lines.extend(waited.map(|lock| {
        let waits = units::counted(lock.contended, "wait");
        let sum = units::duration(lock.wait.sum_ns);
        format!("meanwhile {}: {waits}, {sum} in all", lock.lock)
    }));
    lines
}
