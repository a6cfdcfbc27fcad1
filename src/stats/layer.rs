//! How much a container has written: a walk over its writable layer, done beside the requests.
//!
//! A request gets what the last walk found. If that is old, a new walk is asked for; one thread does
//! them one after the other, rests in between, and looks at no layer again before some time has
//! passed. Only a layer that nobody has looked at yet is looked at by the request itself, and only
//! as far as a small one goes.

use std::{
    collections::HashSet,
    ffi::CString,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat},
    sys::stat::{Mode, SFlag, fstat, fstatat},
};

use crate::clock;

/// How old a figure may be before it is measured again.
const FRESH: Duration = Duration::from_secs(10);
/// A layer is looked at again after this many times what the last look took, so that a huge one
/// costs at most that part of the disk's time.
const PATIENCE: u32 = 50;
/// Of the time between two walks the thread rests this many times what the first took.
const REST: u32 = 4;
/// The longest rest.
const LONGEST_REST: Duration = Duration::from_secs(5);
/// Where a walk ends that never would.
const WALK_LIMIT: Duration = Duration::from_secs(60);
/// What a request looks at by itself: entries.
const GLANCE: u64 = 128;
/// Descriptors a walk holds; what lies deeper is walked from the top again.
const MAX_DEPTH: usize = 32;
const DIR_FLAGS: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);

/// What a writable layer takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LayerUsage {
    /// When it was measured, nanoseconds since the epoch.
    pub at: i64,
    /// Bytes on disk.
    pub bytes: u64,
    /// Files, directories and all else.
    pub inodes: u64,
}

/// A writable layer and what is known of it.
#[derive(Debug, Default)]
pub struct Layer {
    known: ArcSwapOption<Known>,
    awaited: AtomicBool,
}

#[derive(Debug)]
struct Known {
    usage: LayerUsage,
    /// Until when nobody need look again.
    until: Instant,
}

/// The thread that walks.
#[derive(Debug, Default)]
pub struct Surveyor {
    jobs: OnceLock<mpsc::Sender<(Arc<Layer>, PathBuf)>>,
}

impl Layer {
    /// What the layer at `path` takes, as far as is known. Blocks for a moment at most.
    pub fn usage(self: &Arc<Self>, path: &Path, surveyor: &Surveyor) -> Option<LayerUsage> {
        if self.known.load().is_none() {
            self.look(path, Bounds::glance());
        }
        let known = self.known.load_full()?;
        if known.until <= Instant::now() && !self.awaited.swap(true, Ordering::Relaxed) {
            surveyor.ask(Arc::clone(self), path);
        }
        Some(known.usage)
    }

    /// Walks, and keeps what was found. What is gone keeps its last figures.
    fn look(&self, path: &Path, bounds: Bounds) {
        let begun = Instant::now();
        match walk(path, bounds) {
            Ok(walked) => {
                let wait = FRESH.max(begun.elapsed().saturating_mul(PATIENCE));
                let until = match walked.whole || bounds.entries == u64::MAX {
                    true => begun + wait,
                    false => begun,
                };
                if !walked.whole && bounds.entries == u64::MAX {
                    tracing::warn!(path = %path.display(), "writable layer is too large to be measured, what was counted is told");
                }
                let usage = LayerUsage {
                    at: clock::now_ns(),
                    ..walked.usage
                };
                self.known.store(Some(Arc::new(Known { usage, until })));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "cannot measure a layer");
            }
        }
    }
}

impl Surveyor {
    fn ask(&self, layer: Arc<Layer>, path: &Path) {
        let jobs = self.jobs.get_or_init(|| {
            let (jobs, todo) = mpsc::channel();
            let started = std::thread::Builder::new()
                .name("layers".to_owned())
                .spawn(move || survey(&todo));
            if let Err(error) = started {
                tracing::warn!(%error, "writable layers cannot be measured");
            }
            jobs
        });
        // Without the thread figures stay what they are.
        jobs.send((layer, path.to_owned())).ok();
    }
}

fn survey(todo: &mpsc::Receiver<(Arc<Layer>, PathBuf)>) {
    while let Ok((layer, path)) = todo.recv() {
        let begun = Instant::now();
        layer.look(&path, Bounds::whole());
        layer.awaited.store(false, Ordering::Relaxed);
        drop(layer);
        std::thread::sleep(begun.elapsed().saturating_mul(REST).min(LONGEST_REST));
    }
}

/// Where a walk ends.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    entries: u64,
    deadline: Instant,
}

impl Bounds {
    fn whole() -> Self {
        Self {
            entries: u64::MAX,
            deadline: Instant::now() + WALK_LIMIT,
        }
    }

    fn glance() -> Self {
        Self {
            entries: GLANCE,
            ..Self::whole()
        }
    }
}

struct Walked {
    usage: LayerUsage,
    /// Whether everything was counted.
    whole: bool,
}

struct Walk {
    bounds: Bounds,
    device: u64,
    usage: LayerUsage,
    /// Files with several names, which count once.
    linked: HashSet<u64>,
    /// Directories too deep to be reached with the descriptors held, by their names from the top.
    deep: Vec<Vec<CString>>,
}

