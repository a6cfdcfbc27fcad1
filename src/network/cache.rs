//! Attachments on disk: intent before the first plugin runs, result after the last.
//!
//! One file per sandbox, written beside and renamed. No fsync: a power cut ends the pods anyway,
//! and IPAM plugins that keep their leases in files do not sync either.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    conflist::{self, ConfList},
    error::NetworkError,
    invocation::{CapabilityArgs, Target},
};

/// The version of the record's format; a newer one is refused, not guessed at.
const FORMAT: u32 = 1;
/// The largest record read: a list, arguments and a result, each capped where it comes from.
const MAX_RECORD: u64 = 8 << 20;

/// What is needed to undo an attachment, and its result once there is one.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// Which attachment.
    pub target: Target,
    /// The configuration it was made from, whatever lies in the directory by now.
    pub list: ConfList,
    /// The capability values its plugins were given.
    pub capabilities: CapabilityArgs,
    /// The result of the last plugin, absent while (or when) adding did not finish.
    pub result: Option<Value>,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    format: u32,
    container_id: String,
    netns: PathBuf,
    ifname: String,
    args: String,
    source: PathBuf,
    list: Value,
    capabilities: Map<String, Value>,
    result: Option<Value>,
}

/// The directory of records.
#[derive(Debug, Clone)]
pub struct ResultCache {
    dir: PathBuf,
}

impl ResultCache {
    /// Opens the directory, making it (0700) if needed, and removes what a killed daemon left
    /// half-written.
    ///
    /// # Errors
    /// If it cannot be made or read.
    pub fn open(dir: &Path) -> Result<Self, NetworkError> {
        let cache = Self {
            dir: dir.to_path_buf(),
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|source| cache.error(dir, "making the directory", source))?;
        for name in cache.names()? {
            if name.starts_with('.') {
                let _ = fs::remove_file(dir.join(name));
            }
        }
        Ok(cache)
    }

    /// Writes a record, replacing an older one of the same sandbox.
    ///
    /// # Errors
    /// If the file system does not take it; the older record is then intact.
    pub fn write(&self, record: &Record) -> Result<(), NetworkError> {
        let target = &record.target;
        let stored = Stored {
            format: FORMAT,
            container_id: target.container_id.clone(),
            netns: target.netns.clone(),
            ifname: target.ifname.clone(),
            args: target.args.clone(),
            source: record.list.source.clone(),
            list: record.list.to_json(),
            capabilities: record.capabilities.0.clone(),
            result: record.result.clone(),
        };
        let bytes = serde_json::to_vec(&stored).expect("strings and JSON values always serialise");
        let path = self.path(&target.container_id);
        let beside = self.dir.join(format!(".{}", target.container_id));
        self.write_beside(&beside, &bytes)
            .and_then(|()| fs::rename(&beside, &path))
            .map_err(|source| {
                let _ = fs::remove_file(&beside);
                self.error(&path, "writing", source)
            })
    }

    fn write_beside(&self, beside: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(beside)?;
        file.write_all(bytes)
    }

    /// Reads a record; nothing if the sandbox has none.
    ///
    /// # Errors
    /// If it cannot be read, or is damaged: then it was renamed, so that the next read finds none,
    /// and the error says where it is.
    pub fn read(&self, sandbox: &str) -> Result<Option<Record>, NetworkError> {
        let path = self.path(sandbox);
        let bytes = match read_file(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(self.error(&path, "reading", source)),
        };
        match decode(&bytes, sandbox) {
            Ok(record) => Ok(Some(record)),
            Err(problem) => {
                let kept = self.dir.join(format!("{sandbox}.damaged"));
                fs::rename(&path, &kept)
                    .map_err(|source| self.error(&path, "moving aside", source))?;
                Err(NetworkError::Damaged {
                    sandbox: sandbox.to_owned(),
                    kept,
                    problem,
                })
            }
        }
    }

