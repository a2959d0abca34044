//! The longest waits, one by one: rows of a report, and their table for a person.
//!
//! In comes what was measured; out come rows, the longest first. Invariant: whoever is not known is
//! null, and never guessed.

use kcore_trace_ebpf::words::Lock;
use serde::Serialize;

use crate::model::{Header, Measured, Purpose, Task, WorstWait};
use crate::table::{align, new_table, printable};
use crate::units;

/// Rows that a person is shown.
const SHOWN: usize = 5;

/// One of the longest waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WorstRow {
    #[serde(with = "crate::words")]
    pub lock: Lock,
    pub wait_ns: u64,
    /// Nanoseconds of it that the waiter slept.
    pub slept_ns: u64,
    /// Nanoseconds from the start of measuring to its end.
    pub ended_ns: u64,
    pub waiter: Party,
    /// Null if nothing is known of it; who held the lock when the wait began, or got it next.
    pub holder: Option<Party>,
    /// Where the waiter was, the innermost function first. Null if stacks were not kept, empty if
    /// there was none.
    pub stack: Option<Vec<String>>,
    /// Where the holder released it. Null if stacks were not kept; empty if it is not known, or did not
    /// leave it.
    pub holder_stack: Option<Vec<String>>,
}

/// Who took part in a wait.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Party {
    #[serde(flatten)]
    pub purpose: Purpose,
    pub task: Option<Task>,
}

/// The rows; nothing if nobody looked.
pub(super) fn rows(header: &Header, measured: &Measured) -> Option<Vec<WorstRow>> {
    header.inside.then(|| {
        measured
            .worst
            .iter()
            .map(|wait| row(wait, header.stacks))
            .collect()
    })
}

fn row(wait: &WorstWait, stacks: bool) -> WorstRow {
    WorstRow {
        lock: wait.key.lock,
        wait_ns: wait.wait_ns,
        slept_ns: wait.slept_ns,
        ended_ns: wait.ended_ns,
        waiter: Party {
            purpose: Purpose {
                intent: wait.key.intent,
                op: wait.key.op,
            },
            task: Some(wait.waiter.clone()),
        },
        holder: wait.holder.map(|purpose| Party {
            purpose,
            task: wait.holder_task.clone(),
        }),
        stack: stacks.then(|| wait.stack.clone()),
        holder_stack: stacks.then(|| wait.holder_stack.clone()),
    }
}

/// The longest of them for a person; nothing if nobody waited.
pub(super) fn text(rows: &[WorstRow]) -> Option<String> {
    if rows.is_empty() {
        return None;
    }
    let head = ["waited", "asleep", "until", "lock", "waiter", "holder"];
    let mut table = new_table(head.map(String::from).to_vec());
    for row in rows.iter().take(SHOWN) {
        table.add_row([
            units::duration(row.wait_ns),
            units::duration(row.slept_ns),
            units::elapsed(row.ended_ns),
            format!("  {}", row.lock),
            party(&row.waiter),
            row.holder.as_ref().map_or("not known".into(), party),
        ]);
    }
    for index in 0..3 {
        align(&mut table, index, false);
    }
    let more = rows.len().saturating_sub(SHOWN) as u64;
    let below = match more {
        0 => String::new(),
        more => format!(
            "\n\n{}; --format json has all",
            units::counted(more, "more wait")
        ),
    };
    let table = table.trim_fmt();
    let stacks = stacks(&rows[..rows.len().min(SHOWN)]);
    Some(format!(
        "The longest waits, by when they ended\n\n{table}{below}{stacks}"
    ))
}

/// Where the waiters were, and the holders, each pair of places once.
fn stacks(rows: &[WorstRow]) -> String {
    let mut places: Vec<([&[String]; 2], Vec<String>)> = Vec::new();
    for row in rows {
        let (Some(waiter), Some(holder)) = (&row.stack, &row.holder_stack) else {
            continue;
        };
        let place = [waiter.as_slice(), holder.as_slice()];
        let wait = units::duration(row.wait_ns);
        match places.iter_mut().find(|(known, _)| *known == place) {
            Some((_, waits)) => waits.push(wait),
            None => places.push((place, vec![wait])),
        }
    }
    let text = places.into_iter().map(|([waiter, holder], waits)| {
        let waits = waits.join(", ");
        let waiter = frames(waiter, "could not be taken");
        let holder = frames(holder, "not known");
        format!("\n\nstack of {waits}{waiter}\nstack of its holder, at the release{holder}")
    });
    text.collect()
}

fn frames(stack: &[String], none: &str) -> String {
    match stack {
        [] => format!(": {none}"),
        frames => frames.iter().map(|frame| format!("\n  {frame}")).collect(),
    }
}

fn party(party: &Party) -> String {
    let Purpose { intent, op } = party.purpose;
    let task = party.task.as_ref().map_or(String::new(), |task| {
        let comm = task.comm.as_deref().map_or("gone".into(), printable);
        format!(", {comm} [{}]", task.tid)
    });
    format!("{op}, {intent}{task}")
}
