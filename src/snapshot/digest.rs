//! Content digests: what names every blob, layer and image.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

/// A text is no digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a digest: sha256 with 64 or sha512 with 128 lower-case hex digits")]
pub struct InvalidDigest(pub String);

/// Whether all of `text` are lower-case hex digits.
pub(crate) fn is_hex(text: &str) -> bool {
    text.bytes()
        .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// A content digest, `sha256:` or `sha512:` with its hex digits. Safe as a file name component
/// through [`Digest::file_name`].
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(Arc<str>);

impl Digest {
    /// Parses `algorithm:hex`.
    ///
    /// # Errors
    /// [`InvalidDigest`] for anything but the two algorithms in full length.
    pub fn parse(text: &str) -> Result<Self, InvalidDigest> {
        let want = match text.split_once(':') {
            Some(("sha256", hex)) if hex.len() == 64 => hex,
            Some(("sha512", hex)) if hex.len() == 128 => hex,
            _ => return Err(InvalidDigest(text.chars().take(80).collect())),
        };
        if is_hex(want) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidDigest(text.chars().take(80).collect()))
        }
    }

    /// The SHA-256 digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::Digest as _;
        Self::from_sha256(&sha2::Sha256::digest(bytes))
    }

    /// A digest from the raw output of SHA-256.
    #[must_use]
    pub fn from_sha256(raw: &[u8]) -> Self {
        Self(format!("sha256:{}", hex(raw)).into())
    }

    /// A digest from the raw output of SHA-512.
    #[must_use]
    pub fn from_sha512(raw: &[u8]) -> Self {
        Self(format!("sha512:{}", hex(raw)).into())
    }

    /// `algorithm:hex`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The hex digits.
    #[must_use]
    pub fn hex(&self) -> &str {
        self.0.split_once(':').map_or("", |(_, hex)| hex)
    }

    /// Whether the algorithm is SHA-512 (else SHA-256).
    #[must_use]
    pub fn is_sha512(&self) -> bool {
        self.0.starts_with("sha512")
    }

    /// `algorithm-hex`, a plain file name.
    #[must_use]
    pub fn file_name(&self) -> String {
        self.0.replace(':', "-")
    }
}

/// Lower-case hex digits of `raw`.
pub(crate) fn hex(raw: &[u8]) -> String {
    use fmt::Write as _;
    raw.iter()
        .fold(String::with_capacity(raw.len() * 2), |mut text, byte| {
            write!(text, "{byte:02x}").expect("a String takes everything");
            text
        })
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Digest {
    type Error = InvalidDigest;
    fn try_from(text: String) -> Result<Self, InvalidDigest> {
        Self::parse(&text)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.as_str().to_owned()
    }
}