    /// Removes a record; none is fine.
    ///
    /// # Errors
    /// If the file system refuses.
    pub fn remove(&self, sandbox: &str) -> Result<(), NetworkError> {
        let path = self.path(sandbox);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(self.error(&path, "removing", source))
            }
            _ => Ok(()),
        }
    }

    /// Sandboxes that have a record.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn ids(&self) -> Result<Vec<String>, NetworkError> {
        let names = self.names()?;
        Ok(names
            .iter()
            .filter_map(|name| name.strip_suffix(".json"))
            .map(str::to_owned)
            .collect())
    }

    fn names(&self) -> Result<Vec<String>, NetworkError> {
        let entries = fs::read_dir(&self.dir)
            .map_err(|source| self.error(&self.dir, "listing the directory", source))?;
        Ok(entries
            .filter_map(Result::ok)
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect())
    }

    fn path(&self, sandbox: &str) -> PathBuf {
        self.dir.join(format!("{sandbox}.json"))
    }

    #[expect(
        clippy::unused_self,
        reason = "all errors of the cache are made in one place"
    )]
    fn error(&self, path: &Path, action: &'static str, source: io::Error) -> NetworkError {
        NetworkError::Record {
            path: path.to_path_buf(),
            action,
            source,
        }
    }
}

fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_RECORD).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Decodes a record of the sandbox.
///
/// # Errors
/// What is wrong, in words.
pub fn decode(bytes: &[u8], sandbox: &str) -> Result<Record, String> {
    let stored: Stored = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if stored.format != FORMAT {
        return Err(format!("format {} is not {FORMAT}", stored.format));
    }
    if stored.container_id != sandbox {
        return Err("it is the record of another sandbox".to_owned());
    }
    let list = conflist::parse(stored.list.to_string().as_bytes(), &stored.source)
        .map_err(|error| format!("list: {error}"))?;
    Ok(Record {
        target: Target {
            container_id: stored.container_id,
            netns: stored.netns,
            ifname: stored.ifname,
            args: stored.args,
        },
        list,
        capabilities: CapabilityArgs(stored.capabilities),
        result: stored.result,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use serde_json::json;

    use super::*;

    fn record(id: &str) -> Record {
        let text = br#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"a","x":1}]}"#;
        let mut capabilities = CapabilityArgs::default();
        capabilities.set("mac", Some(json!("00:11:22:33:44:55")));
        Record {
            target: Target {
                container_id: id.to_owned(),
                netns: "/run/netns/x".into(),
                ifname: "eth0".into(),
                args: "IgnoreUnknown=1".into(),
            },
            list: conflist::parse(text, Path::new("/etc/x.conflist")).unwrap(),
            capabilities,
            result: None,
        }
    }

    #[test]
    fn records_come_back_until_removed() {
        let dir = tempfile::tempdir().unwrap();
        let cache = ResultCache::open(&dir.path().join("deep/results")).unwrap();
        assert_eq!(cache.read("a").unwrap(), None);
        let mut written = record("a");
        cache.write(&written).unwrap();
        assert_eq!(cache.read("a").unwrap(), Some(written.clone()));
        written.result = Some(json!({ "cniVersion": "1.0.0" }));
        cache.write(&written).unwrap();
        assert_eq!(cache.read("a").unwrap(), Some(written));
        assert_eq!(cache.ids().unwrap(), ["a"]);
        let mode = fs::metadata(cache.path("a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        cache.remove("a").unwrap();
        cache.remove("a").unwrap();
        assert!(cache.ids().unwrap().is_empty());
    }

    #[test]
    fn a_damaged_record_is_told_once_and_kept_aside() {
        let dir = tempfile::tempdir().unwrap();
        let cache = ResultCache::open(dir.path()).unwrap();
        cache.write(&record("a")).unwrap();
        let whole = fs::read(cache.path("a")).unwrap();
        for cut in [0, 1, whole.len() / 2, whole.len() - 1] {
            fs::write(cache.path("a"), &whole[..cut]).unwrap();
            let error = cache.read("a").unwrap_err();
            let NetworkError::Damaged { kept, .. } = error else {
                panic!("{error}")
            };
            assert_eq!(fs::read(kept).unwrap(), &whole[..cut]);
            assert_eq!(cache.read("a").unwrap(), None);
        }
        fs::write(cache.path("b"), &whole).unwrap();
        assert!(matches!(cache.read("b"), Err(NetworkError::Damaged { .. })));
    }

    #[test]
    fn what_a_killed_daemon_left_half_written_is_removed_at_open() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".abc"), "half").unwrap();
        let cache = ResultCache::open(dir.path()).unwrap();
        assert!(cache.names().unwrap().is_empty());
    }
}
