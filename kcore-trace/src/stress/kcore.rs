//! Load by reads of `/proc/kcore`: one op is one read of 4096 bytes of a vmalloc area.
//!
//! Owns the search for a page to read. The area is one of our own, a BPF map that is kept open, so
//! it cannot go away; where it lies is not told by the kernel (`/proc/vmallocinfo` hides addresses
//! unless a sysctl is set), so the map is filled with a mark that is searched for through
//! `/proc/kcore` from the start of the vmalloc segment, where the kernel allocates first.
//!
//! Invariant: the position of a [`Page`] is a position in the file, valid while the page lives; the
//! address behind it is never shown.

use std::fs::{self, File};
use std::io::{self, PipeReader, PipeWriter, Read as _};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr::null_mut;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::maps;
use super::memory::{Mapping, page_bytes};
use super::work::Work;

pub(super) const PATH: &str = "/proc/kcore";

/// Bytes that one op reads, whatever the size of a page is.
const READ_BYTES: usize = 4096;

/// A page of vmalloc memory that stays allocated while this lives.
#[derive(Debug)]
pub(super) struct Page {
    /// Where it is in `/proc/kcore`.
    pub(super) position: u64,
    /// Reads that it took to find it.
    pub(super) reads: u64,
    _map: OwnedFd,
}

impl Page {
    /// Allocates a page and finds it.
    pub(super) fn find() -> Result<Self> {
        let file = File::open(PATH).with_context(|| format!("failed to open `{PATH}`"))?;
        let map =
            maps::create().context("failed to create a BPF map to read through `/proc/kcore`")?;
        let mark = mark();
        maps::fill(&map, mark).context("failed to fill a BPF map")?;
        let segment = vmalloc_segment(&file)?;
        let (position, reads) = search(&file, segment, mark)?;
        Ok(Self {
            position,
            reads,
            _map: map,
        })
    }
}

/// A word that no other vmalloc memory holds: runs differ by their process or by their time, and
/// it is never 0, which holes read as.
fn mark() -> u64 {
    let time = std::time::UNIX_EPOCH
        .elapsed()
        .map_or(0, |time| time.as_nanos() as u64);
    // An odd factor spreads the process number over the word.
    (time ^ u64::from(std::process::id()).wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1
}

/// A program header: a range of kernel memory and where it is in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    position: u64,
    bytes: u64,
}

/// The segment that is all of vmalloc.
///
/// It is the one whose size is `VmallocTotal`: the kernel derives both from the same two bounds, on
/// every architecture.
fn vmalloc_segment(file: &File) -> Result<Segment> {
    let meminfo = fs::read_to_string("/proc/meminfo").context("failed to read `/proc/meminfo`")?;
    let total_kib = maps::meminfo_kib(&meminfo, "VmallocTotal")
        .context("`/proc/meminfo` does not tell the size of the vmalloc range")?;
    segments(file)?
        .into_iter()
        .find(|segment| segment.bytes >> 10 == total_kib)
        .with_context(|| format!("no segment of `{PATH}` has the size of the vmalloc range"))
}

/// Reads the program headers of an ELF core file.
fn segments(file: &File) -> Result<Vec<Segment>> {
    let mut header = [0; 64];
    file.read_exact_at(&mut header, 0)
        .with_context(|| format!("failed to read `{PATH}`"))?;
    let table = Table::parse(&header).with_context(|| format!("`{PATH}` is no 64-bit ELF file"))?;
    let mut bytes = vec![0; table.entries * table.entry_bytes];
    file.read_exact_at(&mut bytes, table.position)
        .with_context(|| format!("failed to read the program headers of `{PATH}`"))?;
    Ok(bytes
        .chunks_exact(table.entry_bytes)
        .filter_map(load_segment)
        .collect())
}

/// Where an ELF file has its program headers.
#[derive(Debug, PartialEq, Eq)]
struct Table {
    position: u64,
    entry_bytes: usize,
    entries: usize,
}

impl Table {
    fn parse(header: &[u8]) -> Option<Self> {
        const CLASS_64: u8 = 2;
        const ENTRY_BYTES: usize = 56;

        if !header.starts_with(b"\x7fELF") || header.get(4) != Some(&CLASS_64) {
            return None;
        }
        let entry_bytes = usize::from(u16::from_ne_bytes(field(header, 54)?));
        let entries = usize::from(u16::from_ne_bytes(field(header, 56)?));
        let position = u64::from_ne_bytes(field(header, 32)?);
        (entry_bytes >= ENTRY_BYTES).then_some(Self {
            position,
            entry_bytes,
            entries,
        })
    }
}

/// The segment of a program header, where it is of type `PT_LOAD`.
fn load_segment(header: &[u8]) -> Option<Segment> {
    const PT_LOAD: u32 = 1;

    (u32::from_ne_bytes(field(header, 0)?) == PT_LOAD).then_some(())?;
    let position = u64::from_ne_bytes(field(header, 8)?);
    let bytes = u64::from_ne_bytes(field(header, 40)?);
    Some(Segment { position, bytes })
}

/// The bytes of a field.
fn field<const N: usize>(bytes: &[u8], start: usize) -> Option<[u8; N]> {
    bytes.get(start..)?.first_chunk().copied()
}

