//! The daemon's side of a pause: start one, find one again, end one. All of it may block.

use std::{
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use crisp_oci::cgroup::{Cgroup, CgroupError, DeviceRule, Hierarchy, Resources};
use crisp_pause::{FrameError, MAPPED, MAX_FRAME, PROGRAM_NAME, Reply, Request};
use crisp_sys::{event, pidfd, socket};

use super::{
    files,
    record::{PauseRecord, SandboxRecord},
    spec::{IpcMode, PidMode, SandboxSpec, UserNamespace},
};
use crate::{
    error::{Classify, ErrorKind},
    failpoint,
    id::SandboxId,
    userns::{IdMaps, UsersError},
};

/// How long a pause may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long a killed pause may take to end.
const END_LIMIT: Duration = Duration::from_secs(10);
/// What kubelet's own choice for a pause is: the last of the pod to be killed for memory.
const OOM_SCORE_ADJ: i32 = -998;
/// How deep below the top the group of a pause is looked for.
const MAX_DEPTH: usize = 10;
const POLLIN: i16 = 1;

/// Why there is no pause.
#[derive(Debug, thiserror::Error)]
pub enum PauseError {
    /// Its cgroup could not be made.
    #[error("cannot make the cgroup {path}")]
    Cgroup {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: CgroupError,
    },
    /// The process could not be started.
    #[error("cannot start pause")]
    Spawn(#[source] io::Error),
    /// Its socket failed.
    #[error("cannot talk to pause")]
    Talk(#[source] crisp_sys::Error),
    /// It answered what is no frame.
    #[error("pause answered nonsense")]
    Frame(#[source] FrameError),
    /// It ended without an answer.
    #[error("pause ended without an answer")]
    Silent,
    /// It did not answer in time.
    #[error("pause did not answer within {0:?}")]
    Late(Duration),
    /// Its user namespace could not get its maps.
    #[error("cannot map the ids of the pod")]
    Users(#[source] UsersError),
    /// It could not do what was asked.
    #[error("{stage}: {message}")]
    Refused {
        /// The step that failed.
        stage: String,
        /// What happened, for people.
        message: String,
        /// The kernel's error number.
        errno: i32,
    },
}

impl Classify for PauseError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Late(_) => ErrorKind::Deadline,
            Self::Users(error) => error.kind(),
            Self::Refused { stage, errno, .. } => match *errno {
                libc::ENOSPC | libc::ENOMEM | libc::EAGAIN => ErrorKind::Exhausted,
                libc::EINVAL | libc::ENOENT if stage.contains("sysctl") => {
                    ErrorKind::InvalidArgument
                }
                _ => ErrorKind::Internal,
            },
            Self::Cgroup { .. }
            | Self::Spawn(_)
            | Self::Talk(_)
            | Self::Frame(_)
            | Self::Silent => ErrorKind::Internal,
        }
    }
}

/// What a pause is to be.
#[derive(Debug, Clone)]
pub struct PauseRequest {
    id: SandboxId,
    cgroup: String,
    hierarchy: Hierarchy,
    /// Maps of its user namespace, if it is to have one.
    users: Option<IdMaps>,
    request: Request,
}

/// A pause that holds its namespaces.
pub struct PauseHandle {
    /// In the daemon's PID namespace.
    pub pid: i32,
    /// Clock ticks since boot.
    pub start_time: u64,
    /// Names it.
    pub pidfd: OwnedFd,
    /// Its network namespace, if it made one.
    pub netns: Option<OwnedFd>,
}

/// The cgroup of a sandbox's pause.
#[must_use]
pub fn cgroup_of(parent: &str, id: &SandboxId) -> String {
    format!(
        "{}/crisp-pause-{}",
        parent.trim_end_matches('/'),
        id.short()
    )
}

/// Where the containers of a sandbox find their shared memory.
#[must_use]
pub fn shm_path(spec: &SandboxSpec, state: &Path) -> Option<PathBuf> {
    match spec.security.namespaces.ipc {
        IpcMode::Node => Some(PathBuf::from("/dev/shm")),
        IpcMode::Pod => Some(state.join("shm")),
    }
}

impl PauseRequest {
    /// The pause of the sandbox of `record`.
    #[must_use]
    pub fn for_sandbox(record: &SandboxRecord, hierarchy: &Hierarchy) -> Self {
        let spec = &record.spec;
        let namespaces = &spec.security.namespaces;
        let host_network = spec.host_network();
        let cgroup = cgroup_of(&record.cgroup_parent, &record.id);
        let sysctls = spec
            .sysctls
            .iter()
            .map(|(key, value)| (proc_path(key), value.clone()));
        let users = IdMaps::of_pod(&namespaces.user);
        Self {
            id: record.id.clone(),
            hierarchy: hierarchy.clone(),
            request: Request {
                user: users.is_some(),
                network: !host_network,
                ipc: namespaces.ipc == IpcMode::Pod,
                // With the host's network goes the host's name.
                uts: !host_network,
                pid: namespaces.pid == PidMode::Pod,
                hostname: (!host_network).then(|| files::host_name(spec, &record.id)),
                sysctls: default_sysctls(spec).into_iter().chain(sysctls).collect(),
                cgroup_files: join_files(hierarchy, &cgroup),
                oom_score_adj: OOM_SCORE_ADJ,
            },
            users,
            cgroup,
        }
    }
}

/// `a.b/c` names the file `a/b.c`: dots separate, and a slash stands for a dot.
fn proc_path(key: &str) -> String {
    key.chars()
        .map(|c| match c {
            '.' => '/',
            '/' => '.',
            other => other,
        })
        .collect()
}

/// What a pod of its own network may do without privileges unless it says otherwise: bind low ports
/// and send pings. Its namespace makes both harmless.
fn default_sysctls(spec: &SandboxSpec) -> Vec<(String, String)> {
    if spec.host_network() {
        return Vec::new();
    }
    let groups = match spec.security.namespaces.user {
        UserNamespace::Node => "0 2147483647".to_owned(),
        // Groups that the pod's namespace does not have cannot be named in it.
        UserNamespace::Pod { gids, .. } => {
            let last = gids.container_id.saturating_add(gids.length - 1);
            format!("{} {last}", gids.container_id)
        }
    };
    let defaults = [
        ("net.ipv4.ip_unprivileged_port_start", "0".to_owned()),
        ("net.ipv4.ping_group_range", groups),
    ];
    defaults
        .into_iter()
        .filter(|(key, _)| !spec.sysctls.contains_key(*key))
        .map(|(key, value)| (proc_path(key), value))
        .collect()
}

/// The files that a process writes `0` to in order to join a group.
fn join_files(hierarchy: &Hierarchy, path: &str) -> Vec<String> {
    let file = |mount: &Path, name: &str| {
        let joined = mount.join(path.trim_start_matches('/')).join(name);
        joined.to_string_lossy().into_owned()
    };
    match hierarchy {
        Hierarchy::V2 { mount } => vec![file(mount, "cgroup.procs")],
        // Not the unified tree beside them: it limits nothing, pause is named by its pidfd, and a
        // write to cgroup.procs waits for a grace period of the whole machine, some 10 ms.
        Hierarchy::V1 { controllers, .. } => {
            let mut mounts: Vec<&PathBuf> = controllers.iter().map(|(_, mount)| mount).collect();
            mounts.sort();
            mounts.dedup();
            let tasks = mounts.into_iter().map(|mount| file(mount, "tasks"));
            tasks.collect()
        }
    }
}

/// Where a group lies in each tree.
fn group_dirs(hierarchy: &Hierarchy, path: &str) -> Vec<PathBuf> {
    let below = |mount: &PathBuf| mount.join(path.trim_start_matches('/'));
    match hierarchy {
        Hierarchy::V2 { mount } => vec![below(mount)],
        Hierarchy::V1 {
            controllers,
            unified,
        } => {
            let mut dirs: Vec<PathBuf> =
                controllers.iter().map(|(_, mount)| below(mount)).collect();
            dirs.extend(unified.iter().map(below));
            dirs.sort();
            dirs.dedup();
            dirs
        }
    }
}

/// Whether a group is there in any tree.
#[must_use]
pub fn group_exists(hierarchy: &Hierarchy, path: &str) -> bool {
    group_dirs(hierarchy, path).iter().any(|dir| dir.exists())
}

/// Removes the group of a pause that has ended; none is fine.
///
/// # Errors
/// When the kernel refuses.
pub fn remove_group(hierarchy: &Hierarchy, path: &str) -> io::Result<()> {
    let group = Cgroup::observe(hierarchy, path).map_err(io::Error::other)?;
    group.remove().map_err(io::Error::other)
}

/// The groups of the pause of a sandbox whose record is lost, and with it the parent's name: they
/// are looked for by their own.
#[must_use]
pub fn find_groups(hierarchy: &Hierarchy, id: &SandboxId) -> Vec<String> {
    let name = cgroup_of("", id);
    let mut found = Vec::new();
    for top in group_dirs(hierarchy, "/") {
        search_groups(&top, "", name.trim_start_matches('/'), &mut found);
    }
    found.sort();
    found.dedup();
    found
}

fn search_groups(dir: &Path, path: &str, name: &str, found: &mut Vec<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(file) = entry.file_name().into_string() else {
            continue;
        };
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let below = format!("{path}/{file}");
        if file == name {
            found.push(below);
        } else if below.matches('/').count() < MAX_DEPTH {
            search_groups(&entry.path(), &below, name, found);
        }
    }
}

/// Removes a group that only held others. One that is in use again, or not there, is left.
///
/// # Errors
/// When the kernel refuses for another reason.
pub fn remove_parent_group(hierarchy: &Hierarchy, path: &str) -> io::Result<()> {
    for dir in group_dirs(hierarchy, path) {
        match fs::remove_dir(&dir) {
            Err(error)
                if !matches!(
                    error.raw_os_error(),
                    Some(libc::ENOENT | libc::EBUSY | libc::ENOTEMPTY)
                ) =>
            {
                return Err(error);
            }
            _ => {}
        }
    }
    Ok(())
}

/// Starts, finds and ends pauses.
pub struct Pause;

impl Pause {
    /// Starts a pause and waits until it holds its namespaces.
    ///
    /// # Errors
    /// Any [`PauseError`]; then no process of it is left.
    pub fn spawn(program: &OwnedFd, pause: &PauseRequest) -> Result<PauseHandle, PauseError> {
        // A parent that only holds groups must allow every device, or no child could.
        Cgroup::create(
            &pause.hierarchy,
            &pause.cgroup,
            &Resources::default(),
            &[DeviceRule::ALLOW_ALL],
        )
        .map_err(|source| PauseError::Cgroup {
            path: pause.cgroup.clone(),
            source,
        })?;
        failpoint::reach(format_args!("sandbox.namespaces.cgroup"));
        let (ours, theirs) = socket::seqpacket_pair().map_err(PauseError::Talk)?;
        let mut child = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
            .arg0(PROGRAM_NAME)
            .arg(pause.id.as_str())
            .env_clear()
            .current_dir("/")
            .stdin(theirs)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(PauseError::Spawn)?;
        failpoint::reach(format_args!("sandbox.namespaces.spawned"));
        match converse(&ours, pause, child.id()) {
            Ok(handle) => {
                if i64::from(handle.pid) != i64::from(child.id()) {
                    // The first one has put PID 1 in its place and ends.
                    child.wait().map_err(PauseError::Spawn)?;
                }
                Ok(handle)
            }
            Err(error) => {
                end_child(&mut child);
                Err(error)
            }
        }
    }

    /// A pidfd of the pause with this number and start time, if it lives.
    #[must_use]
    pub fn adopt(pid: i32, start_time: u64) -> Option<OwnedFd> {
        let descriptor = pidfd::open(pid).ok()?;
        // The descriptor first, the check second: what it names cannot change any more.
        (pidfd::start_time(pid).ok()? == start_time).then_some(descriptor)
    }

    /// Ends the pause of a sandbox. Without a record of its process it is looked for by its command
    /// line: the daemon may have died between starting and recording it.
    ///
    /// # Errors
    /// `TimedOut` when it does not end.
    pub fn end(id: &SandboxId, known: Option<PauseRecord>) -> io::Result<()> {
        let found = match known {
            Some(pause) => Self::adopt(pause.pid, pause.start_time)
                .into_iter()
                .collect(),
            None => search(id)?,
        };
        for descriptor in found {
            pidfd::send_signal(descriptor.as_fd(), libc::SIGKILL).ok();
            if !event::poll(descriptor.as_fd(), POLLIN, Some(END_LIMIT))? {
                let late = format!("it does not end within {END_LIMIT:?}");
                return Err(io::Error::new(io::ErrorKind::TimedOut, late));
            }
        }
        Ok(())
    }
}

fn converse(
    control: &OwnedFd,
    pause: &PauseRequest,
    child: u32,
) -> Result<PauseHandle, PauseError> {
    let request = pause.request.encode();
    socket::send_with_fds(control.as_fd(), &request, &[]).map_err(PauseError::Talk)?;
    if let Some(maps) = &pause.users {
        if let (Reply::Held { .. }, _) = receive(control)? {
            return Err(PauseError::Silent);
        }
        maps.write(child).map_err(PauseError::Users)?;
        socket::send_with_fds(control.as_fd(), MAPPED, &[]).map_err(PauseError::Talk)?;
    }
    let (Reply::Held { pid }, descriptors) = receive(control)? else {
        return Err(PauseError::Silent);
    };
    let mut descriptors = descriptors.into_iter();
    let pidfd = descriptors.next().ok_or(PauseError::Silent)?;
    let start_time = pidfd::start_time(pid).map_err(PauseError::Talk)?;
    Ok(PauseHandle {
        pid,
        start_time,
        pidfd,
        netns: descriptors.next(),
    })
}

/// The next frame, unless it is that of a failure.
fn receive(control: &OwnedFd) -> Result<(Reply, Vec<OwnedFd>), PauseError> {
    if !event::poll(control.as_fd(), POLLIN, Some(ANSWER_LIMIT)).map_err(PauseError::Talk)? {
        return Err(PauseError::Late(ANSWER_LIMIT));
    }
    let mut frame = vec![0; MAX_FRAME];
    let (length, descriptors) =
        socket::recv_with_fds(control.as_fd(), &mut frame, 2).map_err(PauseError::Talk)?;
    if length == 0 {
        return Err(PauseError::Silent);
    }
    match Reply::decode(&frame[..length]).map_err(PauseError::Frame)? {
        Reply::Failed {
            stage,
            message,
            errno,
        } => Err(PauseError::Refused {
            stage,
            message,
            errno,
        }),
        reply => Ok((reply, descriptors)),
    }
}

fn end_child(child: &mut Child) {
    child.kill().ok();
    child.wait().ok();
}

fn search(id: &SandboxId) -> io::Result<Vec<OwnedFd>> {
    let wanted = format!("{PROGRAM_NAME}\0{id}\0").into_bytes();
    let is_it =
        |pid: i32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == wanted);
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        if !is_it(pid) {
            continue;
        }
        if let Ok(descriptor) = pidfd::open(pid) {
            // Again, now that the number cannot come to mean another process.
            if is_it(pid) {
                found.push(descriptor);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysctl_keys_become_paths() {
        assert_eq!(
            proc_path("kernel.shm_rmid_forced"),
            "kernel/shm_rmid_forced"
        );
        let with_dot = proc_path("net.ipv4.conf.eth0/1.forwarding");
        assert_eq!(with_dot, "net/ipv4/conf/eth0.1/forwarding");
    }

    #[test]
    fn a_pod_with_a_network_of_its_own_may_ping_and_bind_low_ports() {
        use super::super::spec::{IdMapping, NetworkMode};
        let mut spec = SandboxSpec::default();
        let of = |spec: &SandboxSpec, file: &str| {
            let all = default_sysctls(spec);
            let found = all.into_iter().find(|(key, _)| key.ends_with(file));
            found.map(|(_, value)| value)
        };
        let (ping, ports) = ("ping_group_range", "ip_unprivileged_port_start");
        assert_eq!(of(&spec, ping).as_deref(), Some("0 2147483647"));
        assert_eq!(of(&spec, ports).as_deref(), Some("0"));
        let ids = IdMapping {
            host_id: 100_000,
            container_id: 0,
            length: 65536,
        };
        spec.security.namespaces.user = UserNamespace::Pod {
            uids: ids,
            gids: ids,
        };
        assert_eq!(of(&spec, ping).as_deref(), Some("0 65535"));
        let asked = "net.ipv4.ping_group_range".to_owned();
        spec.sysctls.insert(asked, "1 0".to_owned());
        assert_eq!(of(&spec, ping), None, "what was asked for counts");
        spec.security.namespaces.network = NetworkMode::Node;
        assert!(default_sysctls(&spec).is_empty());
    }

    #[test]
    fn a_group_is_joined_once_in_every_tree_that_limits() {
        let hierarchy = Hierarchy::V1 {
            controllers: vec![
                ("cpu".to_owned(), "/c/cpu,cpuacct".into()),
                ("cpuacct".to_owned(), "/c/cpu,cpuacct".into()),
                ("pids".to_owned(), "/c/pids".into()),
            ],
            unified: Some("/c/unified".into()),
        };
        let expected = ["/c/cpu,cpuacct/a/b/tasks", "/c/pids/a/b/tasks"];
        assert_eq!(join_files(&hierarchy, "/a/b"), expected);
    }
}
