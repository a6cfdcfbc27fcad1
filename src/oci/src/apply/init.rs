//! The container's init, from clone to exec.

use std::os::fd::{AsFd, OwnedFd};

use crisp_sys::clone::{self, CloneArgs, InChild, SingleThreaded};
use crisp_sys::fd::CWD;
use crisp_sys::mount::{self, MNT_DETACH, MOUNT_ATTR_RDONLY, MS_REC, MS_SLAVE, MountAttr};
use crisp_sys::path::{self, Root};
use crisp_sys::{cred, ns, process};

use super::IoPlan;
use super::channel::ChildEnd;
use super::error::{At, Failure, Stage, hook_failure, join_failure};
use super::prepare::{Prepared, join_resctrl};
use super::procfs::Procfs;
use super::sources::Source;
use super::stdio::Terminal;
use super::steps::Builder;
use super::{hooks, identity, users};
use crate::cgroup::Cgroup;
use crate::plan::{NamespaceKind, Plan};

const CLONE_PARENT: u64 = 0x8000;
const O_PATH: i32 = 0o10_000_000;
const O_DIRECTORY: i32 = 0o200_000;

/// What init works from.
pub(super) struct Init<'a> {
    pub(super) token: &'a SingleThreaded,
    pub(super) prepared: &'a Prepared<'a>,
    pub(super) cgroup: &'a Cgroup,
    pub(super) rootfs: &'a OwnedFd,
    pub(super) sources: &'a [Source],
    pub(super) io: &'a IoPlan,
    pub(super) channel: &'a ChildEnd,
}

/// Runs the child that was just made: the init, or the way to it. Returns its exit code if it never
/// became the program.
pub(super) fn run(init: &Init<'_>, in_child: &InChild) -> i32 {
    match enter(init) {
        Ok(procfs) if init.prepared.relays() => relay(init, in_child, procfs.as_ref()),
        Ok(procfs) => live(init, in_child, procfs.as_ref()),
        Err(failure) => {
            init.channel.fail(&failure);
            1
        }
    }
}

/// Makes the init from inside the user namespace, with the namespaces that are to belong to it, as a
/// child of our parent's.
fn relay(init: &Init<'_>, in_child: &InChild, procfs: Option<&Procfs>) -> i32 {
    let args = CloneArgs {
        flags: init.prepared.inner_flags | CLONE_PARENT,
        cgroup: None,
    };
    let token = in_child.single_threaded();
    let made = clone::clone3(&token, &args, |inside| live(init, inside, procfs));
    let told = made.at(Stage::Clone, "").and_then(|made| {
        let told = init.channel.init(&made);
        told.at(Stage::Channel, "")
    });
    match told {
        Ok(()) => 0,
        Err(failure) => {
            init.channel.fail(&failure);
            1
        }
    }
}

/// The init, in all its namespaces.
fn live(init: &Init<'_>, in_child: &InChild, procfs: Option<&Procfs>) -> i32 {
    let failure = match build(init, procfs) {
        Err(failure) => Some(failure),
        Ok(()) => {
            let wait = || {
                init.channel.ready().at(Stage::Channel, "")?;
                init.channel.wait().at(Stage::Channel, "")
            };
            let process = &init.prepared.plan.process;
            identity::run(
                in_child,
                init.channel,
                process,
                &init.prepared.strings,
                wait,
            )
        }
    };
    if let Some(failure) = failure {
        init.channel.fail(&failure);
    }
    1
}

fn build(init: &Init<'_>, procfs: Option<&Procfs>) -> Result<(), Failure> {
    let plan = init.prepared.plan;
    set_names(plan)?;
    for (name, value) in &plan.sysctls {
        if let Some(procfs) = procfs {
            write_sysctl(procfs, name, value).at(Stage::Sysctl, name)?;
        }
    }
    let terminal = build_root(init)?;
    process::setsid().at(Stage::Stdio, "")?;
    match (init.io, &terminal) {
        (IoPlan::Stdio(stdio), _) => stdio.install(plan.process.uid).at(Stage::Stdio, "")?,
        (IoPlan::Terminal, Some(terminal)) => {
            terminal
                .install(plan.process.uid, plan.process.console_size)
                .at(Stage::Console, "")?;
            init.channel
                .console(terminal.master.as_fd())
                .at(Stage::Console, "")?;
        }
        (IoPlan::Terminal, None) => {}
    }
    identity::prepare(&plan.process, procfs)
}

