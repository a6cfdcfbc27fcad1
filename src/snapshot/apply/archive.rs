//! The tar format, read strictly: old, ustar, GNU and PAX, with sparse files of every kind.
//!
//! Header blocks are parsed by the `tar` crate. The walk from block to block is ours, because a PAX
//! value may hold any byte (a capability attribute often has a newline in it) and because two
//! readings of one archive are how attacks begin: what is ambiguous is an error. Where tools
//! differ, the rule is Go's archive/tar, which wrote and reads nearly every image.

use std::io::BufRead;

use tar::{EntryType, Header};

use super::Failure;

const BLOCK: usize = 512;
/// Largest PAX header, and largest GNU long name.
const MAX_EXTENSION: u64 = 1 << 20;
const MAX_PATH: usize = 4096;
const MAX_XATTRS: usize = 256;
const MAX_XATTR_BYTES: usize = 64 << 10;
const MAX_SEGMENTS: usize = 1 << 20;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// Another name for an earlier entry.
    HardLink,
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// A named pipe.
    Fifo,
}

/// One entry; its content is read from the [`Archive`].
#[derive(Debug, Clone)]
pub struct Entry {
    /// Name as written, without NUL.
    pub path: Vec<u8>,
    /// Target of a link.
    pub link: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits with set-user-id and the like.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Device number.
    pub device: (u32, u32),
    /// Size of the file that results.
    pub size: u64,
    /// For a sparse file: offset and length of the parts with data, ascending.
    pub segments: Option<Vec<(u64, u64)>>,
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Text for messages: lossy and cut.
pub fn shown(path: &[u8]) -> String {
    let cut = &path[..path.len().min(200)];
    format!("{:?}", String::from_utf8_lossy(cut))
}

/// What extension headers said about the next entry.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    long_name: bool,
    long_link: bool,
    pax: Option<Pax>,
}

#[derive(Default)]
struct Pax {
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse_name: Option<Vec<u8>>,
    sparse_major: Option<u64>,
    sparse_real: Option<u64>,
    sparse_map: Vec<u64>,
    sparse: bool,
}

/// A tar stream.
pub struct Archive<'a, R: BufRead> {
    source: &'a mut R,
    /// Content of the current entry not read yet.
    remaining: u64,
    /// Filling after it.
    padding: u64,
    done: bool,
}

impl<'a, R: BufRead> Archive<'a, R> {
    /// Reads an archive from `source`.
    pub fn new(source: &'a mut R) -> Self {
        Self {
            source,
            remaining: 0,
            padding: 0,
            done: false,
        }
    }

    /// The next part of the current entry's content; empty at its end.
    ///
    /// # Errors
    /// [`Failure`] if the archive ends inside the entry.
    pub fn data(&mut self) -> Result<&[u8], Failure> {
        if self.remaining == 0 {
            return Ok(&[]);
        }
        let available = self
            .source
            .fill_buf()
            .map_err(|e| Failure::corrupt(e.to_string()))?;
        if available.is_empty() {
            return Err(Failure::corrupt("the archive ends inside a file"));
        }
        let count = available
            .len()
            .min(usize::try_from(self.remaining).unwrap_or(usize::MAX));
        Ok(&available[..count])
    }

    /// Marks `count` bytes of [`Archive::data`] as used.
    pub fn consume(&mut self, count: usize) {
        self.source.consume(count);
        self.remaining -= count as u64;
    }

    fn skip_rest(&mut self) -> Result<(), Failure> {
        self.remaining += std::mem::take(&mut self.padding);
        while self.remaining > 0 {
            let count = self.data()?.len();
            self.consume(count);
        }
        Ok(())
    }

