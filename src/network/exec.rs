//! One run of one plugin: a foreign program under limits.

use std::{
    ffi::OsString,
    fs,
    os::unix::{fs::PermissionsExt, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
    time::{Instant, timeout, timeout_at},
};

use super::{
    error::PluginFailure,
    invocation::{Target, Verb, WITHHELD, environment},
    result::{clean, parse_error},
};

/// The most output read from a plugin.
pub const MAX_STDOUT: usize = 1 << 20;
/// How much of the end of the error stream is kept for messages.
const STDERR_TAIL: usize = 4096;
/// Between SIGTERM and SIGKILL: enough to release a lock, short enough for a caller to wait.
const TERM_GRACE: Duration = Duration::from_millis(500);
/// How long output is still awaited after the plugin ended. What it wrote is in the pipe already;
/// only a child that it left behind and that kept the pipe makes this time pass.
const DRAIN: Duration = Duration::from_millis(200);

/// A run to be made.
#[derive(Debug)]
pub struct Run<'a> {
    /// The plugin's type.
    pub kind: &'a str,
    /// What to do.
    pub verb: Verb,
    /// Which attachment, for the verbs that have one.
    pub target: Option<&'a Target>,
    /// The configuration for its input.
    pub input: Vec<u8>,
    /// Where the binary is looked for.
    pub dirs: &'a [PathBuf],
    /// When it is killed.
    pub deadline: Instant,
}

/// Runs a plugin and returns what it printed. Dropping the future kills the plugin's group.
///
/// # Errors
/// Everything that is not exit status 0 with at most [`MAX_STDOUT`] bytes of output in time.
pub async fn run(run: Run<'_>) -> Result<Vec<u8>, PluginFailure> {
    let path = find(run.kind, run.dirs)?;
    let started = Instant::now();
    // Dropped in reverse: the group is killed while its leader is not yet reaped.
    let (mut child, mut group) = spawn(&path, &run)?;
    let mut output = Output::default();
    let ended = {
        let talk = talk(&mut child, &run.input, &mut output);
        timeout_at(run.deadline, talk).await
    };
    match ended {
        Ok(Ok(status)) => {
            group.leader_reaped();
            judge(status, &output)
        }
        Ok(Err(stopped)) => {
            group.end(&mut child).await;
            Err(match stopped {
                Stopped::TooMuchOutput => PluginFailure::TooMuchOutput { limit: MAX_STDOUT },
                Stopped::Io(source) => PluginFailure::Pipes(source),
            })
        }
        Err(_elapsed) => {
            group.end(&mut child).await;
            let stderr = tail(&output.stderr);
            Err(PluginFailure::Deadline {
                after: started.elapsed(),
                stderr,
            })
        }
    }
}

/// The first directory's executable regular file of that name.
///
/// # Errors
/// If no directory has one.
pub fn find(kind: &str, dirs: &[PathBuf]) -> Result<PathBuf, PluginFailure> {
    dirs.iter()
        .map(|dir| dir.join(kind))
        .find(|path| is_executable(path))
        .ok_or_else(|| PluginFailure::Missing {
            kind: kind.to_owned(),
            dirs: dirs.to_vec(),
        })
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path)
        .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

fn spawn(path: &Path, run: &Run<'_>) -> Result<(Child, Group), PluginFailure> {
    let mut command = Command::new(path);
    for name in WITHHELD {
        command.env_remove(name);
    }
    let variables: Vec<(&str, OsString)> = environment(run.verb, run.target, run.dirs);
    let child = command
        .envs(variables)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A group of its own: what the plugin starts is killed with it.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| PluginFailure::Spawn {
            path: path.to_path_buf(),
            source,
        })?;
    let leader = child.id().and_then(|pid| i32::try_from(pid).ok());
    Ok((child, Group { leader }))
}