/// Looks at the first word of every eighth page: a map is longer than that.
fn search(file: &File, segment: Segment, mark: u64) -> Result<(u64, u64)> {
    const LIMIT: Duration = Duration::from_secs(10);

    let stride = page_bytes() as u64 * u64::from(maps::ENTRIES / 2);
    let start = Instant::now();
    let mut word = [0; size_of::<u64>()];
    for step in 0..segment.bytes / stride {
        let position = segment.position + step * stride;
        file.read_exact_at(&mut word, position)
            .with_context(|| format!("failed to read vmalloc memory through `{PATH}`"))?;
        if u64::from_ne_bytes(word) == mark {
            return Ok((position, step + 1));
        }
        ensure!(
            start.elapsed() < LIMIT,
            "found no page of ours in `{PATH}` within {LIMIT:?}"
        );
    }
    bail!("found no page of ours in `{PATH}`")
}

/// How an op reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reading {
    pub(super) via: Via,
    /// Whether the memory that is read into was never touched: the kernel's write faults, in every
    /// op.
    pub(super) untouched: bool,
}

/// The system call of a read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Via {
    /// Into one buffer.
    #[default]
    Read,
    /// Into two buffers.
    Readv,
    /// Into a pipe.
    Splice,
}

/// One op: read the page.
pub(super) struct Kcore {
    file: File,
    position: libc::off_t,
    reading: Reading,
    buffer: Mapping,
    /// Its ends to read from and to write to, where it is read into.
    pipe: Option<(PipeReader, PipeWriter)>,
}

impl Kcore {
    pub(super) fn open(position: u64, reading: Reading) -> io::Result<Self> {
        let mut buffer = Mapping::private(READ_BYTES)?;
        buffer.as_mut_slice().fill(1);
        let position = position.try_into().map_err(io::Error::other)?;
        Ok(Self {
            file: File::open(PATH)?,
            position,
            reading,
            buffer,
            pipe: match reading.via {
                Via::Splice => Some(io::pipe()?),
                Via::Read | Via::Readv => None,
            },
        })
    }

    fn read(&mut self) -> io::Result<usize> {
        let (file, buffer) = (self.file.as_raw_fd(), self.buffer.start().as_ptr());
        let read = match &self.pipe {
            None if self.reading.via == Via::Readv => {
                let half = READ_BYTES / 2;
                let halves = [0, half].map(|start| libc::iovec {
                    // SAFETY: inside the buffer.
                    iov_base: unsafe { buffer.add(start) }.cast(),
                    iov_len: half,
                });
                // SAFETY: as below.
                unsafe { libc::preadv(file, halves.as_ptr(), 2, self.position) }
            }
            // SAFETY: the buffer is a mapping of `READ_BYTES` that is ours alone. No slice of it is
            // made, because memory that is untouched has to stay so.
            None => unsafe { libc::pread(file, buffer.cast(), READ_BYTES, self.position) },
            Some((_, into)) => {
                let (mut position, into) = (self.position, into.as_raw_fd());
                // SAFETY: the position lives until the call returns.
                unsafe { libc::splice(file, &raw mut position, into, null_mut(), READ_BYTES, 0) }
            }
        };
        let read = usize::try_from(read).map_err(|_| io::Error::last_os_error())?;
        if let Some((from, _)) = &mut self.pipe {
            // What is in the pipe has no room there the next time.
            from.read_exact(&mut self.buffer.as_mut_slice()[..read])?;
        }
        Ok(read)
    }
}

impl Work for Kcore {
    fn step(&mut self, _left: u64) -> io::Result<u64> {
        if self.reading.untouched {
            self.buffer.forget_pages()?;
        }
        match self.read()? {
            READ_BYTES => Ok(1),
            _ => Err(io::Error::from_raw_os_error(libc::ENODATA)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elf_header(class: u8, entry_bytes: u16) -> [u8; 64] {
        let mut header = [0; 64];
        header[..4].copy_from_slice(b"\x7fELF");
        header[4] = class;
        header[32..40].copy_from_slice(&64_u64.to_ne_bytes());
        header[54..56].copy_from_slice(&entry_bytes.to_ne_bytes());
        header[56..58].copy_from_slice(&3_u16.to_ne_bytes());
        header
    }

    #[test]
    fn program_headers_are_where_the_elf_header_says() {
        let table = Table::parse(&elf_header(2, 56));
        assert_eq!(
            table,
            Some(Table {
                position: 64,
                entry_bytes: 56,
                entries: 3
            })
        );
    }

    #[test]
    fn what_is_no_64_bit_elf_file_has_no_program_headers() {
        assert_eq!(Table::parse(&elf_header(1, 56)), None);
        assert_eq!(Table::parse(&elf_header(2, 0)), None);
        assert_eq!(Table::parse(b"\x7fELF\x02"), None);
        assert_eq!(Table::parse(b""), None);
    }

    #[test]
    fn only_load_headers_are_segments() {
        let mut header = [0; 56];
        header[0] = 1;
        header[8..16].copy_from_slice(&4096_u64.to_ne_bytes());
        header[40..48].copy_from_slice(&(1_u64 << 45).to_ne_bytes());
        assert_eq!(
            load_segment(&header),
            Some(Segment {
                position: 4096,
                bytes: 1 << 45
            })
        );
        header[0] = 4;
        assert_eq!(load_segment(&header), None);
        assert_eq!(load_segment(&[1, 0, 0, 0]), None);
    }
}
