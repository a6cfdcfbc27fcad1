//! What a failed system call says.

use std::fmt;

/// Result of a system call.
pub type Result<T> = std::result::Result<T, Error>;

/// A number from errno(3).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

macro_rules! errnos {
    ($($name:ident)*) => {
        impl Errno {
            $(#[doc = concat!("`", stringify!($name), "`.")]
            pub const $name: Self = Self(libc::$name);)*

            /// The symbolic name, if it is one of errno(3).
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $(libc::$name => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

errnos! {
    EPERM ENOENT ESRCH EINTR EIO ENXIO E2BIG ENOEXEC EBADF ECHILD EAGAIN ENOMEM EACCES EFAULT
    ENOTBLK EBUSY EEXIST EXDEV ENODEV ENOTDIR EISDIR EINVAL ENFILE EMFILE ENOTTY ETXTBSY EFBIG
    ENOSPC ESPIPE EROFS EMLINK EPIPE EDOM ERANGE EDEADLK ENAMETOOLONG ENOLCK ENOSYS ENOTEMPTY
    ELOOP ENODATA EOVERFLOW EUSERS ENOTSOCK EDESTADDRREQ EMSGSIZE EPROTOTYPE ENOPROTOOPT
    EPROTONOSUPPORT EOPNOTSUPP EAFNOSUPPORT EADDRINUSE EADDRNOTAVAIL ENETDOWN ENETUNREACH
    ENETRESET ECONNABORTED ECONNRESET ENOBUFS EISCONN ENOTCONN ETIMEDOUT ECONNREFUSED
    EHOSTUNREACH EALREADY EINPROGRESS ESTALE EDQUOT ECANCELED EKEYREJECTED EPROTO EBADMSG ELIBBAD
}

impl Errno {
    /// The calling thread's errno.
    #[must_use]
    pub fn last() -> Self {
        Self(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A failed system call: which, with what, and why. Prints like a line of strace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// Name of the call.
    pub call: &'static str,
    /// The arguments that matter, as strace would print them.
    pub args: String,
    /// What the kernel answered.
    pub errno: Errno,
}

impl Error {
    /// An error of `call` that the wrapper itself found, before or after the kernel was asked.
    #[must_use]
    pub fn new(call: &'static str, args: impl Into<String>, errno: Errno) -> Self {
        Self {
            call,
            args: args.into(),
            errno,
        }
    }

    /// The error number.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        self.errno
    }

    /// The error number as std has it.
    #[must_use]
    pub const fn raw_os_error(&self) -> i32 {
        self.errno.0
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({}) = {}", self.call, self.args, self.errno)
    }
}

impl std::error::Error for Error {}

impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        Self::from_raw_os_error(error.errno.0)
    }
}

/// Turns the return value of a raw call into a result; `args` is only run on failure.
pub(crate) fn check(
    call: &'static str,
    value: libc::c_long,
    args: impl FnOnce() -> String,
) -> Result<libc::c_long> {
    if value == -1 {
        let errno = Errno::last();
        return Err(Error {
            call,
            args: args(),
            errno,
        });
    }
    Ok(value)
}

/// Like [`check`], but runs `call_again` until it is not interrupted by a signal.
pub(crate) fn check_retry(
    call: &'static str,
    mut call_again: impl FnMut() -> libc::c_long,
    args: impl FnOnce() -> String,
) -> Result<libc::c_long> {
    loop {
        let value = call_again();
        if value == -1 && Errno::last() == Errno::EINTR {
            continue;
        }
        return check(call, value, args);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_like_strace() {
        let error = Error::new(
            "openat2",
            "5, \"etc/passwd\", RESOLVE_IN_ROOT",
            Errno::ENOENT,
        );
        assert_eq!(
            error.to_string(),
            "openat2(5, \"etc/passwd\", RESOLVE_IN_ROOT) = ENOENT"
        );
        assert_eq!(Errno(9999).to_string(), "errno 9999");
        assert_eq!(
            std::io::Error::from(error).raw_os_error(),
            Some(libc::ENOENT)
        );
    }
}
