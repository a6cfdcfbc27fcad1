//! Images as volumes: found when a container is reserved, mounted when it is made, attached nowhere
//! on the host.
//!
//! Their layers are pinned together with those of the container's own image, and stand in its record,
//! so that a removed image stays whole for as long as a container has it.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use crisp_oci::{plan::FdIndex, spec::DetachedSource};
use crisp_sys::path::Root;

use super::spec::MountSpec;
use crate::{
    error::{Classify, ErrorKind},
    image::{Image, ImageError, Images},
    snapshot::overlay::{self, OverlayError},
};

/// Why an image cannot be a volume. kubelet knows the first word.
#[derive(Debug, thiserror::Error)]
#[error("ImageVolumeMountFailed: config.mounts[{index}].{problem}")]
pub struct VolumeError {
    /// Which of the mounts.
    pub index: usize,
    /// Why.
    #[source]
    source: VolumeSource,
    problem: String,
}

/// What is wrong with it.
#[derive(Debug, thiserror::Error)]
enum VolumeSource {
    /// The name is malformed or ambiguous.
    #[error(transparent)]
    Image(ImageError),
    /// The image is not here.
    #[error("pull it first")]
    Absent,
    /// It cannot be mounted.
    #[error(transparent)]
    Mount(OverlayError),
    /// There is no such directory in it.
    #[error(transparent)]
    SubPath(crisp_sys::Error),
}

impl Classify for VolumeError {
    fn kind(&self) -> ErrorKind {
        match &self.source {
            VolumeSource::Image(error) => error.kind(),
            VolumeSource::Absent => ErrorKind::NotFound,
            VolumeSource::Mount(_) => ErrorKind::Internal,
            VolumeSource::SubPath(_) => ErrorKind::InvalidArgument,
        }
    }
}

/// An image that is to be a volume.
#[derive(Debug, Clone)]
pub struct Volume {
    /// Which of the mounts.
    pub index: usize,
    /// The image.
    pub image: Arc<Image>,
    sub_path: String,
}

/// The path that stands for an image in a runtime spec: nothing lies there, the mount comes as a
/// descriptor.
#[must_use]
pub fn stand_in(directory: &Path, index: usize) -> PathBuf {
    directory.join(index.to_string())
}

/// Finds the images that `mounts` name.
///
/// # Errors
/// The first one that is not here.
pub fn resolve(images: &Images, mounts: &[MountSpec]) -> Result<Vec<Volume>, VolumeError> {
    let mut volumes = Vec::new();
    for (index, mount) in mounts.iter().enumerate() {
        let Some(volume) = &mount.image else { continue };
        let name = &volume.image.image;
        let failed = |source| VolumeError {
            index,
            source,
            problem: format!("image.image: no image {name:?} on this node"),
        };
        let found = images.resolve(name);
        let image = found.map_err(|error| failed(VolumeSource::Image(error)))?;
        volumes.push(Volume {
            index,
            image: image.ok_or_else(|| failed(VolumeSource::Absent))?,
            sub_path: volume.sub_path.clone(),
        });
    }
    Ok(volumes)
}

/// Mounts the volumes; their descriptors join the table that travels with the plan. `users` is the
/// pod's user namespace, in which the owners of an image are who they are in the image. Blocks.
///
/// # Errors
/// The first image that cannot be mounted, or has no such directory.
pub fn mount(
    images: &Images,
    volumes: &[Volume],
    users: Option<BorrowedFd<'_>>,
    stand_ins: &Path,
    descriptors: &mut Vec<OwnedFd>,
) -> Result<Vec<DetachedSource>, VolumeError> {
    let mut sources = Vec::new();
    for volume in volumes {
        let (mount, below) = mount_one(images, volume, users)?;
        let index = u16::try_from(descriptors.len()).expect("few volumes are images");
        descriptors.push(mount);
        sources.push(DetachedSource {
            source: stand_in(stand_ins, volume.index)
                .to_string_lossy()
                .into_owned(),
            mount: FdIndex(index),
            below,
        });
    }
    Ok(sources)
}

/// A mount that is attached nowhere, and a directory in it, if one is meant.
fn mount_one(
    images: &Images,
    volume: &Volume,
    users: Option<BorrowedFd<'_>>,
) -> Result<(OwnedFd, Option<String>), VolumeError> {
    let index = volume.index;
    let mount = overlay::mount_translated(&images.lowers(&volume.image), None, users);
    let mount = mount.map_err(|error| VolumeError {
        index,
        source: VolumeSource::Mount(error),
        problem: format!("image: cannot mount {}", volume.image.id),
    })?;
    let below = Some(volume.sub_path.clone()).filter(|path| !path.trim_matches('/').is_empty());
    if let Some(path) = &below {
        let found = directory_in(&mount, path);
        found.map_err(|error| VolumeError {
            index,
            source: VolumeSource::SubPath(error),
            problem: format!("image_sub_path: no directory {path:?} in the image"),
        })?;
    }
    Ok((mount, below))
}

/// Links and dots of the image cannot lead out of it.
fn directory_in(mount: &OwnedFd, path: &str) -> crisp_sys::Result<()> {
    let root = Root::from_fd(crisp_sys::fd::dup(mount.as_fd())?);
    let flags = libc::O_PATH | libc::O_DIRECTORY;
    root.open_in_root(path, flags).map(drop)
}
