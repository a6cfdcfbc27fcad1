//! Namespaces, and what is set inside them.

use oci_spec::runtime::{Linux, LinuxNamespaceType, Spec};

use super::{Result, invalid, text, unsupported};
use crate::plan::{FdIndex, NamespaceHow, NamespaceKind, NamespacePlan};

pub(super) fn namespaces(
    linux: &Linux,
    joins: &[(NamespaceKind, FdIndex)],
) -> Result<Vec<NamespacePlan>> {
    const FIELD: &str = "linux.namespaces";
    let mut list: Vec<NamespacePlan> = Vec::new();
    for namespace in linux.namespaces().as_deref().unwrap_or_default() {
        let kind = match namespace.typ() {
            LinuxNamespaceType::Mount => NamespaceKind::Mount,
            LinuxNamespaceType::Cgroup => NamespaceKind::Cgroup,
            LinuxNamespaceType::Uts => NamespaceKind::Uts,
            LinuxNamespaceType::Ipc => NamespaceKind::Ipc,
            LinuxNamespaceType::Pid => NamespaceKind::Pid,
            LinuxNamespaceType::Network => NamespaceKind::Net,
            LinuxNamespaceType::User => NamespaceKind::User,
            LinuxNamespaceType::Time => return Err(unsupported("linux.namespaces time")),
        };
        if list.iter().any(|entry| entry.kind == kind) {
            return Err(invalid(FIELD, format!("{} is there twice", kind.name())));
        }
        let path = namespace
            .path()
            .as_deref()
            .filter(|path| !path.as_os_str().is_empty());
        let hint = joins.iter().find(|join| join.0 == kind);
        let how = match (path, hint) {
            (None, _) => NamespaceHow::New,
            (Some(_), Some((_, index))) => NamespaceHow::JoinPidfd(*index),
            (Some(path), None) => NamespaceHow::JoinPath(text(FIELD, path)?),
        };
        if kind == NamespaceKind::Mount && how != NamespaceHow::New {
            return Err(unsupported("linux.namespaces mount with a path"));
        }
        if kind == NamespaceKind::User && how == NamespaceHow::New {
            return Err(unsupported("linux.namespaces user without a path"));
        }
        list.push(NamespacePlan { kind, how });
    }
    if !has(&list, NamespaceKind::Mount) {
        return Err(unsupported("linux.namespaces without mount"));
    }
    Ok(list)
}

fn has(namespaces: &[NamespacePlan], kind: NamespaceKind) -> bool {
    namespaces.iter().any(|entry| entry.kind == kind)
}

/// Host and domain name.
pub(super) struct Names {
    pub(super) host: Option<String>,
    pub(super) domain: Option<String>,
}

impl Names {
    pub(super) fn of(spec: &Spec, namespaces: &[NamespacePlan]) -> Result<Self> {
        let own = has(namespaces, NamespaceKind::Uts);
        let name = |field: &str, name: &Option<String>| match name.as_deref() {
            None | Some("") => Ok(None),
            Some(_) if !own => Err(invalid(field, "needs a UTS namespace of the container's")),
            Some(name) if name.len() > 64 || name.contains('\0') => {
                Err(invalid(field, format!("{name:?} is longer than 64 bytes")))
            }
            Some(name) => Ok(Some(name.to_owned())),
        };
        Ok(Self {
            host: name("hostname", spec.hostname())?,
            domain: name("domainname", spec.domainname())?,
        })
    }
}

/// Parameters of the IPC namespace below kernel/.
const IPC: [&str; 8] = [
    "msgmax",
    "msgmnb",
    "msgmni",
    "sem",
    "shmall",
    "shmmax",
    "shmmni",
    "shm_rmid_forced",
];

/// Kernel parameters, as paths below /proc/sys. Only those that belong to a namespace of the
/// container's: others would change the host.
pub(super) fn sysctls(
    linux: &Linux,
    namespaces: &[NamespacePlan],
) -> Result<Vec<(String, String)>> {
    let mut list = Vec::new();
    for (name, value) in linux.sysctl().iter().flatten() {
        let field = format!("linux.sysctl[{name:?}]");
        let path = sysctl_path(name).ok_or_else(|| invalid(&field, "is no parameter's name"))?;
        let parts: Vec<&str> = path.split('/').collect();
        let kind = match parts.as_slice() {
            ["net", _, ..] => NamespaceKind::Net,
            ["fs", "mqueue", _] => NamespaceKind::Ipc,
            ["kernel", name] if IPC.contains(name) => NamespaceKind::Ipc,
            ["kernel", "domainname"] => NamespaceKind::Uts,
            ["kernel", "hostname"] => {
                return Err(invalid(
                    &field,
                    "the host name is set by the field hostname",
                ));
            }
            _ => return Err(invalid(&field, "does not belong to a namespace")),
        };
        if !has(namespaces, kind) {
            let reason = format!(
                "would change the host, whose {} namespace is shared",
                kind.name()
            );
            return Err(invalid(&field, reason));
        }
        if value.contains(['\n', '\0']) || value.len() > 4096 {
            return Err(invalid(&field, "has a value of more than one line"));
        }
        list.push((path, value.clone()));
    }
    // The map has no order of its own.
    list.sort();
    Ok(list)
}

/// As sysctl(8) has it: the first separator tells which of dot and slash separates.
fn sysctl_path(name: &str) -> Option<String> {
    let dotted = name
        .find(['.', '/'])
        .is_some_and(|at| name.as_bytes()[at] == b'.');
    let path: String = match dotted {
        true => name
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                c => c,
            })
            .collect(),
        false => name.to_owned(),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    let fine = path.len() < 200
        && path.chars().all(plain)
        && path.split('/').all(|part| !matches!(part, "" | "." | ".."));
    fine.then_some(path)
}
