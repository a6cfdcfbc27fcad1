//! Users of a container that has a user namespace: ranges of ids.

use oci_spec::runtime::{Linux, LinuxIdMapping, Process};

use super::{Result, invalid, refuse_items};
use crate::plan::{FdIndex, NamespaceKind, NamespacePlan};

/// A range of ids in a user namespace and outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// First id inside.
    pub inside: u32,
    /// First id outside.
    pub outside: u32,
    /// How many.
    pub length: u32,
}

/// A user namespace by its ranges, for mounts that ask for those.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idmap {
    /// Users.
    pub uids: Vec<IdRange>,
    /// Groups.
    pub gids: Vec<IdRange>,
    /// Where in the descriptor table it is.
    pub namespace: FdIndex,
}

/// Ranges as a specification has them.
#[must_use]
pub fn ranges(list: Option<&Vec<LinuxIdMapping>>) -> Vec<IdRange> {
    let range = |mapping: &LinuxIdMapping| IdRange {
        inside: mapping.container_id(),
        outside: mapping.host_id(),
        length: mapping.size(),
    };
    list.into_iter().flatten().map(range).collect()
}

fn outside(ranges: &[IdRange], id: u32) -> Option<u32> {
    ranges.iter().find_map(|range| {
        let offset = id.checked_sub(range.inside)?;
        (offset < range.length).then(|| range.outside.checked_add(offset))?
    })
}

/// What the host calls root of the container, if it has a user namespace whose ranges the
/// specification names. The process has to have its ids among them.
pub(super) fn root(
    linux: &Linux,
    namespaces: &[NamespacePlan],
    process: &Process,
) -> Result<Option<(u32, u32)>> {
    let (uids, gids) = (linux.uid_mappings().as_ref(), linux.gid_mappings().as_ref());
    if !namespaces.iter().any(|n| n.kind == NamespaceKind::User) {
        refuse_items("linux.uidMappings without a user namespace", uids)?;
        refuse_items("linux.gidMappings without a user namespace", gids)?;
        return Ok(None);
    }
    let (uids, gids) = (ranges(uids), ranges(gids));
    if uids.is_empty() && gids.is_empty() {
        // The namespace knows them; so they are checked when it is joined.
        return Ok(None);
    }
    let mapped = |field: &str, ranges: &[IdRange], id: u32| {
        outside(ranges, id)
            .ok_or_else(|| invalid(field, format!("{id} is not mapped in the user namespace")))
    };
    let user = process.user();
    mapped("process.user.uid", &uids, user.uid())?;
    mapped("process.user.gid", &gids, user.gid())?;
    for gid in user.additional_gids().iter().flatten() {
        mapped("process.user.additionalGids", &gids, *gid)?;
    }
    let root = (
        mapped("linux.uidMappings", &uids, 0)?,
        mapped("linux.gidMappings", &gids, 0)?,
    );
    Ok(Some(root))
}
