//! The shared memory of a pod: a tmpfs that every container of it binds at /dev/shm.
//!
//! It is mounted below the sandbox's runtime directory. A mount that is attached nowhere would spare
//! the host an entry in its mount table, but a container that is made after a restart of the daemon
//! must find the same memory again, and kernels before 6.15 cannot clone what is attached nowhere.

use std::{io, os::fd::AsFd, path::Path};

use crisp_sys::mount;

/// 64 MiB, as every runtime has it.
const SIZE: &str = "67108864";

/// Mounts it at `path`, which is made; it belongs to `owner`, a user and a group.
///
/// # Errors
/// When the directory or the mount cannot be made.
pub fn mount_at(path: &Path, owner: (u32, u32)) -> io::Result<()> {
    crate::node::private_dir(path)?;
    let fs = mount::fsopen("tmpfs")?;
    mount::fsconfig_set_string(fs.as_fd(), "source", "shm")?;
    mount::fsconfig_set_string(fs.as_fd(), "size", SIZE)?;
    mount::fsconfig_set_string(fs.as_fd(), "mode", "1777")?;
    for (option, id) in [("uid", owner.0), ("gid", owner.1)] {
        mount::fsconfig_set_string(fs.as_fd(), option, &id.to_string())?;
    }
    mount::fsconfig_create(fs.as_fd())?;
    let attributes = mount::MOUNT_ATTR_NOSUID | mount::MOUNT_ATTR_NODEV | mount::MOUNT_ATTR_NOEXEC;
    let mounted = mount::fsmount(fs.as_fd(), attributes)?;
    let target = std::fs::File::open(path)?;
    mount::move_mount(mounted.as_fd(), target.as_fd())?;
    Ok(())
}

/// Takes it away; none is fine. Containers that still have it keep it.
///
/// # Errors
/// When the kernel refuses.
pub fn unmount(path: &Path) -> io::Result<()> {
    match mount::umount2(path, mount::MNT_DETACH | mount::UMOUNT_NOFOLLOW) {
        Ok(()) => Ok(()),
        // Not a mount, or not there.
        Err(error) if [libc::EINVAL, libc::ENOENT].contains(&error.raw_os_error()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
