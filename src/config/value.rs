//! Values as they were written, and the kinds of value a key accepts.

use std::path::{Component, Path, PathBuf};

/// What a key accepts.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    /// An absolute path.
    Path,
    /// A list of absolute paths; `a:b` in a variable or flag.
    Paths,
    /// One of these words.
    Word(&'static [&'static str]),
    /// A text that its own check understands.
    Text,
    /// true or false.
    Switch,
    /// 0 to 65535.
    Port,
}

/// A value of the right kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// For [`Kind::Path`].
    Path(PathBuf),
    /// For [`Kind::Paths`].
    Paths(Vec<PathBuf>),
    /// For [`Kind::Word`] and [`Kind::Text`].
    Text(String),
    /// For [`Kind::Switch`].
    Switch(bool),
    /// For [`Kind::Port`].
    Port(u16),
}

/// A value as it was written, before its kind was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Written {
    /// A string of a file.
    Text(String),
    /// An integer of a file, in decimal.
    Integer(String),
    /// A boolean of a file.
    Switch(bool),
    /// An array of strings of a file.
    List(Vec<String>),
    /// Anything else of a file: what it is called.
    Other(&'static str),
    /// The text of a variable or flag, which has no type of its own.
    Untyped(String),
}

/// Longest piece of a value that is repeated in a message.
const SHOWN: usize = 80;

impl Kind {
    /// What would be right, for messages.
    pub(super) fn expected(self) -> String {
        match self {
            Self::Path => "an absolute path without `..`".to_owned(),
            Self::Paths => "a list of absolute paths without `..`".to_owned(),
            Self::Word(words) => format!("one of {}", words.join(", ")),
            Self::Text => "a string".to_owned(),
            Self::Switch => "true or false".to_owned(),
            Self::Port => "a port number, 0 to 65535".to_owned(),
        }
    }

    /// Checks a written value.
    ///
    /// # Errors
    /// A text that says what is wrong and what would be right.
    pub(super) fn check(self, written: &Written) -> Result<Value, String> {
        let wrong = || Err(format!("{} is not {}", written.shown(), self.expected()));
        match (self, written) {
            (Self::Path, Written::Text(t) | Written::Untyped(t)) => {
                absolute(t).map_or_else(wrong, |p| Ok(Value::Path(p)))
            }
            (Self::Paths, Written::List(items)) => {
                let paths: Option<Vec<_>> = items.iter().map(|t| absolute(t)).collect();
                paths.map_or_else(wrong, |p| Ok(Value::Paths(p)))
            }
            (Self::Paths, Written::Untyped(t)) => {
                let paths: Option<Vec<_>> = t.split(':').map(absolute).collect();
                paths.map_or_else(wrong, |p| Ok(Value::Paths(p)))
            }
            (Self::Word(words), Written::Text(t) | Written::Untyped(t)) => {
                if words.contains(&t.as_str()) {
                    Ok(Value::Text(t.clone()))
                } else {
                    wrong()
                }
            }
            (Self::Text, Written::Text(t) | Written::Untyped(t)) => Ok(Value::Text(t.clone())),
            (Self::Switch, Written::Switch(on)) => Ok(Value::Switch(*on)),
            (Self::Switch, Written::Untyped(t)) => t
                .parse()
                .map_or_else(|_| wrong(), |on| Ok(Value::Switch(on))),
            (Self::Port, Written::Integer(t) | Written::Untyped(t)) => t
                .parse()
                .map_or_else(|_| wrong(), |port| Ok(Value::Port(port))),
            _ => wrong(),
        }
    }
}

impl Written {
    /// The value for a message: quoted, without control characters, cut.
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Text(t) | Self::Untyped(t) => quoted(t),
            Self::Integer(t) => t.chars().take(SHOWN).collect(),
            Self::Switch(on) => on.to_string(),
            Self::List(items) => {
                let items: Vec<String> = items.iter().take(8).map(|i| quoted(i)).collect();
                format!("[{}]", items.join(", "))
            }
            Self::Other(what) => (*what).to_owned(),
        }
    }
}

/// A text from outside as a message shows it.
pub(super) fn quoted(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN).collect();
    if shown.len() < text.len() {
        shown.push_str("...");
    }
    format!("{shown:?}")
}

pub(super) fn absolute(text: &str) -> Option<PathBuf> {
    let path = Path::new(text);
    let plain = path
        .components()
        .all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    (path.is_absolute() && plain && !text.contains('\0')).then(|| path.components().collect())
}
