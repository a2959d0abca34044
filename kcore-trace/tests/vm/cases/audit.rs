//! In which contexts locks are taken, on loads of which it is known: system calls, which may sleep
//! wherever they take a lock, and a module that does what it must not.
//!
//! What the module does forbids a lock that sleeps; that a kernel with such locks survives it is
//! because nobody else wants them at that moment.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::churn::{AUDIT_AND_STACKS, audit_flags, by_kprobe, equal, kprobe_flags};
use crate::guest::{Guest, Outcome};
use crate::load;
use crate::tool::{self, Flags, Report};

const LOOPS: u64 = 100;

/// Acquisitions between the readings of two sets of counters, before the load.
const WHILE_READING: u64 = 50;

/// The same after it, when its processes have just ended and the host may be busy. The audit is read last, so
/// that it can only have more.
const AFTER_THE_LOAD: u64 = 200;

pub(crate) fn fentry_tasks(_: &mut Guest) -> Result<Outcome> {
    tasks(&tool::recorded(AUDIT_AND_STACKS)?)
}

pub(crate) fn kprobe_tasks(guest: &mut Guest) -> Result<Outcome> {
    tasks(&by_kprobe(guest)?)
}

/// Every acquisition has its place, and none of them forbids to sleep.
fn tasks(report: &Report) -> Result<Outcome> {
    ensure!(
        report.0["audit"].is_object(),
        "there is no audit: {report:?}"
    );
    equal("acquisitions without a row", report.loss("unaudited"), 0)?;
    // Debian's kernels count both from 5.16 on, the lab's do.
    let looked_at = report.0["audit"]["looked_at"].as_array();
    let looks = |context: &str| looked_at.is_some_and(|all| all.iter().any(|it| it == context));
    let old = report.0["recording"]["kernel"]["release"]
        .as_str()
        .is_some_and(|release| release.starts_with("5.10"));
    ensure!(
        looks("softirq") && looks("preemption-off") != old && looks("rcu") != old,
        "{looked_at:?}"
    );
    let mut locks = 0;
    for verdict in report.rows_of(&["audit", "verdicts"]) {
        let lock = verdict["lock"].as_str().unwrap_or_default();
        let taken = report.sum(lock, None, None, "acquisitions");
        let tried =
            report.sum(lock, None, None, "try_failed") + report.sum(lock, None, None, "aborted");
        let seen = number(verdict, "acquisitions");
        ensure!(
            seen + WHILE_READING >= taken && seen <= taken + tried + AFTER_THE_LOAD,
            "{lock}: {seen} in the audit, {taken} and {tried} in vain in all"
        );
        ensure!(
            verdict["legal_as_rwsem"] == true && verdict["atomic"] == 0,
            "{verdict}: {:?}",
            atomic(report, lock)
        );
        locks += 1;
    }
    ensure!(locks >= 3, "only {locks} locks were seen");
    // A listing of /proc/vmallocinfo looks at what was freed, up to 6.8 with the index locked.
    let lazy = "purge_vmap_area_lock";
    let listed = report.sum(lazy, Some("vmallocinfo"), None, "acquisitions");
    let nested = verdict(report, lazy).map_or(0, |verdict| number(verdict, "nested"));
    let sleeps = report.era().starts_with("rwsem");
    ensure!(
        (nested > 0) == (listed > 0 && !sleeps),
        "{nested} of {listed} under the index lock: {:?}",
        report.0["audit"]["verdicts"]
    );
    for row in report.rows_of(&["audit", "acquisitions"]) {
        ensure!(row["site"].is_string(), "a site has no name: {row}");
    }
    let mut allocations = report.rows_of(&["audit", "acquisitions"]);
    ensure!(
        allocations.any(|row| row["op"] == "alloc" && row["stack"].is_array()),
        "no allocation has an example: {}",
        report.0["audit"]
    );
    // The kernel frees programs in softirqs; no operation begins there.
    let begun = calls(report, |row| row["site"].is_null());
    equal("operations that began where they must not", begun, 0)?;
    Ok(Outcome::Passed)
}

