//! What the plan names on the host, opened by the parent: trees to bind, and nodes of devices.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crisp_sys::fd::{self, CWD};
use crisp_sys::mount::{
    self, AT_EMPTY_PATH, AT_RECURSIVE, MOUNT_ATTR_IDMAP, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID,
    MS_PRIVATE, MS_REC, MS_SHARED, MS_SLAVE, MS_UNBINDABLE, MountAttr, OPEN_TREE_CLONE,
};
use crisp_sys::path::{self, Root};
use crisp_sys::{Errno, Error};

use super::error::CreateError;
use super::prepare::table;
use crate::plan::{BindStep, DeviceStep, Plan, Step};

const O_PATH: i32 = 0o10_000_000;
const O_NOFOLLOW: i32 = 0o400_000;
const S_IFMT: u32 = 0o170_000;
const S_IFCHR: u32 = 0o020_000;
const S_IFIFO: u32 = 0o010_000;

/// A source that a step attaches.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) mount: OwnedFd,
    pub(super) is_dir: bool,
    pub(super) is_proc: bool,
    /// Attached nowhere before, and not to be cloned before it is.
    pub(super) is_detached: bool,
}

/// The sources of all bind steps, in their order. Opened as late as possible: what the host
/// mounts below a source afterwards arrives only through propagation.
///
/// In a user namespace no device node can be made: there each device step has one, too.
pub(super) fn open_sources(
    plan: &Plan,
    fds: &[OwnedFd],
    binds_devices: bool,
) -> Result<Vec<Source>, CreateError> {
    let mut sources = Vec::new();
    for step in &plan.steps {
        match step {
            Step::Bind(bind) => {
                let failed = |source| CreateError::Open {
                    path: bind.source.clone(),
                    source,
                };
                let detached = bind.detached.map(|index| table(fds, index)).transpose()?;
                let source = open_source(bind, detached).map_err(failed)?;
                if let Some(index) = bind.idmap {
                    translate(bind, source.mount.as_fd(), table(fds, index)?)?;
                }
                sources.push(source);
            }
            Step::Device(device) if binds_devices && is_bound(device) => {
                sources.push(open_device(device).map_err(|source| CreateError::Open {
                    path: format!("{}, device {}:{}", device.path, device.major, device.minor),
                    source,
                })?);
            }
            _ => {}
        }
    }
    Ok(sources)
}

/// Whether a device has to be bound where nodes cannot be made; a FIFO is no device.
pub(super) const fn is_bound(device: &DeviceStep) -> bool {
    device.mode & S_IFMT != S_IFIFO
}

/// The host's own node of a device: at the same path, else where the kernel says it is.
fn open_device(device: &DeviceStep) -> crisp_sys::Result<Source> {
    let node = match open_node(device, &device.path) {
        Some(node) => node,
        None => kernel_name(device)
            .and_then(|path| open_node(device, &path))
            .ok_or_else(|| Error::new("open", "no such node on the host", Errno::ENODEV))?,
    };
    let mount = mount::open_tree(node.as_fd(), "", OPEN_TREE_CLONE | AT_EMPTY_PATH)?;
    let attr = MountAttr {
        set: MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC,
        propagation: MS_PRIVATE,
        ..MountAttr::default()
    };
    mount::mount_setattr(mount.as_fd(), false, &attr)?;
    Ok(Source {
        mount,
        is_dir: false,
        is_proc: false,
        is_detached: false,
    })
}

fn open_node(device: &DeviceStep, path: &str) -> Option<OwnedFd> {
    let node = path::openat(CWD, path, O_PATH | O_NOFOLLOW, 0).ok()?;
    let stat = path::fstat(node.as_fd()).ok()?;
    let number = path::makedev(device.major, device.minor);
    let same = stat.mode & S_IFMT == device.mode & S_IFMT && stat.rdev == number;
    same.then_some(node)
}

fn kernel_name(device: &DeviceStep) -> Option<String> {
    let kind = if device.mode & S_IFMT == S_IFCHR {
        "char"
    } else {
        "block"
    };
    let (major, minor) = (device.major, device.minor);
    let event = std::fs::read_to_string(format!("/sys/dev/{kind}/{major}:{minor}/uevent")).ok()?;
    let name = event
        .lines()
        .find_map(|line| line.strip_prefix("DEVNAME="))?;
    Some(format!("/dev/{name}"))
}

/// Has a volume show other owners. Not every filesystem can, and to change the owners of a volume's
/// files instead is nobody's to decide.
fn translate(
    bind: &BindStep,
    mount: BorrowedFd<'_>,
    users: BorrowedFd<'_>,
) -> Result<(), CreateError> {
    let attr = MountAttr {
        set: MOUNT_ATTR_IDMAP,
        userns: Some(users),
        ..MountAttr::default()
    };
    mount::mount_setattr(mount, bind.idmap_recursive, &attr).map_err(|source| CreateError::Idmap {
        path: bind.source.clone(),
        filesystem: filesystem_of(&bind.source).unwrap_or_else(|| "unknown".into()),
        source,
    })
}

/// Type of the filesystem that a path lies on, as the host's table of mounts has it.
fn filesystem_of(path: &str) -> Option<String> {
    use std::os::fd::AsRawFd;
    let at = path::openat(CWD, path, O_PATH, 0).ok()?;
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", at.as_raw_fd())).ok()?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?;
    let table = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = table
        .lines()
        .find(|line| line.split(' ').next() == Some(id.trim()))?;
    let (_, rest) = line.split_once(" - ")?;
    rest.split(' ').next().map(str::to_owned)
}

fn open_source(bind: &BindStep, detached: Option<BorrowedFd<'_>>) -> crisp_sys::Result<Source> {
    const PROC_SUPER_MAGIC: u64 = 0x9fa0;
    let flags = OPEN_TREE_CLONE | if bind.recursive { AT_RECURSIVE } else { 0 };
    let mount = match (detached, &bind.in_root) {
        (Some(mount), _) => fd::dup(mount)?,
        (None, None) => mount::open_tree(CWD, &bind.source, flags)?,
        (None, Some(below)) => {
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
        is_detached: detached.is_some(),
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
