//! Between [`Profile`] and the runtime specification's types.

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Arch as SpecArch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArgBuilder,
    LinuxSeccompBuilder, LinuxSeccompFilterFlag, LinuxSeccompOperator, LinuxSyscall,
    LinuxSyscallBuilder,
};

use super::json::ProfileError;
use super::profile::{Action, Arch, Arg, Flag, Op, Profile, Rule};

const EPERM: u32 = 1;

impl Profile {
    /// The profile of a runtime specification.
    ///
    /// # Errors
    /// [`ProfileError::ArgumentIndex`], [`ProfileError::Errno`].
    pub fn from_oci(seccomp: &LinuxSeccomp) -> Result<Self, ProfileError> {
        let architectures = seccomp
            .architectures()
            .iter()
            .flatten()
            .map(|arch| match arch {
                SpecArch::ScmpArchX86_64 | SpecArch::ScmpArchNative => Arch::X86_64,
                SpecArch::ScmpArchX86 => Arch::X86,
                SpecArch::ScmpArchX32 => Arch::X32,
                _ => Arch::Other,
            });
        let flag = |flag: &LinuxSeccompFilterFlag| match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => Flag::Log,
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => Flag::Tsync,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => Flag::SpecAllow,
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => Flag::WaitKillableRecv,
        };
        let rules = seccomp.syscalls().iter().flatten().map(rule);
        Ok(Self {
            default_action: action(seccomp.default_action(), seccomp.default_errno_ret())?,
            architectures: architectures.collect(),
            flags: seccomp
                .flags()
                .as_ref()
                .map(|flags| flags.iter().map(flag).collect()),
            rules: rules.collect::<Result<_, _>>()?,
        })
    }

    /// The profile as a runtime specification has it, for external runtimes.
    ///
    /// # Errors
    /// None that can come of a profile; the builders' type asks for it.
    pub fn to_oci(&self) -> Result<LinuxSeccomp, OciSpecError> {
        let (default_action, errno) = spec_action(self.default_action);
        let calls = self
            .rules
            .iter()
            .map(spec_rule)
            .collect::<Result<Vec<_>, _>>()?;
        let mut builder = LinuxSeccompBuilder::default()
            .default_action(default_action)
            .syscalls(calls);
        if let Some(errno) = errno {
            builder = builder.default_errno_ret(errno);
        }
        let architectures: Vec<_> = self.architectures.iter().filter_map(spec_arch).collect();
        if !architectures.is_empty() {
            builder = builder.architectures(architectures);
        }
        if let Some(flags) = &self.flags {
            let flag = |flag: &Flag| match flag {
                Flag::Log => LinuxSeccompFilterFlag::SeccompFilterFlagLog,
                Flag::Tsync => LinuxSeccompFilterFlag::SeccompFilterFlagTsync,
                Flag::SpecAllow => LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow,
                Flag::WaitKillableRecv => LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv,
            };
            builder = builder.flags(flags.iter().map(flag).collect::<Vec<_>>());
        }
        builder.build()
    }
}

fn rule(call: &LinuxSyscall) -> Result<Rule, ProfileError> {
    let name = || call.names().first().cloned().unwrap_or_default();
    let arg = |arg: &oci_spec::runtime::LinuxSeccompArg| {
        let index = arg.index();
        let wrong = || ProfileError::ArgumentIndex {
            name: name(),
            index: u64::try_from(index).unwrap_or(u64::MAX),
        };
        Ok(Arg {
            index: u8::try_from(index)
                .ok()
                .filter(|index| *index < 6)
                .ok_or_else(wrong)?,
            value: arg.value(),
            value_two: arg.value_two().unwrap_or(0),
            op: match arg.op() {
                LinuxSeccompOperator::ScmpCmpNe => Op::Ne,
                LinuxSeccompOperator::ScmpCmpLt => Op::Lt,
                LinuxSeccompOperator::ScmpCmpLe => Op::Le,
                LinuxSeccompOperator::ScmpCmpEq => Op::Eq,
                LinuxSeccompOperator::ScmpCmpGe => Op::Ge,
                LinuxSeccompOperator::ScmpCmpGt => Op::Gt,
                LinuxSeccompOperator::ScmpCmpMaskedEq => Op::MaskedEq,
            },
        })
    };
    Ok(Rule {
        names: call.names().clone(),
        action: action(call.action(), call.errno_ret())?,
        args: call
            .args()
            .iter()
            .flatten()
            .map(arg)
            .collect::<Result<_, _>>()?,
    })
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<Action, ProfileError> {
    let number = errno.unwrap_or(EPERM);
    let errno = || match u16::try_from(number) {
        Ok(errno) if errno < 4096 => Ok(errno),
        _ => Err(ProfileError::Errno {
            errno: number.into(),
        }),
    };
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => {
            Action::KillThread
        }
        LinuxSeccompAction::ScmpActKillProcess => Action::KillProcess,
        LinuxSeccompAction::ScmpActTrap => Action::Trap,
        LinuxSeccompAction::ScmpActErrno => Action::Errno(errno()?),
        LinuxSeccompAction::ScmpActTrace => Action::Trace(errno()?),
        LinuxSeccompAction::ScmpActLog => Action::Log,
        LinuxSeccompAction::ScmpActAllow => Action::Allow,
        LinuxSeccompAction::ScmpActNotify => Action::Notify,
    })
}

