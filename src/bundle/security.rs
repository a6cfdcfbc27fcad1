//! Confinement: capabilities, seccomp, hidden paths, AppArmor, SELinux.

use std::path::PathBuf;

use oci_spec::runtime::{Capabilities, LinuxCapabilities, LinuxCapabilitiesBuilder, LinuxSeccomp};

use super::{BundleError, BundleInput, HostFacts, Result};
use crate::{
    container::{
        capability::{Capability, CapabilitySet},
        spec::ContainerSpec,
    },
    sandbox::spec::{SecurityProfile, SelinuxOptions, UserNamespace},
};

/// What a container may do that asks for nothing: containerd's and docker's set.
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// Hidden where a client names no path at all. kubelet always names its own list.
const DEFAULT_MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Read-only where a client names no path at all.
const DEFAULT_READONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Which seccomp profile the caller has to load for a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SeccompWanted {
    /// None: not asked for, unconfined or privileged.
    None,
    /// The daemon's default profile.
    RuntimeDefault,
    /// The profile in this file on the host.
    Localhost(PathBuf),
}

/// The seccomp rule: privileged and unasked-for containers are unconfined.
#[must_use]
pub fn seccomp_wanted(container: &ContainerSpec) -> SeccompWanted {
    if container.security.privileged {
        return SeccompWanted::None;
    }
    match &container.security.seccomp {
        None | Some(SecurityProfile::Unconfined) => SeccompWanted::None,
        Some(SecurityProfile::RuntimeDefault) => SeccompWanted::RuntimeDefault,
        Some(SecurityProfile::Localhost(path)) => SeccompWanted::Localhost(path.into()),
    }
}

pub(super) fn seccomp(input: &BundleInput<'_>) -> Result<Option<LinuxSeccomp>> {
    match (seccomp_wanted(input.container), &input.seccomp) {
        (SeccompWanted::None, _) => Ok(None),
        (_, Some(profile)) => Ok(Some(profile.clone())),
        (wanted, None) => Err(BundleError::SeccompNotLoaded { wanted }),
    }
}

/// What a container's process may do: the default set, all or nothing, with what was added and
/// without what was dropped; never more than the daemon itself may give away, which is left out
/// rather than failing every container.
fn capability_set(container: &ContainerSpec, host: &HostFacts) -> CapabilitySet {
    let asked = &container.security;
    let change = asked.capabilities;
    let base = if asked.privileged {
        return CapabilitySet::ALL.intersection(host.bounding);
    } else if change.drop_all {
        CapabilitySet::EMPTY
    } else if change.add_all {
        CapabilitySet::ALL
    } else {
        DEFAULT_CAPABILITIES
            .iter()
            .filter_map(|name| Capability::parse(name))
            .collect()
    };
    let set = base.union(change.add).union(change.ambient);
    set.difference(change.drop).intersection(host.bounding)
}

/// The capabilities of a container as a kernel mask: what a seccomp profile's rules depend on.
#[must_use]
pub fn capability_bits(container: &ContainerSpec, host: &HostFacts) -> u64 {
    capability_set(container, host).mask()
}

pub(super) fn capabilities(input: &BundleInput<'_>) -> Result<LinuxCapabilities> {
    let set = capability_set(input.container, input.host);
    // Inheritable capabilities would let programs with file capabilities gain them (CVE-2022-24769);
    // only ambient ones need them.
    let asked = input.container.security.capabilities.ambient;
    let ambient = asked.intersection(set);
    Ok(LinuxCapabilitiesBuilder::default()
        .bounding(oci(set))
        .effective(oci(set))
        .permitted(oci(set))
        .inheritable(oci(ambient))
        .ambient(oci(ambient))
        .build()?)
}

fn oci(set: CapabilitySet) -> Capabilities {
    // The crate's names are those without the prefix; a test holds that it knows every one of ours.
    set.iter()
        .filter_map(|capability| capability.name()[4..].parse().ok())
        .collect()
}

/// Masked and read-only paths: none for privileged containers; exactly what was asked, if anything
/// was; else the defaults. A pod in a user namespace may ask for an unmasked /proc by asking nothing.
pub(super) fn hidden_paths(input: &BundleInput<'_>) -> (Vec<String>, Vec<String>) {
    let asked = &input.container.security;
    if asked.privileged {
        return (Vec::new(), Vec::new());
    }
    let nothing_asked = asked.masked_paths.is_empty() && asked.readonly_paths.is_empty();
    let host_users = input.sandbox.security.namespaces.user == UserNamespace::Node;
    if nothing_asked && host_users {
        return (
            DEFAULT_MASKED.map(String::from).into(),
            DEFAULT_READONLY.map(String::from).into(),
        );
    }
    (asked.masked_paths.clone(), asked.readonly_paths.clone())
}

/// The AppArmor profile: what was asked, else the default one if it is loaded; none on a host without
/// AppArmor and for privileged containers that ask for none by name. The default by name must be there.
pub(super) fn apparmor(input: &BundleInput<'_>) -> Result<Option<String>> {
    if !input.host.apparmor {
        return Ok(None);
    }
    let default = &input.host.apparmor_default;
    let security = &input.container.security;
    Ok(match &security.apparmor {
        Some(SecurityProfile::Localhost(name)) => Some(name.clone()),
        Some(SecurityProfile::Unconfined) => Some("unconfined".to_owned()),
        _ if security.privileged => None,
        Some(SecurityProfile::RuntimeDefault) if default.is_none() => {
            return Err(BundleError::AppArmorDefault);
        }
        None | Some(SecurityProfile::RuntimeDefault) => default.clone(),
    })
}

pub(super) fn process_label(input: &BundleInput<'_>) -> Option<String> {
    let options = selinux(input)?;
    let default = if input.container.security.privileged {
        "spc_t"
    } else {
        "container_t"
    };
    Some(label(
        options,
        "system_r",
        options.kind.as_deref().unwrap_or(default),
    ))
}

pub(super) fn mount_label(input: &BundleInput<'_>) -> Option<String> {
    Some(label(selinux(input)?, "object_r", "container_file_t"))
}

/// The container's context, else the pod's; only on a host with SELinux.
fn selinux<'a>(input: &'a BundleInput<'_>) -> Option<&'a SelinuxOptions> {
    if !input.host.selinux {
        return None;
    }
    let sandbox = input.sandbox.security.selinux.as_ref();
    input.container.security.selinux.as_ref().or(sandbox)
}

fn label(options: &SelinuxOptions, role: &str, kind: &str) -> String {
    let user = options.user.as_deref().unwrap_or("system_u");
    let role = match role {
        "object_r" => role,
        _ => options.role.as_deref().unwrap_or(role),
    };
    let level = options.level.as_deref().unwrap_or("s0");
    format!("{user}:{role}:{kind}:{level}")
}
