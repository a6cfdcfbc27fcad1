//! Image references: what users write, parsed strictly and brought to one canonical form.
//!
//! Ids are told apart *before* parsing ([`ImageId::parse`], [`IdPrefix::parse`]), because 64 hex
//! digits would otherwise read as a repository of docker.io. The grammar is the one of the
//! distribution project's reference package: short names belong to `docker.io`, names of one
//! component there to `library/`, no tag and no digest mean `latest`. With a tag and a digest the
//! digest alone decides what is pulled, and no tag is recorded.

use std::{fmt, str::FromStr};

use crate::snapshot::digest::is_hex;
pub use crate::snapshot::digest::{Digest, InvalidDigest};

/// The canonical registry name of Docker Hub.
pub const DOCKER_HUB: &str = "docker.io";
const MAX_REFERENCE: usize = 1024;
const MAX_REPOSITORY: usize = 255;
const MAX_TAG: usize = 128;
/// Fewer digits than this are never taken for the beginning of an id.
const MIN_PREFIX: usize = 4;

/// Why a text is no reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Empty text.
    #[error("the image reference is empty")]
    Empty,
    /// More than 1024 bytes.
    #[error("the image reference has {0} bytes, at most {MAX_REFERENCE} are allowed")]
    TooLong(usize),
    /// The repository path is longer than 255 bytes.
    #[error("the repository name {name:?} has more than {MAX_REPOSITORY} bytes")]
    NameTooLong {
        /// The name, cut.
        name: String,
    },
    /// The registry's host part is malformed.
    #[error("{text:?} is not a registry host")]
    Host {
        /// What stood there.
        text: String,
    },
    /// A component of the repository path is malformed.
    #[error(
        "{text:?} is not a repository name: components are lower-case letters and digits, joined by \
         one dot, one or two underscores, or dashes"
    )]
    Repository {
        /// What stood there.
        text: String,
    },
    /// The tag is malformed.
    #[error("{text:?} is not a tag: at most {MAX_TAG} of letters, digits, '_', '.', '-'")]
    Tag {
        /// What stood there.
        text: String,
    },
    /// The digest is malformed.
    #[error(transparent)]
    Digest(#[from] InvalidDigest),
    /// 64 hex digits: an id, which cannot be pulled.
    #[error("{0:?} is an image id; an image is pulled by name")]
    IsId(String),
}

fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

/// An image id: the digest of the image's configuration, `sha256:` and 64 hex digits.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ImageId(Digest);

impl ImageId {
    /// The id of the image with this configuration digest.
    #[must_use]
    pub fn new(config: Digest) -> Self {
        Self(config)
    }

    /// Recognises a full id, with or without `sha256:`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        Digest::parse(&format!("sha256:{hex}")).ok().map(Self)
    }

    /// `sha256:<hex>`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// The digest behind the id.
    #[must_use]
    pub fn digest(&self) -> &Digest {
        &self.0
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The beginning of an id, as crictl's users type it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IdPrefix(String);

impl IdPrefix {
    /// Recognises 4 to 63 hex digits, with or without `sha256:`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        ((MIN_PREFIX..64).contains(&hex.len()) && is_hex(hex)).then(|| Self(hex.to_owned()))
    }

    /// Whether `id` begins so.
    #[must_use]
    pub fn matches(&self, id: &str) -> bool {
        id.strip_prefix("sha256:")
            .unwrap_or(id)
            .starts_with(&self.0)
    }
}

