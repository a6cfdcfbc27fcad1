//! Finding the program, in the container and as its user.

use std::ffi::CStr;

use crisp_sys::fd::CWD;
use crisp_sys::process::{self, StringArray};
use crisp_sys::{Errno, arg, path};

use super::error::{Failure, Stage};

/// Where a program without a slash is looked for when the environment has no PATH.
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The path of a program, NUL-terminated, on the stack.
pub(super) struct Program {
    path: [u8; arg::MAX],
}

impl Program {
    /// Finds the first argument: by PATH if it has no slash. It must be a regular file that may
    /// be executed by the identity the process has now.
    pub(super) fn find(args: &StringArray, env: &StringArray) -> Result<Self, Failure> {
        let name = args
            .strings()
            .first()
            .map_or(c"", |name| name.as_c_str())
            .to_bytes();
        if name.contains(&b'/') {
            return match Self::candidate(b"", name) {
                Ok(program) => Ok(program),
                Err(errno) => Err(not_found(name, errno, "")),
            };
        }
        let search = env
            .strings()
            .iter()
            .find_map(|entry| entry.to_bytes().strip_prefix(b"PATH="));
        let mut denied = None;
        for dir in search.unwrap_or(DEFAULT_PATH).split(|byte| *byte == b':') {
            match Self::candidate(if dir.is_empty() { b"." } else { dir }, name) {
                Ok(program) => return Ok(program),
                Err(Errno::EACCES) => denied = Some(Errno::EACCES),
                Err(_) => {}
            }
        }
        match denied {
            Some(errno) => Err(not_found(name, errno, "")),
            None => Err(not_found(
                name,
                Errno::ENOENT,
                "executable file not found in $PATH",
            )),
        }
    }

    fn candidate(dir: &[u8], name: &[u8]) -> Result<Self, Errno> {
        let mut program = Self {
            path: [0; arg::MAX],
        };
        let slash: &[u8] = if dir.is_empty() || dir.ends_with(b"/") {
            b""
        } else {
            b"/"
        };
        let mut length = 0;
        for part in [dir, slash, name] {
            let end = length + part.len();
            // One byte stays for the NUL.
            if end >= arg::MAX {
                return Err(Errno::ENAMETOOLONG);
            }
            program.path[length..end].copy_from_slice(part);
            length = end;
        }
        path::executable(CWD, program.as_c_str())?;
        Ok(program)
    }

    fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.path).expect("the last byte is never written")
    }

    /// Executes it. Returns only if that failed.
    pub(super) fn execute(&self, args: &StringArray, env: &StringArray) -> Failure {
        let error = process::execve(self.as_c_str(), args, env);
        not_found(self.as_c_str().to_bytes(), error.errno, "")
    }
}

fn not_found(name: &[u8], errno: Errno, reason: &str) -> Failure {
    let name = String::from_utf8_lossy(name);
    let reason = match (reason, errno) {
        ("", Errno::ENOENT) => "no such file or directory",
        ("", Errno::EACCES) => "permission denied",
        ("", Errno::ENOEXEC) => "exec format error",
        ("", other) => other.name().unwrap_or("unknown error"),
        (reason, _) => reason,
    };
    Failure::new(Stage::Exec, errno, format!("{name:?}: {reason}"))
}
