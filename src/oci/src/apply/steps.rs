//! The steps of a plan, carried out in the child on the attached root filesystem. Nothing here
//! takes a path that is not resolved in the root's descriptor.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use crisp_sys::Errno;
use crisp_sys::fd::CWD;
use crisp_sys::mount::{
    self, AT_EMPTY_PATH, AT_RECURSIVE, MNT_DETACH, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY, MS_PRIVATE, MountAttr, OPEN_TREE_CLONE,
};
use crisp_sys::path::{self, RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, Root};
use crisp_sys::process;

use super::error::{At, Failure, Stage};
use super::sources::{Source, is_bound};
use crate::plan::{BindStep, DeviceStep, FilesystemStep, Plan, Step};

const O_PATH: i32 = 0o10_000_000;
const O_DIRECTORY: i32 = 0o200_000;
const AT_SYMLINK_NOFOLLOW: i32 = 0x100;
const S_IFMT: u32 = 0o170_000;
const PROC_SUPER_MAGIC: u64 = 0x9fa0;

/// What may be mounted below a procfs: files that container runtimes fake to show a container's
/// share of the machine. Anything else could divert writes that are meant for the kernel.
const BELOW_PROC: [&str; 10] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

/// The root filesystem under construction.
#[derive(Debug)]
pub(super) struct Builder<'p> {
    pub(super) root: Root,
    plan: &'p Plan,
    /// Whether devices are the host's own nodes, as in a user namespace.
    binds_devices: bool,
    null: Option<OwnedFd>,
    empty: Option<OwnedFd>,
}

impl<'p> Builder<'p> {
    pub(super) fn new(root: Root, plan: &'p Plan, binds_devices: bool) -> Self {
        Self {
            root,
            plan,
            binds_devices,
            null: None,
            empty: None,
        }
    }

    /// Carries out all steps but the terminal's; `sources` are those that were opened, in order.
    pub(super) fn run(&mut self, sources: &[Source]) -> Result<(), Failure> {
        let mut sources = sources.iter();
        for step in &self.plan.steps {
            match step {
                Step::Filesystem(step) => self.filesystem(step)?,
                Step::Bind(step) => {
                    let source = sources.next().expect("one source was opened per bind step");
                    self.bind(step, source)?;
                }
                Step::Device(step) if self.binds_devices && is_bound(step) => {
                    let source = sources.next().expect("one source was opened per device");
                    self.bind_device(step, source)
                        .at(Stage::Device, &step.path)?;
                }
                Step::Device(step) => {
                    self.device(step).at(Stage::Device, &step.path)?;
                }
                Step::Symlink { path, target } => {
                    self.symlink(path, target).at(Stage::Device, path)?;
                }
                Step::Mkdir { path, mode } => {
                    let made = self.root.mkdir_all_in_root(Path::new(path), *mode);
                    made.at(Stage::Rootfs, path)?;
                }
                Step::Mask { path } => self.mask(path).at(Stage::Mask, path)?,
                Step::ReadOnly { path } => self.read_only(path).at(Stage::ReadOnly, path)?,
                Step::Attributes { path, set } => {
                    self.attributes(path, *set).at(Stage::Mount, path)?;
                }
                Step::Console => {}
            }
        }
        Ok(())
    }

    fn filesystem(&self, step: &FilesystemStep) -> Result<(), Failure> {
        let target = self
            .filesystem_target(step)
            .at(Stage::Mount, &step.target)?;
        let fs = mount::fsopen(&step.fstype).at(Stage::Mount, &step.target)?;
        self.configure(fs.as_fd(), step, target.as_fd())
            .map_err(|error| {
                let log = mount::fs_log(fs.as_fd());
                let message = format!("{}: {}: {error} {log}", step.target, step.fstype);
                Failure::new(Stage::Mount, error.errno, message.trim_end())
            })?;
        let attach = || {
            let mounted = mount::fsmount(fs.as_fd(), step.flags)?;
            if step.propagation != 0 {
                let attr = MountAttr {
                    propagation: step.propagation,
                    ..MountAttr::default()
                };
                mount::mount_setattr(mounted.as_fd(), false, &attr)?;
            }
            mount::move_mount(mounted.as_fd(), target.as_fd())
        };
        attach().at(Stage::Mount, &step.target)
    }

    /// Kernel filesystems go to real directories only: an image that makes /proc a link must not
    /// have labels and parameters written elsewhere.
    fn filesystem_target(&self, step: &FilesystemStep) -> crisp_sys::Result<OwnedFd> {
        let path = Path::new(&step.target);
        let mode = step.target_mode.unwrap_or(0o755);
        if !matches!(step.fstype.as_str(), "proc" | "sysfs") {
            return self.root.mkdir_all_in_root(path, mode);
        }
        // Made first, so that the lookup that counts is the last word.
        self.root.mkdir_all_in_root(path, mode)?;
        let resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS;
        path::openat2(self.root.as_fd(), path, O_PATH | O_DIRECTORY, 0, resolve)
    }

