//! What a process got from its parent without asking.

use libc::c_long;

use crate::clone::SingleThreaded;
use crate::error::{Result, check};

/// Closes every descriptor above the standard streams. To be called as the first thing in `main`,
/// before anything of this process opened one: what is open then was left by the parent, and a
/// process that outlives its parent would keep it open for ever.
///
/// # Errors
/// Those of close_range(2).
pub fn close_descriptors(_token: &SingleThreaded) -> Result<()> {
    // SAFETY: plain integers. No thread runs beside this one, and the caller has not opened
    // anything, so no live object of this process owns a number that is closed here.
    let value = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            3 as c_long,
            c_long::from(u32::MAX),
            0 as c_long,
        )
    };
    check("close_range", value, || "3, ~0, 0".to_string()).map(drop)
}
