//! What can go wrong with a control group.

use std::io;
use std::path::PathBuf;

use super::setting::ResourceError;

/// A failed operation on a control group.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The mounts cannot be read.
    #[error("cannot look for control groups in {path}")]
    Probe {
        /// The file of mounts.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No control groups are mounted.
    #[error("no control group hierarchy is mounted")]
    NoHierarchy,
    /// Not a path of a group.
    #[error("cgroup path {path:?} is not usable: {why}")]
    Path {
        /// As given.
        path: String,
        /// The rule it breaks.
        why: &'static str,
    },
    /// A directory cannot be made.
    #[error("cannot make cgroup {path}")]
    Make {
        /// Which directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The group is in use by somebody else.
    #[error("cgroup {path} already has processes in it")]
    Occupied {
        /// Which directory.
        path: PathBuf,
    },
    /// The resources make no sense.
    #[error("cannot express the resources")]
    Resources(#[source] ResourceError),
    /// A limit cannot be set.
    #[error("cannot write {value:?} to {path}")]
    Set {
        /// The control file.
        path: PathBuf,
        /// What was to be written.
        value: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A limit cannot be set because nothing on this host can hold it.
    #[error("cannot set {file}: the controller {controller} is not available")]
    NoController {
        /// Its name.
        controller: String,
        /// The control file.
        file: String,
    },
    /// The new limit is below what is in use, and the caller asked to be told.
    #[error("memory limit {limit} is below the {usage} bytes in use")]
    MemoryInUse {
        /// The limit asked for.
        limit: i64,
        /// What is in use.
        usage: u64,
    },
    /// A limit could not be set, and what was set before it could not be taken back.
    #[error("{error}; and {path} could not be set back to {value:?}")]
    Rollback {
        /// What failed first.
        error: Box<CgroupError>,
        /// What could not be set back.
        path: PathBuf,
        /// The earlier value.
        value: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The device policy cannot be enforced, so nothing may run here.
    #[error(
        "cannot enforce a device policy: neither the devices controller nor cgroup v2 is there"
    )]
    NoDevicePolicy,
    /// The device program cannot be loaded or attached.
    #[error("cannot set the device policy of {path}")]
    Devices {
        /// Which directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: crisp_sys::Error,
    },
    /// A control file cannot be opened.
    #[error("cannot open {path}")]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A control file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A control file says something else than it should.
    #[error("cannot make sense of {path}")]
    Parse {
        /// Which.
        path: PathBuf,
    },
    /// Processes cannot be killed.
    #[error("cannot kill the processes of {path}")]
    Kill {
        /// Which directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Neither a freezer nor cgroup v2.
    #[error("cannot freeze: neither the freezer controller nor cgroup v2 is there")]
    NoFreezer,
    /// Freezing took too long.
    #[error("{path} did not freeze within {seconds} s")]
    FreezeTimeout {
        /// Which directory.
        path: PathBuf,
        /// The limit.
        seconds: u64,
    },
    /// Neither the memory controller nor its events.
    #[error("cannot watch for kills by lack of memory")]
    NoOomEvents,
    /// An event descriptor cannot be made.
    #[error("cannot make an event descriptor")]
    Event(#[source] crisp_sys::Error),
    /// A directory cannot be removed.
    #[error("cannot remove cgroup {path}")]
    Remove {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Why a process could not move itself. Plain data: it is made where nothing may allocate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// The group was opened only to be looked at.
    #[error("the cgroup was not prepared for joining")]
    NotPrepared,
    /// The kernel refused.
    #[error("cannot join tree {tree} of the cgroup: errno {errno}")]
    Refused {
        /// Which of the host's trees, in the order of [`Hierarchy`](super::Hierarchy).
        tree: usize,
        /// Why.
        errno: i32,
    },
}
