//! The comparison: what differs between two kernels, how sure that is, and whether it is worse.
//!
//! Owns [`Comparison`], whose JSON form is stable under its `schema` number (fields may be added),
//! and the choice of a renderer. In come two [`Side`]s, each a recording or several repeats of it;
//! out goes text for a person, JSON for a program or a table for a mail. No renderer computes.
//!
//! The method: a number is taken from each sample of a side, which is a repeat or, of a single
//! recording, a part of it. Two groups of samples are compared by Welch's t-interval, on the
//! logarithms of percentiles and means, so that it is the ratio that is estimated, and on shares
//! and times per operation as they are, since these may be zero. Samples are taken to vary at least
//! as much as the number of events in them says ([`Metric`]): repeats may be alike by chance, those
//! of an emulated machine by nature. All intervals of a row together
//! hold with 99 %, by Bonferroni. A difference is found if its interval lies wholly beyond the band:
//! the width of a bucket of the histograms, or what the tool may have added itself.
//!
//! That cost is bounded by the recordings themselves (`Measured::shortest_hold_ns`). An op that takes
//! a lock so many times is prolonged so many times.
//!
//! Invariant: what was not measured on both sides is never judged.

mod blame;
mod inside;
mod markdown;
mod metric;
mod nodes;
mod obstacle;
mod role;
mod rows;
mod shown;
mod side;
mod stats;
mod tables;
mod text;
mod verdict;

use std::io::{self, Write};

use serde::Serialize;

pub use blame::BlameRow;
pub use inside::InsideRows;
pub use metric::{Metric, Point, Scale, Span};
pub use nodes::NodeRow;
pub use obstacle::{Lost, Obstacle};
pub use role::Role;
pub use rows::{Change, LockRow, LockSide, Number, OpRow, OpSide};
pub use side::{Sampling, Side};
pub use verdict::{Finding, Verdict};

use crate::model::Header;

/// Version of the JSON form. A field that changes its meaning or goes away raises it.
const SCHEMA: u32 = 1;

/// What a comparison is written as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Tables for a person.
    #[default]
    Text,
    /// One object with a stable schema.
    Json,
    /// Tables to paste into a mail.
    Markdown,
}

/// Everything that two sides say about each other.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    pub schema: u32,
    pub baseline: Origin,
    pub candidate: Origin,
    pub method: Method,
    pub band: Band,
    /// Why these sides should not be compared; there are some only where that was asked for.
    pub warnings: Vec<Obstacle>,
    /// What a reader should know.
    pub remarks: Vec<String>,
    /// That of the weightiest row.
    pub verdict: Verdict,
    /// What was found, in one sentence.
    pub summary: String,
    /// How many rows have which verdict.
    pub rows: Counts,
    pub locks: Vec<LockRow>,
    pub ops: Vec<OpRow>,
    /// How unevenly the nodes are used, on each side; empty where neither has nodes.
    pub nodes: Vec<NodeRow>,
    /// Who waited for whom, on each side; empty where neither knows.
    pub blame: Vec<BlameRow>,
    /// What happened inside holds and reads, on each side; null where nobody looked.
    pub inside: Option<InsideRows>,
}

/// What was measured on one side.
#[derive(Clone, Debug, Serialize)]
pub struct Origin {
    pub path: String,
    pub recordings: usize,
    /// Recordings without an end.
    pub truncated: usize,
    pub samples: usize,
    pub sampling: Sampling,
    /// Of the first recording, which the others repeat.
    #[serde(flatten)]
    pub header: Header,
    /// Nanoseconds measured, over all recordings.
    pub duration_ns: u64,
    pub loss: Lost,
}

/// How intervals are made.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Method {
    pub name: &'static str,
    /// How sure all intervals of one row are together.
    pub confidence: f64,
    pub correction: &'static str,
}

/// What is no difference.
#[derive(Clone, Debug, Serialize)]
pub struct Band {
    /// The width of a bucket, as a part of the value.
    pub bucket: f64,
    /// The most that the tool added to one wait or hold, in nanoseconds; null if it is not known.
    pub own_cost_ns: Option<u64>,
    /// Why it is not known.
    pub reason: Option<String>,
}

/// Rows by their verdicts. Those of one side only are in none of the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    pub worse: usize,
    pub better: usize,
    pub no_difference: usize,
    pub cannot_tell: usize,
    pub on_one_side: usize,
}

/// Why two sides are not compared.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("these should not be compared; --anyway does it nevertheless{}", list(.0))]
    Obstacles(Vec<Obstacle>),
    #[error(
        "the recordings have nothing in common: no lock and no op was seen on both sides; \
         record the same workload on both"
    )]
    NothingInCommon,
}

fn list(obstacles: &[Obstacle]) -> String {
    let lines = obstacles.iter().map(|obstacle| format!("\n  {obstacle}"));
    lines.collect()
}

