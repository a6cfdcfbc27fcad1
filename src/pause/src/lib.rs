//! What the daemon tells a pause and what it answers: frames over the pause's standard input.
//!
//! ```text
//! daemon                                   pause
//!   Request                       ->
//!                                 <-  Reply::Unmapped, if it is to make a user namespace
//!   MAPPED, once it has its maps  ->
//!                                 <-  Reply::Held { pid } + [pidfd of the holder, network namespace]
//! ```
//! The pause that answers is not always the one that was started: for a shared PID namespace it
//! clones itself into it as PID 1, a sibling of its own, and the first one ends.
#![forbid(unsafe_code)]

use crisp_oci::tlv::{Reader, TlvError, Writer};

/// Largest frame, in bytes.
pub const MAX_FRAME: usize = 64 * 1024;
/// The name that a pause's command line begins with; the sandbox's id follows.
pub const PROGRAM_NAME: &str = "crisp-pause";

/// What the daemon says once it has written the maps of a pause's user namespace.
pub const MAPPED: &[u8] = b"mapped";

/// The namespaces of a pod and what belongs into them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// First make a user namespace, which then owns the others, and wait until it has its maps.
    pub user: bool,
    /// Make a network namespace and set its loopback up.
    pub network: bool,
    /// Make a namespace of System V IPC and POSIX queues.
    pub ipc: bool,
    /// Make a namespace for the host name.
    pub uts: bool,
    /// Make a PID namespace and be PID 1 in it.
    pub pid: bool,
    /// Host name to set.
    pub hostname: Option<String>,
    /// Kernel parameters as (path below /proc/sys with slashes, value).
    pub sysctls: Vec<(String, String)>,
    /// Files to write `0` to in order to join the pause's cgroup.
    pub cgroup_files: Vec<String>,
    /// `oom_score_adj` to ask for; what the kernel refuses is left.
    pub oom_score_adj: i32,
}

/// What the pause answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Its user namespace exists and has no maps yet.
    Unmapped,
    /// The namespaces exist and this process holds them.
    Held {
        /// As the daemon sees it.
        pid: i32,
    },
    /// They could not be made; nothing is left.
    Failed {
        /// The step.
        stage: String,
        /// What happened, for people.
        message: String,
        /// The kernel's error number.
        errno: i32,
    },
}

/// Why a frame is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Its bytes do not follow the encoding.
    #[error("malformed frame")]
    Malformed(#[from] TlvError),
    /// A field that must be there is not.
    #[error("frame without {0}")]
    Absent(&'static str),
}

// Tags of a request. Never reused: a pause may be of another release than the daemon.
const NETWORK: u16 = 1;
const IPC: u16 = 2;
const UTS: u16 = 3;
const PID: u16 = 4;
const HOSTNAME: u16 = 5;
const SYSCTL: u16 = 6;
const SYSCTL_KEY: u16 = 1;
const SYSCTL_VALUE: u16 = 2;
const CGROUP_FILE: u16 = 7;
const OOM_SCORE_ADJ: u16 = 8;
const USER: u16 = 9;
// Tags of a reply.
const HELD_PID: u16 = 1;
const STAGE: u16 = 2;
const MESSAGE: u16 = 3;
const ERRNO: u16 = 4;
const UNMAPPED: u16 = 5;

impl Request {
    /// Whether the kernel parameter at `key` (below /proc/sys) belongs to a namespace that this
    /// request makes. All others are the host's. The daemon refuses them earlier and with more
    /// words; this is the last look before the write.
    #[must_use]
    pub fn may_set(&self, key: &str) -> bool {
        let plain = |part: &str| {
            let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':');
            !part.is_empty() && part != "." && part != ".." && part.chars().all(legal)
        };
        let mut parts = key.split('/');
        if !parts.clone().all(plain) {
            return false;
        }
        match (parts.next(), parts.next(), parts.next()) {
            (Some("net"), Some(_), _) => self.network,
            (Some("fs"), Some("mqueue"), Some(_)) => self.ipc,
            (Some("kernel"), Some(name), None) => {
                self.ipc && (name == "sem" || name.starts_with("shm") || name.starts_with("msg"))
            }
            _ => false,
        }
    }

    /// The frame.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.put_bool(NETWORK, self.network);
        writer.put_bool(IPC, self.ipc);
        writer.put_bool(UTS, self.uts);
        writer.put_bool(PID, self.pid);
        if self.user {
            writer.put_bool(USER, true);
        }
        if let Some(hostname) = &self.hostname {
            writer.put_str(HOSTNAME, hostname);
        }
        for (key, value) in &self.sysctls {
            writer.put_group(SYSCTL, |pair| {
                pair.put_str(SYSCTL_KEY, key);
                pair.put_str(SYSCTL_VALUE, value);
            });
        }
        for file in &self.cgroup_files {
            writer.put_str(CGROUP_FILE, file);
        }
        writer.put_i64(OOM_SCORE_ADJ, i64::from(self.oom_score_adj));
        writer.into_bytes()
    }

    /// Reads a frame; what is unknown is skipped.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, FrameError> {
        let mut request = Self::default();
        for record in Reader::new(bytes)? {
            let record = record?;
            match record.tag {
                NETWORK => request.network = record.bool()?,
                IPC => request.ipc = record.bool()?,
                UTS => request.uts = record.bool()?,
                PID => request.pid = record.bool()?,
                HOSTNAME => request.hostname = Some(record.str()?.to_owned()),
                SYSCTL => request.sysctls.push(sysctl(record.group()?)?),
                CGROUP_FILE => request.cgroup_files.push(record.str()?.to_owned()),
                USER => request.user = record.bool()?,
                OOM_SCORE_ADJ => request.oom_score_adj = record.signed()?,
                _ => {}
            }
        }
        Ok(request)
    }
}

