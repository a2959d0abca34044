//! What happens inside reads and holds, and who reads, on loads of which it is known.
//!
//! The expectations are those of `fs/proc/kcore.c` and `mm/vmalloc.c`. `vread` copies to a buffer of
//! the kernel's under the lock, and to the reader without it. `vread_iter` copies to the reader with
//! page faults disabled, and once again after the page was faulted in; with an rwsem it faults.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::blame::WHILE_READING;
use super::churn::{FENTRY, KPROBE, equal};
use crate::guest::{Guest, Outcome};
use crate::tool::{self, Report};

const READS: u64 = 100;
const UNTOUCHED: &[&str] = &["--kcore", "1", "--untouched", "--ops", "100"];
const PAGE_BYTES: u64 = 4096;

/// More processes than there is room for at a time.
const MANY: &[&str] = &["--vmallocinfo", "700", "--ops", "1"];
const MANY_READERS: usize = 700;

pub(crate) fn fentry_faults(_: &mut Guest) -> Result<Outcome> {
    faults(&tool::recorded_load(&["--hooks", "fentry"], UNTOUCHED)?)
}

pub(crate) fn kprobe_faults(_: &mut Guest) -> Result<Outcome> {
    faults(&tool::recorded_load(&["--hooks", "kprobe"], UNTOUCHED)?)
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
    equal("page faults while the index was locked", in_holds, held)?;
    equal("passes that stopped short", short, retried)?;
    equal("times the memory was faulted in", faulted_in, retried)?;
    // The reader's own headers and lists of segments are read into fresh memory too.
    ensure!(
        (READS..READS + 10).contains(&faults),
        "{faults} page faults in reads into {READS} untouched pages"
    );
    Ok(Outcome::Passed)
}

pub(crate) fn destinations(_: &mut Guest) -> Result<Outcome> {
    let read = |via: &'static str| {
        let load = &["--kcore", "1", "--ops", "100", "--via", via];
        tool::recorded_load(&["--hooks", "fentry"], load)
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
    exactly(copies(&several, "iovec")?)?;
    let piped = read("splice")?;
    let into = |what| copies(&piped, what);
    exactly(into("pipe").or_else(|_| into("bvec"))?)?;
    let plain = read("read")?;
    for destination in ["iovec", "pipe", "bvec", "kvec", "other"] {
        let copied = copies(&plain, destination);
        ensure!(copied.is_err(), "nothing is read that way: {copied:?}");
    }
    Ok(Outcome::Passed)
}

/// All reads of a load, none before it.
fn exactly(copies: &Value) -> Result<()> {
    equal("reads", number(copies, "reads"), READS)?;
    equal("bytes", number(copies, "bytes"), READS * PAGE_BYTES)?;
    equal(
        "bytes of passes",
        number(copies, "pass_bytes"),
        READS * PAGE_BYTES,
    )
}

pub(crate) fn fentry_readers(_: &mut Guest) -> Result<Outcome> {
    let report = tool::recorded(FENTRY)?;
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

pub(crate) fn kprobe_readers(_: &mut Guest) -> Result<Outcome> {
    let report = tool::recorded(KPROBE)?;
    readers(&report)?;
    let unknown = report
        .rows("readers")
        .all(|row| row["inflicted_ns"].is_null());
    ensure!(unknown, "a probe at the entry cannot know the holder");
    Ok(Outcome::Passed)
}

/// One process reads /proc/kcore, four read /proc/vmallocinfo, and each has a row.
fn readers(report: &Report) -> Result<()> {
    let lack = super::churn::may_lack(report);
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
    let busy = of_file("kcore").filter(|row| number(row, "bytes") >= READS * PAGE_BYTES);
    let busy: Vec<_> = busy.collect();
    let [reader] = busy[..] else {
        anyhow::bail!("one process reads /proc/kcore, and these do: {busy:?}");
    };
    ensure!(number(reader, "reads") >= READS, "{reader}");
    let sees_holds = report.0["coverage"]["holds"] == "all";
    ensure!(
        reader["holds"].is_u64() == sees_holds,
        "holds are seen, or null: {reader}"
    );
    ensure!(
        !sees_holds || number(reader, "holds") >= READS,
        "each read takes a lock: {reader}"
    );
    ensure!(reader["process"]["pid"].is_u64(), "{reader}");
    Ok(())
}

pub(crate) fn no_readers(_: &mut Guest) -> Result<Outcome> {
    let writers = &["--maps", "4", "--ops", "50"];
    let report = tool::recorded_load(&["--hooks", "fentry"], writers)?;
    let readers: Vec<_> = report.rows("readers").collect();
    ensure!(
        report.0["readers"].is_array() && readers.is_empty(),
        "nobody reads: {readers:?}"
    );
    Ok(Outcome::Passed)
}

pub(crate) fn many_readers(_: &mut Guest) -> Result<Outcome> {
    let report = tool::recorded_load(&["--hooks", "fentry"], MANY)?;
    let lack = super::churn::may_lack(&report);
    let reads = of_readers(&report, "reads");
    let listed = report.op("vmallocinfo");
    ensure!(
        reads.abs_diff(listed) <= lack,
        "{listed} listings, {reads} of them by process"
    );
    let named = report
        .rows("readers")
        .filter(|row| row["process"].is_object());
    let named = named.count();
    let others = report
        .rows("readers")
        .filter(|row| row["process"].is_null());
    let unnamed: u64 = others.map(|row| number(row, "reads")).sum();
    ensure!(
        named <= MANY_READERS && unnamed.abs_diff(report.loss("unnamed_reads")) <= lack,
        "{named} readers, {unnamed} reads of others, and the loss is {}",
        report.loss("unnamed_reads")
    );
    Ok(Outcome::Passed)
}

/// Who holds or waits for a spinlock stays on its CPU, and a wait cannot be slept longer than it is.
pub(crate) fn sleeps(_: &mut Guest) -> Result<Outcome> {
    let report = tool::recorded(FENTRY)?;
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

pub(crate) fn left_out(_: &mut Guest) -> Result<Outcome> {
    let plan = tool::json(&["plan", "--no-inside", "--format", "json"])?;
    let programs = plan["programs"].as_array().context("no programs")?;
    let purposes = ["reads", "inside holds"];
    let inside = programs.iter().find(|program| {
        let purpose = program["purpose"].as_str().unwrap_or_default();
        purposes.contains(&purpose)
    });
    ensure!(inside.is_none(), "{inside:?}");
    let report = tool::recorded_load(&["--no-inside"], &["--maps", "1", "--ops", "10"])?;
    ensure!(
        report.0["inside"].is_null() && report.0["readers"].is_null(),
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
