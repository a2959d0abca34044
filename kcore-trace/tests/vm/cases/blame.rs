//! Who waits for whom, on loads of which it is known.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::churn::{by_fentry, by_kprobe, fentry_flags};
use crate::guest::{Guest, Outcome};
use crate::reference::{Part, Reference, Shares};
use crate::tool::{self, Report};

/// Waits that end between the two reads of cells and holders.
pub(super) const WHILE_READING: u64 = 8;

/// How often emulated CPUs may fail to meet often enough.
const ROUNDS: usize = 10;

const READERS: &[&str] = &["--vmallocinfo", "4", "--ops", "20"];
const READER_THREADS: u64 = 4;
const WRITERS: &[&str] = &["--maps", "4", "--ops", "100"];

/// Records a load of its own at level full.
fn recorded(guest: &Guest, load: &[&str]) -> Result<Report> {
    tool::recorded_load(fentry_flags(guest), load)
}

fn rows(report: &Report) -> impl Iterator<Item = &Value> {
    report.rows_of(&["blame", "rows"])
}

fn number(row: &Value, what: &str) -> u64 {
    row[what].as_u64().unwrap_or_default()
}

/// Nanoseconds waited for a lock, of those rows.
fn waited(report: &Report, lock: &str, which: impl Fn(&Value) -> bool) -> u64 {
    let rows = rows(report).filter(|row| row["lock"] == lock && which(row));
    rows.map(|row| number(row, "wait_sum_ns")).sum()
}

/// Who never held a lock cannot be waited for, and each time it is held every other CPU can begin to
/// wait for it once, if waiters spin.
fn is_plausible(report: &Report, row: &Value, cpus: u64) -> Result<()> {
    let word = |what: &Value| what.as_str().unwrap_or_default().to_owned();
    let lock = word(&row["lock"]);
    let holder = &row["holder"];
    if holder.is_null() {
        return Ok(());
    }
    let (op, intent) = (word(&holder["op"]), word(&holder["intent"]));
    let holds = report.acquisitions(&lock, &op, &intent);
    let spins = report.locks(&lock).any(|row| row["kind"] == "spinlock");
    let waits = number(row, "waits");
    ensure!(
        holds > 0 && (!spins || waits <= holds * cpus + WHILE_READING),
        "{lock}: {op}, {intent} held it {holds} times and is blamed for {waits} waits"
    );
    Ok(())
}

pub(crate) fn adds_up(guest: &mut Guest) -> Result<Outcome> {
    let report = by_fentry(guest)?;
    ensure!(report.0["blame"].is_object(), "holders are not known");
    for row in rows(&report) {
        is_plausible(&report, row, guest.cpus() as u64)?;
    }
    for total in report.rows("lock_totals") {
        let lock = total["lock"].as_str().unwrap_or_default();
        let of_lock = || rows(&report).filter(|row| row["lock"] == lock);
        let waits: u64 = of_lock().map(|row| number(row, "waits")).sum();
        let contended = number(total, "contended");
        ensure!(
            waits.abs_diff(contended) <= WHILE_READING,
            "{lock}: {contended} waits, {waits} of them by holder"
        );
        let (all, by_holder) = (
            number(&total["wait"], "sum_ns"),
            waited(&report, lock, |_| true),
        );
        let longest = number(&total["wait"], "max_ns");
        ensure!(
            by_holder.abs_diff(all) <= WHILE_READING * longest,
            "{lock}: {all} ns waited, {by_holder} of them by holder"
        );
    }
    Ok(Outcome::Passed)
}

pub(crate) fn needs_ownership(guest: &mut Guest) -> Result<Outcome> {
    let report = by_kprobe(guest)?;
    ensure!(
        report.0["blame"].is_null(),
        "a probe at the entry cannot know the holder: {}",
        report.0["blame"]
    );
    Ok(Outcome::Passed)
}

/// A guest that starts threads and purges is never without a writer, and an emulated CPU may be taken
/// away from one that holds the lock. Its holds are counted, and each can make every reader begin to
/// wait once: what is beyond that, readers waited for readers.
pub(crate) fn readers(guest: &mut Guest) -> Result<Outcome> {
    // Whatever the index lock is, up to 6.8 they take a mutex before it.
    for _ in 0..ROUNDS {
        if waits_among_readers(&recorded(guest, READERS)?)? > 0 {
            return Ok(Outcome::Passed);
        }
    }
    bail!("in {ROUNDS} rounds no reader waited for a reader")
}

