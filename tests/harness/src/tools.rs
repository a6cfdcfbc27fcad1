//! Where the real tools are: `tests/tools/get` builds or finds them.

use std::{
    io,
    path::{Path, PathBuf},
    process::Command,
};

/// The top of the checkout that this harness was built from.
#[must_use]
pub fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("the harness lies two levels below the top")
}

/// The directory of a tool, built now if this machine has not got it yet.
///
/// # Errors
/// When it cannot be built; what its build said went to stderr.
pub fn get(name: &str) -> io::Result<PathBuf> {
    let run = Command::new(top().join("tests/tools/get"))
        .arg(name)
        .stderr(std::process::Stdio::inherit())
        .output()?;
    let path = String::from_utf8_lossy(&run.stdout).trim().to_owned();
    if !run.status.success() || path.is_empty() {
        return Err(io::Error::other(format!("tests/tools/get {name} failed")));
    }
    Ok(PathBuf::from(path))
}

/// One program of a tool.
///
/// # Errors
/// As [`get`].
pub fn program(tool: &str, program: &str) -> io::Result<PathBuf> {
    Ok(get(tool)?.join("bin").join(program))
}

/// The directory with crisp's four binaries: `CRISP_TEST_BIN`, else what `deploy/build` makes.
#[must_use]
pub fn crisp_dir() -> PathBuf {
    std::env::var_os("CRISP_TEST_BIN").map_or_else(|| top().join("target/dist"), PathBuf::from)
}