/// Counts what is below `top`, `top` included. Nothing is followed out of it: the container may be
/// writing there as we go.
fn walk(top: &Path, bounds: Bounds) -> io::Result<Walked> {
    let root = openat(nix::fcntl::AT_FDCWD, top, DIR_FLAGS, Mode::empty())?;
    let stat = fstat(&root)?;
    let mut walk = Walk {
        bounds,
        device: stat.st_dev,
        usage: LayerUsage {
            at: 0,
            bytes: blocks(stat.st_blocks),
            inodes: 1,
        },
        linked: HashSet::new(),
        deep: vec![Vec::new()],
    };
    while let Some(mut path) = walk.deep.pop() {
        let Some(directory) = descend(root.as_fd(), &path)? else {
            continue;
        };
        if !walk.directory(directory, &mut path, 0)? {
            return Ok(Walked {
                usage: walk.usage,
                whole: false,
            });
        }
    }
    Ok(Walked {
        usage: walk.usage,
        whole: true,
    })
}

fn blocks(count: i64) -> u64 {
    u64::try_from(count).unwrap_or(0) * 512
}

fn descend(root: BorrowedFd<'_>, path: &[CString]) -> io::Result<Option<OwnedFd>> {
    let mut at = openat(root, ".", DIR_FLAGS, Mode::empty())?;
    for name in path {
        at = match openat(&at, name.as_c_str(), DIR_FLAGS, Mode::empty()) {
            Ok(below) => below,
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
    }
    Ok(Some(at))
}

impl Walk {
    /// Counts what is in a directory and below. False when the bounds are reached.
    fn directory(
        &mut self,
        directory: OwnedFd,
        path: &mut Vec<CString>,
        depth: usize,
    ) -> io::Result<bool> {
        let mut list = Dir::from_fd(openat(&directory, ".", DIR_FLAGS, Mode::empty())?)?;
        for entry in list.iter() {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let stat = match fstatat(&directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::ENOENT) => continue,
                Err(errno) => return Err(errno.into()),
            };
            if stat.st_dev != self.device {
                continue;
            }
            if self.usage.inodes >= self.bounds.entries || Instant::now() > self.bounds.deadline {
                return Ok(false);
            }
            let is_dir = stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits();
            if is_dir || stat.st_nlink < 2 || self.linked.insert(stat.st_ino) {
                self.usage.inodes += 1;
                self.usage.bytes += blocks(stat.st_blocks);
            }
            if !is_dir {
                continue;
            }
            path.push(name.to_owned());
            if depth == MAX_DEPTH {
                self.deep.push(path.clone());
            } else {
                match openat(&directory, name, DIR_FLAGS, Mode::empty()) {
                    Ok(below) => {
                        if !self.directory(below, path, depth + 1)? {
                            return Ok(false);
                        }
                    }
                    Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            path.pop();
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn counted(top: &Path, bounds: Bounds) -> (LayerUsage, bool) {
        let walked = walk(top, bounds).unwrap();
        (walked.usage, walked.whole)
    }

    #[test]
    fn everything_is_counted_once_and_links_are_not_followed() {
        let scratch = tempfile::tempdir().unwrap();
        let (top, outside) = (scratch.path().join("upper"), scratch.path().join("outside"));
        fs::create_dir_all(top.join("a/b")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("big"), vec![1; 1 << 20]).unwrap();
        fs::write(top.join("a/file"), vec![1; 64 << 10]).unwrap();
        fs::hard_link(top.join("a/file"), top.join("a/b/same")).unwrap();
        std::os::unix::fs::symlink(&outside, top.join("out")).unwrap();
        let (usage, whole) = counted(&top, Bounds::whole());
        // upper, a, b, the file, the link.
        assert_eq!((usage.inodes, whole), (5, true));
        assert!(
            (64 << 10..128 << 10).contains(&usage.bytes),
            "{}",
            usage.bytes
        );
    }

    #[test]
    fn a_tree_deeper_than_the_descriptors_is_counted_whole() {
        let scratch = tempfile::tempdir().unwrap();
        let mut at = scratch.path().join("upper");
        fs::create_dir(&at).unwrap();
        let top = at.clone();
        for _ in 0..MAX_DEPTH * 3 {
            at.push("d");
            fs::create_dir(&at).unwrap();
        }
        let (usage, whole) = counted(&top, Bounds::whole());
        assert_eq!((usage.inodes, whole), (MAX_DEPTH as u64 * 3 + 1, true));
    }

    #[test]
    fn a_glance_at_a_large_layer_is_followed_by_a_walk() {
        let scratch = tempfile::tempdir().unwrap();
        for name in 0..GLANCE + 10 {
            fs::write(scratch.path().join(name.to_string()), "").unwrap();
        }
        let (layer, surveyor) = (Arc::new(Layer::default()), Surveyor::default());
        let first = layer.usage(scratch.path(), &surveyor).unwrap();
        assert_eq!(first.inodes, GLANCE);
        let deadline = Instant::now() + Duration::from_secs(10);
        while layer.usage(scratch.path(), &surveyor).unwrap().inodes != GLANCE + 11 {
            assert!(Instant::now() < deadline, "the walk never came");
            std::thread::yield_now();
        }
        let gone = Arc::new(Layer::default());
        assert_eq!(gone.usage(&scratch.path().join("none"), &surveyor), None);
    }
}
