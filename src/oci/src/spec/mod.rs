//! Reads a runtime specification into a plan. Pure: it looks at its input only, so everything
//! here is decided without privileges and tested without a kernel.
//!
//! Every field of the specification is either in the plan or refused by its name; nothing that
//! could confine a container is ever skipped in silence. Annotations are not looked at.

mod devices;
mod hooks;
mod mounts;
mod namespaces;
mod options;
mod process;
mod resctrl;
mod resources;
mod seccomp;
#[cfg(test)]
mod tests;
mod users;

use std::fmt::Display;
use std::path::{Component, Path};

use oci_spec::runtime::{Linux, Spec};

use crate::host::HostFacts;
use crate::plan::{CgroupPlan, FdIndex, NamespaceKind, Plan, RootfsSource, SeccompPlan, Step};

pub use process::process;
pub use resources::{device_rules, resources};
pub use users::{IdRange, Idmap, ranges};

/// What a plan is made from.
#[derive(Clone, Debug)]
pub struct SpecInput<'a> {
    /// The runtime specification (config.json).
    pub spec: &'a Spec,
    /// The container's id.
    pub id: &'a str,
    /// Absolute path of the bundle; `root.path` may be relative to it.
    pub bundle: &'a str,
    /// What the host can do.
    pub host: &'a HostFacts,
    /// Where in the descriptor table the root filesystem's detached mount is; without it
    /// `root.path` is bound.
    pub rootfs: Option<FdIndex>,
    /// Processes by pidfd whose namespaces are meant where the specification names a path: a
    /// descriptor cannot come to mean another process.
    pub joins: &'a [(NamespaceKind, FdIndex)],
    /// User namespaces for mounts that ask for one by their mappings.
    pub idmaps: &'a [Idmap],
    /// `linux.seccomp`, compiled before (it costs more than all else here); else it is compiled
    /// now.
    pub seccomp: Option<SeccompPlan>,
    /// Mounts attached nowhere that are meant where `mounts[].source` names their stand-ins.
    pub detached: &'a [DetachedSource],
}

/// A mount in the descriptor table that stands for a source path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DetachedSource {
    /// The `mounts[].source` that it replaces.
    pub source: String,
    /// Where in the table it is.
    pub mount: FdIndex,
    /// A directory in it that is meant instead of its root.
    pub below: Option<String>,
}

/// Why a specification cannot be planned. Each names the field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A field that is needed is absent.
    #[error("{0} is absent")]
    Absent(&'static str),
    /// A field's value is not allowed.
    #[error("{field}: {reason}")]
    Invalid {
        /// Which.
        field: String,
        /// Why not.
        reason: String,
    },
    /// A field that this release cannot serve.
    #[error("{field} is not supported")]
    Unsupported {
        /// Which.
        field: String,
    },
}

type Result<T> = std::result::Result<T, PlanError>;

fn invalid(field: impl Display, reason: impl Display) -> PlanError {
    PlanError::Invalid {
        field: field.to_string(),
        reason: reason.to_string(),
    }
}

fn unsupported(field: impl Display) -> PlanError {
    PlanError::Unsupported {
        field: field.to_string(),
    }
}

/// Refuses a field that is set.
fn refuse<T>(field: &str, value: Option<T>) -> Result<()> {
    match value {
        None => Ok(()),
        Some(_) => Err(unsupported(field)),
    }
}

/// Refuses a list that has anything in it.
fn refuse_items<T>(field: &str, items: Option<&Vec<T>>) -> Result<()> {
    refuse(field, items.filter(|items| !items.is_empty()))
}

/// Reads a specification into a plan.
///
/// # Errors
/// [`PlanError`] names the field that is absent, wrong or not supported.
pub fn plan(input: &SpecInput<'_>) -> Result<Plan> {
    let spec = input.spec;
    refuse_platforms(spec)?;
    let root = spec.root().as_ref().ok_or(PlanError::Absent("root"))?;
    let linux = spec.linux().as_ref().ok_or(PlanError::Absent("linux"))?;
    refuse_linux(linux)?;
    let source = spec
        .process()
        .as_ref()
        .ok_or(PlanError::Absent("process"))?;
    let mut program = process(source, input.host)?;
    program.seccomp = match (linux.seccomp(), &input.seccomp) {
        (None, _) => None,
        (Some(_), Some(compiled)) => Some(compiled.clone()),
        (Some(profile), None) => Some(seccomp::compile(profile)?),
    };
    program.personality = process::personality(linux.personality().as_ref())?;
    program.resctrl = resctrl::tasks(linux.intel_rdt().as_ref())?;
    let namespaces = namespaces::namespaces(linux, input.joins)?;
    let mut cgroup = cgroup(input, linux)?;
    if let Some(root) = users::root(linux, &namespaces, source)?
        && mounts::manages_groups(spec.mounts().as_deref().unwrap_or_default(), &namespaces)
    {
        cgroup.owner = Some(root);
    }
    let names = namespaces::Names::of(spec, &namespaces)?;
    Ok(Plan {
        id: id(input.id)?,
        bundle: input.bundle.to_owned(),
        rootfs: rootfs(input, root.path())?,
        rootfs_readonly: root.readonly().unwrap_or(false),
        rootfs_propagation: rootfs_propagation(linux)?,
        sysctls: namespaces::sysctls(linux, &namespaces)?,
        steps: steps(input, linux, &namespaces, &cgroup.path)?,
        hostname: names.host,
        domainname: names.domain,
        namespaces,
        process: program,
        cgroup,
        mount_label: linux
            .mount_label()
            .clone()
            .filter(|label| !label.is_empty()),
        hooks: hooks::hooks(input, root.path())?,
    })
}

