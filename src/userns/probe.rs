//! Whether this host can run pods with user namespaces, found out by doing it once.

use std::{
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{DirBuilderExt, chown},
    },
    path::Path,
};

use super::{IdMaps, UsersError, make};
use crate::{
    sandbox::spec::IdMapping,
    snapshot::overlay::{self, Upper},
};

/// Some range that is not the host's root.
const RANGE: IdMapping = IdMapping {
    host_id: 100_000,
    container_id: 0,
    length: 65_536,
};
const DIRECTORY: &str = "userns-probe";

/// Makes a user namespace and an overlay of a directory in `root` whose owners it translates, and
/// looks at what that shows.
///
/// # Errors
/// What this host cannot do.
pub fn probe(program: &OwnedFd, root: &Path) -> Result<(), UsersError> {
    let maps = IdMaps {
        uids: vec![RANGE],
        gids: vec![RANGE],
    };
    let namespace = make(program, &maps)?;
    let directory = root.join(DIRECTORY);
    let tried = attempt(&directory, &namespace, &maps);
    match fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(UsersError::Directory(error)),
        _ => tried,
    }
}

fn attempt(directory: &Path, namespace: &OwnedFd, maps: &IdMaps) -> Result<(), UsersError> {
    // A daemon that was killed while it tried leaves its directory.
    fs::remove_dir_all(directory).ok();
    let [lower, upper, work] = ["lower/file", "upper", "work"].map(|name| directory.join(name));
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    for path in [&lower, &upper, &work] {
        builder.create(path).map_err(UsersError::Directory)?;
    }
    let (uid, gid) = maps.root();
    chown(&upper, Some(uid), Some(gid)).map_err(UsersError::Directory)?;
    let upper = Upper {
        upper: &upper,
        work: &work,
        volatile: true,
    };
    let lowers = [directory.join("lower")];
    let mounted = overlay::mount_translated(&lowers, Some(upper), Some(namespace.as_fd()))
        .map_err(UsersError::Rootfs)?;
    let seen = crisp_sys::path::statat(mounted.as_fd(), "file", 0)
        .map_err(|error| UsersError::Directory(error.into()))?
        .uid;
    match seen == uid {
        true => Ok(()),
        false => Err(UsersError::Owner { seen, wanted: uid }),
    }
}