/// Enters cgroup and namespaces, and gives back a procfs if one is needed.
fn enter(init: &Init<'_>) -> Result<Option<Procfs>, Failure> {
    // Nobody may look into a copy of the monitor that has the container's identity.
    cred::set_dumpable(false).at(Stage::Identity, "")?;
    process::reset_signals().at(Stage::Identity, "")?;
    process::umask(0);
    // The clone put us into the unified tree. A cgroup namespace is rooted where we are.
    init.cgroup.join_self_v1().map_err(join_failure)?;
    join_resctrl(init.prepared.resctrl.as_ref())?;
    let (prepared, plan) = (init.prepared, init.prepared.plan);
    let wants_procfs = !plan.sysctls.is_empty() || identity::needs_procfs(&plan.process);
    let mut procfs = None;
    if let Some(users) = &prepared.users {
        procfs = users::leave_host(users, &plan.process, init.io, wants_procfs)?;
    }
    for join in &prepared.joins {
        ns::setns(join.as_fd(), join.kinds).at(Stage::Namespaces, "")?;
    }
    if prepared.users.is_some() {
        users::become_root()?;
        if !prepared.relays() {
            let kinds = i32::try_from(prepared.inner_flags).expect("namespaces' flags fit an int");
            ns::unshare(kinds).at(Stage::Namespaces, "")?;
        }
    }
    if prepared.new_cgroup_namespace {
        ns::unshare(NamespaceKind::Cgroup.flag()).at(Stage::Namespaces, "cgroup")?;
    }
    if prepared.users.is_none() && wants_procfs {
        procfs = Some(Procfs::open().at(Stage::Mount, "private procfs")?);
        identity::settle_oom_score(&plan.process, procfs.as_ref())?;
    }
    Ok(procfs)
}

fn set_names(plan: &Plan) -> Result<(), Failure> {
    if let Some(name) = &plan.hostname {
        ns::sethostname(name.as_bytes()).at(Stage::Hostname, "")?;
    }
    if let Some(name) = &plan.domainname {
        ns::setdomainname(name.as_bytes()).at(Stage::Hostname, "")?;
    }
    Ok(())
}

fn write_sysctl(procfs: &Procfs, name: &str, value: &str) -> crisp_sys::Result<()> {
    let mut file = [0; 256];
    let length = 4 + name.len();
    if length > file.len() {
        let errno = crisp_sys::Errno::ENAMETOOLONG;
        return Err(crisp_sys::Error::new("sysctl", name, errno));
    }
    file[..4].copy_from_slice(b"sys/");
    file[4..length].copy_from_slice(name.as_bytes());
    procfs.write(&file[..length], value.as_bytes())
}

/// Attaches the root, carries out the steps, moves in. Returns the terminal, if there is one.
fn build_root(init: &Init<'_>) -> Result<Option<Terminal>, Failure> {
    let plan = init.prepared.plan;
    let hooked = Hooked::of(plan)?;
    // What we mount must not reach the host; what the host mounts still reaches volumes.
    detach_propagation().at(Stage::Rootfs, "")?;
    let old = path::openat(CWD, c"/", O_PATH | O_DIRECTORY, 0).at(Stage::Rootfs, "")?;
    // On top of the old root: no directory of the host is needed for it. Only hooks want it where
    // config.json says.
    let place = hooked.as_ref().map_or(&old, |hooked| &hooked.place);
    mount::move_mount(init.rootfs.as_fd(), place.as_fd()).at(Stage::Rootfs, "attach")?;
    let root = crisp_sys::fd::dup(init.rootfs.as_fd()).at(Stage::Rootfs, "")?;
    let mut builder = Builder::new(Root::from_fd(root), plan, init.prepared.users.is_some());
    builder.run(init.sources)?;
    let terminal = match init.io {
        IoPlan::Stdio(_) => None,
        IoPlan::Terminal => {
            let terminal = Terminal::open(builder.root.as_fd()).at(Stage::Console, "")?;
            builder.console(terminal.peer.as_fd())?;
            Some(terminal)
        }
    };
    make_cwd(&builder, plan)?;
    if let Some(hooked) = &hooked {
        hooked.run(init)?;
    }
    pivot(init.rootfs, &old)?;
    if plan.rootfs_readonly {
        let attr = MountAttr {
            set: MOUNT_ATTR_RDONLY,
            ..MountAttr::default()
        };
        mount::mount_setattr(init.rootfs.as_fd(), false, &attr).at(Stage::Rootfs, "read-only")?;
    }
    if plan.rootfs_propagation != 0 {
        mount::set_propagation(c"/", plan.rootfs_propagation).at(Stage::Rootfs, "propagation")?;
    }
    Ok(terminal)
}