#[derive(Debug, Default)]
struct Output {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

enum Stopped {
    TooMuchOutput,
    Io(std::io::Error),
}

/// Feeds the input and reads both outputs at once (a plugin may do either first) until the plugin
/// ends, then until the pipes do or [`DRAIN`] is over.
async fn talk(child: &mut Child, input: &[u8], output: &mut Output) -> Result<ExitStatus, Stopped> {
    let mut stdin = child.stdin.take();
    let mut stdout = child.stdout.take().expect("stdout was asked to be a pipe");
    let mut stderr = child.stderr.take().expect("stderr was asked to be a pipe");
    let feed = async {
        if let Some(mut pipe) = stdin.take() {
            // A plugin that ends without reading its input is judged by its status, not by EPIPE.
            let _ = pipe.write_all(input).await;
        }
    };
    let Output {
        stdout: out,
        stderr: err,
    } = output;
    let pipes = async {
        tokio::try_join!(read_capped(&mut stdout, out), async {
            read_tail(&mut stderr, err).await.map_err(Stopped::Io)
        })
    };
    tokio::pin!(feed, pipes);
    let mut status: Option<ExitStatus> = None;
    let (mut fed, mut drained) = (false, false);
    let mut drain_until: Option<Instant> = None;
    loop {
        if let (Some(status), true) = (status, drained) {
            return Ok(status);
        }
        let drain = async {
            match drain_until {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = &mut feed, if !fed => fed = true,
            done = &mut pipes, if !drained => {
                done?;
                drained = true;
            }
            ended = child.wait(), if status.is_none() => {
                status = Some(ended.map_err(Stopped::Io)?);
                fed = true;
                drain_until = Some(Instant::now() + DRAIN);
            }
            () = drain => drained = true,
        }
    }
}

async fn read_capped(
    pipe: &mut (impl AsyncRead + Unpin),
    into: &mut Vec<u8>,
) -> Result<(), Stopped> {
    let mut limited = pipe.take(MAX_STDOUT as u64 + 1);
    loop {
        match limited.read_buf(into).await {
            Ok(0) => return Ok(()),
            Ok(_) if into.len() > MAX_STDOUT => return Err(Stopped::TooMuchOutput),
            Ok(_) => {}
            Err(error) => return Err(Stopped::Io(error)),
        }
    }
}

/// Reads all, keeps the end.
async fn read_tail(pipe: &mut (impl AsyncRead + Unpin), into: &mut Vec<u8>) -> std::io::Result<()> {
    let mut buffer = [0_u8; 4096];
    loop {
        let count = pipe.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        into.extend_from_slice(&buffer[..count]);
        if into.len() > 2 * STDERR_TAIL {
            into.drain(..into.len() - STDERR_TAIL);
        }
    }
}

fn judge(status: ExitStatus, output: &Output) -> Result<Vec<u8>, PluginFailure> {
    if status.success() {
        return Ok(output.stdout.clone());
    }
    if let Some((code, message)) = parse_error(&output.stdout) {
        return Err(PluginFailure::Reported { code, message });
    }
    let words = match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown status".to_owned(),
    };
    let stderr = match tail(&output.stderr) {
        text if text.is_empty() => tail(&output.stdout),
        text => text,
    };
    Err(PluginFailure::Ended {
        status: words,
        stderr,
    })
}

/// The end of a stream as clean text.
fn tail(bytes: &[u8]) -> String {
    const SHOWN: usize = 900;
    clean(&String::from_utf8_lossy(
        &bytes[bytes.len().saturating_sub(SHOWN)..],
    ))
}

/// The plugin's process group. Signalled by number, which is safe exactly as long as its leader
/// has not been reaped: the number cannot be given away before.
struct Group {
    leader: Option<i32>,
}

impl Group {
    fn leader_reaped(&mut self) {
        self.leader = None;
    }

    fn signal(&self, signal: Signal) {
        if let Some(leader) = self.leader {
            // ESRCH: they are gone already.
            let _ = killpg(Pid::from_raw(leader), signal);
        }
    }

    /// SIGTERM, a moment, SIGKILL, and the leader reaped. The SIGKILL goes to the group in any
    /// case: the leader may have obeyed and its children not.
    async fn end(&mut self, child: &mut Child) {
        if child.id().is_none() {
            // It was reaped meanwhile: the number may be another's by now.
            return self.leader_reaped();
        }
        self.signal(Signal::SIGTERM);
        self.wait_dead(child, TERM_GRACE).await;
        self.signal(Signal::SIGKILL);
        // A process in uninterruptible sleep must not hold the caller: tokio reaps it later.
        let _ = timeout(TERM_GRACE, child.wait()).await;
        self.leader_reaped();
    }

    /// Waits until the leader is dead without reaping it, so that its number stays taken.
    async fn wait_dead(&self, child: &Child, at_most: Duration) {
        let until = Instant::now() + at_most;
        while child.id().is_some() && !self.leader_is_zombie() && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn leader_is_zombie(&self) -> bool {
        use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
        let Some(leader) = self.leader else {
            return true;
        };
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        !matches!(
            waitid(Id::Pid(Pid::from_raw(leader)), flags),
            Ok(WaitStatus::StillAlive)
        )
    }
}

impl Drop for Group {
    /// The caller gave up: nothing of the plugin stays. `kill_on_drop` ends the leader alone.
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
    }
}
