//! How this process keeps its memory.

/// Keeps freed memory for the next camera frames. By default glibc gives blocks of that size back to the kernel at once, and
/// fetching them again, page by page, costs about a millisecond per set of three frames.
///
/// To be called before there are threads. Does nothing where the C library is another one.
pub fn keep_for_frames() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        // 32 MiB is the greatest threshold that glibc takes, more than any frame but a raw one of 8 K.
        const GREATEST_BLOCK: libc::c_int = 32 << 20;
        const KEPT: libc::c_int = 128 << 20;
        // SAFETY: mallopt reads two integers, and has no other precondition. Where it refuses, everything stays as it was.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, GREATEST_BLOCK);
            libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
        }
    }
}