    /// One block, or None at a clean end of the stream.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, Failure> {
        let mut block = [0_u8; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            let available = self
                .source
                .fill_buf()
                .map_err(|e| Failure::corrupt(e.to_string()))?;
            if available.is_empty() {
                return match filled {
                    0 => Ok(None),
                    _ => Err(Failure::corrupt("the archive ends inside a header")),
                };
            }
            let count = available.len().min(BLOCK - filled);
            block[filled..filled + count].copy_from_slice(&available[..count]);
            self.source.consume(count);
            filled += count;
        }
        Ok(Some(block))
    }

    fn header(&mut self) -> Result<Option<Header>, Failure> {
        let Some(block) = self.block()? else {
            return Ok(None);
        };
        if block.iter().all(|byte| *byte == 0) {
            // The end is two zero blocks; an archive that just stops after one ends too.
            match self.block()? {
                Some(second) if second.iter().any(|byte| *byte != 0) => {
                    return Err(Failure::corrupt("a header follows a single zero block"));
                }
                _ => return Ok(None),
            }
        }
        let header = Header::from_byte_slice(&block).clone();
        let sum: u32 = block[..148]
            .iter()
            .chain(&block[156..])
            .map(|b| u32::from(*b))
            .sum();
        match header.cksum() {
            Ok(found) if found == sum + 8 * 32 => Ok(Some(header)),
            _ => Err(Failure::corrupt("a header's checksum is wrong")),
        }
    }

    /// Goes on to the next entry.
    ///
    /// # Errors
    /// [`Failure`] if the archive is damaged or ambiguous, or an extension is larger than allowed.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, Failure> {
        if self.done {
            return Ok(None);
        }
        self.skip_rest()?;
        let mut extensions = Extensions::default();
        let mut any = false;
        loop {
            let Some(header) = self.header()? else {
                self.done = true;
                return if any {
                    Err(Failure::corrupt(
                        "the archive ends after an extension header",
                    ))
                } else {
                    Ok(None)
                };
            };
            let size = size_field(&header)?;
            match header.entry_type() {
                EntryType::XGlobalHeader => {
                    self.extension(size)?; // comments of git and the like; never applied
                    continue;
                }
                EntryType::XHeader => {
                    if extensions.pax.is_some() {
                        return Err(Failure::corrupt("two PAX headers for one entry"));
                    }
                    let data = self.extension(size)?;
                    extensions.pax = Some(parse_pax(&data, &mut extensions)?);
                }
                EntryType::GNULongName => {
                    if std::mem::replace(&mut extensions.long_name, true) {
                        return Err(Failure::corrupt("two long names for one entry"));
                    }
                    extensions.path = Some(until_nul(self.extension(size)?));
                }
                EntryType::GNULongLink => {
                    if std::mem::replace(&mut extensions.long_link, true) {
                        return Err(Failure::corrupt("two long links for one entry"));
                    }
                    extensions.link = Some(until_nul(self.extension(size)?));
                }
                _ => return self.entry(&header, size, extensions).map(Some),
            }
            any = true;
        }
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, Failure> {
        if size > MAX_EXTENSION {
            return Err(Failure::limit(format!(
                "an extension header claims {size} bytes"
            )));
        }
        (self.remaining, self.padding) = (size, padding(size));
        let mut data = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        while self.remaining > 0 {
            let part = self.data()?;
            data.extend_from_slice(part);
            let count = part.len();
            self.consume(count);
        }
        self.skip_rest()?;
        Ok(data)
    }

    fn entry(
        &mut self,
        header: &Header,
        header_size: u64,
        extensions: Extensions,
    ) -> Result<Entry, Failure> {
        let pax = extensions.pax.unwrap_or_default();
        let path = match (pax.sparse_name, extensions.path) {
            (Some(name), _) | (None, Some(name)) => name,
            (None, None) => header.path_bytes().into_owned(),
        };
        let link = extensions
            .link
            .or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned))
            .unwrap_or_default();
        for name in [&path, &link] {
            if name.contains(&0) {
                return Err(Failure::refused(format!(
                    "{} holds a NUL byte",
                    shown(&path)
                )));
            }
            if name.len() > MAX_PATH {
                return Err(Failure::limit(format!(
                    "{}... has {} bytes, at most {MAX_PATH} are allowed",
                    shown(name),
                    name.len()
                )));
            }
        }
        let kind = kind(header, &path)?;
        let raw = header.as_old();
        let mut entry = Entry {
            link,
            kind,
            mode: number(&raw.mode, "mode", &path)? & 0o7777,
            uid: owner(pax.uid, &raw.uid, "uid", &path)?,
            gid: owner(pax.gid, &raw.gid, "gid", &path)?,
            mtime: pax
                .mtime
                .unwrap_or((signed(&raw.mtime, "mtime", &path)?, 0)),
            device: device(header, kind, &path)?,
            size: 0,
            segments: None,
            xattrs: pax.xattrs,
            path,
        };
        if kind != Kind::File {
            return Ok(entry); // a size in such a header means nothing
        }
        let stored = pax.size.unwrap_or(header_size);
        (self.remaining, self.padding) = (stored, padding(stored));
        entry.size = stored;
        if header.entry_type() == EntryType::GNUSparse {
            let (segments, size) = self.gnu_sparse(header)?;
            (entry.segments, entry.size) = (Some(segments), size);
        } else if pax.sparse {
            let map = match pax.sparse_major {
                Some(1) => self.sparse_map_in_content()?,
                _ => pax.sparse_map,
            };
            let real = pax
                .sparse_real
                .ok_or_else(|| sparse_error(&entry.path, "no size"))?;
            let pairs = map.chunks(2).map(|pair| (pair[0], pair.get(1).copied()));
            entry.segments = Some(
                pairs
                    .map(|(at, len)| len.map(|len| (at, len)))
                    .collect::<Option<_>>()
                    .ok_or_else(|| sparse_error(&entry.path, "an odd map"))?,
            );
            entry.size = real;
        }
        if let Some(segments) = &mut entry.segments {
            check_segments(segments, entry.size, self.remaining)
                .map_err(|what| sparse_error(&entry.path, what))?;
        }
        Ok(entry)
    }

    /// Old GNU format: four parts in the header, more in blocks that follow it.
    fn gnu_sparse(&mut self, header: &Header) -> Result<(Vec<(u64, u64)>, u64), Failure> {
        let wrong = |_| Failure::corrupt("a sparse header is malformed");
        let gnu = header
            .as_gnu()
            .ok_or_else(|| Failure::corrupt("a sparse entry without a GNU header"))?;
        let size = gnu.real_size().map_err(wrong)?;
        let mut segments = Vec::new();
        for part in gnu.sparse.iter().filter(|part| !part.is_empty()) {
            segments.push((part.offset().map_err(wrong)?, part.length().map_err(wrong)?));
        }
        let mut extended = gnu.is_extended();
        while extended {
            let block = self
                .block()?
                .ok_or_else(|| Failure::corrupt("the archive ends in a sparse map"))?;
            let mut more = tar::GnuExtSparseHeader::new();
            more.as_mut_bytes().copy_from_slice(&block);
            for part in more.sparse().iter().filter(|part| !part.is_empty()) {
                segments.push((part.offset().map_err(wrong)?, part.length().map_err(wrong)?));
            }
            if segments.len() > MAX_SEGMENTS {
                return Err(Failure::limit("a sparse file has too many parts"));
            }
            extended = more.is_extended();
        }
        Ok((segments, size))
    }

    /// PAX sparse format 1.0: decimal numbers, one a line, at the beginning of the content, filled
    /// up to a block.
    fn sparse_map_in_content(&mut self) -> Result<Vec<u64>, Failure> {
        let wrong = || Failure::corrupt("a sparse map is malformed");
        let (mut numbers, mut want) = (Vec::new(), None);
        let mut digits = String::new();
        while want.is_none_or(|want| numbers.len() < want) {
            if self.remaining < BLOCK as u64 {
                return Err(wrong());
            }
            let block = self.block()?.ok_or_else(wrong)?;
            self.remaining -= BLOCK as u64;
            for byte in block {
                match byte {
                    b'0'..=b'9' if digits.len() < 20 => digits.push(char::from(byte)),
                    b'\n' => {
                        let number: u64 = digits.parse().map_err(|_| wrong())?;
                        digits.clear();
                        match want {
                            None => {
                                let count = usize::try_from(number).map_err(|_| wrong())?;
                                if count > MAX_SEGMENTS {
                                    return Err(Failure::limit("a sparse file has too many parts"));
                                }
                                want = Some(count * 2);
                            }
                            Some(want) if numbers.len() < want => numbers.push(number),
                            Some(_) => return Err(wrong()),
                        }
                    }
                    0 if want.is_some_and(|want| numbers.len() == want) => {}
                    _ => return Err(wrong()),
                }
                if want.is_some_and(|want| numbers.len() == want) {
                    break;
                }
            }
        }
        Ok(numbers)
    }
}

