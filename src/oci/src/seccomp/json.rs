//! Profiles as JSON: the runtime specification's `linux.seccomp`, and the richer form Docker and
//! Podman keep profiles in (`archMap`, `includes`, `excludes`, `name`).

use serde::Deserialize;

use super::profile::{Action, Arch, Arg, Flag, Op, Profile, Rule};
use crate::capability;

/// What a profile's conditions are judged by.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances {
    /// Bounding set of the container, bit N for capability number N.
    pub caps: u64,
    /// The kernel's version: major and minor.
    pub kernel: (u32, u32),
}

/// Why a profile cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// Larger than any profile is.
    #[error("seccomp profile has {size} bytes, more than {MAX_SIZE}")]
    Size {
        /// Its size.
        size: usize,
    },
    /// Not JSON of this shape.
    #[error("cannot parse the seccomp profile")]
    Json(#[source] serde_json::Error),
    /// A word that means nothing.
    #[error("seccomp profile has an unknown {what} {value:?}")]
    Unknown {
        /// What it should be.
        what: &'static str,
        /// The word.
        value: String,
    },
    /// Two ways of saying one thing, both used.
    #[error("seccomp profile has both {first} and {second}")]
    Both {
        /// The one.
        first: &'static str,
        /// The other.
        second: &'static str,
    },
    /// An argument a call does not have.
    #[error("seccomp rule for {name} looks at argument {index}, but calls have arguments 0 to 5")]
    ArgumentIndex {
        /// First system call of the rule.
        name: String,
        /// The index.
        index: u64,
    },
    /// An errno that is none.
    #[error("seccomp profile has errno {errno}, which does not exist")]
    Errno {
        /// The number.
        errno: u64,
    },
}

const MAX_SIZE: usize = 1 << 20;
const EPERM: u16 = 1;

