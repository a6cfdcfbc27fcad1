//! A client's WebSocket bytes, whole and in pieces: the same messages or the same refusal.
#![no_main]

use bytes::BytesMut;
use crisp::stream::websocket::codec::{Decoder, Piece};
use libfuzzer_sys::fuzz_target;

/// What was decoded: messages put together, the rest as it is.
fn messages(bytes: &[u8], piece: usize) -> Vec<String> {
    let mut decoder = Decoder::default();
    let mut input = BytesMut::new();
    let mut seen = Vec::new();
    let mut message: Vec<u8> = Vec::new();
    for part in bytes.chunks(piece) {
        input.extend_from_slice(part);
        loop {
            match decoder.decode(&mut input) {
                Ok(Some(Piece::Message {
                    bytes,
                    first,
                    last,
                    is_text,
                })) => {
                    assert!(!first || message.is_empty());
                    message.extend_from_slice(&bytes);
                    if last {
                        seen.push(format!("{is_text} {:?}", std::mem::take(&mut message)));
                    }
                }
                Ok(Some(other)) => seen.push(format!("{other:?}")),
                Ok(None) => break,
                Err(error) => {
                    seen.push(error.to_string());
                    return seen;
                }
            }
        }
    }
    seen
}

fuzz_target!(|bytes: &[u8]| {
    let [piece, bytes @ ..] = bytes else { return };
    let whole = messages(bytes, bytes.len().max(1));
    let pieces = messages(bytes, usize::from(*piece) + 1);
    assert_eq!(whole, pieces);
});
