//! Mounts: the standard ones, the sandbox's files, and the volumes asked for.

use std::path::Path;

use oci_spec::runtime::{LinuxIdMapping, Mount, MountBuilder};

use super::{BundleError, BundleInput, Result, namespaces::mapping, process::normal};
use crate::{
    cdi::spec,
    container::spec::{MountSpec, Propagation},
    sandbox::spec::{IdMapping, UserNamespace},
    userns::IdMaps,
};

/// A mount with what decides its place.
struct Placed {
    target: String,
    mount: Mount,
}

/// All mounts in the order of making: standard ones, then the sandbox's files and the volumes by
/// depth of their target, so that none is hidden by a later one above it.
pub(super) fn mounts(input: &BundleInput<'_>) -> Result<Vec<Mount>> {
    let asked = &input.container.mounts;
    if asked.len() != input.mount_sources.len() {
        let (mounts, sources) = (asked.len(), input.mount_sources.len());
        return Err(BundleError::MountSources { mounts, sources });
    }
    let targets: Vec<(String, Propagation)> = asked
        .iter()
        .map(|mount| (normal(&mount.container_path), mount.propagation))
        .collect();
    let mut list = standard(input)?;
    // A volume at or above a standard mount takes its place: /dev of the host comes as it is.
    list.retain(|m| {
        !targets
            .iter()
            .any(|(target, _)| at_or_below(&m.target, target))
    });
    let mut later = sandbox_files(input)?;
    // A volume at the file's own place wins. One above it stays below the sandbox's file, except
    // where mounts travel to the host: there the file would appear on the host, too.
    later.retain(|m| {
        !targets.iter().any(|(target, propagation)| {
            *target == m.target
                || (*propagation == Propagation::Bidirectional && at_or_below(&m.target, target))
        })
    });
    for ((mount, source), (target, _)) in asked.iter().zip(input.mount_sources).zip(&targets) {
        later.push(volume(target, mount, &source.path)?);
    }
    // What a device needs at a place is what is there.
    for edit in &input.edits.mounts {
        let target = normal(&edit.container_path);
        list.retain(|m| m.target != target);
        later.retain(|m| m.target != target);
        later.push(device_mount(target, edit)?);
    }
    later.sort_by_key(|m| m.target.matches('/').count());
    list.extend(later);
    Ok(list.into_iter().map(|m| m.mount).collect())
}

