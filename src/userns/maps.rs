//! The ids of a user namespace.

use std::fs;

use super::UsersError;
use crate::sandbox::spec::{IdMapping, UserNamespace};

/// Which ids of the host are which ids inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdMaps {
    /// Users.
    pub uids: Vec<IdMapping>,
    /// Groups.
    pub gids: Vec<IdMapping>,
}

impl IdMaps {
    /// Those of a pod; none if it shares the host's.
    #[must_use]
    pub fn of_pod(namespace: &UserNamespace) -> Option<Self> {
        match namespace {
            UserNamespace::Node => None,
            UserNamespace::Pod { uids, gids } => Some(Self {
                uids: vec![*uids],
                gids: vec![*gids],
            }),
        }
    }

    /// What the host calls a user.
    #[must_use]
    pub fn host_uid(&self, id: u32) -> Option<u32> {
        outside(&self.uids, id)
    }

    /// What the host calls a group.
    #[must_use]
    pub fn host_gid(&self, id: u32) -> Option<u32> {
        outside(&self.gids, id)
    }

    /// What the host calls root and root's group; its own where there is none, whom nobody inside
    /// can be.
    #[must_use]
    pub fn root(&self) -> (u32, u32) {
        (self.host_uid(0).unwrap_or(0), self.host_gid(0).unwrap_or(0))
    }

    /// Gives a process's new user namespace these maps.
    ///
    /// # Errors
    /// [`UsersError::Map`].
    pub fn write(&self, pid: u32) -> Result<(), UsersError> {
        // Groups first or last makes no difference to the host's root.
        for (file, ranges) in [("uid_map", &self.uids), ("gid_map", &self.gids)] {
            let text = text(ranges);
            fs::write(format!("/proc/{pid}/{file}"), &text).map_err(|source| UsersError::Map {
                file,
                pid,
                text,
                source,
            })?;
        }
        Ok(())
    }
}

fn outside(ranges: &[IdMapping], id: u32) -> Option<u32> {
    ranges.iter().find_map(|range| {
        let offset = id.checked_sub(range.container_id)?;
        (offset < range.length).then(|| range.host_id.checked_add(offset))?
    })
}

fn text(ranges: &[IdMapping]) -> String {
    let line = |range: &IdMapping| {
        let IdMapping {
            host_id,
            container_id,
            length,
        } = range;
        format!("{container_id} {host_id} {length}\n")
    };
    ranges.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_translated_inside_their_ranges_only() {
        let range = |container_id, host_id, length| IdMapping {
            host_id,
            container_id,
            length,
        };
        let maps = IdMaps {
            uids: vec![range(0, 100_000, 10), range(20, 7, 1)],
            gids: vec![range(0, 200_000, 5)],
        };
        for (inside, outside) in [
            (0, Some(100_000)),
            (9, Some(100_009)),
            (10, None),
            (20, Some(7)),
        ] {
            assert_eq!(maps.host_uid(inside), outside, "{inside}");
        }
        assert_eq!(maps.host_gid(5), None);
        assert_eq!(maps.root(), (100_000, 200_000));
        assert_eq!(text(&maps.uids), "0 100000 10\n20 7 1\n");
        assert_eq!(IdMaps::of_pod(&UserNamespace::Node), None);
    }
}
