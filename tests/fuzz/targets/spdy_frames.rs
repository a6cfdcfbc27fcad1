//! A client's SPDY bytes, whole and in pieces: the same frames or the same refusal, and no more kept
//! than the limits say.
#![no_main]

use bytes::BytesMut;
use crisp::stream::spdy::codec::{Decoder, Encoder, Frame, MAX_PIECE};
use crisp::stream::spdy::headers::Headers;
use libfuzzer_sys::fuzz_target;

/// What was decoded: data by stream put together, other frames as they are.
fn frames(bytes: &[u8], piece: usize) -> (Vec<String>, bool) {
    let mut decoder = Decoder::default();
    let mut encoder = Encoder::default();
    let (mut input, mut output) = (BytesMut::new(), BytesMut::new());
    let mut seen: Vec<String> = Vec::new();
    let mut data: Option<(u32, Vec<u8>)> = None;
    for part in bytes.chunks(piece) {
        input.extend_from_slice(part);
        loop {
            match decoder.decode(&mut input) {
                Ok(Some(Frame::Data { id, bytes, last })) => {
                    assert!(bytes.len() <= MAX_PIECE);
                    match &mut data {
                        Some((of, all)) if *of == id => all.extend_from_slice(&bytes),
                        other => {
                            seen.extend(
                                other
                                    .replace((id, bytes.to_vec()))
                                    .map(|data| format!("{data:?}")),
                            );
                        }
                    }
                    if last {
                        seen.extend(data.take().map(|data| format!("{data:?} and no more")));
                    }
                }
                Ok(Some(frame)) => {
                    seen.extend(data.take().map(|data| format!("{data:?}")));
                    if let Frame::Open { id, .. } = frame {
                        encoder.accept(id, &mut output);
                    }
                    seen.push(format!("{frame:?}"));
                }
                Ok(None) => break,
                Err(error) => {
                    seen.extend(data.take().map(|data| format!("{data:?}")));
                    seen.push(error.to_string());
                    return (seen, false);
                }
            }
        }
        output.clear();
    }
    seen.extend(data.take().map(|data| format!("{data:?}")));
    (seen, true)
}

fuzz_target!(|bytes: &[u8]| {
    let _ = Headers::parse(bytes);
    let [piece, bytes @ ..] = bytes else { return };
    let whole = frames(bytes, bytes.len().max(1));
    let pieces = frames(bytes, usize::from(*piece) + 1);
    assert_eq!(whole, pieces);
});
