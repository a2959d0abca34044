//! What stands against a comparison.
//!
//! Owns the rule for when two sides may be set against each other: the same machine, the same
//! workload, measured in the same way to its end, with nothing of weight lost. In come two sides; out
//! come all obstacles at once, and remarks on what a reader should know but what forbids nothing.
//! Invariant: a difference of kernels is never an obstacle, for that is what is compared.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;

use kcore_trace_ebpf::words::Lock;
use serde::Serialize;

use super::role::Role;
use super::side::{Sampling, Side};
use crate::host::Host;
use crate::model::{End, Header, HoldCoverage, Loss, WaitCoverage, saturating_sum};
use crate::snapshot::FULL_EVERY;
use crate::table::command_line;
use crate::units;

/// The most that may be lost, as a part of what was measured.
pub(super) const LOSS_BOUND: f64 = 0.001;
/// Memory may differ by so much on one machine, since what a kernel keeps for itself is not in it:
/// by this part, or by [`MEMORY_SLACK_BYTES`] if that is more.
const MEMORY_SLACK: f64 = 0.02;
const MEMORY_SLACK_BYTES: u64 = 64 << 20;

/// A reason not to compare.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Obstacle {
    /// `hardware`, `workload`, `level`, `coverage`, `hooks`, `losses`, `repeats` or `end`.
    pub subject: &'static str,
    /// What is different, as a phrase for a person.
    pub reason: String,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.reason)
    }
}

/// What was lost of a side.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Lost {
    #[serde(flatten)]
    pub counts: Loss,
    /// Acquisitions, releases and samples that were lost or have an unknown caller, as a part of
    /// all acquisitions, 0 to 1.
    pub share: f64,
    /// Ops whose end was not seen, as a part of all ops, 0 to 1.
    pub ops_share: f64,
}

impl Lost {
    /// Runs that the kernel skipped are not in the shares: our programs run for every lock of the
    /// kernel, of which the vmap locks are a small part, so that their number says nothing about
    /// these. What a skipped run took away from these shows as an unmatched release or acquisition.
    /// Waits and holds in flight are not either: there is one for each task at most.
    pub(super) fn of(side: &Side) -> Self {
        let counts = side.total.loss;
        let lost = saturating_sum([
            counts.map_full,
            counts.unmatched_releases,
            counts.unmatched_acquisitions,
            counts.unknown_sites,
        ]);
        let ops = saturating_sum(side.total.ops.values().map(|op| op.count));
        Self {
            counts,
            share: part(lost, side.seen().max(lost)),
            ops_share: part(
                counts.unfinished_ops,
                ops.saturating_add(counts.unfinished_ops),
            ),
        }
    }
}

fn part(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}

/// All reasons not to compare these sides.
pub(super) fn obstacles(baseline: &Side, candidate: &Side) -> Vec<Obstacle> {
    let sides = [("baseline", baseline), ("candidate", candidate)];
    let repeats = sides
        .iter()
        .flat_map(|(name, side)| differing_repeats(name, side));
    let losses = sides.iter().flat_map(|(name, side)| losses(name, side));
    let reduced = sides.iter().filter_map(|(name, side)| reduced(name, side));
    let usual = usual_code(baseline, candidate);
    let failures = sides
        .iter()
        .flat_map(|(name, side)| failures(name, side, usual));
    differences(baseline.header(), candidate.header())
        .into_iter()
        .chain(repeats)
        .chain(failures)
        .chain(reduced)
        .chain(losses)
        .collect()
}

/// The exit code of the command, where it is the same in all recordings of both sides: that of a
/// command which fails on purpose is one like any other, as loading test_vmalloc does.
fn usual_code(baseline: &Side, candidate: &Side) -> Option<i32> {
    let ends = baseline.ends.iter().chain(&candidate.ends).flatten();
    let codes: BTreeSet<_> = ends
        .filter_map(|end| match end {
            End::Command { code } => Some(*code),
            End::Duration | End::Signal(_) | End::Failed(_) => None,
        })
        .collect();
    codes.first().copied().filter(|_| codes.len() == 1)
}

/// A command that failed may have done nothing, or half of its work; measuring that failed saw half of
/// it.
fn failures(name: &str, side: &Side, usual: Option<i32>) -> Vec<Obstacle> {
    let mut times: BTreeMap<String, usize> = BTreeMap::new();
    for end in side.ends.iter().flatten() {
        let failure = match end {
            End::Command { code } if *code == 0 || Some(*code) == usual => continue,
            End::Duration | End::Signal(_) => continue,
            End::Command { code } => format!("the command exited with {code}"),
            End::Failed(reason) => format!("measuring failed: {reason}"),
        };
        *times.entry(failure).or_default() += 1;
    }
    let obstacle = |(failure, times)| Obstacle {
        subject: "end",
        reason: format!("of {}, {failure}", some_of(name, side, times)),
    };
    times.into_iter().map(obstacle).collect()
}

