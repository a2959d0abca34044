//! Frames: what a recording is made of below its meaning.
//!
//! Owns the layout of a frame, its checksum, and the walk from one to the next. In comes a file, of
//! which nothing is trusted; out come payloads whose checksum is right.
//!
//! Invariant: no length is believed before it is known to lie inside the file and below
//! [`MAX_PAYLOAD`], so that a damaged one costs no memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use serde::Serialize;

/// What a frame holds. A number that is not here belongs to a later tool and is skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Header = 1,
    Interval = 2,
    Checkpoint = 3,
    Trailer = 4,
    Footer = 5,
    Step = 6,
    ReducedInterval = 7,
}

/// Kind, length and checksum.
const HEAD: usize = 9;
const MAX_PAYLOAD: u64 = 64 << 20;
const FOOTER_MAGIC: [u8; 8] = *b"kct-end\n";
const FOOTER_PAYLOAD: usize = size_of::<u64>() + FOOTER_MAGIC.len();
/// Size of a footer frame, which is the same in every file.
pub(super) const FOOTER: u64 = (HEAD + FOOTER_PAYLOAD) as u64;

/// Appends a frame to `bytes`; on an error they are as they were.
pub(super) fn push<T: Serialize>(bytes: &mut Vec<u8>, kind: Kind, value: &T) -> io::Result<()> {
    let start = bytes.len();
    bytes.resize(start + HEAD, 0);
    let mut packer = rmp_serde::Serializer::new(&mut *bytes).with_struct_map();
    let packed = value.serialize(&mut packer).map_err(io::Error::other);
    let sealed = packed.and_then(|()| seal(bytes, start, kind as u8));
    if sealed.is_err() {
        bytes.truncate(start);
    }
    sealed
}

/// Appends the footer that leads from the end of the file to the trailer frame at `trailer`.
pub(super) fn push_footer(bytes: &mut Vec<u8>, trailer: u64) -> io::Result<()> {
    let start = bytes.len();
    bytes.resize(start + HEAD, 0);
    bytes.extend(trailer.to_le_bytes());
    bytes.extend(FOOTER_MAGIC);
    seal(bytes, start, Kind::Footer as u8)
}

/// Fills in the head of the frame that begins at `start` and reaches to the end of `bytes`.
fn seal(bytes: &mut [u8], start: usize, kind: u8) -> io::Result<()> {
    let (head, payload) = bytes[start..].split_at_mut(HEAD);
    if payload.len() as u64 > MAX_PAYLOAD {
        return Err(io::Error::other(
            "a record is larger than the format allows",
        ));
    }
    let length = (payload.len() as u32).to_le_bytes();
    head[0] = kind;
    head[1..5].copy_from_slice(&length);
    head[5..].copy_from_slice(&checksum(kind, length, payload).to_le_bytes());
    Ok(())
}

fn checksum(kind: u8, length: [u8; 4], payload: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&[kind]);
    crc.update(&length);
    crc.update(payload);
    crc.finalize()
}

/// A frame whose checksum is right.
#[derive(Debug)]
pub(super) struct Frame<'a> {
    /// Where it begins.
    pub(super) offset: u64,
    pub(super) kind: u8,
    pub(super) payload: &'a [u8],
}

impl Frame<'_> {
    pub(super) fn is(&self, kind: Kind) -> bool {
        self.kind == kind as u8
    }
}

/// What stands at some place of a file.
#[derive(Debug)]
pub(super) enum Step<'a> {
    Whole(Frame<'a>),
    /// Nothing: the file ends here.
    End,
    /// A frame that reaches beyond the end of the file.
    Torn,
    /// Bytes that are no frame.
    Damaged,
}

/// A walk from frame to frame. It reads at places of its own, so that several can go at once.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    file: &'a File,
    /// Where the next frame begins.
    pub(super) offset: u64,
    /// Where the file ends, or ended when it was opened.
    end: u64,
    payload: Vec<u8>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(file: &'a File, offset: u64, end: u64) -> Self {
        Self {
            file,
            offset,
            end,
            payload: Vec::new(),
        }
    }

    /// The frame at `offset`, which then stands behind it if it is whole.
    pub(super) fn step(&mut self) -> io::Result<Step<'_>> {
        let head = match self.head()? {
            Ok(head) => head,
            Err(step) => return Ok(step),
        };
        self.payload.resize(head.size() as usize, 0);
        let offset = self.offset;
        self.file
            .read_exact_at(&mut self.payload, offset + HEAD as u64)?;
        if checksum(head.kind, head.length, &self.payload) != head.crc {
            return Ok(Step::Damaged);
        }
        self.offset = head.next(offset);
        Ok(Step::Whole(Frame {
            offset,
            kind: head.kind,
            payload: &self.payload,
        }))
    }

    /// Passes frames up to the next one of a kind, without reading what they hold. A damaged one on
    /// the way is not noticed before a checksum behind it is wrong.
    pub(super) fn pass_to(&mut self, kind: Kind) -> io::Result<()> {
        while let Ok(head) = self.head()?
            && head.kind != kind as u8
        {
            self.offset = head.next(self.offset);
        }
        Ok(())
    }

    /// The head of the frame at `offset`, or why there is none.
    fn head(&self) -> io::Result<Result<Head, Step<'static>>> {
        let rest = self.end.saturating_sub(self.offset);
        if rest == 0 {
            return Ok(Err(Step::End));
        }
        let Some(rest) = rest.checked_sub(HEAD as u64) else {
            return Ok(Err(Step::Torn));
        };
        let mut bytes = [0; HEAD];
        self.file.read_exact_at(&mut bytes, self.offset)?;
        let [kind, l0, l1, l2, l3, c0, c1, c2, c3] = bytes;
        let head = Head {
            kind,
            length: [l0, l1, l2, l3],
            crc: u32::from_le_bytes([c0, c1, c2, c3]),
        };
        Ok(if head.size() > MAX_PAYLOAD {
            Err(Step::Damaged)
        } else if head.size() > rest {
            Err(Step::Torn)
        } else {
            Ok(head)
        })
    }
}

/// What stands before a payload.
struct Head {
    kind: u8,
    length: [u8; 4],
    crc: u32,
}

impl Head {
    fn size(&self) -> u64 {
        u32::from_le_bytes(self.length).into()
    }

    /// Where the frame behind the one at `offset` begins.
    fn next(&self, offset: u64) -> u64 {
        offset + HEAD as u64 + self.size()
    }
}

/// Where a footer says that the trailer is.
pub(super) fn trailer_offset(footer: &Frame<'_>) -> Option<u64> {
    let (offset, magic) = footer.payload.split_first_chunk()?;
    (footer.is(Kind::Footer) && magic == FOOTER_MAGIC).then(|| u64::from_le_bytes(*offset))
}
