//! The live line on a terminal: what is being seen, once an interval.
//!
//! In: each interval and the total so far. Out: one line on stderr that replaces itself; nothing
//! where stderr is no terminal. Invariant: no number on it that is not in the recording.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use kcore_trace_ebpf::words::Lock;

use crate::diagnostics;
use crate::model::{Header, Interval, Measured};
use crate::sampling::Sample;
use crate::units;

pub(super) struct Live {
    bar: ProgressBar,
}

impl Live {
    pub(super) fn new(header: &Header) -> Self {
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed:>4}  {wide_msg}") {
            bar.set_style(style);
        }
        let kernel = &header.kernel;
        bar.set_message(format!(
            "{} ({}), level {}",
            kernel.release,
            kernel.era,
            header.level.name()
        ));
        // What nobody sees is not worth a thread that wakes.
        if !bar.is_hidden() {
            bar.enable_steady_tick(Duration::from_millis(250));
        }
        Self { bar }
    }

    pub(super) fn show(&self, sample: &Sample, total: &Measured) {
        self.bar.set_message(match sample.level {
            Some(_) => line(&sample.interval, total),
            None => "nothing is measured: it would cost more than it may".into(),
        });
    }

    pub(super) fn detaching(&self) {
        let message = "detaching from the kernel; the recording is complete";
        self.bar.set_message(message);
    }

    pub(super) fn waiting(&self) {
        let message = "waiting for the command to end";
        self.bar.set_message(message);
    }

    /// A line that stays.
    pub(super) fn say(&self, text: &str) {
        self.bar.suspend(|| diagnostics::say(text));
    }

    pub(super) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

/// Ops and acquisitions of the interval, the lock that was waited for most, and what was lost.
fn line(interval: &Interval, total: &Measured) -> String {
    let ns = interval.end_ns - interval.start_ns;
    let measured = &interval.measured;
    let ops: u64 = measured.ops.values().map(|op| op.count).sum();
    let mut parts = Vec::new();
    if let Some(rate) = units::rate(ops, ns) {
        parts.push(format!("ops {rate}"));
    }
    parts.push(match worst(measured) {
        Some((lock, wait_ns)) => format!("waits {} on {lock}", units::duration(wait_ns)),
        None => "no waits".into(),
    });
    let lost = total.loss.unmatched_releases + total.loss.map_full;
    if lost > 0 {
        parts.push(format!("lost {}", units::count(lost)));
    }
    parts.join(", ")
}

/// The lock with most wait time.
fn worst(measured: &Measured) -> Option<(Lock, u64)> {
    let wait = |lock: Lock| {
        let of_lock = measured
            .cells
            .iter()
            .filter(move |(key, _)| key.lock == lock);
        of_lock.map(|(_, cell)| cell.wait.sum_ns()).sum::<u64>()
    };
    let worst = Lock::ALL
        .iter()
        .map(|&lock| (lock, wait(lock)))
        .max_by_key(|(_, ns)| *ns)?;
    (worst.1 > 0).then_some(worst)
}
