//! A recording in parts.
//!
//! Out come a few measurements that add up to the total, or to that of an excerpt. Invariant: however
//! long the recording is, no more intervals are read than there are between some checkpoints; those of
//! a long one are passed over, and its parts are differences of checkpoints. Of an excerpt all intervals
//! are read, since it had to be added up from them.

use std::ops::Range;

use serde::Deserialize;

use super::frame::{Kind, Step};
use super::reader::unpack;
use super::{Checkpoint, Excerpt, INTERVALS_PER_CHECKPOINT, Intervals, Recording, RecordingError};
use crate::model::{Measured, Reduced};

/// Checkpoints in a part, at least, for parts to be differences of checkpoints: with fewer they
/// would be of too different lengths.
const CHECKPOINTS_PER_PART: u64 = 2;

/// The end of a checkpoint, without what is counted.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct End {
    end_ns: u64,
}

impl Recording {
    /// The recording in at most so many parts of about equal length, each of one interval at least.
    /// An empty recording is one part.
    ///
    /// # Errors
    ///
    /// `Corrupt`, `Io`.
    pub fn parts(&self, most: u64) -> Result<Vec<Measured>, RecordingError> {
        let intervals = self.duration_ns / self.header.interval_ns.max(1);
        let count = intervals.clamp(1, most.max(1));
        let parts = if intervals / INTERVALS_PER_CHECKPOINT >= count * CHECKPOINTS_PER_PART {
            self.parts_of_checkpoints(count)?
        } else {
            parts_of_intervals(self.intervals(), &(0..self.duration_ns), count)?
        };
        Ok(worth_comparing(parts, &self.reduced))
    }

    /// The same of an excerpt of it.
    ///
    /// # Errors
    ///
    /// `Corrupt`, `Io`.
    pub fn parts_of(&self, excerpt: &Excerpt, most: u64) -> Result<Vec<Measured>, RecordingError> {
        let time = excerpt.start_ns..excerpt.end_ns;
        let intervals = excerpt.duration_ns() / self.header.interval_ns.max(1);
        let count = intervals.clamp(1, most.max(1));
        let intervals = self.intervals_between(time.clone());
        let mut parts = parts_of_intervals(intervals, &time, count)?;
        parts.iter_mut().for_each(Measured::narrow_extremes);
        Ok(worth_comparing(parts, &excerpt.reduced))
    }

    fn parts_of_checkpoints(&self, count: u64) -> Result<Vec<Measured>, RecordingError> {
        let io = |offset, error| RecordingError::io(&self.path, offset, error);
        // A checkpoint ends a part if the next one would be farther from where it should end.
        let half = u128::from(self.header.interval_ns) * u128::from(INTERVALS_PER_CHECKPOINT / 2);
        let mut parts = Vec::new();
        let mut before = Measured::default();
        let mut walk = self.walk();
        while (parts.len() as u64) + 1 < count {
            walk.pass_to(Kind::Checkpoint)
                .map_err(|error| io(walk.offset, error))?;
            let offset = walk.offset;
            let frame = match walk.step().map_err(|error| io(offset, error))? {
                Step::Whole(frame) => frame,
                Step::End => break,
                Step::Torn | Step::Damaged => return Err(self.damaged(offset)),
            };
            let End { end_ns } = unpack(&self.path, &frame)?;
            let due = u128::from(self.duration_ns) * (parts.len() as u128 + 1) / u128::from(count);
            if u128::from(end_ns) + half < due {
                continue;
            }
            let Checkpoint { total, .. } = unpack(&self.path, &frame)?;
            parts.push(self.difference(&total, &before, offset)?);
            before = total;
        }
        parts.push(self.difference(&self.total, &before, walk.offset)?);
        Ok(parts)
    }

    fn difference(
        &self,
        later: &Measured,
        earlier: &Measured,
        offset: u64,
    ) -> Result<Measured, RecordingError> {
        let less = || RecordingError::corrupt(&self.path, offset, "counts decrease");
        later.since(earlier).ok_or_else(less)
    }

    pub(super) fn damaged(&self, offset: u64) -> RecordingError {
        RecordingError::corrupt(&self.path, offset, "the checksum is wrong")
    }
}

/// Intervals of some time, in so many parts of it.
fn parts_of_intervals(
    intervals: Intervals<'_>,
    time: &Range<u64>,
    count: u64,
) -> Result<Vec<Measured>, RecordingError> {
    let duration_ns = u128::from(time.end.saturating_sub(time.start).max(1));
    let mut parts = vec![Measured::default(); count as usize];
    for interval in intervals {
        let interval = interval?;
        let since_ns = interval.start_ns.saturating_sub(time.start);
        let index = u128::from(since_ns) * u128::from(count) / duration_ns;
        // The last interval may be cut short, and so begin where no whole one has room.
        let index = index.min(u128::from(count) - 1);
        parts[index as usize].add(&interval.measured);
    }
    Ok(parts)
}

/// Of a part in which only a lower level was measured there is nothing to say.
fn worth_comparing(mut parts: Vec<Measured>, reduced: &Reduced) -> Vec<Measured> {
    if !reduced.is_empty() {
        parts.retain(|part| *part != Measured::default());
    }
    parts
}
