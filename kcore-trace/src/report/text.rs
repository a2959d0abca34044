//! The report for a person.
//!
//! Says first what was measured and what is missing from it, then which lock was waited for and
//! held, by which op, then how long ops took, and draws the waits for the worst lock. Invariant: a
//! number that is not complete never stands without the line that says so.

use std::fmt::Write as _;

use kcore_trace_ebpf::words::Lock;

use super::tables::{self, Sides};
use super::{By, Dist, LockTotal, Report, bars};
use super::{audit, blame, inside, nodes, readers, reduced, worst};
use crate::distribution::Bucket;
use crate::model::{End, HoldCoverage, Loss, WaitCoverage, saturating_sum};
use crate::snapshot::FULL_EVERY;
use crate::{table, units};

/// Width of the names at the left of the first block.
const NAME_WIDTH: usize = 10;

pub(super) fn render(report: &Report, by: By, columns: Option<u16>) -> String {
    let mut blocks = vec![head(report, columns)];
    match by {
        By::Op => {
            blocks.extend(locks(report, by, columns));
            blocks.extend(
                report
                    .blame
                    .as_ref()
                    .and_then(|matrix| blame::text(matrix, columns)),
            );
            blocks.extend(report.inside.iter().flat_map(inside::text));
            blocks.extend(report.readers.as_deref().and_then(readers::block));
            blocks.extend(report.worst.as_deref().and_then(worst::text));
        }
        By::Lock => blocks.extend(locks(report, by, columns)),
        By::Node => blocks.push(nodes::text(report)),
        By::Process => blocks.push(readers::text(report)),
        By::Site => {
            blocks.extend(audit::text(report, columns));
            return blocks.join("\n\n") + "\n";
        }
    }
    if !report.ops.is_empty() {
        let table = tables::ops(&report.ops, report.recording.measured_ns);
        let timed = report.ops.iter().any(|row| row.latency.is_some());
        let first = if timed {
            "the one that took most time"
        } else {
            "the most frequent"
        };
        blocks.push(format!("Operations, {first} first\n\n{table}"));
    }
    blocks.extend(drawing(&report.lock_totals, columns));
    blocks.join("\n\n") + "\n"
}

/// What was measured, and what is missing.
fn head(report: &Report, columns: Option<u16>) -> String {
    let mut lines = vec![
        ("kernel", kernel(report)),
        ("host", host(report)),
        ("command", command(report)),
        ("measured", measured(report)),
        ("coverage", coverage(report)),
        ("lost", losses(report)),
        ("missing", missing(report)),
    ];
    if let Some(reduction) = &report.reduced {
        let text = reduced::text(reduction, report.recording.duration_ns);
        lines.insert(5, ("reduced", text));
    }
    if let Some(cut) = warning(report) {
        lines.insert(0, ("INCOMPLETE", vec![cut]));
    }
    let room = columns.map(|columns| columns.saturating_sub(NAME_WIDTH as u16 + 2));
    let mut text = String::new();
    for (name, values) in lines {
        let values = values.iter().map(|value| table::printable(value));
        let values = values.flat_map(|value| table::fitted(&value, room));
        for (index, value) in values.enumerate() {
            let name = if index == 0 { name } else { "" };
            writeln!(text, "{name:NAME_WIDTH$}  {value}").expect("a string takes every write");
        }
    }
    text.trim_end().to_owned()
}

fn warning(report: &Report) -> Option<String> {
    let reason = "no end: the recording is still being written, or its writer was killed";
    report.recording.cut.map(|_| reason.into())
}

fn kernel(report: &Report) -> Vec<String> {
    let kernel = &report.recording.kernel;
    vec![
        format!("{}, era {}", kernel.release, kernel.era),
        kernel.version.clone(),
    ]
}

fn host(report: &Report) -> Vec<String> {
    let host = &report.recording.host;
    let mut phrases = host.phrases();
    phrases.push(format!("spinlocks {}", host.spinlocks));
    vec![phrases.join(", ")]
}

fn command(report: &Report) -> Vec<String> {
    let origin = &report.recording;
    if origin.command.is_empty() {
        return vec!["none: the whole system was watched".into()];
    }
    let mut text = table::command_line(&origin.command);
    if let Some(End::Command { code }) = origin.end
        && code != 0
    {
        write!(text, ", which exited with {code}").expect("a string takes every write");
    }
    if let Some(ns) = origin.command_ns {
        write!(text, ", {}", units::elapsed(ns)).expect("a string takes every write");
    }
    vec![text]
}

