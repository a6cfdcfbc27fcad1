//! Frames of SPDY/3.1 as bytes. Sans-IO: bytes in, frames out, nothing is kept but what a header
//! says. Limits are checked on the eight bytes of a frame's head, before anything is set aside for it.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::headers::{Headers, Inflate};

/// Largest control frame, without its head.
pub const MAX_CONTROL: usize = 16 * 1024;
/// Largest piece in which the content of a data frame is handed on.
pub const MAX_PIECE: usize = 32 * 1024;
/// Bytes of a frame's head.
const HEAD: usize = 8;
/// A stream's sender has nothing more to say.
const FIN: u8 = 1;
/// Control bit and version 3.
const CONTROL: u16 = 0x8003;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

/// A block without headers, as the first one of a connection and as each later one.
const EMPTY_FIRST: &[u8] = &[
    0x78, 0xf9, 0xe3, 0xc6, 0xa7, 0xc2, 0x02, 0xa6, 0x23, 0x06, 0, 0, 0, 0, 0xff, 0xff,
];
const EMPTY_LATER: &[u8] = &[0x02, 0x01, 0, 0, 0, 0, 0xff, 0xff];

/// Why a stream is reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetReason {
    /// Its number or its headers are wrong.
    Protocol,
    /// There are too many.
    Refused,
    /// It is of no use any more.
    Cancel,
}

/// What a client says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// It opens a stream.
    Open {
        /// The stream's number.
        id: u32,
        /// What it is for.
        headers: Headers,
        /// Nothing will come on it.
        last: bool,
    },
    /// A piece of a data frame.
    Data {
        /// The stream.
        id: u32,
        /// At most [`MAX_PIECE`] bytes.
        bytes: Bytes,
        /// Nothing more comes on the stream.
        last: bool,
    },
    /// It gives a stream up.
    Reset {
        /// The stream.
        id: u32,
    },
    /// It wants to see this number again.
    Ping {
        /// The number.
        id: u32,
    },
    /// It opens no more streams.
    GoAway,
    /// Something without meaning for this server.
    Ignored,
}

/// What is wrong with a client's bytes. The connection cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Another protocol, or another version of it.
    #[error("no frame of SPDY version 3")]
    Version,
    /// A kind of control frame that does not exist.
    #[error("unknown control frame {0}")]
    UnknownFrame(u16),
    /// A control frame beyond the limit.
    #[error("control frame of {0} bytes, at most {MAX_CONTROL} are taken")]
    ControlTooLarge(usize),
    /// A control frame of a length that its kind cannot have.
    #[error("control frame {kind} of {length} bytes")]
    Length {
        /// Its kind.
        kind: u16,
        /// Its length.
        length: usize,
    },
    /// A header block that is no part of the compressed stream.
    #[error("header block cannot be inflated")]
    Inflate,
    /// A header block that inflates to too much.
    #[error("header block is too large")]
    BlockTooLarge,
    /// Too many headers.
    #[error("header block with {0} headers")]
    TooManyHeaders(usize),
    /// A header that is too long.
    #[error("header of {0} bytes")]
    FieldTooLong(usize),
    /// A header block that contradicts itself.
    #[error("malformed header block")]
    Headers,
}

/// The reading half. After an error it must not be used again.
#[derive(Default)]
pub struct Decoder {
    inflate: Inflate,
    /// The data frame whose content comes next.
    open: Option<DataFrame>,
}

struct DataFrame {
    id: u32,
    left: usize,
    last: bool,
}

impl Decoder {
    /// Takes one frame, or a piece of one, off the front of `input`; nothing if more is needed.
    ///
    /// # Errors
    /// Any [`DecodeError`].
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, DecodeError> {
        if self.open.is_some() {
            return Ok(self.piece(input));
        }
        let Some(head) = input.first_chunk::<HEAD>() else {
            return Ok(None);
        };
        let flags = head[4];
        let length = usize::from(head[5]) << 16 | usize::from(head[6]) << 8 | usize::from(head[7]);
        let word = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        if word >> 31 == 0 {
            input.advance(HEAD);
            return Ok(Some(self.data(word, flags, length)));
        }
        let version = u16::from_be_bytes([head[0], head[1]]);
        let kind = u16::from_be_bytes([head[2], head[3]]);
        if version != CONTROL {
            return Err(DecodeError::Version);
        }
        if !matches!(kind, SYN_STREAM..=SETTINGS | PING..=WINDOW_UPDATE) {
            return Err(DecodeError::UnknownFrame(kind));
        }
        if length > MAX_CONTROL {
            return Err(DecodeError::ControlTooLarge(length));
        }
        if input.len() < HEAD + length {
            return Ok(None);
        }
        input.advance(HEAD);
        let body = input.split_to(length);
        self.control(kind, flags, &body).map(Some)
    }

