//! What is counted of a load of which every operation is known.
//!
//! The expectations are those of `mm/vmalloc.c`. Up to 6.1 a vmalloc and its vfree take
//! `vmap_area_lock` five times: insert and set-up; look-up, removal and unlinking. From 6.9 on they
//! take `vmap_node.busy` twice: insert and unlinking. A page of /proc/kcore takes the index lock
//! once, or every node's twice and the found node's twice more.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::endings;
use crate::guest::{Guest, Outcome};
use crate::hidden;
use crate::tool::{self, Flags, Report, load};

const FENTRY: Flags = &["--hooks", "fentry", "-v"];
/// An audit alone: holds of spinlocks may be kept at the place of the lock.
const AUDIT: Flags = &["--hooks", "fentry", "--audit", "-v"];
/// What an audit sees, and the stacks of waits, for which tasks keep all holds.
pub(super) const AUDIT_AND_STACKS: Flags = &["--hooks", "fentry", "--audit", "--stacks", "-v"];
/// With stacks and diagnostics, so that what is compiled out otherwise is verified too.
const KPROBE: Flags = &["--hooks", "kprobe", "--stacks", "-vv"];
const KPROBE_AND_AUDIT: Flags = &["--hooks", "kprobe", "--stacks", "--audit", "-vv"];
const CONTENDED_FENTRY: Flags = &["--hooks", "fentry", "--level", "contended", "-v"];
const CONTENDED_KPROBE: Flags = &["--hooks", "kprobe", "--level", "contended", "-v"];
const TRACEPOINT: Flags = &["--hooks", "tracepoint"];

/// Other vmallocs while the load runs: thread stacks, file tables, BPF programs, the stress
/// command's own start.
const BACKGROUND: u64 = 60;

/// Locks that others take or release while the counters are read, one after the other.
const WHILE_READING: u64 = 2;

/// The shared load by fentry.
pub(super) fn by_fentry(guest: &Guest) -> Result<Report> {
    tool::recorded(fentry_flags(guest))
}

/// The shared load by kprobe.
pub(super) fn by_kprobe(guest: &Guest) -> Result<Report> {
    tool::recorded(kprobe_flags(guest))
}

/// With one CPU everything is looked at that can be, with several only what always is: each is tried, and
/// a guest attaches once.
pub(super) fn fentry_flags(guest: &Guest) -> Flags {
    if guest.cpus() == 1 {
        AUDIT_AND_STACKS
    } else {
        FENTRY
    }
}

/// With one CPU an audit alone is tried, with several the one that looks at stacks too and runs already.
pub(super) fn audit_flags(guest: &Guest) -> Flags {
    if guest.cpus() == 1 {
        AUDIT
    } else {
        AUDIT_AND_STACKS
    }
}

/// The same by kprobe.
pub(super) fn kprobe_flags(guest: &Guest) -> Flags {
    if guest.cpus() == 1 {
        KPROBE_AND_AUDIT
    } else {
        KPROBE
    }
}

/// The shared load at level contended by fentry.
pub(super) fn contended_by_fentry() -> Result<Report> {
    tool::recorded(CONTENDED_FENTRY)
}

fn at_least(what: &str, count: u64, wanted: u64) -> Result<()> {
    // An operation in the background takes a lock as often as one of the load.
    let most = wanted + BACKGROUND * (wanted / load::MAPS);
    ensure!(
        (wanted..=most).contains(&count),
        "{what}: {count} is not in {wanted}..={most}"
    );
    Ok(())
}

pub(super) fn equal(what: &str, left: u64, right: u64) -> Result<()> {
    ensure!(left == right, "{what}: {left} is not {right}");
    Ok(())
}

pub(crate) fn fentry_operations(guest: &mut Guest) -> Result<Outcome> {
    operations(&by_fentry(guest)?)
}

pub(crate) fn kprobe_operations(guest: &mut Guest) -> Result<Outcome> {
    operations(&by_kprobe(guest)?)
}

/// What a report says that its ops may lack: hooks of ops run preemptible, and the kernel skips a
/// program for other tasks while it is preempted; return probes are limited in number. Hooks of
/// locks are not concerned.
pub(super) fn may_lack(report: &Report) -> u64 {
    // An op whose end was skipped hides those that its task does inside it until that is noticed.
    2 * (report.loss("unfinished_ops") + report.loss("recursion_misses"))
}

