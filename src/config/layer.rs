//! One layer of settings: a file, the environment or the flags, as they were written.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, OpenOptions},
    io::Read,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use toml::de::{DeTable, DeValue};

use super::{
    error::{Origin, Problem},
    keys,
    value::{Value, Written, quoted},
};

/// Largest configuration file in bytes.
const MAX_FILE: u64 = 1024 * 1024;
/// Most drop-in files.
const MAX_DROP_INS: usize = 256;

/// A checked value and where it was written.
#[derive(Debug, Clone)]
pub(super) struct Setting {
    pub value: Value,
    pub origin: Origin,
}

/// Settings by dotted key; adding a layer overrides what was there.
#[derive(Debug, Default)]
pub(super) struct Settings {
    pub values: BTreeMap<String, Setting>,
    /// Handlers that some layer names, with the place of the first mention.
    pub handlers: BTreeMap<String, Origin>,
    pub problems: Vec<Problem>,
}

impl Settings {
    /// Adds a file.
    pub(super) fn add_file(&mut self, path: &Path) {
        let text = match read_text(path) {
            Ok(text) => text,
            Err(text) => return self.problem(file_origin(path, 0), "", text),
        };
        self.add_text(path, &text);
    }

    /// Adds the text of a file.
    pub(super) fn add_text(&mut self, path: &Path, text: &str) {
        let lines = Lines { path, text };
        match DeTable::parse(text) {
            Ok(table) => self.add_table(&lines, "", table.get_ref()),
            Err(error) => {
                let origin = lines.at(error.span().map_or(0, |s| s.start));
                self.problem(origin, "", error.message().to_owned());
            }
        }
    }

    fn add_table(&mut self, lines: &Lines<'_>, section: &str, table: &DeTable<'_>) {
        for (key, value) in table.iter() {
            let name = match section {
                "" => key.get_ref().to_string(),
                _ => format!("{section}.{}", key.get_ref()),
            };
            let origin = lines.at(key.span().start);
            match value.get_ref() {
                // A dot inside a quoted key would make it look like another one.
                _ if key.get_ref().contains('.') => self.unknown(origin, &name),
                DeValue::Table(inner) if keys::is_section(&name) => {
                    if keys::split_handler(&format!("{name}.")).is_some() {
                        let handler = key.get_ref().to_string();
                        self.handlers.entry(handler).or_insert(origin);
                    }
                    self.add_table(lines, &name, inner);
                }
                _ if keys::is_section(&name) => {
                    self.problem(origin, &name, format!("is a section: write [{name}]"));
                }
                other => self.set(origin, &name, &written(other)),
            }
        }
    }

    /// Adds the variables that start with `CRISP_`.
    pub(super) fn add_environment(
        &mut self,
        variables: impl Iterator<Item = (OsString, OsString)>,
    ) {
        for (name, value) in variables {
            // A name that is not text is not one of ours.
            let Some(name) = name.to_str().filter(|n| is_setting(n)) else {
                continue;
            };
            let origin = Origin::Variable(name.to_owned());
            let Some(key) = keys::KEYS.iter().find(|k| keys::variable(k.name) == name) else {
                let known: Vec<String> =
                    keys::KEYS.iter().map(|k| keys::variable(k.name)).collect();
                let near = keys::nearest(name, known.iter().map(String::as_str));
                self.problem(
                    origin,
                    "",
                    format!("no setting has this variable{}", hint(near)),
                );
                continue;
            };
            match value.into_string() {
                Ok(text) => self.set(origin, key.name, &Written::Untyped(text)),
                Err(_) => self.problem(origin, key.name, "is not UTF-8".to_owned()),
            }
        }
    }

    /// Adds a flag of a known key.
    pub(super) fn add_flag(&mut self, name: &'static str, text: &str) {
        self.set(
            Origin::Flag(keys::flag(name)),
            name,
            &Written::Untyped(text.to_owned()),
        );
    }

    /// Notes a problem.
    pub(super) fn problem(&mut self, origin: Origin, key: &str, text: String) {
        self.problems.push(Problem {
            origin,
            key: key.to_owned(),
            text,
        });
    }

