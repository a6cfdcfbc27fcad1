//! CNI network configuration: parsing, validation, choice of the list in force. Pure but for
//! [`load`], which reads the directory.

use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::{Map, Value};

/// The largest configuration file read. The biggest in the field are a few KiB.
pub const MAX_FILE: u64 = 1 << 20;
/// The most plugins in one list.
pub const MAX_PLUGINS: usize = 32;
/// The most configuration files looked at in one directory.
pub const MAX_FILES: usize = 256;

/// A version of the CNI specification that this daemon speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CniVersion {
    /// 0.3.0, accepted in results only.
    V0_3_0,
    /// 0.3.1: lists.
    V0_3_1,
    /// 0.4.0: CHECK, results on DEL.
    V0_4_0,
    /// 1.0.0: no version in addresses.
    V1_0_0,
    /// 1.1.0: GC, STATUS.
    V1_1_0,
}

impl CniVersion {
    /// All of them, oldest first.
    pub const ALL: [Self; 5] = [
        Self::V0_3_0,
        Self::V0_3_1,
        Self::V0_4_0,
        Self::V1_0_0,
        Self::V1_1_0,
    ];

    /// As written in configurations and results.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// The version of this name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|version| version.as_str() == text)
    }

    /// Whether the verb exists in this version.
    #[must_use]
    pub fn has_check(self) -> bool {
        self >= Self::V0_4_0
    }

    /// Whether GC and STATUS exist in this version.
    #[must_use]
    pub fn has_gc_and_status(self) -> bool {
        self >= Self::V1_1_0
    }
}

/// Why a configuration file is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfError {
    /// Reading failed.
    #[error("cannot be read: {0}")]
    Unreadable(String),
    /// Too large.
    #[error("is larger than {MAX_FILE} bytes")]
    TooLarge,
    /// Not JSON, or not an object; perhaps half-written.
    #[error("is not a JSON object: {0}")]
    NotJson(String),
    /// A key is missing or has a value that cannot be.
    #[error("{key}: {problem}")]
    Key {
        /// Path of the key, as `plugins[1].type`.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
}

fn key(key: impl Into<String>, problem: impl Into<String>) -> ConfError {
    ConfError::Key {
        key: key.into(),
        problem: problem.into(),
    }
}

/// One plugin of a list.
#[derive(Debug, Clone, PartialEq)]
pub struct PluginConf {
    /// The `type`: name of the binary. Has no slash and is no dot name.
    pub kind: String,
    /// The object as written, handed on to the plugin unaltered.
    pub raw: Map<String, Value>,
}

impl PluginConf {
    /// Whether the configuration advertises the capability, so that the plugin wants to be given it.
    #[must_use]
    pub fn advertises(&self, capability: &str) -> bool {
        self.raw
            .get("capabilities")
            .and_then(|all| all.get(capability))
            .and_then(Value::as_bool)
            .unwrap_or(false)
    }
}

/// A valid network configuration list.
#[derive(Debug, Clone, PartialEq)]
pub struct ConfList {
    /// The network's name.
    pub name: String,
    /// The version all plugins are spoken to in.
    pub version: CniVersion,
    /// CHECK must not be called.
    pub disable_check: bool,
    /// GC must not be called.
    pub disable_gc: bool,
    /// The chain, at least one.
    pub plugins: Vec<PluginConf>,
    /// The file it came from, for messages.
    pub source: PathBuf,
}

impl ConfList {
    /// The list as one JSON object, for the cache: [`parse`] gives the same list back.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let plugins = self
            .plugins
            .iter()
            .map(|plugin| Value::Object(plugin.raw.clone()))
            .collect();
        let mut object = Map::new();
        object.insert("name".into(), Value::String(self.name.clone()));
        object.insert(
            "cniVersion".into(),
            Value::String(self.version.as_str().into()),
        );
        object.insert("disableCheck".into(), Value::Bool(self.disable_check));
        object.insert("disableGC".into(), Value::Bool(self.disable_gc));
        object.insert("plugins".into(), Value::Array(plugins));
        Value::Object(object)
    }
}