fn operations(report: &Report) -> Result<Outcome> {
    let lack = may_lack(report);
    for (op, wanted) in [("alloc", load::MAPS), ("free", load::MAPS)] {
        let count = report.op(op);
        let (least, most) = (wanted.saturating_sub(lack), wanted + BACKGROUND);
        ensure!(
            (least..=most).contains(&count),
            "{op}: {count} is not in {least}..={most}"
        );
    }
    for (op, wanted) in [("vread", load::OPS), ("vmallocinfo", load::VMALLOCINFOS)] {
        let count = report.op(op);
        ensure!(
            count + lack >= wanted,
            "{op}: {count}, {lack} may be lacking"
        );
    }
    Ok(Outcome::Passed)
}

pub(crate) fn fentry_locks(guest: &mut Guest) -> Result<Outcome> {
    locks(&by_fentry(guest)?)
}

pub(crate) fn kprobe_locks(guest: &mut Guest) -> Result<Outcome> {
    locks(&by_kprobe(guest)?)
}

fn locks(report: &Report) -> Result<Outcome> {
    let taken = |op, intent| report.acquisitions(report.index_lock(), op, intent);
    if report.era() == "per-node" {
        at_least("inserts", taken("alloc", "write"), load::MAPS)?;
        at_least("unlinkings", taken("free", "write"), load::MAPS)?;
        let pools = report.acquisitions("vmap_node.pool", "alloc", "write");
        let free = report.acquisitions("free_vmap_area_lock", "alloc", "write");
        ensure!(
            pools + free >= load::MAPS,
            "each area comes from a pool or the free tree: {pools} + {free}"
        );
    } else {
        at_least(
            "inserts and set-ups",
            taken("alloc", "write"),
            2 * load::MAPS,
        )?;
        at_least("look-ups of frees", taken("free", "read"), load::MAPS)?;
        at_least(
            "removals and unlinkings",
            taken("free", "write"),
            2 * load::MAPS,
        )?;
        let free = report.acquisitions("free_vmap_area_lock", "alloc", "write");
        at_least("areas from the free tree", free, load::MAPS)?;
    }
    // What only looks shares an rwsem.
    let rwsem_era = report.era().starts_with("rwsem");
    for row in report.locks(report.index_lock()) {
        let (kind, shared) = (&row["kind"], row["mode"] == "shared");
        ensure!((kind == "rwsem") == rwsem_era, "kind {kind}");
        ensure!(shared == (rwsem_era && row["intent"] == "read"), "{row}");
    }
    if let Some(lazy) = report.lazy_lock() {
        at_least(
            "lazy frees",
            report.acquisitions(lazy, "free", "write"),
            load::MAPS,
        )?;
    }
    equal(
        "acquisitions by unknown callers",
        report.loss("unknown_sites"),
        0,
    )?;
    Ok(Outcome::Passed)
}

pub(crate) fn fentry_holds(guest: &mut Guest) -> Result<Outcome> {
    holds(&by_fentry(guest)?)
}

pub(crate) fn kprobe_holds(guest: &mut Guest) -> Result<Outcome> {
    holds(&by_kprobe(guest)?)
}

/// Acquisitions less releases less what is in flight is nothing, wherever releases are seen.
fn holds(report: &Report) -> Result<Outcome> {
    let (mut taken, mut released) = (0, 0);
    for row in report.rows("locks").filter(|row| !row["hold"].is_null()) {
        let number = |what: &str| row[what].as_u64().unwrap_or(0);
        let holds = row["hold"]["count"].as_u64().unwrap_or(0);
        equal("holds of a row", holds, number("releases"))?;
        taken += number("acquisitions");
        released += number("releases");
    }
    ensure!(released > 0, "no hold was seen");
    let known = released + report.loss("in_flight_holds");
    ensure!(
        taken.abs_diff(known) <= WHILE_READING,
        "{taken} acquisitions, {known} releases and holds in flight"
    );
    equal("unmatched releases", report.loss("unmatched_releases"), 0)?;
    equal(
        "unmatched acquisitions",
        report.loss("unmatched_acquisitions"),
        0,
    )?;
    // A combination that the kernel was not expected to have gets its histogram after a second.
    let without_histogram = report.loss("map_full");
    ensure!(
        without_histogram * 100 <= taken,
        "{without_histogram} samples without a place"
    );
    let spinlocks_held = report
        .locks(report.index_lock())
        .any(|row| !row["hold"].is_null());
    let seen = report.0["coverage"]["holds"] == "all";
    ensure!(
        seen == spinlocks_held,
        "coverage says {} of holds",
        report.0["coverage"]["holds"]
    );
    Ok(Outcome::Passed)
}

