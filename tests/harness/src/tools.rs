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

/// The directory of programs that stop at failpoints: the ones under test if they were built with
/// debug assertions, else cargo's debug build.
///
/// # Errors
/// When they cannot be built.
pub fn crisp_dir_with_failpoints() -> io::Result<PathBuf> {
    let under_test = crisp_dir();
    if has_failpoints(&under_test)? {
        return Ok(under_test);
    }
    let packages = [
        "-p",
        "crisp",
        "-p",
        "conmon-rs",
        "-p",
        "crisp-pause",
        "-p",
        "crisp-oci",
    ];
    crate::process::run(
        Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(["build", "--locked", "--bins"])
            .args(packages)
            .current_dir(top()),
    )?;
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| top().join("target"), PathBuf::from);
    Ok(target.join("debug"))
}

/// Whether the daemon in a directory reads the variable that names a failpoint.
///
/// # Errors
/// When there is none.
pub fn has_failpoints(dir: &Path) -> io::Result<bool> {
    let program = std::fs::read(dir.join("crisp"))?;
    let name = b"CRISP_TEST_FAILPOINT";
    Ok(program.windows(name.len()).any(|window| window == name))
}