    fn data(&mut self, id: u32, flags: u8, length: usize) -> Frame {
        let last = flags & FIN != 0;
        match (length, last) {
            (0, true) => Frame::Data {
                id,
                bytes: Bytes::new(),
                last,
            },
            (0, false) => Frame::Ignored,
            _ => {
                self.open = Some(DataFrame {
                    id,
                    left: length,
                    last,
                });
                Frame::Ignored
            }
        }
    }

    fn piece(&mut self, input: &mut BytesMut) -> Option<Frame> {
        let open = self.open.as_mut()?;
        let count = open.left.min(input.len()).min(MAX_PIECE);
        if count == 0 {
            return None;
        }
        // Copied: a piece must not keep a whole read buffer alive.
        let bytes = Bytes::copy_from_slice(&input[..count]);
        input.advance(count);
        open.left -= count;
        let frame = Frame::Data {
            id: open.id,
            bytes,
            last: open.last && open.left == 0,
        };
        if open.left == 0 {
            self.open = None;
        }
        Some(frame)
    }

    fn control(&mut self, kind: u16, flags: u8, body: &[u8]) -> Result<Frame, DecodeError> {
        let wrong = || DecodeError::Length {
            kind,
            length: body.len(),
        };
        let number = |at: usize| {
            let bytes = body.get(at..).and_then(|rest| rest.first_chunk());
            bytes
                .map(|bytes| u32::from_be_bytes(*bytes))
                .ok_or_else(wrong)
        };
        let exactly = |length: usize| (body.len() == length).then_some(()).ok_or_else(wrong);
        let id = |at: usize| number(at).map(|id| id & 0x7fff_ffff);
        match kind {
            SYN_STREAM => {
                // Number, associated number, priority, slot.
                let block = body.get(10..).ok_or_else(wrong)?;
                let headers = Headers::parse(&self.inflate.block(block)?)?;
                Ok(Frame::Open {
                    id: id(0)?,
                    headers,
                    last: flags & FIN != 0,
                })
            }
            SYN_REPLY | HEADERS => {
                // Of no meaning here, but later blocks build on them.
                let block = body.get(4..).ok_or_else(wrong)?;
                Headers::parse(&self.inflate.block(block)?)?;
                Ok(Frame::Ignored)
            }
            RST_STREAM => {
                exactly(8)?;
                Ok(Frame::Reset { id: id(0)? })
            }
            PING => {
                exactly(4)?;
                Ok(Frame::Ping { id: number(0)? })
            }
            GOAWAY => exactly(8).map(|()| Frame::GoAway),
            WINDOW_UPDATE => exactly(8).map(|()| Frame::Ignored),
            // SETTINGS: as many entries as it says, which nobody sets room aside for.
            _ => {
                let entries = usize::try_from(number(0)?).unwrap_or(usize::MAX);
                exactly(entries.saturating_mul(8).saturating_add(4)).map(|()| Frame::Ignored)
            }
        }
    }
}

/// The writing half.
#[derive(Default)]
pub struct Encoder {
    has_replied: bool,
}

impl Encoder {
    /// Accepts a stream. The header block is empty: a constant, so nothing here compresses.
    pub fn accept(&mut self, id: u32, out: &mut BytesMut) {
        let block = if self.has_replied {
            EMPTY_LATER
        } else {
            EMPTY_FIRST
        };
        self.has_replied = true;
        control(SYN_REPLY, 4 + block.len(), out);
        out.put_u32(id);
        out.put_slice(block);
    }

    /// Data on a stream, at most 2^24 - 1 bytes.
    pub fn data(&self, id: u32, bytes: &[u8], last: bool, out: &mut BytesMut) {
        out.put_u32(id);
        head(u8::from(last), bytes.len(), out);
        out.put_slice(bytes);
    }

    /// Gives a stream up.
    pub fn reset(&self, id: u32, reason: ResetReason, out: &mut BytesMut) {
        control(RST_STREAM, 8, out);
        out.put_u32(id);
        out.put_u32(match reason {
            ResetReason::Protocol => 1,
            ResetReason::Refused => 3,
            ResetReason::Cancel => 5,
        });
    }

    /// Answers a ping.
    pub fn pong(&self, id: u32, out: &mut BytesMut) {
        control(PING, 4, out);
        out.put_u32(id);
    }

    /// Says that no more streams are taken.
    pub fn go_away(&self, last_id: u32, out: &mut BytesMut) {
        control(GOAWAY, 8, out);
        out.put_u32(last_id);
        out.put_u32(0);
    }
}

fn control(kind: u16, length: usize, out: &mut BytesMut) {
    out.put_u16(CONTROL);
    out.put_u16(kind);
    head(0, length, out);
}

/// Flags, and a length of 24 bits.
fn head(flags: u8, length: usize, out: &mut BytesMut) {
    let length = u32::try_from(length).unwrap_or(u32::MAX) & 0x00ff_ffff;
    out.put_u32(u32::from(flags) << 24 | length);
}
