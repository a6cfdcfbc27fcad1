//! The user namespace of a pod: what is done before it is entered, and what right after.
//!
//! Who enters gives up every privilege over the host. So the child first does as the host's root
//! what only that may: the OOM score, ceilings of limits, the owner of its streams. Inside it becomes
//! the namespace's root, and everything made from then on belongs to that: further namespaces, mount
//! points, files. A PID namespace that is to belong to the user namespace can only be made by a
//! process inside; then the child makes the init as a sibling of its own and ends (`init::relay`).

use std::os::fd::{AsRawFd, BorrowedFd};

use crisp_sys::{Errno, Error, cred, pidfd};

use super::IoPlan;
use super::error::{At, Failure, Stage};
use super::identity;
use super::procfs::Procfs;
use crate::plan::ProcessPlan;

/// One range of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    inside: u32,
    outside: u32,
    length: u32,
}

/// Ids of a user namespace and what they are outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Map(Vec<Range>);

impl Map {
    /// As /proc/pid/uid_map has it.
    fn parse(text: &str) -> Option<Self> {
        let range = |line: &str| {
            let mut numbers = line.split_whitespace().map(str::parse);
            let mut next = || numbers.next()?.ok();
            Some(Range {
                inside: next()?,
                outside: next()?,
                length: next()?,
            })
        };
        text.lines().map(range).collect::<Option<_>>().map(Self)
    }

    fn outside(&self, id: u32) -> Option<u32> {
        let range = |range: &Range| {
            let offset = id.checked_sub(range.inside)?;
            (offset < range.length).then(|| range.outside.wrapping_add(offset))
        };
        self.0.iter().find_map(range)
    }
}

/// The ids of a user namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Users {
    uids: Map,
    gids: Map,
}

impl Users {
    /// Those of the namespace a process is in.
    pub(super) fn of_process(process: BorrowedFd<'_>) -> crisp_sys::Result<Self> {
        let pid = number_of(process)?;
        let map = |file: &str| {
            let path = format!("/proc/{pid}/{file}");
            let text = std::fs::read_to_string(&path).map_err(|error| failed(&path, &error))?;
            Map::parse(&text).ok_or_else(|| Error::new("read", path, Errno::EBADMSG))
        };
        let users = Self {
            uids: map("uid_map")?,
            gids: map("gid_map")?,
        };
        // Were it gone by now, the number might have meant another process.
        pidfd::send_signal(process, 0)?;
        Ok(users)
    }

    /// Those of the namespace that a path such as `/proc/1/ns/user` stands for.
    pub(super) fn of_path(path: &str) -> crisp_sys::Result<Self> {
        let number = path
            .strip_prefix("/proc/")
            .and_then(|rest| rest.strip_suffix("/ns/user"))
            .and_then(|pid| pid.parse().ok());
        let pid = number.ok_or_else(|| Error::new("open", path, Errno::EINVAL))?;
        use std::os::fd::AsFd;
        Self::of_process(pidfd::open(pid)?.as_fd())
    }

    /// Why a process cannot be in the namespace as asked, if so.
    pub(super) fn unmapped(&self, process: &ProcessPlan) -> Option<String> {
        let missing = |field: &str, id: u32| {
            Some(format!("{field} {id} is not mapped in the user namespace"))
        };
        if self.uids.outside(process.uid).is_none() {
            return missing("process.user.uid", process.uid);
        }
        let mut groups = std::iter::once(&process.gid).chain(&process.additional_gids);
        let group = groups.find(|gid| self.gids.outside(**gid).is_none())?;
        missing("process.user.gid", *group)
    }

    /// What the host calls a user of the namespace.
    pub(super) fn host_uid(&self, uid: u32) -> Option<u32> {
        self.uids.outside(uid)
    }
}

/// A process's number, by its descriptor.
fn number_of(process: BorrowedFd<'_>) -> crisp_sys::Result<i32> {
    let path = format!("/proc/self/fdinfo/{}", process.as_raw_fd());
    let text = std::fs::read_to_string(&path).map_err(|error| failed(&path, &error))?;
    let number = text.lines().find_map(|line| line.strip_prefix("Pid:"));
    match number.and_then(|number| number.trim().parse().ok()) {
        Some(pid) if pid > 0 => Ok(pid),
        _ => Err(Error::new("read", path, Errno::ESRCH)),
    }
}

fn failed(path: &str, error: &std::io::Error) -> Error {
    Error::new("read", path, Errno(error.raw_os_error().unwrap_or(5)))
}

/// What only the host's root may do for a process; done by the child before it enters. The procfs,
/// if one is wanted, keeps the view and the rights of the host's root.
pub(super) fn leave_host(
    users: &Users,
    process: &ProcessPlan,
    io: &IoPlan,
    wants_procfs: bool,
) -> Result<Option<Procfs>, Failure> {
    let procfs = match wants_procfs {
        true => Some(Procfs::open().at(Stage::Mount, "private procfs")?),
        false => None,
    };
    identity::settle_oom_score(process, procfs.as_ref())?;
    identity::raise_ceilings(process).at(Stage::Limits, "rlimits")?;
    if let (IoPlan::Stdio(stdio), Some(uid)) = (io, users.host_uid(process.uid)) {
        stdio.give(uid).at(Stage::Stdio, "")?;
    }
    Ok(procfs)
}

/// Becomes the root of the user namespace that was just entered.
pub(super) fn become_root() -> Result<(), Failure> {
    let become_root = || {
        cred::setgroups(&[])?;
        cred::setresgid(0)?;
        cred::setresuid(0)?;
        // A change of user makes the process what fs.suid_dumpable says.
        cred::set_dumpable(false)
    };
    become_root().at(Stage::Identity, "root of the user namespace")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_lead_outside() {
        let map =
            Map::parse("         0     100000      65536\n     65536          5          1\n");
        let map = map.unwrap();
        for (inside, outside) in [
            (0, Some(100_000)),
            (65535, Some(165_535)),
            (65536, Some(5)),
            (65537, None),
            (u32::MAX, None),
        ] {
            assert_eq!(map.outside(inside), outside, "{inside}");
        }
        assert_eq!(Map::parse("0 1"), None);
        assert_eq!(Map::parse("0 1 x"), None);
    }

    #[test]
    fn who_is_not_mapped_is_named() {
        let map = Map::parse("0 1000 10").unwrap();
        let users = Users {
            uids: map.clone(),
            gids: map,
        };
        let mut process = ProcessPlan {
            uid: 9,
            gid: 9,
            ..ProcessPlan::default()
        };
        assert_eq!(users.unmapped(&process), None);
        process.additional_gids = vec![3, 10];
        assert!(users.unmapped(&process).unwrap().contains("gid 10"));
        process.uid = 11;
        assert!(users.unmapped(&process).unwrap().contains("uid 11"));
    }

    #[test]
    fn the_maps_of_a_process_are_read_through_its_descriptor() {
        use std::os::fd::AsFd;
        let own = pidfd::open(std::process::id().cast_signed()).unwrap();
        let users = Users::of_process(own.as_fd()).unwrap();
        assert_eq!(users.host_uid(1234), Some(1234), "nothing is mapped here");
        let path = format!("/proc/{}/ns/user", std::process::id());
        assert_eq!(Users::of_path(&path), Ok(users));
        assert!(Users::of_path("/run/userns").is_err());
    }
}