fn measured(report: &Report) -> Vec<String> {
    let origin = &report.recording;
    let ended = match &origin.end {
        Some(End::Signal(name)) => format!(", ended by {name}"),
        Some(End::Failed(reason)) => format!(", ended by a failure: {reason}"),
        Some(End::Duration | End::Command { .. }) | None => String::new(),
    };
    let level = clap::ValueEnum::to_possible_value(&origin.level).map_or(String::new(), |level| {
        format!(", level {}", level.get_name())
    });
    let which = origin.excerpt.map(|span| {
        format!(
            " ({} to {} of {})",
            units::elapsed(span.start_ns),
            units::elapsed(span.end_ns),
            units::elapsed(span.recorded_ns)
        )
    });
    let mut lines = vec![format!(
        "{}{} from {}{level}, hooks {}{ended}",
        units::elapsed(origin.duration_ns),
        which.unwrap_or_default(),
        origin.started_at,
        origin.hooks
    )];
    if origin.excerpt.is_some() {
        lines.push(format!(
            "readers, holders, the longest waits and audits may be {} intervals late",
            FULL_EVERY - 1
        ));
        lines
            .push("only waits that were among the longest since measuring began are listed".into());
    }
    lines
}

fn coverage(report: &Report) -> Vec<String> {
    let mut waits = match report.coverage.waits {
        WaitCoverage::All => "every acquisition, and the wait of each contended one",
        WaitCoverage::SlowPath => "acquisitions that entered the slow path and their waits",
        WaitCoverage::Tracepoint => {
            "waits that lock:contention_begin shows, which misses pending spinlock waiters and \
             spinning rwsem writers"
        }
    }
    .to_owned();
    let names = |locks: &[Lock]| {
        let names: Vec<_> = locks.iter().map(|lock| lock.name()).collect();
        names.join(", ")
    };
    let without = &report.recording.without_waits;
    if !without.is_empty() {
        let waits_of = match report.coverage.waits {
            WaitCoverage::All => "no waits of",
            // There would be nothing of a lock that showed none.
            WaitCoverage::SlowPath | WaitCoverage::Tracepoint => "not all waits of",
        };
        waits.push_str(&format!(", but {waits_of} {}", names(without)));
    }
    let holds = match report.coverage.holds {
        HoldCoverage::All => "every hold".into(),
        HoldCoverage::Partial => {
            let without = &report.recording.without_holds;
            format!("every hold but those of {}", names(without))
        }
        HoldCoverage::None => "no holds".into(),
    };
    vec![waits, holds]
}

/// One line for each kind of loss, in the words of what it means for the numbers.
fn losses(report: &Report) -> Vec<String> {
    let torn = report.recording.cut.filter(|cut| cut.lost_bytes != 0);
    let torn = torn.map(|cut| {
        let bytes = units::counted(cut.lost_bytes, "byte");
        let offset = units::count(cut.offset);
        format!("{bytes} of the recording, all after byte {offset}, are not whole")
    });
    let counted = meanings(&report.loss.loss)
        .into_iter()
        .filter(|&(number, ..)| number != 0)
        .map(|(number, noun, meaning)| format!("{} {meaning}", units::counted(number, noun)));
    let lines: Vec<_> = torn.into_iter().chain(counted).collect();
    if lines.is_empty() {
        vec!["nothing".into()]
    } else {
        lines
    }
}

/// How many of what was lost, and what that means.
fn meanings(loss: &Loss) -> [(u64, &'static str, &'static str); 11] {
    [
        (
            loss.map_full,
            "sample",
            "counted and summed, but missing from percentiles",
        ),
        (
            loss.unnamed_reads,
            "read",
            "of processes for which there was no room: counted under (others)",
        ),
        (
            loss.unlisted_waits,
            "wait",
            "missing from the list of the longest, if it was one of them",
        ),
        (
            loss.unaudited,
            "acquisition",
            "for whose site and context there was no room: missing from the audit",
        ),
        (
            loss.recursion_misses,
            "run",
            "of a program skipped by the kernel, for any lock: at most so many are missing here",
        ),
        (
            loss.unmatched_releases,
            "release",
            "of a lock whose acquisition was not seen: no hold is counted",
        ),
        (
            loss.unmatched_acquisitions,
            "acquisition",
            "whose release was not seen: no hold is counted",
        ),
        (
            loss.unknown_sites,
            "acquisition",
            "by an unknown caller, shown as write",
        ),
        (
            loss.unfinished_ops,
            "operation",
            "whose end was not seen: not in the table of operations",
        ),
        (
            loss.in_flight_waits,
            "wait",
            "still going on at the end: not in the numbers",
        ),
        (
            loss.in_flight_holds,
            "hold",
            "still going on at the end: not in the numbers",
        ),
    ]
}

