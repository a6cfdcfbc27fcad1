//! Security contexts: namespaces, identity, capabilities, profiles.

use super::{
    HostSupport,
    field::{Field, MAX_NAME, MAX_PATH, Result, quoted},
};
use crate::{
    container::{
        capability::{Capability, CapabilitySet},
        spec::{CapabilityChange, ContainerSecurity, RunAs},
    },
    cri::proto,
    sandbox::spec::{
        IdMapping, IpcMode, NamespaceOptions, NetworkMode, PidMode, SandboxSecurity,
        SecurityProfile, SelinuxOptions, SupplementalGroupsPolicy, UserNamespace,
    },
};

/// Most supplemental groups: NGROUPS_MAX.
const MAX_GROUPS: usize = 65_536;
/// Most masked or read-only paths. Kubernetes asks for some hundred on machines with many CPUs.
const MAX_PATHS: usize = 8192;
/// Most names in a list of capabilities.
const MAX_CAPABILITIES: usize = 256;

/// Validates a sandbox's security context.
pub(super) fn sandbox_security(
    field: &Field<'_>,
    asked: Option<&proto::LinuxSandboxSecurityContext>,
    host: HostSupport,
) -> Result<SandboxSecurity> {
    let Some(asked) = asked else {
        return Ok(SandboxSecurity::default());
    };
    let (run_as_user, run_as_group) = identity(
        field,
        asked.run_as_user.as_ref(),
        asked.run_as_group.as_ref(),
        false,
    )?;
    #[allow(deprecated, reason = "older clients set only this one")]
    let old_seccomp = asked.seccomp_profile_path.as_str();
    let options = asked.namespace_options.as_ref();
    Ok(SandboxSecurity {
        namespaces: namespaces(&field.child("namespace_options"), options, Of::Sandbox)?,
        selinux: selinux(
            &field.child("selinux_options"),
            asked.selinux_options.as_ref(),
        )?,
        run_as_user,
        run_as_group,
        supplemental_groups: groups(field, &asked.supplemental_groups)?,
        supplemental_groups_policy: policy(field, asked.supplemental_groups_policy)?,
        readonly_rootfs: asked.readonly_rootfs,
        privileged: asked.privileged,
        seccomp: seccomp(field, asked.seccomp.as_ref(), old_seccomp)?,
        apparmor: apparmor(field, asked.apparmor.as_ref(), "", host)?,
    })
}

/// Validates a container's security context.
pub(super) fn container_security(
    field: &Field<'_>,
    asked: Option<&proto::LinuxContainerSecurityContext>,
    host: HostSupport,
) -> Result<ContainerSecurity> {
    let Some(asked) = asked else {
        return Ok(ContainerSecurity::default());
    };
    let named = !asked.run_as_username.is_empty();
    let (run_as_user, run_as_group) = identity(
        field,
        asked.run_as_user.as_ref(),
        asked.run_as_group.as_ref(),
        named,
    )?;
    let run_as = match run_as_user {
        Some(_) if named => {
            let problem = "must be empty when run_as_user is set";
            return Err(field.child("run_as_username").invalid(problem));
        }
        Some(uid) => RunAs::Uid(uid),
        None if named => username(&field.child("run_as_username"), &asked.run_as_username)?,
        None => RunAs::Image,
    };
    #[allow(deprecated, reason = "older clients set only these")]
    let (old_seccomp, old_apparmor) = (
        asked.seccomp_profile_path.as_str(),
        asked.apparmor_profile.as_str(),
    );
    let options = asked.namespace_options.as_ref();
    Ok(ContainerSecurity {
        capabilities: capabilities(&field.child("capabilities"), asked.capabilities.as_ref())?,
        privileged: asked.privileged,
        namespaces: namespaces(&field.child("namespace_options"), options, Of::Container)?,
        selinux: selinux(
            &field.child("selinux_options"),
            asked.selinux_options.as_ref(),
        )?,
        run_as,
        run_as_group,
        readonly_rootfs: asked.readonly_rootfs,
        supplemental_groups: groups(field, &asked.supplemental_groups)?,
        supplemental_groups_policy: policy(field, asked.supplemental_groups_policy)?,
        no_new_privs: asked.no_new_privs,
        masked_paths: paths(&field.child("masked_paths"), &asked.masked_paths)?,
        readonly_paths: paths(&field.child("readonly_paths"), &asked.readonly_paths)?,
        seccomp: seccomp(field, asked.seccomp.as_ref(), old_seccomp)?,
        apparmor: apparmor(field, asked.apparmor.as_ref(), old_apparmor, host)?,
    })
}