/// What a directory holds: the list in force and what was refused on the way to it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Loaded {
    /// The first valid list by name order.
    pub list: Option<Arc<ConfList>>,
    /// Files that come before it and are no valid configuration, with the reason.
    pub refused: Vec<(PathBuf, ConfError)>,
    /// Why the directory itself could not be read, if it exists.
    pub unreadable: Option<String>,
}

/// Reads the directory: the first valid `*.conflist`, `*.conf` or `*.json` by name order.
#[must_use]
pub fn load(dir: &Path) -> Loaded {
    let mut loaded = Loaded::default();
    let mut files: Vec<PathBuf> = match fs::read_dir(dir) {
        Ok(entries) => entries
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .filter(|path| is_configuration(path))
            .take(MAX_FILES)
            .collect(),
        Err(error) => {
            if error.kind() != std::io::ErrorKind::NotFound {
                loaded.unreadable = Some(error.to_string());
            }
            return loaded;
        }
    };
    files.sort();
    for path in files {
        match read(&path).and_then(|bytes| parse(&bytes, &path)) {
            Ok(list) => {
                loaded.list = Some(Arc::new(list));
                return loaded;
            }
            Err(error) => loaded.refused.push((path, error)),
        }
    }
    loaded
}

fn is_configuration(path: &Path) -> bool {
    let hidden = path
        .file_name()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    let known = path
        .extension()
        .and_then(|extension| extension.to_str())
        .is_some_and(|extension| matches!(extension, "conflist" | "conf" | "json"));
    known && !hidden
}

/// Reads a file of bounded size. A FIFO or device in the directory must not block or be read.
fn read(path: &Path) -> Result<Vec<u8>, ConfError> {
    let unreadable = |error: std::io::Error| ConfError::Unreadable(error.to_string());
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY)
        .open(path)
        .map_err(unreadable)?;
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err(ConfError::Unreadable("not a regular file".into()));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(ConfError::TooLarge);
    }
    Ok(bytes)
}

/// Parses a list, or a single plugin's configuration as a list of one. `source` tells which by the
/// content, not the name: an object with `plugins` is a list.
///
/// # Errors
/// Names the key that is wrong.
pub fn parse(bytes: &[u8], source: &Path) -> Result<ConfList, ConfError> {
    let value: Value =
        serde_json::from_slice(bytes).map_err(|error| ConfError::NotJson(error.to_string()))?;
    let Value::Object(object) = value else {
        return Err(ConfError::NotJson("the top level is something else".into()));
    };
    let plugins = match object.get("plugins") {
        Some(Value::Array(plugins)) => parse_plugins(plugins)?,
        Some(_) => return Err(key("plugins", "is not an array")),
        None if object.contains_key("type") => vec![parse_plugin(&object, "")?],
        None => return Err(key("plugins", "is missing")),
    };
    Ok(ConfList {
        name: network_name(&object)?,
        version: choose_version(&object)?,
        disable_check: flag(&object, "disableCheck")?,
        disable_gc: flag(&object, "disableGC")?,
        plugins,
        source: source.to_path_buf(),
    })
}

fn parse_plugins(plugins: &[Value]) -> Result<Vec<PluginConf>, ConfError> {
    if plugins.is_empty() {
        return Err(key("plugins", "is empty"));
    }
    if plugins.len() > MAX_PLUGINS {
        return Err(key(
            "plugins",
            format!("has more than {MAX_PLUGINS} entries"),
        ));
    }
    plugins
        .iter()
        .enumerate()
        .map(|(index, plugin)| match plugin {
            Value::Object(object) => parse_plugin(object, &format!("plugins[{index}].")),
            _ => Err(key(format!("plugins[{index}]"), "is not an object")),
        })
        .collect()
}

fn parse_plugin(object: &Map<String, Value>, at: &str) -> Result<PluginConf, ConfError> {
    let kind = text(object, "type").map_err(|problem| key(format!("{at}type"), problem))?;
    if !is_file_name(&kind) {
        return Err(key(
            format!("{at}type"),
            "is not the plain name of a plugin binary",
        ));
    }
    if object
        .get("capabilities")
        .is_some_and(|all| !all.is_object())
    {
        return Err(key(format!("{at}capabilities"), "is not an object"));
    }
    // An IPAM plugin is looked up by the main plugin, in the same directories, by this name.
    if let Some(ipam) = object.get("ipam").and_then(|ipam| ipam.get("type"))
        && !ipam
            .as_str()
            .is_some_and(|kind| kind.is_empty() || is_file_name(kind))
    {
        return Err(key(
            format!("{at}ipam.type"),
            "is not the plain name of a plugin binary",
        ));
    }
    Ok(PluginConf {
        kind,
        raw: object.clone(),
    })
}

