//! What happens inside reads and holds, and who reads, on loads of which it is known.
//!
//! The expectations are those of `fs/proc/kcore.c` and `mm/vmalloc.c`. `vread` copies to a buffer of
//! the kernel's under the lock, and to the reader without it. `vread_iter` copies to the reader with
//! page faults disabled, and once again after the page was faulted in; with an rwsem it faults.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::audit::symbol;
use super::blame::WHILE_READING;
use super::churn::{
    AUDIT_AND_STACKS, by_fentry, by_kprobe, equal, fentry_flags, kprobe_flags, may_lack,
};
use crate::guest::{self, Guest, Outcome};
use crate::load;
use crate::tool::{self, Flags, Report};

const READS: u64 = 100;
const UNTOUCHED: &[&str] = &["--kcore", "1", "--untouched", "--ops", "100"];
const PAGE_BYTES: u64 = 4096;

/// More processes than there is room for at a time.
const MANY: &[&str] = &["--kcore", "560", "--ops", "1"];
const MANY_READERS: u64 = 560;

/// How often a holder leaves its CPU by itself. Who comes back while another is to run leaves at once again, and
/// the kernel does not call that preempted (`schedule` in `kernel/sched/core.c`): a few times, if a tick falls
/// there.
const NAPS: u64 = 50;
const AT_ONCE_AGAIN: u64 = 5;

/// More than a kprobe can await the return of.
const STUCK: &str = "50";
const STUCK_READERS: u64 = 50;

pub(crate) fn fentry_faults(guest: &mut Guest) -> Result<Outcome> {
    faults(&tool::recorded_load(fentry_flags(guest), UNTOUCHED)?)
}

pub(crate) fn kprobe_faults(guest: &mut Guest) -> Result<Outcome> {
    faults(&tool::recorded_load(kprobe_flags(guest), UNTOUCHED)?)
}

fn faults(report: &Report) -> Result<Outcome> {
    let lock = report.index_lock();
    let in_holds = inside(
        report,
        |row| row["lock"] == lock && row["op"] == "vread",
        "faults",
    );
    let copies = copies(report, "ubuf")?;
    let [short, faulted_in, faults] =
        ["short_passes", "fault_ins", "faults"].map(|what| number(copies, what));
    let [held, retried] = match report.era() {
        // The copy under the lock faults.
        "rwsem-iter" => [READS, 0],
        // It stops short instead.
        "spinlock-iter" | "per-node" => [0, READS],
        _ => [0, 0],
    };
    counted(report, "faults with the index locked", in_holds, held)?;
    counted(report, "passes that stopped short", short, retried)?;
    counted(report, "buffers that were faulted in", faulted_in, retried)?;
    // The reader's own headers and lists of segments are read into fresh memory too.
    let of_headers = faults.saturating_sub(READS).min(10);
    counted(report, "faults in reads", faults - of_headers, READS)?;
    Ok(Outcome::Passed)
}

/// What the kernel skipped is missing, and says so.
fn counted(report: &Report, what: &str, seen: u64, wanted: u64) -> Result<()> {
    let lack = may_lack(report);
    ensure!(
        seen <= wanted && seen + lack >= wanted,
        "{what}: {seen} is not {wanted}, and {lack} may be missing"
    );
    Ok(())
}

pub(crate) fn destinations(guest: &mut Guest) -> Result<Outcome> {
    let read = |via: &'static str| {
        let load = &["--kcore", "1", "--ops", "100", "--via", via];
        tool::recorded_load(fentry_flags(guest), load)
    };
    let several = read("readv")?;
    if several
        .rows_of(&["inside", "copies"])
        .all(|row| row["destination"] == "ubuf")
    {
        // Up to 5.10 it is read buffer by buffer, and there is no splice.
        let reads = number(copies(&several, "ubuf")?, "reads");
        ensure!(reads >= 2 * READS, "{reads} reads of {READS} by readv");
        return Ok(Outcome::Passed);
    }
    all_of(&several, copies(&several, "iovec")?)?;
    let piped = read("splice")?;
    let into = |what| copies(&piped, what);
    all_of(&piped, into("pipe").or_else(|_| into("bvec"))?)?;
    let plain = by_fentry(guest)?;
    ensure!(copies(&plain, "ubuf").is_ok(), "nothing is read by read");
    for destination in ["iovec", "pipe", "bvec", "kvec", "other"] {
        let copied = copies(&plain, destination);
        ensure!(copied.is_err(), "nothing is read that way: {copied:?}");
    }
    Ok(Outcome::Passed)
}

