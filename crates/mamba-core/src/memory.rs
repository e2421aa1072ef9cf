//! How the process's allocator treats large blocks.

/// Lets the process keep the memory of freed tensors for the next ones.
///
/// By default glibc returns a block of more than 32 MiB to the system as soon as it is freed, and the next
/// one costs a page fault every 4 KiB: a third of the time of a forward pass over 32,768 tokens on the CPU.
/// After this call blocks of any size come from one heap that never shrinks. The peak of memory stays
/// what it was; what is given up is returning memory to the system below that peak.
///
/// It is a setting of the whole process, so that only a program may make it, first thing in `main`.
/// With allocators other than glibc's it does nothing.
pub fn keep_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: plain settings of the allocator.
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0);
        // Never: every number that fits here would give back gigabytes.
        libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
        // Heaps of other threads are too small for such blocks.
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Returns freed memory to the system, also after [`keep_freed`], so that what the process still holds can be measured.
/// With allocators other than glibc's it does nothing.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: only pages that no block lies on are returned.
    unsafe {
        libc::malloc_trim(0);
    }
}