fn text(object: &Map<String, Value>, name: &str) -> Result<String, &'static str> {
    match object.get(name) {
        Some(Value::String(text)) if !text.is_empty() => Ok(text.clone()),
        Some(Value::String(_)) => Err("is empty"),
        Some(_) => Err("is not a string"),
        None => Err("is missing"),
    }
}

/// A name that stays inside the directory it is joined to.
fn is_file_name(name: &str) -> bool {
    name.len() <= 255
        && name != "."
        && name != ".."
        && !name
            .chars()
            .any(|c| c == '/' || c == '\\' || c.is_control())
}

/// The specification: starts with an alphanumeric, then those, underscore, dot or hyphen. It ends
/// up as a directory name of IPAM plugins.
fn network_name(object: &Map<String, Value>) -> Result<String, ConfError> {
    let name = text(object, "name").map_err(|problem| key("name", problem))?;
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if name.len() <= 255
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(legal)
    {
        Ok(name)
    } else {
        Err(key(
            "name",
            "must be letters, digits, '_', '.' and '-', beginning with a letter or digit",
        ))
    }
}

/// `cniVersion`, or the newest of `cniVersions` that is known here.
fn choose_version(object: &Map<String, Value>) -> Result<CniVersion, ConfError> {
    let lowest = CniVersion::V0_3_1;
    let offered = match object.get("cniVersions") {
        Some(Value::Array(all)) => all
            .iter()
            .filter_map(Value::as_str)
            .filter_map(CniVersion::parse)
            .filter(|version| *version >= lowest)
            .max(),
        Some(_) => return Err(key("cniVersions", "is not an array")),
        None => None,
    };
    if let Some(version) = offered {
        return Ok(version);
    }
    let written = text(object, "cniVersion").map_err(|problem| key("cniVersion", problem))?;
    CniVersion::parse(&written)
        .filter(|version| *version >= lowest)
        .ok_or_else(|| {
            key(
                "cniVersion",
                format!("{written:?} is none of 0.3.1, 0.4.0, 1.0.0, 1.1.0"),
            )
        })
}

