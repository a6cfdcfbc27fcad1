//! Starts a monitor, and with it a container: the process is executed, never forked from here, and
//! the plan goes over its standard input, which is the control socket.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Command, Stdio},
    sync::Arc,
};

use conmon_rs::protocol::{CreateRequest, Reply, Request};
use tokio::sync::mpsc;

use super::{Init, Launched, Monitor, MonitorError, Notice, link::Link};
use crate::{id::ContainerId, process::Process};

/// What a monitor needs to make a container.
pub struct Launch {
    /// The monitor program, opened so that nothing inside a container can write to it.
    pub program: Arc<OwnedFd>,
    /// Whose monitor it is; shown in its command line.
    pub id: ContainerId,
    /// The container's directory of runtime files: socket, exit record.
    pub directory: OwnedFd,
    /// Where the monitor's own messages go.
    pub messages: File,
    /// The encoded plan.
    pub plan: Vec<u8>,
    /// The descriptors that the plan names by index.
    pub descriptors: Vec<OwnedFd>,
    /// The rest of the request.
    pub request: CreateRequest,
}

/// Starts the monitor and has it create the container.
///
/// # Errors
/// Any: then no process of it is left.
pub async fn launch(launch: Launch) -> Result<Launched, MonitorError> {
    let Launch {
        program,
        id,
        directory,
        messages,
        plan,
        descriptors,
        request,
    } = launch;
    let (ours, process) = tokio::task::spawn_blocking(move || spawn(&program, &id, messages))
        .await
        .map_err(|_| MonitorError::Gone)?
        .map_err(MonitorError::Spawn)?;
    let (pid, start_time, pidfd) = process;
    let process = Process::watch(pid, start_time, pidfd).map_err(MonitorError::Spawn)?;
    let (sender, notices) = mpsc::unbounded_channel::<Notice>();
    let link = Link::start(ours, sender).map_err(MonitorError::Spawn)?;
    let payload = crisp_sys::fd::sealed_memfd("plan", &plan)
        .map_err(|error| MonitorError::Spawn(error.into()))?;
    let mut table: Vec<BorrowedFd<'_>> = vec![payload.as_fd(), directory.as_fd()];
    table.extend(descriptors.iter().map(AsFd::as_fd));
    let answer = link.call(Request::Create(request), &table).await;
    let failed = match answer {
        Ok(answer) => match answer.reply {
            Reply::Created { pid, start_time } => {
                let init = Init { pid, start_time };
                let monitor = Monitor { link, process };
                return Ok(Launched {
                    monitor,
                    init,
                    notices,
                });
            }
            other => MonitorError::refused(other),
        },
        Err(error) => error,
    };
    link.close();
    process.kill(super::KILL_LIMIT).await;
    Err(failed)
}

type Spawned = (OwnedFd, (i32, u64, OwnedFd));

fn spawn(program: &OwnedFd, id: &ContainerId, messages: File) -> io::Result<Spawned> {
    let (ours, theirs) = crisp_sys::socket::seqpacket_pair()?;
    // The path is looked up by the child before its descriptors close, so the descriptor can stay
    // close-on-exec. No pre_exec: the standard library then spawns without copying our memory.
    let child = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
        .arg0("conmon-rs")
        .arg(id.as_str())
        .env_clear()
        .current_dir("/")
        .stdin(theirs)
        .stdout(Stdio::null())
        .stderr(messages)
        .spawn()?;
    let pid = i32::try_from(child.id()).expect("process numbers fit in an i32");
    // Nobody else reaps our children, so the number still means this child.
    let pidfd = crisp_sys::pidfd::open(pid)?;
    let start_time = crisp_sys::pidfd::start_time(pid)?;
    Ok((ours, (pid, start_time, pidfd)))
}
