//! String arguments of system calls: anything that can be a NUL-terminated string, without heap.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::error::{Errno, Error, Result};

/// Longest string argument, with its NUL: the kernel's `PATH_MAX`.
pub const MAX: usize = 4096;

/// A string for the kernel. Strings without their NUL are completed in a buffer on the stack.
pub trait Arg {
    /// Runs `f` with the NUL-terminated string. `call` names the system call in the error for
    /// strings with a NUL inside (`EINVAL`) or longer than [`MAX`] (`ENAMETOOLONG`).
    ///
    /// # Errors
    /// The two above, and what `f` returns.
    fn with_c_str<T>(&self, call: &'static str, f: impl FnOnce(&CStr) -> Result<T>) -> Result<T>;

    /// The string as error messages show it.
    fn show(&self) -> String;
}

fn with_bytes<T>(
    bytes: &[u8],
    call: &'static str,
    f: impl FnOnce(&CStr) -> Result<T>,
) -> Result<T> {
    if bytes.len() >= MAX {
        let head = String::from_utf8_lossy(&bytes[..64]).into_owned();
        return Err(Error::new(
            call,
            format!("{head:?}..."),
            Errno::ENAMETOOLONG,
        ));
    }
    let mut buffer = [MaybeUninit::<u8>::uninit(); MAX];
    for (slot, byte) in buffer
        .iter_mut()
        .zip(bytes.iter().chain(std::iter::once(&0)))
    {
        slot.write(*byte);
    }
    let filled = &buffer[..=bytes.len()];
    // SAFETY: the loop above wrote the first `bytes.len() + 1` elements, which is less than or
    // equal to MAX by the check above; MaybeUninit<u8> has the layout of u8.
    let filled = unsafe { &*(std::ptr::from_ref(filled) as *const [u8]) };
    match CStr::from_bytes_with_nul(filled) {
        Ok(string) => f(string),
        Err(_) => Err(Error::new(call, show_bytes(bytes), Errno::EINVAL)),
    }
}

fn show_bytes(bytes: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(bytes))
}

impl Arg for [u8] {
    fn with_c_str<T>(&self, call: &'static str, f: impl FnOnce(&CStr) -> Result<T>) -> Result<T> {
        with_bytes(self, call, f)
    }
    fn show(&self) -> String {
        show_bytes(self)
    }
}

impl Arg for CStr {
    fn with_c_str<T>(&self, _call: &'static str, f: impl FnOnce(&CStr) -> Result<T>) -> Result<T> {
        f(self)
    }
    fn show(&self) -> String {
        show_bytes(self.to_bytes())
    }
}

impl Arg for CString {
    fn with_c_str<T>(&self, _call: &'static str, f: impl FnOnce(&CStr) -> Result<T>) -> Result<T> {
        f(self)
    }
    fn show(&self) -> String {
        show_bytes(self.to_bytes())
    }
}

macro_rules! arg_by_bytes {
    ($($type:ty => |$value:ident| $bytes:expr;)*) => {$(
        impl Arg for $type {
            fn with_c_str<T>(
                &self,
                call: &'static str,
                f: impl FnOnce(&CStr) -> Result<T>,
            ) -> Result<T> {
                let $value = self;
                with_bytes($bytes, call, f)
            }
            fn show(&self) -> String {
                let $value = self;
                show_bytes($bytes)
            }
        }
    )*};
}

arg_by_bytes! {
    Vec<u8> => |v| v.as_slice();
    str => |v| v.as_bytes();
    String => |v| v.as_bytes();
    OsStr => |v| v.as_bytes();
    OsString => |v| v.as_bytes();
    Path => |v| v.as_os_str().as_bytes();
    PathBuf => |v| v.as_os_str().as_bytes();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completes_refuses_nul_and_too_long() {
        "abc"
            .with_c_str("x", |s| {
                assert_eq!(s, c"abc");
                Ok(())
            })
            .expect("fits");
        let longest = "a".repeat(MAX - 1);
        longest
            .with_c_str("x", |s| {
                assert_eq!(s.to_bytes().len(), MAX - 1);
                Ok(())
            })
            .expect("fits exactly");
        let too_long = "a".repeat(MAX).with_c_str("x", |_| Ok(())).unwrap_err();
        assert_eq!(too_long.errno(), Errno::ENAMETOOLONG);
        let nul = "a\0b".with_c_str("x", |_| Ok(())).unwrap_err();
        assert_eq!(nul.errno(), Errno::EINVAL);
    }
}
