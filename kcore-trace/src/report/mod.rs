//! The report: what a recording says, as one plain value and in three formats.
//!
//! Owns [`Report`], whose JSON form is stable under its `schema` number (fields may be added), and
//! the choice of a renderer. In comes a [`Recording`]; out goes text for a person, JSON for a
//! program or CSV for a spreadsheet. No renderer computes: each shows what is in the value.
//!
//! Invariant: what was not measured is null and never zero. A row of zeros is left out.

mod audit;
mod bars;
mod blame;
mod csv;
mod inside;
mod json;
mod nodes;
mod readers;
mod reduced;
mod tables;
mod text;
mod worst;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io::{self, Write};

use kcore_trace_ebpf::words::{Intent, Kind, Lock, Mode, Op};
use serde::Serialize;

pub use audit::{AuditRow, AuditView, Verdict};
pub use blame::{BlameMatrix, BlameRow};
pub use inside::{CopyRow, HoldRow, InsideView};
pub use nodes::NodeRow;
pub use readers::ReaderRow;
pub use reduced::{ReducedLock, Reduction};
pub use worst::WorstRow;

use crate::distribution::{Bucket, Distribution};
use crate::host::Host;
use crate::imbalance::Spread;
use crate::model::{
    Cell, CellKey, Coverage, End, Header, KernelName, Level, Loss, Measured, OpCell, Reduced,
};
use crate::recording::{Cut, Excerpt, Recording};
use crate::table::printable_lines;

/// Version of the JSON form. A field that changes its meaning or goes away raises it.
const SCHEMA: u32 = 1;

/// What a report is written as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Tables for a person.
    #[default]
    Text,
    /// One object with a stable schema.
    Json,
    /// One row per lock and op, for a spreadsheet.
    Csv,
}

/// What the locks are divided by, in the formats that show one view.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum By {
    /// The operation that took them.
    #[default]
    Op,
    /// Nothing: a line for each lock.
    Lock,
    /// The node that they belong to.
    Node,
    /// Who read /proc/kcore and /proc/vmallocinfo, instead of locks.
    Process,
    /// The place in the kernel that took them, and whether it could have slept there.
    Site,
}

/// Everything that a recording says in all.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub schema: u32,
    pub recording: Origin,
    pub coverage: Coverage,
    pub loss: Losses,
    /// Null if the guard never reduced the level.
    pub reduced: Option<Reduction>,
    /// The ops that took the most time first.
    pub ops: Vec<OpRow>,
    /// Rows of one lock stand together; the lock that was waited for longest is first, and so is
    /// the op within a lock. Equal waits are ordered by holds.
    pub locks: Vec<LockRow>,
    /// One for each lock that has rows, in the order of the rows.
    pub lock_totals: Vec<LockTotal>,
    /// How much of each hold and wait may be the tool itself, in nanoseconds, at most
    /// ([`Measured::shortest_hold_ns`](crate::model::Measured::shortest_hold_ns)). Null where no hold
    /// was seen.
    pub cost_band_ns: Option<u64>,
    /// The locks of nodes by node; empty on kernels that have no nodes.
    pub nodes: Vec<NodeRow>,
    /// How uneven the nodes of each lock are.
    pub spreads: Vec<Spread>,
    /// Null where holders are not known.
    pub blame: Option<BlameMatrix>,
    /// Why they are not.
    pub blame_missing: Option<&'static str>,
    /// Null where nobody looked.
    pub inside: Option<InsideView>,
    /// Those that others waited for longest first. Null where nobody looked.
    pub readers: Option<Vec<ReaderRow>>,
    /// The longest waits, the longest first. Null where nobody looked.
    pub worst: Option<Vec<WorstRow>>,
    /// Null where nobody looked.
    pub audit: Option<AuditView>,
}

