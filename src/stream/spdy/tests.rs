//! Frames as Go's client writes them, and as an attacker does.

use bytes::{BufMut, Bytes, BytesMut};
use flate2::{Compress, Compression, FlushCompress};
use proptest::prelude::*;

use super::{
    codec::{DecodeError, Decoder, Encoder, Frame, MAX_CONTROL, MAX_PIECE, ResetReason},
    dictionary::dictionary,
    headers::{Headers, Inflate, MAX_BLOCK, MAX_FIELD, MAX_HEADERS},
};

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text.chars().filter_map(|c| c.to_digit(16)).collect();
    digits
        .chunks(2)
        .map(|pair| u8::try_from(pair[0] << 4 | pair[1]).unwrap())
        .collect()
}

/// A control frame.
fn control(kind: u16, flags: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80, 3];
    frame.extend(kind.to_be_bytes());
    frame.push(flags);
    frame.extend(&u32::try_from(body.len()).unwrap().to_be_bytes()[1..]);
    frame.extend(body);
    frame
}

fn open(id: u32, block: &[u8]) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    body.extend([0; 6]);
    body.extend(block);
    control(1, 0, &body)
}

/// A client's deflate state.
struct Deflate(Compress);

impl Deflate {
    fn new() -> Self {
        let mut deflate = Compress::new(Compression::best(), true);
        deflate.set_dictionary(&dictionary()).unwrap();
        Self(deflate)
    }

    fn block(&mut self, plain: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(plain.len() + 1024);
        self.0
            .compress_vec(plain, &mut out, FlushCompress::Sync)
            .unwrap();
        out
    }
}

fn plain(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut block = u32::try_from(headers.len()).unwrap().to_be_bytes().to_vec();
    for text in headers.iter().flat_map(|(name, value)| [name, value]) {
        block.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
        block.extend(text.as_bytes());
    }
    block
}

/// Every frame in `bytes`, which are all there from the beginning.
fn frames(decoder: &mut Decoder, bytes: &[u8]) -> Result<Vec<Frame>, DecodeError> {
    let mut input = BytesMut::from(bytes);
    let mut frames = Vec::new();
    while let Some(frame) = decoder.decode(&mut input)? {
        if frame != Frame::Ignored {
            frames.push(frame);
        }
    }
    Ok(frames)
}

#[test]
fn blocks_of_zlib_at_level_9_one_after_the_other() {
    // Made with C zlib and the same dictionary.
    let blocks = GOLDEN.map(hex);
    let mut inflate = Inflate::default();
    let mut read = |block: &[u8]| Headers::parse(&inflate.block(block).unwrap()).unwrap();
    let first = read(&blocks[0]);
    assert_eq!(first, [("streamtype", "error")].into());
    let second = read(&blocks[1]);
    assert_eq!(
        ["streamtype", "port", "requestid", "none"].map(|name| second.get(name)),
        [Some("data"), Some("8080"), Some("7"), None]
    );
}

#[test]
fn what_go_sends_in_any_cut() {
    let mut deflate = Deflate::new();
    let mut bytes = open(1, &deflate.block(&plain(&[("StreamType", "stdin")])));
    bytes.extend(control(6, 0, &[0, 0, 0, 1]));
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 5]);
    bytes.extend(b"hello");
    bytes.extend(open(3, &deflate.block(&plain(&[]))));
    bytes.extend([0, 0, 0, 1, 1, 0, 0, 0]);
    bytes.extend(control(3, 0, &[0, 0, 0, 3, 0, 0, 0, 5]));
    bytes.extend(control(4, 0, &[0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0, 9]));
    bytes.extend(control(9, 0, &[0; 8]));
    bytes.extend(control(7, 0, &[0, 0, 0, 3, 0, 0, 0, 0]));
    let data = |bytes: &'static [u8], last| Frame::Data {
        id: 1,
        bytes: Bytes::from_static(bytes),
        last,
    };
    let expected = [
        Frame::Open {
            id: 1,
            headers: [("streamtype", "stdin")].into(),
            last: false,
        },
        Frame::Ping { id: 1 },
        data(b"hello", false),
        Frame::Open {
            id: 3,
            headers: Headers::default(),
            last: false,
        },
        data(b"", true),
        Frame::Reset { id: 3 },
        Frame::GoAway,
    ];
    assert_eq!(frames(&mut Decoder::default(), &bytes).unwrap(), expected);
    // Byte by byte, the data comes in pieces and nothing else changes.
    let (mut decoder, mut input, mut got) = (Decoder::default(), BytesMut::new(), Vec::new());
    let mut text = Vec::new();
    for byte in bytes {
        input.put_u8(byte);
        while let Some(frame) = decoder.decode(&mut input).unwrap() {
            match frame {
                Frame::Data {
                    bytes, last: false, ..
                } => text.extend(bytes),
                Frame::Ignored => {}
                other => got.push(other),
            }
        }
    }
    let expected: Vec<Frame> = expected
        .into_iter()
        .filter(|frame| *frame != data(b"hello", false))
        .collect();
    assert_eq!((got, text.as_slice()), (expected, &b"hello"[..]));
}