/// All reads of a load, none before it.
fn all_of(report: &Report, copies: &Value) -> Result<()> {
    counted(report, "reads", number(copies, "reads"), READS)?;
    let pages = |what| number(copies, what).div_ceil(PAGE_BYTES);
    counted(report, "pages read", pages("bytes"), READS)?;
    counted(report, "pages of passes", pages("pass_bytes"), READS)
}

pub(crate) fn fentry_readers(guest: &mut Guest) -> Result<Outcome> {
    let report = by_fentry(guest)?;
    readers(&report)?;
    // Who waited for readers by op, and by process.
    let by_op = report.rows_of(&["blame", "rows"]).filter(|row| {
        let op = &row["holder"]["op"];
        op == "vread" || op == "vmallocinfo"
    });
    let by_op: u64 = by_op.map(|row| number(row, "waits")).sum();
    let by_process = of_readers(&report, "inflicted_waits");
    ensure!(
        by_process.abs_diff(by_op) <= WHILE_READING,
        "{by_op} waits for readers by op, {by_process} by process"
    );
    Ok(Outcome::Passed)
}

pub(crate) fn kprobe_readers(guest: &mut Guest) -> Result<Outcome> {
    let report = by_kprobe(guest)?;
    readers(&report)?;
    let unknown = report
        .rows("readers")
        .all(|row| row["inflicted_ns"].is_null());
    ensure!(unknown, "a probe at the entry cannot know the holder");
    Ok(Outcome::Passed)
}

/// One process reads /proc/kcore, four read /proc/vmallocinfo, and each has a row.
fn readers(report: &Report) -> Result<()> {
    let lack = may_lack(report);
    let of_file = |file: &'static str| {
        report
            .rows("readers")
            .filter(move |row| row["file"] == file)
    };
    let listings: u64 = of_file("vmallocinfo").map(|row| number(row, "reads")).sum();
    let listed = report.op("vmallocinfo");
    ensure!(
        listings.abs_diff(listed) <= lack,
        "{listed} listings, {listings} of them by process"
    );
    let busy = of_file("vmallocinfo").filter(|row| number(row, "reads") + lack >= tool::load::OPS);
    ensure!(busy.count() >= 4, "four processes read /proc/vmallocinfo");
    if !std::path::Path::new("/proc/kcore").exists() {
        return Ok(());
    }
    // The process that looks for the page to read reads words.
    let busy =
        of_file("kcore").filter(|row| number(row, "bytes") >= tool::load::OPS / 2 * PAGE_BYTES);
    let busy: Vec<_> = busy.collect();
    let [reader] = busy[..] else {
        anyhow::bail!("one process reads /proc/kcore, and these do: {busy:?}");
    };
    counted(report, "reads", number(reader, "reads"), tool::load::OPS)?;
    let sees_holds = report.0["coverage"]["holds"] == "all";
    ensure!(
        reader["holds"].is_u64() == sees_holds,
        "holds are seen, or null: {reader}"
    );
    ensure!(
        !sees_holds || number(reader, "holds") + lack >= tool::load::OPS,
        "each read takes a lock: {reader}"
    );
    ensure!(reader["process"]["pid"].is_u64(), "{reader}");
    Ok(())
}