fn identity(
    field: &Field<'_>,
    user: Option<&proto::Int64Value>,
    group: Option<&proto::Int64Value>,
    named: bool,
) -> Result<(Option<u32>, Option<u32>)> {
    let id = |name, value: Option<&proto::Int64Value>| {
        value
            .map(|value| field.child(name).id(value.value))
            .transpose()
    };
    let (user, group) = (id("run_as_user", user)?, id("run_as_group", group)?);
    if group.is_some() && user.is_none() && !named {
        let problem = "must not be set without a user; set run_as_user too";
        return Err(field.child("run_as_group").invalid(problem));
    }
    Ok((user, group))
}

/// A name of /etc/passwd; `:` and control characters cannot be part of one.
fn username(field: &Field<'_>, name: &str) -> Result<RunAs> {
    field.at_most(name, MAX_NAME)?;
    field.one_word(name)?;
    if name.contains([':', '/']) {
        let problem = format!("must not contain \":\" or \"/\", is {}", quoted(name));
        return Err(field.invalid(problem));
    }
    Ok(RunAs::Name(name.to_owned()))
}

fn groups(field: &Field<'_>, list: &[i64]) -> Result<Vec<u32>> {
    let field = field.child("supplemental_groups");
    field.count(list, MAX_GROUPS)?;
    list.iter()
        .enumerate()
        .map(|(index, gid)| field.index(index).id(*gid))
        .collect()
}

fn policy(field: &Field<'_>, number: i32) -> Result<SupplementalGroupsPolicy> {
    Ok(
        match field
            .child("supplemental_groups_policy")
            .enumerated(number)?
        {
            proto::SupplementalGroupsPolicy::Merge => SupplementalGroupsPolicy::Merge,
            proto::SupplementalGroupsPolicy::Strict => SupplementalGroupsPolicy::Strict,
        },
    )
}

fn paths(field: &Field<'_>, list: &[String]) -> Result<Vec<String>> {
    field.count(list, MAX_PATHS)?;
    list.iter()
        .enumerate()
        .map(|(index, path)| field.index(index).absolute_path(path))
        .collect()
}

/// Whose namespaces are asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    Sandbox,
    Container,
}

fn namespaces(
    field: &Field<'_>,
    asked: Option<&proto::NamespaceOption>,
    of: Of,
) -> Result<NamespaceOptions> {
    let Some(asked) = asked else {
        return Ok(NamespaceOptions::default());
    };
    let pod_or_node = |name, number| {
        let field = field.child(name);
        match field.enumerated(number)? {
            proto::NamespaceMode::Pod => Ok(false),
            proto::NamespaceMode::Node => Ok(true),
            other => Err(field.invalid(format!("must be POD or NODE, is {}", other.as_str_name()))),
        }
    };
    let network = pod_or_node("network", asked.network)?;
    let ipc = pod_or_node("ipc", asked.ipc)?;
    let options = NamespaceOptions {
        network: if network {
            NetworkMode::Node
        } else {
            NetworkMode::Pod
        },
        pid: pid_mode(field, asked, of)?,
        ipc: if ipc { IpcMode::Node } else { IpcMode::Pod },
        user: user_namespace(
            &field.child("userns_options"),
            asked.userns_options.as_ref(),
        )?,
    };
    fits_user_namespace(field, &options)?;
    Ok(options)
}

/// The host's processes and its IPC are nothing that a user namespace of the pod's own has any right
/// over: not even their file systems can be mounted there. kubelet refuses it, too.
fn fits_user_namespace(field: &Field<'_>, options: &NamespaceOptions) -> Result<()> {
    if options.user == UserNamespace::Node {
        return Ok(());
    }
    let shared = if options.pid == PidMode::Node {
        "pid"
    } else if options.ipc == IpcMode::Node {
        "ipc"
    } else {
        return Ok(());
    };
    let problem = "must not be NODE in a pod with a user namespace of its own";
    Err(field.child(shared).invalid(problem))
}

fn pid_mode(field: &Field<'_>, asked: &proto::NamespaceOption, of: Of) -> Result<PidMode> {
    let pid = field.child("pid");
    let mode = pid.enumerated(asked.pid)?;
    let target = field.child("target_id");
    Ok(match mode {
        proto::NamespaceMode::Pod => PidMode::Pod,
        proto::NamespaceMode::Container => PidMode::Container,
        proto::NamespaceMode::Node => PidMode::Node,
        proto::NamespaceMode::Target if of == Of::Sandbox => {
            return Err(pid.invalid("must be POD, CONTAINER or NODE: a sandbox has no target"));
        }
        proto::NamespaceMode::Target if asked.target_id.is_empty() => {
            return Err(target.invalid("must name a container when pid is TARGET"));
        }
        proto::NamespaceMode::Target => PidMode::Target(target.name(&asked.target_id)?),
    })
}

