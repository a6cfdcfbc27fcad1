//! The compressed bytes of a layer against digest and size.

use sha2::Digest as _;

use super::LayerError;
use crate::snapshot::digest::Digest;

/// Counts and hashes what comes and compares it with what was asked for.
pub(super) struct BlobCheck {
    want: Option<(Digest, u64)>,
    seen: u64,
    sha256: sha2::Sha256,
    sha512: sha2::Sha512,
}

impl BlobCheck {
    pub(super) fn new(want: Option<(Digest, u64)>) -> Self {
        Self {
            want,
            seen: 0,
            sha256: sha2::Sha256::new(),
            sha512: sha2::Sha512::new(),
        }
    }

    pub(super) fn update(&mut self, part: &[u8]) -> Result<(), LayerError> {
        let Some((digest, size)) = &self.want else {
            return Ok(());
        };
        self.seen += part.len() as u64;
        if self.seen > *size {
            return Err(LayerError::BlobSize {
                expected: *size,
                found: self.seen,
            });
        }
        if digest.is_sha512() {
            self.sha512.update(part)
        } else {
            self.sha256.update(part)
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Result<(), LayerError> {
        let Some((expected, size)) = self.want else {
            return Ok(());
        };
        if self.seen != size {
            return Err(LayerError::BlobSize {
                expected: size,
                found: self.seen,
            });
        }
        let found = if expected.is_sha512() {
            Digest::from_sha512(&self.sha512.finalize())
        } else {
            Digest::from_sha256(&self.sha256.finalize())
        };
        if found == expected {
            Ok(())
        } else {
            Err(LayerError::BlobDigest { expected, found })
        }
    }
}
