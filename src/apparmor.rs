//! AppArmor: whether the host enforces it, and the profile of containers that name none.
//!
//! Profiles are compiled and loaded by the host's own `apparmor_parser`; the kernel takes only what
//! that makes. Profiles that pods name must be loaded by whoever runs the node.

use std::{
    fs, io,
    io::Write,
    process::{Command, Stdio},
};

/// Name of the default profile.
pub const DEFAULT: &str = "crisp-default";
const PROFILE: &str = include_str!("../config/apparmor/crisp-default");
const ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
const PARSERS: [&str; 3] = [
    "/sbin/apparmor_parser",
    "/usr/sbin/apparmor_parser",
    "/usr/bin/apparmor_parser",
];

/// Why the default profile is not there.
#[derive(Debug, thiserror::Error)]
pub enum AppArmorError {
    /// The program that loads profiles is not installed.
    #[error("there is no apparmor_parser in {PARSERS:?}")]
    NoParser,
    /// It could not be run.
    #[error("cannot run {program}")]
    Run {
        /// Which.
        program: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It did not load the profile.
    #[error("{program} did not load the profile {DEFAULT}: {message}")]
    Refused {
        /// Which.
        program: &'static str,
        /// What it said.
        message: String,
    },
}

/// Whether the kernel enforces profiles.
#[must_use]
pub fn enabled() -> bool {
    fs::read(ENABLED).is_ok_and(|text| text.starts_with(b"Y"))
}

/// Loads the default profile, or loads it anew. May block.
///
/// # Errors
/// [`AppArmorError`]; containers that ask for the default are then refused.
pub fn load_default() -> Result<(), AppArmorError> {
    let exists = |path: &&&str| fs::metadata(path).is_ok();
    let program = *PARSERS.iter().find(exists).ok_or(AppArmorError::NoParser)?;
    parse(program, &["--replace", "--skip-cache"])
}

fn parse(program: &'static str, arguments: &[&str]) -> Result<(), AppArmorError> {
    let failed = |source| AppArmorError::Run { program, source };
    let mut parser = Command::new(program)
        .args(arguments)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut input) = parser.stdin.take() {
        // One that ends without reading says why.
        input.write_all(PROFILE.as_bytes()).ok();
    }
    let done = parser.wait_with_output().map_err(failed)?;
    if done.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&done.stderr);
    Err(AppArmorError::Refused {
        program,
        message: said.trim().chars().take(500).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_profile_has_the_name_and_names_no_other_file() {
        assert!(PROFILE.contains(&format!("profile {DEFAULT} ")));
        let rules = PROFILE.lines().filter(|line| !line.starts_with('#'));
        assert!(rules.clone().all(|rule| !rule.contains("include")));
        assert!(rules.clone().all(|rule| !rule.contains("@{")));
    }

    #[test]
    fn the_profile_compiles_where_there_is_a_parser() {
        let Some(program) = PARSERS.iter().find(|path| fs::metadata(path).is_ok()) else {
            return;
        };
        parse(program, &["--skip-kernel-load", "--skip-cache"]).unwrap();
    }
}
