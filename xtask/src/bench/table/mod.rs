//! The tables that a run ends with.
//!
//! In: the ledger. Out: a line for each row on each kernel, as text or as data: [`rows`] are the
//! instructions that watching adds, [`holds`] what is said of a hold of known length, [`scale`] what
//! recording takes for itself, [`host`] the running kernel, [`day`] the recordings of a day.
//! Invariant: a row that was asked for is there, measured or with its reason.

mod day;
mod holds;
mod host;
mod rows;
mod scale;

pub(super) use day::Days;
pub(super) use holds::Holds;
pub(super) use host::Host;
pub(super) use rows::Table;
pub(super) use scale::Scales;

/// A number as a cell of a table, or a dash.
pub(super) fn number(number: Option<f64>, digits: usize, unit: &str) -> String {
    number.map_or_else(|| "–".to_owned(), |n| format!("{n:.digits$}{unit}"))
}