fn sparse_error(path: &[u8], what: &str) -> Failure {
    Failure::corrupt(format!("sparse file {}: {what}", shown(path)))
}

fn padding(size: u64) -> u64 {
    (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64
}

fn until_nul(mut data: Vec<u8>) -> Vec<u8> {
    if let Some(end) = data.iter().position(|byte| *byte == 0) {
        data.truncate(end);
    }
    data
}

fn check_segments(
    segments: &mut Vec<(u64, u64)>,
    size: u64,
    stored: u64,
) -> Result<(), &'static str> {
    let (mut end, mut total) = (0_u64, 0_u64);
    for (at, len) in segments.iter() {
        if *at < end {
            return Err("parts overlap or are out of order");
        }
        end = at
            .checked_add(*len)
            .ok_or("a part ends beyond all numbers")?;
        total = total
            .checked_add(*len)
            .ok_or("parts larger than all numbers")?;
    }
    if end > size || total != stored {
        return Err("the map does not fit the size");
    }
    segments.retain(|(_, len)| *len > 0);
    Ok(())
}

fn kind(header: &Header, path: &[u8]) -> Result<Kind, Failure> {
    Ok(match header.entry_type() {
        // Before ustar, a directory was a file with a slash at the end of its name.
        EntryType::Regular | EntryType::Continuous if path.ends_with(b"/") => Kind::Directory,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::File,
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => Kind::Symlink,
        EntryType::Link => Kind::HardLink,
        EntryType::Char => Kind::Char,
        EntryType::Block => Kind::Block,
        EntryType::Fifo => Kind::Fifo,
        other => {
            return Err(Failure::refused(format!(
                "{} is of type {:?}, which has no place in a layer",
                shown(path),
                char::from(other.as_byte())
            )));
        }
    })
}

