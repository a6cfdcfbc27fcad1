//! The applier proper: entries become files below one directory descriptor.
//!
//! Every path is walked component by component with O_NOFOLLOW. A symbolic link inside the layer
//! that an entry's parent path runs through is followed by us, within the layer, as a container
//! would. `..` in an entry's name is refused. Whiteouts become what overlayfs reads: a character
//! device 0:0, or (reported, set by the daemon) an opaque directory.

mod attributes;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs::File,
    io::{self, BufRead, Seek, SeekFrom, Write},
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
    time::Instant,
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat, readlinkat},
    sys::{
        stat::{
            FileStat, Mode, SFlag, UtimensatFlags, fchmod, fstatat, futimens, makedev, mkdirat,
            mknodat, umask, utimensat,
        },
        statvfs::fstatvfs,
        time::TimeSpec,
    },
    unistd::{UnlinkatFlags, linkat, symlinkat, unlinkat},
};

use super::{
    Applied, Failure, Limits, RootAttributes,
    archive::{Archive, Entry, Kind, shown},
};
use crate::snapshot::removal;

const MAX_NAME: usize = 255;
/// A little below the kernel's limit, so that whoever walks the tree can put something before it.
const MAX_PATH: usize = 4000;
const MAX_LINKS: u32 = 40;
/// Directories whose times must be remembered until the end.
const MAX_DIRECTORIES: usize = 2_000_000;
/// Paths in the report.
const MAX_REPORTED: usize = 100_000;
const BLOCK: u64 = 4096;
const SPACE_CHECK: u64 = 64 << 20;

/// A directory below the root and its real path there.
struct Dir {
    fd: OwnedFd,
    path: Vec<u8>,
}

/// The directory being filled.
pub struct Tree {
    root: Rc<Dir>,
    limits: Limits,
    deadline: Instant,
    applied: Applied,
    /// The parent of the last entry, by the path the entry wrote.
    cached: Option<(Vec<u8>, Rc<Dir>)>,
    /// Modification times to set at the end.
    times: BTreeMap<Vec<u8>, (i64, u32)>,
    implied: BTreeSet<Vec<u8>>,
    opaque: BTreeSet<Vec<u8>>,
    /// Opaque because the layer hides the old directory of this name: nothing is inherited.
    fresh: BTreeSet<Vec<u8>>,
    since_check: u64,
}

fn failed<'a>(action: &'a str, path: &'a [u8]) -> impl Fn(Errno) -> Failure + 'a {
    move |errno| {
        Failure::system(
            &format!("{action} {}", shown(path)),
            &io::Error::from(errno),
        )
    }
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() {
        name.to_vec()
    } else {
        [dir, b"/", name].concat()
    }
}

fn is_dir(stat: &FileStat) -> bool {
    stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits()
}

fn is_whiteout(stat: &FileStat) -> bool {
    stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFCHR.bits() && stat.st_rdev == 0
}

/// The components of an entry's name: empty ones and `.` vanish, a leading slash means the root.
fn components(path: &[u8]) -> Result<Vec<&[u8]>, Failure> {
    let parts: Vec<&[u8]> = path
        .split(|byte| *byte == b'/')
        .filter(|part| !matches!(*part, b"" | b"."))
        .collect();
    for part in &parts {
        if *part == b".." {
            return Err(Failure::refused(format!("{} leads upwards", shown(path))));
        }
        if part.len() > MAX_NAME {
            return Err(Failure::limit(format!(
                "{}... is longer than 255 bytes",
                shown(part)
            )));
        }
    }
    Ok(parts)
}

const DIR_FLAGS: OFlag = OFlag::O_PATH
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);