/// How often readers waited for readers, for whatever lock.
fn waits_among_readers(report: &Report) -> Result<u64> {
    let is_reader = |who: &Value| who["intent"] == "read" && who["op"] == "vmallocinfo";
    let mut among_readers = 0;
    for total in report.rows("lock_totals") {
        let lock = total["lock"].as_str().unwrap_or_default();
        let by_readers = report.acquisitions(lock, "vmallocinfo", "read");
        let others = number(total, "acquisitions") - by_readers;
        let of_readers =
            || rows(report).filter(|row| row["lock"] == lock && is_reader(&row["waiter"]));
        let all: u64 = of_readers().map(|row| number(row, "waits")).sum();
        let for_readers = of_readers().filter(|row| is_reader(&row["holder"]));
        let for_readers: u64 = for_readers.map(|row| number(row, "waits")).sum();
        among_readers += for_readers;
        ensure!(
            all - for_readers <= others * READER_THREADS + WHILE_READING,
            "{lock}: of {all} waits of readers {for_readers} were for readers, and others held it \
             {others} times"
        );
        let shared = report.era().starts_with("rwsem") && lock == report.index_lock();
        if shared {
            ensure!(
                all <= others * READER_THREADS + WHILE_READING,
                "readers share {lock}, waited {all} times, and others held it {others} times"
            );
        }
    }
    Ok(among_readers)
}

/// Readers of /proc/kcore look the index up while one of /proc/vmallocinfo walks all of it: where it is
/// an rwsem they share it, and nothing else is said to be shared. Most often so in the shared load.
pub(crate) fn shared(guest: &mut Guest) -> Result<Outcome> {
    const MOSTLY_READERS: &[&str] = &[
        "--kcore",
        "3",
        "--vmallocinfo",
        "2",
        "--maps",
        "1",
        "--ops",
        "200",
    ];
    for round in 0..ROUNDS {
        let report = match round {
            0 => by_fentry(guest)?,
            _ => recorded(guest, MOSTLY_READERS)?,
        };
        let index = report.index_lock();
        let sleeps = report.era().starts_with("rwsem");
        let mut joined = 0;
        for row in report.rows_of(&["blame", "shares"]) {
            let saved = &row["saved"];
            ensure!(
                saved.is_null() || (sleeps && row["lock"] == index),
                "{} is shared: {saved}",
                row["lock"]
            );
            joined += number(saved, "joined");
            let acquisitions = number(saved, "acquisitions");
            ensure!(number(saved, "joined") <= acquisitions, "{saved}");
        }
        ensure!(
            sleeps || joined == 0,
            "readers joined readers {joined} times"
        );
        if !sleeps || joined > 0 {
            return Ok(Outcome::Passed);
        }
    }
    bail!("in {ROUNDS} rounds no reader joined another")
}

/// Only readers.
const KCORE_READERS: &[&str] = &["--kcore", "4", "--ops", "100"];
/// Slow readers among writers: two, since readers of an index by node seldom meet writers.
const TOGETHER: &[&str] = &["--vmallocinfo", "2", "--maps", "3", "--ops", "100"];
/// What the reference sees too.
const WATCHED: [&[&str]; 3] = [WRITERS, KCORE_READERS, TOGETHER];
/// By how much a share may differ from the reference's, in parts of the time waited.
const SHARE: f64 = 0.02;
/// Of fewer waits only the number is compared.
const FEW: u64 = 200;

pub(crate) fn as_the_reference(guest: &mut Guest) -> Result<Outcome> {
    if !Reference::sees_releases()? {
        return no_holder_is_guessed(guest);
    }
    for load in [KCORE_READERS, WRITERS] {
        watched(guest, load, |_| true)?;
    }
    watched(guest, TOGETHER, |seen| {
        let many = |(_, part): &(_, Part)| part.waits >= 10;
        seen.sum().1 >= FEW && seen.by_name().filter(many).count() >= 2
    })?;
    Ok(Outcome::Passed)
}

/// Records a load under the eyes of the reference, which must count the same waits, until both share the
/// time out alike. A wait that begins as the lock changes hands may be put down to either side, and while
/// an emulated CPU is taken away it is longer than all others together; but not in each round.
fn watched(
    guest: &Guest,
    load: &'static [&'static str],
    enough: impl Fn(&Shares) -> bool,
) -> Result<()> {
    for round in 0..ROUNDS {
        let (report, shares) = match round {
            0 => first_seen(guest, load)?,
            _ => seen(guest, load, Some(&Reference::new()?))?,
        };
        if share_alike(&report, &shares)? && enough(&shares) {
            return Ok(());
        }
    }
    bail!(
        "{load:?}: in {ROUNDS} rounds waits were too few or of too few kinds, or shared out otherwise"
    )
}

/// What the tool and the reference say of a load; where there is no reference, it says nothing.
fn seen(guest: &Guest, load: &[&str], reference: Option<&Reference>) -> Result<(Report, Shares)> {
    let Some(reference) = reference else {
        return Ok((recorded(guest, load)?, Shares::default()));
    };
    let report = tool::recorded_watched(fentry_flags(guest), load)?;
    Ok((report, reference.shares()?))
}

