//! Reading a recording, whole or cut.
//!
//! Out come the header and the totals at once, and the intervals on demand. Invariant: nothing is
//! handed out whose checksum is wrong, and what could not be read is named with its place.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::frame::{self, Frame, Kind, Step, Walk};
use super::{Checkpoint, MAGIC, PREAMBLE, RecordingError, VERSION};
use crate::model::{End, Header, Interval, Measured, Reduced, Trailer};

/// A command has 6 MiB of words at most, and all else is short; in memory an empty word takes much more.
const LONGEST_HEADER: usize = 8 << 20;

/// A recording that was opened: what it says in all, and the way to its intervals.
#[derive(Debug)]
pub struct Recording {
    pub header: Header,
    /// The sum of everything that was recorded at the level of the header.
    pub total: Measured,
    /// What was recorded at lower levels.
    pub reduced: Reduced,
    /// Nanoseconds from the start of measuring to its end, or to that of the last interval that
    /// could be read.
    pub duration_ns: u64,
    /// How long the command ran, in nanoseconds, where there was one and it ended.
    pub command_ns: Option<u64>,
    /// Why it ended; nothing if the end is missing.
    pub end: Option<End>,
    /// Where reading had to stop, if the end is missing.
    pub cut: Option<Cut>,
    pub(super) path: PathBuf,
    file: File,
    /// From behind the header to the trailer or, without one, to where the last whole frame ends.
    body: Range<u64>,
}

/// The place at which a recording without an end stops: it is still being written, or its writer
/// was killed, or the bytes from here on are damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Cut {
    /// Where the last whole record ends.
    pub offset: u64,
    /// Bytes after it, which are of no use.
    pub lost_bytes: u64,
}

impl Recording {
    /// Opens a recording and reads its totals.
    ///
    /// Of a whole recording only the header and the trailer are read, however long it is. A cut one
    /// is no error: it has [`Recording::cut`].
    ///
    /// # Errors
    ///
    /// `NotFound`, `NotReadable`, `Empty`, `NoRecording`, `Foreign`, `Newer`, `NoHeader`, `Corrupt`, `Io`.
    pub fn open(path: &Path) -> Result<Self, RecordingError> {
        let source = Source::open(path)?;
        source.check_preamble()?;
        let (header, body) = source.header()?;
        let totals = source.totals(body)?;
        let Source { path, file, .. } = source;
        Ok(Self {
            header,
            total: totals.total,
            reduced: totals.reduced,
            duration_ns: totals.duration_ns,
            command_ns: totals.command_ns,
            end: totals.end,
            cut: totals.cut,
            path,
            file,
            body: body..totals.end_of_body,
        })
    }

    /// Whether it was ended in order.
    pub fn is_complete(&self) -> bool {
        self.end.is_some()
    }

    /// Nanoseconds that were measured at the level of the header.
    pub fn measured_ns(&self) -> u64 {
        self.duration_ns.saturating_sub(self.reduced.duration_ns)
    }

    /// The intervals at the level of the header, in order of time; the first error is the last item.
    pub fn intervals(&self) -> Intervals<'_> {
        Intervals {
            path: &self.path,
            walk: Some(self.walk()),
            time: None,
        }
    }

    /// Those that begin in some time, in nanoseconds from the start of measuring.
    pub(super) fn intervals_between(&self, time: Range<u64>) -> Intervals<'_> {
        Intervals {
            time: Some(time),
            ..self.intervals()
        }
    }

    /// A walk through what is between the header and the trailer: what comes after that is not needed,
    /// and may be damaged.
    pub(super) fn walk(&self) -> Walk<'_> {
        Walk::new(&self.file, self.body.start, self.body.end)
    }
}

/// The intervals of a recording, read one by one.
#[derive(Debug)]
pub struct Intervals<'a> {
    path: &'a Path,
    walk: Option<Walk<'a>>,
    /// When those begin that are wanted; nothing if all are.
    time: Option<Range<u64>>,
}

impl Intervals<'_> {
    fn read(&mut self) -> Result<Option<Interval>, RecordingError> {
        let path = self.path;
        let Some(walk) = &mut self.walk else {
            return Ok(None);
        };
        loop {
            let offset = walk.offset;
            match walk
                .step()
                .map_err(|error| RecordingError::io(path, offset, error))?
            {
                Step::Whole(frame) if frame.is(Kind::Interval) => {
                    if is_wanted(path, &frame, self.time.as_ref())? {
                        return unpack_interval(path, &frame).map(Some);
                    }
                }
                Step::Whole(_) => {}
                Step::End => return Ok(None),
                Step::Torn | Step::Damaged => {
                    return Err(RecordingError::corrupt(
                        path,
                        offset,
                        "the checksum is wrong",
                    ));
                }
            }
        }
    }
}

