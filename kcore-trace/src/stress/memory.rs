//! Anonymous memory straight from the kernel.
//!
//! Owns [`Mapping`]: what the load needs and an allocator cannot give, which is memory shared with
//! forked processes and pages that can be given back to be untouched again.
//!
//! Invariant: a mapping is page-aligned, starts as zeros and lives exactly as long as its value.

use std::io;
use std::ptr::{self, NonNull};

/// A readable and writable anonymous mapping.
#[derive(Debug)]
pub(super) struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

impl Mapping {
    /// Memory that processes forked later share with this one.
    pub(super) fn shared(bytes: usize) -> io::Result<Self> {
        Self::new(bytes, libc::MAP_SHARED)
    }

    /// Memory of this process alone.
    pub(super) fn private(bytes: usize) -> io::Result<Self> {
        Self::new(bytes, libc::MAP_PRIVATE)
    }

    fn new(bytes: usize, sharing: libc::c_int) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = sharing | libc::MAP_ANONYMOUS;
        // SAFETY: the kernel chooses a free range, so no memory in use is touched.
        let start = unsafe { libc::mmap(ptr::null_mut(), bytes, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, bytes })
    }

    pub(super) fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// The contents, which also asks for exclusive use: for private mappings.
    pub(super) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: the range is mapped readable and writable for the life of `self`, any bytes are
        // valid, and `&mut self` makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }

    /// Gives the pages of a private mapping back: the next access finds untouched memory.
    pub(super) fn forget_pages(&mut self) -> io::Result<()> {
        // SAFETY: the range is a mapping of ours, and no reference into it outlives `&mut self`.
        let result =
            unsafe { libc::madvise(self.start.as_ptr().cast(), self.bytes, libc::MADV_DONTNEED) };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `new` and is given back once.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

/// Bytes of a page of this kernel.
pub(super) fn page_bytes() -> usize {
    // SAFETY: sysconf only reads.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forgotten_pages_read_as_zeros_again() {
        let mut mapping = Mapping::private(page_bytes()).unwrap();
        mapping.as_mut_slice().fill(7);
        mapping.forget_pages().unwrap();
        assert!(mapping.as_mut_slice().iter().all(|byte| *byte == 0));
    }
}