/// `rshared` or `rslave` where a volume's propagation needs the root to take part in it.
pub(super) fn rootfs_propagation(input: &BundleInput<'_>) -> Option<&'static str> {
    let asked = |wanted| {
        input
            .container
            .mounts
            .iter()
            .any(|mount| mount.propagation == wanted)
    };
    if asked(Propagation::Bidirectional) {
        Some("rshared")
    } else if asked(Propagation::HostToContainer) {
        Some("rslave")
    } else {
        None
    }
}

fn at_or_below(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// File systems every container has.
fn standard(input: &BundleInput<'_>) -> Result<Vec<Placed>> {
    let access = if input.container.security.privileged {
        "rw"
    } else {
        "ro"
    };
    let mut list = vec![
        mount(
            "/proc",
            "proc",
            Path::new("proc"),
            &["nosuid", "noexec", "nodev"],
        )?,
        mount(
            "/dev",
            "tmpfs",
            Path::new("tmpfs"),
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        )?,
        terminals(input)?,
        mount(
            "/dev/mqueue",
            "mqueue",
            Path::new("mqueue"),
            &["nosuid", "noexec", "nodev"],
        )?,
        kernel_objects(input, access)?,
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            Path::new("cgroup"),
            &["nosuid", "noexec", "nodev", "relatime", access],
        )?,
    ];
    if input.paths.shm.is_none() {
        let options = ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"];
        list.push(mount("/dev/shm", "tmpfs", Path::new("shm"), &options)?);
    }
    Ok(list)
}

/// Terminals belong to the group tty, if the pod has one.
fn terminals(input: &BundleInput<'_>) -> Result<Placed> {
    const TTY: u32 = 5;
    let mut options = vec![
        "nosuid",
        "noexec",
        "newinstance",
        "ptmxmode=0666",
        "mode=0620",
    ];
    let maps = IdMaps::of_pod(&input.sandbox.security.namespaces.user);
    if maps.is_none_or(|maps| maps.host_gid(TTY).is_some()) {
        options.push("gid=5");
    }
    mount("/dev/pts", "devpts", Path::new("devpts"), &options)
}

/// A sysfs shows a network namespace. That of the host cannot be mounted by who has no rights over it:
/// a pod with the host's network and users of its own gets the host's mount, which it cannot write to.
fn kernel_objects(input: &BundleInput<'_>, access: &str) -> Result<Placed> {
    let own_users = input.sandbox.security.namespaces.user != UserNamespace::Node;
    if own_users && input.sandbox.host_network() {
        let options = ["rbind", "rslave", "nosuid", "noexec", "nodev", "rro"];
        return mount("/sys", "bind", Path::new("/sys"), &options);
    }
    let options = ["nosuid", "noexec", "nodev", access];
    mount("/sys", "sysfs", Path::new("sysfs"), &options)
}

/// Files and memory that the containers of a pod share. The files are writable unless the root is
/// read-only, since programs (and kubelet's own tests) append to them.
fn sandbox_files(input: &BundleInput<'_>) -> Result<Vec<Placed>> {
    let paths = input.paths;
    let access = if input.container.security.readonly_rootfs {
        "ro"
    } else {
        "rw"
    };
    let mut list = Vec::new();
    for (target, source) in [
        ("/etc/hostname", &paths.hostname),
        ("/etc/hosts", &paths.hosts),
        ("/etc/resolv.conf", &paths.resolv_conf),
    ] {
        if let Some(source) = source {
            list.push(mount(
                target,
                "bind",
                source,
                &["rbind", "rprivate", access],
            )?);
        }
    }
    if let Some(shm) = &paths.shm {
        let options = ["rbind", "rprivate", "nosuid", "noexec", "nodev", "rw"];
        list.push(mount("/dev/shm", "bind", shm, &options)?);
    }
    Ok(list)
}

fn volume(target: &str, asked: &MountSpec, source: &Path) -> Result<Placed> {
    let propagation = match asked.propagation {
        Propagation::Private => "rprivate",
        Propagation::HostToContainer => "rslave",
        Propagation::Bidirectional => "rshared",
    };
    let access = match (asked.readonly, asked.recursive_read_only) {
        (_, true) => "rro",
        (true, false) => "ro",
        (false, false) => "rw",
    };
    let mut options = vec!["rbind", propagation, access];
    options.extend(asked.options.iter().map(|option| option.as_str()));
    let mut placed = mount(target, "bind", source, &options)?;
    // The layers of an image are translated when it is mounted, an overlay cannot be.
    if asked.image.is_none() && !asked.uid_mappings.is_empty() {
        placed
            .mount
            .set_uid_mappings(Some(mappings(&asked.uid_mappings)?));
        placed
            .mount
            .set_gid_mappings(Some(mappings(&asked.gid_mappings)?));
    }
    Ok(placed)
}

fn mappings(list: &[IdMapping]) -> Result<Vec<LinuxIdMapping>> {
    list.iter().map(|range| mapping(*range)).collect()
}

/// A mount of a CDI device, as its spec has it.
fn device_mount(target: String, edit: &spec::Mount) -> Result<Placed> {
    let (kind, default): (&str, &[&str]) = match &*edit.r#type {
        "" | "bind" => ("bind", &["rbind", "rprivate"]),
        kind => (kind, &[]),
    };
    let said: Vec<&str> = edit.options.iter().map(String::as_str).collect();
    // An `ro` of theirs comes last and stands.
    let options = [default, &said[..]].concat();
    mount(&target, kind, Path::new(&edit.host_path), &options)
}

fn mount(target: &str, kind: &str, source: &Path, options: &[&str]) -> Result<Placed> {
    let mount = MountBuilder::default()
        .destination(target)
        .typ(kind)
        .source(source)
        .options(
            options
                .iter()
                .map(|option| (*option).to_owned())
                .collect::<Vec<_>>(),
        )
        .build()?;
    Ok(Placed {
        target: target.to_owned(),
        mount,
    })
}
