//! A recording of a day, made from a short one.
//!
//! In: a recording and a path. Out: a recording at that path of as many intervals of a second as a
//! day has, those of the short one in turns, written by the tool's own writer.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use kcore_trace::model::{End, Header, Interval, Trailer};
use kcore_trace::recording::{Recording, RecordingWriter};

use super::Wrapped;

pub(super) const NAME: &str = "--bench-day";

const SECOND_NS: u64 = 1_000_000_000;
const SECONDS: u64 = 24 * 3600;

pub(super) fn run(wrapped: &Wrapped) -> Result<u8> {
    let short = Recording::open(Path::new(wrapped.argument(0)?))?;
    let intervals = short.intervals().collect::<Result<Vec<_>, _>>()?;
    ensure!(!intervals.is_empty(), "the short recording has no interval");
    let header = Header {
        interval_ns: SECOND_NS,
        ..short.header
    };
    let mut writer = RecordingWriter::create(Path::new(wrapped.argument(1)?), true, &header)?;
    for second in 0..SECONDS {
        let interval = &intervals[second as usize % intervals.len()];
        let interval = Interval {
            start_ns: second * SECOND_NS,
            end_ns: (second + 1) * SECOND_NS,
            measured: interval.measured.clone(),
        };
        writer.append(&interval)?;
    }
    let trailer = Trailer {
        end: End::Duration,
        duration_ns: SECONDS * SECOND_NS,
        command_ns: None,
        total: writer.total().clone(),
        reduced: writer.reduced().clone(),
    };
    writer.finish(&trailer).context("the day has no end")?;
    Ok(0)
}
