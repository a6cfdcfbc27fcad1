//! From our identity to the container's: limits, labels, user, capabilities, and at last the
//! program. The order matters throughout; each reason stands beside its line.

use crisp_sys::Errno;
use crisp_sys::clone::InChild;
use crisp_sys::cred::{self, Capabilities};
use crisp_sys::process::{self, Rlimit};
use crisp_sys::seccomp;

use super::channel::ChildEnd;
use super::error::{At, Failure, Stage};
use super::prepare::Strings;
use super::procfs::Procfs;
use super::program::Program;
use crate::plan::{ProcessPlan, SeccompPlan};

/// Sets the OOM score.
pub(super) fn settle_oom_score(
    process: &ProcessPlan,
    procfs: Option<&Procfs>,
) -> Result<(), Failure> {
    match (process.oom_score_adj, procfs) {
        (Some(score), Some(procfs)) => {
            set_oom_score(procfs, score).at(Stage::Limits, "oomScoreAdj")
        }
        _ => Ok(()),
    }
}

/// Raises the ceilings of limits to what the process is to have; the limits themselves come last.
/// What may not be raised stays.
pub(super) fn raise_ceilings(process: &ProcessPlan) -> crisp_sys::Result<()> {
    for limit in &process.rlimits {
        let (soft, ceiling) = process::getrlimit(limit.resource)?;
        if limit.hard > ceiling {
            let raised = Rlimit {
                resource: limit.resource,
                soft,
                hard: limit.hard,
            };
            match process::setrlimit(&raised) {
                Err(error) if error.errno == Errno::EPERM => {}
                other => other?,
            }
        }
    }
    Ok(())
}

/// Priorities and labels: what still needs our privileges.
pub(super) fn prepare(process: &ProcessPlan, procfs: Option<&Procfs>) -> Result<(), Failure> {
    // Keys of whoever made us must not be reachable.
    match process::join_session_keyring() {
        Err(error) if matches!(error.errno, Errno::ENOSYS | Errno::EPERM) => {}
        other => other.at(Stage::Limits, "session keyring")?,
    }
    if let Some(persona) = process.personality {
        process::personality(persona).at(Stage::Limits, "personality")?;
    }
    if let Some(attr) = &process.scheduler {
        process::sched_setattr(attr).at(Stage::Limits, "scheduler")?;
    }
    if let Some((class, level)) = process.io_priority {
        process::set_io_priority(class, level).at(Stage::Limits, "ioPriority")?;
    }
    if let (Some(profile), Some(procfs)) = (&process.apparmor, procfs) {
        let file: &[u8] = b"self/attr/apparmor/exec";
        match procfs.write_pair(file, b"exec ", profile.as_bytes()) {
            Err(error) if error.errno == Errno::ENOENT => procfs
                .write_pair(b"self/attr/exec", b"exec ", profile.as_bytes())
                .at(Stage::Label, "apparmor")?,
            other => other.at(Stage::Label, "apparmor")?,
        }
    }
    if let (Some(label), Some(procfs)) = (&process.selinux_label, procfs) {
        procfs
            .write(b"self/attr/exec", label.as_bytes())
            .at(Stage::Label, "selinux")?;
    }
    Ok(())
}

/// Whether [`prepare`] needs a procfs.
pub(super) const fn needs_procfs(process: &ProcessPlan) -> bool {
    process.oom_score_adj.is_some() || process.apparmor.is_some() || process.selinux_label.is_some()
}

/// Without the privilege to raise a ceiling the limit is what it can be.
fn set_limit(limit: &Rlimit) -> crisp_sys::Result<()> {
    match process::setrlimit(limit) {
        Err(error) if error.errno == Errno::EPERM => {
            let (_, ceiling) = process::getrlimit(limit.resource)?;
            let hard = limit.hard.min(ceiling);
            let clamped = Rlimit {
                resource: limit.resource,
                soft: limit.soft.min(hard),
                hard,
            };
            process::setrlimit(&clamped)
        }
        other => other,
    }
}