impl Profile {
    /// Reads a profile.
    ///
    /// # Errors
    /// See [`ProfileError`].
    pub fn from_json(bytes: &[u8], at: &Circumstances) -> Result<Self, ProfileError> {
        if bytes.len() > MAX_SIZE {
            return Err(ProfileError::Size { size: bytes.len() });
        }
        let source: Source = serde_json::from_slice(bytes).map_err(ProfileError::Json)?;
        let architectures = architectures(&source)?;
        let flags = source
            .flags
            .map(|flags| flags.iter().map(|flag| parse_flag(flag)).collect());
        let mut rules = Vec::new();
        for call in source.syscalls.unwrap_or_default() {
            rules.extend(call.rule(at)?);
        }
        let errno = errno(source.default_errno_ret, source.default_errno.as_deref())?;
        Ok(Self {
            default_action: action(&source.default_action, errno)?,
            architectures,
            flags: flags.transpose()?,
            rules,
        })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Source {
    default_action: String,
    default_errno_ret: Option<u64>,
    default_errno: Option<String>,
    architectures: Option<Vec<String>>,
    arch_map: Option<Vec<ArchMap>>,
    flags: Option<Vec<String>>,
    syscalls: Option<Vec<Call>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: String,
    sub_architectures: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Call {
    name: Option<String>,
    names: Option<Vec<String>>,
    action: String,
    errno_ret: Option<u64>,
    errno: Option<String>,
    args: Option<Vec<Option<SourceArg>>>,
    includes: Option<Filter>,
    excludes: Option<Filter>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SourceArg {
    index: u64,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Filter {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

impl Call {
    fn rule(self, at: &Circumstances) -> Result<Option<Rule>, ProfileError> {
        let names = match (self.name.filter(|name| !name.is_empty()), self.names) {
            (Some(_), Some(names)) if !names.is_empty() => {
                return Err(ProfileError::Both {
                    first: "name",
                    second: "names",
                });
            }
            (Some(name), _) => vec![name],
            (None, names) => names.unwrap_or_default(),
        };
        if !self.includes.unwrap_or_default().all_hold(at)?
            || self.excludes.unwrap_or_default().one_holds(at)?
        {
            return Ok(None);
        }
        let action = action(&self.action, errno(self.errno_ret, self.errno.as_deref())?)?;
        let name = || names.first().cloned().unwrap_or_default();
        let args = self.args.unwrap_or_default().into_iter().flatten();
        let args = args.map(|arg| arg.parse(&name)).collect::<Result<_, _>>()?;
        Ok(Some(Rule {
            names,
            action,
            args,
        }))
    }
}

impl SourceArg {
    fn parse(self, name: &dyn Fn() -> String) -> Result<Arg, ProfileError> {
        let index = match u8::try_from(self.index) {
            Ok(index) if index < 6 => index,
            _ => {
                return Err(ProfileError::ArgumentIndex {
                    name: name(),
                    index: self.index,
                });
            }
        };
        let op = match self.op.as_str() {
            "SCMP_CMP_NE" => Op::Ne,
            "SCMP_CMP_LT" => Op::Lt,
            "SCMP_CMP_LE" => Op::Le,
            "SCMP_CMP_EQ" => Op::Eq,
            "SCMP_CMP_GE" => Op::Ge,
            "SCMP_CMP_GT" => Op::Gt,
            "SCMP_CMP_MASKED_EQ" => Op::MaskedEq,
            _ => {
                return Err(ProfileError::Unknown {
                    what: "operator",
                    value: self.op,
                });
            }
        };
        Ok(Arg {
            index,
            value: self.value,
            value_two: self.value_two,
            op,
        })
    }
}

impl Filter {
    /// What a rule asks for is there: its architecture, its kernel and each of its capabilities.
    fn all_hold(&self, at: &Circumstances) -> Result<bool, ProfileError> {
        let arches = self.arches.as_deref().unwrap_or_default();
        let caps = self.caps.as_deref().unwrap_or_default();
        let kernel = self.kernel()?.is_none_or(|least| at.kernel >= least);
        let arch = arches.is_empty() || arches.iter().any(|arch| is_native(arch));
        Ok(kernel && arch && caps.iter().all(|cap| has(at, cap)))
    }

    /// One of the things a rule does not want is there.
    fn one_holds(&self, at: &Circumstances) -> Result<bool, ProfileError> {
        let arches = self.arches.as_deref().unwrap_or_default();
        let caps = self.caps.as_deref().unwrap_or_default();
        let kernel = self.kernel()?.is_some_and(|least| at.kernel >= least);
        let arch = arches.iter().any(|arch| is_native(arch));
        Ok(kernel || arch || caps.iter().any(|cap| has(at, cap)))
    }

    fn kernel(&self) -> Result<Option<(u32, u32)>, ProfileError> {
        let Some(text) = self.min_kernel.as_ref().filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        let mut numbers = text.splitn(3, '.').map(str::parse);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(major)), Some(Ok(minor))) => Ok(Some((major, minor))),
            _ => Err(ProfileError::Unknown {
                what: "kernel version",
                value: text.clone(),
            }),
        }
    }
}

/// A capability this program does not know is one the container does not have.
fn has(at: &Circumstances, cap: &str) -> bool {
    capability::prefixed(cap).is_some_and(|number| at.caps & 1 << number != 0)
}

/// Filters name architectures as Go does.
fn is_native(arch: &str) -> bool {
    matches!(arch, "amd64" | "x86_64")
}

fn architectures(source: &Source) -> Result<Vec<Arch>, ProfileError> {
    let plain = source.architectures.as_deref().unwrap_or_default();
    let map = source.arch_map.as_deref().unwrap_or_default();
    if !plain.is_empty() && !map.is_empty() {
        return Err(ProfileError::Both {
            first: "architectures",
            second: "archMap",
        });
    }
    let native = map
        .iter()
        .filter(|entry| entry.architecture == "SCMP_ARCH_X86_64");
    let mapped = native.flat_map(|entry| {
        let subs = entry.sub_architectures.as_deref().unwrap_or_default();
        std::iter::once(&entry.architecture).chain(subs)
    });
    plain
        .iter()
        .chain(mapped)
        .map(|name| parse_arch(name))
        .collect()
}

fn parse_arch(name: &str) -> Result<Arch, ProfileError> {
    match name {
        "SCMP_ARCH_X86_64" | "SCMP_ARCH_NATIVE" => Ok(Arch::X86_64),
        "SCMP_ARCH_X86" => Ok(Arch::X86),
        "SCMP_ARCH_X32" => Ok(Arch::X32),
        other if other.starts_with("SCMP_ARCH_") => Ok(Arch::Other),
        other => Err(ProfileError::Unknown {
            what: "architecture",
            value: other.to_owned(),
        }),
    }
}

fn parse_flag(name: &str) -> Result<Flag, ProfileError> {
    match name {
        "SECCOMP_FILTER_FLAG_TSYNC" => Ok(Flag::Tsync),
        "SECCOMP_FILTER_FLAG_LOG" => Ok(Flag::Log),
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => Ok(Flag::SpecAllow),
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" => Ok(Flag::WaitKillableRecv),
        other => Err(ProfileError::Unknown {
            what: "flag",
            value: other.to_owned(),
        }),
    }
}

fn action(name: &str, errno: Option<u16>) -> Result<Action, ProfileError> {
    match name {
        // libseccomp's old name kills the thread.
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Ok(Action::KillThread),
        "SCMP_ACT_KILL_PROCESS" => Ok(Action::KillProcess),
        "SCMP_ACT_TRAP" => Ok(Action::Trap),
        "SCMP_ACT_ERRNO" => Ok(Action::Errno(errno.unwrap_or(EPERM))),
        "SCMP_ACT_TRACE" => Ok(Action::Trace(errno.unwrap_or(EPERM))),
        "SCMP_ACT_LOG" => Ok(Action::Log),
        "SCMP_ACT_ALLOW" => Ok(Action::Allow),
        "SCMP_ACT_NOTIFY" => Ok(Action::Notify),
        other => Err(ProfileError::Unknown {
            what: "action",
            value: other.to_owned(),
        }),
    }
}

/// The number wins; Podman's profiles give the name beside it, some the name alone.
fn errno(number: Option<u64>, name: Option<&str>) -> Result<Option<u16>, ProfileError> {
    if let Some(errno) = number {
        let known = u16::try_from(errno).ok().filter(|errno| *errno < 4096);
        return known.map(Some).ok_or(ProfileError::Errno { errno });
    }
    match name {
        None | Some("") => Ok(None),
        Some("EPERM") => Ok(Some(EPERM)),
        Some("ENOENT") => Ok(Some(2)),
        Some("EACCES") => Ok(Some(13)),
        Some("EINVAL") => Ok(Some(22)),
        Some("ENOSYS") => Ok(Some(38)),
        Some("EOPNOTSUPP" | "ENOTSUP") => Ok(Some(95)),
        Some("EAFNOSUPPORT") => Ok(Some(97)),
        Some(other) => Err(ProfileError::Unknown {
            what: "errno",
            value: other.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Circumstances = Circumstances {
        caps: 0,
        kernel: (6, 1),
    };

    fn read(text: &str, at: &Circumstances) -> Result<Profile, ProfileError> {
        Profile::from_json(text.as_bytes(), at)
    }

    #[test]
    fn the_specifications_form_is_read() {
        let text = r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_AARCH64"],
            "flags": ["SECCOMP_FILTER_FLAG_LOG"], "futureKey": 1,
            "syscalls": [{"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["clone"], "action": "SCMP_ACT_ERRNO", "errnoRet": 22, "args":
                    [{"index": 0, "value": 7, "valueTwo": 1, "op": "SCMP_CMP_MASKED_EQ"}]}]}"#;
        let profile = read(text, &NOTHING).unwrap();
        assert_eq!(profile.default_action, Action::Errno(38));
        assert_eq!(
            profile.architectures,
            [Arch::X86_64, Arch::X86, Arch::Other]
        );
        assert_eq!(profile.flags, Some(vec![Flag::Log]));
        assert_eq!(profile.rules[0].names, ["read", "write"]);
        assert_eq!(profile.rules[1].action, Action::Errno(22));
        let arg = Arg {
            index: 0,
            value: 7,
            value_two: 1,
            op: Op::MaskedEq,
        };
        assert_eq!(profile.rules[1].args, [arg]);
    }

    #[test]
    fn the_form_of_docker_and_podman_is_resolved() {
        let text = r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrno": "ENOSYS",
            "archMap": [{"architecture": "SCMP_ARCH_X86_64",
                         "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
                        {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": null}],
            "syscalls": [
              {"name": "read", "action": "SCMP_ACT_ALLOW", "args": null, "comment": ""},
              {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
              {"names": ["new"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "9.0"}},
              {"names": ["mount"], "action": "SCMP_ACT_ALLOW",
               "includes": {"caps": ["CAP_SYS_ADMIN"]}, "excludes": {}},
              {"names": ["clone"], "action": "SCMP_ACT_ALLOW",
               "excludes": {"caps": ["CAP_SYS_ADMIN"], "arches": ["s390"]}},
              {"names": ["sync_file_range2"], "action": "SCMP_ACT_ALLOW",
               "includes": {"arches": ["ppc64le"]}}]}"#;
        let names = |at: &Circumstances| {
            let rules = read(text, at).unwrap().rules;
            rules
                .into_iter()
                .flat_map(|rule| rule.names)
                .collect::<Vec<_>>()
        };
        assert_eq!(names(&NOTHING), ["read", "ptrace", "clone"]);
        let admin = Circumstances {
            caps: 1 << 21,
            ..NOTHING
        };
        assert_eq!(names(&admin), ["read", "ptrace", "mount"]);
        let profile = read(text, &NOTHING).unwrap();
        assert_eq!(profile.architectures, [Arch::X86_64, Arch::X86, Arch::X32]);
        assert_eq!(profile.default_action, Action::Errno(38));
    }

    #[test]
    fn wrong_profiles_are_told() {
        let wrong = |text: &str| read(text, &NOTHING).unwrap_err().to_string();
        assert!(wrong("{}").contains("parse"));
        assert!(wrong("[[[").contains("parse"));
        assert!(wrong(r#"{"defaultAction": "ALLOW"}"#).contains("unknown action \"ALLOW\""));
        let with = |rest: &str| wrong(&format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW", {rest}}}"#));
        assert!(with(r#""architectures": ["amd64"]"#).contains("architecture"));
        assert!(with(r#""flags": ["X"]"#).contains("flag"));
        assert!(with(r#""defaultErrnoRet": 5000"#).contains("errno 5000"));
        let call = |rest: &str| {
            let call = format!(r#"{{"names": ["a"], "action": "SCMP_ACT_ERRNO", {rest}}}"#);
            with(&format!(r#""syscalls": [{call}]"#))
        };
        assert!(call(r#""name": "b""#).contains("both"));
        let arg = |index: u64, op: &str| {
            call(&format!(
                r#""args": [{{"index": {index}, "value": 1, "op": "{op}"}}]"#
            ))
        };
        assert!(arg(6, "SCMP_CMP_EQ").contains("argument 6"));
        assert!(arg(0, "EQ").contains("operator"));
        let huge = vec![b' '; MAX_SIZE + 1];
        assert!(matches!(
            Profile::from_json(&huge, &NOTHING),
            Err(ProfileError::Size { .. })
        ));
    }
}
