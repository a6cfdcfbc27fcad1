//! Messages as clients write them, and as an attacker does.

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::{
    Channels, Format, Ports, Tunnel,
    codec::{Decoder, MAX_FRAME, Piece, WebSocketError},
};
use crate::stream::mux::{Event, Message, Protocol, ProtocolError};

/// A client's frame.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        short @ 0..126 => frame.push(0x80 | u8::try_from(short).unwrap()),
        medium @ 126..65536 => {
            frame.push(0x80 | 126);
            frame.extend(u16::try_from(medium).unwrap().to_be_bytes());
        }
        long => {
            frame.push(0x80 | 127);
            frame.extend((long as u64).to_be_bytes());
        }
    }
    let mask = [0x11, 0x22, 0x33, 0x44];
    frame.extend(mask);
    frame.extend(
        payload
            .iter()
            .zip(mask.iter().cycle())
            .map(|(byte, mask)| byte ^ mask),
    );
    frame
}

fn pieces(bytes: &[u8]) -> Result<Vec<Piece>, WebSocketError> {
    let (mut decoder, mut input) = (Decoder::default(), BytesMut::from(bytes));
    let mut pieces = Vec::new();
    while let Some(piece) = decoder.decode(&mut input)? {
        pieces.push(piece);
    }
    Ok(pieces)
}

fn part(bytes: &'static [u8], first: bool, last: bool, is_text: bool) -> Piece {
    Piece::Message {
        bytes: Bytes::from_static(bytes),
        first,
        last,
        is_text,
    }
}

#[test]
fn messages_in_frames_and_control_frames_between() {
    let mut bytes = frame(0x82, b"\0whole");
    bytes.extend(frame(0x01, b"in "));
    bytes.extend(frame(0x89, b"ping"));
    bytes.extend(frame(0x00, b""));
    bytes.extend(frame(0x80, b"parts"));
    bytes.extend(frame(0x8a, b""));
    bytes.extend(frame(0x88, &[3, 0xe8]));
    let expected = [
        part(b"\0whole", true, true, false),
        part(b"in ", true, false, true),
        Piece::Ping(Bytes::from_static(b"ping")),
        part(b"", false, false, true),
        part(b"parts", false, true, true),
        Piece::Pong,
        Piece::Close,
    ];
    assert_eq!(pieces(&bytes).unwrap(), expected);
}

#[test]
fn what_breaks_the_protocol_is_refused_by_the_head() {
    let unmasked = [0x82, 1, 0];
    let huge = |length: u64| {
        let mut head = vec![0x82, 0xff];
        head.extend(length.to_be_bytes());
        head
    };
    for (bytes, expected) in [
        (unmasked.to_vec(), WebSocketError::Unmasked),
        (frame(0xc2, b""), WebSocketError::Reserved),
        (frame(0x83, b""), WebSocketError::Opcode(3)),
        (frame(0x8b, b""), WebSocketError::Opcode(11)),
        (huge(MAX_FRAME + 1), WebSocketError::TooLarge(MAX_FRAME + 1)),
        (huge(u64::MAX), WebSocketError::TooLarge(u64::MAX)),
        (frame(0x89, &[0; 126]), WebSocketError::Control),
        (frame(0x09, b""), WebSocketError::Control),
        (frame(0x80, b""), WebSocketError::Order),
        (
            [frame(0x02, b"a"), frame(0x82, b"b")].concat(),
            WebSocketError::Order,
        ),
    ] {
        assert_eq!(pieces(&bytes), Err(expected), "{bytes:02x?}");
    }
    // A frame as large as may be costs nothing until its bytes come.
    assert_eq!(pieces(&huge(MAX_FRAME)), Ok(Vec::new()));
}

/// All events of a protocol that gets `bytes`, and what it answers.
fn events(protocol: &mut impl Protocol, bytes: &[u8]) -> (Vec<String>, Option<String>, BytesMut) {
    let (mut input, mut out) = (BytesMut::from(bytes), BytesMut::new());
    let mut events = Vec::new();
    loop {
        match protocol.read(&mut input, &mut out) {
            Ok(Some(Event::Nothing)) => {}
            Ok(Some(Event::Data { id, bytes, last })) => {
                let text = String::from_utf8_lossy(&bytes).into_owned();
                events.push(format!("{id} {text}{}", if last { " last" } else { "" }));
            }
            Ok(Some(Event::Opened { id, headers, .. })) => {
                let kind = headers.get("streamtype").unwrap().to_owned();
                protocol.write(&Message::Accept { id }, &mut out);
                events.push(format!(
                    "{id} is {kind} {}",
                    headers.get("port").unwrap_or("-")
                ));
            }
            Ok(Some(Event::Reset { id })) => events.push(format!("{id} reset")),
            Ok(Some(Event::Closed)) => events.push("closed".to_owned()),
            Ok(None) => return (events, None, out),
            Err(ProtocolError::WebSocket(error)) => {
                return (events, Some(format!("{error:?}")), out);
            }
            Err(error) => return (events, Some(error.to_string()), out),
        }
    }
}

fn data(id: u32, bytes: &'static [u8]) -> Message {
    Message::Data {
        id,
        bytes: Bytes::from_static(bytes),
    }
}

