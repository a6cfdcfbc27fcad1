//! Frames of WebSocket as bytes. Sans-IO, and nothing is kept of a message: it is handed on in the
//! pieces in which it arrives, so its length costs nothing.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Longest frame that is taken.
pub const MAX_FRAME: u64 = 16 * 1024 * 1024;
/// Longest control frame, by the protocol.
const MAX_CONTROL: u64 = 125;
/// Largest piece in which a message is handed on.
pub const MAX_PIECE: usize = 32 * 1024;

/// Kinds of frames that are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opcode {
    /// A message of characters.
    Text,
    /// A message of bytes.
    Binary,
    /// Goodbye.
    Close,
    /// The answer to a ping.
    Pong,
}

/// Why a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseCode {
    /// Its work is done.
    Normal,
    /// The client breaks the protocol.
    Protocol,
    /// A message of a kind that is not for this connection.
    Kind,
    /// A frame is too long.
    TooLarge,
}

impl CloseCode {
    /// As a close frame carries it.
    #[must_use]
    pub const fn bytes(self) -> [u8; 2] {
        let code: u16 = match self {
            Self::Normal => 1000,
            Self::Protocol => 1002,
            Self::Kind => 1003,
            Self::TooLarge => 1009,
        };
        code.to_be_bytes()
    }
}

/// What a client sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// A part of a message.
    Message {
        /// At most [`MAX_PIECE`] bytes.
        bytes: Bytes,
        /// The message begins with it.
        first: bool,
        /// The message ends with it.
        last: bool,
        /// The message is one of characters.
        is_text: bool,
    },
    /// It wants this back.
    Ping(Bytes),
    /// The answer to a ping that nobody sent.
    Pong,
    /// Goodbye.
    Close,
}

/// What is wrong with a client's bytes. The connection cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WebSocketError {
    /// A bit is set whose meaning was not agreed on.
    #[error("reserved bits are set")]
    Reserved,
    /// A kind of frame that does not exist.
    #[error("unknown frame kind {0}")]
    Opcode(u8),
    /// Clients mask what they send.
    #[error("a frame without mask")]
    Unmasked,
    /// A frame beyond the limit.
    #[error("frame of {0} bytes, at most {MAX_FRAME} are taken")]
    TooLarge(u64),
    /// A control frame that is long or in parts.
    #[error("control frame that is too long or in parts")]
    Control,
    /// A message begins inside another one, or goes on that never began.
    #[error("frames of messages out of order")]
    Order,
    /// Text where bytes belong, or the other way round.
    #[error("a message of the wrong kind")]
    Kind,
    /// A message of which its channel cannot be told, or is not one of the client's.
    #[error("a message for channel {0:?}, which takes none")]
    Channel(Option<u8>),
    /// Text that is no base64.
    #[error("a message that is no base64")]
    Base64,
    /// A tunnel carries something else than SPDY.
    #[error("the tunnel carries no SPDY")]
    Tunnel,
}

/// The reading half. After an error it must not be used again.
#[derive(Debug, Default)]
pub struct Decoder {
    /// The data frame whose content comes next.
    open: Option<DataFrame>,
    /// The message that has begun and not ended.
    message: Option<Message>,
}

#[derive(Debug, Clone, Copy)]
struct DataFrame {
    left: u64,
    mask: [u8; 4],
    /// Where in the mask the next byte is.
    at: usize,
    ends_message: bool,
}

#[derive(Debug, Clone, Copy)]
struct Message {
    is_text: bool,
    /// Nothing of it was handed on.
    is_new: bool,
}

struct Head {
    ends_message: bool,
    opcode: u8,
    length: u64,
    mask: [u8; 4],
    /// Bytes of the head itself.
    size: usize,
}

impl Decoder {
    /// Takes what comes next off the front of `input`; nothing if more is needed.
    ///
    /// # Errors
    /// Any [`WebSocketError`].
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Piece>, WebSocketError> {
        if self.open.is_none() {
            let Some(head) = head(input)? else {
                return Ok(None);
            };
            if head.opcode >= 8 {
                return control(&head, input);
            }
            self.begin(&head)?;
            input.advance(head.size);
        }
        Ok(self.piece(input))
    }

