//! Tag-length-value records: the one wire format between daemon, monitor and pause.
//!
//! A record is a tag (`u16`), a length (`u32`), both little-endian, and that many bytes. Numbers
//! are 8 bytes little-endian; lists repeat their tag; structures nest as groups. Readers skip
//! tags they do not know, which is what lets both ends be of different releases.

/// Most bytes of one message.
pub const MAX_TOTAL: usize = 4 << 20;
/// Deepest nesting of groups.
pub const MAX_DEPTH: u32 = 16;
/// Most records under one tag of one group.
pub const MAX_ITEMS: usize = 1 << 16;

const HEADER: usize = 6;

/// Why a message cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlvError {
    /// The message is longer than [`MAX_TOTAL`].
    #[error("message of {0} bytes is longer than {MAX_TOTAL}")]
    TooLong(usize),
    /// A header or a value ends behind the end of its group.
    #[error("record cut short: {wanted} bytes wanted, {left} left")]
    Truncated {
        /// What the header announced.
        wanted: usize,
        /// What is there.
        left: usize,
    },
    /// Groups nest deeper than [`MAX_DEPTH`].
    #[error("groups nest deeper than {MAX_DEPTH}")]
    TooDeep,
    /// A list has more than [`MAX_ITEMS`] items.
    #[error("tag {0}: more than {MAX_ITEMS} items")]
    TooMany(u16),
    /// A value is not of the type its tag has.
    #[error("tag {tag}: not a {wanted}")]
    Malformed {
        /// The tag.
        tag: u16,
        /// The type it should have.
        wanted: &'static str,
    },
}

/// Writes records into a growing message.
#[derive(Clone, Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// An empty message.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The message.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// A byte string. One longer than a `u32` can say is beyond [`MAX_TOTAL`] anyway and makes a
    /// message that no reader accepts.
    pub fn put_bytes(&mut self, tag: u16, value: &[u8]) {
        let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
        self.bytes.extend_from_slice(&tag.to_le_bytes());
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.bytes.extend_from_slice(value);
    }

    /// A text.
    pub fn put_str(&mut self, tag: u16, value: &str) {
        self.put_bytes(tag, value.as_bytes());
    }

    /// An unsigned number.
    pub fn put_u64(&mut self, tag: u16, value: u64) {
        self.put_bytes(tag, &value.to_le_bytes());
    }

    /// A signed number.
    pub fn put_i64(&mut self, tag: u16, value: i64) {
        self.put_bytes(tag, &value.to_le_bytes());
    }

    /// A truth value, as the number 0 or 1.
    pub fn put_bool(&mut self, tag: u16, value: bool) {
        self.put_u64(tag, u64::from(value));
    }

    /// A group of records that `fill` writes.
    pub fn put_group(&mut self, tag: u16, fill: impl FnOnce(&mut Self)) {
        self.bytes.extend_from_slice(&tag.to_le_bytes());
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        fill(self);
        let length = u32::try_from(self.bytes.len() - at - 4).unwrap_or(u32::MAX);
        self.bytes[at..at + 4].copy_from_slice(&length.to_le_bytes());
    }
}

/// One record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// What it means to its group.
    pub tag: u16,
    /// Its bytes.
    pub value: &'a [u8],
    depth: u32,
}

impl<'a> Record<'a> {
    fn malformed(&self, wanted: &'static str) -> TlvError {
        TlvError::Malformed {
            tag: self.tag,
            wanted,
        }
    }

    /// The value as an unsigned number.
    ///
    /// # Errors
    /// [`TlvError::Malformed`].
    pub fn u64(&self) -> Result<u64, TlvError> {
        let bytes = self
            .value
            .try_into()
            .map_err(|_| self.malformed("number"))?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// The value as a signed number.
    ///
    /// # Errors
    /// [`TlvError::Malformed`].
    pub fn i64(&self) -> Result<i64, TlvError> {
        self.u64().map(u64::cast_signed)
    }

    /// The value as an unsigned number of a narrower type.
    ///
    /// # Errors
    /// [`TlvError::Malformed`], also if it does not fit.
    pub fn unsigned<T: TryFrom<u64>>(&self) -> Result<T, TlvError> {
        T::try_from(self.u64()?).map_err(|_| self.malformed("number of this width"))
    }

    /// The value as a signed number of a narrower type.
    ///
    /// # Errors
    /// [`TlvError::Malformed`], also if it does not fit.
    pub fn signed<T: TryFrom<i64>>(&self) -> Result<T, TlvError> {
        T::try_from(self.i64()?).map_err(|_| self.malformed("number of this width"))
    }

    /// The value as a truth value.
    ///
    /// # Errors
    /// [`TlvError::Malformed`] for anything but 0 and 1.
    pub fn bool(&self) -> Result<bool, TlvError> {
        match self.u64()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.malformed("truth value")),
        }
    }

    /// The value as text.
    ///
    /// # Errors
    /// [`TlvError::Malformed`] for what is not UTF-8.
    pub fn str(&self) -> Result<&'a str, TlvError> {
        std::str::from_utf8(self.value).map_err(|_| self.malformed("text"))
    }

    /// The records inside.
    ///
    /// # Errors
    /// [`TlvError::TooDeep`].
    pub fn group(&self) -> Result<Reader<'a>, TlvError> {
        if self.depth >= MAX_DEPTH {
            return Err(TlvError::TooDeep);
        }
        Ok(Reader {
            rest: self.value,
            depth: self.depth + 1,
        })
    }
}

