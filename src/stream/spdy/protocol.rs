//! The server's side of a SPDY connection, for the multiplexer.

use bytes::BytesMut;

use super::codec::{Decoder, Encoder, Frame, ResetReason};
use crate::stream::mux::{Event, Message, Protocol, ProtocolError};

/// One connection.
#[derive(Default)]
pub struct Spdy {
    decoder: Decoder,
    encoder: Encoder,
    last_id: u32,
}

impl Protocol for Spdy {
    fn read(
        &mut self,
        input: &mut BytesMut,
        out: &mut BytesMut,
    ) -> Result<Option<Event>, ProtocolError> {
        let Some(frame) = self.decoder.decode(input)? else {
            return Ok(None);
        };
        Ok(Some(match frame {
            // Clients count upwards over odd numbers. The header state is intact, so the connection
            // is as well.
            Frame::Open { id, .. } if id.is_multiple_of(2) || id <= self.last_id => {
                self.encoder.reset(id, ResetReason::Protocol, out);
                Event::Nothing
            }
            Frame::Open { id, headers, last } => {
                self.last_id = id;
                Event::Opened { id, headers, last }
            }
            Frame::Data { id, bytes, last } => Event::Data { id, bytes, last },
            Frame::Reset { id } => Event::Reset { id },
            Frame::Ping { id } => {
                // Even numbers would answer pings of ours, and there are none.
                if !id.is_multiple_of(2) {
                    self.encoder.pong(id, out);
                }
                Event::Nothing
            }
            Frame::GoAway | Frame::Ignored => Event::Nothing,
        }))
    }

    fn write(&mut self, message: &Message, out: &mut BytesMut) {
        match message {
            Message::Accept { id } => self.encoder.accept(*id, out),
            Message::Data { id, bytes } => self.encoder.data(*id, bytes, false, out),
            Message::Finish { id } => self.encoder.data(*id, &[], true, out),
            Message::Reset { id, reason } => self.encoder.reset(*id, *reason, out),
        }
    }

    fn goodbye(&mut self, out: &mut BytesMut) {
        self.encoder.go_away(self.last_id, out);
    }
}