fn missing(report: &Report) -> Vec<String> {
    let missing = &report.coverage.missing;
    missing
        .iter()
        .map(|missing| format!("{}: {}", missing.hook, missing.reason))
        .collect()
}

/// The lock tables: waits beside holds if there is room for both.
fn locks(report: &Report, by: By, columns: Option<u16>) -> Vec<String> {
    if report.locks.is_empty() {
        return vec![match report.coverage.waits {
            WaitCoverage::All => "No vmap lock was taken.".into(),
            WaitCoverage::SlowPath | WaitCoverage::Tracepoint => nobody_waited(report).into(),
        }];
    }
    let both = tables::locks(report, by, Sides::Both);
    let any = |seen: fn(&LockTotal) -> bool| report.lock_totals.iter().any(seen);
    let has_both = any(|total| total.hold.is_some())
        && any(|total| total.wait.is_some_and(|wait| wait.count != 0));
    let room = columns.is_none_or(|columns| table::width(&both) <= columns.into());
    let tables = if room || !has_both {
        vec![both]
    } else {
        vec![
            tables::locks(report, by, Sides::Waits),
            tables::locks(report, by, Sides::Holds),
        ]
    };
    let waited = report
        .lock_totals
        .iter()
        .any(|total| total.counts.contended.is_some_and(|waits| waits != 0));
    let longest = if waited { "waited for" } else { "held" };
    let title = format!("Locks, the one {longest} longest first");
    let calm = (!waited).then(|| nobody_waited(report).into());
    let table = format!("{title}\n\n{}", tables.join("\n\n"));
    calm.into_iter()
        .chain([table])
        .chain(notes(report, by, columns))
        .collect()
}

/// Said only where a wait would have been seen.
fn nobody_waited(report: &Report) -> &'static str {
    let shows_all = report.coverage.waits != WaitCoverage::Tracepoint;
    match shows_all && report.recording.without_waits.is_empty() {
        true => "Nobody waited: no acquisition of a vmap lock was contended.",
        false => "Of the waits that can be seen here there was none.",
    }
}

/// What a reader of the lock table must know, only where it applies.
fn notes(report: &Report, by: By, columns: Option<u16>) -> Option<String> {
    let sum = |number: fn(&LockTotal) -> Option<u64>| {
        saturating_sum(report.lock_totals.iter().filter_map(number))
    };
    let mut notes = nodes::lines(report);
    if by == By::Op && report.locks.iter().any(tables::reads_exclusively) {
        notes.push("read: takes the lock exclusively, and only looks up".into());
    }
    if let Some(band_ns) = report.cost_band_ns {
        let band = units::duration(band_ns);
        notes.push(format!(
            "at most {band} of each hold and wait are the tool's own: the shortest hold seen"
        ));
    }
    if by == By::Op
        && let Some(why) = report.blame_missing
        && sum(|total| total.counts.contended) != 0
    {
        notes.push(format!("who waited for whom: not known, {why}"));
    }
    let aborted = sum(|total| total.counts.aborted);
    if aborted != 0 {
        let wasted = units::duration(sum(|total| total.counts.aborted_wait_ns));
        let aborted = units::counted(aborted, "wait");
        notes.push(format!(
            "{aborted} of {wasted} in all ended without the lock: killed or interrupted"
        ));
    }
    let failed = sum(|total| Some(total.counts.try_failed));
    if failed != 0 {
        notes.push(format!(
            "{} did not get the lock",
            units::counted(failed, "trylock")
        ));
    }
    let lines = notes.iter().flat_map(|note| table::fitted(note, columns));
    (!notes.is_empty()).then(|| lines.collect::<Vec<_>>().join("\n"))
}

/// The waits for the lock that was waited for longest, or the holds of the one held longest.
fn drawing(totals: &[LockTotal], columns: Option<u16>) -> Option<String> {
    let draw = |what, total, dist, octaves| draw(what, total, dist, octaves, columns);
    let worst = totals.first()?;
    if let Some(wait) = &worst.wait
        && !worst.wait_octaves.is_empty()
    {
        return Some(draw("Waits for", worst, wait, &worst.wait_octaves));
    }
    let hold = worst.hold.as_ref()?;
    (!worst.hold_octaves.is_empty()).then(|| draw("Holds of", worst, hold, &worst.hold_octaves))
}

fn draw(
    what: &str,
    total: &LockTotal,
    dist: &Dist,
    octaves: &[Bucket],
    columns: Option<u16>,
) -> String {
    let count = units::count(dist.count);
    let sum = units::duration(dist.sum_ns);
    format!(
        "{what} {}: {count}, {sum} in all\n\n{}",
        total.lock,
        bars::draw(octaves, columns)
    )
}
