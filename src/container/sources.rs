//! Looks up the host side of a container's mounts.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use super::{spec::MountSpec, volumes};
use crate::{
    bundle::MountSource,
    error::{Classify, ErrorKind},
};

/// A mount whose source cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("config.mounts[{index}].host_path: {} must be an existing path of the host", path.display())]
pub struct SourceError {
    /// Which of the mounts.
    pub index: usize,
    /// The path asked for.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

impl Classify for SourceError {
    fn kind(&self) -> ErrorKind {
        match self.source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ErrorKind::InvalidArgument,
            _ if self.source.raw_os_error() == Some(libc::ELOOP) => ErrorKind::InvalidArgument,
            _ => ErrorKind::Internal,
        }
    }
}

/// What becomes of a host path that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// It is an error (CRI, `Mount.host_path`): kubelet makes what it wants made.
    Refuse,
    /// A directory is made, as runtimes before crisp did for `hostPath` volumes without a type.
    Make,
}

impl Missing {
    /// What the configuration says.
    #[must_use]
    pub const fn of(create: bool) -> Self {
        if create { Self::Make } else { Self::Refuse }
    }
}

/// The real path of every mount's source. Symbolic links of the host are followed here: the mount is
/// of what they lead to (CRI, `Mount.host_path`). An image has a stand-in below `images`, where
/// nothing lies.
///
/// # Errors
/// The first source that cannot be looked up or made.
pub fn resolve(
    mounts: &[MountSpec],
    images: &Path,
    missing: Missing,
) -> Result<Vec<MountSource>, SourceError> {
    let real = |(index, mount): (usize, &MountSpec)| {
        if mount.image.is_some() {
            let path = volumes::stand_in(images, index);
            return Ok(MountSource { path });
        }
        let path = PathBuf::from(&mount.host_path);
        if missing == Missing::Make
            && let Err(error) = fs::symlink_metadata(&path)
            && error.kind() == io::ErrorKind::NotFound
        {
            tracing::info!(path = %path.display(), "mount source is made");
            let made = fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(&path);
            made.map_err(|source| SourceError {
                index,
                path: path.clone(),
                source,
            })?;
        }
        match fs::canonicalize(&path) {
            Ok(path) => Ok(MountSource { path }),
            Err(source) => Err(SourceError {
                index,
                path,
                source,
            }),
        }
    };
    mounts.iter().enumerate().map(real).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::spec::{ImageVolume, Propagation};

    fn mount(host_path: &Path, image: Option<ImageVolume>) -> MountSpec {
        MountSpec {
            container_path: "/v".into(),
            host_path: host_path.to_str().unwrap().into(),
            image,
            options: Vec::new(),
            readonly: false,
            recursive_read_only: false,
            selinux_relabel: false,
            propagation: Propagation::Private,
            uid_mappings: Vec::new(),
            gid_mappings: Vec::new(),
        }
    }

    #[test]
    fn links_are_followed_and_images_have_stand_ins() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        std::os::unix::fs::symlink(&real, real.join("link")).unwrap();
        let mounts = [
            mount(&real.join("link"), None),
            mount(Path::new(""), Some(ImageVolume::default())),
        ];
        let sources = resolve(&mounts, Path::new("/run/v"), Missing::Refuse).unwrap();
        let paths: Vec<_> = sources.iter().map(|source| source.path.as_path()).collect();
        assert_eq!(paths, [real.as_path(), Path::new("/run/v/1")]);
    }

    #[test]
    fn a_missing_source_is_refused_or_made_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let mounts = [mount(&path, None)];
        let resolve = |missing| resolve(&mounts, Path::new("/run/v"), missing);
        let error = resolve(Missing::Refuse).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(
            error
                .to_string()
                .starts_with("config.mounts[0].host_path: ")
        );
        assert!(!path.exists());
        resolve(Missing::Make).unwrap();
        assert!(path.is_dir());
        // A link that leads nowhere says that something else is wrong.
        std::os::unix::fs::symlink("nowhere", dir.path().join("link")).unwrap();
        let mounts = [mount(&dir.path().join("link"), None)];
        super::resolve(&mounts, Path::new("/run/v"), Missing::Make).unwrap_err();
    }
}