fn device(header: &Header, kind: Kind, path: &[u8]) -> Result<(u32, u32), Failure> {
    if !matches!(kind, Kind::Char | Kind::Block) {
        return Ok((0, 0));
    }
    let bytes = header.as_bytes();
    let major = number(&bytes[329..337], "device major", path)?;
    let minor = number(&bytes[337..345], "device minor", path)?;
    if major > 0xfff || minor > 0xf_ffff {
        return Err(Failure::refused(format!(
            "{}: no device has number {major}:{minor}",
            shown(path)
        )));
    }
    Ok((major, minor))
}

/// uid and gid -1 would mean "leave as it is" to chown.
fn owner(pax: Option<u32>, field: &[u8], name: &str, path: &[u8]) -> Result<u32, Failure> {
    let value = match pax {
        Some(value) => value,
        None => number(field, name, path)?,
    };
    if value == u32::MAX {
        return Err(Failure::refused(format!(
            "{}: {name} {value} is nobody's",
            shown(path)
        )));
    }
    Ok(value)
}

fn number(field: &[u8], name: &str, path: &[u8]) -> Result<u32, Failure> {
    u32::try_from(signed(field, name, path)?)
        .map_err(|_| Failure::refused(format!("{}: {name} is out of range", shown(path))))
}

fn size_field(header: &Header) -> Result<u64, Failure> {
    let path = header.path_bytes();
    u64::try_from(signed(&header.as_old().size, "size", &path)?)
        .map_err(|_| Failure::refused(format!("{}: its size is negative", shown(&path))))
}

/// Octal text, or big-endian two's complement if the first bit is set.
fn signed(field: &[u8], name: &str, path: &[u8]) -> Result<i64, Failure> {
    let wrong = || Failure::corrupt(format!("{}: {name} is no number", shown(path)));
    if field[0] & 0x80 != 0 {
        let negative = field[0] & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        for (index, byte) in field.iter().enumerate() {
            let byte = match index {
                0 if negative => *byte | 0x80,
                0 => *byte & 0x7f,
                _ => *byte,
            };
            value = (value << 8) | i128::from(byte);
        }
        return i64::try_from(value).map_err(|_| wrong());
    }
    let end = field
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(field.len());
    let text = std::str::from_utf8(&field[..end])
        .map_err(|_| wrong())?
        .trim();
    if text.is_empty() {
        return Ok(0);
    }
    if !text.bytes().all(|byte| (b'0'..=b'7').contains(&byte)) {
        return Err(wrong());
    }
    i64::from_str_radix(text, 8).map_err(|_| wrong())
}