impl Tree {
    /// Fills the empty directory `root`.
    ///
    /// # Errors
    /// [`Failure`] if the root cannot be used.
    pub fn new(root: OwnedFd, limits: Limits, deadline: Instant) -> Result<Self, Failure> {
        umask(Mode::empty()); // modes are those of the archive
        fchmod(&root, Mode::from_bits_truncate(0o755)).map_err(failed("chmod", b"/"))?;
        Ok(Self {
            root: Rc::new(Dir {
                fd: root,
                path: Vec::new(),
            }),
            limits,
            deadline,
            applied: Applied {
                sha256: String::new(),
                entries: 0,
                bytes: 0,
                disk_bytes: BLOCK,
                implied: Vec::new(),
                opaque: Vec::new(),
                opaque_root: false,
                root: None,
                stripped_xattrs: 0,
                skipped_aufs: 0,
                landlock: false,
            },
            cached: None,
            times: BTreeMap::new(),
            implied: BTreeSet::new(),
            opaque: BTreeSet::new(),
            fresh: BTreeSet::new(),
            since_check: 0,
        })
    }

    /// Applies one entry; a file's content is taken from `archive`.
    ///
    /// # Errors
    /// [`Failure`]: the whole layer is to be thrown away then.
    pub fn apply<R: BufRead>(
        &mut self,
        entry: &Entry,
        archive: &mut Archive<'_, R>,
    ) -> Result<(), Failure> {
        self.count(entry)?;
        let parts = components(&entry.path)?;
        let Some((name, parents)) = parts.split_last() else {
            return self.root_entry(entry);
        };
        if let Some(mark) = parents.iter().find(|part| part.starts_with(b".wh.")) {
            if mark.starts_with(b".wh..wh.") {
                self.applied.skipped_aufs += 1;
                return Ok(());
            }
            return Err(Failure::refused(format!(
                "{} lies below a whiteout",
                shown(&entry.path)
            )));
        }
        let parent = self.parent(parents)?;
        let path = join(&parent.path, name);
        if path.len() > MAX_PATH {
            return Err(Failure::limit(format!("{}... is too deep", shown(&path))));
        }
        if let Some(hidden) = name.strip_prefix(b".wh.") {
            return self.whiteout(&parent, hidden, &entry.path);
        }
        match entry.kind {
            Kind::File => self.file(&parent, name, &path, entry, archive)?,
            Kind::Directory => self.directory(&parent, name, &path, entry)?,
            Kind::HardLink => self.hard_link(&parent, name, &path, entry)?,
            Kind::Symlink => self.symlink(&parent, name, &path, entry)?,
            Kind::Char | Kind::Block | Kind::Fifo => self.node(&parent, name, &path, entry)?,
        }
        Ok(())
    }

    fn count(&mut self, entry: &Entry) -> Result<(), Failure> {
        self.applied.entries += 1;
        if self.applied.entries > self.limits.max_entries {
            let limit = self.limits.max_entries;
            return Err(Failure::limit(format!(
                "the layer has more than {limit} entries"
            )));
        }
        if entry.size > self.limits.max_bytes {
            return Err(Failure::limit(format!(
                "{} claims {} bytes, at most {} are allowed",
                shown(&entry.path),
                entry.size,
                self.limits.max_bytes
            )));
        }
        if self.applied.entries.is_multiple_of(256) {
            self.check_time()?;
        }
        self.reserve(BLOCK)
    }

    fn check_time(&self) -> Result<(), Failure> {
        if Instant::now() > self.deadline {
            let limit = self.limits.max_seconds;
            return Err(Failure::limit(format!(
                "the layer took more than {limit} s to apply"
            )));
        }
        Ok(())
    }

    /// Looks at the free space once per 64 MiB written.
    fn reserve(&mut self, bytes: u64) -> Result<(), Failure> {
        self.since_check += bytes;
        if self.since_check < SPACE_CHECK {
            return Ok(());
        }
        self.since_check = 0;
        self.check_time()?;
        let stat = fstatvfs(&self.root.fd).map_err(failed("statvfs", b"/"))?;
        let free = stat.blocks_available().saturating_mul(stat.fragment_size());
        if free < self.limits.reserve_bytes {
            return Err(Failure {
                kind: super::FailureKind::NoSpace,
                message: format!(
                    "{free} bytes are free on the image file system, {} must stay",
                    self.limits.reserve_bytes
                ),
            });
        }
        Ok(())
    }

