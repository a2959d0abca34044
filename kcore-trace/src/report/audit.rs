//! May it sleep? Where each lock was taken, in which context, and whether it could be a lock that
//! sleeps: rows of a report, and their tables for a person.
//!
//! In comes what was measured; out come a verdict for each lock and a row for each site and context.
//! Invariant: a yes is about what ran and about the contexts that were looked at, and says so.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io;

use kcore_trace_ebpf::words::{Context, Kind, Lock};
use serde::Serialize;

use super::Report;
use crate::model::{Audit, AuditKey, Header, Measured, saturating_sum};
use crate::table::{align, fitted, new_table};
use crate::units;

/// Example stacks that a person is shown.
const STACKS: usize = 8;

/// Where locks were taken, and what that forbids.
#[derive(Clone, Debug, Serialize)]
pub struct AuditView {
    /// The contexts that were told from one where a task may sleep.
    #[serde(with = "crate::words::list")]
    pub looked_at: Vec<Context>,
    /// One for each lock that was taken.
    pub verdicts: Vec<Verdict>,
    /// By lock, those that forbid to sleep first.
    pub acquisitions: Vec<AuditRow>,
    /// Calls where a task may not sleep: where an op began (without a site), and of vfree. And all
    /// calls of vfree_atomic.
    pub calls: Vec<AuditRow>,
}

/// Whether a lock could be one that sleeps, by what was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    #[serde(with = "crate::words")]
    pub lock: Lock,
    #[serde(serialize_with = "crate::words::optional")]
    pub kind: Option<Kind>,
    pub acquisitions: u64,
    /// Those where a task may not sleep. A trylock, which does not, is none.
    pub atomic: u64,
    /// Those where it may not only because it holds another vmap lock that is a spinlock.
    pub nested: u64,
    /// Both as far as the kernel's other locks go: it takes that the other lock sleeps too.
    pub legal_as_rwsem: bool,
    /// A mutex is not even tried in an interrupt.
    pub legal_as_mutex: bool,
}

/// A site in a context.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AuditRow {
    #[serde(flatten)]
    pub key: AuditKey,
    /// Whether a lock that sleeps would not be legal there.
    pub atomic: bool,
    #[serde(flatten)]
    pub audit: Audit,
}

impl AuditRow {
    fn new((key, audit): (&AuditKey, &Audit)) -> Self {
        Self {
            key: key.clone(),
            atomic: !key.tries && key.contexts.iter().any(|it| *it != Context::Spinlock),
            audit: audit.clone(),
        }
    }

    /// Whether it would be legal if the vmap spinlock that is held slept too.
    fn is_nested(&self) -> bool {
        !self.key.tries && self.key.contexts == [Context::Spinlock]
    }

    /// Whether a mutex must not be tried there.
    fn is_interrupt(&self) -> bool {
        let interrupts = [Context::Softirq, Context::Hardirq, Context::Nmi];
        self.key
            .contexts
            .iter()
            .any(|context| interrupts.contains(context))
    }
}

/// What was seen; nothing if nobody looked.
pub(super) fn view(header: &Header, measured: &Measured) -> Option<AuditView> {
    if header.contexts.is_empty() {
        return None;
    }
    let rows = measured.audit.iter().map(AuditRow::new);
    let (mut acquisitions, mut calls): (Vec<_>, Vec<_>) =
        rows.partition(|row| row.key.lock.is_some());
    let order = |row: &AuditRow| (row.key.lock, !row.atomic, Reverse(row.audit.count));
    acquisitions.sort_by_key(order);
    calls.sort_by_key(order);
    let mut of_locks: BTreeMap<Lock, Vec<&AuditRow>> = BTreeMap::new();
    for row in &acquisitions {
        if let Some(lock) = row.key.lock {
            of_locks.entry(lock).or_default().push(row);
        }
    }
    let verdict = |(lock, rows): (Lock, Vec<&AuditRow>)| {
        let sum = |rows: &mut dyn Iterator<Item = &&AuditRow>| {
            saturating_sum(rows.map(|row| row.audit.count))
        };
        let atomic = sum(&mut rows.iter().filter(|row| row.atomic));
        Verdict {
            lock,
            kind: header.kinds.get(&lock).copied(),
            acquisitions: sum(&mut rows.iter()),
            atomic,
            nested: sum(&mut rows.iter().filter(|row| row.is_nested())),
            legal_as_rwsem: atomic == 0,
            legal_as_mutex: atomic == 0 && !rows.iter().any(|row| row.is_interrupt()),
        }
    };
    Some(AuditView {
        looked_at: header.contexts.clone(),
        verdicts: of_locks.into_iter().map(verdict).collect(),
        acquisitions,
        calls,
    })
}