/// A user namespace of the host's (NODE) or of the pod's own with one range each for users and groups.
/// Whether this host can make one is asked later.
fn user_namespace(
    field: &Field<'_>,
    asked: Option<&proto::UserNamespace>,
) -> Result<UserNamespace> {
    let Some(asked) = asked else {
        return Ok(UserNamespace::Node);
    };
    let mode = field.child("mode");
    match mode.enumerated(asked.mode)? {
        proto::NamespaceMode::Node => {
            if !asked.uids.is_empty() || !asked.gids.is_empty() {
                return Err(field
                    .child("uids")
                    .invalid("must be empty when mode is NODE"));
            }
            Ok(UserNamespace::Node)
        }
        proto::NamespaceMode::Pod => Ok(UserNamespace::Pod {
            uids: one_mapping(&field.child("uids"), &asked.uids)?,
            gids: one_mapping(&field.child("gids"), &asked.gids)?,
        }),
        other => {
            let problem = format!("must be POD or NODE, is {}", other.as_str_name());
            Err(mode.invalid(problem))
        }
    }
}

/// Exactly one range, which holds id 0 and stays inside 32 bits.
fn one_mapping(field: &Field<'_>, mappings: &[proto::IdMapping]) -> Result<IdMapping> {
    let [mapping] = mappings else {
        let problem = format!("must be exactly one mapping, has {}", mappings.len());
        return Err(field.invalid(problem));
    };
    let field = field.index(0);
    let range = range(&field, mapping)?;
    if mapping.container_id != 0 {
        let problem = format!(
            "must be 0, is {}: id 0 has to be mapped",
            mapping.container_id
        );
        return Err(field.child("container_id").invalid(problem));
    }
    if mapping.host_id == 0 {
        let problem = "must not be 0: root of the pod would be root of the host";
        return Err(field.child("host_id").invalid(problem));
    }
    Ok(range)
}

/// One range, which stays inside 32 bits on both sides.
pub(super) fn range(field: &Field<'_>, mapping: &proto::IdMapping) -> Result<IdMapping> {
    let length = field.child("length");
    if mapping.length == 0 {
        return Err(length.invalid("must be at least 1"));
    }
    for first in [mapping.host_id, mapping.container_id] {
        if first.checked_add(mapping.length).is_none() {
            let problem = format!("{} ids from {first} exceed 2^32 - 1", mapping.length);
            return Err(length.invalid(problem));
        }
    }
    Ok(IdMapping {
        host_id: mapping.host_id,
        container_id: mapping.container_id,
        length: mapping.length,
    })
}

