//! Writing a recording while it is measured.
//!
//! In come a header, intervals and a trailer; out goes a file that is whole after every call.
//! Invariant: `end` is where the last whole frame ends, every frame is written there, and a write
//! that fails is cut off again.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt as _, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::process;

use serde::Serialize;

use super::frame::{self, Kind};
use super::{Checkpoint, INTERVALS_PER_CHECKPOINT, MAGIC, RecordingError, VERSION};
use crate::model::{Header, Interval, Measured, Reduced, Step, Trailer};

/// A recording that holds its header, and for whose sake no other has been replaced yet.
#[derive(Debug)]
pub struct StagedRecording {
    writer: RecordingWriter,
    /// Where it is, which is its place if nothing was there that could be replaced.
    staged: PathBuf,
    target: PathBuf,
}

impl StagedRecording {
    /// Whether a recording can be there, before anything is done for it.
    ///
    /// # Errors
    ///
    /// `Exists` without `force`; `NotAFile`; `NoFolder`.
    pub fn check(path: &Path, force: bool) -> Result<(), RecordingError> {
        let target = target(path)?;
        if !force && target.exists() {
            return Err(create_error(path, io::ErrorKind::AlreadyExists.into()));
        }
        match folder(&target).is_dir() {
            true => Ok(()),
            false => Err(create_error(path, io::ErrorKind::NotFound.into())),
        }
    }

    /// Creates the file, beside its place if `force` is set.
    ///
    /// # Errors
    ///
    /// Those of [`RecordingWriter::create`].
    pub fn create(path: &Path, force: bool, header: &Header) -> Result<Self, RecordingError> {
        let target = target(path)?;
        let staged = if force {
            beside(&target)
        } else {
            target.clone()
        };
        if force {
            // What a killed namesake left behind would be in the way.
            fs::remove_file(&staged).ok();
        }
        let mut recording = Self {
            writer: RecordingWriter::begin(&staged, path)?,
            staged,
            target,
        };
        match recording.writer.write_header(header) {
            Ok(()) => Ok(recording),
            Err(error) => {
                recording.discard();
                Err(error)
            }
        }
    }

    /// Moves it to its place, where it replaces what is there.
    ///
    /// # Errors
    ///
    /// `Io`; the other recording is still there, and this one is not.
    pub fn place(self) -> Result<RecordingWriter, RecordingError> {
        if self.staged != self.target
            && let Err(error) = fs::rename(&self.staged, &self.target)
        {
            let error = self.writer.error(error);
            self.discard();
            return Err(error);
        }
        Ok(self.writer)
    }

    /// Removes it: nothing is measured after all.
    pub fn discard(self) {
        // A leftover is the smaller harm, next to what the caller has to tell.
        fs::remove_file(&self.staged).ok();
    }
}

/// A recording that grows.
#[derive(Debug)]
pub struct RecordingWriter {
    path: PathBuf,
    file: File,
    /// Where the last whole frame ends.
    end: u64,
    sum: Checkpoint,
    frames: Vec<u8>,
}

impl RecordingWriter {
    /// Creates a recording that holds its header and no interval yet.
    ///
    /// An existing one is replaced only if `force` is set, and only once the new one holds its
    /// header: until then it stays as it is.
    ///
    /// # Errors
    ///
    /// `Exists` without `force`; `NotAFile` for a device, a folder, a pipe, or `-`; `NoFolder`; `Full`;
    /// `Io`.
    pub fn create(path: &Path, force: bool, header: &Header) -> Result<Self, RecordingError> {
        StagedRecording::create(path, force, header)?.place()
    }