/// Iterates over the records of a message or a group; ends after the first error.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    depth: u32,
}

impl<'a> Reader<'a> {
    /// Reads a message.
    ///
    /// # Errors
    /// [`TlvError::TooLong`].
    pub const fn new(bytes: &'a [u8]) -> Result<Self, TlvError> {
        if bytes.len() > MAX_TOTAL {
            return Err(TlvError::TooLong(bytes.len()));
        }
        Ok(Self {
            rest: bytes,
            depth: 0,
        })
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], TlvError> {
        let Some((head, rest)) = self.rest.split_at_checked(count) else {
            let left = self.rest.len();
            self.rest = &[];
            return Err(TlvError::Truncated {
                wanted: count,
                left,
            });
        };
        self.rest = rest;
        Ok(head)
    }
}

impl<'a> Iterator for Reader<'a> {
    type Item = Result<Record<'a>, TlvError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let header = match self.take(HEADER) {
            Ok(header) => header,
            Err(error) => return Some(Err(error)),
        };
        let tag = u16::from_le_bytes([header[0], header[1]]);
        let length = u32::from_le_bytes([header[2], header[3], header[4], header[5]]);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        Some(self.take(length).map(|value| Record {
            tag,
            value,
            depth: self.depth,
        }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_and_groups_come_back() {
        let mut writer = Writer::new();
        writer.put_u64(1, u64::MAX);
        writer.put_group(2, |group| {
            group.put_str(3, "text");
            group.put_i64(4, -5);
        });
        writer.put_bool(5, true);
        let bytes = writer.into_bytes();
        let records: Vec<_> = Reader::new(&bytes)
            .expect("short")
            .collect::<Result<_, _>>()
            .expect("well formed");
        assert_eq!(records[0].u64(), Ok(u64::MAX));
        let inner: Vec<_> = records[1]
            .group()
            .expect("flat")
            .collect::<Result<_, _>>()
            .expect("well formed");
        assert_eq!(
            (inner[0].str(), inner[1].signed::<i32>()),
            (Ok("text"), Ok(-5))
        );
        assert_eq!(records[2].bool(), Ok(true));
        assert!(records[0].bool().is_err() && records[0].signed::<u8>().is_err());
    }

    #[test]
    fn every_cut_is_noticed() {
        let mut writer = Writer::new();
        writer.put_str(7, "abc");
        let bytes = writer.into_bytes();
        for cut in 1..bytes.len() {
            let read: Result<Vec<_>, _> = Reader::new(&bytes[..cut]).expect("short").collect();
            assert!(
                matches!(read, Err(TlvError::Truncated { .. })),
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn a_length_beyond_the_message_allocates_nothing() {
        let mut bytes = vec![1, 0];
        bytes.extend_from_slice(&u32::MAX.to_le_bytes());
        let read: Vec<_> = Reader::new(&bytes).expect("short").collect();
        assert_eq!(
            read,
            [Err(TlvError::Truncated {
                wanted: u32::MAX as usize,
                left: 0
            })]
        );
    }

    #[test]
    fn nesting_and_size_have_ends() {
        fn nest(writer: &mut Writer, depth: u32) {
            if depth > 0 {
                writer.put_group(1, |group| nest(group, depth - 1));
            }
        }
        let mut writer = Writer::new();
        nest(&mut writer, MAX_DEPTH + 1);
        let bytes = writer.into_bytes();
        let mut reader = Reader::new(&bytes).expect("short");
        let deep = loop {
            let record = reader.next().expect("one more").expect("well formed");
            match record.group() {
                Ok(inner) => reader = inner,
                Err(error) => break error,
            }
        };
        assert_eq!(deep, TlvError::TooDeep);
        let long = vec![0; MAX_TOTAL + 1];
        assert!(matches!(Reader::new(&long), Err(TlvError::TooLong(_))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_to_an_end(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let count = Reader::new(&bytes).expect("short").count();
            prop_assert!(count <= bytes.len() / HEADER + 1);
        }
    }
}
