//! User namespaces as the daemon deals with them: their maps, the namespace of a pod, namespaces that
//! only translate owners of a volume, and whether this host can do any of it.
//!
//! A thread of the daemon can make none (EINVAL for processes with threads), so that is pause's part;
//! the maps are written here, by the host's root, which leaves setgroups(2) allowed inside. All of it
//! may block.

mod maps;
mod probe;

use std::{
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::{Child, Command, Stdio},
    time::Duration,
};

use crisp_pause::{MAX_FRAME, PROGRAM_NAME, Reply, Request};
use crisp_sys::{event, pidfd, socket};

pub use maps::IdMaps;
pub use probe::probe;

use crate::{
    error::{Classify, ErrorKind},
    snapshot::overlay::OverlayError,
};

/// How long the helper may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
const POLLIN: i16 = 1;

/// Why there is no user namespace.
#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    /// A map could not be written.
    #[error("cannot write {file} of process {pid}: {text:?}")]
    Map {
        /// Which file.
        file: &'static str,
        /// Whose.
        pid: u32,
        /// What was to be written.
        text: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The helper could not be started.
    #[error("cannot start the helper that makes a user namespace")]
    Spawn(#[source] io::Error),
    /// The helper's socket failed.
    #[error("cannot talk to the helper that makes a user namespace")]
    Talk(#[source] crisp_sys::Error),
    /// The helper could not make one.
    #[error("cannot make a user namespace: {0}")]
    Refused(String),
    /// A namespace cannot be opened.
    #[error("cannot open the user namespace of process {pid}")]
    Open {
        /// Whose.
        pid: i32,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A directory for trying it out cannot be made.
    #[error("cannot make a directory to try user namespaces in")]
    Directory(#[source] io::Error),
    /// A root file system with translated owners cannot be made.
    #[error("root file systems cannot have translated owners")]
    Rootfs(#[source] OverlayError),
    /// One was made, and shows something else.
    #[error("a file of root belongs to user {seen} and not {wanted} when translated")]
    Owner {
        /// Who.
        seen: u32,
        /// Who it should be.
        wanted: u32,
    },
}

impl Classify for UsersError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Map { source, .. } if source.raw_os_error() == Some(libc::EINVAL) => {
                ErrorKind::InvalidArgument
            }
            _ => ErrorKind::Internal,
        }
    }
}

/// Makes a namespace that translates owners and holds no process.
///
/// # Errors
/// Any [`UsersError`]; then nothing is left.
pub fn make(program: &OwnedFd, maps: &IdMaps) -> Result<OwnedFd, UsersError> {
    let (ours, theirs) = socket::seqpacket_pair().map_err(UsersError::Talk)?;
    let mut child = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
        .arg0(PROGRAM_NAME)
        .arg("user-namespace")
        .env_clear()
        .current_dir("/")
        .stdin(theirs)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(UsersError::Spawn)?;
    let made = converse(&ours, &child, maps);
    child.kill().ok();
    child.wait().ok();
    made
}

fn converse(control: &OwnedFd, helper: &Child, maps: &IdMaps) -> Result<OwnedFd, UsersError> {
    let request = Request {
        user: true,
        ..Request::default()
    };
    socket::send_with_fds(control.as_fd(), &request.encode(), &[]).map_err(UsersError::Talk)?;
    if !event::poll(control.as_fd(), POLLIN, Some(ANSWER_LIMIT)).map_err(UsersError::Talk)? {
        return Err(UsersError::Refused("no answer in time".to_owned()));
    }
    let mut frame = vec![0; MAX_FRAME];
    let (length, _) =
        socket::recv_with_fds(control.as_fd(), &mut frame, 0).map_err(UsersError::Talk)?;
    match Reply::decode(&frame[..length]) {
        Ok(Reply::Unmapped) => {
            maps.write(helper.id())?;
            open(helper.id().cast_signed())
        }
        Ok(Reply::Failed { stage, message, .. }) => {
            Err(UsersError::Refused(format!("{stage}: {message}")))
        }
        _ => Err(UsersError::Refused("it ended early".to_owned())),
    }
}

fn open(pid: i32) -> Result<OwnedFd, UsersError> {
    fs::File::open(format!("/proc/{pid}/ns/user"))
        .map(OwnedFd::from)
        .map_err(|source| UsersError::Open { pid, source })
}

/// The namespace of a process that is named by number and descriptor: a number alone may be
/// recycled.
///
/// # Errors
/// [`UsersError::Open`] also when the process has ended.
pub fn of_process(pid: i32, process: &OwnedFd) -> Result<OwnedFd, UsersError> {
    let namespace = open(pid)?;
    pidfd::send_signal(process.as_fd(), 0).map_err(|source| UsersError::Open {
        pid,
        source: source.into(),
    })?;
    Ok(namespace)
}