    fn begin(staged: &Path, path: &Path) -> Result<Self, RecordingError> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(staged)
            .map_err(|source| create_error(path, source))?;
        if let Some(caller) = sudo_caller(|name| env::var(name).ok()) {
            // Where that fails it stays with root, and whoever cannot read it is told what to do.
            give_away(&file, caller).ok();
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            end: 0,
            sum: Checkpoint::default(),
            frames: Vec::new(),
        })
    }

    fn write_header(&mut self, header: &Header) -> Result<(), RecordingError> {
        self.frames.extend(MAGIC);
        self.frames.extend(VERSION.to_le_bytes());
        self.push(Kind::Header, header)?;
        self.write()
    }

    /// Appends an interval, which is in the file when this returns.
    ///
    /// # Errors
    ///
    /// `Full` or `Io`. The file then holds everything before this interval and stays readable; a
    /// later call may succeed, and the total does not contain the interval.
    pub fn append(&mut self, interval: &Interval) -> Result<(), RecordingError> {
        self.push(Kind::Interval, interval)?;
        self.write()?;
        self.sum.total.add(&interval.measured);
        self.ended(interval)
    }

    /// Appends an interval at the level of the last step.
    ///
    /// # Errors
    ///
    /// Those of [`RecordingWriter::append`].
    pub fn append_reduced(&mut self, interval: &Interval) -> Result<(), RecordingError> {
        self.push(Kind::ReducedInterval, interval)?;
        self.write()?;
        self.sum.reduced.add(interval);
        self.ended(interval)
    }

    /// Appends a change of the level, for the intervals after it.
    ///
    /// # Errors
    ///
    /// Those of [`RecordingWriter::append`].
    pub fn step(&mut self, step: &Step) -> Result<(), RecordingError> {
        self.push(Kind::Step, step)?;
        self.write()?;
        self.sum.reduced.step(step.clone());
        Ok(())
    }

    fn ended(&mut self, interval: &Interval) -> Result<(), RecordingError> {
        self.sum.intervals += 1;
        self.sum.end_ns = interval.end_ns;
        if self.sum.intervals.is_multiple_of(INTERVALS_PER_CHECKPOINT) {
            self.write_checkpoint()?;
        }
        Ok(())
    }

    fn write_checkpoint(&mut self) -> Result<(), RecordingError> {
        let pushed = frame::push(&mut self.frames, Kind::Checkpoint, &self.sum);
        pushed.map_err(|error| self.error(error))?;
        self.write()
    }

    /// The sum of the intervals that are in the file, at the level of the header.
    pub fn total(&self) -> &Measured {
        &self.sum.total
    }

    /// What is in the file of lower levels.
    pub fn reduced(&self) -> &Reduced {
        &self.sum.reduced
    }

    /// Ends the recording: the trailer, and what leads to it.
    ///
    /// # Errors
    ///
    /// `Full` or `Io`. The file then holds every interval and reads as one that was cut.
    pub fn finish(mut self, trailer: &Trailer) -> Result<(), RecordingError> {
        let offset = self.end;
        self.push(Kind::Trailer, trailer)?;
        frame::push_footer(&mut self.frames, offset).map_err(|error| self.error(error))?;
        self.write()?;
        self.file.sync_data().map_err(|error| self.error(error))
    }

    fn push<T: Serialize>(&mut self, kind: Kind, value: &T) -> Result<(), RecordingError> {
        frame::push(&mut self.frames, kind, value).map_err(|error| self.error(error))
    }

    /// Moves the frames at hand into the file: all of them or none.
    fn write(&mut self) -> Result<(), RecordingError> {
        let written = self.file.write_all_at(&self.frames, self.end);
        let size = self.frames.len() as u64;
        self.frames.clear();
        match written {
            Ok(()) => {
                self.end += size;
                Ok(())
            }
            Err(error) => {
                // Should this fail too, a reader finds a torn frame and skips it.
                self.file.set_len(self.end).ok();
                Err(self.error(error))
            }
        }
    }

    fn error(&self, source: io::Error) -> RecordingError {
        match source.kind() {
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge => RecordingError::Full {
                path: self.path.clone(),
                offset: self.end,
            },
            _ => RecordingError::io(&self.path, self.end, source),
        }
    }
}

/// The user and the group that called sudo, by its variables.
fn sudo_caller(variable: impl Fn(&str) -> Option<String>) -> Option<[u32; 2]> {
    let number = |name| variable(name)?.parse().ok();
    Some([number("SUDO_UID")?, number("SUDO_GID")?])
}

/// Gives a file of root's to a user: only its owner may read it.
fn give_away(file: &File, [user, group]: [u32; 2]) -> io::Result<()> {
    match file.metadata()?.uid() {
        0 => fchown(file, Some(user), Some(group)),
        _ => Ok(()),
    }
}

fn create_error(path: &Path, source: io::Error) -> RecordingError {
    match source.kind() {
        io::ErrorKind::AlreadyExists => RecordingError::Exists {
            path: path.to_owned(),
        },
        io::ErrorKind::NotFound => RecordingError::NoFolder {
            path: path.to_owned(),
            folder: folder(path).to_owned(),
        },
        _ => RecordingError::io(path, 0, source),
    }
}

/// The folder of a file.
fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// The file that a path leads to: through a symbolic link, so that the link survives a
/// replacement, and never a device, which a replacement would destroy.
fn target(path: &Path) -> Result<PathBuf, RecordingError> {
    let not_a_file = || RecordingError::NotAFile {
        path: path.to_owned(),
    };
    if path == Path::new("-") || path.file_name().is_none() {
        return Err(not_a_file());
    }
    match fs::canonicalize(path) {
        Ok(found) if found.is_file() => Ok(found),
        Ok(_) => Err(not_a_file()),
        Err(_) => Ok(path.to_owned()),
    }
}

/// A hidden name in the same folder, from where a rename is atomic.
fn beside(target: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(target.file_name().unwrap_or_default());
    name.push(format!(".{}.tmp", process::id()));
    target.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_called_sudo_is_known_by_two_numbers() {
        let caller = |user: Option<&str>, group: Option<&str>| {
            let [user, group] = [user, group].map(|it| it.map(str::to_owned));
            sudo_caller(|name| match name {
                "SUDO_UID" => user.clone(),
                _ => group.clone(),
            })
        };
        assert_eq!(caller(Some("1000"), Some("100")), Some([1000, 100]));
        for (user, group) in [
            (None, None),
            (Some("1000"), None),
            (None, Some("100")),
            (Some("me"), Some("100")),
            (Some("-1"), Some("100")),
            (Some(""), Some("")),
        ] {
            assert_eq!(caller(user, group), None);
        }
    }

    #[test]
    fn only_a_file_of_root_is_given_away() {
        let file = tempfile::tempfile().unwrap();
        let before = file.metadata().unwrap();
        give_away(&file, [4711, 4712]).unwrap();
        let after = file.metadata().unwrap();
        let expected = match before.uid() {
            0 => (4711, 4712),
            user => (user, before.gid()),
        };
        assert_eq!((after.uid(), after.gid()), expected);
    }
}
