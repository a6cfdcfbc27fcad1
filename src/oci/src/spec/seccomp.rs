//! Filters of system calls.

use oci_spec::runtime::{
    Arch as SpecArch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompFilterFlag,
    LinuxSeccompOperator,
};

use super::{Result, invalid, refuse};
use crate::plan::SeccompPlan;
use crate::seccomp::{self, Action, Arch, Arg, Flag, Op, Profile, Rule};

const FIELD: &str = "linux.seccomp";
const EPERM: u32 = 1;

/// Compiles `linux.seccomp`.
pub(super) fn compile(source: &LinuxSeccomp) -> Result<SeccompPlan> {
    let program = seccomp::compile(&profile(source)?).map_err(|error| invalid(FIELD, error))?;
    Ok(SeccompPlan {
        program: program.bytes.to_vec(),
        flags: program.flags,
    })
}

fn profile(source: &LinuxSeccomp) -> Result<Profile> {
    let listener = source
        .listener_path()
        .as_ref()
        .filter(|path| !path.as_os_str().is_empty());
    refuse("linux.seccomp.listenerPath", listener)?;
    let architectures = source
        .architectures()
        .iter()
        .flatten()
        .map(|arch| match arch {
            SpecArch::ScmpArchX86_64 | SpecArch::ScmpArchNative => Arch::X86_64,
            SpecArch::ScmpArchX86 => Arch::X86,
            SpecArch::ScmpArchX32 => Arch::X32,
            _ => Arch::Other,
        });
    let flags = source.flags().as_ref().map(|flags| {
        let flag = |flag: &LinuxSeccompFilterFlag| match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => Flag::Log,
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => Flag::Tsync,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => Flag::SpecAllow,
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => Flag::WaitKillableRecv,
        };
        flags.iter().map(flag).collect()
    });
    let mut rules = Vec::new();
    for syscall in source.syscalls().iter().flatten() {
        let mut args = Vec::new();
        for arg in syscall.args().iter().flatten() {
            args.push(Arg {
                index: u8::try_from(arg.index())
                    .map_err(|_| invalid(FIELD, format!("{} is no argument", arg.index())))?,
                value: arg.value(),
                value_two: arg.value_two().unwrap_or(0),
                op: operator(arg.op()),
            });
        }
        rules.push(Rule {
            names: syscall.names().clone(),
            action: action(syscall.action(), syscall.errno_ret())?,
            args,
        });
    }
    Ok(Profile {
        default_action: action(source.default_action(), source.default_errno_ret())?,
        architectures: architectures.collect(),
        flags,
        rules,
    })
}

fn operator(operator: LinuxSeccompOperator) -> Op {
    match operator {
        LinuxSeccompOperator::ScmpCmpNe => Op::Ne,
        LinuxSeccompOperator::ScmpCmpLt => Op::Lt,
        LinuxSeccompOperator::ScmpCmpLe => Op::Le,
        LinuxSeccompOperator::ScmpCmpEq => Op::Eq,
        LinuxSeccompOperator::ScmpCmpGe => Op::Ge,
        LinuxSeccompOperator::ScmpCmpGt => Op::Gt,
        LinuxSeccompOperator::ScmpCmpMaskedEq => Op::MaskedEq,
    }
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<Action> {
    let number = || {
        let errno = errno.unwrap_or(EPERM);
        u16::try_from(errno).map_err(|_| invalid(FIELD, format!("{errno} is no errno")))
    };
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => {
            Action::KillThread
        }
        LinuxSeccompAction::ScmpActKillProcess => Action::KillProcess,
        LinuxSeccompAction::ScmpActTrap => Action::Trap,
        LinuxSeccompAction::ScmpActErrno => Action::Errno(number()?),
        LinuxSeccompAction::ScmpActNotify => Action::Notify,
        LinuxSeccompAction::ScmpActTrace => Action::Trace(number()?),
        LinuxSeccompAction::ScmpActLog => Action::Log,
        LinuxSeccompAction::ScmpActAllow => Action::Allow,
    })
}
