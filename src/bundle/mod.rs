//! Pure generator: container spec, image config and host facts to an OCI runtime spec (config.json).
//!
//! [`generate`] looks at its input only, so every rule below is tested without root. The result also
//! runs under runc. JSON strings cannot hold every environment value a client may send;
//! [`environment`] gives the exact bytes to whoever executes the process. Two things are no part of
//! the generator because they look at the host: [`user::resolve`] reads the image's account files,
//! [`devices::resolve`] looks up device nodes.

mod annotations;
pub mod devices;
mod facts;
mod hooks;
mod input;
mod mounts;
mod namespaces;
mod process;
mod resources;
mod security;
pub mod user;

#[cfg(test)]
mod tests;

pub use input::{
    BundleInput, BundlePaths, Classes, DeviceKind, HostDevice, HostFacts, ImageDefaults,
    MountSource, ResolvedUser,
};
pub use process::{environment, leads_to_descriptors};
pub use resources::linux_resources;
pub use security::{SeccompWanted, capability_bits, seccomp_wanted};

use std::path::PathBuf;

use oci_spec::runtime::{Linux, LinuxBuilder, RootBuilder, Spec, SpecBuilder};
use serde_json::Value;

use crate::{
    error::{Classify, ErrorKind},
    sandbox::spec::UserNamespace,
};

/// Version of the runtime specification that the result follows; runc 1.2 and later know it.
const OCI_VERSION: &str = "1.2.0";

/// Why there is no runtime spec for a container.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// Neither the request nor the image names a program.
    #[error(
        "no command: config.command and config.args are empty and image {image} has no entrypoint \
         or cmd"
    )]
    NoCommand {
        /// The image asked for.
        image: String,
    },
    /// A word of the image's entrypoint or cmd cannot be an argument.
    #[error("image {image}: entrypoint or cmd contains a NUL byte")]
    ImageCommand {
        /// The image asked for.
        image: String,
    },
    /// The image's working directory leads out of the container.
    #[error("image {image}: working directory {path:?} leads through descriptors of a process")]
    WorkingDir {
        /// The image asked for.
        image: String,
        /// The working directory.
        path: String,
    },
    /// The caller did not resolve every mount; a bug of ours.
    #[error("{sources} mount sources for {mounts} mounts")]
    MountSources {
        /// Mounts of the container.
        mounts: usize,
        /// Sources given.
        sources: usize,
    },
    /// The caller did not load the profile; a bug of ours.
    #[error("seccomp profile {wanted:?} was not loaded")]
    SeccompNotLoaded {
        /// The profile.
        wanted: SeccompWanted,
    },
    /// The default AppArmor profile is asked for, and the host could not load it.
    #[error(
        "config.linux.security_context.apparmor: RuntimeDefault is asked for, but the default profile \
         is not loaded; is apparmor_parser installed?"
    )]
    AppArmorDefault,
    /// PID mode TARGET without the target's process; a bug of ours.
    #[error("the target of PID mode TARGET was not resolved")]
    TargetNotResolved,
    /// A hugepage limit for a size the host does not have.
    #[error(
        "config.linux.resources.hugepage_limits: page size {size} does not exist on this host, \
         which has {known:?}"
    )]
    HugepageSize {
        /// The size asked for.
        size: String,
        /// Sizes of the host.
        known: Vec<String>,
    },
    /// Raw cgroup files on a host without the unified hierarchy.
    #[error(
        "config.linux.resources.unified: {key} is a cgroup v2 file, and this host's controllers \
         are on cgroup v1"
    )]
    Unified {
        /// The first file asked for.
        key: String,
    },
    /// The runtime spec's builder refused a value; a bug of ours.
    #[error("build the runtime spec")]
    Build(#[from] oci_spec::OciSpecError),
    /// The runtime spec could not be written as JSON; a bug of ours.
    #[error("write the runtime spec as JSON")]
    Json(#[from] serde_json::Error),
}

impl Classify for BundleError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NoCommand { .. }
            | Self::ImageCommand { .. }
            | Self::WorkingDir { .. }
            | Self::HugepageSize { .. } => ErrorKind::InvalidArgument,
            Self::Unified { .. } | Self::AppArmorDefault => ErrorKind::Unsupported,
            Self::MountSources { .. }
            | Self::SeccompNotLoaded { .. }
            | Self::TargetNotResolved
            | Self::Build(_)
            | Self::Json(_) => ErrorKind::Internal,
        }
    }
}

/// Result of a generator.
type Result<T> = std::result::Result<T, BundleError>;

/// Makes the runtime spec of a container.
///
/// # Errors
/// [`BundleError`] names what in the request or the image cannot be served.
pub fn generate(input: &BundleInput<'_>) -> Result<Spec> {
    let root = RootBuilder::default()
        .path(input.paths.rootfs.clone())
        .readonly(input.container.security.readonly_rootfs)
        .build()?;
    let mut spec = SpecBuilder::default()
        .version(OCI_VERSION)
        .root(root)
        .process(process::process(input)?)
        .mounts(mounts::mounts(input)?)
        .annotations(annotations::annotations(input))
        .linux(linux(input)?)
        .build()?;
    // The builder's default is a host name of its own; containers join the pod's UTS namespace.
    spec.set_hostname(None);
    spec.set_hooks(hooks::hooks(input)?);
    Ok(spec)
}

fn linux(input: &BundleInput<'_>) -> Result<Linux> {
    let (masked, readonly) = security::hidden_paths(input);
    let mut linux = LinuxBuilder::default()
        .namespaces(namespaces::namespaces(input)?)
        .resources(resources::resources(input)?)
        .devices(resources::device_nodes(input)?)
        .masked_paths(masked)
        .readonly_paths(readonly)
        .cgroups_path(PathBuf::from(&input.paths.cgroups_path))
        .build()?;
    linux.set_seccomp(security::seccomp(input)?);
    linux.set_rootfs_propagation(mounts::rootfs_propagation(input).map(str::to_owned));
    linux.set_mount_label(security::mount_label(input));
    linux.set_intel_rdt(resources::resctrl(input)?);
    if let UserNamespace::Pod { uids, gids } = input.sandbox.security.namespaces.user {
        linux.set_uid_mappings(Some(vec![namespaces::mapping(uids)?]));
        linux.set_gid_mappings(Some(vec![namespaces::mapping(gids)?]));
    }
    Ok(linux)
}

/// The runtime spec as the bytes of a config.json. The same spec gives the same bytes: the maps of
/// the crate's types have no order of their own, so keys and sets are sorted here.
///
/// # Errors
/// Only for a spec that is no JSON, which [`generate`] never makes.
pub fn to_json(spec: &Spec) -> Result<Vec<u8>> {
    let mut value = serde_json::to_value(spec)?;
    if let Some(sets) = value
        .pointer_mut("/process/capabilities")
        .and_then(Value::as_object_mut)
    {
        for set in sets.values_mut().filter_map(Value::as_array_mut) {
            set.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
        }
    }
    let mut bytes = serde_json::to_vec_pretty(&value)?;
    bytes.push(b'\n');
    Ok(bytes)
}
