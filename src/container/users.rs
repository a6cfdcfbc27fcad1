//! Who owns what in a container whose pod has a user namespace.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crisp_oci::{
    plan::FdIndex,
    spec::{IdRange, Idmap},
};

use super::{create::CreateError, spec::MountSpec};
use crate::{
    node::Node,
    sandbox::{Sandbox, pause::Pause, spec::IdMapping},
    snapshot::apply::RootAttributes,
    userns::{self, IdMaps},
};

/// The user namespace of a container's pod, or none.
pub(super) struct PodUsers(Option<(IdMaps, OwnedFd)>);

impl PodUsers {
    /// That of a sandbox, held by its pause.
    ///
    /// # Errors
    /// The pause is gone.
    pub(super) fn of(sandbox: &Sandbox) -> Result<Self, CreateError> {
        let Some(maps) = IdMaps::of_pod(&sandbox.spec.security.namespaces.user) else {
            return Ok(Self(None));
        };
        let not_ready = || CreateError::SandboxNotReady(sandbox.id.clone());
        let known = sandbox.published().pause.ok_or_else(not_ready)?;
        let pause = Pause::adopt(known.pid, known.start_time).ok_or_else(not_ready)?;
        let namespace = userns::of_process(known.pid, &pause).map_err(CreateError::Users)?;
        Ok(Self(Some((maps, namespace))))
    }

    /// The namespace.
    pub(super) fn namespace(&self) -> Option<BorrowedFd<'_>> {
        self.0.as_ref().map(|(_, namespace)| namespace.as_fd())
    }

    /// The attributes of the image's root directory as the host has to write them. Who is not mapped
    /// gives way to the pod's root.
    pub(super) fn owned(&self, image: Option<RootAttributes>) -> Option<RootAttributes> {
        let Some((maps, _)) = &self.0 else {
            return image;
        };
        let (root, group) = maps.root();
        let inside = image.unwrap_or(RootAttributes {
            mode: 0o755,
            uid: 0,
            gid: 0,
        });
        Some(RootAttributes {
            uid: maps.host_uid(inside.uid).unwrap_or(root),
            gid: maps.host_gid(inside.gid).unwrap_or(group),
            ..inside
        })
    }

    /// The namespaces that translate the owners of volumes, added to the descriptors: the pod's own
    /// where a volume asks for its ranges, as kubelet does, else one made for it.
    ///
    /// # Errors
    /// One cannot be made.
    pub(super) fn idmaps(
        &self,
        node: &Node,
        mounts: &[MountSpec],
        descriptors: &mut Vec<OwnedFd>,
    ) -> Result<Vec<Idmap>, CreateError> {
        let mut known: Vec<(IdMaps, FdIndex)> = Vec::new();
        let translated =
            |mount: &&MountSpec| mount.image.is_none() && !mount.uid_mappings.is_empty();
        for mount in mounts.iter().filter(translated) {
            let asked = IdMaps {
                uids: mount.uid_mappings.clone(),
                gids: mount.gid_mappings.clone(),
            };
            if known.iter().any(|(maps, _)| *maps == asked) {
                continue;
            }
            let namespace = match &self.0 {
                Some((maps, namespace)) if *maps == asked => {
                    crisp_sys::fd::dup(namespace.as_fd()).map_err(userns::UsersError::Talk)
                }
                _ => userns::make(&node.programs.pause, &asked),
            };
            descriptors.push(namespace.map_err(CreateError::Users)?);
            let index = u16::try_from(descriptors.len() - 1).expect("at most some thousand mounts");
            known.push((asked, FdIndex(index)));
        }
        let idmap = |(maps, namespace): (IdMaps, FdIndex)| Idmap {
            uids: maps.uids.iter().map(range).collect(),
            gids: maps.gids.iter().map(range).collect(),
            namespace,
        };
        Ok(known.into_iter().map(idmap).collect())
    }
}

fn range(mapping: &IdMapping) -> IdRange {
    IdRange {
        inside: mapping.container_id,
        outside: mapping.host_id,
        length: mapping.length,
    }
}