fn sysctl(pair: Reader<'_>) -> Result<(String, String), FrameError> {
    let (mut key, mut value) = (None, None);
    for record in pair {
        let record = record?;
        match record.tag {
            SYSCTL_KEY => key = Some(record.str()?.to_owned()),
            SYSCTL_VALUE => value = Some(record.str()?.to_owned()),
            _ => {}
        }
    }
    Ok((
        key.ok_or(FrameError::Absent("sysctl key"))?,
        value.unwrap_or_default(),
    ))
}

impl Reply {
    /// The frame.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        match self {
            Self::Unmapped => writer.put_bool(UNMAPPED, true),
            Self::Held { pid } => writer.put_i64(HELD_PID, i64::from(*pid)),
            Self::Failed {
                stage,
                message,
                errno,
            } => {
                writer.put_str(STAGE, stage);
                writer.put_str(MESSAGE, message);
                writer.put_i64(ERRNO, i64::from(*errno));
            }
        }
        writer.into_bytes()
    }

    /// Reads a frame; what is unknown is skipped.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, FrameError> {
        let (mut pid, mut stage, mut message, mut errno) = (None, None, String::new(), 0);
        let mut unmapped = false;
        for record in Reader::new(bytes)? {
            let record = record?;
            match record.tag {
                HELD_PID => pid = Some(record.signed()?),
                STAGE => stage = Some(record.str()?.to_owned()),
                MESSAGE => message = record.str()?.to_owned(),
                ERRNO => errno = record.signed()?,
                UNMAPPED => unmapped = record.bool()?,
                _ => {}
            }
        }
        match (pid, stage) {
            (_, Some(stage)) => Ok(Self::Failed {
                stage,
                message,
                errno,
            }),
            (Some(pid), None) => Ok(Self::Held { pid }),
            (None, None) if unmapped => Ok(Self::Unmapped),
            (None, None) => Err(FrameError::Absent("process number")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_as_they_were() {
        let request = Request {
            user: true,
            network: true,
            ipc: true,
            uts: false,
            pid: true,
            hostname: Some("pod".to_owned()),
            sysctls: vec![("kernel/shm_rmid_forced".to_owned(), "1".to_owned())],
            cgroup_files: vec!["/sys/fs/cgroup/cpu/x/tasks".to_owned()],
            oom_score_adj: -998,
        };
        assert_eq!(Request::decode(&request.encode()), Ok(request));
        let failed = Reply::Failed {
            stage: "unshare".to_owned(),
            message: "no".to_owned(),
            errno: 28,
        };
        for reply in [Reply::Held { pid: 7 }, Reply::Unmapped, failed] {
            assert_eq!(Reply::decode(&reply.encode()), Ok(reply));
        }
        assert!(Reply::decode(&[]).is_err());
    }

    #[test]
    fn the_frames_of_this_release_stay_readable() {
        // A pause of this release answered so; later daemons must understand it.
        let golden = [1, 0, 8, 0, 0, 0, 42, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(Reply::decode(&golden), Ok(Reply::Held { pid: 42 }));
        assert_eq!(Reply::Held { pid: 42 }.encode(), golden);
    }
}
