//! Keeps freed memory in the process for the next allocation.

/// Training allocates and frees the same large tensors every step. By default glibc hands blocks of
/// that size back to the system at once, and the next step pays for every page again: clearing it,
/// and a fault at its first touch. This keeps them; the peak of memory stays what it was.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn keep_freed() {
    // SAFETY: plain settings of the allocator, made before any other thread exists.
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, libc::c_int::MAX);
        // Heaps of other threads are too small for such blocks.
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Other allocators keep what they need by themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn keep_freed() {}