/// What was measured, where, and for how long.
#[derive(Clone, Debug, Serialize)]
pub struct Origin {
    pub tool_version: String,
    pub kernel: KernelName,
    pub host: Host,
    pub level: Level,
    pub hooks: String,
    #[serde(with = "crate::words::list", skip_serializing_if = "Vec::is_empty")]
    pub without_waits: Vec<Lock>,
    #[serde(with = "crate::words::list")]
    pub without_holds: Vec<Lock>,
    pub command: Vec<String>,
    pub started_at: String,
    /// Null if all of the recording is reported.
    pub excerpt: Option<Span>,
    pub duration_ns: u64,
    /// Nanoseconds at the level that was asked for, which is what rates are of.
    pub measured_ns: u64,
    pub command_ns: Option<u64>,
    /// Whether it was ended in order.
    pub complete: bool,
    pub end: Option<End>,
    pub cut: Option<Cut>,
}

/// A time of a recording, in nanoseconds from the start of measuring, and all that it has.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Span {
    pub start_ns: u64,
    pub end_ns: u64,
    pub recorded_ns: u64,
}

/// What is missing from the numbers.
#[derive(Clone, Debug, Serialize)]
pub struct Losses {
    #[serde(flatten)]
    pub loss: Loss,
    /// Waits and holds that were going on when measuring ended.
    pub in_flight_at_end: u64,
}

/// The numbers of a distribution; null where there was no sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Dist {
    pub count: u64,
    pub sum_ns: u64,
    pub min_ns: Option<u64>,
    pub max_ns: Option<u64>,
    pub p50_ns: Option<u64>,
    pub p90_ns: Option<u64>,
    pub p99_ns: Option<u64>,
    pub p999_ns: Option<u64>,
}

/// One vmalloc operation.
#[derive(Clone, Debug, Serialize)]
pub struct OpRow {
    #[serde(with = "crate::words")]
    pub op: Op,
    pub count: u64,
    /// Null where ops are only counted.
    pub latency: Option<Dist>,
}

/// How often a lock was taken, and how often in vain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Null where an uncontended acquisition is not seen.
    pub acquisitions: Option<u64>,
    /// Acquisitions that entered the slow path and got the lock. Null where waits are not seen.
    pub contended: Option<u64>,
    /// Null where holds are not seen.
    pub releases: Option<u64>,
    /// Waits that ended without the lock. Null where waits are not seen.
    pub aborted: Option<u64>,
    /// Nanoseconds spent in them.
    pub aborted_wait_ns: Option<u64>,
    pub try_failed: u64,
}

/// One lock, as one op took it.
#[derive(Clone, Debug, Serialize)]
pub struct LockRow {
    #[serde(with = "crate::words")]
    pub lock: Lock,
    /// Null if the kernel's type of this lock is not known.
    #[serde(serialize_with = "crate::words::optional")]
    pub kind: Option<Kind>,
    #[serde(with = "crate::words")]
    pub mode: Mode,
    #[serde(with = "crate::words")]
    pub intent: Intent,
    #[serde(with = "crate::words")]
    pub op: Op,
    #[serde(flatten)]
    pub counts: Counts,
    /// Null where waits are not seen.
    pub wait: Option<Dist>,
    /// Null where holds are not seen.
    pub hold: Option<Dist>,
}

/// One lock over all ops.
#[derive(Clone, Debug, Serialize)]
pub struct LockTotal {
    #[serde(with = "crate::words")]
    pub lock: Lock,
    #[serde(serialize_with = "crate::words::optional")]
    pub kind: Option<Kind>,
    #[serde(flatten)]
    pub counts: Counts,
    pub wait: Option<Dist>,
    pub hold: Option<Dist>,
    /// Waits by powers of two; empty where they are not seen.
    pub wait_octaves: Vec<Bucket>,
    /// Holds by powers of two; empty where they are not seen.
    pub hold_octaves: Vec<Bucket>,
}

