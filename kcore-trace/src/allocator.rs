//! What the allocator keeps of memory that was needed for a moment.
//!
//! Starting takes megabytes for the kernel's types, symbols and programs, and a scrape for its page;
//! what goes on for days takes little. Only glibc's allocator has to be told.

/// Large buffers go back to the kernel as they are freed, from now on. Left alone, the allocator takes
/// the size of the largest for a reason to keep all that are smaller, so that memory grows for hours.
pub(crate) fn return_large_buffers() {
    /// What the allocator of glibc begins with (`DEFAULT_MMAP_THRESHOLD` in malloc/malloc.c).
    #[cfg(target_env = "gnu")]
    const BYTES: libc::c_int = 128 << 10;
    // SAFETY: numbers only; a value that is set is not adjusted any more.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, BYTES);
    }
}

/// Gives back what is free now.
pub(crate) fn return_free_memory() {
    // SAFETY: a number only.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}