#[test]
fn channels_of_a_command() {
    let mut channels = Channels::new(Format::Closable, &["error", "stdin", "stdout", "resize"]);
    let bytes = [
        frame(0x82, b"\0in"),
        frame(0x02, b"\0in "),
        frame(0x80, b"two"),
        frame(0x82, b""),
        frame(0x82, b"\x04{}"),
        frame(0x82, b"\xff\0"),
    ]
    .concat();
    let (events, error, mut out) = events(&mut channels, &bytes);
    let expected = [
        "0 is stdin -",
        "1 is stdout -",
        "3 is error -",
        "4 is resize -",
        "0 in",
        "0 in ",
        "0 two",
        "4 {}",
        "0  last",
    ];
    assert_eq!(
        (events, error),
        (expected.map(str::to_owned).to_vec(), None)
    );
    // The greeting on the lowest channel of ours.
    assert_eq!(out.as_ref(), [0x82, 1, 1]);
    out.clear();
    channels.write(&data(2, b"err"), &mut out);
    channels.write(&Message::Finish { id: 2 }, &mut out);
    channels.goodbye(&mut out);
    channels.goodbye(&mut out);
    assert_eq!(out.as_ref(), b"\x82\x04\x02err\x88\x02\x03\xe8");
}

#[test]
fn channels_in_base64() {
    let mut channels = Channels::new(Format::Base64, &["error", "stdin", "stdout"]);
    let bytes = [
        frame(0x81, b"0aGVs"),
        frame(0x01, b"0bG"),
        frame(0x80, b"8="),
    ]
    .concat();
    let (events, error, mut out) = events(&mut channels, &bytes);
    assert_eq!(
        (events[3..].join("|"), error),
        ("0 hel|0 lo".to_owned(), None)
    );
    assert_eq!(out.as_ref(), b"\x81\x011");
    out.clear();
    channels.write(&data(1, b"hello"), &mut out);
    assert_eq!(out.as_ref(), b"\x81\x091aGVsbG8=");
}

#[test]
fn channels_refuse_what_is_not_for_them() {
    let all = ["error", "stdin", "stdout", "stderr"];
    for (format, bytes, expected) in [
        (Format::Binary, frame(0x82, b"\x01x"), "Channel(Some(1))"),
        (Format::Binary, frame(0x82, b"\x09x"), "Channel(Some(9))"),
        (Format::Binary, frame(0x82, b"\xff\0"), "Channel(Some(255))"),
        (
            Format::Closable,
            frame(0x82, b"\xff\x01"),
            "Channel(Some(1))",
        ),
        (Format::Binary, frame(0x81, b"0text"), "Kind"),
        (Format::Base64, frame(0x82, b"0!!"), "Base64"),
        (Format::Base64, frame(0x81, b"7aGVs"), "Channel(Some(7))"),
        (Format::Base64, frame(0x01, &vec![b'0'; 1 << 20]), "None"),
    ] {
        let mut channels = Channels::new(format, &all);
        let (_, error, _) = events(&mut channels, &bytes);
        let error = error.unwrap_or_else(|| "None".to_owned());
        assert_eq!(error, expected, "{format:?}");
    }
    let mut channels = Channels::new(Format::Base64, &all);
    let more = [frame(0x01, &vec![b'0'; 1 << 20]), frame(0x80, b"0")].concat();
    assert!(
        events(&mut channels, &more)
            .1
            .unwrap()
            .starts_with("TooLarge")
    );
}

#[test]
fn ports_say_which_they_are() {
    let mut ports = Ports::new(vec![80, 8080]);
    let bytes = [frame(0x82, b"\x02get"), frame(0x82, b"\0a")].concat();
    let (events, error, out) = events(&mut ports, &bytes);
    let expected = [
        "0 is data 80",
        "1 is error 80",
        "2 is data 8080",
        "3 is error 8080",
        "2 get",
        "0 a",
    ];
    assert_eq!(
        (events, error),
        (expected.map(str::to_owned).to_vec(), None)
    );
    assert_eq!(
        out.as_ref(),
        [
            0x82, 3, 0, 80, 0, 0x82, 3, 1, 80, 0, 0x82, 3, 2, 0x90, 0x1f, 0x82, 3, 3, 0x90, 0x1f
        ]
    );
    let (_, error, _) = self::events(&mut Ports::new(vec![80]), &frame(0x82, b"\x01x"));
    assert_eq!(error.unwrap(), "Channel(Some(1))");
}

#[test]
fn a_tunnel_is_spdy_whatever_its_cuts() {
    // A ping of 12 bytes in three messages, and a data frame whose end comes later.
    let spdy = [
        &[0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 5][..],
        &[0, 0, 0, 1, 0, 0, 0, 2, b'h'],
    ]
    .concat();
    let mut bytes = frame(0x82, &spdy[..3]);
    bytes.extend(frame(0x02, &spdy[3..10]));
    bytes.extend(frame(0x80, &spdy[10..]));
    let mut tunnel = Tunnel::default();
    let (got, error, out) = events(&mut tunnel, &bytes);
    assert_eq!((got.join("|"), error), ("1 h".to_owned(), None));
    assert_eq!(out.as_ref(), [&[0x82, 12][..], &spdy[..12]].concat());
    let (got, error, _) = events(&mut tunnel, &frame(0x82, b"i"));
    assert_eq!((got.join("|"), error), ("1 i".to_owned(), None));
    let (got, _, out) = events(&mut tunnel, &frame(0x88, &[3, 0xe8]));
    assert_eq!(
        (got.join("|"), out.as_ref()),
        ("closed".to_owned(), &b"\x88\x02\x03\xe8"[..])
    );
    let (_, error, _) = events(&mut Tunnel::default(), &frame(0x81, b"text"));
    assert_eq!(error.unwrap(), "Kind");
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
        pieces(&bytes).ok();
        for format in [Format::Binary, Format::Base64, Format::Closable] {
            events(&mut Channels::new(format, &["stdin", "error"]), &bytes);
            events(&mut Channels::new(format, &["stdin", "error"]), &frame(0x82, &bytes));
        }
        events(&mut Ports::new(vec![80]), &frame(0x82, &bytes));
        events(&mut Tunnel::default(), &frame(0x82, &bytes));
    }
}
