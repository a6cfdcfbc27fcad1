//! Who the container's process is: numbers, or names looked up in the image's own account files.
//!
//! The files are the image's, so they are hostile: opened inside the root descriptor only, as
//! regular files only, up to a size. Numbers are taken as numbers before any look-up, so that an
//! image cannot call root `1000`.

use std::{
    fs::File,
    io::Read,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
};

use crisp_sys::path::{RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, fstat, openat2};

use super::{ImageDefaults, ResolvedUser};
use crate::{
    container::spec::{ContainerSpec, RunAs},
    error::{Classify, ErrorKind},
    sandbox::spec::SupplementalGroupsPolicy,
};

/// Largest account file that is read.
const MAX_FILE: u64 = 1024 * 1024;
/// Most groups of a process: NGROUPS_MAX.
const MAX_GROUPS: usize = 65_536;
/// Largest id; above it, some tools see negative numbers.
const MAX_ID: u32 = 0x7fff_ffff;

/// Why a user cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// A name that the image does not know.
    #[error("user {name:?} is not in the image's /etc/passwd")]
    UnknownUser {
        /// The name.
        name: String,
    },
    /// A group name that the image does not know.
    #[error("group {name:?} is not in the image's /etc/group")]
    UnknownGroup {
        /// The name.
        name: String,
    },
    /// A number that is no id.
    #[error("{text:?} is no user or group id: ids are 0 to {MAX_ID}, without leading zeros")]
    BadId {
        /// The number as written.
        text: String,
    },
    /// The image's USER is not `user` or `user:group`.
    #[error("image user {text:?}: must be user, uid, user:group or uid:gid")]
    BadUser {
        /// USER as written.
        text: String,
    },
    /// More groups than a process may have.
    #[error("the user is in more than {MAX_GROUPS} groups")]
    TooManyGroups,
    /// The account file is a device, a FIFO or a directory.
    #[error("{path} of the image is not a regular file")]
    NotRegular {
        /// The file.
        path: &'static str,
    },
    /// The account file is larger than anybody needs.
    #[error("{path} of the image is larger than {MAX_FILE} bytes")]
    TooLarge {
        /// The file.
        path: &'static str,
    },
    /// The account file cannot be opened.
    #[error("open {path} of the image")]
    Open {
        /// The file.
        path: &'static str,
        /// Why.
        #[source]
        source: crisp_sys::Error,
    },
    /// The account file cannot be read.
    #[error("read {path} of the image")]
    Read {
        /// The file.
        path: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl Classify for UserError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::UnknownUser { .. }
            | Self::UnknownGroup { .. }
            | Self::BadId { .. }
            | Self::BadUser { .. }
            | Self::TooManyGroups
            | Self::NotRegular { .. }
            | Self::TooLarge { .. } => ErrorKind::InvalidArgument,
            Self::Open { .. } | Self::Read { .. } => ErrorKind::Internal,
        }
    }
}

/// The image's account files as bytes; a missing one is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Accounts {
    /// /etc/passwd.
    pub passwd: Vec<u8>,
    /// /etc/group.
    pub group: Vec<u8>,
}

impl Accounts {
    /// Reads them below the descriptor of a root directory or a detached mount.
    ///
    /// # Errors
    /// One of them is there but not a regular file of bearable size, or cannot be read.
    pub fn read(root: BorrowedFd<'_>) -> Result<Self, UserError> {
        Ok(Self {
            passwd: read(root, "/etc/passwd")?,
            group: read(root, "/etc/group")?,
        })
    }
}

/// Symbolic links are followed inside the root, as images use them; nothing is opened before it is
/// known to be a regular file, since opening alone makes some devices act.
fn read(root: BorrowedFd<'_>, path: &'static str) -> Result<Vec<u8>, UserError> {
    let open_error = |source| UserError::Open { path, source };
    let resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
    let place = match openat2(root, path, libc::O_PATH, 0, resolve) {
        Ok(place) => place,
        Err(error) if matches!(error.raw_os_error(), libc::ENOENT | libc::ENOTDIR) => {
            return Ok(Vec::new());
        }
        Err(source) => return Err(open_error(source)),
    };
    if !fstat(place.as_fd()).map_err(open_error)?.is_file() {
        return Err(UserError::NotRegular { path });
    }
    let read_error = |source| UserError::Read { path, source };
    let reopened = format!("/proc/self/fd/{}", place.as_raw_fd());
    let file = File::open(reopened).map_err(read_error)?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(read_error)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(UserError::TooLarge { path });
    }
    Ok(bytes)
}

