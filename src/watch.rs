//! Waiting for changes in directories that may not exist yet.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, RawFd},
    path::{Path, PathBuf},
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::{Interest, unix::AsyncFd};

/// Changes from the moment it is made; to be made anew for every round, before what it watches is
/// read, so that nothing falls between the two.
pub struct Changes(Option<AsyncFd<Instance>>);

struct Instance(Inotify);

impl AsRawFd for Instance {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Changes {
    /// In a directory.
    #[must_use]
    pub fn of(dir: &Path) -> Self {
        Self::in_any(&[dir.to_owned()])
    }

    /// In any of these directories. Without inotify (limits used up) there are none, and who waits
    /// must look again by himself from time to time.
    #[must_use]
    pub fn in_any(dirs: &[PathBuf]) -> Self {
        let watched = watch(dirs);
        if let Err(error) = &watched {
            tracing::debug!(?dirs, %error, "no inotify watch, relying on the tick");
        }
        Self(watched.ok())
    }

    /// Waits for the first one.
    pub async fn first(&self) {
        match &self.0 {
            Some(instance) => {
                if instance.readable().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
            None => std::future::pending().await,
        }
    }
}

fn watch(dirs: &[PathBuf]) -> io::Result<AsyncFd<Instance>> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    // Those that exist last: one of them may be the ancestor of a missing one, and the last word on
    // a directory counts.
    let (there, missing): (Vec<&PathBuf>, Vec<&PathBuf>) =
        dirs.iter().partition(|dir| dir.exists());
    for dir in missing.into_iter().chain(there) {
        watch_nearest(&inotify, dir)?;
    }
    #[expect(
        deprecated,
        reason = "its successor is unsafe, and this value owns its descriptor for as long as it lives"
    )]
    let watched = AsyncFd::with_interest(Instance(inotify), Interest::READABLE)?;
    Ok(watched)
}

/// While a directory is missing, its nearest ancestor that exists is watched.
fn watch_nearest(inotify: &Inotify, dir: &Path) -> io::Result<()> {
    let content = AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF
        | AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_ATTRIB;
    // Here only the appearance of the directory's path matters.
    let appearance = AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF;
    let mut result = inotify.add_watch(dir, content);
    for ancestor in dir.ancestors().skip(1) {
        if result != Err(nix::Error::ENOENT) {
            break;
        }
        result = inotify.add_watch(ancestor, appearance);
    }
    result?;
    Ok(())
}
