//! WebSocket (RFC 6455) as Kubernetes clients use it: numbered channels for exec and attach, the same
//! for ports, and a tunnel that carries SPDY.

mod channels;
pub mod codec;
mod ports;
mod tunnel;

#[cfg(test)]
mod tests;

use base64::Engine as _;
use bytes::{Bytes, BytesMut};
use sha1::{Digest, Sha1};

pub use channels::{Channels, Format, ROLES};
pub use ports::Ports;
pub use tunnel::Tunnel;

use self::codec::{CloseCode, Decoder, Opcode, Piece, WebSocketError};
use crate::stream::mux::ProtocolError;

/// What RFC 6455 appends to a client's key.
const KEY_SUFFIX: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Bytes of a nonce.
const NONCE: usize = 16;

/// The answer to a client's `Sec-WebSocket-Key`; nothing if that is no key.
#[must_use]
pub fn accept_key(key: &str) -> Option<String> {
    let base64 = base64::engine::general_purpose::STANDARD;
    if base64.decode(key).ok()?.len() != NONCE {
        return None;
    }
    let hash = Sha1::new_with_prefix(key).chain_update(KEY_SUFFIX);
    Some(base64.encode(hash.finalize()))
}

/// A part of a message for whoever gives messages a meaning.
struct Part {
    bytes: Bytes,
    /// It begins a message.
    first: bool,
    /// It ends one.
    last: bool,
    is_text: bool,
}

/// What a client's bytes amount to.
enum Told {
    Part(Part),
    Closed,
    Nothing,
}

/// The part of a connection that is the same for all of the above: control frames are answered, and
/// a goodbye is said once.
#[derive(Default)]
struct Link {
    decoder: Decoder,
    has_closed: bool,
}

impl Link {
    fn read(
        &mut self,
        input: &mut BytesMut,
        out: &mut BytesMut,
    ) -> Result<Option<Told>, ProtocolError> {
        let Some(piece) = self.decoder.decode(input)? else {
            return Ok(None);
        };
        Ok(Some(match piece {
            Piece::Message {
                bytes,
                first,
                last,
                is_text,
            } => Told::Part(Part {
                bytes,
                first,
                last,
                is_text,
            }),
            Piece::Ping(bytes) => {
                codec::encode(Opcode::Pong, &[&bytes], out);
                Told::Nothing
            }
            Piece::Pong => Told::Nothing,
            Piece::Close => {
                self.close(CloseCode::Normal, out);
                Told::Closed
            }
        }))
    }

    fn close(&mut self, code: CloseCode, out: &mut BytesMut) {
        if !std::mem::replace(&mut self.has_closed, true) {
            codec::encode(Opcode::Close, &[&code.bytes()], out);
        }
    }

    fn complain(&mut self, error: &ProtocolError, out: &mut BytesMut) {
        let code = match error {
            ProtocolError::WebSocket(WebSocketError::TooLarge(_)) => CloseCode::TooLarge,
            ProtocolError::WebSocket(WebSocketError::Kind) => CloseCode::Kind,
            _ => CloseCode::Protocol,
        };
        self.close(code, out);
    }
}
