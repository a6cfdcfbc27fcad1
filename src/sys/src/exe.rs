//! Programs to execute that nobody inside a container can write to.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use crate::error::{Errno, Error, Result};
use crate::fd::{CWD, sealed_memfd};
use crate::mount::{MOUNT_ATTR_RDONLY, MountAttr, OPEN_TREE_CLONE, mount_setattr, open_tree};

/// Opens a program so that `/proc/self/fd/N` of the result can be executed, and `/proc/<pid>/exe` of
/// a process that runs it cannot be opened for writing (CVE-2019-5736). A private, read-only clone of
/// the mount shares its pages with the file; where that cannot be made, a sealed copy in memory does.
///
/// # Errors
/// When the file cannot be read.
pub fn unwritable(program: &Path) -> Result<OwnedFd> {
    read_only_mount(program).or_else(|_| sealed_copy(program))
}

fn read_only_mount(program: &Path) -> Result<OwnedFd> {
    let mount = open_tree(CWD, program, OPEN_TREE_CLONE)?;
    let attr = MountAttr {
        set: MOUNT_ATTR_RDONLY,
        ..MountAttr::default()
    };
    mount_setattr(mount.as_fd(), false, &attr)?;
    Ok(mount)
}

fn sealed_copy(program: &Path) -> Result<OwnedFd> {
    let failed = |error: std::io::Error| {
        let errno = Errno(error.raw_os_error().unwrap_or(libc::EIO));
        Error::new("read", program.display().to_string(), errno)
    };
    let mut content = Vec::new();
    File::open(program)
        .and_then(|mut file| file.read_to_end(&mut content))
        .map_err(failed)?;
    sealed_memfd("program", &content)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::process::Command;

    use super::*;

    #[test]
    fn runs_and_cannot_be_opened_for_writing() {
        let program = tempfile::NamedTempFile::new().expect("temporary file");
        let copied = std::fs::copy("/bin/sleep", program.path()).expect("copy");
        assert!(copied > 0);
        let program = program.into_temp_path();
        for fd in [unwritable(&program), sealed_copy(&program)] {
            let fd = fd.expect("program");
            let mut child = Command::new(format!("/proc/self/fd/{}", fd.as_raw_fd()))
                .arg("30")
                .spawn()
                .expect("spawn");
            let exe = format!("/proc/{}/exe", child.id());
            let opened = File::options().write(true).open(exe);
            child.kill().expect("kill");
            child.wait().expect("wait");
            assert!(opened.is_err(), "the program could be opened for writing");
        }
    }
}
