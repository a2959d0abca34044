//! Who read /proc/kcore and /proc/vmallocinfo, and what others waited for that: rows of a report, and
//! its view by process.
//!
//! In comes what was measured; out come rows, a table for a person and one for a spreadsheet.
//! Invariant: the rows of a file have all its reads; processes that could not be told apart share one.

use std::cmp::Reverse;
use std::io;

use kcore_trace_ebpf::words::Source;
use serde::Serialize;

use super::Report;
use crate::blame;
use crate::model::{Header, HoldCoverage, Measured, Process, Reader, ReaderKey};
use crate::table::{align, new_table, printable};
use crate::units;

/// Rows that a person is shown beside other tables.
const SHOWN: usize = 10;

/// What one process read of one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReaderRow {
    #[serde(with = "crate::words")]
    pub file: Source,
    /// Null for all that could not be told apart.
    pub process: Option<Process>,
    pub reads: u64,
    pub bytes: u64,
    pub read_ns: u64,
    /// Null where waits for some locks are not seen.
    pub waits: Option<u64>,
    pub wait_ns: Option<u64>,
    /// Null where holds of some locks are not seen.
    pub holds: Option<u64>,
    pub hold_ns: Option<u64>,
    /// Null where holders are not known, or waits for some locks are not seen.
    pub inflicted_waits: Option<u64>,
    pub inflicted_ns: Option<u64>,
}

/// The rows, those that others waited for longest first; nothing if nobody looked.
pub(super) fn rows(header: &Header, measured: &Measured) -> Option<Vec<ReaderRow>> {
    let sees_holds = header.coverage.holds == HoldCoverage::All;
    let sees_waits = header.sees_waits_of_all();
    let knows_holders = sees_waits && blame::shares(header, measured).is_ok();
    header.inside.then(|| {
        let row = |(key, reader): (&ReaderKey, &Reader)| ReaderRow {
            file: key.file,
            process: key.process.clone(),
            reads: reader.reads,
            bytes: reader.bytes,
            read_ns: reader.read_ns,
            waits: sees_waits.then_some(reader.waits),
            wait_ns: sees_waits.then_some(reader.wait_ns),
            holds: sees_holds.then_some(reader.holds),
            hold_ns: sees_holds.then_some(reader.hold_ns),
            inflicted_waits: knows_holders.then_some(reader.inflicted_waits),
            inflicted_ns: knows_holders.then_some(reader.inflicted_ns),
        };
        let mut rows: Vec<_> = measured.readers.iter().map(row).collect();
        rows.sort_by_key(|row| Reverse((row.inflicted_ns, row.read_ns, row.reads)));
        rows
    })
}

/// The readers that others waited for longest; nothing if nobody read.
pub(super) fn block(rows: &[ReaderRow]) -> Option<String> {
    if rows.is_empty() {
        return None;
    }
    let shown = &rows[..rows.len().min(SHOWN)];
    let more = (rows.len() - shown.len()) as u64;
    let below = match more {
        0 => String::new(),
        more => format!(
            "\n\n{}; --by process has all",
            units::counted(more, "more reader")
        ),
    };
    Some(format!("{TITLE}\n\n{}{below}", table(shown)))
}

const TITLE: &str = "Who read, the one that others waited for longest first";

/// The view by process for a person.
pub(super) fn text(report: &Report) -> String {
    match report.readers.as_deref() {
        None => format!("Who read is not known: {}.", super::inside::NOT_SEEN),
        Some([]) => "Nobody read /proc/kcore or /proc/vmallocinfo.".into(),
        Some(rows) => format!("{TITLE}\n\n{}", table(rows)),
    }
}

fn table(rows: &[ReaderRow]) -> String {
    let with_cgroups = rows.iter().any(|row| cgroup(row).is_some());
    let head = [
        "process",
        "file",
        "reads",
        "bytes",
        "time",
        "waited",
        "held",
        "others waited",
    ];
    let mut names: Vec<_> = head.map(String::from).into();
    if with_cgroups {
        names.push("cgroup".into());
    }
    let mut table = new_table(names);
    for row in rows {
        let known = |ns: Option<u64>| ns.map_or("not known".into(), units::duration);
        let mut cells = vec![
            row.process.as_ref().map_or("(others)".into(), |process| {
                format!("{} [{}]", printable(&process.comm), process.pid)
            }),
            row.file.name().into(),
            units::count(row.reads),
            units::bytes(row.bytes),
            units::duration(row.read_ns),
            known(row.wait_ns),
            known(row.hold_ns),
            known(row.inflicted_ns),
        ];
        if with_cgroups {
            let cgroup = cgroup(row).map_or("not known".into(), printable);
            cells.push(format!("  {cgroup}"));
        }
        table.add_row(cells);
    }
    for index in 2..head.len() {
        align(&mut table, index, matches!(index, 2 | 5 | 7));
    }
    table.trim_fmt()
}

fn cgroup(row: &ReaderRow) -> Option<&str> {
    row.process.as_ref()?.cgroup.as_deref()
}

/// The view by process for a spreadsheet.
pub(super) fn csv(report: &Report) -> io::Result<String> {
    let mut table = csv::Writer::from_writer(Vec::new());
    table.write_record([
        "file",
        "pid",
        "comm",
        "cgroup",
        "reads",
        "bytes",
        "read_ns",
        "waits",
        "wait_ns",
        "holds",
        "hold_ns",
        "inflicted_waits",
        "inflicted_ns",
    ])?;
    for row in report.readers.iter().flatten() {
        let process = row.process.as_ref();
        let number = |number: u64| number.to_string();
        let optional = |known: Option<u64>| known.map(number).unwrap_or_default();
        table.write_record([
            row.file.name().to_owned(),
            optional(process.map(|process| process.pid.into())),
            process.map_or(String::new(), |process| process.comm.clone()),
            cgroup(row).unwrap_or_default().to_owned(),
            number(row.reads),
            number(row.bytes),
            number(row.read_ns),
            optional(row.waits),
            optional(row.wait_ns),
            optional(row.holds),
            optional(row.hold_ns),
            optional(row.inflicted_waits),
            optional(row.inflicted_ns),
        ])?;
    }
    let bytes = table.into_inner().map_err(|error| error.into_error())?;
    String::from_utf8(bytes).map_err(io::Error::other)
}
