//! SPDY inside the binary messages of a WebSocket: an ordinary byte stream, whatever its cuts.

use bytes::BytesMut;

use super::{
    Link, Told,
    codec::{CloseCode, Opcode, WebSocketError, encode},
};
use crate::stream::{
    mux::{Event, Message, Protocol, ProtocolError},
    spdy::Spdy,
};

/// Bytes of SPDY that may wait inside: a control frame, and a piece.
const MAX_INNER: usize = 128 * 1024;

/// One tunnel.
#[derive(Default)]
pub struct Tunnel {
    link: Link,
    spdy: Spdy,
    input: BytesMut,
    out: BytesMut,
}

impl Tunnel {
    /// What SPDY has to say, as one message.
    fn wrap(&mut self, out: &mut BytesMut) {
        if !self.out.is_empty() {
            encode(Opcode::Binary, &[&self.out], out);
            self.out.clear();
        }
    }
}

impl Protocol for Tunnel {
    fn read(
        &mut self,
        input: &mut BytesMut,
        out: &mut BytesMut,
    ) -> Result<Option<Event>, ProtocolError> {
        loop {
            let event = self.spdy.read(&mut self.input, &mut self.out)?;
            self.wrap(out);
            if event.is_some() {
                return Ok(event);
            }
            match self.link.read(input, out)? {
                Some(Told::Part(part)) if part.is_text => return Err(WebSocketError::Kind.into()),
                Some(Told::Part(part)) => {
                    if self.input.len() + part.bytes.len() > MAX_INNER {
                        return Err(WebSocketError::Tunnel.into());
                    }
                    self.input.extend_from_slice(&part.bytes);
                }
                Some(Told::Closed) => return Ok(Some(Event::Closed)),
                Some(Told::Nothing) => return Ok(Some(Event::Nothing)),
                None => return Ok(None),
            }
        }
    }

    fn write(&mut self, message: &Message, out: &mut BytesMut) {
        self.spdy.write(message, &mut self.out);
        self.wrap(out);
    }

    fn goodbye(&mut self, out: &mut BytesMut) {
        self.spdy.goodbye(&mut self.out);
        self.wrap(out);
        self.link.close(CloseCode::Normal, out);
    }

    fn complain(&mut self, error: &ProtocolError, out: &mut BytesMut) {
        self.link.complain(error, out);
    }
}