pub(crate) fn refused(_: &mut Guest) -> Result<Outcome> {
    let output = tool::run(&["record", "--audit", "--level", "contended", "-d", "1s"])?;
    ensure!(output.status.code() == Some(2), "{}", output.status);
    let complaint = tool::complaint(&output);
    ensure!(complaint.contains("level contended"), "{complaint}");
    let output = tool::run(&["plan", "--audit", "--hooks", "tracepoint"])?;
    let complaint = tool::complaint(&output);
    ensure!(
        complaint.contains("--audit") || complaint.contains("--hooks tracepoint"),
        "{complaint}"
    );
    Ok(Outcome::Passed)
}

pub(crate) fn fentry_contexts(guest: &mut Guest) -> Result<Outcome> {
    contexts(guest, audit_flags(guest), &[])
}

pub(crate) fn kprobe_contexts(guest: &mut Guest) -> Result<Outcome> {
    contexts(guest, kprobe_flags(guest), &["interrupts-off"])
}

/// Looks an area up in each context that there is.
fn contexts(guest: &Guest, flags: Flags, with_flags: &[&'static str]) -> Result<Outcome> {
    let module = guest.module("contexts")?;
    let find = symbol("find_vm_area")?;
    let off_in_interrupts = [&["hardirq"], with_flags].concat();
    let mut contexts: Vec<(&str, &[&str])> = vec![
        ("preempt", &["preemption-off"]),
        ("rcu", &["rcu"]),
        ("bh", &["softirqs-off"]),
        ("softirq", &["softirq"]),
        ("hardirq", &off_in_interrupts),
    ];
    if !with_flags.is_empty() {
        contexts.push(("irqs", with_flags));
    }
    let mut parameters = Vec::new();
    for (context, _) in &contexts {
        let load = [
            format!("find={find}"),
            format!("context={context}"),
            format!("loops={LOOPS}"),
        ];
        parameters.extend(load);
        parameters.push(load::THEN.into());
    }
    parameters.extend([format!("find={find}"), format!("loops={LOOPS}")]);
    let report = tool::recorded_module(flags, &module, &parameters)?;
    let lock = report.index_lock();
    let found = |row: &Value, contexts: &[&str]| {
        row["lock"] == lock && row["op"] == "find" && is_in(row, contexts)
    };
    for (context, wanted) in &contexts {
        let seen = taken(&report, |row| found(row, wanted));
        equal(context, seen, LOOPS)?;
        let rows = atomic(&report, lock);
        let row = rows.iter().find(|row| found(row, wanted));
        let stack = row.and_then(|row| row["stack"].as_array());
        let mut frames = stack.into_iter().flatten().filter_map(Value::as_str);
        // The module is gone before anybody asks for its symbols.
        ensure!(
            frames.any(|frame| frame.starts_with("find_vm")),
            "{context}: the example is {stack:?}"
        );
    }
    // Loading the module looks areas up too.
    let in_tasks = taken(&report, |row| found(row, &[]));
    ensure!(
        in_tasks >= LOOPS,
        "{in_tasks} of {LOOPS} look-ups in a task that may sleep"
    );
    let all: u64 = atomic(&report, lock)
        .iter()
        .map(|row| number(row, "count"))
        .sum();
    equal("atomic look-ups", all, LOOPS * contexts.len() as u64)?;
    let verdict = verdict(&report, lock)?;
    ensure!(
        verdict["legal_as_mutex"] == false && verdict["legal_as_rwsem"] == false,
        "{verdict}"
    );
    Ok(Outcome::Passed)
}

pub(crate) fn deferred_frees(guest: &mut Guest) -> Result<Outcome> {
    let module = guest.module("contexts")?;
    let parameters = [
        "context=softirq".into(),
        format!("loops={LOOPS}"),
        load::THEN.into(),
        "context=hardirq".into(),
        format!("loops={LOOPS}"),
    ];
    let report = tool::recorded_module(audit_flags(guest), &module, &parameters)?;
    // The kernel frees its own programs in softirqs too.
    for (context, others) in [("softirq", 20), ("hardirq", 0)] {
        let freed = calls(&report, |row| {
            row["site"] == "vfree" && is_in(row, &[context])
        });
        ensure!(
            (LOOPS..=LOOPS + others).contains(&freed),
            "{freed} frees in a {context}, of which {LOOPS} are the load's"
        );
    }
    // What is put off is freed by a task.
    for verdict in report.rows_of(&["audit", "verdicts"]) {
        ensure!(verdict["atomic"] == 0, "{verdict}");
    }
    Ok(Outcome::Passed)
}

/// What syzbot found when the lock of a block was a mutex: `vb_alloc` takes it in an RCU read section.
pub(crate) fn blocks_under_rcu(guest: &mut Guest) -> Result<Outcome> {
    let module = guest.module("vmap_ram")?;
    let report = tool::recorded_module(audit_flags(guest), &module, &["loops=200".into()])?;
    let verdict = verdict(&report, "vmap_block.lock")?;
    ensure!(verdict["legal_as_mutex"] == false, "{verdict}");
    for op in ["map_ram", "unmap_aliases"] {
        let in_rcu = taken(&report, |row| {
            row["lock"] == "vmap_block.lock"
                && row["op"] == op
                && contexts_of(row).any(|c| c == "rcu")
        });
        ensure!(
            in_rcu > 0,
            "{op} was not seen in an RCU read section: {report:?}"
        );
    }
    // To unmap it is taken outside.
    let unmapped = taken(&report, |row| {
        row["op"] == "unmap_ram" && row["atomic"] == true
    });
    equal("atomic unmaps", unmapped, 0)?;
    Ok(Outcome::Passed)
}

fn verdict<'a>(report: &'a Report, lock: &str) -> Result<&'a Value> {
    let mut verdicts = report.rows_of(&["audit", "verdicts"]);
    verdicts
        .find(|verdict| verdict["lock"] == lock)
        .with_context(|| format!("no verdict on {lock}: {}", report.0["audit"]))
}

