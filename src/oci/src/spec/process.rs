//! The program and what it may do.

use oci_spec::runtime::{
    Capabilities, IOPriorityClass, LinuxPersonality, LinuxPersonalityDomain, LinuxSchedulerFlag,
    LinuxSchedulerPolicy, PosixRlimitType, Process, Scheduler,
};

use super::{PlanError, Result, invalid, refuse, text, unsupported};
use crate::capability;
use crate::host::HostFacts;
use crate::plan::{CapabilitySets, ProcessPlan, Rlimit, SchedAttr};

/// Reads `process`: also what an exec is asked for. Without seccomp and personality, which the
/// specification has elsewhere.
///
/// # Errors
/// [`PlanError`] names the field.
pub fn process(process: &Process, host: &HostFacts) -> Result<ProcessPlan> {
    refuse("process.commandLine", process.command_line().as_ref())?;
    refuse(
        "process.execCPUAffinity",
        process.exec_cpu_affinity().as_ref(),
    )?;
    let user = process.user();
    refuse(
        "process.user.username",
        user.username().as_ref().filter(|name| !name.is_empty()),
    )?;
    for (field, id) in [
        ("process.user.uid", user.uid()),
        ("process.user.gid", user.gid()),
    ] {
        // The kernel takes it for "leave it as it is".
        if id == u32::MAX {
            return Err(invalid(field, "-1 is no id"));
        }
    }
    let args = process.args().as_deref().unwrap_or_default();
    if args.first().is_none_or(String::is_empty) {
        return Err(PlanError::Absent("process.args"));
    }
    let cwd = text("process.cwd", process.cwd())?;
    if !cwd.starts_with('/') {
        return Err(invalid(
            "process.cwd",
            format!("{cwd:?} is not an absolute path"),
        ));
    }
    Ok(ProcessPlan {
        args: strings("process.args", args)?,
        env: strings("process.env", process.env().as_deref().unwrap_or_default())?,
        cwd,
        uid: user.uid(),
        gid: user.gid(),
        additional_gids: user.additional_gids().clone().unwrap_or_default(),
        umask: umask(user.umask())?,
        terminal: process.terminal().unwrap_or(false),
        console_size: console_size(process)?,
        capabilities: capabilities(process, host)?,
        no_new_privileges: process.no_new_privileges().unwrap_or(false),
        rlimits: rlimits(process)?,
        oom_score_adj: oom_score_adj(process)?,
        apparmor: label(
            "process.apparmorProfile",
            process
                .apparmor_profile()
                .as_ref()
                .filter(|name| *name != "unconfined"),
            host.apparmor,
        )?,
        selinux_label: label(
            "process.selinuxLabel",
            process.selinux_label().as_ref(),
            host.selinux,
        )?,
        seccomp: None,
        personality: None,
        scheduler: process.scheduler().as_ref().map(scheduler),
        io_priority: match process.io_priority() {
            None => None,
            Some(io) => {
                let level = u32::try_from(io.priority()).ok().filter(|level| *level < 8);
                let reason = format!("{} is not between 0 and 7", io.priority());
                let class = match io.class() {
                    IOPriorityClass::IoprioClassRt => 1,
                    IOPriorityClass::IoprioClassBe => 2,
                    IOPriorityClass::IoprioClassIdle => 3,
                };
                Some((
                    class,
                    level.ok_or_else(|| invalid("process.ioPriority.priority", reason))?,
                ))
            }
        },
        resctrl: None,
        guarded: false,
    })
}

fn strings(field: &str, list: &[String]) -> Result<Vec<Vec<u8>>> {
    list.iter()
        .map(|string| match string.contains('\0') {
            true => Err(invalid(field, format!("{string:?} contains NUL"))),
            false => Ok(string.as_bytes().to_vec()),
        })
        .collect()
}

fn umask(umask: Option<u32>) -> Result<Option<u32>> {
    match umask {
        Some(mask) if mask > 0o777 => Err(invalid(
            "process.user.umask",
            format!("{mask:o} is above 777"),
        )),
        umask => Ok(umask),
    }
}

fn console_size(process: &Process) -> Result<Option<(u16, u16)>> {
    let Some(size) = process.console_size() else {
        return Ok(None);
    };
    let side = |side: u64| {
        let reason = || format!("{side} is above {}", u16::MAX);
        u16::try_from(side).map_err(|_| invalid("process.consoleSize", reason()))
    };
    Ok(Some((side(size.width())?, side(size.height())?)))
}

fn oom_score_adj(process: &Process) -> Result<Option<i32>> {
    match process.oom_score_adj() {
        Some(score) if !(-1000..=1000).contains(&score) => Err(invalid(
            "process.oomScoreAdj",
            format!("{score} is not between -1000 and 1000"),
        )),
        score => Ok(score),
    }
}

/// A label that the kernel cannot enforce must not be taken for enforced.
fn label(field: &str, label: Option<&String>, present: bool) -> Result<Option<String>> {
    let Some(label) = label.filter(|label| !label.is_empty()) else {
        return Ok(None);
    };
    if !present {
        return Err(invalid(
            field,
            "this host's kernel does not enforce such labels",
        ));
    }
    if label.contains(['\0', '\n']) || label.len() > 512 {
        return Err(invalid(field, format!("{label:?} is no label")));
    }
    Ok(Some(label.clone()))
}