/// The same of the first time, however often it is asked for. To set the reference up takes longer than a
/// load, and so all are recorded at once.
fn first_seen(guest: &Guest, load: &'static [&'static str]) -> Result<(Report, Shares)> {
    type Seen = BTreeMap<&'static [&'static str], (Report, Shares)>;
    static FIRST: Mutex<Seen> = Mutex::new(Seen::new());
    let mut first = FIRST.lock().unwrap_or_else(PoisonError::into_inner);
    if first.is_empty() {
        let reference = Reference::where_it_sees_releases()?;
        let loads = match &reference {
            Some(_) => &WATCHED[..],
            None => &[WRITERS],
        };
        for load in loads {
            first.insert(load, seen(guest, load, reference.as_ref())?);
        }
    }
    let seen = first.get(load).context("a load that is not watched")?;
    Ok(seen.clone())
}

/// A kernel that inlines the release of a spinlock (5.10) shows nobody how long it is held.
fn no_holder_is_guessed(guest: &Guest) -> Result<Outcome> {
    let (report, _) = first_seen(guest, WRITERS)?;
    let index = report.index_lock();
    let all = waited(&report, index, |_| true);
    let unknown = waited(&report, index, |row| row["holder"].is_null());
    ensure!(
        all == unknown,
        "{all} ns waited, {unknown} of them for somebody unknown"
    );
    Ok(Outcome::Passed)
}

/// Whether the tool shares the time waited for the index out as the reference does. The waits must be the
/// same ones but for a few.
fn share_alike(report: &Report, reference: &Shares) -> Result<bool> {
    let index = report.index_lock();
    let of_index = |row: &&Value| row["lock"] == index;
    let row = report.rows_of(&["blame", "shares"]).find(of_index);
    let row = row.unwrap_or(&Value::Null);

    let all = waited(report, index, |_| true).max(1) as f64;
    let (reference_all, waits) = reference.sum();
    let mut alike = true;
    for (name, theirs) in reference.by_name() {
        let share = number(&row[name], "wait_sum_ns") as f64 / all;
        let reference_share = theirs.time as f64 / reference_all.max(1) as f64;
        let ours = number(&row[name], "waits");
        println!(
            "{index}, {name}: {share:.4} of {ours} waits, {reference_share:.4} of {}",
            theirs.waits
        );
        alike &= (share - reference_share).abs() <= SHARE;
        ensure!(
            ours.abs_diff(theirs.waits) <= waits / 50 + WHILE_READING,
            "{index}, {name}: {ours} waits; by the reference {}",
            theirs.waits
        );
    }
    let unknown = number(&row["unknown"], "waits");
    ensure!(
        unknown <= waits / 50 + WHILE_READING,
        "{index}: the holder of {unknown} of {waits} waits is not known"
    );
    Ok(alike || waits < FEW)
}

/// One reader of /proc/kcore among four who allocate is the one that they waited for. Without it
/// nobody is: [`writers`].
pub(crate) fn inflictor(guest: &mut Guest) -> Result<Outcome> {
    let known = Reference::sees_releases()?;
    for _ in 0..ROUNDS {
        let report = recorded(guest, &["--kcore", "1", "--maps", "4", "-d", "1s"])?;
        let first = report.rows("readers").next();
        let first = first.context("nobody reads")?;
        ensure!(
            first["file"] == "kcore" && first["process"]["pid"].is_u64(),
            "not the reader: {first}"
        );
        let most = report
            .rows("readers")
            .map(|row| number(row, "inflicted_ns"));
        ensure!(
            most.max() == Some(number(first, "inflicted_ns")),
            "others waited longer for another"
        );
        let inflicted = number(first, "inflicted_waits");
        ensure!(known || inflicted == 0, "what is not known: {first}");
        if inflicted > 0 || !known {
            return Ok(Outcome::Passed);
        }
    }
    bail!("in {ROUNDS} rounds nobody waited for the reader")
}

pub(crate) fn writers(guest: &mut Guest) -> Result<Outcome> {
    let (report, _) = first_seen(guest, WRITERS)?;
    for row in rows(&report) {
        is_plausible(&report, row, guest.cpus() as u64)?;
    }
    let is_reader = |who: &Value| who["op"] == "vread" || who["op"] == "vmallocinfo";
    for row in rows(&report) {
        ensure!(
            !is_reader(&row["waiter"]) && !is_reader(&row["holder"]),
            "nobody reads: {row}"
        );
    }
    let readers = report.0["readers"].as_array();
    ensure!(
        readers.is_some_and(Vec::is_empty),
        "nobody reads: {readers:?}"
    );
    let with_readers = by_fentry(guest)?;
    let by_readers: u64 = rows(&with_readers)
        .filter(|row| is_reader(&row["holder"]))
        .map(|row| number(row, "wait_sum_ns"))
        .sum();
    ensure!(by_readers > 0, "with readers nobody waited for them");
    Ok(Outcome::Passed)
}
