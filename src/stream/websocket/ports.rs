//! Ports over WebSocket as clients before the tunnel ask for them: of the i-th port of the request,
//! channel 2i carries data and 2i + 1 errors.

use bytes::BytesMut;

use super::{
    Link, Told,
    codec::{CloseCode, Opcode, WebSocketError, encode},
};
use crate::stream::{
    mux::{Event, Message, Protocol, ProtocolError},
    spdy::headers::Headers,
};

/// Most ports of one request: a channel's number is one byte.
pub const MAX_PORTS: usize = 127;

/// The ports of one connection. All of them are there from the beginning.
pub struct Ports {
    link: Link,
    ports: Vec<u16>,
    /// Channels that the session was told of.
    opened: u32,
    /// The channel of the message that is coming in.
    current: Option<u32>,
}

impl Ports {
    /// Of a request: at most [`MAX_PORTS`], the others are left out.
    #[must_use]
    pub fn new(mut ports: Vec<u16>) -> Self {
        ports.truncate(MAX_PORTS);
        Self {
            link: Link::default(),
            ports,
            opened: 0,
            current: None,
        }
    }

    fn open(&mut self, port: u16) -> Event {
        let id = self.opened;
        self.opened += 1;
        let (port, pair) = (port.to_string(), (id / 2).to_string());
        let is_data = id.is_multiple_of(2);
        let headers: Headers = [
            ("streamtype", if is_data { "data" } else { "error" }),
            ("port", port.as_str()),
            ("requestid", pair.as_str()),
        ]
        .into();
        Event::Opened {
            id,
            headers,
            last: !is_data,
        }
    }

    fn is_data(&self, channel: u32) -> bool {
        channel.is_multiple_of(2) && channel < self.opened
    }
}

impl Protocol for Ports {
    fn read(
        &mut self,
        input: &mut BytesMut,
        out: &mut BytesMut,
    ) -> Result<Option<Event>, ProtocolError> {
        let next = usize::try_from(self.opened / 2).unwrap_or(usize::MAX);
        if let Some(port) = self.ports.get(next).copied() {
            return Ok(Some(self.open(port)));
        }
        let part = match self.link.read(input, out)? {
            Some(Told::Part(part)) => part,
            Some(Told::Closed) => return Ok(Some(Event::Closed)),
            Some(Told::Nothing) => return Ok(Some(Event::Nothing)),
            None => return Ok(None),
        };
        if part.is_text {
            return Err(WebSocketError::Kind.into());
        }
        let mut bytes = part.bytes;
        if part.first {
            self.current = None;
        }
        let channel = match (self.current, bytes.is_empty()) {
            (Some(channel), _) => channel,
            (None, true) => return Ok(Some(Event::Nothing)),
            (None, false) => u32::from(bytes.split_to(1)[0]),
        };
        if !self.is_data(channel) {
            return Err(WebSocketError::Channel(u8::try_from(channel).ok()).into());
        }
        self.current = Some(channel);
        Ok(Some(Event::Data {
            id: channel,
            bytes,
            last: false,
        }))
    }

    fn write(&mut self, message: &Message, out: &mut BytesMut) {
        let number = |id: u32| u8::try_from(id).unwrap_or(u8::MAX);
        match message {
            // The first message of a channel names its port.
            Message::Accept { id } => {
                let at = usize::try_from(id / 2).unwrap_or(usize::MAX);
                let port = self.ports.get(at).copied().unwrap_or_default();
                encode(Opcode::Binary, &[&[number(*id)], &port.to_le_bytes()], out);
            }
            Message::Data { id, bytes } => {
                encode(Opcode::Binary, &[&[number(*id)], bytes], out);
            }
            Message::Finish { .. } | Message::Reset { .. } => {}
        }
    }

    fn goodbye(&mut self, out: &mut BytesMut) {
        self.link.close(CloseCode::Normal, out);
    }

    fn complain(&mut self, error: &ProtocolError, out: &mut BytesMut) {
        self.link.complain(error, out);
    }
}