/// Records `length key=value\n`; the value may hold anything.
fn parse_pax(mut data: &[u8], extensions: &mut Extensions) -> Result<Pax, Failure> {
    let mut pax = Pax::default();
    let mut xattr_bytes = 0;
    while !data.is_empty() {
        let (key, value, rest) =
            pax_record(data).ok_or_else(|| Failure::corrupt("a PAX header is malformed"))?;
        data = rest;
        let wrong =
            || Failure::corrupt(format!("PAX {} is malformed", String::from_utf8_lossy(key)));
        let text = || std::str::from_utf8(value).map_err(|_| wrong());
        let integer = || text()?.parse::<u64>().map_err(|_| wrong());
        let id = || u32::try_from(integer()?).map_err(|_| wrong());
        match key {
            b"path" => extensions.path = Some(value.to_vec()),
            b"linkpath" => extensions.link = Some(value.to_vec()),
            b"size" => pax.size = Some(integer()?),
            b"uid" => pax.uid = Some(id()?),
            b"gid" => pax.gid = Some(id()?),
            b"mtime" => pax.mtime = Some(pax_time(text()?).ok_or_else(wrong)?),
            b"GNU.sparse.name" => pax.sparse_name = Some(value.to_vec()),
            b"GNU.sparse.major" => (pax.sparse_major, pax.sparse) = (Some(integer()?), true),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => {
                (pax.sparse_real, pax.sparse) = (Some(integer()?), true);
            }
            b"GNU.sparse.map" => {
                for number in text()?.split(',').filter(|number| !number.is_empty()) {
                    pax.sparse_map.push(number.parse().map_err(|_| wrong())?);
                }
            }
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => pax.sparse_map.push(integer()?),
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    xattr_bytes += name.len() + value.len();
                    if pax.xattrs.len() == MAX_XATTRS || xattr_bytes > MAX_XATTR_BYTES {
                        return Err(Failure::limit(
                            "more than 64 KiB or 256 of extended attributes",
                        ));
                    }
                    pax.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
    }
    Ok(pax)
}

fn pax_record(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = data.iter().take(8).position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&data[..space]).ok()?.parse().ok()?;
    let record = data.get(..length)?;
    let body = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|byte| *byte == b'=')?;
    (equals > 0).then(|| (&body[..equals], &body[equals + 1..], &data[length..]))
}

/// Decimal seconds with an optional fraction, perhaps negative.
fn pax_time(text: &str) -> Option<(i64, u32)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanos: u32 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    if whole.starts_with('-') && nanos > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos));
    }
    Some((seconds, nanos))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pax_values_may_hold_newlines() {
        let value = b"\x01\0\0\x02\n=\n\0";
        let mut record = b" SCHILY.xattr.security.capability=".to_vec();
        record.extend_from_slice(value);
        record.push(b'\n');
        let length = record.len() + 2;
        let data = [
            length.to_string().as_bytes(),
            &record,
            b"13 path=a\nb\nc\n"[..].as_ref(),
        ]
        .concat();
        let data = data
            .strip_suffix(b"13 path=a\nb\nc\n")
            .map(<[u8]>::to_vec)
            .unwrap_or(data);
        let data = [data, b"14 path=a\nb\nc\n".to_vec()].concat();
        let mut extensions = Extensions::default();
        let pax = parse_pax(&data, &mut extensions).expect("parses");
        assert_eq!(
            pax.xattrs,
            [(b"security.capability".to_vec(), value.to_vec())]
        );
        assert_eq!(extensions.path.as_deref(), Some(&b"a\nb\nc"[..]));
    }

    #[test]
    fn numbers() {
        let parse = |field: &[u8]| signed(field, "n", b"p").ok();
        assert_eq!(parse(b"0000644\0"), Some(0o644));
        assert_eq!(parse(b"   644 \0"), Some(0o644));
        assert_eq!(parse(&[0; 8]), Some(0));
        assert_eq!(parse(b"9\0\0\0\0\0\0\0"), None);
        assert_eq!(parse(b"-1\0\0\0\0\0\0"), None);
        assert_eq!(parse(&[0x80, 0, 0, 0, 0, 0, 1, 0]), Some(256));
        assert_eq!(parse(&[0xff; 12]), Some(-1));
        assert_eq!(pax_time("-1.25"), Some((-2, 750_000_000)));
        assert_eq!(pax_time("12.5"), Some((12, 500_000_000)));
        assert_eq!(pax_time("x"), None);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(data in proptest::collection::vec(any::<u8>(), 0..4096)) {
            let mut source = &data[..];
            let mut archive = Archive::new(&mut source);
            for _ in 0..64 {
                if !matches!(archive.next_entry(), Ok(Some(_))) {
                    break;
                }
            }
        }

        #[test]
        fn altered_archives_never_panic(at in 0_usize..3072, to in any::<u8>()) {
            let mut builder = tar::Builder::new(Vec::new());
            for name in ["a", "b/c"] {
                let mut header = Header::new_gnu();
                header.set_size(3);
                header.set_mode(0o644);
                builder.append_data(&mut header, name, &b"xyz"[..]).expect("to memory");
            }
            let mut data = builder.into_inner().expect("to memory");
            if let Some(byte) = data.get_mut(at) {
                *byte = to;
            }
            // A right checksum lets the change through to what follows.
            let mut header = Header::from_byte_slice(&data[..512]).clone();
            header.set_cksum();
            data[..512].copy_from_slice(header.as_bytes());
            let mut source = &data[..];
            let mut archive = Archive::new(&mut source);
            while let Ok(Some(entry)) = archive.next_entry() {
                prop_assert!(entry.path.len() <= MAX_PATH);
            }
        }
    }
}