fn rlimits(process: &Process) -> Result<Vec<Rlimit>> {
    let mut list: Vec<Rlimit> = Vec::new();
    for limit in process.rlimits().as_deref().unwrap_or_default() {
        let resource = match limit.typ() {
            PosixRlimitType::RlimitCpu => 0,
            PosixRlimitType::RlimitFsize => 1,
            PosixRlimitType::RlimitData => 2,
            PosixRlimitType::RlimitStack => 3,
            PosixRlimitType::RlimitCore => 4,
            PosixRlimitType::RlimitRss => 5,
            PosixRlimitType::RlimitNproc => 6,
            PosixRlimitType::RlimitNofile => 7,
            PosixRlimitType::RlimitMemlock => 8,
            PosixRlimitType::RlimitAs => 9,
            PosixRlimitType::RlimitLocks => 10,
            PosixRlimitType::RlimitSigpending => 11,
            PosixRlimitType::RlimitMsgqueue => 12,
            PosixRlimitType::RlimitNice => 13,
            PosixRlimitType::RlimitRtprio => 14,
            PosixRlimitType::RlimitRttime => 15,
        };
        let name = limit.typ();
        if limit.soft() > limit.hard() {
            return Err(invalid(
                "process.rlimits",
                format!("{name}: soft is above hard"),
            ));
        }
        if list.iter().any(|known| known.resource == resource) {
            return Err(invalid("process.rlimits", format!("{name} is there twice")));
        }
        list.push(Rlimit {
            resource,
            soft: limit.soft(),
            hard: limit.hard(),
        });
    }
    Ok(list)
}

/// What the daemon itself may not hand on is left out, as other runtimes do: a privileged
/// container on a host that lacks one capability shall run with all the others.
fn capabilities(process: &Process, host: &HostFacts) -> Result<CapabilitySets> {
    let Some(sets) = process.capabilities() else {
        return Ok(CapabilitySets::default());
    };
    let mask = |field: &str, set: &Option<Capabilities>| -> Result<u64> {
        let mut mask = 0;
        for capability in set.iter().flatten() {
            let name = capability.to_string();
            let number = capability::number(&name);
            let known = number.filter(|number| u32::from(*number) <= host.last_capability);
            let Some(number) = known else {
                let reason = format!("this kernel has no CAP_{name}");
                return Err(invalid(format!("process.capabilities.{field}"), reason));
            };
            mask |= 1 << number;
        }
        Ok(mask & host.capabilities)
    };
    let sets = CapabilitySets {
        bounding: mask("bounding", sets.bounding())?,
        effective: mask("effective", sets.effective())?,
        permitted: mask("permitted", sets.permitted())?,
        inheritable: mask("inheritable", sets.inheritable())?,
        ambient: mask("ambient", sets.ambient())?,
    };
    let within = |field: &str, set: u64, bound: u64, of: &str| match set & !bound {
        0 => Ok(()),
        _ => Err(invalid(
            format!("process.capabilities.{field}"),
            format!("has more than {of}"),
        )),
    };
    within("effective", sets.effective, sets.permitted, "permitted")?;
    within(
        "ambient",
        sets.ambient,
        sets.permitted & sets.inheritable,
        "permitted and inheritable",
    )?;
    Ok(sets)
}

fn scheduler(scheduler: &Scheduler) -> SchedAttr {
    let policy = match scheduler.policy() {
        LinuxSchedulerPolicy::SchedOther => 0,
        LinuxSchedulerPolicy::SchedFifo => 1,
        LinuxSchedulerPolicy::SchedRr => 2,
        LinuxSchedulerPolicy::SchedBatch => 3,
        LinuxSchedulerPolicy::SchedIso => 4,
        LinuxSchedulerPolicy::SchedIdle => 5,
        LinuxSchedulerPolicy::SchedDeadline => 6,
    };
    let flag = |flag: &LinuxSchedulerFlag| match flag {
        LinuxSchedulerFlag::SchedResetOnFork => 0x01,
        LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
        LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
        LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
    };
    SchedAttr {
        policy,
        flags: scheduler
            .flags()
            .iter()
            .flatten()
            .fold(0, |bits, item| bits | flag(item)),
        nice: scheduler.nice().unwrap_or(0),
        priority: scheduler.priority().unwrap_or(0).max(0).unsigned_abs(),
        runtime: scheduler.runtime().unwrap_or(0),
        deadline: scheduler.deadline().unwrap_or(0),
        period: scheduler.period().unwrap_or(0),
    }
}

pub(super) fn personality(personality: Option<&LinuxPersonality>) -> Result<Option<u32>> {
    let Some(personality) = personality else {
        return Ok(None);
    };
    if personality
        .flags()
        .as_ref()
        .is_some_and(|flags| !flags.is_empty())
    {
        return Err(unsupported("linux.personality.flags"));
    }
    Ok(Some(match personality.domain() {
        LinuxPersonalityDomain::PerLinux => 0,
        LinuxPersonalityDomain::PerLinux32 => 8,
    }))
}