pub(crate) fn many_readers(guest: &mut Guest) -> Result<Outcome> {
    let report = tool::recorded_load(fentry_flags(guest), MANY)?;
    let lack = may_lack(&report);
    let reads = of_readers(&report, "reads");
    let all = report.rows_of(&["inside", "copies"]);
    let all: u64 = all.map(|row| number(row, "reads")).sum();
    ensure!(
        reads.abs_diff(all) <= lack && all + lack >= MANY_READERS,
        "{all} reads of {MANY_READERS} or more, {reads} of them by process"
    );
    let others = report
        .rows("readers")
        .filter(|row| row["process"].is_null());
    let unnamed: u64 = others.map(|row| number(row, "reads")).sum();
    ensure!(
        unnamed.abs_diff(report.loss("unnamed_reads")) <= lack,
        "{unnamed} reads of others, and the loss is {}",
        report.loss("unnamed_reads")
    );
    Ok(Outcome::Passed)
}

pub(crate) fn fentry_skips(guest: &mut Guest) -> Result<Outcome> {
    let report = tool::recorded_stuck(fentry_flags(guest), STUCK)?;
    let (reads, lack) = (of_readers(&report, "reads"), may_lack(&report));
    ensure!(
        reads + lack >= STUCK_READERS,
        "{reads} reads of {STUCK_READERS}, and {lack} may be missing"
    );
    Ok(Outcome::Passed)
}

/// A kprobe at a return has ten instances, or two a CPU (`kernel/kprobes.c`).
pub(crate) fn kprobe_skips(guest: &mut Guest) -> Result<Outcome> {
    let report = tool::recorded_stuck(kprobe_flags(guest), STUCK)?;
    let reads = of_readers(&report, "reads");
    ensure!(reads < STUCK_READERS, "all {reads} reads were seen");
    let unseen = STUCK_READERS - reads;
    let skipped = report.loss("recursion_misses");
    let mut missing = report.rows_of(&["coverage", "missing"]);
    let nobody_knows = missing.any(|missing| missing["hook"] == "skipped runs of kprobes");
    let release = guest.kernel_release();
    // The kernel tells since 6.7.
    let tells = !["5.10.", "6.1."].iter().any(|old| release.starts_with(old));
    let least = if tells { unseen } else { 0 };
    ensure!(
        skipped >= least && nobody_knows != tells,
        "{unseen} of {STUCK_READERS} reads were not seen, {skipped} runs were skipped: {}",
        report.0["coverage"]["missing"]
    );
    Ok(Outcome::Passed)
}

/// Who holds or waits for a spinlock stays on its CPU, and a wait cannot be slept longer than it is.
pub(crate) fn sleeps(guest: &mut Guest) -> Result<Outcome> {
    let report = by_fentry(guest)?;
    ensure!(report.0["inside"].is_object(), "nobody looked");
    for row in report.rows_of(&["inside", "holds"]) {
        let contended = report.rows("locks").find(|lock| {
            let words = ["lock", "op", "intent", "mode"];
            words.iter().all(|word| lock[word] == row[word])
        });
        let contended = contended.map_or(0, |lock| number(lock, "contended"));
        let (sleeps, switches) = (number(row, "sleeps"), number(row, "switches"));
        ensure!(
            row["kind"] != "spinlock" || sleeps + switches + number(row, "faults") == 0,
            "nobody sleeps with a spinlock: {row}"
        );
        ensure!(
            sleeps <= contended + WHILE_READING && number(row, "preemptions") <= switches,
            "{contended} waits: {row}"
        );
        ensure!(
            number(row, "sleep_ns") <= number(row, "wait_sum_ns"),
            "longer asleep than waiting: {row}"
        );
    }
    Ok(Outcome::Passed)
}

pub(crate) fn fentry_naps(guest: &mut Guest) -> Result<Outcome> {
    naps(guest, fentry_flags(guest))
}

pub(crate) fn kprobe_naps(guest: &mut Guest) -> Result<Outcome> {
    naps(guest, kprobe_flags(guest))
}

