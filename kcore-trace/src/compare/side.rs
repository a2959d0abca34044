//! One side of a comparison: a recording, or several repeats of it.
//!
//! In comes a path, out come the header of each recording and the samples whose spread says how
//! sure a difference is: the totals of repeats or, of a single recording, its intervals. Invariant:
//! nothing but totals is read of repeats.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::Serialize;

use crate::model::{End, Header, Loss, Measured, saturating_sum};
use crate::recording::{Excerpt, Recording};

/// The most samples that one recording is divided into. More of them would be shorter, so that they
/// hold fewer events and depend more on each other, and the t distribution gains little from them.
const MOST_PARTS: u64 = 20;
/// How recordings in a folder end.
const EXTENSION: &str = "kct";

/// What the samples of a side are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sampling {
    /// Recordings, each a run of its own.
    Repeats,
    /// Parts of one recording, which share whatever was particular to that run.
    Intervals,
}

/// One side, as it was read.
#[derive(Debug)]
pub struct Side {
    /// The path as it was given.
    pub(super) path: String,
    /// Where that is, whatever leads to it; nothing if it is gone by now.
    place: Option<PathBuf>,
    /// The time that is compared of each recording, in nanoseconds from the start of measuring;
    /// nothing if all of it is.
    pub(super) time: Option<Range<u64>>,
    /// One for each recording; the first speaks for all.
    pub(super) headers: Vec<Header>,
    pub(super) sampling: Sampling,
    pub(super) samples: Vec<Measured>,
    /// The sum over all recordings.
    pub(super) total: Measured,
    /// Nanoseconds measured, over all recordings, at the level of the header.
    pub(super) duration_ns: u64,
    /// Nanoseconds at a lower level.
    pub(super) reduced_ns: u64,
    /// Why each recording ended; nothing where that is missing.
    pub(super) ends: Vec<Option<End>>,
}

impl Side {
    /// Opens a recording, or all recordings in a folder as repeats of one another; of each the
    /// intervals that begin in that time, if there is one.
    ///
    /// # Errors
    ///
    /// The folder cannot be read or holds no recording; a recording cannot be opened or read, or has
    /// no interval in that time.
    pub fn open(path: &Path, time: Option<Range<u64>>) -> Result<Self> {
        let recordings: Vec<_> = files(path)?
            .iter()
            .map(|file| Recording::open(file))
            .collect::<Result<_, _>>()?;
        let excerpt = |recording: &Recording| match &time {
            Some(time) => recording.between(time.start, time.end),
            None => Ok(recording.whole()),
        };
        let excerpts: Vec<_> = recordings.iter().map(excerpt).collect::<Result<_, _>>()?;
        let (sampling, samples) = match (recordings.as_slice(), excerpts.as_slice()) {
            ([single], [excerpt]) => (
                Sampling::Intervals,
                match time {
                    Some(_) => single.parts_of(excerpt, MOST_PARTS)?,
                    None => single.parts(MOST_PARTS)?,
                },
            ),
            (_, several) => {
                let totals = several.iter().map(|excerpt| excerpt.total.clone());
                (Sampling::Repeats, totals.collect())
            }
        };
        let mut total = Measured::default();
        for excerpt in &excerpts {
            total.add(&excerpt.total);
        }
        // These are a state to the model; of repeats each has its own end.
        total.loss = Loss {
            in_flight_waits: sum(&excerpts, |loss| loss.in_flight_waits),
            in_flight_holds: sum(&excerpts, |loss| loss.in_flight_holds),
            ..total.loss
        };
        Ok(Self {
            path: path.display().to_string(),
            place: fs::canonicalize(path).ok(),
            sampling,
            samples,
            total,
            time,
            duration_ns: saturating_sum(excerpts.iter().map(Excerpt::measured_ns)),
            reduced_ns: saturating_sum(excerpts.iter().map(|one| one.reduced.duration_ns)),
            ends: recordings.iter().map(|one| one.end.clone()).collect(),
            headers: recordings.into_iter().map(|one| one.header).collect(),
        })
    }

    /// Whether the other side is the same file or folder.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.place.is_some() && self.place == other.place
    }

    pub(super) fn header(&self) -> &Header {
        &self.headers[0]
    }

    /// Recordings whose end is missing.
    pub(super) fn truncated(&self) -> usize {
        self.ends.iter().filter(|end| end.is_none()).count()
    }

    /// Acquisitions, or those that are seen.
    pub(super) fn seen(&self) -> u64 {
        let cells = self.total.cells.values();
        saturating_sum(cells.map(|cell| cell.acquisitions.max(cell.contended)))
    }
}

fn sum(excerpts: &[Excerpt], number: fn(&Loss) -> u64) -> u64 {
    let losses = excerpts.iter().map(|excerpt| &excerpt.total.loss);
    saturating_sum(losses.map(number))
}

/// The recordings that a path stands for, in the order of their names.
fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let unreadable = || format!("failed to list the recordings in `{}`", path.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(path).with_context(unreadable)? {
        let file = entry.with_context(unreadable)?.path();
        let hidden = file
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && file.extension().is_some_and(|ending| ending == EXTENSION) {
            files.push(file);
        }
    }
    if files.is_empty() {
        bail!(
            "`{}` holds no recording: repeats are files that end in .{EXTENSION}",
            path.display()
        );
    }
    files.sort();
    Ok(files)
}