impl Iterator for Intervals<'_> {
    type Item = Result<Interval, RecordingError>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.read().transpose();
        if !matches!(item, Some(Ok(_))) {
            self.walk = None;
        }
        item
    }
}

/// A file that may be a recording.
struct Source {
    path: PathBuf,
    file: File,
    size: u64,
}

/// What a recording says in all.
struct Totals {
    total: Measured,
    reduced: Reduced,
    duration_ns: u64,
    command_ns: Option<u64>,
    end: Option<End>,
    cut: Option<Cut>,
    /// Where the trailer begins or, without one, the last whole frame ends.
    end_of_body: u64,
}

/// What is found on the way through all frames.
struct Survey {
    /// The checkpoint frame to begin with, or the first frame.
    start: u64,
    trailer: Option<u64>,
    /// Where the last whole frame ends.
    end: u64,
}

impl Source {
    fn open(path: &Path) -> Result<Self, RecordingError> {
        let at_start = |error| open_error(path, error);
        // Looked at before it is opened: opening a pipe waits for a writer.
        let found = std::fs::metadata(path).map_err(at_start)?;
        if !found.is_file() {
            return Err(RecordingError::NoRecording {
                path: path.to_owned(),
            });
        }
        let file = File::open(path).map_err(at_start)?;
        let size = file.metadata().map_err(at_start)?.len();
        Ok(Self {
            path: path.to_owned(),
            file,
            size,
        })
    }

    fn check_preamble(&self) -> Result<(), RecordingError> {
        let path = self.path.clone();
        if self.size == 0 {
            return Err(RecordingError::Empty { path });
        }
        let mut start = Vec::new();
        (&self.file)
            .take(PREAMBLE)
            .read_to_end(&mut start)
            .map_err(|error| RecordingError::io(&self.path, 0, error))?;
        let magic = &start[..start.len().min(MAGIC.len())];
        if !MAGIC.starts_with(magic) {
            return Err(RecordingError::Foreign { path });
        }
        let Some(&[low, high]) = start
            .get(MAGIC.len()..)
            .and_then(|version| version.first_chunk())
        else {
            return Err(self.no_header());
        };
        match u16::from_le_bytes([low, high]) {
            0 => Err(RecordingError::corrupt(
                &path,
                MAGIC.len() as u64,
                "there is no version 0",
            )),
            1..=VERSION => Ok(()),
            found => Err(RecordingError::Newer { path, found }),
        }
    }

    fn no_header(&self) -> RecordingError {
        RecordingError::NoHeader {
            path: self.path.clone(),
            offset: self.size,
        }
    }

    /// The header, and where the frames after it begin.
    fn header(&self) -> Result<(Header, u64), RecordingError> {
        let mut walk = self.walk(PREAMBLE);
        let header = match self.step(&mut walk)? {
            Step::Whole(frame)
                if frame.is(Kind::Header) && frame.payload.len() <= LONGEST_HEADER =>
            {
                unpack(&self.path, &frame)?
            }
            Step::End | Step::Torn => return Err(self.no_header()),
            Step::Whole(_) | Step::Damaged => {
                return Err(RecordingError::corrupt(
                    &self.path,
                    PREAMBLE,
                    "the header is damaged",
                ));
            }
        };
        Ok((header, walk.offset))
    }

    fn totals(&self, body: u64) -> Result<Totals, RecordingError> {
        if let Some(totals) = self.totals_from_footer(body)? {
            return Ok(totals);
        }
        let survey = self.survey(body)?;
        match survey.trailer {
            Some(offset) => Ok(Totals::of(self.trailer(offset)?, offset)),
            None => self.add_up(&survey),
        }
    }

    /// The short way: nothing if there is no footer, or if it or the trailer is damaged.
    fn totals_from_footer(&self, body: u64) -> Result<Option<Totals>, RecordingError> {
        let Some(footer) = self
            .size
            .checked_sub(frame::FOOTER)
            .filter(|&at| at >= body)
        else {
            return Ok(None);
        };
        let mut walk = self.walk(footer);
        let Step::Whole(frame) = self.step(&mut walk)? else {
            return Ok(None);
        };
        let Some(offset) = frame::trailer_offset(&frame).filter(|&at| (body..footer).contains(&at))
        else {
            return Ok(None);
        };
        let mut walk = self.walk(offset);
        match self.step(&mut walk)? {
            Step::Whole(frame) if frame.is(Kind::Trailer) => {
                unpack(&self.path, &frame).map(|trailer| Some(Totals::of(trailer, offset)))
            }
            _ => Ok(None),
        }
    }

