//! Mounts.

use std::collections::BTreeSet;
use std::path::Path;

use crisp_sys::mount::{
    MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY, MS_PRIVATE, MS_REC,
};
use oci_spec::runtime::Mount;

use super::options::{Bind, OptionError, Options};
use super::users::{Idmap, ranges};
use super::{DetachedSource, Result, clean, invalid, text, unsupported};
use crate::cgroup::Hierarchy;
use crate::plan::{BindStep, FdIndex, FilesystemStep, NamespaceKind, NamespacePlan, Step};

/// What a cgroup mount shows.
pub(super) struct Groups<'a> {
    pub(super) hierarchy: &'a Hierarchy,
    /// The container's group.
    pub(super) path: &'a str,
    /// Whether the container has a cgroup namespace.
    pub(super) own_view: bool,
}

/// Whether a container of these mounts and namespaces may make groups below its own.
pub(super) fn manages_groups(list: &[Mount], namespaces: &[NamespacePlan]) -> bool {
    let own_view = |entry: &NamespacePlan| entry.kind == NamespaceKind::Cgroup;
    let writable = |mount: &Mount| {
        let words = mount.options().as_deref().unwrap_or_default();
        matches!(mount.typ().as_deref(), Some("cgroup" | "cgroup2"))
            && Options::parse(words).is_ok_and(|options| options.set & MOUNT_ATTR_RDONLY == 0)
    };
    namespaces.iter().any(own_view) && list.iter().any(writable)
}

pub(super) fn mounts(
    list: &[Mount],
    groups: &Groups<'_>,
    idmaps: &[Idmap],
    detached: &[DetachedSource],
) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    for (index, mount) in list.iter().enumerate() {
        let field = |name: &str| format!("mounts[{index}].{name}");
        let target = clean(&text(&field("destination"), mount.destination())?);
        if target == "/" {
            return Err(invalid(
                field("destination"),
                "the root cannot be mounted over",
            ));
        }
        let words = mount.options().as_deref().unwrap_or_default();
        let options = Options::parse(words).map_err(|(word, error)| match error {
            OptionError::Unsupported => unsupported(format!("{} {word}", field("options"))),
            OptionError::Malformed => invalid(field("options"), format!("{word:?} is no option")),
        })?;
        let source = match mount.source() {
            Some(source) => text(&field("source"), source)?,
            None => String::new(),
        };
        let idmap = idmap(&field, mount, &options, idmaps)?;
        match (mount.typ().as_deref().unwrap_or_default(), options.bind) {
            ("bind", _) | (_, Some(_)) => {
                let detached = detached.iter().find(|known| known.source == source);
                steps.push(bind(&field, source, target, options, idmap, detached)?);
            }
            _ if idmap.is_some() => return Err(unsupported(field("uidMappings of a new mount"))),
            ("cgroup" | "cgroup2", None) => steps.extend(cgroup(groups, &target, &options)),
            ("" | "none", None) => return Err(invalid(field("type"), "neither a type nor a bind")),
            (fstype, None) => {
                steps.push(filesystem(&field, fstype, source, target, options)?);
            }
        }
    }
    Ok(steps)
}

/// The user namespace of a mount that has mappings.
fn idmap(
    field: &impl Fn(&str) -> String,
    mount: &Mount,
    options: &Options,
    idmaps: &[Idmap],
) -> Result<Option<FdIndex>> {
    let uids = ranges(mount.uid_mappings().as_ref());
    let gids = ranges(mount.gid_mappings().as_ref());
    match (uids.is_empty(), gids.is_empty(), options.idmap) {
        (true, true, None) => return Ok(None),
        (true, true, Some(_)) => return Err(unsupported(field("options idmap without mappings"))),
        (false, false, _) => {}
        _ => {
            let reason = "users and groups have to be mapped both or neither";
            return Err(invalid(field("uidMappings"), reason));
        }
    }
    let found = idmaps
        .iter()
        .find(|idmap| idmap.uids == uids && idmap.gids == gids);
    match found {
        Some(idmap) => Ok(Some(idmap.namespace)),
        None => Err(unsupported(field("uidMappings without a user namespace"))),
    }
}

