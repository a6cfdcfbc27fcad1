//! Header blocks: one inflate state for all blocks of a connection, bounded in every dimension.

use flate2::{Decompress, FlushDecompress, Status};

use super::{codec::DecodeError, dictionary::dictionary};

/// Most bytes of an inflated block.
pub const MAX_BLOCK: usize = 64 * 1024;
/// Most headers of a block.
pub const MAX_HEADERS: usize = 32;
/// Longest name or value.
pub const MAX_FIELD: usize = 4 * 1024;

/// The headers of one stream; names in lower case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// The value of a header; `name` in lower case.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    /// Reads an inflated block.
    ///
    /// # Errors
    /// When it is not one, has bytes left over, or is beyond the limits.
    pub fn parse(mut block: &[u8]) -> Result<Self, DecodeError> {
        let count = number(&mut block)?;
        if count > MAX_HEADERS {
            return Err(DecodeError::TooManyHeaders(count));
        }
        let mut headers = Vec::new();
        for _ in 0..count {
            let name = field(&mut block)?.to_ascii_lowercase();
            let value = field(&mut block)?;
            if name.is_empty() || headers.iter().any(|(known, _)| *known == name) {
                return Err(DecodeError::Headers);
            }
            headers.push((name, value));
        }
        if block.is_empty() {
            Ok(Self(headers))
        } else {
            Err(DecodeError::Headers)
        }
    }
}

impl<const N: usize> From<[(&str, &str); N]> for Headers {
    fn from(headers: [(&str, &str); N]) -> Self {
        let owned = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Self(owned.into())
    }
}

fn number(block: &mut &[u8]) -> Result<usize, DecodeError> {
    let (bytes, rest) = block.split_first_chunk().ok_or(DecodeError::Headers)?;
    *block = rest;
    usize::try_from(u32::from_be_bytes(*bytes)).map_err(|_| DecodeError::Headers)
}

fn field(block: &mut &[u8]) -> Result<String, DecodeError> {
    let length = number(block)?;
    if length > MAX_FIELD {
        return Err(DecodeError::FieldTooLong(length));
    }
    let (bytes, rest) = block.split_at_checked(length).ok_or(DecodeError::Headers)?;
    *block = rest;
    Ok(String::from_utf8_lossy(bytes).into_owned())
}

/// The inflate state of one direction of a connection.
pub struct Inflate {
    zlib: Decompress,
}

impl Default for Inflate {
    fn default() -> Self {
        Self {
            zlib: Decompress::new(true),
        }
    }
}

impl Inflate {
    /// The content of the next block.
    ///
    /// # Errors
    /// When it is no part of the stream, or larger than [`MAX_BLOCK`].
    pub fn block(&mut self, mut compressed: &[u8]) -> Result<Vec<u8>, DecodeError> {
        let mut block = Vec::new();
        let mut scratch = [0_u8; 4096];
        loop {
            let before = (self.zlib.total_in(), self.zlib.total_out());
            let status = match self
                .zlib
                .decompress(compressed, &mut scratch, FlushDecompress::Sync)
            {
                Ok(status) => Some(status),
                Err(error) if error.needs_dictionary().is_some() => {
                    let set = self.zlib.set_dictionary(&dictionary());
                    set.map_err(|_| DecodeError::Inflate)?;
                    None
                }
                Err(_) => return Err(DecodeError::Inflate),
            };
            let count = |now: u64, before: u64| usize::try_from(now - before).unwrap_or(usize::MAX);
            let taken = count(self.zlib.total_in(), before.0);
            let made = count(self.zlib.total_out(), before.1);
            compressed = compressed.get(taken..).ok_or(DecodeError::Inflate)?;
            block.extend_from_slice(scratch.get(..made).ok_or(DecodeError::Inflate)?);
            if block.len() > MAX_BLOCK {
                return Err(DecodeError::BlockTooLarge);
            }
            match status {
                // A stream that ends could never carry the next block.
                Some(Status::StreamEnd) => return Err(DecodeError::Inflate),
                Some(_) if made < scratch.len() && compressed.is_empty() => return Ok(block),
                Some(_) if made == 0 && taken == 0 => return Err(DecodeError::Inflate),
                _ => {}
            }
        }
    }
}
