//! kcore-trace measures, on a running Linux kernel, who waits for and who holds the locks of
//! vmalloc and of a /proc/kcore read.
//!
//! The pipeline, one module a stage; no arrow points back:
//!
//! ```text
//! kernel ──► plan ──► loader ──► (programs count in the kernel) ──► snapshot ──► sampling
//!    ▲         ▲                                                                    │
//!  probes: the tables                          exporter ◄───────────────────────────┤
//!                                                                                   ▼
//!                                        report, compare ◄── recording ◄───────── record
//! ```
//!
//! * [`kernel`] gathers facts: what this kernel is and has; [`probes`] are the tables it looks for.
//! * [`plan`] chooses, from facts alone, what is attached and says what is missing.
//! * [`loader`] takes what the plan names out of the `object` of all programs and attaches it, and `contexts`
//!   teaches the programs what may sleep; [`counters`] are what the programs count, `mapped` into our memory
//!   and added up by `sums`, with `histograms` of durations, and [`snapshot`] reads them as differences;
//!   `cgroups` has the names of control groups.
//! * [`sampling`] drives both, one interval after another; [`record`] writes them to a
//!   [`recording`], [`exporter`] sums them up for Prometheus.
//! * [`report`] reads a recording and shows it; [`compare`] sets two against each other.
//! * [`model`] and [`distribution`] are the plain data in between, [`imbalance`] what they say of
//!   nodes, [`blame`] of readers and writers; [`host`] is the fingerprint.
//! * [`stress`] makes a known load.
//!
//! Only `kernel`, `object`, `loader`, `contexts`, `counters`, `mapped` and `histograms` know aya, only `sampling`, `record` and
//! `exporter` know tokio; everything from [`model`] on works on plain data, without root, on any machine.

// Where nobody reads them any more, these panic; `diagnostics::say` does not, nor does a `writeln!`.
#![warn(clippy::print_stderr, clippy::print_stdout)]

mod allocator;
pub mod blame;
mod cgroups;
pub mod cli;
pub mod compare;
mod contexts;
pub mod counters;
pub mod diagnostics;
pub mod distribution;
pub mod exporter;
mod histograms;
pub mod host;
pub mod imbalance;
pub mod kernel;
pub mod loader;
mod mapped;
pub mod model;
pub mod plan;
mod privilege;
pub mod probes;
pub mod record;
pub mod recording;
pub mod report;
pub mod sampling;
pub mod snapshot;
pub mod stress;
mod sums;
mod syscall;
mod table;
pub mod units;
pub mod words;
