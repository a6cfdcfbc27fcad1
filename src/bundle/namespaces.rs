//! Namespaces: joined from pause, made new, or the host's by absence.

use std::path::PathBuf;

use oci_spec::runtime::{
    LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespace, LinuxNamespaceBuilder,
    LinuxNamespaceType,
};

use super::{BundleError, BundleInput, Result};
use crate::sandbox::spec::{IdMapping, IpcMode, PidMode, UserNamespace};

/// Network, IPC, UTS and user namespaces are the pod's; the PID namespace is the container's choice.
pub(super) fn namespaces(input: &BundleInput<'_>) -> Result<Vec<LinuxNamespace>> {
    let sandbox = &input.sandbox.security.namespaces;
    let of_pause = |name: &str| Some(namespace_path(input.paths.pause_pid, name));
    let mut list = vec![namespace(LinuxNamespaceType::Mount, None)?];
    if let UserNamespace::Pod { .. } = sandbox.user {
        list.push(namespace(LinuxNamespaceType::User, of_pause("user"))?);
    }
    if let Some(pid) = pid_namespace(input)? {
        list.push(pid);
    }
    if sandbox.ipc == IpcMode::Pod {
        list.push(namespace(LinuxNamespaceType::Ipc, of_pause("ipc"))?);
    }
    // With the host's network a pod also has the host's name.
    if !input.sandbox.host_network() {
        let netns = input.paths.netns.clone().or_else(|| of_pause("net"));
        list.push(namespace(LinuxNamespaceType::Network, netns)?);
        list.push(namespace(LinuxNamespaceType::Uts, of_pause("uts"))?);
    }
    // A privileged container manages the host's cgroups; for all others the tree begins at theirs, and
    // so it does in a user namespace, which has no rights over the host's.
    if !input.container.security.privileged || sandbox.user != UserNamespace::Node {
        list.push(namespace(LinuxNamespaceType::Cgroup, None)?);
    }
    Ok(list)
}

/// The container's PID mode. POD means "as the pod has it": where the pod shares no PID namespace,
/// each container gets one, and where the pod uses the host's, so does the container.
fn pid_namespace(input: &BundleInput<'_>) -> Result<Option<LinuxNamespace>> {
    let kind = LinuxNamespaceType::Pid;
    let new = namespace(kind, None)?;
    Ok(match &input.container.security.namespaces.pid {
        PidMode::Node => None,
        PidMode::Container => Some(new),
        PidMode::Target(_) => {
            let pid = input
                .paths
                .target_pid
                .ok_or(BundleError::TargetNotResolved)?;
            Some(namespace(kind, Some(namespace_path(pid, "pid")))?)
        }
        PidMode::Pod => match input.sandbox.security.namespaces.pid {
            PidMode::Node => None,
            PidMode::Container | PidMode::Target(_) => Some(new),
            PidMode::Pod => Some(namespace(
                kind,
                Some(namespace_path(input.paths.pause_pid, "pid")),
            )?),
        },
    })
}

fn namespace_path(pid: i32, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/ns/{name}"))
}

fn namespace(kind: LinuxNamespaceType, path: Option<PathBuf>) -> Result<LinuxNamespace> {
    let builder = LinuxNamespaceBuilder::default().typ(kind);
    Ok(match path {
        Some(path) => builder.path(path).build()?,
        None => builder.build()?,
    })
}

pub(super) fn mapping(mapping: IdMapping) -> Result<LinuxIdMapping> {
    Ok(LinuxIdMappingBuilder::default()
        .host_id(mapping.host_id)
        .container_id(mapping.container_id)
        .size(mapping.length)
        .build()?)
}
