//! Owners, modes, times and extended attributes of what an entry made.

use std::{
    ffi::OsStr,
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::AtFlags,
    sys::stat::{FchmodatFlags, Mode, UtimensatFlags, fchmod, fchmodat, utimensat},
    unistd::{Gid, Uid, fchown, fchownat},
};

use super::{Dir, Tree, failed, time_spec};
use crate::snapshot::apply::{
    Failure, FailureKind,
    archive::{Entry, Kind, shown},
};

impl Tree {
    /// Owner, mode and attributes, in this order: chown clears set-user-id and capabilities.
    pub(super) fn attributes(&mut self, file: &impl AsFd, entry: &Entry) -> Result<(), Failure> {
        let path = &entry.path;
        fchown(
            file,
            Some(Uid::from_raw(entry.uid)),
            Some(Gid::from_raw(entry.gid)),
        )
        .map_err(failed("chown", path))?;
        fchmod(file, Mode::from_bits_truncate(entry.mode)).map_err(failed("chmod", path))?;
        if entry.xattrs.is_empty() {
            return Ok(());
        }
        let file = File::from(
            file.as_fd()
                .try_clone_to_owned()
                .map_err(|error| Failure::system("descriptor", &error))?,
        );
        self.xattrs(entry, |name, value| {
            xattr::FileExt::set_xattr(&file, name, value)
        })
    }

    pub(super) fn attributes_by_name(
        &mut self,
        parent: &Dir,
        name: &[u8],
        path: &[u8],
        entry: &Entry,
    ) -> Result<(), Failure> {
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        fchownat(
            &parent.fd,
            name,
            Some(uid),
            Some(gid),
            AtFlags::AT_SYMLINK_NOFOLLOW,
        )
        .map_err(failed("chown", path))?;
        if entry.kind != Kind::Symlink {
            // Made by us a moment ago in a directory nobody else writes: no link to follow.
            let mode = Mode::from_bits_truncate(entry.mode);
            let follow = FchmodatFlags::FollowSymlink;
            fchmodat(&parent.fd, name, mode, follow).map_err(failed("chmod", path))?;
        }
        if !entry.xattrs.is_empty() {
            let target = Path::new("/proc/self/fd")
                .join(parent.fd.as_raw_fd().to_string())
                .join(OsStr::from_bytes(name));
            self.xattrs(entry, |name, value| xattr::set(&target, name, value))?;
        }
        let time = time_spec(entry.mtime);
        utimensat(
            &parent.fd,
            name,
            &time,
            &time,
            UtimensatFlags::NoFollowSymlink,
        )
        .map_err(failed("set times of", path))
    }

    /// Kept: `user.*`, ACLs and `security.capability`. Everything else belongs to the host or to
    /// overlayfs and is left out, counted.
    fn xattrs(
        &mut self,
        entry: &Entry,
        set: impl Fn(&OsStr, &[u8]) -> io::Result<()>,
    ) -> Result<(), Failure> {
        for (name, value) in &entry.xattrs {
            let kept = name.starts_with(b"user.") && !name.starts_with(b"user.overlay.")
                || name == b"security.capability"
                || name.starts_with(b"system.posix_acl_");
            if !kept {
                self.applied.stripped_xattrs += 1;
                continue;
            }
            match set(OsStr::from_bytes(name), value) {
                Ok(()) => {}
                Err(error)
                    if name.starts_with(b"user.")
                        && matches!(
                            error.raw_os_error().map(Errno::from_raw),
                            Some(Errno::EPERM | Errno::EOPNOTSUPP)
                        )
                        || error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) =>
                {
                    self.applied.stripped_xattrs += 1;
                }
                Err(error) => {
                    let action = format!("attribute {} of {}", shown(name), shown(&entry.path));
                    let mut failure = Failure::system(&action, &error);
                    if error.raw_os_error() == Some(Errno::EINVAL as i32) {
                        failure.kind = FailureKind::Refused;
                    }
                    return Err(failure);
                }
            }
        }
        Ok(())
    }
}