/// Without the privilege to lower the score it stays what it is, if that is above what is wanted.
fn set_oom_score(procfs: &Procfs, score: i32) -> crisp_sys::Result<()> {
    use std::io::Write;
    let file: &[u8] = b"self/oom_score_adj";
    let mut text = [0; 16];
    let mut rest = &mut text[..];
    write!(rest, "{score}").expect("eleven digits");
    let left = rest.len();
    match procfs.write(file, &text[..16 - left]) {
        Err(error) if error.errno == Errno::EACCES => {
            let mut buffer = [0; 16];
            let current = procfs.read(file, &mut buffer)?;
            let current: Option<i32> = std::str::from_utf8(current)
                .ok()
                .and_then(|text| text.trim().parse().ok());
            if current.is_some_and(|current| current >= score) {
                Ok(())
            } else {
                Err(error)
            }
        }
        other => other,
    }
}

/// Becomes the user.
fn become_user(process: &ProcessPlan) -> Result<(), Failure> {
    let caps = &process.capabilities;
    // Needs CAP_SETPCAP, so before the sets are reduced.
    cred::limit_bounding(caps.bounding).at(Stage::Identity, "bounding set")?;
    cred::set_keepcaps(true).at(Stage::Identity, "")?;
    cred::setgroups(&process.additional_gids).at(Stage::Identity, "additionalGids")?;
    cred::setresgid(process.gid).at(Stage::Identity, "gid")?;
    // As ourselves first: a directory on a filesystem that does not trust root may only be
    // entered by the user, one below a private directory only by root.
    let entered = process::chdir(&process.cwd).is_ok();
    cred::setresuid(process.uid).at(Stage::Identity, "uid")?;
    // A change of user makes the process what fs.suid_dumpable says.
    cred::set_dumpable(false).at(Stage::Identity, "")?;
    if !entered {
        process::chdir(&process.cwd).at(Stage::Cwd, "")?;
    }
    let held = Capabilities {
        effective: caps.effective,
        permitted: caps.permitted,
        inheritable: caps.inheritable,
    };
    cred::capset(&held).at(Stage::Identity, "capabilities")?;
    cred::set_ambient(caps.ambient).at(Stage::Identity, "ambient set")?;
    check_cwd()
}

/// A working directory that can be named lies inside the root; one reached through a descriptor
/// of the host's cannot.
fn check_cwd() -> Result<(), Failure> {
    let mut buffer = [0; 4096];
    let name = process::getcwd(&mut buffer).at(Stage::Cwd, "")?;
    if name.starts_with(b"/") {
        return Ok(());
    }
    let message = "the working directory lies outside the container";
    Err(Failure::new(Stage::Cwd, Errno::EPERM, message))
}

fn load(filter: Option<&SeccompPlan>) -> Result<(), Failure> {
    match filter {
        Some(filter) => seccomp::load(&filter.program, filter.flags).at(Stage::Seccomp, ""),
        None => Ok(()),
    }
}

/// Becomes the user, finds the program, lets `wait` decide whether to go on (true), and executes
/// it. Returns only on failure, or `None` if `wait` said no.
pub(super) fn run(
    in_child: &InChild,
    channel: &ChildEnd,
    process: &ProcessPlan,
    strings: &Strings,
    wait: impl FnOnce() -> Result<bool, Failure>,
) -> Option<Failure> {
    let go = || {
        // Before the working directory is entered: no descriptor of ours can be named as one.
        in_child
            .close_all_but(&[channel.as_fd()])
            .at(Stage::Stdio, "")?;
        // Before setresuid, since raising a ceiling needs CAP_SYS_RESOURCE in our own namespace; but
        // after the last descriptor was opened, since there may be room for few.
        for limit in &process.rlimits {
            set_limit(limit).at(Stage::Limits, "rlimits")?;
        }
        // Without no_new_privs only a process with CAP_SYS_ADMIN may load a filter, so it must be
        // now; with it, as late as can be, so that the filter need not allow our own calls.
        if !process.no_new_privileges {
            load(process.seccomp.as_ref())?;
        }
        become_user(process)?;
        if process.no_new_privileges {
            cred::set_no_new_privs().at(Stage::Identity, "")?;
        }
        process::umask(process.umask.unwrap_or(0o022));
        let program = Program::find(&strings.args, &strings.env)?;
        in_child
            .close_all_but(&[channel.as_fd()])
            .at(Stage::Stdio, "")?;
        if !wait()? {
            return Ok(None);
        }
        if process.no_new_privileges {
            load(process.seccomp.as_ref())?;
        }
        Ok(Some(program))
    };
    match go() {
        Ok(Some(program)) => Some(program.execute(&strings.args, &strings.env)),
        Ok(None) => None,
        Err(failure) => Some(failure),
    }
}
