//! What the parent gets ready before the child exists: everything that allocates, and every
//! descriptor of the host's.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crisp_sys::fd::{self, CWD};
use crisp_sys::mount::{
    self, AT_EMPTY_PATH, AT_RECURSIVE, MS_PRIVATE, MS_REC, MS_SHARED, MS_SLAVE, MS_UNBINDABLE,
    MountAttr, OPEN_TREE_CLONE,
};
use crisp_sys::path::{self, Root};
use crisp_sys::process::StringArray;

use super::error::{CreateError, Stage};
use crate::plan::{
    BindStep, FdIndex, NamespaceHow, NamespaceKind, Plan, ProcessPlan, RootfsSource, Step,
};

const O_PATH: i32 = 0o10_000_000;

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

/// A source that a [`Step::Bind`] attaches.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) mount: OwnedFd,
    pub(super) is_dir: bool,
    pub(super) is_proc: bool,
}

/// Everything the child works from.
#[derive(Debug)]
pub(super) struct Prepared<'p> {
    pub(super) plan: &'p Plan,
    pub(super) strings: Strings,
    /// `CLONE_NEW*` for clone3.
    pub(super) clone_flags: u64,
    /// Joined by the child.
    pub(super) joins: Vec<Join<'p>>,
    /// Joined by the parent around the clone.
    pub(super) pid_join: Option<Join<'p>>,
    /// Whether the child makes a cgroup namespace, once it is in its group.
    pub(super) new_cgroup_namespace: bool,
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
        let mut prepared = Self {
            plan,
            strings,
            clone_flags: 0,
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
            if entry.kind == NamespaceKind::Pid {
                prepared.pid_join = Some(join);
            } else {
                prepared.join(join);
            }
        }
        Ok(prepared)
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

fn table(fds: &[OwnedFd], index: FdIndex) -> Result<BorrowedFd<'_>, CreateError> {
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
            NamespaceKind::User => return Err(CreateError::Unsupported("user namespaces")),
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

/// The sources of all bind steps, in their order. Opened as late as possible: what the host
/// mounts below a source afterwards arrives only through propagation.
pub(super) fn open_sources(plan: &Plan) -> Result<Vec<Source>, CreateError> {
    let mut sources = Vec::new();
    for step in &plan.steps {
        if let Step::Bind(bind) = step {
            if bind.idmap.is_some() {
                return Err(CreateError::Unsupported("idmapped mounts"));
            }
            let source = open_source(bind).map_err(|source| CreateError::Open {
                path: bind.source.clone(),
                source,
            })?;
            sources.push(source);
        }
    }
    Ok(sources)
}

fn open_source(bind: &BindStep) -> crisp_sys::Result<Source> {
    const PROC_SUPER_MAGIC: u64 = 0x9fa0;
    let flags = OPEN_TREE_CLONE | if bind.recursive { AT_RECURSIVE } else { 0 };
    let mount = match &bind.in_root {
        None => mount::open_tree(CWD, &bind.source, flags)?,
        Some(below) => {
            let found = Root::open(&bind.source)?.open_in_root(below, O_PATH)?;
            mount::open_tree(found.as_fd(), "", flags | AT_EMPTY_PATH)?
        }
    };
    set_source_attributes(mount.as_fd(), bind)?;
    let stat = path::fstat(mount.as_fd())?;
    let is_proc = path::filesystem_magic(mount.as_fd())? == PROC_SUPER_MAGIC;
    Ok(Source {
        mount,
        is_dir: stat.is_dir(),
        is_proc,
    })
}

/// Propagation as if the clone had been made inside a mount namespace that is a slave of the
/// host's: it receives what the host mounts but sends nothing, unless sharing is asked for. Then
/// it stays in the host's peer group.
fn set_source_attributes(mount: BorrowedFd<'_>, bind: &BindStep) -> crisp_sys::Result<()> {
    let recursive = bind.propagation & MS_REC != 0;
    let asked = bind.propagation & (MS_PRIVATE | MS_SLAVE | MS_SHARED | MS_UNBINDABLE);
    let propagate = |kind: u64, recursive: bool| {
        let attr = MountAttr {
            propagation: kind,
            ..MountAttr::default()
        };
        mount::mount_setattr(mount, recursive, &attr)
    };
    if asked != MS_SHARED && (asked == 0 || asked == MS_SLAVE || !recursive) {
        propagate(MS_SLAVE, true)?;
    }
    if asked != 0 && asked != MS_SLAVE {
        propagate(asked, recursive)?;
    }
    let (set, clear) = (bind.attr_set_recursive, bind.attr_clear_recursive);
    if set | clear != 0 {
        mount::mount_setattr(
            mount,
            true,
            &MountAttr {
                set,
                clear,
                ..MountAttr::default()
            },
        )?;
    }
    let (set, clear) = (bind.attr_set, bind.attr_clear);
    if set | clear != 0 {
        mount::mount_setattr(
            mount,
            false,
            &MountAttr {
                set,
                clear,
                ..MountAttr::default()
            },
        )?;
    }
    Ok(())
}