fn id(id: &str) -> Result<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "+-_.".contains(c);
    if id.is_empty() || id.len() > 1024 || id.starts_with('.') || !id.chars().all(plain) {
        return Err(invalid(
            "id",
            format!("{id:?} is not of letters, digits and + - _ ."),
        ));
    }
    Ok(id.to_owned())
}

fn refuse_platforms(spec: &Spec) -> Result<()> {
    if !spec.version().starts_with("1.") {
        return Err(invalid(
            "ociVersion",
            format!("{:?} is not 1.x", spec.version()),
        ));
    }
    refuse("solaris", spec.solaris().as_ref())?;
    refuse("windows", spec.windows().as_ref())?;
    refuse("vm", spec.vm().as_ref())?;
    refuse("zos", spec.zos().as_ref())
}

fn refuse_linux(linux: &Linux) -> Result<()> {
    refuse(
        "linux.netDevices",
        linux.net_devices().as_ref().filter(|map| !map.is_empty()),
    )?;
    refuse("linux.memoryPolicy", linux.memory_policy().as_ref())?;
    refuse(
        "linux.timeOffsets",
        linux.time_offsets().as_ref().filter(|map| !map.is_empty()),
    )
}

fn rootfs(input: &SpecInput<'_>, path: &Path) -> Result<RootfsSource> {
    if let Some(index) = input.rootfs {
        return Ok(RootfsSource::DetachedMount(index));
    }
    let path = Path::new(input.bundle).join(path);
    let path = text("root.path", &path)?;
    if !path.starts_with('/') {
        return Err(invalid("root.path", format!("{path:?} is not absolute")));
    }
    Ok(RootfsSource::Path(path))
}

fn rootfs_propagation(linux: &Linux) -> Result<u64> {
    match linux.rootfs_propagation().as_deref() {
        None | Some("") => Ok(0),
        Some(word) => options::propagation(word)
            // The mounts below the root have their own.
            .map(|flags| flags & !crisp_sys::mount::MS_REC)
            .ok_or_else(|| invalid("linux.rootfsPropagation", format!("{word:?} is unknown"))),
    }
}

fn cgroup(input: &SpecInput<'_>, linux: &Linux) -> Result<CgroupPlan> {
    let path = match linux.cgroups_path() {
        None => format!("/{}", input.id),
        Some(path) => {
            let path = text("linux.cgroupsPath", path)?;
            if path.contains(':') {
                return Err(unsupported(
                    "linux.cgroupsPath in systemd's slice:prefix:name form",
                ));
            }
            let climbs = Path::new(&path)
                .components()
                .any(|part| part == Component::ParentDir);
            if climbs {
                return Err(invalid(
                    "linux.cgroupsPath",
                    format!("{path:?} contains .."),
                ));
            }
            clean(&path)
        }
    };
    if path == "/" {
        return Err(invalid(
            "linux.cgroupsPath",
            "the root group is not a container's",
        ));
    }
    Ok(CgroupPlan {
        hierarchy: input.host.cgroup.clone(),
        path,
        resources: resources(linux.resources().as_ref())?,
        device_rules: device_rules(linux.resources().as_ref())?,
        owner: None,
    })
}

fn steps(
    input: &SpecInput<'_>,
    linux: &Linux,
    namespaces: &[crate::plan::NamespacePlan],
    group: &str,
) -> Result<Vec<Step>> {
    let own_view = namespaces
        .iter()
        .any(|entry| entry.kind == NamespaceKind::Cgroup);
    let groups = mounts::Groups {
        hierarchy: &input.host.cgroup,
        path: group,
        own_view,
    };
    let list = input.spec.mounts().as_deref().unwrap_or_default();
    let mut steps = mounts::mounts(list, &groups, input.idmaps, input.detached)?;
    steps.extend(devices::devices(linux, list)?);
    let process = input.spec.process().as_ref();
    if process.is_some_and(|process| process.terminal().unwrap_or(false)) {
        steps.push(Step::Console);
    }
    let paths = |field: &'static str, list: &Option<Vec<String>>| {
        let list = list.as_deref().unwrap_or_default();
        list.iter()
            .map(|path| absolute(field, path))
            .collect::<Result<Vec<_>>>()
    };
    let read_only = paths("linux.readonlyPaths", linux.readonly_paths())?;
    steps.extend(read_only.into_iter().map(|path| Step::ReadOnly { path }));
    let masked = paths("linux.maskedPaths", linux.masked_paths())?;
    steps.extend(masked.into_iter().map(|path| Step::Mask { path }));
    Ok(steps)
}

fn text(field: &str, path: &Path) -> Result<String> {
    let text = path
        .to_str()
        .ok_or_else(|| invalid(field, format!("{path:?} is not UTF-8")))?;
    if text.contains('\0') {
        return Err(invalid(field, format!("{text:?} contains NUL")));
    }
    Ok(text.to_owned())
}

fn absolute(field: &str, path: &str) -> Result<String> {
    if !path.starts_with('/') || path.contains('\0') {
        return Err(invalid(field, format!("{path:?} is not an absolute path")));
    }
    Ok(clean(path))
}

/// The path without `.`, doubled slashes and, as if no directory were a link, `..`. Beginning
/// with a slash. Links are the kernel's business later; this is for comparing.
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}