    fn begin(&mut self, head: &Head) -> Result<(), WebSocketError> {
        match (head.opcode, &self.message) {
            (0, Some(_)) => {}
            (1 | 2, None) => {
                self.message = Some(Message {
                    is_text: head.opcode == 1,
                    is_new: true,
                });
            }
            _ => return Err(WebSocketError::Order),
        }
        self.open = Some(DataFrame {
            left: head.length,
            mask: head.mask,
            at: 0,
            ends_message: head.ends_message,
        });
        Ok(())
    }

    fn piece(&mut self, input: &mut BytesMut) -> Option<Piece> {
        let (frame, message) = (self.open.as_mut()?, self.message.as_mut()?);
        let most = usize::try_from(frame.left).unwrap_or(usize::MAX);
        let count = most.min(input.len()).min(MAX_PIECE);
        if count == 0 && frame.left > 0 {
            return None;
        }
        // Copied: a piece must not keep a whole read buffer alive.
        let mut bytes = BytesMut::from(&input[..count]);
        input.advance(count);
        for byte in bytes.iter_mut() {
            *byte ^= frame.mask[frame.at % 4];
            frame.at += 1;
        }
        frame.left -= count as u64;
        let (frame_ends, ends_message) = (frame.left == 0, frame.ends_message);
        let piece = Piece::Message {
            bytes: bytes.freeze(),
            first: message.is_new,
            last: frame_ends && ends_message,
            is_text: message.is_text,
        };
        message.is_new = false;
        if frame_ends {
            self.open = None;
            if ends_message {
                self.message = None;
            }
        }
        Some(piece)
    }
}

/// Reads and checks a frame's head, which stays in the input.
fn head(input: &BytesMut) -> Result<Option<Head>, WebSocketError> {
    let Some([first, second]) = input.first_chunk::<2>().copied() else {
        return Ok(None);
    };
    if first & 0x70 != 0 {
        return Err(WebSocketError::Reserved);
    }
    let opcode = first & 0x0f;
    if !matches!(opcode, 0..=2 | 8..=10) {
        return Err(WebSocketError::Opcode(opcode));
    }
    if second & 0x80 == 0 {
        return Err(WebSocketError::Unmasked);
    }
    let rest = &input[2..];
    let (length, wide) = match second & 0x7f {
        126 => (
            rest.first_chunk()
                .map(|b| u64::from(u16::from_be_bytes(*b))),
            2,
        ),
        127 => (rest.first_chunk().map(|b| u64::from_be_bytes(*b)), 8),
        short => (Some(u64::from(short)), 0),
    };
    let Some(length) = length else {
        return Ok(None);
    };
    if length > MAX_FRAME {
        return Err(WebSocketError::TooLarge(length));
    }
    let ends_message = first & 0x80 != 0;
    if opcode >= 8 && (length > MAX_CONTROL || !ends_message) {
        return Err(WebSocketError::Control);
    }
    let Some(mask) = rest[wide..].first_chunk::<4>().copied() else {
        return Ok(None);
    };
    Ok(Some(Head {
        ends_message,
        opcode,
        length,
        mask,
        size: 2 + wide + 4,
    }))
}

/// A whole control frame, if it is there.
fn control(head: &Head, input: &mut BytesMut) -> Result<Option<Piece>, WebSocketError> {
    let length = usize::try_from(head.length).map_err(|_| WebSocketError::Control)?;
    if input.len() < head.size + length {
        return Ok(None);
    }
    input.advance(head.size);
    let mut bytes = input.split_to(length);
    for (byte, mask) in bytes.iter_mut().zip(head.mask.iter().cycle()) {
        *byte ^= mask;
    }
    Ok(Some(match head.opcode {
        8 => Piece::Close,
        9 => Piece::Ping(Bytes::copy_from_slice(&bytes)),
        _ => Piece::Pong,
    }))
}

/// Writes one frame that is a whole message, from its parts.
pub fn encode(opcode: Opcode, parts: &[&[u8]], out: &mut BytesMut) {
    out.put_u8(match opcode {
        Opcode::Text => 0x81,
        Opcode::Binary => 0x82,
        Opcode::Close => 0x88,
        Opcode::Pong => 0x8a,
    });
    let length: usize = parts.iter().map(|part| part.len()).sum();
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ ..=125), _) => out.put_u8(short),
        (_, Ok(medium)) => {
            out.put_u8(126);
            out.put_u16(medium);
        }
        _ => {
            out.put_u8(127);
            out.put_u64(length as u64);
        }
    }
    for part in parts {
        out.put_slice(part);
    }
}
