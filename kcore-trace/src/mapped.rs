//! Maps of the kernel in our own memory: reading them is no system call.
//!
//! In: an array of an object. Out: pointers to its values, which the kernel goes on writing. A mapping
//! counts as memory of ours, so that of what is large no more is mapped than is looked at.
//!
//! Invariant: a pointer is valid for as long as the mapping that it came from is borrowed.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::ptr::{NonNull, null_mut, read_volatile};

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::maps::{Map, MapData};
use aya_obj::generated::BPF_F_MMAPABLE;

/// Values of the contract that are integers only: any bytes are one.
///
/// # Safety
///
/// The type is `repr(C)` and made of integers.
pub(crate) unsafe trait Plain {}

// SAFETY: integers only.
unsafe impl<const N: usize> Plain for [u32; N] {}
// SAFETY: integers only.
unsafe impl<const N: usize> Plain for [u64; N] {}

/// An array of the kernel in our own memory.
pub(crate) struct Mapped<T> {
    first: NonNull<T>,
    len: usize,
    /// Nothing of an array that was left out.
    _memory: Option<Memory>,
}

impl<T: Plain> Mapped<T> {
    /// All of it; empty, if it was left out.
    pub(crate) fn new(object: &Ebpf, name: &str) -> Result<Self> {
        let whole = array(object, name).and_then(|(fd, elements)| Self::of(fd, elements as usize));
        whole.with_context(|| format!("failed to map `{name}`"))
    }

    /// What the only value of an array is made of.
    pub(crate) fn of_value(map: &MapData) -> Result<Self> {
        let bytes = map
            .info()
            .context("failed to ask for its size")?
            .value_size();
        Self::of(map.fd().as_fd(), bytes as usize / size_of::<T>())
    }