/// What hooks that come before the pivot need, taken while paths mean what they mean to our parent.
struct Hooked {
    /// The directory where they look for the root filesystem.
    place: OwnedFd,
    /// The root they are to have.
    root: OwnedFd,
}

impl Hooked {
    fn of(plan: &Plan) -> Result<Option<Self>, Failure> {
        let Some(hooks) = plan.hooks.as_ref().filter(|hooks| hooks.come_first()) else {
            return Ok(None);
        };
        let directory = O_PATH | O_DIRECTORY;
        let place = path::openat(CWD, &hooks.root_path, directory, 0);
        let root = path::openat(CWD, c"/", directory, 0);
        Ok(Some(Self {
            place: place.at(Stage::Hook, "")?,
            root: root.at(Stage::Hook, "")?,
        }))
    }

    /// Has the parent run its hooks, then runs those of our namespaces.
    fn run(&self, init: &Init<'_>) -> Result<(), Failure> {
        init.channel.built().at(Stage::Channel, "")?;
        if !init.channel.wait().at(Stage::Channel, "")? {
            let gone = crisp_sys::Errno::EPIPE;
            return Err(Failure::new(Stage::Channel, gone, "the parent is gone"));
        }
        hooks::in_namespaces(init.token, init.prepared.plan, self.root.as_fd())
            .map_err(|error| hook_failure(&error))
    }
}

/// Makes every mount of this namespace a slave of the one it was copied from.
///
/// In a daemon's chroot whose root is no mount point that is EINVAL, and pivot_root would fail the same
/// way. Joining a mount namespace, the own one too, moves the caller to that namespace's root, which
/// always is a mount point. Nothing below is looked up by a path that means the chroot: sources were
/// opened before the clone, and the namespace's old root is taken off before exec.
fn detach_propagation() -> crisp_sys::Result<()> {
    let root = path::openat(CWD, c"/", O_PATH | O_DIRECTORY, 0)?;
    // Asked, not tried: the text of an error is made of memory, and there shall be no use of any here.
    if !path::is_mount_root(root.as_fd())? {
        let own = crisp_sys::pidfd::open(std::process::id().cast_signed())?;
        ns::setns(own.as_fd(), NamespaceKind::Mount.flag())?;
    }
    mount::set_propagation(c"/", MS_REC | MS_SLAVE)
}

/// A working directory that the image lacks is made, as all runtimes do.
fn make_cwd(builder: &Builder<'_>, plan: &Plan) -> Result<(), Failure> {
    let cwd = std::path::Path::new(&plan.process.cwd);
    match builder.root.mkdir_all_in_root(cwd, 0o755) {
        // Entering it will say what is wrong, as the user it is for.
        Err(error) if error.errno != crisp_sys::Errno::ENOENT => Ok(()),
        other => other.map(drop).at(Stage::Cwd, &plan.process.cwd),
    }
}

fn pivot(rootfs: &OwnedFd, old: &OwnedFd) -> Result<(), Failure> {
    let turn = || {
        process::fchdir(rootfs.as_fd())?;
        // The old root ends up on top of the new one, from where it is taken off.
        mount::pivot_root(c".", c".")?;
        process::fchdir(old.as_fd())?;
        mount::umount2(c".", MNT_DETACH)?;
        process::chdir(c"/")
    };
    turn().at(Stage::Pivot, "")
}