    fn configure(
        &self,
        fs: BorrowedFd<'_>,
        step: &FilesystemStep,
        target: BorrowedFd<'_>,
    ) -> crisp_sys::Result<()> {
        if !step.source.is_empty() {
            mount::fsconfig_set_string(fs, "source", &step.source)?;
        }
        let mut has_mode = false;
        for (key, value) in &step.options {
            has_mode |= key == "mode";
            match value {
                Some(value) => mount::fsconfig_set_string(fs, key, value)?,
                None => mount::fsconfig_set_flag(fs, key)?,
            }
        }
        // A tmpfs that says nothing about its mode gets that of the directory it covers.
        if step.fstype == "tmpfs" && !has_mode {
            let mode = path::fstat(target)?.mode & 0o7777;
            let mut text = [0; 8];
            let mut rest = &mut text[..];
            write!(rest, "{mode:o}").expect("four digits");
            let left = rest.len();
            mount::fsconfig_set_string(fs, "mode", &text[..8 - left])?;
        }
        if let Some(label) = &self.plan.mount_label
            && matches!(step.fstype.as_str(), "tmpfs" | "mqueue" | "devpts")
        {
            mount::fsconfig_set_string(fs, "context", label)?;
        }
        mount::fsconfig_create(fs)
    }

    fn bind(&self, step: &BindStep, source: &Source) -> Result<(), Failure> {
        let path = Path::new(&step.target);
        let target = if source.is_dir {
            self.root.mkdir_all_in_root(path, 0o755)
        } else {
            self.root.create_file_in_root(path, 0o755)
        };
        let target = target.at(Stage::Mount, &step.target)?;
        self.may_cover(step, source, target.as_fd())?;
        mount::move_mount(source.mount.as_fd(), target.as_fd()).at(Stage::Mount, &step.target)?;
        match &step.in_root {
            Some(below) if source.is_detached => {
                only_below(source, below, target.as_fd()).at(Stage::Mount, &step.target)
            }
            _ => Ok(()),
        }
    }

    fn may_cover(
        &self,
        step: &BindStep,
        source: &Source,
        target: BorrowedFd<'_>,
    ) -> Result<(), Failure> {
        let refuse = |reason: &str| {
            let message = format!("{}: {reason}", step.target);
            Err(Failure::new(Stage::Mount, Errno::EPERM, message))
        };
        let path = step.target.trim_end_matches('/');
        if path == "/proc" {
            return if source.is_proc {
                Ok(())
            } else {
                refuse("only a procfs may be /proc")
            };
        }
        let magic = path::filesystem_magic(target).at(Stage::Mount, &step.target)?;
        if magic != PROC_SUPER_MAGIC || BELOW_PROC.contains(&path) {
            return Ok(());
        }
        // A procfs bound elsewhere (/host/proc) may carry further mounts of the host's.
        refuse("cannot be mounted below a procfs")
    }

    fn bind_device(&self, step: &DeviceStep, source: &Source) -> crisp_sys::Result<()> {
        let path = Path::new(&step.path);
        let target = self.root.create_file_in_root(path, 0o666)?;
        mount::move_mount(source.mount.as_fd(), target.as_fd())
    }

    fn device(&self, step: &DeviceStep) -> crisp_sys::Result<()> {
        let (parent, name) = self.root.parent_in_root(Path::new(&step.path), 0o755)?;
        let device = path::makedev(step.major, step.minor);
        match path::mknodat(parent.as_fd(), name, step.mode, device) {
            Err(error) if error.errno == Errno::EEXIST => {
                let found = path::statat(parent.as_fd(), name, AT_SYMLINK_NOFOLLOW)?;
                if found.mode & S_IFMT != step.mode & S_IFMT || found.rdev != device {
                    return Err(error);
                }
            }
            made => made?,
        }
        if (step.uid, step.gid) != (0, 0) {
            let nofollow = AT_SYMLINK_NOFOLLOW;
            path::fchownat(parent.as_fd(), name, step.uid, step.gid, nofollow)?;
        }
        Ok(())
    }

    fn symlink(&self, path: &str, target: &str) -> crisp_sys::Result<()> {
        let (parent, name) = self.root.parent_in_root(Path::new(path), 0o755)?;
        match path::symlinkat(target, parent.as_fd(), name) {
            Err(error) if error.errno == Errno::EEXIST => Ok(()),
            other => other,
        }
    }