fn contexts_of(row: &Value) -> impl Iterator<Item = &str> {
    let contexts = row["contexts"].as_array();
    contexts.into_iter().flatten().filter_map(Value::as_str)
}

/// Whether a row has exactly these contexts.
fn is_in(row: &Value, contexts: &[&str]) -> bool {
    contexts_of(row).eq(contexts.iter().copied())
}

fn number(row: &Value, what: &str) -> u64 {
    row[what].as_u64().unwrap_or_default()
}

fn taken(report: &Report, which: impl Fn(&Value) -> bool) -> u64 {
    counted(report, "acquisitions", which)
}

fn calls(report: &Report, which: impl Fn(&Value) -> bool) -> u64 {
    counted(report, "calls", which)
}

fn counted(report: &Report, what: &str, which: impl Fn(&Value) -> bool) -> u64 {
    let rows = report.rows_of(&["audit", what]);
    rows.filter(|row| which(row))
        .map(|row| number(row, "count"))
        .sum()
}

/// The rows of a lock that forbid to sleep.
fn atomic<'a>(report: &'a Report, lock: &str) -> Vec<&'a Value> {
    let rows = report.rows_of(&["audit", "acquisitions"]);
    rows.filter(|row| row["lock"] == lock && row["atomic"] == true)
        .collect()
}

/// The address of a function.
pub(super) fn symbol(name: &str) -> Result<String> {
    let symbols = std::fs::read_to_string("/proc/kallsyms")?;
    let line = symbols
        .lines()
        .find(|line| line.ends_with(&format!(" {name}")));
    let address = line.and_then(|line| line.split(' ').next());
    let address = address.with_context(|| format!("the kernel has no {name}"))?;
    Ok(format!("0x{address}"))
}
