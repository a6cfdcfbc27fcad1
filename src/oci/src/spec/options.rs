//! Options of mounts.

use crisp_sys::mount::{
    MOUNT_ATTR__ATIME, MOUNT_ATTR_NOATIME, MOUNT_ATTR_NODEV, MOUNT_ATTR_NODIRATIME,
    MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NOSYMFOLLOW, MOUNT_ATTR_RDONLY,
    MOUNT_ATTR_RELATIME, MOUNT_ATTR_STRICTATIME, MS_PRIVATE, MS_REC, MS_SHARED, MS_SLAVE,
    MS_UNBINDABLE,
};

/// The options of one mount, sorted out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    /// `MOUNT_ATTR_*` to set and to clear; a later option overrides an earlier one.
    pub(super) set: u64,
    pub(super) clear: u64,
    /// The same for the mount and all below it.
    pub(super) set_recursive: u64,
    pub(super) clear_recursive: u64,
    pub(super) propagation: u64,
    pub(super) bind: Option<Bind>,
    /// Whether owners are translated, of the mount or of all below it.
    pub(super) idmap: Option<Bind>,
    /// What the filesystem itself is told.
    pub(super) data: Vec<(String, Option<String>)>,
}

/// A bind of one mount or of a tree of mounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bind {
    Plain,
    Recursive,
}

/// Why an option cannot be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OptionError {
    Unsupported,
    Malformed,
}

/// Word, bits to set, bits to clear. With `r` in front: the same for the whole tree.
const ATTRIBUTES: [(&str, u64, u64); 16] = [
    ("ro", MOUNT_ATTR_RDONLY, 0),
    ("rw", 0, MOUNT_ATTR_RDONLY),
    ("nosuid", MOUNT_ATTR_NOSUID, 0),
    ("suid", 0, MOUNT_ATTR_NOSUID),
    ("nodev", MOUNT_ATTR_NODEV, 0),
    ("dev", 0, MOUNT_ATTR_NODEV),
    ("noexec", MOUNT_ATTR_NOEXEC, 0),
    ("exec", 0, MOUNT_ATTR_NOEXEC),
    ("nosymfollow", MOUNT_ATTR_NOSYMFOLLOW, 0),
    ("symfollow", 0, MOUNT_ATTR_NOSYMFOLLOW),
    ("nodiratime", MOUNT_ATTR_NODIRATIME, 0),
    ("diratime", 0, MOUNT_ATTR_NODIRATIME),
    ("relatime", MOUNT_ATTR_RELATIME, MOUNT_ATTR__ATIME),
    ("noatime", MOUNT_ATTR_NOATIME, MOUNT_ATTR__ATIME),
    ("strictatime", MOUNT_ATTR_STRICTATIME, MOUNT_ATTR__ATIME),
    ("atime", MOUNT_ATTR_RELATIME, MOUNT_ATTR__ATIME),
];

/// Words that say what is the case anyway.
const WITHOUT_MEANING: [&str; 6] = [
    "defaults",
    "norelatime",
    "nostrictatime",
    "async",
    "nomand",
    "loud",
];

/// Propagation words.
pub(super) fn propagation(word: &str) -> Option<u64> {
    Some(match word {
        "private" => MS_PRIVATE,
        "rprivate" => MS_PRIVATE | MS_REC,
        "slave" => MS_SLAVE,
        "rslave" => MS_SLAVE | MS_REC,
        "shared" => MS_SHARED,
        "rshared" => MS_SHARED | MS_REC,
        "unbindable" => MS_UNBINDABLE,
        "runbindable" => MS_UNBINDABLE | MS_REC,
        _ => return None,
    })
}

fn attribute(word: &str) -> Option<(u64, u64)> {
    ATTRIBUTES
        .iter()
        .find(|row| row.0 == word)
        .map(|row| (row.1, row.2))
}

/// Later wins: what is set is no longer cleared, and the other way round.
fn combine(set: &mut u64, clear: &mut u64, (more, less): (u64, u64)) {
    *set = *set & !less | more;
    *clear = *clear & !more | less;
}

impl Options {
    pub(super) fn parse(words: &[String]) -> Result<Self, (String, OptionError)> {
        let mut options = Self::default();
        for word in words {
            options.add(word).map_err(|error| (word.clone(), error))?;
        }
        Ok(options)
    }

    fn add(&mut self, word: &str) -> Result<(), OptionError> {
        if word.contains('\0') || word.is_empty() {
            return Err(OptionError::Malformed);
        }
        if let Some(bits) = attribute(word) {
            combine(&mut self.set, &mut self.clear, bits);
        } else if let Some(flags) = propagation(word) {
            self.propagation = flags;
        } else if let Some(bits) = word.strip_prefix('r').and_then(attribute) {
            combine(&mut self.set_recursive, &mut self.clear_recursive, bits);
        } else if WITHOUT_MEANING.contains(&word) {
        } else {
            match word {
                "bind" => self.bind = Some(Bind::Plain),
                "rbind" => self.bind = Some(Bind::Recursive),
                "idmap" => self.idmap = Some(Bind::Plain),
                "ridmap" => self.idmap = Some(Bind::Recursive),
                "remount" | "tmpcopyup" | "copy-symlink" | "src-nofollow" | "dest-nofollow" => {
                    return Err(OptionError::Unsupported);
                }
                word if word.starts_with("idmap") || word.starts_with("ridmap") => {
                    return Err(OptionError::Unsupported);
                }
                word => self.data.push(match word.split_once('=') {
                    Some(("", _)) => return Err(OptionError::Malformed),
                    Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                    None => (word.to_owned(), None),
                }),
            }
        }
        Ok(())
    }
}
