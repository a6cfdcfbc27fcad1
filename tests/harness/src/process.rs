//! Child processes of the tests: logged, ended by their own pid, waited for with a deadline.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// A started program. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a command with its stdout and stderr appended to `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(command: &mut Command, log: &Path) -> io::Result<Self> {
        let file = File::options().create(true).append(true).open(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .map_err(|error| {
                io::Error::new(
                    error.kind(),
                    format!("start {}: {error}", command.get_program().display()),
                )
            })?;
        Ok(Self {
            child,
            log: log.to_owned(),
        })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The end of its log, for messages.
    #[must_use]
    pub fn log_tail(&self) -> String {
        tail(&self.log, 30)
    }

    /// Whether it still runs; an exit status if not.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn exited(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When it is gone already.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(kill(pid(self.child.id()), signal)?)
    }

    /// Waits until it ended, at most `limit`.
    ///
    /// # Errors
    /// When it still runs then.
    pub fn wait(&mut self, limit: Duration) -> io::Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                return Err(io::Error::other(format!(
                    "pid {} did not end within {limit:?}",
                    self.pid()
                )));
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// SIGTERM, then SIGKILL after `grace`; returns how long the end took, or nothing if it had to
    /// be killed.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn stop(&mut self, grace: Duration) -> io::Result<Option<Duration>> {
        if self.exited()?.is_some() {
            return Ok(Some(Duration::ZERO));
        }
        let began = Instant::now();
        let _gone = self.signal(Signal::SIGTERM);
        if self.wait(grace).is_ok() {
            return Ok(Some(began.elapsed()));
        }
        self.kill()?;
        Ok(None)
    }

    /// SIGKILL and wait.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn kill(&mut self) -> io::Result<()> {
        let _gone = self.child.kill();
        self.child.wait().map(drop)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _gone = self.kill();
    }
}

fn pid(id: u32) -> Pid {
    Pid::from_raw(i32::try_from(id).expect("process ids fit in i32"))
}

/// SIGKILL to a process that is no child of ours.
///
/// # Errors
/// When there is none.
pub fn kill_pid(id: u32, signal: Signal) -> io::Result<()> {
    Ok(kill(pid(id), signal)?)
}

/// The last lines of a file.
#[must_use]
pub fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Waits until `done` says so: true, or false when `limit` is over.
pub fn until(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    while !done() {
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
    true
}

/// Runs a command to its end; its stdout, or an error with everything it said.
///
/// # Errors
/// When it cannot be started or fails.
pub fn run(command: &mut Command) -> io::Result<String> {
    let name = command.get_program().display().to_string();
    let out = command
        .output()
        .map_err(|error| io::Error::new(error.kind(), format!("start {name}: {error}")))?;
    let stdout = String::from_utf8_lossy(&out.stdout).into_owned();
    if !out.status.success() {
        let stderr = String::from_utf8_lossy(&out.stderr);
        return Err(io::Error::other(format!(
            "{name}: {}\n{stdout}{stderr}",
            out.status
        )));
    }
    Ok(stdout)
}