/// The side, or so many of its recordings where it has several.
fn some_of(name: &str, side: &Side, some: usize) -> String {
    match side.ends.len() as u64 {
        1 => format!("the {name}"),
        all => format!(
            "{some} of {} of the {name}",
            units::counted(all, "recording")
        ),
    }
}

/// What was left out while a load is heavy is not what a comparison may leave out.
fn reduced(name: &str, side: &Side) -> Option<Obstacle> {
    (side.reduced_ns > 0).then(|| Obstacle {
        subject: "level",
        reason: format!(
            "the guard reduced the level of the {name} for {} of {}",
            units::elapsed(side.reduced_ns),
            units::elapsed(side.reduced_ns.saturating_add(side.duration_ns))
        ),
    })
}

/// What differs between two recordings and must not.
fn differences(a: &Header, b: &Header) -> Vec<Obstacle> {
    let mut found = hardware(&a.host, &b.host);
    let mut check = |subject, [a, b]: [String; 2]| {
        if a != b {
            let reason = format!("{a} against {b}");
            found.push(Obstacle { subject, reason });
        }
    };
    check("workload", [a, b].map(workload));
    check("level", [a, b].map(|side| side.level.name().into()));
    check("coverage", [a, b].map(waits));
    check("coverage", [a, b].map(holds));
    check("hooks", [a, b].map(|side| side.hooks.clone()));
    // Which costs a fifth more.
    let audit = |side: &Header| match side.contexts.is_empty() {
        true => "without --audit".into(),
        false => "with --audit".into(),
    };
    check("hooks", [a, b].map(audit));
    found
}

fn hardware(a: &Host, b: &Host) -> Vec<Obstacle> {
    let number = |number: Option<u32>| number.map_or("unknown".into(), |n| n.to_string());
    let memory = |bytes: Option<u64>| {
        bytes.map_or("unknown".into(), |n| {
            format!("{} MiB", units::count(n >> 20))
        })
    };
    let same_memory = match (a.memory_bytes, b.memory_bytes) {
        (Some(a), Some(b)) => {
            let slack = MEMORY_SLACK_BYTES.max((a.max(b) as f64 * MEMORY_SLACK) as u64);
            a.abs_diff(b) <= slack
        }
        (a, b) => a == b,
    };
    let facts = [
        ("CPU model", a.cpu_model == b.cpu_model, {
            [a, b].map(|host| host.cpu_model.clone())
        }),
        ("CPUs", a.cpus_online == b.cpus_online, {
            [a, b].map(|host| number(host.cpus_online))
        }),
        ("NUMA nodes", a.nodes == b.nodes, {
            [a, b].map(|host| number(host.nodes))
        }),
        ("memory", same_memory, {
            [a, b].map(|host| memory(host.memory_bytes))
        }),
        ("virtualisation", a.virtualisation == b.virtualisation, {
            [a, b].map(|host| host.virtualisation.clone())
        }),
    ];
    let differing = facts.into_iter().filter(|(_, same, _)| !same);
    differing
        .map(|(what, _, [a, b])| Obstacle {
            subject: "hardware",
            reason: format!("{what} {a} against {b}"),
        })
        .collect()
}

pub(super) fn workload(header: &Header) -> String {
    if header.command.is_empty() {
        "no command".into()
    } else {
        format!("`{}`", command_line(&header.command))
    }
}

/// Which waits are seen, in words that are the same for locks of the same roles.
pub(super) fn waits(header: &Header) -> String {
    let waits = match header.coverage.waits {
        WaitCoverage::All => "every acquisition",
        WaitCoverage::SlowPath => "slow paths only",
        WaitCoverage::Tracepoint => "waits of lock:contention_begin only",
    };
    match header.without_waits.as_slice() {
        [] => waits.into(),
        locks => format!("{waits}, no waits of {}", roles(locks)),
    }
}

/// Which holds are seen, in words that are the same for locks of the same roles.
pub(super) fn holds(header: &Header) -> String {
    match header.coverage.holds {
        HoldCoverage::All => "every hold".into(),
        HoldCoverage::None => "no holds".into(),
        HoldCoverage::Partial => format!("no holds of {}", roles(&header.without_holds)),
    }
}