/// A parsed reference in canonical form.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Parses what a user wrote.
    ///
    /// # Errors
    /// [`ReferenceError`], naming the part that is wrong.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if text.len() > MAX_REFERENCE {
            return Err(ReferenceError::TooLong(text.len()));
        }
        if ImageId::parse(text).is_some() {
            return Err(ReferenceError::IsId(text.to_owned()));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(Digest::parse(digest)?)),
            None => (text, None),
        };
        let (name, tag) = split_tag(rest);
        if let Some(tag) = tag {
            check_tag(tag)?;
        }
        let (registry, repository) = split_registry(name)?;
        check_repository(&repository)?;
        let tag = match (&digest, tag) {
            (_, Some(tag)) => Some(tag.to_owned()),
            (None, None) => Some("latest".to_owned()),
            (Some(_), None) => None,
        };
        Ok(Self {
            registry,
            repository,
            tag,
            digest,
        })
    }

    /// The registry's host, with a port if one was given; `docker.io` for Docker Hub.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The path below the registry.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if no digest was given: what a pull records.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        if self.digest.is_some() {
            None
        } else {
            self.tag.as_deref()
        }
    }

    /// The digest, if one was given.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// `registry/repository`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// `registry/repository:tag`, unless a digest was given.
    #[must_use]
    pub fn repo_tag(&self) -> Option<String> {
        self.tag().map(|tag| format!("{}:{tag}", self.name()))
    }

    /// `registry/repository@digest` for a manifest with this digest.
    #[must_use]
    pub fn repo_digest(&self, manifest: &Digest) -> String {
        format!("{}@{manifest}", self.name())
    }

    /// What follows `/manifests/` in the registry's API: the digest, else the tag.
    #[must_use]
    pub fn manifest_selector(&self) -> &str {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.as_str(),
            (None, Some(tag)) => tag,
            (None, None) => "latest",
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;
    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        Self::parse(text)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The tag is what follows a colon after the last slash.
fn split_tag(text: &str) -> (&str, Option<&str>) {
    let start = text.rfind('/').map_or(0, |slash| slash + 1);
    match text[start..].find(':') {
        Some(colon) if !text[start..].starts_with('[') => {
            (&text[..start + colon], Some(&text[start + colon + 1..]))
        }
        _ => (text, None),
    }
}

/// The first component is a host if it has a dot, a colon, upper-case letters or brackets, or is
/// `localhost`.
fn split_registry(name: &str) -> Result<(String, String), ReferenceError> {
    let host_part = name.split_once('/').filter(|(first, _)| is_host(first));
    let (host, path) = match host_part {
        Some((host, path)) => {
            check_host(host)?;
            // A word that only its capitals make a host keeps them: without, the name would mean
            // a repository of Docker Hub the next time it is read.
            let lower = Some(host.to_ascii_lowercase()).filter(|lower| is_host(lower));
            (lower.unwrap_or_else(|| host.to_owned()), path)
        }
        None => (DOCKER_HUB.to_owned(), name),
    };
    if host == DOCKER_HUB || host == "index.docker.io" {
        let path = if path.contains('/') {
            path.to_owned()
        } else {
            format!("library/{path}")
        };
        return Ok((DOCKER_HUB.to_owned(), path));
    }
    Ok((host, path.to_owned()))
}

/// Whether the first part of a name is a registry's host.
fn is_host(first: &str) -> bool {
    first.contains(['.', ':', '['])
        || first == "localhost"
        || first.bytes().any(|b| b.is_ascii_uppercase())
}

fn check_host(host: &str) -> Result<(), ReferenceError> {
    let wrong = || ReferenceError::Host { text: shown(host) };
    let (name, port) = if let Some(rest) = host.strip_prefix('[') {
        let (address, after) = rest.split_once(']').ok_or_else(wrong)?;
        address.parse::<std::net::Ipv6Addr>().map_err(|_| wrong())?;
        match after.strip_prefix(':') {
            Some(port) => (None, Some(port)),
            None if after.is_empty() => (None, None),
            None => return Err(wrong()),
        }
    } else {
        match host.split_once(':') {
            Some((name, port)) => (Some(name), Some(port)),
            None => (Some(host), None),
        }
    };
    if let Some(port) = port {
        let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        if !digits || port.parse::<u16>().map_or(true, |port| port == 0) {
            return Err(wrong());
        }
    }
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    match name {
        Some(name) if name.len() > 253 || !name.split('.').all(label) => Err(wrong()),
        _ => Ok(()),
    }
}

fn check_repository(path: &str) -> Result<(), ReferenceError> {
    if path.len() > MAX_REPOSITORY {
        return Err(ReferenceError::NameTooLong { name: shown(path) });
    }
    if path.split('/').all(is_component) {
        Ok(())
    } else {
        Err(ReferenceError::Repository { text: shown(path) })
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(text: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_digit() || b.is_ascii_lowercase();
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    if !alphanumeric(*first) || !alphanumeric(*last) {
        return false;
    }
    bytes
        .split(|b| alphanumeric(*b))
        .all(|gap| matches!(gap, b"" | b"." | b"_" | b"__") || gap.iter().all(|b| *b == b'-'))
}

fn check_tag(tag: &str) -> Result<(), ReferenceError> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let first = tag.bytes().next().is_some_and(word);
    let rest = tag.bytes().all(|b| word(b) || b == b'.' || b == b'-');
    if first && rest && tag.len() <= MAX_TAG {
        Ok(())
    } else {
        Err(ReferenceError::Tag { text: shown(tag) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "9700f9a2f5bf2c45f2f605a0bd3bce7cf37420ec9d3ed50ac2758413308766bf";

    #[test]
    fn a_full_name_means_the_same_when_it_is_read_again() {
        for (text, registry) in [
            ("Example/x", "Example"),
            ("LOCALHOST/x", "localhost"),
            ("Example.COM:5000/x", "example.com:5000"),
            ("example/x", "docker.io"),
        ] {
            let reference = Reference::parse(text).unwrap();
            assert_eq!(reference.registry(), registry, "{text}");
            assert_eq!(Reference::parse(&reference.name()).unwrap(), reference);
        }
    }

    #[test]
    fn canonical_forms() {
        let digest = format!("sha256:{HEX}");
        let table = [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("me/app", "docker.io/me/app:latest"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/me/app:v1", "docker.io/me/app:v1"),
            ("registry.k8s.io/pause:3.9", "registry.k8s.io/pause:3.9"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/x:y", "localhost:5000/x:y"),
            ("127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c:latest"),
            ("[::1]:5000/a:t", "[::1]:5000/a:t"),
            ("[fd00::1]/a", "[fd00::1]/a:latest"),
            ("GCR.io/a/b", "gcr.io/a/b:latest"),
            ("a/b__c/d-e---f", "docker.io/a/b__c/d-e---f:latest"),
        ];
        for (text, want) in table {
            assert_eq!(
                Reference::parse(text).expect(text).to_string(),
                want,
                "{text}"
            );
        }
        let both = Reference::parse(&format!("gcr.io/a/b:t@{digest}")).expect("tag and digest");
        assert_eq!(both.tag(), None);
        assert_eq!(both.manifest_selector(), digest);
        assert_eq!(both.repo_tag(), None);
        let by_digest = Reference::parse(&format!("gcr.io/a/b@{digest}")).expect("digest");
        assert_eq!(by_digest.to_string(), format!("gcr.io/a/b@{digest}"));
    }

    #[test]
    fn refused_with_the_part_named() {
        let long = format!("a/{}", "b".repeat(300));
        let upper = format!("x@sha256:{}", HEX.to_uppercase());
        let tag = format!("x:{}", "t".repeat(129));
        let table: &[(&str, &str)] = &[
            ("", "empty"),
            (HEX, "image id"),
            ("a//b", "repository name"),
            ("a/", "repository name"),
            ("/a", "repository name"),
            ("gcr.io/../etc", "repository name"),
            ("a.b.c/..", "repository name"),
            ("x_/y", "repository name"),
            ("a___b", "repository name"),
            ("a..b", "repository name"),
            ("App", "repository name"),
            ("gcr.io/App", "repository name"),
            ("b\u{443}sybox", "repository name"),
            ("a b", "repository name"),
            ("a\n", "repository name"),
            ("https://gcr.io/a", "registry host"),
            ("gcr.io:0/a", "registry host"),
            ("gcr.io:70000/a", "registry host"),
            ("gcr.io:/a", "registry host"),
            ("[::zz]/a", "registry host"),
            ("-x.io/a", "registry host"),
            ("x:", "a tag"),
            ("x:.t", "a tag"),
            ("x:t t", "a tag"),
            (&tag, "a tag"),
            ("x@sha256:abc", "digest"),
            (&upper, "digest"),
            ("x@sha256:../../etc/passwd", "digest"),
            ("x@md5:d41d8cd98f00b204e9800998ecf8427e", "digest"),
            (&long, "255"),
        ];
        for (text, part) in table {
            let error = Reference::parse(text).expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        assert!(matches!(
            Reference::parse(&"a".repeat(5000)),
            Err(ReferenceError::TooLong(5000))
        ));
    }

    #[test]
    fn ids_and_prefixes() {
        assert_eq!(
            ImageId::parse(HEX).expect("bare").as_str(),
            format!("sha256:{HEX}")
        );
        assert!(ImageId::parse(&format!("sha256:{HEX}")).is_some());
        assert!(ImageId::parse(&HEX[1..]).is_none());
        let prefix = IdPrefix::parse(&HEX[..13]).expect("prefix");
        assert!(prefix.matches(&format!("sha256:{HEX}")));
        assert!(!prefix.matches(&"0".repeat(64)));
        for text in ["abc", "busybox", "ABCDEF", ""] {
            assert!(IdPrefix::parse(text).is_none(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn never_panics_and_round_trips(text in "\\PC{0,60}") {
            if let Ok(reference) = Reference::parse(&text) {
                let again = Reference::parse(&reference.to_string()).expect("canonical form parses");
                prop_assert_eq!(again, reference);
            }
        }

        #[test]
        fn well_formed_round_trips(
            host in "[a-z]{1,5}\\.[a-z]{2,3}(:[1-9][0-9]{0,3})?",
            path in "[a-z0-9]{1,6}(([.]|_|__|-{1,3})[a-z0-9]{1,4}){0,2}(/[a-z0-9]{1,5}){0,3}",
            tag in "[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}",
        ) {
            let text = format!("{host}/{path}:{tag}");
            let reference = Reference::parse(&text).expect("well-formed");
            prop_assert_eq!(reference.registry(), host.as_str());
            prop_assert_eq!(reference.repository(), path.as_str());
            prop_assert_eq!(reference.tag(), Some(tag.as_str()));
        }
    }
}