/// Tells who the process is: what the request says, else what the image says, else root.
///
/// # Errors
/// A name is unknown, or a number is no id.
pub fn resolve(
    container: &ContainerSpec,
    image: &ImageDefaults,
    accounts: &Accounts,
) -> Result<ResolvedUser, UserError> {
    let asked = &container.security;
    let (user, image_group) = match &asked.run_as {
        RunAs::Uid(uid) => (find_uid(accounts, *uid), None),
        RunAs::Name(name) => (find_user(accounts, name)?, None),
        RunAs::Image => {
            let (user, group) = split_image_user(&image.user)?;
            let user = match user {
                "" => find_uid(accounts, 0),
                user => find_user(accounts, user)?,
            };
            (user, group)
        }
    };
    let gid = match (asked.run_as_group, image_group) {
        (Some(gid), _) => gid,
        (None, Some(group)) => find_group(accounts, group)?,
        (None, None) => user.gid,
    };
    let mut gids = asked.supplemental_groups.clone();
    if asked.supplemental_groups_policy == SupplementalGroupsPolicy::Merge
        && let Some(name) = &user.name
    {
        let of_user = groups(&accounts.group).filter(|group| group.has_member(name));
        gids.extend(of_user.map(|group| group.gid));
    }
    gids.push(gid);
    gids.sort_unstable();
    gids.dedup();
    if gids.len() > MAX_GROUPS {
        return Err(UserError::TooManyGroups);
    }
    Ok(ResolvedUser {
        uid: user.uid,
        gid,
        additional_gids: gids,
        home: user.home,
    })
}

/// `user` or `user:group`; an empty group after the colon is none.
fn split_image_user(text: &str) -> Result<(&str, Option<&str>), UserError> {
    let bad = || UserError::BadUser {
        text: text.chars().take(80).collect(),
    };
    if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(bad());
    }
    match text.split_once(':') {
        None => Ok((text, None)),
        Some((_, group)) if group.contains(':') => Err(bad()),
        Some((user, "")) => Ok((user, None)),
        Some((user, group)) => Ok((user, Some(group))),
    }
}

struct FoundUser {
    uid: u32,
    gid: u32,
    name: Option<Vec<u8>>,
    home: Option<String>,
}

fn find_user(accounts: &Accounts, text: &str) -> Result<FoundUser, UserError> {
    if let Some(uid) = number(text)? {
        return Ok(find_uid(accounts, uid));
    }
    users(&accounts.passwd)
        .find(|user| user.name == text.as_bytes())
        .map(User::found)
        .ok_or_else(|| UserError::UnknownUser {
            name: text.to_owned(),
        })
}

/// An id without an entry is in group 0, as everywhere.
fn find_uid(accounts: &Accounts, uid: u32) -> FoundUser {
    let entry = users(&accounts.passwd)
        .find(|user| user.uid == uid)
        .map(User::found);
    entry.unwrap_or(FoundUser {
        uid,
        gid: 0,
        name: None,
        home: None,
    })
}

fn find_group(accounts: &Accounts, text: &str) -> Result<u32, UserError> {
    if let Some(gid) = number(text)? {
        return Ok(gid);
    }
    groups(&accounts.group)
        .find(|group| group.name == text.as_bytes())
        .map(|group| group.gid)
        .ok_or_else(|| UserError::UnknownGroup {
            name: text.to_owned(),
        })
}

/// The number of a text made of digits; `None` for any other text. A text of digits that is no id is
/// an error and never a name.
fn number(text: &str) -> Result<Option<u32>, UserError> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(None);
    }
    parse_id(text.as_bytes())
        .map(Some)
        .ok_or_else(|| UserError::BadId {
            text: text.chars().take(80).collect(),
        })
}

fn parse_id(digits: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(digits).ok()?;
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    let id = plain.then(|| text.parse::<u32>().ok()).flatten()?;
    (id <= MAX_ID).then_some(id)
}

struct User<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

impl User<'_> {
    fn found(self) -> FoundUser {
        let home = std::str::from_utf8(self.home).ok();
        let usable = |home: &&str| home.starts_with('/') && !home.chars().any(char::is_control);
        FoundUser {
            uid: self.uid,
            gid: self.gid,
            name: Some(self.name.to_vec()),
            home: home.filter(usable).map(str::to_owned),
        }
    }
}

/// Lines of /etc/passwd; those that are none are skipped.
fn users(passwd: &[u8]) -> impl Iterator<Item = User<'_>> {
    passwd.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = parse_id(fields.nth(1)?)?;
        let gid = parse_id(fields.next()?)?;
        let home = fields.nth(1).unwrap_or_default();
        Some(User {
            name,
            uid,
            gid,
            home,
        })
    })
}

struct Group<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

impl Group<'_> {
    fn has_member(&self, name: &[u8]) -> bool {
        self.members
            .split(|byte| *byte == b',')
            .any(|member| member.trim_ascii() == name)
    }
}

/// Lines of /etc/group; those that are none are skipped.
fn groups(group: &[u8]) -> impl Iterator<Item = Group<'_>> {
    group.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = parse_id(fields.nth(1)?)?;
        Some(Group {
            name,
            gid,
            members: fields.next().unwrap_or_default(),
        })
    })
}

#[cfg(test)]
mod tests;
