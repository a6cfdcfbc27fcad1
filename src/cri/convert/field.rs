//! Where in a request a value stands, and the checks that name that place when they fail.

use std::{collections::BTreeMap, fmt};

use crate::error::{Classify, ErrorKind};

/// Why a request was refused, with the field by its protobuf path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// The field can never be served as it is written.
    #[error("{field}: {problem}")]
    Invalid {
        /// Protobuf path, for example `config.mounts[2].host_path`.
        field: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// The field asks for something this build or host does not have.
    #[error("{field}: {problem}")]
    Unsupported {
        /// Protobuf path.
        field: String,
        /// What is missing.
        problem: String,
    },
}

impl Classify for ConvertError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Invalid { .. } => ErrorKind::InvalidArgument,
            Self::Unsupported { .. } => ErrorKind::Unsupported,
        }
    }
}

/// Result of a conversion.
pub type Result<T> = std::result::Result<T, ConvertError>;

/// The path of a field. Built on the stack as the conversion walks down; text is made of it only for
/// an error.
#[derive(Clone, Copy)]
pub struct Field<'a> {
    parent: Option<&'a Field<'a>>,
    segment: Segment<'a>,
}

#[derive(Clone, Copy)]
enum Segment<'a> {
    Name(&'a str),
    Index(usize),
    Key(&'a str),
}

impl<'a> Field<'a> {
    /// A field of the request itself.
    #[must_use]
    pub fn root(name: &'a str) -> Self {
        Self {
            parent: None,
            segment: Segment::Name(name),
        }
    }

    /// A field of the message in this one.
    #[must_use]
    pub fn child<'b>(&'b self, name: &'b str) -> Field<'b> {
        Field {
            parent: Some(self),
            segment: Segment::Name(name),
        }
    }

    /// An element of this repeated field.
    #[must_use]
    pub fn index(&self, index: usize) -> Field<'_> {
        Field {
            parent: Some(self),
            segment: Segment::Index(index),
        }
    }

    /// An entry of this map field.
    #[must_use]
    pub fn key<'b>(&'b self, key: &'b str) -> Field<'b> {
        Field {
            parent: Some(self),
            segment: Segment::Key(key),
        }
    }

    /// The error that this field is invalid.
    pub fn invalid(&self, problem: impl Into<String>) -> ConvertError {
        ConvertError::Invalid {
            field: self.to_string(),
            problem: problem.into(),
        }
    }

    /// The error that what this field asks for is not supported.
    pub fn unsupported(&self, problem: impl Into<String>) -> ConvertError {
        ConvertError::Unsupported {
            field: self.to_string(),
            problem: problem.into(),
        }
    }

    /// The message in this field, which must be there.
    ///
    /// # Errors
    /// It is missing.
    pub fn required<T>(&self, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.invalid("must be set"))
    }

    /// The number of an enum as its type.
    ///
    /// # Errors
    /// The number has no meaning in this version of the protocol.
    pub fn enumerated<T: TryFrom<i32>>(&self, number: i32) -> Result<T> {
        let unknown = |_| self.invalid(format!("{number} is no value of this enum"));
        T::try_from(number).map_err(unknown)
    }

    /// As [`Self::enumerated`], for a number that may be absent.
    ///
    /// # Errors
    /// The number has no meaning in this version of the protocol.
    pub fn enumerated_option<T: TryFrom<i32>>(&self, number: Option<i32>) -> Result<Option<T>> {
        number.map(|number| self.enumerated(number)).transpose()
    }

    /// A number that must not be negative.
    ///
    /// # Errors
    /// It is negative.
    pub fn not_negative(&self, number: i64) -> Result<u64> {
        let negative = |_| self.invalid(format!("must not be negative, is {number}"));
        u64::try_from(number).map_err(negative)
    }

    /// A text no longer than `max` bytes.
    ///
    /// # Errors
    /// It is longer.
    pub fn at_most(&self, text: &str, max: usize) -> Result<()> {
        if text.len() > max {
            return Err(self.invalid(format!("must be at most {max} bytes, is {}", text.len())));
        }
        Ok(())
    }

    /// A list no longer than `max` entries.
    ///
    /// # Errors
    /// It is longer.
    pub fn count<T>(&self, list: &[T], max: usize) -> Result<()> {
        if list.len() > max {
            let problem = format!("must have at most {max} entries, has {}", list.len());
            return Err(self.invalid(problem));
        }
        Ok(())
    }

    /// Text without NUL, as everything must be that becomes a C string.
    ///
    /// # Errors
    /// It has one.
    pub fn no_nul(&self, text: &str) -> Result<()> {
        if text.contains('\0') {
            return Err(self.invalid(format!("must not contain NUL, is {}", quoted(text))));
        }
        Ok(())
    }

    /// Text without white space and control characters.
    ///
    /// # Errors
    /// It has one.
    pub fn one_word(&self, text: &str) -> Result<()> {
        if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            let rule = "must not contain white space or control characters";
            return Err(self.invalid(format!("{rule}, is {}", quoted(text))));
        }
        Ok(())
    }

    /// A name that may become a path component and a line of a log: 1 to 253 bytes, no slash, no
    /// control character, not `.` or `..`.
    ///
    /// # Errors
    /// It is no such name.
    pub fn name(&self, text: &str) -> Result<String> {
        if text.is_empty() {
            return Err(self.invalid("must not be empty"));
        }
        self.at_most(text, MAX_NAME)?;
        if text.contains('/') || text.chars().any(char::is_control) || matches!(text, "." | "..") {
            let rule = "must be a name without slashes and control characters";
            return Err(self.invalid(format!("{rule}, is {}", quoted(text))));
        }
        Ok(text.to_owned())
    }

    /// An absolute path without `..` and control characters, normalised.
    ///
    /// # Errors
    /// It is no such path.
    pub fn absolute_path(&self, text: &str) -> Result<String> {
        self.at_most(text, MAX_PATH)?;
        if text.chars().any(char::is_control) {
            let problem = format!("must not contain control characters, is {}", quoted(text));
            return Err(self.invalid(problem));
        }
        if !text.starts_with('/') {
            return Err(self.invalid(format!("must be an absolute path, is {}", quoted(text))));
        }
        let mut normal = String::with_capacity(text.len());
        for part in text
            .split('/')
            .filter(|part| !part.is_empty() && *part != ".")
        {
            if part == ".." {
                return Err(self.invalid(format!("must not contain \"..\", is {}", quoted(text))));
            }
            if part.len() > MAX_COMPONENT {
                let rule = format!("path components must be at most {MAX_COMPONENT} bytes");
                return Err(self.invalid(rule));
            }
            normal.push('/');
            normal.push_str(part);
        }
        if normal.is_empty() {
            normal.push('/');
        }
        Ok(normal)
    }

    /// A user or group id. Ids above 2^31 - 1 wrap to others in some tools, so they are refused.
    ///
    /// # Errors
    /// It is negative or too large.
    pub fn id(&self, number: i64) -> Result<u32> {
        match u32::try_from(number) {
            Ok(id) if id <= MAX_ID => Ok(id),
            _ => Err(self.invalid(format!("must be 0 to {MAX_ID}, is {number}"))),
        }
    }
}

