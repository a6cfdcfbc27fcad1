//! What the parent gets ready before the child exists: everything that allocates, and every
//! descriptor of the host's.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crisp_sys::fd::{self, CWD};
use crisp_sys::mount::{self, AT_RECURSIVE, MS_SLAVE, MountAttr, OPEN_TREE_CLONE};
use crisp_sys::path;
use crisp_sys::process::StringArray;

use super::error::{At, CreateError, Failure, Stage};
use super::users::Users;
use crate::plan::{FdIndex, NamespaceHow, NamespaceKind, Plan, ProcessPlan, RootfsSource};

/// A program's arguments and environment as exec wants them.
#[derive(Debug)]
pub(super) struct Strings {
    pub(super) args: StringArray,
    pub(super) env: StringArray,
}

impl Strings {
    pub(super) fn new(process: &ProcessPlan) -> crisp_sys::Result<Self> {
        Ok(Self {
            args: StringArray::new(&process.args)?,
            env: StringArray::new(&process.env)?,
        })
    }
}

/// Why a process cannot be run as asked, if so.
pub(super) fn invalid_process(process: &ProcessPlan, terminal: bool) -> Option<String> {
    if process.args.is_empty() || process.args[0].is_empty() {
        return Some("process.args is empty".into());
    }
    if !process.cwd.starts_with('/') {
        return Some(format!("process.cwd {:?} is not absolute", process.cwd));
    }
    if process.terminal != terminal {
        return Some("terminal and standard streams disagree".into());
    }
    None
}

/// A namespace to be joined by the child.
#[derive(Debug)]
pub(super) struct Join<'p> {
    fd: Held<'p>,
    pub(super) kinds: i32,
}

#[derive(Debug)]
enum Held<'p> {
    Table(BorrowedFd<'p>),
    Opened(OwnedFd),
}

impl Join<'_> {
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.fd {
            Held::Table(fd) => *fd,
            Held::Opened(fd) => fd.as_fd(),
        }
    }
}

/// Everything the child works from.
#[derive(Debug)]
pub(super) struct Prepared<'p> {
    pub(super) plan: &'p Plan,
    pub(super) strings: Strings,
    /// `CLONE_NEW*` for clone3.
    pub(super) clone_flags: u64,
    /// `CLONE_NEW*` of what is made inside the user namespace that is joined.
    pub(super) inner_flags: u64,
    /// The ids of that user namespace.
    pub(super) users: Option<Users>,
    /// Joined by the child.
    pub(super) joins: Vec<Join<'p>>,
    /// Joined by the parent around the clone.
    pub(super) pid_join: Option<Join<'p>>,
    /// Whether the child makes a cgroup namespace, once it is in its group.
    pub(super) new_cgroup_namespace: bool,
    /// What takes the child into its group of cache and memory bandwidth.
    pub(super) resctrl: Option<OwnedFd>,
}

impl<'p> Prepared<'p> {
    pub(super) fn new(
        plan: &'p Plan,
        fds: &'p [OwnedFd],
        terminal: bool,
    ) -> Result<Self, CreateError> {
        check_plan(plan, terminal)?;
        let strings = Strings::new(&plan.process).map_err(|source| CreateError::Parent {
            stage: Stage::Plan,
            source,
        })?;
        let resctrl = open_resctrl(&plan.process).map_err(|source| CreateError::Parent {
            stage: Stage::Resctrl,
            source,
        })?;
        let mut prepared = Self {
            resctrl,
            plan,
            strings,
            clone_flags: 0,
            inner_flags: 0,
            users: None,
            joins: Vec::new(),
            pid_join: None,
            new_cgroup_namespace: false,
        };
        for entry in &plan.namespaces {
            let flag = entry.kind.flag();
            let join = match &entry.how {
                NamespaceHow::New if entry.kind == NamespaceKind::Cgroup => {
                    prepared.new_cgroup_namespace = true;
                    continue;
                }
                NamespaceHow::New => {
                    prepared.clone_flags |= u64::from(flag.unsigned_abs());
                    continue;
                }
                NamespaceHow::JoinPidfd(index) => Join {
                    fd: Held::Table(table(fds, *index)?),
                    kinds: flag,
                },
                NamespaceHow::JoinPath(path) => {
                    let opened =
                        path::openat(CWD, path, 0, 0).map_err(|source| CreateError::Open {
                            path: path.clone(),
                            source,
                        })?;
                    Join {
                        fd: Held::Opened(opened),
                        kinds: flag,
                    }
                }
            };
            match entry.kind {
                NamespaceKind::Pid => prepared.pid_join = Some(join),
                NamespaceKind::User => {
                    prepared.users = Some(users(plan, &entry.how, &join)?);
                    prepared.join(join);
                }
                _ => prepared.join(join),
            }
        }
        if prepared.users.is_some() {
            prepared.inner_flags = std::mem::take(&mut prepared.clone_flags);
            // After it nothing of the host's can be joined any more.
            let user = NamespaceKind::User.flag();
            prepared.joins.sort_by_key(|join| join.kinds & user != 0);
        }
        Ok(prepared)
    }

