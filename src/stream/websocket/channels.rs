//! Exec and attach over WebSocket: each message begins with the number of its channel.

use base64::Engine as _;
use bytes::{Bytes, BytesMut};

use super::{
    Link, Part, Told,
    codec::{Opcode, WebSocketError, encode},
};
use crate::stream::mux::{Event, Message, Protocol, ProtocolError};

/// What the channels carry, by number.
pub const ROLES: [&str; 5] = ["stdin", "stdout", "stderr", "error", "resize"];
/// The channel of a v5 client's close signals.
const CLOSE: u8 = 255;
/// Largest message in base64: it must be whole before it can be read.
const MAX_BASE64: usize = 1024 * 1024;

/// How messages look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// A byte for the channel, then bytes.
    Binary,
    /// A digit for the channel, then base64.
    Base64,
    /// As [`Format::Binary`], and a client may close a channel.
    Closable,
}

/// The channels of one connection. All of them are there from the beginning.
pub struct Channels {
    link: Link,
    format: Format,
    /// The lowest channel of ours.
    greeting: Option<u8>,
    /// Channels to tell the session of.
    to_open: Vec<u8>,
    /// The channel of the message that is coming in.
    current: Option<u8>,
    /// A message in base64 as far as it is here.
    text: BytesMut,
}

impl Channels {
    /// With the channels of `roles`, which are some of [`ROLES`].
    #[must_use]
    pub fn new(format: Format, roles: &[&str]) -> Self {
        let numbered = (0_u8..).zip(ROLES);
        let mut to_open: Vec<u8> = numbered
            .filter(|(_, role)| roles.contains(role))
            .map(|(number, _)| number)
            .collect();
        let greeting = to_open
            .iter()
            .copied()
            .find(|number| takes(*number).is_err());
        to_open.reverse();
        Self {
            link: Link::default(),
            format,
            greeting,
            to_open,
            current: None,
            text: BytesMut::new(),
        }
    }

    fn part(&mut self, part: Part) -> Result<Event, WebSocketError> {
        match self.format {
            Format::Base64 => self.text_part(&part),
            _ if part.is_text => Err(WebSocketError::Kind),
            _ => self.binary_part(part),
        }
    }

    fn binary_part(&mut self, part: Part) -> Result<Event, WebSocketError> {
        let mut bytes = part.bytes;
        if part.first {
            self.current = None;
        }
        let channel = match (self.current, bytes.is_empty()) {
            (Some(channel), _) => channel,
            // A message without a single byte says nothing; one in parts may begin so.
            (None, true) => return Ok(Event::Nothing),
            (None, false) => bytes.split_to(1)[0],
        };
        self.current = Some(channel);
        if channel == CLOSE && self.format == Format::Closable {
            return match bytes.first() {
                Some(&closed) => {
                    let id = takes(closed)?;
                    let bytes = Bytes::new();
                    Ok(Event::Data {
                        id,
                        bytes,
                        last: true,
                    })
                }
                None => Ok(Event::Nothing),
            };
        }
        let id = takes(channel)?;
        Ok(Event::Data {
            id,
            bytes,
            last: false,
        })
    }

    fn text_part(&mut self, part: &Part) -> Result<Event, WebSocketError> {
        if self.text.len() + part.bytes.len() > MAX_BASE64 {
            return Err(WebSocketError::TooLarge(MAX_BASE64 as u64));
        }
        self.text.extend_from_slice(&part.bytes);
        if !part.last {
            return Ok(Event::Nothing);
        }
        let text = self.text.split();
        let Some((digit, text)) = text.split_first() else {
            return Ok(Event::Nothing);
        };
        let id = takes(digit.wrapping_sub(b'0'))?;
        let decoded = base64::engine::general_purpose::STANDARD.decode(text);
        let bytes = decoded.map_err(|_| WebSocketError::Base64)?.into();
        Ok(Event::Data {
            id,
            bytes,
            last: false,
        })
    }
}

/// The stream of a channel on which clients may send.
fn takes(channel: u8) -> Result<u32, WebSocketError> {
    match channel {
        0 | 4 => Ok(channel.into()),
        other => Err(WebSocketError::Channel(Some(other))),
    }
}

impl Protocol for Channels {
    fn read(
        &mut self,
        input: &mut BytesMut,
        out: &mut BytesMut,
    ) -> Result<Option<Event>, ProtocolError> {
        if let Some(number) = self.to_open.pop() {
            let role = ROLES[usize::from(number)];
            return Ok(Some(Event::Opened {
                id: number.into(),
                headers: [("streamtype", role)].into(),
                // On the others a client has nothing to say.
                last: takes(number).is_err(),
            }));
        }
        Ok(match self.link.read(input, out)? {
            Some(Told::Part(part)) => Some(self.part(part)?),
            Some(Told::Closed) => Some(Event::Closed),
            Some(Told::Nothing) => Some(Event::Nothing),
            None => None,
        })
    }

    fn write(&mut self, message: &Message, out: &mut BytesMut) {
        let number = |id: u32| u8::try_from(id).unwrap_or(u8::MAX);
        let (number, bytes) = match message {
            Message::Data { id, bytes } => (number(*id), bytes.as_ref()),
            // Clients take the first message, on whatever channel, for the beginning of the session.
            Message::Accept { id } if Some(number(*id)) == self.greeting => (number(*id), &[][..]),
            // What a stream's end is to other protocols, the end of the connection is here.
            _ => return,
        };
        match self.format {
            Format::Base64 => {
                let text = base64::engine::general_purpose::STANDARD.encode(bytes);
                let digit = b'0'.wrapping_add(number);
                encode(Opcode::Text, &[&[digit], text.as_bytes()], out);
            }
            Format::Binary | Format::Closable => encode(Opcode::Binary, &[&[number], bytes], out),
        }
    }

    fn goodbye(&mut self, out: &mut BytesMut) {
        self.link.close(super::CloseCode::Normal, out);
    }

    fn complain(&mut self, error: &ProtocolError, out: &mut BytesMut) {
        self.link.complain(error, out);
    }
}