fn spec_arch(arch: &Arch) -> Option<SpecArch> {
    match arch {
        Arch::X86_64 => Some(SpecArch::ScmpArchX86_64),
        Arch::X86 => Some(SpecArch::ScmpArchX86),
        Arch::X32 => Some(SpecArch::ScmpArchX32),
        Arch::Other => None,
    }
}

fn spec_action(action: Action) -> (LinuxSeccompAction, Option<u32>) {
    match action {
        Action::KillProcess => (LinuxSeccompAction::ScmpActKillProcess, None),
        Action::KillThread => (LinuxSeccompAction::ScmpActKillThread, None),
        Action::Trap => (LinuxSeccompAction::ScmpActTrap, None),
        Action::Errno(errno) => (LinuxSeccompAction::ScmpActErrno, Some(errno.into())),
        Action::Trace(message) => (LinuxSeccompAction::ScmpActTrace, Some(message.into())),
        Action::Log => (LinuxSeccompAction::ScmpActLog, None),
        Action::Allow => (LinuxSeccompAction::ScmpActAllow, None),
        Action::Notify => (LinuxSeccompAction::ScmpActNotify, None),
    }
}

fn spec_rule(rule: &Rule) -> Result<LinuxSyscall, OciSpecError> {
    let (action, errno) = spec_action(rule.action);
    let mut builder = LinuxSyscallBuilder::default()
        .names(rule.names.clone())
        .action(action);
    if let Some(errno) = errno {
        builder = builder.errno_ret(errno);
    }
    if !rule.args.is_empty() {
        let args = rule.args.iter().map(|arg| {
            let builder = LinuxSeccompArgBuilder::default()
                .index(arg.index)
                .value(arg.value)
                .op(match arg.op {
                    Op::Ne => LinuxSeccompOperator::ScmpCmpNe,
                    Op::Lt => LinuxSeccompOperator::ScmpCmpLt,
                    Op::Le => LinuxSeccompOperator::ScmpCmpLe,
                    Op::Eq => LinuxSeccompOperator::ScmpCmpEq,
                    Op::Ge => LinuxSeccompOperator::ScmpCmpGe,
                    Op::Gt => LinuxSeccompOperator::ScmpCmpGt,
                    Op::MaskedEq => LinuxSeccompOperator::ScmpCmpMaskedEq,
                });
            match arg.op {
                Op::MaskedEq => builder.value_two(arg.value_two).build(),
                _ => builder.build(),
            }
        });
        builder = builder.args(args.collect::<Result<Vec<_>, _>>()?);
    }
    builder.build()
}

#[cfg(test)]
mod tests {
    use super::super::default_profile;
    use super::super::json::Circumstances;
    use super::*;

    #[test]
    fn the_default_profile_survives_the_way_to_config_json_and_back() {
        for caps in [0, 1 << 21, u64::MAX] {
            let profile = default_profile(caps);
            let oci = profile.to_oci().unwrap();
            assert_eq!(Profile::from_oci(&oci).unwrap(), profile);
            let json = serde_json::to_vec(&oci).unwrap();
            let at = Circumstances {
                caps,
                kernel: (6, 1),
            };
            assert_eq!(Profile::from_json(&json, &at).unwrap(), profile);
        }
    }
}
