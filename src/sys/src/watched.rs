//! For tests: an allocator that ends any child of clone which allocates on its way to exec.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicI32, Ordering};

static ONLY: AtomicI32 = AtomicI32::new(0);

/// The system's allocator. Once [`Watched::arm`] was called it aborts every other process that
/// carries a copy of this one's memory and allocates or frees.
#[derive(Debug)]
pub struct Watched;

fn own_pid() -> i32 {
    // SAFETY: no arguments, cannot fail.
    unsafe { libc::getpid() }
}

impl Watched {
    /// From now on only this process may allocate.
    pub fn arm() {
        ONLY.store(own_pid(), Ordering::Relaxed);
    }

    /// Everybody may allocate again.
    pub fn disarm() {
        ONLY.store(0, Ordering::Relaxed);
    }

    fn check() {
        let only = ONLY.load(Ordering::Relaxed);
        if only != 0 && only != own_pid() {
            std::process::abort();
        }
    }
}

// SAFETY: every call is handed to the system's allocator as it is, or the process ends.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::check();
        // SAFETY: the caller's promise is the one System asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        Self::check();
        // SAFETY: the caller's promise is the one System asks for.
        unsafe { System.dealloc(pointer, layout) }
    }
}