impl fmt::Display for Field<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.segment {
            Segment::Name(name) if self.parent.is_some() => write!(f, ".{name}"),
            Segment::Name(name) => f.write_str(name),
            Segment::Index(index) => write!(f, "[{index}]"),
            Segment::Key(key) => write!(f, "[{}]", quoted(key)),
        }
    }
}

/// Longest name of a pod, namespace, UID or container: what Kubernetes allows for a DNS subdomain.
pub const MAX_NAME: usize = 253;
/// Longest path, PATH_MAX without its NUL.
pub const MAX_PATH: usize = 4095;
/// Longest path component, NAME_MAX.
const MAX_COMPONENT: usize = 255;
/// Largest user or group id.
pub const MAX_ID: u32 = 0x7fff_ffff;
/// Longest label: key and value together.
const MAX_LABEL: usize = 4 * 1024;
/// Longest map of labels or annotations. Kubernetes allows 256 KiB of annotations per object, and
/// kubelet adds a few of its own.
const MAX_MAP: usize = 256 * 1024 + 16 * 1024;

/// Text as an error shows it: escaped, and cut so that a hostile value cannot fill the log.
pub(super) fn quoted(text: &str) -> String {
    const SHOWN: usize = 80;
    let mut chars = text.chars();
    let head: String = chars.by_ref().take(SHOWN).collect();
    if chars.next().is_some() {
        format!("{head:?}...")
    } else {
        format!("{head:?}")
    }
}

/// Labels: keys not empty, at most 4 KiB a pair and 272 KiB in all.
///
/// # Errors
/// Names the key that breaks a rule.
pub fn labels<'m, M>(field: &Field<'_>, map: M) -> Result<BTreeMap<String, String>>
where
    M: IntoIterator<Item = (&'m String, &'m String)>,
{
    text_map(field, map, MAX_LABEL)
}

/// Annotations: as labels, but one pair may take all the room.
///
/// # Errors
/// Names the key that breaks a rule.
pub fn annotations<'m, M>(field: &Field<'_>, map: M) -> Result<BTreeMap<String, String>>
where
    M: IntoIterator<Item = (&'m String, &'m String)>,
{
    text_map(field, map, MAX_MAP)
}

fn text_map<'m, M>(field: &Field<'_>, map: M, max: usize) -> Result<BTreeMap<String, String>>
where
    M: IntoIterator<Item = (&'m String, &'m String)>,
{
    let mut total = 0;
    let mut out = BTreeMap::new();
    for (key, value) in map {
        let entry = field.key(key);
        if key.is_empty() {
            return Err(entry.invalid("must not have an empty key"));
        }
        entry.no_nul(key)?;
        entry.no_nul(value)?;
        let size = key.len() + value.len();
        if size > max {
            let problem = format!("key and value must be at most {max} bytes together, are {size}");
            return Err(entry.invalid(problem));
        }
        total += size;
        if total > MAX_MAP {
            let problem = format!("all entries together must be at most {MAX_MAP} bytes");
            return Err(field.invalid(problem));
        }
        out.insert(key.clone(), value.clone());
    }
    Ok(out)
}