/// The blocks for a person.
pub(super) fn text(report: &Report, columns: Option<u16>) -> Vec<String> {
    let Some(view) = &report.audit else {
        return vec![
            "In which contexts locks were taken is not known: record with --audit to see it."
                .into(),
        ];
    };
    let mut blocks = vec![verdicts(view, columns)];
    if !view.acquisitions.is_empty() {
        let title = "Where locks were taken, and in which context";
        blocks.push(format!("{title}\n\n{}", acquisitions(&view.acquisitions)));
    }
    let atomic: Vec<_> = view.calls.iter().filter(|row| row.atomic).collect();
    blocks.push(if atomic.is_empty() {
        "No operation was seen to begin where no task may sleep.".into()
    } else {
        let title = "Operations that began, and frees that were asked for, where no task may sleep";
        format!("{title}\n\n{}", calls(&atomic))
    });
    blocks.extend(put_off(&view.calls));
    blocks.extend(stacks(view));
    blocks
}

fn verdicts(view: &AuditView, columns: Option<u16>) -> String {
    let mut lines = Vec::new();
    for verdict in &view.verdicts {
        lines.extend(fitted(&sentence(view, verdict), columns));
    }
    if lines.is_empty() {
        lines.push("No vmap lock was taken.".into());
    }
    let caveat = format!(
        "Only what ran was seen, and only {}: a yes is no proof.",
        listed(
            &view
                .looked_at
                .iter()
                .map(|context| meaning(*context))
                .collect::<Vec<_>>(),
            "and"
        )
    );
    lines.push(String::new());
    lines.extend(fitted(&caveat, columns));
    format!("May it sleep?\n\n{}", lines.join("\n"))
}

/// Whether it could be a lock that sleeps, and why not.
fn sentence(view: &AuditView, verdict: &Verdict) -> String {
    let Verdict {
        lock,
        acquisitions,
        atomic,
        ..
    } = *verdict;
    let subject = match verdict.kind {
        Some(Kind::Spinlock) | None => format!("{lock} would be legal as a mutex or rwsem"),
        Some(kind) => format!("{lock} is legal as the {kind} that it is"),
    };
    if atomic == 0 {
        let yes = match verdict.legal_as_mutex {
            true => "yes",
            false => "yes, as an rwsem: it is tried in an interrupt, where a mutex must not be",
        };
        let times = units::counted(acquisitions, "acquisition");
        let nested = match verdict.nested {
            0 => String::new(),
            nested => format!(
                ", {} of them under another vmap spinlock, which would have to be one that sleeps too",
                units::count(nested)
            ),
        };
        return format!("{subject}: {yes}, by {times}{nested}");
    }
    let mut reasons: BTreeMap<(String, String), u64> = BTreeMap::new();
    let rows = view.acquisitions.iter();
    for row in rows.filter(|row| row.atomic && row.key.lock == Some(lock)) {
        let key = (function(&row.key), contexts(&row.key.contexts));
        let count = reasons.entry(key).or_default();
        *count = count.saturating_add(row.audit.count);
    }
    let mut reasons: Vec<_> = reasons.into_iter().collect();
    reasons.sort_by_key(|(_, count)| Reverse(*count));
    let reasons = reasons.into_iter().map(|((function, contexts), count)| {
        format!(
            "{function} takes it {contexts} ({})",
            units::counted(count, "time")
        )
    });
    let reasons: Vec<_> = reasons.collect();
    format!(
        "{subject}: no, {} of {} were atomic, because {}",
        units::count(atomic),
        units::counted(acquisitions, "acquisition"),
        listed(&reasons, "and")
    )
}

/// A list as in a sentence.
fn listed(items: &[impl AsRef<str>], last: &str) -> String {
    match items {
        [] => String::new(),
        [one] => one.as_ref().to_owned(),
        [all @ .., end] => {
            let all: Vec<_> = all.iter().map(AsRef::as_ref).collect();
            format!("{} {last} {}", all.join(", "), end.as_ref())
        }
    }
}

/// The function of a site, without the place in it.
fn function(key: &AuditKey) -> String {
    let site = key.site.as_deref().unwrap_or("an unknown caller");
    site.split_once('+')
        .map_or(site, |(function, _)| function)
        .to_owned()
}

/// Contexts for a person, as in "it is taken …".
fn contexts(contexts: &[Context]) -> String {
    match contexts {
        [] => "in a task".into(),
        contexts => listed(
            &contexts
                .iter()
                .map(|context| phrase(*context))
                .collect::<Vec<_>>(),
            "and",
        ),
    }
}

fn phrase(context: Context) -> &'static str {
    match context {
        Context::Softirq => "in a softirq",
        Context::Hardirq => "in a hardirq",
        Context::Nmi => "in an NMI",
        Context::SoftirqsOff => "with softirqs off",
        Context::PreemptionOff => "with preemption off",
        Context::InterruptsOff => "with interrupts off",
        Context::Rcu => "in an RCU read section",
        Context::Spinlock => "under another vmap spinlock",
    }
}