/// Writes a report. JSON has every view, whatever `by` says.
///
/// `columns` is the width of the terminal, if there is one: it decides how much text stands side by
/// side, and nothing in the other formats.
///
/// # Errors
///
/// Those of `out`, with their kind: a closed pipe can be told from a full disk.
pub fn render(
    report: &Report,
    format: Format,
    by: By,
    columns: Option<u16>,
    out: &mut dyn Write,
) -> io::Result<()> {
    let rendered = match (format, by) {
        (Format::Text, by) => printable_lines(&text::render(report, by, columns)),
        (Format::Json, _) => json::render(report)?,
        (Format::Csv, By::Op) => csv::by_op(report)?,
        (Format::Csv, By::Lock) => csv::by_lock(report)?,
        (Format::Csv, By::Node) => nodes::csv(report)?,
        (Format::Csv, By::Process) => readers::csv(report)?,
        (Format::Csv, By::Site) => audit::csv(report)?,
    };
    out.write_all(rendered.as_bytes())?;
    out.flush()
}

impl Report {
    /// The report of a recording, from its totals.
    pub fn new(recording: &Recording) -> Self {
        let origin = Origin::new(recording, recording.duration_ns, &recording.reduced);
        Self::of(origin, recording, &recording.total, &recording.reduced)
    }

    /// The report of some time of a recording.
    pub fn of_excerpt(recording: &Recording, excerpt: &Excerpt) -> Self {
        let origin = Origin {
            excerpt: Some(Span {
                start_ns: excerpt.start_ns,
                end_ns: excerpt.end_ns,
                recorded_ns: recording.duration_ns,
            }),
            ..Origin::new(recording, excerpt.duration_ns(), &excerpt.reduced)
        };
        Self::of(origin, recording, &excerpt.total, &excerpt.reduced)
    }

    fn of(origin: Origin, recording: &Recording, total: &Measured, reduced: &Reduced) -> Self {
        let header = &recording.header;
        let grouped = group(&total.cells);
        let blame = blame::matrix(header, total);
        let of_locks = || {
            grouped
                .iter()
                .map(|cells| (Subject::new(header, cells.lock), cells))
        };
        Self {
            schema: SCHEMA,
            recording: origin,
            coverage: header.coverage.clone(),
            loss: Losses::new(total.loss),
            reduced: Reduction::new(reduced),
            ops: ops(&total.ops),
            locks: of_locks()
                .flat_map(|(subject, cells)| subject.rows(cells))
                .collect(),
            lock_totals: of_locks()
                .map(|(subject, cells)| subject.total(&cells.sum))
                .collect(),
            cost_band_ns: total.shortest_hold_ns(),
            nodes: nodes::rows(header, total),
            spreads: nodes::spreads(header, total),
            blame_missing: blame.as_ref().err().copied(),
            blame: blame.ok(),
            inside: inside::view(header, total),
            readers: readers::rows(header, total),
            worst: worst::rows(header, total),
            audit: audit::view(header, total),
        }
    }
}

/// A lock, and what is seen of it.
struct Subject {
    lock: Lock,
    kind: Option<Kind>,
    sees_acquisitions: bool,
    sees_waits: bool,
    sees_holds: bool,
}

impl Subject {
    fn new(header: &Header, lock: Lock) -> Self {
        Self {
            lock,
            kind: header.kinds.get(&lock).copied(),
            sees_acquisitions: header.sees_acquisitions(),
            sees_waits: header.sees_waits(lock),
            sees_holds: header.sees_holds(lock),
        }
    }

    fn rows(&self, cells: &LockCells<'_>) -> Vec<LockRow> {
        let row = |&(key, cell): &(CellKey, &Cell)| LockRow {
            lock: self.lock,
            kind: self.kind,
            mode: key.mode,
            intent: key.intent,
            op: key.op,
            counts: self.counts(cell),
            wait: self.wait(cell),
            hold: self.hold(cell),
        };
        cells.cells.iter().map(row).collect()
    }

    fn total(&self, sum: &Cell) -> LockTotal {
        LockTotal {
            lock: self.lock,
            kind: self.kind,
            counts: self.counts(sum),
            wait: self.wait(sum),
            hold: self.hold(sum),
            wait_octaves: match self.sees_waits {
                true => sum.wait.octaves(),
                false => Vec::new(),
            },
            hold_octaves: sum.hold.octaves(),
        }
    }

