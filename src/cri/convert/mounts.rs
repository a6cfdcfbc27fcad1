//! Mounts and devices of a container.

use std::collections::BTreeMap;

use super::{
    field::{Field, MAX_PATH, Result, quoted},
    security::range,
};
use crate::{
    cdi,
    container::spec::{DeviceSpec, ImageVolume, MountOption, MountSpec, Propagation},
    cri::proto,
    sandbox::spec::IdMapping,
};

/// Most mounts of a container.
const MAX_MOUNTS: usize = 4096;
/// What annotations begin with that name CDI devices.
const CDI_ANNOTATION: &str = "cdi.k8s.io/";
/// Most images among them: each is a descriptor that travels to the monitor.
const MAX_IMAGES: usize = 128;
/// Most options of a mount.
const MAX_OPTIONS: usize = 64;
/// Most devices of a container.
const MAX_DEVICES: usize = 4096;
/// Most ranges of a map: the kernel's limit.
const MAX_RANGES: usize = 340;

/// Files below /proc that a volume may cover (container-aware views such as lxcfs provides). All
/// else there steers the kernel or labels processes, and stays the container's own procfs.
const PROC_FILES: [&str; 11] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/net/dev",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/sys/crypto/fips_enabled",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/uptime",
];

pub(super) fn mounts(
    field: &Field<'_>,
    asked: &[proto::Mount],
    privileged: bool,
) -> Result<Vec<MountSpec>> {
    field.count(asked, MAX_MOUNTS)?;
    let numbered = asked.iter().enumerate();
    let mounts: Vec<MountSpec> = numbered
        .map(|(i, mount)| one(&field.index(i), mount, privileged))
        .collect::<Result<_>>()?;
    if mounts.iter().filter(|mount| mount.image.is_some()).count() > MAX_IMAGES {
        return Err(field.invalid(format!("must have at most {MAX_IMAGES} images")));
    }
    Ok(mounts)
}

fn one(field: &Field<'_>, asked: &proto::Mount, privileged: bool) -> Result<MountSpec> {
    let image = image_volume(field, asked)?;
    let options = options(&field.child("mount_options"), &asked.mount_options)?;
    let propagation = match field.child("propagation").enumerated(asked.propagation)? {
        proto::MountPropagation::PropagationPrivate => Propagation::Private,
        proto::MountPropagation::PropagationHostToContainer => Propagation::HostToContainer,
        proto::MountPropagation::PropagationBidirectional if privileged => {
            Propagation::Bidirectional
        }
        proto::MountPropagation::PropagationBidirectional => {
            let problem = "PROPAGATION_BIDIRECTIONAL is for privileged containers only";
            return Err(field.child("propagation").invalid(problem));
        }
    };
    if asked.recursive_read_only {
        let field = field.child("recursive_read_only");
        if !asked.readonly {
            return Err(field.invalid("must not be set unless readonly is set"));
        }
        if propagation != Propagation::Private {
            return Err(field.invalid("must not be set unless propagation is PROPAGATION_PRIVATE"));
        }
    }
    if asked.uid_mappings.is_empty() != asked.gid_mappings.is_empty() {
        let problem = "must be set if and only if gidMappings is";
        return Err(field.child("uidMappings").invalid(problem));
    }
    let host_path = match image {
        Some(_) => String::new(),
        None => host_path(&field.child("host_path"), &asked.host_path)?,
    };
    target(
        &field.child("container_path"),
        &asked.container_path,
        &host_path,
    )?;
    Ok(MountSpec {
        container_path: asked.container_path.clone(),
        host_path: asked.host_path.clone(),
        image,
        options,
        readonly: asked.readonly,
        recursive_read_only: asked.recursive_read_only,
        selinux_relabel: asked.selinux_relabel,
        propagation,
        uid_mappings: mappings(&field.child("uidMappings"), &asked.uid_mappings)?,
        gid_mappings: mappings(&field.child("gidMappings"), &asked.gid_mappings)?,
    })
}

/// The ranges by which a volume's owners are translated, apart from each other on both sides.
fn mappings(field: &Field<'_>, asked: &[proto::IdMapping]) -> Result<Vec<IdMapping>> {
    field.count(asked, MAX_RANGES)?;
    let mut ranges: Vec<IdMapping> = Vec::new();
    for (index, mapping) in asked.iter().enumerate() {
        let field = field.index(index);
        let new = range(&field, mapping)?;
        let meet = |a: u32, b: u32, known: &IdMapping| {
            u64::from(a) < u64::from(b) + u64::from(known.length)
                && u64::from(b) < u64::from(a) + u64::from(new.length)
        };
        if ranges.iter().any(|known| {
            meet(new.host_id, known.host_id, known)
                || meet(new.container_id, known.container_id, known)
        }) {
            return Err(field.invalid("must not overlap another range"));
        }
        ranges.push(new);
    }
    Ok(ranges)
}