    fn of(map: BorrowedFd<'_>, len: usize) -> Result<Self> {
        let memory = (len > 0).then(|| Memory::new(map, 0, len * size_of::<T>()));
        let memory = memory.transpose()?;
        let first = memory.as_ref().map(|memory| memory.first.cast());
        Ok(Self {
            first: first.unwrap_or(NonNull::dangling()),
            len,
            _memory: memory,
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn at(&self, index: usize) -> Option<*mut T> {
        // SAFETY: inside the mapping.
        (index < self.len).then(|| unsafe { self.first.as_ptr().add(index) })
    }

    /// The values as they are at this moment.
    pub(crate) fn values(&self) -> impl Iterator<Item = T> {
        // SAFETY: values of the map, plain integers.
        self.iter().map(|value| unsafe { read_volatile(value) })
    }

    /// Pointers to the values, which the kernel goes on writing.
    pub(crate) fn iter(&self) -> impl Iterator<Item = *mut T> + Clone {
        // SAFETY: inside the mapping.
        (0..self.len).map(|index| unsafe { self.first.as_ptr().add(index) })
    }
}

/// An array that has a value for each CPU in each of its groups. Groups are mapped when they are wanted,
/// some together, of a small array all of them: what the kernel has for hundreds of CPUs is not all in our
/// memory.
pub(crate) struct Groups<T> {
    map: OwnedFd,
    name: &'static str,
    cpus: usize,
    groups: usize,
    /// How many groups one window has.
    together: usize,
    /// By number of the group over `together`.
    windows: Vec<Option<Window<T>>>,
}

struct Window<T> {
    first: NonNull<T>,
    _memory: Memory,
    /// Whether somebody wanted it since idle ones were closed.
    wanted: bool,
}

/// An array that is not larger is one window, open from the beginning: to open one, the kernel looks an
/// area up, which is an op that is counted.
const SMALL_BYTES: usize = 4 << 20;
/// The smallest window of another.
const WINDOW_BYTES: usize = 32 << 10;
/// As many windows stay open.
const OPEN: usize = 256;

impl<T: Plain> Groups<T> {
    pub(crate) fn new(object: &Ebpf, name: &'static str, cpus: usize) -> Result<Self> {
        let (fd, elements) = array(object, name)?;
        let groups = elements as usize / cpus;
        let together = match elements as usize * size_of::<T>() {
            ..=SMALL_BYTES => groups.max(1),
            _ => WINDOW_BYTES.div_ceil(cpus * size_of::<T>()),
        };
        let map = fd.try_clone_to_owned();
        let mut windows = Vec::new();
        windows.resize_with(groups.div_ceil(together), || None);
        let mut array = Self {
            map: map.with_context(|| format!("failed to keep `{name}`"))?,
            name,
            cpus,
            groups,
            together,
            windows,
        };
        if together == groups {
            array.map(0)?;
        }
        Ok(array)
    }

    /// Makes a group readable.
    pub(crate) fn map(&mut self, group: usize) -> Result<()> {
        let number = group / self.together;
        // An array that was left out has no groups.
        let Some(window) = self.windows.get_mut(number) else {
            return Ok(());
        };
        if let Some(window) = window {
            window.wanted = true;
            return Ok(());
        }
        let of_group = self.cpus * size_of::<T>();
        let groups = number * self.together..((number + 1) * self.together).min(self.groups);
        let from = groups.start * of_group;
        let page = from / PAGE * PAGE;
        let memory = Memory::new(self.map.as_fd(), page, groups.end * of_group - page);
        let memory = memory.with_context(|| format!("failed to map `{}`", self.name))?;
        // SAFETY: inside the mapping.
        let first = unsafe { memory.first.byte_add(from - page) };
        *window = Some(Window {
            first: first.cast(),
            _memory: memory,
            wanted: true,
        });
        Ok(())
    }

    /// If there are many, closes the windows that nobody wanted since the last call.
    pub(crate) fn close_idle(&mut self) {
        let open = self.windows.iter().flatten().count();
        for window in &mut self.windows {
            if open > OPEN && window.as_ref().is_some_and(|window| !window.wanted) {
                *window = None;
            }
            if let Some(window) = window {
                window.wanted = false;
            }
        }
    }

    /// Pointers to the values of a group, which the kernel goes on writing; none of one that is not
    /// mapped.
    pub(crate) fn group(&self, group: usize) -> impl Iterator<Item = *mut T> + Clone {
        let window = self.windows.get(group / self.together);
        let first = window.and_then(|window| Some(window.as_ref()?.first));
        let within = group % self.together * self.cpus;
        let cpus = first.map_or(0, |_| self.cpus);
        let first = first.unwrap_or(NonNull::dangling());
        // SAFETY: inside the mapping.
        (within..within + cpus).map(move |index| unsafe { first.as_ptr().add(index) })
    }
}

/// The unit of mappings of x86-64.
const PAGE: usize = 4096;

/// A part of a map in our own memory.
struct Memory {
    first: NonNull<u8>,
    len: usize,
}

impl Memory {
    /// So many bytes from a page on.
    fn new(map: BorrowedFd<'_>, from: usize, len: usize) -> Result<Self> {
        let from = libc::off_t::try_from(from)?;
        // SAFETY: a new mapping; the kernel checks its end against that of the map.
        let first = unsafe {
            libc::mmap(
                null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                from,
            )
        };
        if first == libc::MAP_FAILED {
            return Err(io::Error::last_os_error().into());
        }
        let first = NonNull::new(first.cast()).context("mapped to zero")?;
        Ok(Self { first, len })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: our own mapping, which nothing refers to any more.
        unsafe { libc::munmap(self.first.as_ptr().cast(), self.len) };
    }
}

/// The descriptor of an array and its number of elements: of one that was left out none, for it cannot be
/// mapped.
fn array<'a>(object: &'a Ebpf, name: &str) -> Result<(BorrowedFd<'a>, u32)> {
    let Some(Map::Array(map)) = object.map(name) else {
        anyhow::bail!("the object has no array `{name}`");
    };
    let info = map.info();
    let info = info.with_context(|| format!("failed to ask for the size of `{name}`"))?;
    let elements = match info.map_flags() & BPF_F_MMAPABLE {
        0 => 0,
        _ => info.max_entries(),
    };
    Ok((map.fd().as_fd(), elements))
}