    fn root_entry(&mut self, entry: &Entry) -> Result<(), Failure> {
        if entry.kind != Kind::Directory {
            return Err(Failure::refused("the root of a layer is a directory"));
        }
        self.applied.root = Some(RootAttributes {
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
        });
        let dir = openat(
            &self.root.fd,
            ".",
            OFlag::O_RDONLY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .map_err(failed("open", b"/"))?;
        self.attributes(&dir, entry)?;
        self.times.insert(Vec::new(), entry.mtime);
        Ok(())
    }

    /// The directory for an entry, made where nothing is there yet.
    fn parent(&mut self, parts: &[&[u8]]) -> Result<Rc<Dir>, Failure> {
        if parts.is_empty() {
            return Ok(Rc::clone(&self.root));
        }
        let key = parts.join(&b'/');
        if let Some((cached, dir)) = &self.cached
            && *cached == key
        {
            return Ok(Rc::clone(dir));
        }
        let dir = self.walk(parts, true)?;
        self.cached = Some((key, Rc::clone(&dir)));
        Ok(dir)
    }

    /// Walks from the root, following links of the layer inside the layer.
    fn walk(&mut self, parts: &[&[u8]], make: bool) -> Result<Rc<Dir>, Failure> {
        let mut pending: VecDeque<Vec<u8>> = parts.iter().map(|part| part.to_vec()).collect();
        let mut at = Rc::clone(&self.root);
        let mut links = 0;
        while let Some(part) = pending.pop_front() {
            if part == b".." {
                let up = at
                    .path
                    .rsplitn(2, |byte| *byte == b'/')
                    .nth(1)
                    .unwrap_or(b"")
                    .to_vec();
                let up: Vec<&[u8]> = up
                    .split(|byte| *byte == b'/')
                    .filter(|part| !part.is_empty())
                    .collect();
                at = self.plain_walk(&up)?;
                continue;
            }
            let path = join(&at.path, &part);
            if path.len() > MAX_PATH {
                return Err(Failure::limit(format!("{}... is too deep", shown(&path))));
            }
            let opened = openat(&at.fd, part.as_slice(), DIR_FLAGS, Mode::empty());
            let fd = match opened {
                Ok(fd) => fd,
                Err(Errno::ENOENT) if make => self.imply(&at, &part, &path)?,
                Err(Errno::ENOTDIR | Errno::ELOOP) => {
                    let stat = fstatat(&at.fd, part.as_slice(), AtFlags::AT_SYMLINK_NOFOLLOW)
                        .map_err(failed("stat", &path))?;
                    if is_whiteout(&stat) && make {
                        // Hidden below, and now something new inside: a fresh directory.
                        unlinkat(&at.fd, part.as_slice(), UnlinkatFlags::NoRemoveDir)
                            .map_err(failed("unlink", &path))?;
                        self.hide_below(&path)?;
                        self.fresh.insert(path);
                        pending.push_front(part);
                        continue;
                    }
                    let target = readlinkat(&at.fd, part.as_slice()).map_err(|_| {
                        Failure::refused(format!(
                            "{} is not a directory, but an entry lies below it",
                            shown(&path)
                        ))
                    })?;
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Failure::refused(format!(
                            "{}: too many symbolic links",
                            shown(&path)
                        )));
                    }
                    use std::os::unix::ffi::OsStrExt;
                    let target = target.as_bytes();
                    if target.starts_with(b"/") {
                        at = Rc::clone(&self.root);
                    }
                    let parts: Vec<Vec<u8>> = target
                        .split(|byte| *byte == b'/')
                        .filter(|part| !matches!(*part, b"" | b"."))
                        .map(<[u8]>::to_vec)
                        .collect();
                    for part in parts.into_iter().rev() {
                        pending.push_front(part);
                    }
                    continue;
                }
                Err(errno) => return Err(failed("open", &path)(errno)),
            };
            at = Rc::new(Dir { fd, path });
        }
        Ok(at)
    }

    /// Walks a real path: no links in it.
    fn plain_walk(&self, parts: &[&[u8]]) -> Result<Rc<Dir>, Failure> {
        let mut at = Rc::clone(&self.root);
        for part in parts {
            let path = join(&at.path, part);
            let fd =
                openat(&at.fd, *part, DIR_FLAGS, Mode::empty()).map_err(failed("open", &path))?;
            at = Rc::new(Dir { fd, path });
        }
        Ok(at)
    }

    fn imply(&mut self, at: &Dir, part: &[u8], path: &[u8]) -> Result<OwnedFd, Failure> {
        mkdirat(&at.fd, part, Mode::from_bits_truncate(0o755)).map_err(failed("mkdir", path))?;
        self.reserve(BLOCK)?;
        self.applied.disk_bytes += BLOCK;
        if self.implied.len() == MAX_REPORTED {
            return Err(Failure::limit(format!(
                "more than {MAX_REPORTED} directories have no entry of their own"
            )));
        }
        self.implied.insert(path.to_vec());
        openat(&at.fd, part, DIR_FLAGS, Mode::empty()).map_err(failed("open", path))
    }

    fn hide_below(&mut self, path: &[u8]) -> Result<(), Failure> {
        if path.is_empty() {
            self.applied.opaque_root = true;
            return Ok(());
        }
        if self.opaque.len() == MAX_REPORTED {
            return Err(Failure::limit(format!(
                "more than {MAX_REPORTED} opaque directories"
            )));
        }
        self.opaque.insert(path.to_vec());
        Ok(())
    }

    /// `.wh.NAME` hides NAME of the layers below, never what this layer brings.
    fn whiteout(&mut self, parent: &Rc<Dir>, hidden: &[u8], written: &[u8]) -> Result<(), Failure> {
        if hidden == b".wh..opq" {
            let path = parent.path.clone();
            return self.hide_below(&path);
        }
        if hidden.starts_with(b".wh.") {
            self.applied.skipped_aufs += 1;
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(Failure::refused(format!(
                "{} hides nothing that can be",
                shown(written)
            )));
        }
        let path = join(&parent.path, hidden);
        match fstatat(&parent.fd, hidden, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) if is_dir(&stat) => {
                self.hide_below(&path)?;
                self.fresh.insert(path);
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(Errno::ENOENT) => mknodat(
                &parent.fd,
                hidden,
                SFlag::S_IFCHR,
                Mode::empty(),
                makedev(0, 0),
            )
            .map_err(failed("whiteout", &path)),
            Err(errno) => Err(failed("stat", &path)(errno)),
        }
    }

    /// Takes away what an earlier entry put under this name. Returns whether it was a whiteout.
    fn clear(&mut self, parent: &Dir, name: &[u8], path: &[u8]) -> Result<bool, Failure> {
        let stat = match fstatat(&parent.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::ENOENT) => return Ok(false),
            Err(errno) => return Err(failed("stat", path)(errno)),
        };
        self.cached = None;
        if is_dir(&stat) {
            removal::remove_below(parent.fd.as_fd(), name)
                .map_err(|error| Failure::system(&format!("remove {}", shown(path)), &error))?;
            let below = [path, b"/"].concat();
            let end = [path, b"0"].concat(); // '0' follows '/'
            for set in [&mut self.implied, &mut self.opaque, &mut self.fresh] {
                set.remove(path);
                let gone: Vec<_> = set.range(below.clone()..end.clone()).cloned().collect();
                for path in &gone {
                    set.remove(path);
                }
            }
            self.times.remove(path);
            let gone: Vec<_> = self
                .times
                .range(below..end)
                .map(|(path, _)| path.clone())
                .collect();
            for path in &gone {
                self.times.remove(path);
            }
            return Ok(false);
        }
        unlinkat(&parent.fd, name, UnlinkatFlags::NoRemoveDir).map_err(failed("unlink", path))?;
        Ok(is_whiteout(&stat))
    }

    fn directory(
        &mut self,
        parent: &Dir,
        name: &[u8],
        path: &[u8],
        entry: &Entry,
    ) -> Result<(), Failure> {
        let mode = Mode::from_bits_truncate(0o700);
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let dir = match mkdirat(&parent.fd, name, mode) {
            Ok(()) => {
                self.applied.disk_bytes += BLOCK;
                openat(&parent.fd, name, flags, Mode::empty())
            }
            Err(Errno::EEXIST) => match openat(&parent.fd, name, flags, Mode::empty()) {
                Ok(dir) => Ok(dir),
                Err(_) => {
                    let was_whiteout = self.clear(parent, name, path)?;
                    mkdirat(&parent.fd, name, mode).map_err(failed("mkdir", path))?;
                    if was_whiteout {
                        self.hide_below(path)?;
                    }
                    openat(&parent.fd, name, flags, Mode::empty())
                }
            },
            Err(errno) => Err(errno),
        }
        .map_err(failed("mkdir", path))?;
        self.implied.remove(path);
        if self.times.len() >= MAX_DIRECTORIES {
            return Err(Failure::limit(format!(
                "more than {MAX_DIRECTORIES} directories"
            )));
        }
        self.times.insert(path.to_vec(), entry.mtime);
        self.attributes(&dir, entry)
    }

    fn file<R: BufRead>(
        &mut self,
        parent: &Dir,
        name: &[u8],
        path: &[u8],
        entry: &Entry,
        archive: &mut Archive<'_, R>,
    ) -> Result<(), Failure> {
        let flags =
            OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(0o600);
        let fd = match openat(&parent.fd, name, flags, mode) {
            Err(Errno::EEXIST) => {
                self.clear(parent, name, path)?;
                openat(&parent.fd, name, flags, mode)
            }
            other => other,
        }
        .map_err(failed("create", path))?;
        let mut file = File::from(fd);
        let written = match &entry.segments {
            None => self.copy(&mut file, entry.size, path, archive)?,
            Some(segments) => {
                let mut written = 0;
                for (at, length) in segments {
                    file.seek(SeekFrom::Start(*at))
                        .map_err(|e| Failure::system(&format!("seek {}", shown(path)), &e))?;
                    written += self.copy(&mut file, *length, path, archive)?;
                }
                file.set_len(entry.size)
                    .map_err(|e| Failure::system(&format!("resize {}", shown(path)), &e))?;
                written
            }
        };
        self.applied.bytes += written;
        self.applied.disk_bytes += written.div_ceil(BLOCK) * BLOCK;
        self.attributes(&file, entry)?;
        let time = time_spec(entry.mtime);
        futimens(&file, &time, &time).map_err(failed("set times of", path))
    }

    fn copy<R: BufRead>(
        &mut self,
        file: &mut File,
        length: u64,
        path: &[u8],
        archive: &mut Archive<'_, R>,
    ) -> Result<u64, Failure> {
        let mut left = length;
        while left > 0 {
            let part = archive.data()?;
            if part.is_empty() {
                return Err(Failure::corrupt(format!("{} ends too early", shown(path))));
            }
            let count = part.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            file.write_all(&part[..count])
                .map_err(|error| Failure::system(&format!("write {}", shown(path)), &error))?;
            archive.consume(count);
            left -= count as u64;
            self.reserve(count as u64)?;
        }
        Ok(length)
    }

    /// The target is an earlier entry of this layer, found like every path: inside the layer.
    /// Owner, mode and times stay those of the target (CVE-2021-32760).
    fn hard_link(
        &mut self,
        parent: &Dir,
        name: &[u8],
        path: &[u8],
        entry: &Entry,
    ) -> Result<(), Failure> {
        let refused =
            |why: &str| Failure::refused(format!("hard link {}: {why}", shown(&entry.path)));
        let parts = components(&entry.link)
            .map_err(|_| refused(&format!("its target {} leads outside", shown(&entry.link))))?;
        let Some((target, parents)) = parts.split_last() else {
            return Err(refused("its target is the root"));
        };
        let missing = || {
            refused(&format!(
                "its target {} is not in this layer",
                shown(&entry.link)
            ))
        };
        let from = self.walk(parents, false).map_err(|_| missing())?;
        let stat =
            fstatat(&from.fd, *target, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(|_| missing())?;
        if is_dir(&stat) {
            return Err(refused("its target is a directory"));
        }
        if is_whiteout(&stat) {
            return Err(missing());
        }
        if join(&from.path, target) == path {
            return Ok(());
        }
        let link = |parent: &Dir| linkat(&from.fd, *target, &parent.fd, name, AtFlags::empty());
        match link(parent) {
            Err(Errno::EEXIST) => {
                self.clear(parent, name, path)?;
                link(parent).map_err(|errno| match errno {
                    Errno::ENOENT => missing(),
                    errno => failed("link", path)(errno),
                })
            }
            other => other.map_err(failed("link", path)),
        }
    }

    fn symlink(
        &mut self,
        parent: &Dir,
        name: &[u8],
        path: &[u8],
        entry: &Entry,
    ) -> Result<(), Failure> {
        if entry.link.is_empty() {
            return Err(Failure::refused(format!(
                "symbolic link {} has no target",
                shown(path)
            )));
        }
        let make = || symlinkat(entry.link.as_slice(), &parent.fd, name);
        match make() {
            Err(Errno::EEXIST) => {
                self.clear(parent, name, path)?;
                make().map_err(failed("symlink", path))?;
            }
            other => other.map_err(failed("symlink", path))?,
        }
        self.applied.disk_bytes += if entry.link.len() < 60 { 0 } else { BLOCK };
        self.attributes_by_name(parent, name, path, entry)
    }

    fn node(
        &mut self,
        parent: &Dir,
        name: &[u8],
        path: &[u8],
        entry: &Entry,
    ) -> Result<(), Failure> {
        let kind = match entry.kind {
            Kind::Char if entry.device == (0, 0) => {
                return Err(Failure::refused(format!(
                    "{} is a whiteout of overlayfs, which has no place in a layer",
                    shown(path)
                )));
            }
            Kind::Char => SFlag::S_IFCHR,
            Kind::Block => SFlag::S_IFBLK,
            _ => SFlag::S_IFIFO,
        };
        let (major, minor) = entry.device;
        let device = makedev(major.into(), minor.into());
        let make = || {
            mknodat(
                &parent.fd,
                name,
                kind,
                Mode::from_bits_truncate(0o600),
                device,
            )
        };
        match make() {
            Err(Errno::EEXIST) => {
                self.clear(parent, name, path)?;
                make().map_err(failed("mknod", path))?;
            }
            other => other.map_err(failed("mknod", path))?,
        }
        self.attributes_by_name(parent, name, path, entry)
    }

    /// Sets the directories' times, deepest first, and hands over the report.
    ///
    /// # Errors
    /// [`Failure`] if a time cannot be set.
    pub fn finish(mut self) -> Result<Applied, Failure> {
        for path in &self.implied {
            self.times.entry(path.clone()).or_insert((0, 0));
        }
        self.times.entry(Vec::new()).or_insert((0, 0));
        let times = std::mem::take(&mut self.times);
        let mut last: Option<Rc<Dir>> = None;
        for (path, mtime) in times.iter().rev() {
            let time = time_spec(*mtime);
            let (up, name) = match path.iter().rposition(|byte| *byte == b'/') {
                Some(at) => (&path[..at], &path[at + 1..]),
                None => (&b""[..], path.as_slice()),
            };
            let dir = match last.take().filter(|dir| dir.path == up) {
                Some(dir) => dir,
                None => {
                    let parts: Vec<&[u8]> = up
                        .split(|byte| *byte == b'/')
                        .filter(|part| !part.is_empty())
                        .collect();
                    self.plain_walk(&parts)?
                }
            };
            let name = if name.is_empty() { b"." } else { name };
            utimensat(&dir.fd, name, &time, &time, UtimensatFlags::NoFollowSymlink)
                .map_err(failed("set times of", path))?;
            last = Some(dir);
        }
        self.applied.implied = self.inheriting();
        self.applied.opaque = std::mem::take(&mut self.opaque).into_iter().collect();
        Ok(self.applied)
    }
}

impl Tree {
    /// The implied directories that may be seen through to the layers below: not those that
    /// replace an old one, and none below an opaque one.
    fn inheriting(&mut self) -> Vec<Vec<u8>> {
        if self.applied.opaque_root {
            return Vec::new();
        }
        let implied = std::mem::take(&mut self.implied);
        let hidden = |path: &[u8]| {
            path.iter()
                .enumerate()
                .filter(|(_, byte)| **byte == b'/')
                .any(|(at, _)| self.opaque.contains(&path[..at]))
        };
        implied
            .into_iter()
            .filter(|path| !self.fresh.contains(path) && !hidden(path))
            .collect()
    }
}

fn time_spec((seconds, nanos): (i64, u32)) -> TimeSpec {
    TimeSpec::new(seconds, nanos.into())
}