    fn mask(&mut self, path: &str) -> crisp_sys::Result<()> {
        let Some(target) = self.root.find_in_root(path, O_PATH)? else {
            return Ok(());
        };
        let is_dir = path::fstat(target.as_fd())?.is_dir();
        let cover = if is_dir {
            &mut self.empty
        } else {
            &mut self.null
        };
        if cover.is_none() {
            *cover = Some(if is_dir { empty_dir()? } else { null()? });
            let first = cover.as_ref().expect("just set").as_fd();
            return mount::move_mount(first, target.as_fd());
        }
        // Attached by now, so it can be cloned: all masks share one filesystem.
        let first = cover.as_ref().expect("checked above").as_fd();
        let copy = mount::open_tree(first, "", OPEN_TREE_CLONE | AT_EMPTY_PATH)?;
        mount::move_mount(copy.as_fd(), target.as_fd())
    }

    fn read_only(&self, path: &str) -> crisp_sys::Result<()> {
        let Some(target) = self.root.find_in_root(path, O_PATH)? else {
            return Ok(());
        };
        let flags = OPEN_TREE_CLONE | AT_EMPTY_PATH | AT_RECURSIVE;
        let copy = mount::open_tree(target.as_fd(), "", flags)?;
        let attr = MountAttr {
            set: MOUNT_ATTR_RDONLY,
            ..MountAttr::default()
        };
        mount::mount_setattr(copy.as_fd(), true, &attr)?;
        mount::move_mount(copy.as_fd(), target.as_fd())
    }

    fn attributes(&self, path: &str, set: u64) -> crisp_sys::Result<()> {
        let target = self.root.open_in_root(path, O_PATH)?;
        let attr = MountAttr {
            set,
            ..MountAttr::default()
        };
        mount::mount_setattr(target.as_fd(), false, &attr)
    }

    /// Binds the terminal to /dev/console, if the plan says so. From the terminal's descriptor:
    /// no name in /dev/pts is involved.
    pub(super) fn console(&self, terminal: BorrowedFd<'_>) -> Result<(), Failure> {
        const CONSOLE: &str = "/dev/console";
        if !self.plan.steps.contains(&Step::Console) {
            return Ok(());
        }
        let bind = || {
            let target = self.root.create_file_in_root(Path::new(CONSOLE), 0o600)?;
            let copy = mount::open_tree(terminal, "", OPEN_TREE_CLONE | AT_EMPTY_PATH)?;
            mount::move_mount(copy.as_fd(), target.as_fd())
        };
        bind().at(Stage::Console, CONSOLE)
    }
}

/// Replaces a mount that was just attached to `target` by the directory `below` in it. A mount that
/// is attached nowhere cannot be cloned in part before Linux 6.15, so it is attached first.
fn only_below(source: &Source, below: &str, target: BorrowedFd<'_>) -> crisp_sys::Result<()> {
    let whole = crisp_sys::fd::dup(source.mount.as_fd())?;
    let part = Root::from_fd(whole).open_in_root(below, O_PATH | O_DIRECTORY)?;
    let part = mount::open_tree(part.as_fd(), "", OPEN_TREE_CLONE | AT_EMPTY_PATH)?;
    process::fchdir(source.mount.as_fd())?;
    mount::umount2(c".", MNT_DETACH)?;
    process::chdir(c"/")?;
    mount::move_mount(part.as_fd(), target)
}

/// The host's /dev/null, verified to be that, read-only and private. Writing to the device is
/// still possible, changing the node is not.
fn null() -> crisp_sys::Result<OwnedFd> {
    let null = path::openat(CWD, c"/dev/null", O_PATH, 0)?;
    if !path::fstat(null.as_fd())?.is_char_device(1, 3) {
        let args = "\"/dev/null\" is not character device 1:3";
        return Err(crisp_sys::Error::new("fstat", args, Errno::ENODEV));
    }
    let copy = mount::open_tree(null.as_fd(), "", OPEN_TREE_CLONE | AT_EMPTY_PATH)?;
    let attr = MountAttr {
        set: MOUNT_ATTR_RDONLY,
        propagation: MS_PRIVATE,
        ..MountAttr::default()
    };
    mount::mount_setattr(copy.as_fd(), false, &attr)?;
    Ok(copy)
}

/// An empty read-only directory.
fn empty_dir() -> crisp_sys::Result<OwnedFd> {
    let fs = mount::fsopen("tmpfs")?;
    mount::fsconfig_set_string(fs.as_fd(), "mode", "755")?;
    mount::fsconfig_set_string(fs.as_fd(), "nr_inodes", "1")?;
    mount::fsconfig_set_flag(fs.as_fd(), "ro")?;
    mount::fsconfig_create(fs.as_fd())?;
    let attrs = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
    mount::fsmount(fs.as_fd(), attrs)
}
