//! The process: arguments, environment, working directory, identity.

use std::collections::HashMap;

use oci_spec::runtime::{Process, ProcessBuilder, User, UserBuilder};

use super::{BundleError, BundleInput, Result, security};

/// What a container without a PATH of its own gets, as docker has it.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(super) fn process(input: &BundleInput<'_>) -> Result<Process> {
    let asked = &input.container.security;
    let lossy = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let env: Vec<String> = environment(input).into_iter().map(lossy).collect();
    let mut process = ProcessBuilder::default()
        .terminal(input.container.tty)
        .user(user(input)?)
        .args(arguments(input)?)
        .env(env)
        .cwd(working_dir(input)?)
        .capabilities(security::capabilities(input)?)
        .no_new_privileges(asked.no_new_privs)
        .oom_score_adj(oom_score_adj(input))
        .build()?;
    // The builder's default limits descriptors; a container inherits the monitor's limits.
    process.set_rlimits(None);
    process.set_apparmor_profile(security::apparmor(input)?);
    process.set_selinux_label(security::process_label(input));
    Ok(process)
}

fn user(input: &BundleInput<'_>) -> Result<User> {
    let user = UserBuilder::default()
        .uid(input.user.uid)
        .gid(input.user.gid);
    Ok(if input.user.additional_gids.is_empty() {
        user.build()?
    } else {
        user.additional_gids(input.user.additional_gids.clone())
            .build()?
    })
}

/// The request's command replaces the image's entrypoint and with it the image's cmd; the request's
/// args alone replace the image's cmd. That is Kubernetes' table.
fn arguments(input: &BundleInput<'_>) -> Result<Vec<String>> {
    let (asked, image) = (input.container, input.image);
    let name = || asked.image.image.clone();
    let words: Vec<String> = if !asked.command.is_empty() {
        [&asked.command[..], &asked.args[..]].concat()
    } else if !asked.args.is_empty() {
        [&image.entrypoint[..], &asked.args[..]].concat()
    } else {
        [&image.entrypoint[..], &image.cmd[..]].concat()
    };
    if words.first().is_none_or(String::is_empty) {
        return Err(BundleError::NoCommand { image: name() });
    }
    if words.iter().any(|word| word.contains('\0')) {
        return Err(BundleError::ImageCommand { image: name() });
    }
    Ok(words)
}

/// The environment as exact bytes, `NAME=value`, each name once. Later sources win but keep the
/// place of the earlier one: PATH, HOSTNAME and TERM of ours, the host's defaults, the image, the
/// request, its CDI devices; HOME last, if nobody said it.
#[must_use]
pub fn environment(input: &BundleInput<'_>) -> Vec<Vec<u8>> {
    let mut env = Environment::default();
    env.set("PATH", DEFAULT_PATH.as_bytes());
    env.set("HOSTNAME", input.hostname.as_bytes());
    if input.container.tty {
        env.set("TERM", b"xterm");
    }
    for (name, value) in &input.host.default_env {
        env.set(name, value.as_bytes());
    }
    // A line of an image without a name or with a NUL cannot be a variable.
    for line in input.image.env.iter().filter(|line| !line.contains('\0')) {
        if let Some((name, value)) = line.split_once('=').filter(|(name, _)| !name.is_empty()) {
            env.set(name, value.as_bytes());
        }
    }
    for variable in &input.container.envs {
        env.set(&variable.name, &variable.value);
    }
    // What a device needs stands above what anybody asks for.
    for (name, value) in &input.edits.env {
        env.set(name, value.as_bytes());
    }
    if !env.places.contains_key("HOME") {
        env.set("HOME", input.user.home.as_deref().unwrap_or("/").as_bytes());
    }
    env.lines
}

#[derive(Default)]
struct Environment {
    lines: Vec<Vec<u8>>,
    places: HashMap<String, usize>,
}

impl Environment {
    fn set(&mut self, name: &str, value: &[u8]) {
        let line = [name.as_bytes(), b"=", value].concat();
        match self.places.get(name) {
            Some(place) => self.lines[*place] = line,
            None => {
                self.places.insert(name.to_owned(), self.lines.len());
                self.lines.push(line);
            }
        }
    }
}

/// The request's working directory, else the image's, else `/`; absolute and without `..`. Where it
/// is missing the OCI runtime makes it.
fn working_dir(input: &BundleInput<'_>) -> Result<String> {
    if let Some(path) = &input.container.working_dir {
        return Ok(path.clone());
    }
    let path = input.image.working_dir.as_str();
    let normal = normal(path);
    if leads_to_descriptors(&normal) || normal.contains('\0') {
        let image = input.container.image.image.clone();
        return Err(BundleError::WorkingDir {
            image,
            path: path.to_owned(),
        });
    }
    Ok(normal)
}

/// A path taken as absolute, with `.`, `..` and repeated slashes resolved by words; `..` of the root
/// is the root.
pub(super) fn normal(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// Whether a normalised path leads through `/proc/<pid>/fd` or the like, where descriptors of other
/// processes, and so places outside the container, may be found.
#[must_use]
pub fn leads_to_descriptors(path: &str) -> bool {
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    if parts.next() != Some("proc") {
        return false;
    }
    parts.any(|part| matches!(part, "fd" | "fdinfo" | "cwd" | "root" | "map_files"))
}

/// What was asked, raised to what the daemon may still set.
fn oom_score_adj(input: &BundleInput<'_>) -> i32 {
    let asked = input.container.resources.oom_score_adj;
    input
        .host
        .oom_score_adj_floor
        .map_or(asked, |floor| asked.max(floor))
}