/// A boolean; the strings "true" and "false" are in the field too.
fn flag(object: &Map<String, Value>, name: &str) -> Result<bool, ConfError> {
    match object.get(name) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(_) => Err(key(name, "is not true or false")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> Result<ConfList, ConfError> {
        parse(text.as_bytes(), Path::new("/x/10-net.conflist"))
    }

    fn wrong_key(text: &str) -> String {
        match parsed(text) {
            Err(ConfError::Key { key, .. }) => key,
            other => panic!("{text}: {other:?}"),
        }
    }

    const LIST: &str = r#"{"cniVersion":"1.0.0","name":"pods","disableCheck":"true",
        "plugins":[{"type":"bridge","ipam":{"type":"host-local"}},
                   {"type":"portmap","capabilities":{"portMappings":true}}]}"#;

    #[test]
    fn a_list_and_a_single_plugin_are_read() {
        let list = parsed(LIST).unwrap();
        assert_eq!(
            (list.name.as_str(), list.version),
            ("pods", CniVersion::V1_0_0)
        );
        assert!(list.disable_check && !list.disable_gc);
        assert_eq!(list.plugins[0].kind, "bridge");
        assert!(list.plugins[1].advertises("portMappings"));
        assert!(!list.plugins[0].advertises("portMappings"));
        let single = parsed(r#"{"cniVersion":"0.3.1","name":"n","type":"ptp"}"#).unwrap();
        assert_eq!(single.plugins.len(), 1);
    }

    #[test]
    fn a_list_survives_the_cache() {
        let list = parsed(LIST).unwrap();
        let again = parse(list.to_json().to_string().as_bytes(), &list.source).unwrap();
        assert_eq!(again, list);
    }

    #[test]
    fn the_newest_offered_version_is_chosen() {
        let with = |versions: &str| {
            parsed(&format!(
                r#"{{{versions},"name":"n","plugins":[{{"type":"a"}}]}}"#
            ))
        };
        let offered = with(r#""cniVersion":"0.4.0","cniVersions":["0.4.0","1.1.0","9.0.0"]"#);
        assert_eq!(offered.unwrap().version, CniVersion::V1_1_0);
        for refused in [
            r#""cniVersion":"0.3.0""#,
            r#""cniVersion":"2.0.0""#,
            r#""cniVersion":1"#,
        ] {
            assert!(
                matches!(with(refused), Err(ConfError::Key { key, .. }) if key == "cniVersion")
            );
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let plugin = |plugin: &str| {
            format!(r#"{{"cniVersion":"1.0.0","name":"n","plugins":[{{"type":"a"}},{plugin}]}}"#)
        };
        for (kind, key) in [
            (r#"{"type":"../../bin/sh"}"#, "plugins[1].type"),
            (r#"{"type":".."}"#, "plugins[1].type"),
            (r#"{"type":""}"#, "plugins[1].type"),
            (r#"{"type":"a\u0000b"}"#, "plugins[1].type"),
            ("{}", "plugins[1].type"),
            ("7", "plugins[1]"),
            (
                r#"{"type":"a","capabilities":[]}"#,
                "plugins[1].capabilities",
            ),
            (
                r#"{"type":"a","ipam":{"type":"/bin/sh"}}"#,
                "plugins[1].ipam.type",
            ),
        ] {
            assert_eq!(wrong_key(&plugin(kind)), key, "{kind}");
        }
        for (name, key) in [
            (r#""../x""#, "name"),
            (r#""-x""#, "name"),
            ("5", "name"),
            (r#""a/b""#, "name"),
        ] {
            let text =
                format!(r#"{{"cniVersion":"1.0.0","name":{name},"plugins":[{{"type":"a"}}]}}"#);
            assert_eq!(wrong_key(&text), key, "{name}");
        }
        assert_eq!(
            wrong_key(r#"{"cniVersion":"1.0.0","name":"n","plugins":[]}"#),
            "plugins"
        );
        assert_eq!(wrong_key(r#"{"cniVersion":"1.0.0","name":"n"}"#), "plugins");
        let many = vec![r#"{"type":"a"}"#; MAX_PLUGINS + 1].join(",");
        let many = format!(r#"{{"cniVersion":"1.0.0","name":"n","plugins":[{many}]}}"#);
        assert_eq!(wrong_key(&many), "plugins");
        for text in ["", "[]", "{\"name\":", "null", &"[".repeat(100_000)] {
            assert!(matches!(parsed(text), Err(ConfError::NotJson(_))));
        }
    }

    #[test]
    fn the_first_valid_file_by_name_wins_and_the_refused_ones_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        assert_eq!(load(dir.path()), Loaded::default());
        write("00-half.conflist", &LIST[..40]);
        write("05-not-ours.txt", LIST);
        write(".01-hidden.conflist", LIST);
        write("20-later.conflist", &LIST.replace("pods", "later"));
        write(
            "10-first.conf",
            r#"{"cniVersion":"0.3.1","name":"first","type":"ptp"}"#,
        );
        let loaded = load(dir.path());
        assert_eq!(loaded.list.unwrap().name, "first");
        assert_eq!(loaded.refused.len(), 1);
        assert!(loaded.refused[0].0.ends_with("00-half.conflist"));
        assert_eq!(load(&dir.path().join("missing")), Loaded::default());
    }

    #[test]
    fn files_that_are_none_neither_block_nor_fill_memory() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        nix::unistd::mkfifo(&path("0.conf"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        std::os::unix::fs::symlink(path("1.conf"), path("1.conf")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", path("2.conf")).unwrap();
        fs::create_dir(path("3.conf")).unwrap();
        // A sparse file of 1 GiB.
        File::create(path("4.conf"))
            .unwrap()
            .set_len(1 << 30)
            .unwrap();
        let loaded = load(dir.path());
        assert!(loaded.list.is_none());
        assert_eq!(loaded.refused.len(), 5);
        assert_eq!(loaded.refused[4].1, ConfError::TooLarge);
    }

    proptest! {
        #[test]
        fn no_input_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes, Path::new("x"));
        }
    }
}