#[test]
fn replies_are_constants_that_go_can_inflate() {
    let (mut encoder, mut out) = (Encoder::default(), BytesMut::new());
    encoder.accept(1, &mut out);
    encoder.accept(3, &mut out);
    encoder.data(1, b"ab", false, &mut out);
    encoder.data(1, b"", true, &mut out);
    encoder.reset(5, ResetReason::Refused, &mut out);
    encoder.pong(7, &mut out);
    encoder.go_away(3, &mut out);
    let expected = hex(
        "80030002 00000014 00000001 78f9e3c6a7c202a6230600000000ffff \
         80030002 0000000c 00000003 020100000000ffff \
         00000001 00000002 6162 00000001 01000000 \
         80030003 00000008 00000005 00000003 80030006 00000004 00000007 \
         80030007 00000008 00000003 00000000",
    );
    assert_eq!(out, expected);
    let mut inflate = Inflate::default();
    for block in [&out[12..28], &out[40..48]] {
        assert_eq!(inflate.block(block).unwrap(), [0; 4]);
    }
}

#[test]
fn a_frame_is_refused_by_its_head_before_anything_is_set_aside() {
    let head = |kind: u16, length: u32| {
        let mut head = control(kind, 0, &[]);
        head.splice(5..8, length.to_be_bytes()[1..].to_vec());
        head
    };
    for (bytes, expected) in [
        (head(1, 16385), DecodeError::ControlTooLarge(16385)),
        (head(4, 0xff_ffff), DecodeError::ControlTooLarge(0xff_ffff)),
        (head(0, 0), DecodeError::UnknownFrame(0)),
        (head(5, 0), DecodeError::UnknownFrame(5)),
        (head(10, 0), DecodeError::UnknownFrame(10)),
        (b"GET / HT".to_vec(), DecodeError::UnknownFrame(0)),
        (vec![0x80, 2, 0, 1, 0, 0, 0, 0], DecodeError::Version),
    ] {
        // Text is a data frame as far as anybody can tell: it only claims a length.
        let got = frames(&mut Decoder::default(), &bytes);
        if bytes.starts_with(b"GET") {
            assert_eq!(got, Ok(Vec::new()));
        } else {
            assert_eq!(got, Err(expected));
        }
    }
    assert_eq!(MAX_CONTROL, 16384);
}

#[test]
fn lengths_that_a_kind_cannot_have() {
    for (kind, body) in [
        (1, vec![0; 9]),
        (2, vec![0; 3]),
        (3, vec![0; 7]),
        (3, vec![0; 9]),
        (4, vec![0; 3]),
        // Settings that claim four thousand million entries, and one too many.
        (4, vec![0xff; 12]),
        (4, vec![0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0]),
        (6, vec![0; 5]),
        (7, vec![0; 4]),
        (8, vec![0; 2]),
        (9, vec![0; 12]),
    ] {
        let got = frames(&mut Decoder::default(), &control(kind, 0, &body));
        let expected = DecodeError::Length {
            kind,
            length: body.len(),
        };
        assert_eq!(got, Err(expected), "{kind} {body:?}");
    }
}

