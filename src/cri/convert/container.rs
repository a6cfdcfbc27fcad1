//! `ContainerConfig` to [`ContainerSpec`].

use std::collections::HashMap;

use super::{
    HostSupport,
    field::{Field, MAX_PATH, Result, annotations, labels, quoted},
    mounts::{cdi_devices, devices, mounts},
    resources::resources,
    security::container_security,
};
use crate::{
    container::spec::{
        ContainerMetadata, ContainerSpec, EnvVar, ImageRequest, Propagation, Signal,
    },
    cri::proto,
    sandbox::spec::{PidMode, Resources, SandboxSpec, UserNamespace},
};

/// Longest argument or environment string the kernel takes with its NUL (MAX_ARG_STRLEN).
const MAX_STRING: usize = 128 * 1024 - 1;
/// Most arguments or environment variables.
const MAX_STRINGS: usize = 100_000;
/// Most bytes of them all: what the kernel hands to a program whose stack has its usual limit.
pub(super) const MAX_TOGETHER: usize = 2 * 1024 * 1024;
/// Longest image reference.
const MAX_IMAGE: usize = 4096;

/// Validates a container's config (`CreateContainerRequest.config`).
///
/// # Errors
/// Names the first field that cannot be served.
pub fn container(
    request: &proto::CreateContainerRequest,
    host: HostSupport,
) -> Result<ContainerSpec> {
    let field = Field::root("config");
    let config = field.required(request.config.as_ref())?;
    if config.windows.is_some() {
        return Err(field
            .child("windows")
            .unsupported("this is a Linux runtime"));
    }
    let empty = proto::LinuxContainerConfig::default();
    let linux = config.linux.as_ref().unwrap_or(&empty);
    let linux_field = field.child("linux");
    let security = container_security(
        &linux_field.child("security_context"),
        linux.security_context.as_ref(),
        host,
    )?;
    let resources = match linux.resources.as_ref() {
        Some(asked) => resources(&linux_field.child("resources"), asked)?,
        None => Resources::default(),
    };
    let annotations = annotations(&field.child("annotations"), &config.annotations)?;
    fits_exec(&field, config)?;
    Ok(ContainerSpec {
        metadata: metadata(&field.child("metadata"), config.metadata.as_ref())?,
        image: image(&field.child("image"), config.image.as_ref())?,
        command: arguments(&field.child("command"), &config.command)?,
        args: arguments(&field.child("args"), &config.args)?,
        working_dir: working_dir(&field.child("working_dir"), &config.working_dir)?,
        envs: envs(&field.child("envs"), &config.envs)?,
        mounts: mounts(&field.child("mounts"), &config.mounts, security.privileged)?,
        devices: devices(&field.child("devices"), &config.devices)?,
        cdi_devices: cdi_devices(&field, &config.cdi_devices, &annotations)?,
        labels: labels(&field.child("labels"), &config.labels)?,
        annotations,
        log_path: log_path(&field.child("log_path"), &config.log_path)?,
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        resources,
        security,
        stop_signal: stop_signal(&field.child("stop_signal"), config.stop_signal)?,
    })
}

/// The rules between a container and the sandbox it is to run in, to be asked once the sandbox is
/// found.
///
/// # Errors
/// The container is privileged and its sandbox is not: whoever admitted the pod admitted less. Or it
/// asks for what the user namespace of its pod cannot have.
pub fn fits_sandbox(container: &ContainerSpec, sandbox: &SandboxSpec) -> Result<()> {
    if container.security.privileged && !sandbox.security.privileged {
        let config = Field::root("config");
        let field = config.child("linux.security_context.privileged");
        let problem = "must not be set in a sandbox that is not privileged itself";
        return Err(field.invalid(problem));
    }
    fits_user_namespace(container, sandbox)
}

/// A container lives in the user namespace of its pod. What it asks for that only the host's has is
/// refused; asking for nothing, or for NODE, is what clients do that leave it to the pod.
fn fits_user_namespace(container: &ContainerSpec, sandbox: &SandboxSpec) -> Result<()> {
    let config = Field::root("config");
    let options = config.child("linux.security_context.namespace_options");
    let (asked, pod) = (
        &container.security.namespaces,
        sandbox.security.namespaces.user,
    );
    if asked.user != UserNamespace::Node && asked.user != pod {
        let problem = "must be the same as in the sandbox";
        return Err(options.child("userns_options").invalid(problem));
    }
    if pod == UserNamespace::Node {
        return Ok(());
    }
    if asked.pid == PidMode::Node {
        let problem = "must not be NODE in a pod with a user namespace of its own";
        return Err(options.child("pid").invalid(problem));
    }
    let shared = container
        .mounts
        .iter()
        .position(|mount| mount.propagation == Propagation::Bidirectional);
    if let Some(index) = shared {
        let problem = "PROPAGATION_BIDIRECTIONAL would let a user namespace of the pod's own mount \
                       on the host";
        let mounts = config.child("mounts");
        return Err(mounts.index(index).child("propagation").invalid(problem));
    }
    Ok(())
}

fn metadata(
    field: &Field<'_>,
    metadata: Option<&proto::ContainerMetadata>,
) -> Result<ContainerMetadata> {
    let metadata = field.required(metadata)?;
    let name = field.child("name").name(&metadata.name)?;
    Ok(ContainerMetadata {
        name,
        attempt: metadata.attempt,
    })
}

