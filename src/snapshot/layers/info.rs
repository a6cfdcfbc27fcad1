//! What is written down about a layer, and how a tree is compared with it.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use serde::{Deserialize, Serialize};

use crate::snapshot::{apply::RootAttributes, digest::Digest};

/// The record's name in the layer's directory.
pub(super) const INFO_FILE: &str = "layer.json";
/// Version of its shape.
pub(super) const INFO_VERSION: u32 = 1;

/// What is known about a finished layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerInfo {
    pub(super) version: u32,
    /// Digest of the uncompressed archive.
    pub diff_id: Digest,
    /// Files, directories and so on in the tree.
    pub entries: u64,
    /// Bytes of content in the tree's files.
    pub bytes: u64,
    /// Bytes used on disk.
    pub disk_bytes: u64,
    /// Hides everything below.
    pub opaque_root: bool,
    /// The root directory's own entry.
    pub root: Option<RootAttributes>,
}

/// Reads the record of a layer and sees that there is a tree.
pub(super) fn read_info(dir: &Path) -> io::Result<LayerInfo> {
    let path = dir.join(INFO_FILE);
    if fs::symlink_metadata(&path)?.len() > 64 << 10 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "its record is too large",
        ));
    }
    let info: LayerInfo = serde_json::from_slice(&fs::read(path)?)?;
    let tree = fs::symlink_metadata(dir.join("fs"))?;
    if info.version != INFO_VERSION || !tree.is_dir() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "unknown version, or no tree",
        ));
    }
    Ok(info)
}

/// Counts what is in a tree and the bytes of its files. Follows nothing, and its stack is a list.
pub(super) fn tally(tree: &Path) -> io::Result<(u64, u64)> {
    use nix::{
        dir::Dir,
        fcntl::{AtFlags, OFlag, openat},
        sys::stat::{Mode, SFlag, fstatat},
    };
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let root = File::open(tree)?;
    let mut pending: Vec<Vec<u8>> = vec![b".".to_vec()];
    let (mut entries, mut bytes) = (0, 0);
    while let Some(path) = pending.pop() {
        let dir = openat(&root, path.as_slice(), flags, Mode::empty())?;
        let mut names = Dir::from_fd(dir)?;
        let at = openat(&root, path.as_slice(), flags, Mode::empty())?;
        for entry in names.iter() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            entries += 1;
            let stat = fstatat(&at, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
            match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
                SFlag::S_IFDIR => pending.push([path.as_slice(), b"/", name].concat()),
                SFlag::S_IFREG => bytes += u64::try_from(stat.st_size).unwrap_or(0),
                _ => {}
            }
        }
    }
    Ok((entries, bytes))
}