    fn set(&mut self, origin: Origin, name: &str, written: &Written) {
        let Some(key) = keys::find(name) else {
            return self.unknown(origin, name);
        };
        match key.kind.check(written) {
            Ok(value) => {
                self.values
                    .insert(name.to_owned(), Setting { value, origin });
            }
            Err(text) => self.problem(origin, name, text),
        }
    }

    fn unknown(&mut self, origin: Origin, name: &str) {
        let known = keys::names(name);
        let near = hint(keys::nearest(name, known.iter().map(String::as_str)));
        self.problem(origin, "", format!("unknown key {}{near}", quoted(name)));
    }
}

fn hint(near: Option<&str>) -> String {
    near.map(|n| format!("; did you mean {n}?"))
        .unwrap_or_default()
}

fn written(value: &DeValue<'_>) -> Written {
    match value {
        DeValue::String(text) => Written::Text(text.to_string()),
        DeValue::Integer(i) if i.radix() == 10 => Written::Integer(i.as_str().to_owned()),
        DeValue::Boolean(on) => Written::Switch(*on),
        DeValue::Array(items) => items
            .iter()
            .map(|i| i.get_ref().as_str().map(str::to_owned))
            .collect::<Option<Vec<_>>>()
            .map_or(
                Written::Other("an array of something other than strings"),
                Written::List,
            ),
        DeValue::Integer(_) => Written::Other("a number that is not decimal"),
        DeValue::Float(_) => Written::Other("a number with a fraction"),
        DeValue::Datetime(_) => Written::Other("a date"),
        DeValue::Table(_) => Written::Other("a section"),
    }
}

/// Turns offsets into lines.
struct Lines<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Lines<'_> {
    fn at(&self, offset: usize) -> Origin {
        let before = &self.text.as_bytes()[..offset.min(self.text.len())];
        let line = before.iter().filter(|b| **b == b'\n').count() + 1;
        file_origin(self.path, line)
    }
}

fn file_origin(path: &Path, line: usize) -> Origin {
    Origin::File {
        path: path.to_owned(),
        line,
    }
}

/// Reads a configuration file: regular, bounded, text, and not everybody's to write.
fn read_text(path: &Path) -> Result<String, String> {
    // O_NONBLOCK: opening a FIFO must not hang.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(|e| format!("cannot be opened: {e}"))?;
    let meta = file
        .metadata()
        .map_err(|e| format!("cannot be read: {e}"))?;
    if !meta.is_file() {
        return Err("is not a regular file".to_owned());
    }
    if meta.mode() & 0o002 != 0 {
        return Err("can be written by everybody; run chmod o-w on it".to_owned());
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| format!("cannot be read: {e}"))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(format!("is larger than {} KiB", MAX_FILE / 1024));
    }
    String::from_utf8(bytes).map_err(|e| {
        let before = &e.as_bytes()[..e.utf8_error().valid_up_to()];
        let line = before.iter().filter(|b| **b == b'\n').count() + 1;
        format!("is not UTF-8 (line {line})")
    })
}

/// The drop-in files of a directory, in the order in which they apply. No directory, no files.
pub(super) fn drop_ins(dir: &Path) -> Result<Vec<PathBuf>, Problem> {
    let wrong = |text: String| Problem {
        origin: file_origin(dir, 0),
        key: String::new(),
        text,
    };
    let meta = match fs::metadata(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|e| wrong(format!("cannot be read: {e}")))?,
    };
    if !meta.is_dir() {
        return Err(wrong("is not a directory".to_owned()));
    }
    if meta.mode() & 0o002 != 0 {
        return Err(wrong(
            "can be written by everybody; run chmod o-w on it".to_owned(),
        ));
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(|e| wrong(format!("cannot be read: {e}")))? {
        let path = entry
            .map_err(|e| wrong(format!("cannot be read: {e}")))?
            .path();
        let hidden = path
            .file_name()
            .is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|e| e == "toml") {
            files.push(path);
        }
        if files.len() > MAX_DROP_INS {
            return Err(wrong(format!("holds more than {MAX_DROP_INS} files")));
        }
    }
    files.sort();
    Ok(files)
}

/// Whether a variable is meant as a setting. `CRISP_TEST_...` belongs to the project's own tests.
fn is_setting(name: &str) -> bool {
    name.starts_with("CRISP_") && !name.starts_with("CRISP_TEST_")
}