#[test]
fn header_bombs_are_cut() {
    let block = |plain: &[u8]| Deflate::new().block(plain);
    let error = |block: &[u8]| frames(&mut Decoder::default(), &open(1, block)).unwrap_err();
    // Eight MiB in a frame of eight KiB.
    assert_eq!(error(&block(&vec![0; 8 << 20])), DecodeError::BlockTooLarge);
    // Counts and lengths that promise more than there is.
    let claim = |count: u32, length: u32| {
        let mut plain = count.to_be_bytes().to_vec();
        plain.extend(length.to_be_bytes());
        plain
    };
    assert_eq!(
        error(&block(&claim(u32::MAX, 0))),
        DecodeError::TooManyHeaders(0xffff_ffff)
    );
    assert_eq!(
        error(&block(&claim(1, u32::MAX))),
        DecodeError::FieldTooLong(0xffff_ffff)
    );
    assert_eq!(error(&block(&claim(1, 100))), DecodeError::Headers);
    let long = "x".repeat(MAX_FIELD + 1);
    assert_eq!(
        error(&block(&plain(&[("a", &long)]))),
        DecodeError::FieldTooLong(MAX_FIELD + 1)
    );
    let names: Vec<String> = (0..=MAX_HEADERS).map(|i| format!("h{i}")).collect();
    let many: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "")).collect();
    assert_eq!(
        error(&block(&plain(&many))),
        DecodeError::TooManyHeaders(MAX_HEADERS + 1)
    );
    assert_eq!(
        error(&block(&plain(&[("a", ""), ("A", "")]))),
        DecodeError::Headers
    );
    assert_eq!(error(&block(&plain(&[("", "x")]))), DecodeError::Headers);
    let mut left_over = plain(&[("a", "b")]);
    left_over.push(0);
    assert_eq!(error(&block(&left_over)), DecodeError::Headers);
    assert_eq!(error(b"this is no zlib"), DecodeError::Inflate);
    assert_eq!(error(&[]), DecodeError::Headers);
    // The largest that is allowed passes.
    let value = "y".repeat(MAX_FIELD);
    let fitting: Vec<(&str, &str)> = many[..15]
        .iter()
        .map(|(name, _)| (*name, &*value))
        .collect();
    let block = block(&plain(&fitting));
    assert!(block.len() < MAX_CONTROL && plain(&fitting).len() < MAX_BLOCK);
    assert_eq!(
        frames(&mut Decoder::default(), &open(1, &block))
            .unwrap()
            .len(),
        1
    );
}

#[test]
fn a_large_data_frame_is_handed_on_in_pieces() {
    let mut input = BytesMut::from(&[0, 0, 0, 9, 1, 0xff, 0xff, 0xff][..]);
    let mut decoder = Decoder::default();
    assert_eq!(decoder.decode(&mut input), Ok(Some(Frame::Ignored)));
    assert_eq!(decoder.decode(&mut input), Ok(None));
    let mut left = 0xff_ffff;
    let mut last_seen = false;
    while left > 0 {
        input.put_bytes(7, 100_000.min(left));
        left -= 100_000.min(left);
        while let Some(frame) = decoder.decode(&mut input).unwrap() {
            let Frame::Data { id: 9, bytes, last } = frame else {
                panic!("{frame:?}");
            };
            assert!(bytes.len() <= MAX_PIECE);
            last_seen = last;
        }
    }
    assert!(last_seen);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
        frames(&mut Decoder::default(), &bytes).ok();
        // As a frame of each kind.
        for kind in 1..10 {
            frames(&mut Decoder::default(), &control(kind, 0, &bytes)).ok();
        }
        Inflate::default().block(&bytes).ok();
        Headers::parse(&bytes).ok();
    }
}

/// Two blocks of one connection.
const GOLDEN: [&str; 2] = [
    "78f9e3c6a7c202a62346703a2b294a4dcc851625aca9a08006000000ffff",
    "02a5470c295029930829b08bc079c3c2c0c2004873164122381394f019cd01000000ffff",
];
