//! The C library's allocator, for processes that want their memory given back.

/// Hands pages that the heap no longer uses back to the kernel.
pub fn trim() {
    // SAFETY: malloc_trim only gives back free memory of the C library's heap; it may be called
    // whenever malloc may.
    unsafe { libc::malloc_trim(0) };
}

/// Sizes, in bytes, by which the heap is run.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// Allocations of this size and more are mappings of their own, which cost nothing until they
    /// are written to and are gone when freed. (Unless the top of the heap has room for them.)
    pub mapped_from: i32,
    /// How much more than was asked for the heap grows.
    pub grow_by: i32,
    /// Free memory at the top of the heap beyond this goes back to the kernel.
    pub trim_from: i32,
    /// How many heaps there are at most for threads to spread over. What is free in one is of no use
    /// to the others; without a limit there are eight for each core.
    pub arenas: i32,
}

/// Runs the heap by other sizes from now on.
pub fn tune(tuning: Tuning) {
    let Tuning {
        mapped_from,
        grow_by,
        trim_from,
        arenas,
    } = tuning;
    for (setting, bytes) in [
        (libc::M_MMAP_THRESHOLD, mapped_from),
        (libc::M_TOP_PAD, grow_by),
        (libc::M_TRIM_THRESHOLD, trim_from),
        (libc::M_ARENA_MAX, arenas),
    ] {
        // SAFETY: mallopt changes a setting of the C library's allocator; a value it refuses changes
        // nothing.
        unsafe { libc::mallopt(setting, bytes) };
    }
    trim();
}

#[cfg(test)]
mod tests {
    #[test]
    fn memory_stays_usable() {
        let kept = vec![7_u8; 100_000];
        drop(vec![1_u8; 1 << 20]);
        super::tune(super::Tuning {
            mapped_from: 64 << 10,
            grow_by: 0,
            trim_from: 0,
            arenas: 1,
        });
        super::trim();
        assert!(kept.iter().all(|byte| *byte == 7));
        assert_eq!(vec![3_u8; 1 << 20].len(), 1 << 20);
    }
}
