//! The recording: one append-only file that opens at whatever moment its writer was killed.
//!
//! This page is the specification of the format. Numbers are little-endian; a file is
//!
//! ```text
//! magic    8 bytes  89 6b 63 74 0d 0a 1a 0a    "\x89kct\r\n\x1a\n"
//! version  u16      1
//! frame*
//! ```
//!
//! and a frame is
//!
//! ```text
//! kind     u8
//! length   u32      of the payload, at most 64 MiB
//! crc      u32      CRC-32 (IEEE) of kind, length and payload, in this order
//! payload           MessagePack, structs as maps from field names, unless said otherwise
//! ```
//!
//! | kind | payload | where |
//! | --- | --- | --- |
//! | 1 header | [`Header`], at most 8 MiB | exactly one, the first frame |
//! | 2 interval | [`Interval`] | one for each interval, in order of time |
//! | 3 checkpoint | `intervals`, `end_ns`, `total`, `reduced`: the sums of all intervals before it | after every 64 intervals |
//! | 4 trailer | [`Trailer`]: the sum of all intervals, why it ended | at most one |
//! | 5 footer | offset of the trailer frame, u64, then `kct-end\n` | the last 25 bytes, after a trailer |
//! | 6 step | [`Step`]: from here on another level is measured | where the guard changed it |
//! | 7 reduced interval | [`Interval`] at the level of the last step, in no sum but that of [`Reduced`] | as intervals |
//!
//! The footer is of fixed size, so that a reader finds the totals of a whole file from its end and
//! reads no interval. Without it the reader walks the frames, as far as they are whole and their
//! checksums right, and adds the intervals after the last checkpoint to it. What follows the last
//! whole frame is lost, and the reader says where and how much.
//!
//! Histograms inside are byte strings in the HdrHistogram V2 encoding, of 1 to 2^36 ns with two
//! significant digits and samples in the middles of the kernel's buckets, where a reader puts those that are
//! elsewhere ([`crate::distribution`]). Words of the domain are written as their names.
//!
//! Compatibility: a reader opens every version up to its own. Within a version, a field or a kind
//! of frame may be added; readers skip those that they do not know and take a default for a field
//! that is not there. Anything else, a new word of the domain included, is a new version.
//!
//! Policy: a frame is one write and no byte waits in userspace, so a kill costs at most the frame
//! that was being written. A write that fails is taken back, which leaves a readable file. The mode
//! is 0600, since a recording names commands and the machine; under sudo it is given to who called that.

mod excerpt;
mod frame;
mod parts;
mod reader;
mod writer;

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use excerpt::Excerpt;
pub use reader::{Cut, Intervals, Recording};
pub use writer::{RecordingWriter, StagedRecording};

#[cfg(doc)]
use crate::model::{Header, Interval, Step, Trailer};
use crate::model::{Measured, Reduced};
use crate::units;

const MAGIC: [u8; 8] = *b"\x89kct\r\n\x1a\n";
/// The newest version of the format, which is the one written.
pub const VERSION: u16 = 1;
/// Bytes before the first frame.
const PREAMBLE: u64 = MAGIC.len() as u64 + 2;
const INTERVALS_PER_CHECKPOINT: u64 = 64;

/// Everything up to some interval, so that a reader of a cut file need not add up what is before.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Checkpoint {
    /// Intervals before this frame, of whatever level.
    intervals: u64,
    /// End of the last of them, in nanoseconds from the start of measuring.
    end_ns: u64,
    /// The sum of those at the level of the header.
    total: Measured,
    #[serde(skip_serializing_if = "Reduced::is_empty")]
    reduced: Reduced,
}

/// Why a recording cannot be written or read. Each names the file, and where it is known the byte.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    #[error("recording `{}` exists; --force replaces it, -o names another", path.display())]
    Exists { path: PathBuf },
    #[error(
        "there is no folder for recording `{}`; `mkdir -p {}` makes it",
        path.display(), folder.display()
    )]
    NoFolder { path: PathBuf, folder: PathBuf },
    #[error("`{}` is not a regular file, so no recording can be kept there", path.display())]
    NotAFile { path: PathBuf },
    #[error(
        "`{}` is not a regular file, so it is no recording; name a file that `kcore-trace record` wrote",
        path.display()
    )]
    NoRecording { path: PathBuf },
    #[error("no space left for recording `{}`: it ends at byte {offset}, after its last whole record", path.display())]
    Full { path: PathBuf, offset: u64 },
    #[error("recording `{}` does not exist; `kcore-trace record` writes one", path.display())]
    NotFound { path: PathBuf },
    #[error(
        "permission to read recording `{}` is denied: only who recorded it may; \
         read it with sudo, or `sudo chown $USER` it", path.display()
    )]
    NotReadable { path: PathBuf },
    #[error("recording `{}` is empty (0 bytes)", path.display())]
    Empty { path: PathBuf },
    #[error("`{}` is not a recording of kcore-trace: byte 0 does not begin one", path.display())]
    Foreign { path: PathBuf },
    #[error(
        "recording `{}` has format version {found} (at byte 8) and this kcore-trace reads up to {VERSION}; \
         a newer kcore-trace opens it", path.display()
    )]
    Newer { path: PathBuf, found: u16 },
    #[error("recording `{}` is cut at byte {offset}, inside its header: nothing was recorded", path.display())]
    NoHeader { path: PathBuf, offset: u64 },
    #[error("recording `{}` is corrupt at byte {offset}: {what}", path.display())]
    Corrupt {
        path: PathBuf,
        offset: u64,
        what: String,
    },
    #[error(
        "no interval of recording `{}` begins at {} or later{}: it measured {}",
        path.display(), units::elapsed(*from_ns), and_before(*to_ns), units::elapsed(*duration_ns)
    )]
    NoInterval {
        path: PathBuf,
        from_ns: u64,
        to_ns: u64,
        duration_ns: u64,
    },
    /// The cause is the source, as the system names it.
    #[error("failed at byte {offset} of recording `{}`", path.display())]
    Io {
        path: PathBuf,
        offset: u64,
        source: io::Error,
    },
}

/// The end of a time, unless it has none.
fn and_before(to_ns: u64) -> String {
    match to_ns {
        u64::MAX => String::new(),
        to_ns => format!(" and before {}", units::elapsed(to_ns)),
    }
}

impl RecordingError {
    fn corrupt(path: &Path, offset: u64, what: &str) -> Self {
        Self::Corrupt {
            path: path.to_owned(),
            offset,
            what: what.to_owned(),
        }
    }

    fn io(path: &Path, offset: u64, source: io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            offset,
            source,
        }
    }
}