pub(crate) fn fentry_kcore(guest: &mut Guest) -> Result<Outcome> {
    let report = by_fentry(guest)?;
    let pages = report.op("vread");
    let taken = report.acquisitions(report.index_lock(), "vread", "read");
    if report.era() != "per-node" {
        let most = pages + may_lack(&report);
        ensure!(
            (pages..=most).contains(&taken),
            "{taken} acquisitions for {pages} pages"
        );
        return Ok(Outcome::Passed);
    }
    // One node per possible CPU. A search sweeps all of them and then takes the found one again;
    // a page needs one search to find its area and one to find nothing more to copy. A page in
    // which nothing is mapped, as the load meets them while it looks for its own, needs one.
    let search = guest.possible_cpus()? as u64 + 1;
    equal("acquisitions beyond whole searches", taken % search, 0)?;
    let searches = taken / search;
    let looking = pages.saturating_sub(load::OPS);
    let most = 2 * (pages + may_lack(&report));
    let least = 2 * load::OPS + looking;
    ensure!(
        (least..=most).contains(&searches),
        "{searches} searches are not in {least}..={most}"
    );
    Ok(Outcome::Passed)
}

pub(crate) fn fentry_waits(guest: &mut Guest) -> Result<Outcome> {
    waits(&by_fentry(guest)?, guest)
}

pub(crate) fn kprobe_waits(guest: &mut Guest) -> Result<Outcome> {
    waits(&by_kprobe(guest)?, guest)
}

/// Several CPUs wait for each other on some lock of the load, under the ops of the load; one CPU
/// never waits for a spinlock.
fn waits(report: &Report, guest: &Guest) -> Result<Outcome> {
    let contended = |wanted: fn(&Value) -> bool| -> u64 {
        let rows = report.rows("locks").filter(|row| wanted(row));
        rows.filter_map(|row| row["contended"].as_u64()).sum()
    };
    for row in report.rows("locks") {
        equal(
            "waits of a row",
            row["wait"]["count"].as_u64().unwrap_or(0),
            row["contended"].as_u64().unwrap_or(0),
        )?;
    }
    if guest.cpus() == 1 {
        let spinlocks = contended(|row| row["kind"] == "spinlock");
        equal("contended spinlocks on one CPU", spinlocks, 0)?;
        return Ok(Outcome::Passed);
    }
    ensure!(contended(|_| true) > 0, "nobody waited");
    known_ops(report)
}

fn known_ops(report: &Report) -> Result<Outcome> {
    const OPS: [&str; 6] = ["alloc", "free", "find", "vread", "vmallocinfo", "purge"];
    for row in report
        .rows("locks")
        .filter(|row| row["contended"].as_u64() > Some(0))
    {
        let op = row["op"].as_str().unwrap_or_default();
        ensure!(OPS.contains(&op), "a wait under op {op}: {row}");
    }
    Ok(Outcome::Passed)
}

pub(crate) fn contended_fentry(guest: &mut Guest) -> Result<Outcome> {
    contended(&contended_by_fentry()?, guest)
}

pub(crate) fn contended_kprobe(guest: &mut Guest) -> Result<Outcome> {
    contended(&tool::recorded(CONTENDED_KPROBE)?, guest)
}

fn contended(report: &Report, guest: &Guest) -> Result<Outcome> {
    ensure!(
        report.0["coverage"]["waits"] == "slow-path",
        "{}",
        report.0["coverage"]
    );
    only_waits(report)?;
    waits(report, guest)
}

/// What is not measured is null, not zero.
fn only_waits(report: &Report) -> Result<()> {
    ensure!(
        report.0["coverage"]["holds"] == "none",
        "{}",
        report.0["coverage"]
    );
    for row in report.rows("locks") {
        ensure!(
            row["acquisitions"].is_null() && row["hold"].is_null(),
            "{row}"
        );
    }
    Ok(())
}

/// The tracepoints' report, or why this kernel has none.
pub(super) fn by_tracepoint() -> Result<Result<Report, String>> {
    match tool::recorded(TRACEPOINT) {
        Ok(report) => Ok(Ok(report)),
        Err(error) => {
            let complaint = error.to_string();
            ensure!(complaint.contains("lock:contention_begin"), "{complaint}");
            Ok(Err(complaint))
        }
    }
}