    fn trailer(&self, offset: u64) -> Result<Trailer, RecordingError> {
        match self.step(&mut self.walk(offset))? {
            Step::Whole(frame) => unpack(&self.path, &frame),
            _ => Err(RecordingError::corrupt(
                &self.path,
                offset,
                "the trailer changes while it is read",
            )),
        }
    }

    fn survey(&self, body: u64) -> Result<Survey, RecordingError> {
        let mut walk = self.walk(body);
        let (mut start, mut trailer) = (body, None);
        while let Step::Whole(frame) = self.step(&mut walk)? {
            if frame.is(Kind::Checkpoint) {
                start = frame.offset;
            } else if frame.is(Kind::Trailer) {
                trailer = Some(frame.offset);
            }
        }
        Ok(Survey {
            start,
            trailer,
            end: walk.offset,
        })
    }

    /// The last checkpoint and the intervals after it.
    fn add_up(&self, survey: &Survey) -> Result<Totals, RecordingError> {
        let mut sum = Checkpoint::default();
        let mut walk = Walk::new(&self.file, survey.start, survey.end);
        while let Step::Whole(frame) = self.step(&mut walk)? {
            if frame.is(Kind::Checkpoint) {
                sum = unpack(&self.path, &frame)?;
            } else if frame.is(Kind::Interval) {
                let interval = unpack_interval(&self.path, &frame)?;
                sum.end_ns = interval.end_ns;
                sum.total.add(&interval.measured);
            } else if frame.is(Kind::ReducedInterval) {
                let interval = unpack_interval(&self.path, &frame)?;
                sum.end_ns = interval.end_ns;
                sum.reduced.add(&interval);
            } else if frame.is(Kind::Step) {
                sum.reduced.step(unpack(&self.path, &frame)?);
            }
        }
        Ok(Totals {
            total: sum.total,
            reduced: sum.reduced,
            duration_ns: sum.end_ns,
            command_ns: None,
            end: None,
            cut: Some(Cut {
                offset: survey.end,
                lost_bytes: self.size - survey.end,
            }),
            end_of_body: survey.end,
        })
    }

    fn walk(&self, offset: u64) -> Walk<'_> {
        Walk::new(&self.file, offset, self.size)
    }

    fn step<'a>(&self, walk: &'a mut Walk<'_>) -> Result<Step<'a>, RecordingError> {
        let offset = walk.offset;
        walk.step()
            .map_err(|error| RecordingError::io(&self.path, offset, error))
    }
}

impl Totals {
    /// Those of a whole recording, whose trailer is at `offset`.
    fn of(trailer: Trailer, offset: u64) -> Self {
        Self {
            total: trailer.total,
            reduced: trailer.reduced,
            duration_ns: trailer.duration_ns,
            command_ns: trailer.command_ns,
            end: Some(trailer.end),
            cut: None,
            end_of_body: offset,
        }
    }
}

fn open_error(path: &Path, error: io::Error) -> RecordingError {
    let path = path.to_owned();
    match error.kind() {
        io::ErrorKind::NotFound => RecordingError::NotFound { path },
        io::ErrorKind::PermissionDenied => RecordingError::NotReadable { path },
        _ => RecordingError::io(&path, 0, error),
    }
}

/// The value in a frame. Its checksum is right, so what does not fit was written that way.
pub(super) fn unpack<T: DeserializeOwned>(
    path: &Path,
    frame: &Frame<'_>,
) -> Result<T, RecordingError> {
    rmp_serde::from_slice(frame.payload)
        .map_err(|error| RecordingError::corrupt(path, frame.offset, &error.to_string()))
}

/// When an interval was, without what is counted.
#[derive(Deserialize)]
pub(super) struct Times {
    pub(super) start_ns: u64,
}

/// Whether the interval in a frame begins in that time, if there is one.
fn is_wanted(
    path: &Path,
    frame: &Frame<'_>,
    time: Option<&Range<u64>>,
) -> Result<bool, RecordingError> {
    let Some(time) = time else {
        return Ok(true);
    };
    let Times { start_ns } = unpack(path, frame)?;
    Ok(time.contains(&start_ns))
}

/// The interval in a frame, of whatever level.
pub(super) fn unpack_interval(path: &Path, frame: &Frame<'_>) -> Result<Interval, RecordingError> {
    let interval: Interval = unpack(path, frame)?;
    if interval.end_ns < interval.start_ns {
        let what = "an interval ends before it begins";
        return Err(RecordingError::corrupt(path, frame.offset, what));
    }
    Ok(interval)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recording_of_somebody_else_is_refused_with_what_can_be_done() {
        let denied = io::ErrorKind::PermissionDenied.into();
        let error = open_error(Path::new("x.kct"), denied).to_string();
        assert_eq!(
            error,
            "permission to read recording `x.kct` is denied: only who recorded it may; \
             read it with sudo, or `sudo chown $USER` it"
        );
    }
}