    fn counts(&self, cell: &Cell) -> Counts {
        Counts {
            acquisitions: self.sees_acquisitions.then_some(cell.acquisitions),
            contended: self.sees_waits.then_some(cell.contended),
            releases: self.sees_holds.then_some(cell.releases),
            aborted: self.sees_waits.then_some(cell.aborted),
            aborted_wait_ns: self.sees_waits.then_some(cell.aborted_wait_ns),
            try_failed: cell.try_failed,
        }
    }

    fn wait(&self, cell: &Cell) -> Option<Dist> {
        self.sees_waits.then(|| Dist::new(&cell.wait))
    }

    fn hold(&self, cell: &Cell) -> Option<Dist> {
        self.sees_holds.then(|| Dist::new(&cell.hold))
    }
}

impl Origin {
    fn new(recording: &Recording, duration_ns: u64, reduced: &Reduced) -> Self {
        let header = recording.header.clone();
        Self {
            tool_version: header.tool_version,
            kernel: header.kernel,
            host: header.host,
            level: header.level,
            hooks: header.hooks,
            without_waits: header.without_waits,
            without_holds: header.without_holds,
            command: header.command,
            started_at: header.started_at,
            excerpt: None,
            duration_ns,
            measured_ns: duration_ns.saturating_sub(reduced.duration_ns),
            command_ns: recording.command_ns,
            complete: recording.is_complete(),
            end: recording.end.clone(),
            cut: recording.cut,
        }
    }
}

impl Losses {
    fn new(loss: Loss) -> Self {
        Self {
            loss,
            in_flight_at_end: loss.in_flight_waits.saturating_add(loss.in_flight_holds),
        }
    }
}

impl Dist {
    fn new(distribution: &Distribution) -> Self {
        Self {
            count: distribution.count(),
            sum_ns: distribution.sum_ns(),
            min_ns: distribution.min_ns(),
            max_ns: distribution.max_ns(),
            p50_ns: distribution.percentile_ns(50.0),
            p90_ns: distribution.percentile_ns(90.0),
            p99_ns: distribution.percentile_ns(99.0),
            p999_ns: distribution.percentile_ns(99.9),
        }
    }
}

/// The cells of one lock, and their sum.
struct LockCells<'a> {
    lock: Lock,
    sum: Cell,
    cells: Vec<(CellKey, &'a Cell)>,
}

/// Groups cells by their locks and puts both in order.
fn group(cells: &BTreeMap<CellKey, Cell>) -> Vec<LockCells<'_>> {
    let mut locks: BTreeMap<Lock, LockCells<'_>> = BTreeMap::new();
    for (&key, cell) in cells.iter().filter(|&(_, cell)| *cell != Cell::default()) {
        let entry = locks.entry(key.lock).or_insert_with(|| LockCells {
            lock: key.lock,
            sum: Cell::default(),
            cells: Vec::new(),
        });
        entry.sum.add(cell);
        entry.cells.push((key, cell));
    }
    let mut locks: Vec<_> = locks.into_values().collect();
    locks.sort_by_key(|lock| Reverse(weight(&lock.sum)));
    for lock in &mut locks {
        lock.cells.sort_by_key(|(_, cell)| Reverse(weight(cell)));
    }
    locks
}

/// What rows are ordered by: waits, then holds, then how often.
fn weight(cell: &Cell) -> (u64, u64, u64) {
    (cell.wait.sum_ns(), cell.hold.sum_ns(), cell.acquisitions)
}

fn ops(ops: &BTreeMap<Op, OpCell>) -> Vec<OpRow> {
    let mut rows: Vec<_> = ops
        .iter()
        .filter(|(_, cell)| cell.count != 0)
        .map(|(&op, cell)| OpRow {
            op,
            count: cell.count,
            latency: (!cell.latency.is_empty()).then(|| Dist::new(&cell.latency)),
        })
        .collect();
    rows.sort_by_key(|row| Reverse((row.latency.map_or(0, |latency| latency.sum_ns), row.count)));
    rows
}