pub(crate) fn tracepoint_waits(guest: &mut Guest) -> Result<Outcome> {
    match by_tracepoint()? {
        Ok(report) => waits(&report, guest),
        Err(complaint) => Ok(Outcome::Skipped(complaint)),
    }
}

/// Where no variable has a symbol, locks are told by their place: each recorder sees what the other sees.
/// Without nodes only an address tells, and the plan says so.
pub(crate) fn tracepoint_places(_: &mut Guest) -> Result<Outcome> {
    // Readers hold the locks of an index long, so that allocations do wait for them.
    const ALLOCATING: [&str; 6] = ["--maps", "12", "--vmallocinfo", "4", "--ops", "100"];
    /// Waits while one of the recorders is not attached, or has read its counters already.
    const ALONE: u64 = 5;
    let by_address = match by_tracepoint()? {
        Ok(report) => report,
        Err(complaint) => return Ok(Outcome::Skipped(complaint)),
    };
    let mut plan = tool::command(&["plan", TRACEPOINT[0], TRACEPOINT[1], "--format", "json"]);
    hidden::hide_variables(&mut plan)?;
    let plan: Value = serde_json::from_slice(&plan.output()?.stdout)?;
    let known = |lock: &str| rows(&plan["locks"]).any(|row| row["lock"] == lock);
    if by_address.era() != "per-node" {
        let reason = rows(&plan["coverage"]["missing"]).find(|row| row["hook"] == "vmap_area_lock");
        let reason = reason.and_then(|row| row["reason"].as_str());
        ensure!(
            reason.is_some_and(|reason| reason.contains("KALLSYMS_ALL")),
            "{plan}"
        );
        return Ok(Outcome::Passed);
    }
    let path = tool::fresh("by-place")?;
    let file = path.to_str().context("not UTF-8")?;
    let record = ["record", "-o", file, "-i", "100ms", "--max-overhead", "off"];
    let mut recorder = tool::command(&[&record[..], TRACEPOINT].concat());
    hidden::hide_variables(&mut recorder)?;
    let mut recorder = recorder.spawn()?;
    endings::until_it_measures(&path)?;
    let by_address = tool::recorded_load(TRACEPOINT, &ALLOCATING)?;
    tool::signal(&recorder, libc::SIGINT);
    ensure!(recorder.wait()?.success(), "the recorder by place failed");
    let by_place = tool::report(&path)?;
    let waits = |report: &Report, lock| report.sum(lock, None, None, "contended");
    for lock in [
        "vmap_node.busy",
        "vmap_node.lazy",
        "vmap_node.pool",
        "free_vmap_area_lock",
        "vmap_purge_lock",
    ] {
        ensure!(known(lock), "{lock} is not known: {plan}");
        let (place, address) = (waits(&by_place, lock), waits(&by_address, lock));
        ensure!(
            address.saturating_sub(ALONE) <= place && place <= address + ALONE,
            "{lock}: {place} waits by its place, {address} by its address"
        );
    }
    let busy = waits(&by_place, "vmap_node.busy");
    ensure!(busy > ALONE, "only {busy} waits for an index");
    Ok(Outcome::Passed)
}

fn rows(table: &Value) -> impl Iterator<Item = &Value> {
    table.as_array().into_iter().flatten()
}

pub(crate) fn tracepoint_coverage(guest: &mut Guest) -> Result<Outcome> {
    let refused = guest.kernel_release().starts_with("5.10.");
    let report = by_tracepoint()?;
    ensure!(
        report.is_err() == refused,
        "5.10 and no other kernel lacks the tracepoints"
    );
    let Ok(report) = report else {
        return Ok(Outcome::Passed);
    };
    ensure!(
        report.0["coverage"]["waits"] == "tracepoint",
        "{}",
        report.0["coverage"]
    );
    only_waits(&report)?;
    let missing: Vec<_> = report.0["coverage"]["missing"]
        .as_array()
        .into_iter()
        .flatten()
        .collect();
    let says = |hook: &str| missing.iter().any(|missing| missing["hook"] == hook);
    ensure!(
        says("holds") && says("uncontended acquisitions"),
        "{missing:?}"
    );
    // The vmalloc tracepoints came with 6.2.
    if guest.kernel_release().starts_with("6.1.") {
        ensure!(says("alloc_vmap_area"), "{missing:?}");
    } else {
        let lost = report.loss("recursion_misses");
        at_least("alloc", report.op("alloc") + lost, load::MAPS)?;
    }
    Ok(Outcome::Passed)
}