fn selinux(
    field: &Field<'_>,
    asked: Option<&proto::SeLinuxOption>,
) -> Result<Option<SelinuxOptions>> {
    let Some(asked) = asked else { return Ok(None) };
    let part = |name, text: &str| {
        let field = field.child(name);
        let level = name == "level";
        let allowed = |c: char| {
            c.is_ascii_alphanumeric()
                || matches!(c, '_' | '-' | '.')
                || (level && matches!(c, ':' | ','))
        };
        if text.len() > MAX_NAME || !text.chars().all(allowed) {
            let rule = "must be one part of an SELinux context such as";
            let example = if level { "s0:c123,c456" } else { "container_t" };
            return Err(field.invalid(format!("{rule} {example}, is {}", quoted(text))));
        }
        Ok((!text.is_empty()).then(|| text.to_owned()))
    };
    let options = SelinuxOptions {
        user: part("user", &asked.user)?,
        role: part("role", &asked.role)?,
        kind: part("type", &asked.r#type)?,
        level: part("level", &asked.level)?,
    };
    Ok((options != SelinuxOptions::default()).then_some(options))
}

fn capabilities(field: &Field<'_>, asked: Option<&proto::Capability>) -> Result<CapabilityChange> {
    let Some(asked) = asked else {
        return Ok(CapabilityChange::default());
    };
    let (add_all, add) = capability_set(&field.child("add_capabilities"), &asked.add_capabilities)?;
    let (drop_all, drop) =
        capability_set(&field.child("drop_capabilities"), &asked.drop_capabilities)?;
    let ambient = field.child("add_ambient_capabilities");
    let (ambient_all, ambient_set) = capability_set(&ambient, &asked.add_ambient_capabilities)?;
    if ambient_all {
        return Err(ambient.invalid("must name the capabilities, ALL is not possible here"));
    }
    Ok(CapabilityChange {
        add_all,
        add,
        drop_all,
        drop,
        ambient: ambient_set,
    })
}

fn capability_set(field: &Field<'_>, names: &[String]) -> Result<(bool, CapabilitySet)> {
    field.count(names, MAX_CAPABILITIES)?;
    let mut all = false;
    let mut set = CapabilitySet::EMPTY;
    for (index, name) in names.iter().enumerate() {
        if name.eq_ignore_ascii_case("ALL") || name.eq_ignore_ascii_case("CAP_ALL") {
            all = true;
            continue;
        }
        let Some(capability) = Capability::parse(name) else {
            let rule = "must be a capability such as NET_ADMIN, or ALL";
            return Err(field
                .index(index)
                .invalid(format!("{rule}, is {}", quoted(name))));
        };
        set.insert(capability);
    }
    Ok((all, set))
}

fn profile(
    field: &Field<'_>,
    asked: &proto::SecurityProfile,
) -> Result<proto::security_profile::ProfileType> {
    let kind = field.child("profile_type").enumerated(asked.profile_type)?;
    let localhost = kind == proto::security_profile::ProfileType::Localhost;
    if localhost && asked.localhost_ref.is_empty() {
        let problem = "must name the profile when profile_type is Localhost";
        return Err(field.child("localhost_ref").invalid(problem));
    }
    if !localhost && !asked.localhost_ref.is_empty() {
        let problem = "must be empty unless profile_type is Localhost";
        return Err(field.child("localhost_ref").invalid(problem));
    }
    Ok(kind)
}

fn seccomp(
    field: &Field<'_>,
    asked: Option<&proto::SecurityProfile>,
    old: &str,
) -> Result<Option<SecurityProfile>> {
    use proto::security_profile::ProfileType;
    let file = |field: &Field<'_>, path: &str| {
        field.at_most(path, MAX_PATH)?;
        field.absolute_path(path).map(SecurityProfile::Localhost)
    };
    if let Some(asked) = asked {
        let field = field.child("seccomp");
        return Ok(Some(match profile(&field, asked)? {
            ProfileType::RuntimeDefault => SecurityProfile::RuntimeDefault,
            ProfileType::Unconfined => SecurityProfile::Unconfined,
            ProfileType::Localhost => file(&field.child("localhost_ref"), &asked.localhost_ref)?,
        }));
    }
    let field = field.child("seccomp_profile_path");
    Ok(match old {
        "" => None,
        "unconfined" => Some(SecurityProfile::Unconfined),
        "runtime/default" | "docker/default" => Some(SecurityProfile::RuntimeDefault),
        other => match other.strip_prefix("localhost/") {
            Some(path) => Some(file(&field, path)?),
            None => return Err(field.invalid(old_profile_rule(other))),
        },
    })
}

fn old_profile_rule(is: &str) -> String {
    let rule = "must be runtime/default, unconfined or localhost/<profile>";
    format!("{rule}, is {}", quoted(is))
}

fn apparmor(
    field: &Field<'_>,
    asked: Option<&proto::SecurityProfile>,
    old: &str,
    host: HostSupport,
) -> Result<Option<SecurityProfile>> {
    use proto::security_profile::ProfileType;
    let loaded = |field: &Field<'_>, name: &str| {
        // Clients send the name with and without the prefix of the older notation.
        let name = name.strip_prefix("localhost/").unwrap_or(name);
        field.at_most(name, MAX_PATH)?;
        field.one_word(name)?;
        if name.is_empty() {
            return Err(field.invalid("must name a loaded profile after localhost/"));
        }
        if !host.apparmor {
            let problem = format!(
                "profile {} is asked for, but this host has no AppArmor",
                quoted(name)
            );
            return Err(field.unsupported(problem));
        }
        Ok(SecurityProfile::Localhost(name.to_owned()))
    };
    if let Some(asked) = asked {
        let field = field.child("apparmor");
        return Ok(Some(match profile(&field, asked)? {
            ProfileType::RuntimeDefault => SecurityProfile::RuntimeDefault,
            ProfileType::Unconfined => SecurityProfile::Unconfined,
            ProfileType::Localhost => loaded(&field.child("localhost_ref"), &asked.localhost_ref)?,
        }));
    }
    let field = field.child("apparmor_profile");
    Ok(match old {
        "" => None,
        "unconfined" => Some(SecurityProfile::Unconfined),
        "runtime/default" => Some(SecurityProfile::RuntimeDefault),
        other if other.starts_with("localhost/") => Some(loaded(&field, other)?),
        other => return Err(field.invalid(old_profile_rule(other))),
    })
}
