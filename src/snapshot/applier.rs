//! The daemon's side of the applier: starts the confined child, feeds it, reads its report.

use std::{
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use super::apply::{Applied, Failure, Limits, REPORT_MARK, Report};

/// A report names at most 200 000 paths of 4 KiB; nobody comes near.
const MAX_REPORT: u64 = 64 << 20;
const MAX_STDERR: u64 = 4096;
const PIPE: i32 = 1 << 20;

/// How the child is executed.
#[derive(Debug, Clone)]
pub struct ApplierCommand {
    /// The executable.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Variables set for it; it inherits none.
    pub environment: Vec<(OsString, OsString)>,
}

impl ApplierCommand {
    /// This executable with the subcommand `apply-layer`.
    ///
    /// # Errors
    /// The system's, if there is no procfs to find it by.
    pub fn of_daemon() -> io::Result<Self> {
        std::fs::symlink_metadata("/proc/self/exe")?;
        Ok(Self {
            // Not the path it was started by: an upgrade may have replaced that file.
            program: "/proc/self/exe".into(),
            arguments: vec!["apply-layer".into()],
            environment: Vec::new(),
        })
    }
}

/// The child could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ApplierError {
    /// It could not be started or talked to.
    #[error("the layer applier: {action}")]
    Process {
        /// What was tried.
        action: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// It ended without a report.
    #[error("the layer applier ended without a report ({status}): {stderr}")]
    Died {
        /// How it ended.
        status: String,
        /// The end of what it printed.
        stderr: String,
    },
    /// It refused the layer, and says why.
    #[error(transparent)]
    Failed(#[from] Failure),
}

fn process(action: &'static str) -> impl Fn(io::Error) -> ApplierError {
    move |source| ApplierError::Process { action, source }
}

/// A child that wants the compressed layer. Dropped, it is killed.
pub struct Applying {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
    limits: Limits,
}

impl Applying {
    /// Starts a child on the empty directory `target`.
    ///
    /// # Errors
    /// [`ApplierError::Process`].
    pub async fn start(
        command: &ApplierCommand,
        target: &Path,
        limits: &Limits,
    ) -> Result<Self, ApplierError> {
        let mut child = Command::new(&command.program)
            .args(&command.arguments)
            .env_clear()
            .envs(command.environment.iter().map(|(key, value)| (key, value)))
            .current_dir(target)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(process("start"))?;
        let missing = || process("pipes")(io::ErrorKind::BrokenPipe.into());
        let mut stdin = child.stdin.take().ok_or_else(missing)?;
        let stdout = child.stdout.take().ok_or_else(missing)?;
        // A larger pipe saves wake-ups; the default works too.
        let _ = nix::fcntl::fcntl(&stdin, nix::fcntl::FcntlArg::F_SETPIPE_SZ(PIPE));
        let mut options = serde_json::to_vec(limits)
            .map_err(|error| process("options")(io::Error::other(error)))?;
        options.push(b'\n');
        stdin.write_all(&options).await.map_err(process("write"))?;
        Ok(Self {
            child,
            stdin: Some(stdin),
            stdout,
            limits: limits.clone(),
        })
    }

    /// Hands over the next bytes. False: the child wants no more, [`Applying::finish`] says why.
    ///
    /// # Errors
    /// [`ApplierError::Process`].
    pub async fn feed(&mut self, bytes: &[u8]) -> Result<bool, ApplierError> {
        let Some(stdin) = &mut self.stdin else {
            return Ok(false);
        };
        match stdin.write_all(bytes).await {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.stdin = None;
                Ok(false)
            }
            Err(error) => Err(process("write")(error)),
        }
    }

    /// Whether the child closed its input before the end.
    #[must_use]
    pub fn stopped(&self) -> bool {
        self.stdin.is_none()
    }

    /// Says that the stream is complete and waits for the report.
    ///
    /// # Errors
    /// [`ApplierError`].
    pub async fn finish(mut self) -> Result<Applied, ApplierError> {
        self.stdin = None;
        let mut output = Vec::new();
        // The child has its own deadline; this one is for a child that is stuck.
        let time = Duration::from_secs(self.limits.max_seconds.saturating_add(30));
        let mut report = (&mut self.stdout).take(MAX_REPORT);
        match timeout(time, report.read_to_end(&mut output)).await {
            Ok(read) => drop(read.map_err(process("read"))?),
            Err(_) => {
                self.child.kill().await.map_err(process("kill"))?;
                return Err(Failure::limit("the layer applier did not end in time").into());
            }
        }
        let mut stderr = Vec::new();
        if let Some(pipe) = &mut self.child.stderr {
            let mut pipe = pipe.take(MAX_STDERR);
            // Only for the message.
            let _ = timeout(Duration::from_secs(5), pipe.read_to_end(&mut stderr)).await;
        }
        let status = self.child.wait().await.map_err(process("wait"))?;
        let report = output
            .split(|byte| *byte == b'\n')
            .find_map(|line| line.strip_prefix(REPORT_MARK.as_bytes()))
            .and_then(|line| serde_json::from_slice(line).ok());
        match report {
            Some(Report::Applied(applied)) if status.success() => Ok(*applied),
            Some(Report::Failed(failure)) => Err(failure.into()),
            _ => Err(ApplierError::Died {
                status: status.to_string(),
                stderr: String::from_utf8_lossy(&stderr).trim().to_owned(),
            }),
        }
    }
}