/// The image to mount, if one is asked for. It is told by its name: clients may send an empty
/// message.
fn image_volume(field: &Field<'_>, asked: &proto::Mount) -> Result<Option<ImageVolume>> {
    let image = asked.image.as_ref().filter(|image| !image.image.is_empty());
    let Some(image) = image else {
        if !asked.image_sub_path.is_empty() {
            let problem = "must be empty unless image is set";
            return Err(field.child("image_sub_path").invalid(problem));
        }
        return Ok(None);
    };
    if !asked.host_path.is_empty() {
        let problem = "must be empty if image is set";
        return Err(field.child("host_path").invalid(problem));
    }
    if !asked.readonly {
        let problem = "must be set if image is set: images are mounted read-only";
        return Err(field.child("readonly").invalid(problem));
    }
    if asked.propagation == i32::from(proto::MountPropagation::PropagationBidirectional) {
        let problem = "must not be PROPAGATION_BIDIRECTIONAL if image is set: an image is mounted \
                       nowhere on the host";
        return Err(field.child("propagation").invalid(problem));
    }
    let sub_path = field.child("image_sub_path");
    sub_path.at_most(&asked.image_sub_path, MAX_PATH)?;
    sub_path.no_nul(&asked.image_sub_path)?;
    Ok(Some(ImageVolume {
        image: super::container::image(&field.child("image"), Some(image))?,
        sub_path: asked.image_sub_path.clone(),
    }))
}

/// What takes something away from a mount. What gives something, such as `exec`, could undo what
/// the host mounted it with.
fn options(field: &Field<'_>, asked: &[String]) -> Result<Vec<MountOption>> {
    field.count(asked, MAX_OPTIONS)?;
    let mut options = Vec::new();
    for (index, word) in asked.iter().enumerate() {
        let known = MountOption::ALL
            .into_iter()
            .find(|option| option.as_str() == word);
        let Some(option) = known else {
            let words = MountOption::ALL.map(MountOption::as_str).join(", ");
            let problem = format!("must be one of {words}, is {}", quoted(word));
            return Err(field.index(index).invalid(problem));
        };
        if !options.contains(&option) {
            options.push(option);
        }
    }
    Ok(options)
}

/// A host path that means the same for every process of the host.
fn host_path(field: &Field<'_>, path: &str) -> Result<String> {
    if path.is_empty() {
        return Err(field.invalid("must not be empty"));
    }
    let normal = field.absolute_path(path)?;
    for own in ["/proc/self", "/proc/thread-self"] {
        if below(&normal, own) {
            let problem = format!("must not lie in {own}, which is another place for each process");
            return Err(field.invalid(problem));
        }
    }
    Ok(normal)
}

fn target(field: &Field<'_>, path: &str, host_path: &str) -> Result<()> {
    if path.is_empty() {
        return Err(field.invalid("must not be empty"));
    }
    let normal = field.absolute_path(path)?;
    if normal == "/" {
        return Err(field.invalid("must not be the root directory"));
    }
    if normal == "/proc" && host_path != "/proc" {
        return Err(field.invalid("must not be /proc unless host_path is the host's /proc"));
    }
    if normal != "/proc" && below(&normal, "/proc") && !PROC_FILES.contains(&normal.as_str()) {
        let problem = format!("must not lie in /proc, is {}", quoted(path));
        return Err(field.invalid(problem));
    }
    Ok(())
}

fn below(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

pub(super) fn devices(field: &Field<'_>, asked: &[proto::Device]) -> Result<Vec<DeviceSpec>> {
    field.count(asked, MAX_DEVICES)?;
    asked
        .iter()
        .enumerate()
        .map(|(index, device)| one_device(&field.index(index), device))
        .collect()
}

fn one_device(field: &Field<'_>, asked: &proto::Device) -> Result<DeviceSpec> {
    let host_path = host_path(&field.child("host_path"), &asked.host_path)?;
    let container_path = match asked.container_path.as_str() {
        "" => host_path.clone(),
        path => field.child("container_path").absolute_path(path)?,
    };
    if container_path == "/" {
        return Err(field
            .child("container_path")
            .invalid("must not be the root directory"));
    }
    let permissions = asked.permissions.as_str();
    let valid = permissions.chars().all(|c| "rwm".contains(c)) && permissions.len() <= 3;
    if !valid {
        let problem = format!("must be some of \"rwm\", is {}", quoted(permissions));
        return Err(field.child("permissions").invalid(problem));
    }
    // Device plugins leave it empty to mean everything, as docker does.
    let asked_for = |c: &char| permissions.is_empty() || permissions.contains(*c);
    let permissions = ['r', 'w', 'm'].iter().filter(|c| asked_for(c)).collect();
    Ok(DeviceSpec {
        container_path,
        host_path,
        permissions,
    })
}

/// Qualified names of CDI devices, each once: those of the field, then those of annotations, which
/// device plugins of older clusters write. Whether there are such devices is for later.
pub(super) fn cdi_devices(
    field: &Field<'_>,
    asked: &[proto::CdiDevice],
    annotations: &BTreeMap<String, String>,
) -> Result<Vec<String>> {
    let list = field.child("CDI_devices");
    list.count(asked, MAX_DEVICES)?;
    let mut names = Vec::new();
    let mut add = |field: &Field<'_>, name: &str| {
        if let Err(problem) = cdi::name::parse(name) {
            return Err(field.invalid(format!("{} {problem}", quoted(name))));
        }
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
        Ok(())
    };
    for (index, device) in asked.iter().enumerate() {
        add(&list.index(index).child("name"), &device.name)?;
    }
    let annotated = field.child("annotations");
    for (key, value) in annotations {
        if !key.starts_with(CDI_ANNOTATION) {
            continue;
        }
        for name in value.split(',') {
            add(&annotated.key(key), name)?;
        }
    }
    if names.len() > MAX_DEVICES {
        return Err(list.invalid(format!("must be at most {MAX_DEVICES}")));
    }
    Ok(names)
}