/// A holder naps as often as it is told to: of a mutex, and of an rwsem as a writer and as a reader that was a
/// writer before.
fn naps(guest: &Guest, flags: Flags) -> Result<Outcome> {
    let module = guest.module("known_hold")?;
    let load = |lock: &str, kind: &str, during: &str| -> Result<Vec<String>> {
        Ok(vec![
            format!("lock={}", symbol(lock)?),
            format!("kind={kind}"),
            format!("during={during}"),
            format!("loops={NAPS}"),
        ])
    };
    let mut parameters = load("vmap_purge_lock", "mutex", "nap")?;
    let mut wanted = vec![("vmap_purge_lock", "exclusive")];
    if guest
        .built_era()
        .is_some_and(|era| era.starts_with("rwsem"))
    {
        for during in ["nap", "downgrade"] {
            parameters.push(load::THEN.into());
            parameters.extend(load("vmap_area_lock", "rwsem", during)?);
        }
        wanted.extend([
            ("vmap_area_lock", "exclusive"),
            ("vmap_area_lock", "shared"),
        ]);
    }
    let report = tool::recorded_module(flags, &module, &parameters)?;
    for (lock, mode) in wanted {
        let row_fits = |row: &Value| row["lock"] == lock && row["mode"] == mode;
        let [switches, preemptions] =
            ["switches", "preemptions"].map(|what| inside(&report, row_fits, what));
        let naps = switches - preemptions;
        let again = naps.saturating_sub(NAPS).min(AT_ONCE_AGAIN);
        let what = format!("naps with {lock} {mode}");
        counted(&report, &what, naps - again, NAPS)?;
    }
    equal(
        "holds without an end",
        report.loss("unmatched_acquisitions"),
        0,
    )?;
    equal("ends without a hold", report.loss("unmatched_releases"), 0)?;
    Ok(Outcome::Passed)
}

/// Those of the locks, the longest first, and each with who waited for whom.
pub(crate) fn longest(guest: &mut Guest) -> Result<Outcome> {
    let report = by_fentry(guest)?;
    let worst: Vec<_> = report.rows("worst").collect();
    let totals = || report.rows("lock_totals");
    let contended: u64 = totals().map(|row| number(row, "contended")).sum();
    let most = contended.min(20) as usize;
    ensure!(
        worst.len().abs_diff(most) <= WHILE_READING as usize && worst.len() <= 20,
        "{} of {contended} waits are listed",
        worst.len()
    );
    let longest = totals().map(|row| number(&row["wait"], "max_ns")).max();
    let first = worst.first().map_or(0, |row| number(row, "wait_ns"));
    ensure!(
        first >= longest.unwrap_or(0),
        "{longest:?} ns is the longest wait, and the first of the list {first} ns"
    );
    ensure!(
        worst.is_sorted_by_key(|row| u64::MAX - number(row, "wait_ns")),
        "{worst:?}"
    );
    // No task ends two waits at once.
    let mut ends: Vec<_> = worst
        .iter()
        .map(|row| {
            (
                number(row, "ended_ns"),
                number(&row["waiter"]["task"], "tid"),
            )
        })
        .collect();
    ends.sort_unstable();
    ensure!(
        ends.windows(2).all(|pair| pair[0] != pair[1]),
        "a wait is listed twice: {worst:?}"
    );
    for row in &worst {
        let named = row["waiter"]["task"]["comm"].as_str();
        ensure!(
            named.is_some_and(|comm| !comm.is_empty()) && number(row, "slept_ns") <= first,
            "{row}"
        );
        let holder = &row["holder"]["task"];
        let waiter = &row["waiter"]["task"];
        ensure!(
            holder["tid"].is_null() || holder["tid"] != waiter["tid"],
            "{row}"
        );
    }
    let known = worst.iter().filter(|row| row["holder"]["task"].is_object());
    ensure!(
        guest.cpus() == 1 || known.count() > 0,
        "no holder is known by name: {worst:?}"
    );
    Ok(Outcome::Passed)
}

/// How deep the stacks of that name are. A stack leads from the lock to the system call or the kernel
/// thread that the task is in.
fn stacks(report: &Report, what: &str) -> Result<Vec<usize>> {
    let mut depths = Vec::new();
    for row in report.rows("worst") {
        let stack = row[what].as_array().cloned().unwrap_or_default();
        let frames: Vec<_> = stack.iter().filter_map(Value::as_str).collect();
        let outermost = ["do_syscall_64", "kthread", "ret_from_fork"];
        let leads = |frame: &&str| outermost.iter().any(|name| frame.starts_with(name));
        ensure!(
            frames.is_empty() || frames.iter().any(leads),
            "the {what} leads nowhere: {frames:?}"
        );
        ensure!(
            !frames.iter().any(|frame| frame.ends_with("[bpf]")),
            "programs are part of the {what}: {frames:?}"
        );
        depths.push(frames.len());
    }
    ensure!(!depths.is_empty(), "nobody waited");
    Ok(depths)
}