/// The image a container is made of, or that is one of its volumes. The reference itself is judged by `image::reference`.
pub(super) fn image(field: &Field<'_>, image: Option<&proto::ImageSpec>) -> Result<ImageRequest> {
    let image = field.required(image)?;
    let name = field.child("image");
    if image.image.is_empty() {
        return Err(name.invalid("must not be empty"));
    }
    name.at_most(&image.image, MAX_IMAGE)?;
    name.one_word(&image.image)?;
    let written = field.child("user_specified_image");
    written.at_most(&image.user_specified_image, MAX_IMAGE)?;
    written.no_nul(&image.user_specified_image)?;
    Ok(ImageRequest {
        image: image.image.clone(),
        user_specified_image: image.user_specified_image.clone(),
        annotations: annotations(&field.child("annotations"), &image.annotations)?,
        runtime_handler: image.runtime_handler.clone(),
    })
}

/// Words of a command line, each as long as the kernel takes it.
pub(super) fn arguments(field: &Field<'_>, list: &[String]) -> Result<Vec<String>> {
    field.count(list, MAX_STRINGS)?;
    for (index, argument) in list.iter().enumerate() {
        let place = field.index(index);
        place.at_most(argument, MAX_STRING)?;
        place.no_nul(argument)?;
    }
    Ok(list.to_vec())
}

/// Whether the command line and the environment together can be handed to a program.
fn fits_exec(field: &Field<'_>, config: &proto::ContainerConfig) -> Result<()> {
    let words = config.command.iter().chain(&config.args).map(String::len);
    let words: usize = words.sum();
    let variables = config.envs.iter().map(|e| e.key.len() + e.value.len() + 1);
    let variables: usize = variables.sum();
    if words + variables <= MAX_TOGETHER {
        return Ok(());
    }
    let largest = if words > variables { "args" } else { "envs" };
    let problem = format!(
        "command, args and envs must be at most {MAX_TOGETHER} bytes together, are {}",
        words + variables
    );
    Err(field.child(largest).invalid(problem))
}

/// The working directory. Where it leads is the container's to say, but not by way of descriptors
/// that some process of ours may have open.
fn working_dir(field: &Field<'_>, path: &str) -> Result<Option<String>> {
    if path.is_empty() {
        return Ok(None);
    }
    let normal = field.absolute_path(path)?;
    if crate::bundle::leads_to_descriptors(&normal) {
        let problem = format!("must not lead through /proc/<pid>/fd, is {}", quoted(path));
        return Err(field.invalid(problem));
    }
    Ok(Some(normal))
}

/// Unique by name: a later value replaces an earlier one in its place.
fn envs(field: &Field<'_>, list: &[proto::KeyValue]) -> Result<Vec<EnvVar>> {
    field.count(list, MAX_STRINGS)?;
    let mut places: HashMap<&str, usize> = HashMap::new();
    let mut out: Vec<EnvVar> = Vec::with_capacity(list.len());
    for (index, entry) in list.iter().enumerate() {
        let place = field.index(index);
        let name = entry.key.as_str();
        if name.is_empty() || name.contains(['=', '\0']) {
            let rule = "must not be empty and not contain \"=\" or NUL";
            return Err(place
                .child("key")
                .invalid(format!("{rule}, is {}", quoted(name))));
        }
        if entry.value.contains(&0) {
            return Err(place.child("value").invalid("must not contain NUL"));
        }
        if name.len() + 1 + entry.value.len() > MAX_STRING {
            let problem = format!("key=value must be at most {MAX_STRING} bytes");
            return Err(place.child("value").invalid(problem));
        }
        let variable = EnvVar {
            name: name.to_owned(),
            value: entry.value.clone(),
        };
        match places.get(name) {
            Some(earlier) => out[*earlier] = variable,
            None => {
                places.insert(name, out.len());
                out.push(variable);
            }
        }
    }
    Ok(out)
}

/// A path below the sandbox's log directory; it never leaves it by its words.
fn log_path(field: &Field<'_>, path: &str) -> Result<Option<String>> {
    if path.is_empty() {
        return Ok(None);
    }
    field.at_most(path, MAX_PATH)?;
    if path.starts_with('/') {
        let rule = "must be relative to the sandbox's log_directory";
        return Err(field.invalid(format!("{rule}, is {}", quoted(path))));
    }
    let normal = field.absolute_path(&format!("/{path}"))?;
    if normal == "/" || path.ends_with('/') {
        return Err(field.invalid(format!("must name a file, is {}", quoted(path))));
    }
    Ok(Some(normal[1..].to_owned()))
}

fn stop_signal(field: &Field<'_>, number: i32) -> Result<Option<Signal>> {
    Ok(signal_from_proto(field.enumerated(number)?))
}

/// The signal of a value of the protocol's enum; `SIGNAL_RUNTIME_DEFAULT` is none. The enum's names
/// are the signals' own, so they are parsed instead of listed a second time.
pub(super) fn signal_from_proto(signal: proto::Signal) -> Option<Signal> {
    let name = signal.as_str_name().strip_prefix("SIGNAL_")?;
    Signal::parse(&name.replace("PLUS", "+").replace("MINUS", "-"))
}
