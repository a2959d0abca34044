//! What happened inside holds and inside reads of /proc/kcore: rows of a report, and their tables for
//! a person.
//!
//! In comes what was measured; out come rows for the cells and destinations of which there is
//! something. Invariant: where nobody looked, there is no table and a reason instead of zeros.

use std::cmp::Reverse;

use kcore_trace_ebpf::words::{Destination, Kind};
use serde::Serialize;

use crate::model::{CellKey, Copies, Header, Measured, SeenInside, saturating_sum};
use crate::table::{align, new_table};
use crate::units;

/// What was seen inside holds and reads.
#[derive(Clone, Debug, Serialize)]
pub struct InsideView {
    /// The most time in page faults and off the CPU first.
    pub holds: Vec<HoldRow>,
    /// The most reads first.
    pub copies: Vec<CopyRow>,
    /// The function that copies out of vmalloc memory; null where its passes are not seen.
    pub pass: Option<String>,
}

/// What happened inside the holds and waits of one lock, as one op took it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct HoldRow {
    #[serde(flatten)]
    pub key: CellKey,
    #[serde(serialize_with = "crate::words::optional")]
    pub kind: Option<Kind>,
    #[serde(flatten)]
    pub inside: SeenInside,
    /// Nanoseconds of all contended waits, of which `sleep_ns` is a part. Null where waits are not seen.
    pub wait_sum_ns: Option<u64>,
}

/// Reads of /proc/kcore into one kind of destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CopyRow {
    #[serde(with = "crate::words")]
    pub destination: Destination,
    #[serde(flatten)]
    pub copies: Copies,
}

pub(super) const NOT_SEEN: &str =
    "seen at level full by fentry or kprobe, unless --no-inside leaves it out";

/// What was seen; nothing if nobody looked.
pub(super) fn view(header: &Header, measured: &Measured) -> Option<InsideView> {
    header.inside.then(|| {
        let holds = measured.inside.iter().map(|(key, inside)| {
            let sees_waits = header.sees_waits(key.lock);
            let wait_sum_ns = measured.cells.get(key).map_or(0, |cell| cell.wait.sum_ns());
            HoldRow {
                key: *key,
                kind: header.kinds.get(&key.lock).copied(),
                inside: inside.seen(sees_waits),
                wait_sum_ns: sees_waits.then_some(wait_sum_ns),
            }
        });
        let copies = measured.copies.iter();
        let copies = copies.map(|(&destination, &copies)| CopyRow {
            destination,
            copies,
        });
        let (mut holds, mut copies): (Vec<_>, Vec<_>) = (holds.collect(), copies.collect());
        holds.sort_by_key(|row| {
            let SeenInside {
                fault_ns,
                off_cpu_ns,
                sleep_ns,
                ..
            } = row.inside;
            Reverse(saturating_sum([
                fault_ns,
                off_cpu_ns,
                sleep_ns.unwrap_or(0),
            ]))
        });
        copies.sort_by_key(|row| Reverse(row.copies.reads));
        InsideView {
            holds,
            copies,
            pass: header.pass.clone(),
        }
    })
}

/// The tables for a person, of what there is.
pub(super) fn text(view: &InsideView) -> Vec<String> {
    let holds = (!view.holds.is_empty()).then(|| holds(&view.holds));
    let copies = (!view.copies.is_empty()).then(|| copies(view));
    holds.into_iter().chain(copies).collect()
}

fn holds(rows: &[HoldRow]) -> String {
    let head = [
        "lock, op",
        "faults",
        "time",
        "off CPU",
        "preempted",
        "time",
        "waits asleep",
        "time",
        "share",
    ];
    let mut table = new_table(head.map(String::from).to_vec());
    for row in rows {
        let inside = &row.inside;
        let slept = inside.sleep_ns.zip(row.wait_sum_ns);
        table.add_row([
            format!("{}, {}", row.key.lock, row.key.op),
            units::count(inside.faults),
            units::duration(inside.fault_ns),
            units::count(inside.switches),
            units::count(inside.preemptions),
            units::duration(inside.off_cpu_ns),
            inside.sleeps.map_or(String::new(), units::count),
            inside.sleep_ns.map_or(String::new(), units::duration),
            slept.map_or(String::new(), |(part, all)| units::share(part, all)),
        ]);
    }
    for index in 1..head.len() {
        align(&mut table, index, matches!(index, 1 | 3 | 6));
    }
    format!(
        "Inside holds: page faults, and times the holder was off its CPU; waits in which the waiter \
         slept\n\n{}",
        table.trim_fmt()
    )
}

fn copies(view: &InsideView) -> String {
    let head = [
        "to",
        "reads",
        "bytes",
        "passes",
        "cut short",
        "faulted in",
        "page faults",
        "time",
    ];
    let mut table = new_table(head.map(String::from).to_vec());
    for CopyRow {
        destination,
        copies,
    } in &view.copies
    {
        table.add_row([
            meaning(*destination).to_owned(),
            units::count(copies.reads),
            units::bytes(copies.bytes),
            units::count(copies.passes),
            units::count(copies.short_passes),
            units::count(copies.fault_ins),
            units::count(copies.faults),
            units::duration(copies.fault_ns),
        ]);
    }
    for index in 1..head.len() {
        align(&mut table, index, matches!(index, 1 | 3 | 6));
    }
    let passes = match view.pass.as_deref() {
        Some("vread") => {
            "a pass is a call of vread, which copies to a buffer of the kernel's under the lock"
        }
        Some(_) => "a pass is a call of vread_iter, which copies to the destination under the lock",
        None => "passes are not seen",
    };
    let table = table.trim_fmt();
    format!("Reads of /proc/kcore, by where they copied to\n\n{table}\n\n{passes}")
}

/// A destination for a person.
fn meaning(destination: Destination) -> &'static str {
    match destination {
        Destination::Ubuf => "user memory (read)",
        Destination::Iovec => "user memory (readv)",
        Destination::Kvec => "kernel memory",
        Destination::Bvec => "pages (splice)",
        Destination::Pipe => "a pipe (splice)",
        Destination::Other => "elsewhere",
    }
}