/// The roles of locks: the first lock of one stands for it, so that eras compare equal.
fn roles(locks: &[Lock]) -> String {
    let roles: BTreeSet<_> = locks.iter().map(|&lock| Role::of(lock)).collect();
    let names = roles.iter().map(|role| role.first_lock().name());
    names.collect::<Vec<_>>().join(", ")
}

/// Recordings of one side that are no repeats of its first.
fn differing_repeats(name: &str, side: &Side) -> Vec<Obstacle> {
    let first = side.header();
    let mut found = Vec::new();
    for header in &side.headers[1..] {
        if header.kernel != first.kernel {
            let kernel = |header: &Header| header.kernel.release.clone();
            let reason = match [first, header].map(kernel) {
                [a, b] if a == b => format!("two builds of kernel {a}"),
                [a, b] => format!("kernel {a} against {b}"),
            };
            found.push(reason);
        }
        let differing = differences(first, header);
        found.extend(differing.iter().map(ToString::to_string));
    }
    found.sort();
    found.dedup();
    let found = found.into_iter();
    found
        .map(|reason| Obstacle {
            subject: "repeats",
            reason: format!("of the {name} differ: {reason}"),
        })
        .collect()
}

fn losses(name: &str, side: &Side) -> Option<Obstacle> {
    let lost = Lost::of(side);
    let share = lost.share.max(lost.ops_share);
    (share > LOSS_BOUND).then(|| Obstacle {
        subject: "losses",
        reason: format!(
            "of the {name} are {} of what it measured, more than {}",
            percent(share),
            percent(LOSS_BOUND)
        ),
    })
}

fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

/// Which part of each recording is compared.
fn excerpts(time: &Range<u64>) -> String {
    let from = units::elapsed(time.start);
    let before = match time.end {
        u64::MAX => String::new(),
        end => format!(" and before {}", units::elapsed(end)),
    };
    format!(
        "only the intervals of each recording that begin at {from} or later{before}; who waited for \
         whom may be {} intervals late",
        FULL_EVERY - 1
    )
}

/// What a reader should know.
pub(super) fn remarks(baseline: &Side, candidate: &Side) -> Vec<String> {
    let mut remarks: Vec<_> = baseline.time.iter().map(excerpts).collect();
    for (name, side) in [("baseline", baseline), ("candidate", candidate)] {
        let cut = side.truncated();
        if cut != 0 {
            let which = some_of(name, side, cut);
            let have = if side.ends.len() == 1 { "has" } else { "have" };
            remarks.push(format!(
                "{which} {have} no end: compared up to the last whole interval"
            ));
        }
    }
    if baseline.is(candidate) {
        remarks
            .push("both sides are the same recordings, which do not differ from themselves".into());
    }
    let single = |side: &Side| side.sampling == Sampling::Intervals;
    let which = match (single(baseline), single(candidate)) {
        (true, true) => Some("each side is"),
        (true, false) => Some("the baseline is"),
        (false, true) => Some("the candidate is"),
        (false, false) => None,
    };
    remarks.extend(which.map(|which| {
        format!(
            "{which} one recording: its samples are parts of one run, not independent repeats, so \
             that what differs from run to run is not in the intervals"
        )
    }));
    let [a, b] = [baseline, candidate].map(Side::header);
    for (what, values) in [
        ("spinlocks", [&a.host.spinlocks, &b.host.spinlocks]),
        ("clocksource", [&a.host.clocksource, &b.host.clocksource]),
    ] {
        if let [a, b] = values
            && a != b
        {
            remarks.push(format!("{what}: {a} against {b}"));
        }
    }
    if a.kernel.release == b.kernel.release && a.kernel.version != b.kernel.version {
        let (a, b) = (&a.kernel.version, &b.kernel.version);
        remarks.push(format!("two builds of one release: {a} against {b}"));
    }
    for (name, here, there) in [("baseline", a, b), ("candidate", b, a)] {
        let missing = here.coverage.missing.iter().map(|missing| &missing.hook);
        let only: Vec<_> = missing
            .filter(|&hook| {
                !there
                    .coverage
                    .missing
                    .iter()
                    .any(|other| other.hook == *hook)
            })
            .map(String::as_str)
            .collect();
        if !only.is_empty() {
            let only = only.join(", ");
            remarks.push(format!("not seen in the {name} only: {only}"));
        }
    }
    if a.host.mitigations != b.host.mitigations {
        remarks.push("mitigations of CPU vulnerabilities differ".into());
    }
    if let Some(code) = usual_code(baseline, candidate)
        && code != 0
    {
        remarks.push(format!(
            "the command always exited with {code}: that it did its work is not known"
        ));
    }
    if a.command.is_empty() && b.command.is_empty() {
        remarks.push("no command was run: that the load was the same is not known".into());
    }
    remarks
}
