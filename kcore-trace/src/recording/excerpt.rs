//! Some time of a recording.
//!
//! In: two times from the start of measuring. Out: the sum of the intervals that begin in between.
//! Invariant: an interval is in it whole or not at all, so that adjacent excerpts add up; of the others
//! only the times are looked at. What a snapshot does not read each time
//! ([`FULL_EVERY`](crate::snapshot::FULL_EVERY)) is in the interval at which it was read.

use super::frame::{Kind, Step as Found};
use super::reader::{Times, unpack, unpack_interval};
use super::{Recording, RecordingError};
use crate::model::{Measured, Reduced, Step};

/// What was measured in some time of a recording.
#[derive(Clone, Debug, Default)]
pub struct Excerpt {
    /// Nanoseconds from the start of measuring to the start of its first interval.
    pub start_ns: u64,
    /// Those to the end of its last one.
    pub end_ns: u64,
    /// The sum of what was recorded at the level of the header; extremes are bounds, at most a bucket of
    /// the kernel away.
    pub total: Measured,
    /// What was recorded at lower levels; the first step may be from before.
    pub reduced: Reduced,
}

impl Excerpt {
    /// Nanoseconds from the start of its first interval to the end of its last one.
    pub fn duration_ns(&self) -> u64 {
        self.end_ns.saturating_sub(self.start_ns)
    }

    /// Those that were measured at the level of the header.
    pub fn measured_ns(&self) -> u64 {
        self.duration_ns().saturating_sub(self.reduced.duration_ns)
    }
}

impl Recording {
    /// All of it.
    pub fn whole(&self) -> Excerpt {
        Excerpt {
            start_ns: 0,
            end_ns: self.duration_ns,
            total: self.total.clone(),
            reduced: self.reduced.clone(),
        }
    }

    /// The intervals that begin at `from_ns` or later and before `to_ns`, in nanoseconds from the start
    /// of measuring.
    ///
    /// # Errors
    ///
    /// `NoInterval`, `Corrupt`, `Io`.
    pub fn between(&self, from_ns: u64, to_ns: u64) -> Result<Excerpt, RecordingError> {
        let mut excerpt = Excerpt::default();
        let mut intervals = 0_u64;
        // The lower level that is measured at the moment.
        let mut level: Option<Step> = None;
        let mut walk = self.walk();
        loop {
            let offset = walk.offset;
            let found = walk
                .step()
                .map_err(|error| RecordingError::io(&self.path, offset, error))?;
            let frame = match found {
                Found::Whole(frame) => frame,
                Found::End => break,
                Found::Torn | Found::Damaged => return Err(self.damaged(offset)),
            };
            if frame.is(Kind::Step) {
                let step: Step = unpack(&self.path, &frame)?;
                if intervals > 0 {
                    excerpt.reduced.step(step);
                } else {
                    level = (step.level != Some(self.header.level)).then_some(step);
                }
            }
            let reduced = frame.is(Kind::ReducedInterval);
            if !reduced && !frame.is(Kind::Interval) {
                continue;
            }
            let Times { start_ns } = unpack(&self.path, &frame)?;
            if start_ns >= to_ns {
                break;
            }
            if start_ns < from_ns {
                continue;
            }
            let interval = unpack_interval(&self.path, &frame)?;
            if intervals == 0 {
                excerpt.start_ns = start_ns;
                excerpt.reduced.steps.extend(level.take());
            }
            intervals += 1;
            excerpt.end_ns = excerpt.end_ns.max(interval.end_ns);
            if reduced {
                excerpt.reduced.add(&interval);
            } else {
                excerpt.total.add(&interval.measured);
            }
        }
        if intervals == 0 {
            return Err(RecordingError::NoInterval {
                path: self.path.clone(),
                from_ns,
                to_ns,
                duration_ns: self.duration_ns,
            });
        }
        // What comes after the last interval did not happen in it.
        excerpt
            .reduced
            .steps
            .retain(|step| step.at_ns < excerpt.end_ns);
        excerpt.total.narrow_extremes();
        excerpt.reduced.total.narrow_extremes();
        Ok(excerpt)
    }
}