/// A holder leaves its stack where it is known. At the entry of a function stacks can be unwound from
/// 5.15 on.
pub(crate) fn fentry_stacks(guest: &mut Guest) -> Result<Outcome> {
    let report = tool::recorded(AUDIT_AND_STACKS)?;
    let depths = stacks(&report, "stack")?;
    ensure!(!depths.contains(&0), "a stack is missing: {depths:?}");
    let depths = stacks(&report, "holder_stack")?;
    let mut known = 0;
    for (row, depth) in report.rows("worst").zip(&depths) {
        let named = row["holder"].is_object();
        ensure!(named || *depth == 0, "the stack of nobody: {row}");
        known += usize::from(*depth > 0);
    }
    let old = guest.kernel_release().starts_with("5.10");
    ensure!((known == 0) == old, "{known} stacks of holders are known");
    Ok(Outcome::Passed)
}

/// A return probe's stack can be unwound from 5.15 on; holders are not known at all.
pub(crate) fn kprobe_stacks(guest: &mut Guest) -> Result<Outcome> {
    let report = by_kprobe(guest)?;
    let depths = stacks(&report, "stack")?;
    let old = guest.kernel_release().starts_with("5.10");
    let missing = depths.iter().filter(|depth| **depth == 0).count();
    ensure!(
        (missing > 0) == old,
        "{missing} of {} are missing",
        depths.len()
    );
    let holders = stacks(&report, "holder_stack")?;
    ensure!(holders.iter().all(|depth| *depth == 0), "{holders:?}");
    Ok(Outcome::Passed)
}

pub(crate) fn left_out(_: &mut Guest) -> Result<Outcome> {
    let plan = tool::json(&["plan", "--no-inside", "--format", "json"])?;
    let programs = plan["programs"].as_array().context("no programs")?;
    let purposes = ["reads", "inside holds"];
    let inside = programs.iter().find(|program| {
        let purpose = program["purpose"].as_str().unwrap_or_default();
        purposes.contains(&purpose)
    });
    ensure!(inside.is_none(), "{inside:?}");
    let path = tool::fresh("outside")?;
    let file = path.to_str().context("a path that is not UTF-8")?;
    let load = [
        tool::EXE,
        guest::TOOL,
        "stress",
        "--maps",
        "1",
        "--ops",
        "10",
    ];
    let output = tool::run(&[&["record", "--no-inside", "-o", file, "--"], &load[..]].concat())?;
    ensure!(output.status.success(), "{}", tool::complaint(&output));
    let report = tool::report(&path)?;
    std::fs::remove_file(&path)?;
    ensure!(
        ["inside", "readers", "worst"]
            .iter()
            .all(|what| report.0[*what].is_null()),
        "not looked at, and yet there is something"
    );
    Ok(Outcome::Passed)
}

fn number(row: &Value, what: &str) -> u64 {
    row[what].as_u64().unwrap_or_default()
}

/// Sum over the cells that fit.
fn inside(report: &Report, which: impl Fn(&Value) -> bool, what: &str) -> u64 {
    let rows = report.rows_of(&["inside", "holds"]);
    rows.filter(|row| which(row))
        .map(|row| number(row, what))
        .sum()
}

fn of_readers(report: &Report, what: &str) -> u64 {
    report.rows("readers").map(|row| number(row, what)).sum()
}

fn copies<'a>(report: &'a Report, destination: &str) -> Result<&'a Value> {
    let mut rows = report.rows_of(&["inside", "copies"]);
    rows.find(|row| row["destination"] == destination)
        .with_context(|| format!("no reads into {destination}: {}", report.0["inside"]))
}