fn bind(
    field: &impl Fn(&str) -> String,
    source: String,
    target: String,
    options: Options,
    idmap: Option<FdIndex>,
    detached: Option<&DetachedSource>,
) -> Result<Step> {
    if !source.starts_with('/') {
        return Err(invalid(
            field("source"),
            format!("{source:?} is not an absolute path"),
        ));
    }
    if let Some((key, _)) = options.data.first() {
        return Err(invalid(
            field("options"),
            format!("{key:?} is no option of a bind"),
        ));
    }
    Ok(Step::Bind(BindStep {
        source,
        in_root: detached.and_then(|known| known.below.clone()),
        target,
        recursive: options.bind != Some(Bind::Plain),
        attr_set: options.set,
        attr_clear: options.clear,
        attr_set_recursive: options.set_recursive,
        attr_clear_recursive: options.clear_recursive,
        propagation: options.propagation,
        idmap,
        idmap_recursive: options.idmap == Some(Bind::Recursive),
        detached: detached.map(|known| known.mount),
    }))
}

fn filesystem(
    field: &impl Fn(&str) -> String,
    fstype: &str,
    source: String,
    target: String,
    options: Options,
) -> Result<Step> {
    // What a procfs or sysfs shows must not be hidden behind others' data, see the same rule for
    // binds where they are carried out.
    if target.starts_with("/proc/") {
        return Err(invalid(
            field("destination"),
            format!("{target:?} lies below /proc"),
        ));
    }
    if target == "/proc" && fstype != "proc" {
        return Err(invalid(
            field("type"),
            format!("{fstype:?} cannot be /proc"),
        ));
    }
    Ok(Step::Filesystem(FilesystemStep {
        fstype: fstype.to_owned(),
        source,
        target,
        // A single mount: for the whole tree or for it alone is the same.
        flags: options.set | options.set_recursive,
        options: options.data,
        propagation: options.propagation & !MS_REC,
        target_mode: None,
    }))
}

/// A cgroup mount is made of binds: on v1 a directory with each tree's own group, on v2 the own
/// group. Only a container that has no cgroup namespace on v2 sees the whole tree, which is how
/// privileged containers manage it.
fn cgroup(groups: &Groups<'_>, target: &str, options: &Options) -> Vec<Step> {
    let set = options.set | options.set_recursive;
    let one = |source: String, target: String| {
        Step::Bind(BindStep {
            source,
            target,
            recursive: false,
            attr_set: set,
            propagation: MS_PRIVATE | MS_REC,
            ..BindStep::default()
        })
    };
    let own = |mount: &Path| format!("{}{}", mount.display(), groups.path);
    match groups.hierarchy {
        Hierarchy::V2 { mount } if groups.own_view => vec![one(own(mount), target.to_owned())],
        Hierarchy::V2 { mount } => vec![one(mount.display().to_string(), target.to_owned())],
        Hierarchy::V1 {
            controllers,
            unified,
        } => {
            let below = |name: &str| format!("{target}/{name}");
            let mut steps = vec![Step::Filesystem(FilesystemStep {
                fstype: "tmpfs".into(),
                source: "cgroup".into(),
                target: target.to_owned(),
                flags: MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC,
                options: vec![
                    ("mode".into(), Some("755".into())),
                    ("size".into(), Some("64k".into())),
                ],
                ..FilesystemStep::default()
            })];
            let mut known = BTreeSet::new();
            for (controller, mount) in controllers {
                let dir = mount.file_name().unwrap_or_default().to_string_lossy();
                if known.insert(mount) {
                    steps.push(one(own(mount), below(&dir)));
                }
                let name = controller.trim_start_matches("name=");
                if name != dir {
                    steps.push(Step::Symlink {
                        path: below(name),
                        target: dir.into_owned(),
                    });
                }
            }
            if let Some(mount) = unified {
                steps.push(one(own(mount), below("unified")));
            }
            if set & MOUNT_ATTR_RDONLY != 0 {
                let set = MOUNT_ATTR_RDONLY;
                steps.push(Step::Attributes {
                    path: target.to_owned(),
                    set,
                });
            }
            steps
        }
    }
}