fn meaning(context: Context) -> &'static str {
    match context {
        Context::Softirq => "softirqs",
        Context::Hardirq => "hardirqs",
        Context::Nmi => "NMIs",
        Context::SoftirqsOff => "softirqs off",
        Context::PreemptionOff => "preemption off",
        Context::InterruptsOff => "interrupts off",
        Context::Rcu => "RCU read sections",
        Context::Spinlock => "other vmap spinlocks held",
    }
}

fn acquisitions(rows: &[AuditRow]) -> String {
    let head = ["lock, site", "op", "context", "times"];
    let mut table = new_table(head.map(String::from).to_vec());
    let mut lock = None;
    for row in rows {
        if row.key.lock != lock {
            lock = row.key.lock;
            table.add_row([lock.map_or(String::new(), |lock| lock.to_string())]);
        }
        let tries = if row.key.tries { ", tried" } else { "" };
        table.add_row([
            format!(
                "  {}",
                row.key.site.as_deref().unwrap_or("an unknown caller")
            ),
            row.key.op.to_string(),
            format!("{}{tries}", contexts(&row.key.contexts)),
            units::count(row.audit.count),
        ]);
    }
    align(&mut table, 3, true);
    table.trim_fmt().to_string()
}

fn calls(rows: &[&AuditRow]) -> String {
    let head = ["called", "context", "times"];
    let mut table = new_table(head.map(String::from).to_vec());
    for row in rows {
        table.add_row([
            called(&row.key),
            contexts(&row.key.contexts),
            units::count(row.audit.count),
        ]);
    }
    align(&mut table, 2, true);
    table.trim_fmt().to_string()
}

/// The function that was called, or the op that began.
fn called(key: &AuditKey) -> String {
    key.site.clone().unwrap_or_else(|| key.op.to_string())
}

/// What was freed where it could not be done at once.
fn put_off(rows: &[AuditRow]) -> Option<String> {
    let calls = |function: &str, interrupts: bool| -> u64 {
        let rows = rows
            .iter()
            .filter(|row| row.key.site.as_deref() == Some(function));
        let rows = rows.filter(|row| row.is_interrupt() || !interrupts);
        saturating_sum(rows.map(|row| row.audit.count))
    };
    let in_interrupts = calls("vfree", true);
    let atomic = calls("vfree_atomic", false);
    (in_interrupts > 0 || atomic > 0).then(|| {
        format!(
            "Put off to a work item: {} of vfree in an interrupt and {} of vfree_atomic, which newer \
             kernels' vfree calls there itself.",
            units::counted(in_interrupts, "call"),
            units::counted(atomic, "call")
        )
    })
}

/// Examples of where it could not sleep.
fn stacks(view: &AuditView) -> Option<String> {
    let rows = view.acquisitions.iter().chain(&view.calls);
    let mut text = vec!["Examples of where a task could not have slept".to_owned()];
    let atomic: Vec<_> = rows.filter(|row| row.atomic).collect();
    for row in atomic.iter().take(STACKS) {
        let what = match row.key.lock {
            Some(lock) => format!("{lock}, taken by {}", function(&row.key)),
            None => format!("{}, called", called(&row.key)),
        };
        let mut lines = vec![format!("{what} {}", contexts(&row.key.contexts))];
        match row.audit.stack.as_slice() {
            [] => lines.push("  no stack was kept".into()),
            stack => lines.extend(stack.iter().map(|frame| format!("  {frame}"))),
        }
        text.push(lines.join("\n"));
    }
    let more = atomic.len().saturating_sub(STACKS) as u64;
    if more > 0 {
        let more = units::counted(more, "more site");
        text.push(format!("{more}; --format json has all"));
    }
    (!atomic.is_empty()).then(|| text.join("\n\n"))
}

/// The audit for a spreadsheet.
pub(super) fn csv(report: &Report) -> io::Result<String> {
    let mut table = csv::Writer::from_writer(Vec::new());
    table.write_record([
        "lock", "mode", "tries", "op", "site", "contexts", "atomic", "count", "stack",
    ])?;
    let rows = report.audit.iter();
    let rows = rows.flat_map(|view| view.acquisitions.iter().chain(&view.calls));
    for row in rows {
        let AuditKey {
            lock,
            mode,
            tries,
            op,
            site,
            contexts,
        } = &row.key;
        let names: Vec<_> = contexts.iter().map(|context| context.name()).collect();
        table.write_record([
            lock.map_or("", Lock::name),
            mode.name(),
            &tries.to_string(),
            op.name(),
            site.as_deref().unwrap_or_default(),
            &names.join(" "),
            &row.atomic.to_string(),
            &row.audit.count.to_string(),
            &row.audit.stack.join(" "),
        ])?;
    }
    let bytes = table.into_inner().map_err(|error| error.into_error())?;
    String::from_utf8(bytes).map_err(io::Error::other)
}