    /// Whether the child only is the way to the init: a PID namespace that the user namespace is to
    /// own has to be made from inside.
    pub(super) const fn relays(&self) -> bool {
        let pid = NamespaceKind::Pid.flag().unsigned_abs() as u64;
        self.inner_flags & pid != 0
    }

    /// One setns for all kinds of one process.
    fn join(&mut self, join: Join<'p>) {
        use std::os::fd::AsRawFd;
        if let Held::Table(fd) = &join.fd {
            for other in &mut self.joins {
                if matches!(&other.fd, Held::Table(known) if known.as_raw_fd() == fd.as_raw_fd()) {
                    other.kinds |= join.kinds;
                    return;
                }
            }
        }
        self.joins.push(join);
    }
}

/// The ids of the user namespace to be joined; the process must have some in it.
fn users(plan: &Plan, how: &NamespaceHow, join: &Join<'_>) -> Result<Users, CreateError> {
    let users = match how {
        NamespaceHow::JoinPath(path) => Users::of_path(path),
        _ => Users::of_process(join.as_fd()),
    };
    let users = users.map_err(|source| CreateError::Parent {
        stage: Stage::Namespaces,
        source,
    })?;
    match users.unmapped(&plan.process) {
        Some(reason) => Err(CreateError::Invalid(reason)),
        None => Ok(users),
    }
}

pub(super) fn table(fds: &[OwnedFd], index: FdIndex) -> Result<BorrowedFd<'_>, CreateError> {
    fds.get(usize::from(index.0))
        .map(AsFd::as_fd)
        .ok_or_else(|| {
            CreateError::Invalid(format!("descriptor {} of {} is named", index.0, fds.len()))
        })
}

fn check_plan(plan: &Plan, terminal: bool) -> Result<(), CreateError> {
    if let Some(reason) = invalid_process(&plan.process, terminal) {
        return Err(CreateError::Invalid(reason));
    }
    let mut seen = 0;
    for entry in &plan.namespaces {
        let flag = entry.kind.flag();
        if seen & flag != 0 {
            let name = entry.kind.name();
            return Err(CreateError::Invalid(format!(
                "namespace {name} is named twice"
            )));
        }
        seen |= flag;
        match entry.kind {
            NamespaceKind::User if entry.how == NamespaceHow::New => {
                return Err(CreateError::Unsupported("making a user namespace"));
            }
            NamespaceKind::Time => return Err(CreateError::Unsupported("time namespaces")),
            NamespaceKind::Mount if entry.how != NamespaceHow::New => {
                return Err(CreateError::Unsupported("joining a mount namespace"));
            }
            _ => {}
        }
    }
    if seen & NamespaceKind::Mount.flag() == 0 {
        return Err(CreateError::Unsupported(
            "containers without a mount namespace",
        ));
    }
    if (plan.hostname.is_some() || plan.domainname.is_some())
        && seen & NamespaceKind::Uts.flag() == 0
    {
        let reason = "a host name is to be set in the host's own UTS namespace";
        return Err(CreateError::Invalid(reason.into()));
    }
    let path = std::path::Path::new(&plan.cgroup.path);
    let climbs = path
        .components()
        .any(|part| part == std::path::Component::ParentDir);
    if !path.is_absolute() || climbs || path.parent().is_none() {
        let reason = format!(
            "cgroup path {:?} is not an absolute path below /",
            plan.cgroup.path
        );
        return Err(CreateError::Invalid(reason));
    }
    Ok(())
}

/// The root filesystem as a detached mount.
pub(super) fn open_rootfs(plan: &Plan, fds: &[OwnedFd]) -> Result<OwnedFd, CreateError> {
    match &plan.rootfs {
        RootfsSource::DetachedMount(index) => {
            fd::dup(table(fds, *index)?).map_err(|source| CreateError::Parent {
                stage: Stage::Rootfs,
                source,
            })
        }
        RootfsSource::Path(path) => {
            let open = || {
                let tree = mount::open_tree(CWD, path, OPEN_TREE_CLONE | AT_RECURSIVE)?;
                let slave = MountAttr {
                    propagation: MS_SLAVE,
                    ..MountAttr::default()
                };
                mount::mount_setattr(tree.as_fd(), true, &slave)?;
                Ok(tree)
            };
            open().map_err(|source| CreateError::Open {
                path: path.clone(),
                source,
            })
        }
    }
}

/// Opens what takes a process into its group of cache and memory bandwidth, if it has one.
pub(super) fn open_resctrl(process: &ProcessPlan) -> crisp_sys::Result<Option<OwnedFd>> {
    const O_WRONLY: i32 = 1;
    let open = |tasks: &String| path::openat(CWD, tasks, O_WRONLY, 0);
    process.resctrl.as_ref().map(open).transpose()
}

/// Joins that group; children inherit it.
pub(super) fn join_resctrl(tasks: Option<&OwnedFd>) -> Result<(), Failure> {
    match tasks {
        // 0 stands for whoever writes it.
        Some(tasks) => fd::write_all(tasks.as_fd(), b"0").at(Stage::Resctrl, "tasks"),
        None => Ok(()),
    }
}