impl Comparison {
    /// Compares two sides; with `anyway` also those that should not be compared.
    ///
    /// # Errors
    ///
    /// Every obstacle, unless `anyway`; that no row is on both sides.
    pub fn new(baseline: &Side, candidate: &Side, anyway: bool) -> Result<Self, Refusal> {
        let warnings = obstacle::obstacles(baseline, candidate);
        if !anyway && !warnings.is_empty() {
            return Err(Refusal::Obstacles(warnings));
        }
        let band = Band::new(baseline, candidate);
        let own_cost = band.own_cost_ns.map_or(0.0, |ns| ns as f64);
        let locks = rows::locks(baseline, candidate, own_cost);
        let ops = rows::ops(baseline, candidate, own_cost);
        let rows = Counts::new(&locks, &ops);
        if rows.on_both_sides() == 0 {
            return Err(Refusal::NothingInCommon);
        }
        let verdicts = locks.iter().map(|row| row.verdict);
        let verdicts = verdicts.chain(ops.iter().map(|row| row.verdict));
        let mut comparison = Self {
            schema: SCHEMA,
            baseline: Origin::new(baseline),
            candidate: Origin::new(candidate),
            method: Method {
                name: "Welch's t-interval",
                confidence: verdict::CONFIDENCE,
                correction: "Bonferroni within a row",
            },
            band,
            warnings,
            remarks: remarks(baseline, candidate, &locks),
            verdict: verdicts.min().unwrap_or(Verdict::CannotTell),
            summary: String::new(),
            rows,
            locks,
            ops,
            nodes: nodes::rows(baseline, candidate),
            blame: blame::rows(baseline, candidate),
            inside: inside::rows(baseline, candidate),
        };
        comparison.summary = shown::sentence(&comparison);
        Ok(comparison)
    }

    /// Whether any row is worse.
    pub fn is_regression(&self) -> bool {
        self.verdict == Verdict::Worse
    }
}

fn remarks(baseline: &Side, candidate: &Side, locks: &[LockRow]) -> Vec<String> {
    let mut remarks = obstacle::remarks(baseline, candidate);
    let pools = locks
        .iter()
        .any(|row| row.role == Role::ReadyAreas && row.on_one_side());
    if pools && locks.iter().any(|row| row.role == Role::FreeRanges) {
        remarks.push(Role::POOLS.into());
    }
    remarks
}

/// Writes a comparison.
///
/// `columns` is the width of the terminal, if there is one: it decides how much text stands side by
/// side, and nothing in the other formats.
///
/// # Errors
///
/// Those of `out`, with their kind: a closed pipe can be told from a full disk.
pub fn render(
    comparison: &Comparison,
    format: Format,
    columns: Option<u16>,
    out: &mut dyn Write,
) -> io::Result<()> {
    let rendered = match format {
        Format::Text => text::render(comparison, columns),
        Format::Json => serde_json::to_string_pretty(comparison)? + "\n",
        Format::Markdown => markdown::render(comparison),
    };
    out.write_all(rendered.as_bytes())?;
    out.flush()
}

impl Origin {
    fn new(side: &Side) -> Self {
        Self {
            path: side.path.clone(),
            recordings: side.headers.len(),
            truncated: side.truncated(),
            samples: side.samples.len(),
            sampling: side.sampling,
            header: side.header().clone(),
            duration_ns: side.duration_ns,
            loss: Lost::of(side),
        }
    }
}

impl Band {
    fn new(baseline: &Side, candidate: &Side) -> Self {
        let shortest = |side: &Side| side.total.shortest_hold_ns();
        let both = shortest(baseline).zip(shortest(candidate));
        let unknown = "the shortest hold bounds it, and holds are not seen on both sides";
        Self {
            bucket: metric::BUCKET_WIDTH,
            own_cost_ns: both.map(|(a, b)| a.max(b)),
            reason: both.is_none().then(|| unknown.into()),
        }
    }
}

impl Counts {
    fn new(locks: &[LockRow], ops: &[OpRow]) -> Self {
        let locks = locks.iter().map(|row| (row.verdict, row.on_one_side()));
        let ops = ops.iter().map(|row| (row.verdict, row.on_one_side()));
        let mut counts = Self::default();
        for row in locks.chain(ops) {
            *match row {
                (_, true) => &mut counts.on_one_side,
                (Verdict::Worse, _) => &mut counts.worse,
                (Verdict::Better, _) => &mut counts.better,
                (Verdict::NoDifference, _) => &mut counts.no_difference,
                (Verdict::CannotTell, _) => &mut counts.cannot_tell,
            } += 1;
        }
        counts
    }

    /// Rows that can be compared at all.
    pub(crate) fn on_both_sides(self) -> usize {
        self.worse + self.better + self.no_difference + self.cannot_tell
    }
}
