//! The programs inside the test images: busybox from Debian's source package and a few static ones
//! compiled from `tests/harness/programs/` when they are needed.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use crate::tools;

/// Host paths of the programs that go into images.
#[derive(Debug, Clone)]
pub struct Programs {
    /// A static busybox with pgrep, ipcs and brctl.
    pub busybox: PathBuf,
    /// Where its applets belong, relative to the root.
    pub applets: Vec<String>,
    /// Answers HTTP, see webserver.c.
    pub webserver: PathBuf,
    /// Prints its effective uid.
    pub euid: PathBuf,
    /// Waits for a signal.
    pub pause: PathBuf,
}

impl Programs {
    /// Gets busybox and compiles the rest into `dir`.
    ///
    /// # Errors
    /// When a tool does not come or a program does not compile.
    pub fn build(dir: &Path) -> io::Result<Self> {
        let busybox = tools::get("busybox")?;
        let applets = fs::read_to_string(busybox.join("applets"))?
            .lines()
            .map(|line| line.trim_start_matches('/').to_owned())
            .filter(|line| !line.is_empty() && line != "bin/busybox")
            .collect();
        fs::create_dir_all(dir)?;
        Ok(Self {
            busybox: busybox.join("bin/busybox"),
            applets,
            webserver: compile("webserver", dir)?,
            euid: compile("euid", dir)?,
            pause: compile("pause", dir)?,
        })
    }
}

fn compile(name: &str, dir: &Path) -> io::Result<PathBuf> {
    let source = tools::top()
        .join("tests/harness/programs")
        .join(format!("{name}.c"));
    let out = dir.join(name);
    let run = Command::new("gcc")
        .args(["-static", "-Os", "-s", "-Wall", "-Werror", "-o"])
        .arg(&out)
        .arg(&source)
        .output()?;
    if !run.status.success() {
        return Err(io::Error::other(format!(
            "gcc {}: {}",
            source.display(),
            String::from_utf8_lossy(&run.stderr)
        )));
    }
    Ok(out)
}
