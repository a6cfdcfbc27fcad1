//! The multiplexer over a socket pair, with clients that misbehave.

use std::time::Duration;

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::{
    base,
    mux::{self, CHUNK, End, Incoming, Limits, Streams},
    peer::Peer,
    spdy::Spdy,
};

const LIMITS: Limits = Limits {
    per_stream: 256 * 1024,
    together: 1024 * 1024,
    streams: 4,
    idle: Duration::from_secs(3600),
};

/// A client's end, the session's, and how the connection ends.
async fn connected(limits: Limits) -> (TcpStream, Streams, tokio::task::JoinHandle<End>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap())
        .await
        .unwrap();
    let (server, _) = listener.accept().await.unwrap();
    let peer = Peer::of(&server).unwrap();
    let (connection, streams) = mux::connect(server, peer, Spdy::default(), limits);
    (client, streams, tokio::spawn(connection.run()))
}

/// Opens a stream without headers. A client may leave data uncompressed, and name no dictionary.
fn open(id: u32, is_first: bool) -> Vec<u8> {
    let stored = [0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0];
    let mut block = if is_first {
        vec![0x78, 0x01]
    } else {
        Vec::new()
    };
    block.extend(stored);
    let mut frame = vec![
        0x80,
        3,
        0,
        1,
        0,
        0,
        0,
        u8::try_from(10 + block.len()).unwrap(),
    ];
    frame.extend(id.to_be_bytes());
    frame.extend([0; 6]);
    frame.extend(block);
    frame
}

fn data(id: u32, bytes: &[u8], last: bool) -> Vec<u8> {
    let mut frame = id.to_be_bytes().to_vec();
    frame.push(u8::from(last));
    frame.extend(&u32::try_from(bytes.len()).unwrap().to_be_bytes()[1..]);
    frame.extend(bytes);
    frame
}

#[tokio::test]
async fn bytes_go_both_ways_and_the_end_is_said() {
    let (mut client, mut streams, ended) = connected(LIMITS).await;
    client.write_all(&open(1, true)).await.unwrap();
    client.write_all(&data(1, b"ping", true)).await.unwrap();
    let mut opened = streams.opened().await.unwrap();
    assert_eq!(
        opened.reader.next().await,
        Incoming::Data(Bytes::from_static(b"ping"))
    );
    assert_eq!(opened.reader.next().await, Incoming::End);
    opened
        .writer
        .send(Bytes::from_static(b"pong"))
        .await
        .unwrap();
    opened.writer.finish().await.unwrap();
    streams.close().await;
    let mut got = vec![0; 28 + 12 + 8 + 16];
    client.read_exact(&mut got).await.unwrap();
    assert_eq!(
        got[28..48],
        [data(1, b"pong", false), data(1, b"", true)].concat()
    );
    assert_eq!(got[48..52], [0x80, 3, 0, 7]);
    assert_eq!(
        client.read(&mut [0]).await.unwrap(),
        0,
        "the server's direction ends"
    );
    drop(client);
    assert!(matches!(ended.await.unwrap(), End::Done));
}

#[tokio::test]
async fn too_many_streams_and_wrong_numbers_are_reset() {
    let (mut client, mut streams, _ended) = connected(LIMITS).await;
    for (i, id) in [1, 3, 3, 2, 5, 7, 9].into_iter().enumerate() {
        client.write_all(&open(id, i == 0)).await.unwrap();
    }
    let mut kept = Vec::new();
    for expected in [1, 3, 5, 7] {
        kept.push(streams.opened().await.unwrap());
        assert_eq!(kept.last().unwrap().id, expected);
    }
    // One reply of 28 bytes, three of 20, three resets of 16.
    let mut got = vec![0; 28 + 3 * 20 + 3 * 16];
    client.read_exact(&mut got).await.unwrap();
    let resets: Vec<u8> = got
        .windows(16)
        .filter(|frame| frame[..8] == [0x80, 3, 0, 3, 0, 0, 0, 8])
        .map(|frame| frame[15])
        .collect();
    assert_eq!(resets, [1, 1, 3]);
}

#[tokio::test]
async fn a_client_that_sends_more_than_is_read_is_held_back_and_still_seen_to_go() {
    let (mut client, mut streams, ended) = connected(LIMITS).await;
    client.write_all(&open(1, true)).await.unwrap();
    let opened = streams.opened().await.unwrap();
    let chunk = data(1, &[0; CHUNK], false);
    let mut sent = 0_usize;
    // The kernel's buffers fill up after what the limits allow.
    while let Ok(written) = tokio::time::timeout(Duration::from_secs(1), client.write(&chunk)).await
    {
        sent += written.unwrap();
        assert!(sent < 64 << 20, "nothing holds the client back");
    }
    drop(client);
    assert!(matches!(ended.await.unwrap(), End::Gone));
    drop(opened);
}

#[tokio::test]
async fn what_a_reader_leaves_makes_room_for_the_others() {
    let (mut client, mut streams, _ended) = connected(LIMITS).await;
    client.write_all(&open(1, true)).await.unwrap();
    client.write_all(&open(3, false)).await.unwrap();
    let first = streams.opened().await.unwrap();
    let mut second = streams.opened().await.unwrap();
    let (mut read, mut write) = client.into_split();
    let writing = tokio::spawn(async move {
        for _ in 0..64 {
            write.write_all(&data(1, &[0; CHUNK], false)).await.unwrap();
        }
        write.write_all(&data(3, b"after", false)).await.unwrap();
        write
    });
    // The first stream is full; dropping its reader lets the second one's bytes through.
    drop(first.reader);
    assert_eq!(
        second.reader.next().await,
        Incoming::Data(Bytes::from_static(b"after"))
    );
    drop(writing.await.unwrap());
    read.read_exact(&mut [0; 48]).await.unwrap();
}

#[tokio::test]
async fn garbage_ends_the_connection() {
    let (mut client, mut streams, ended) = connected(LIMITS).await;
    client
        .write_all(&[0x80, 3, 0, 99, 0, 0, 0, 0])
        .await
        .unwrap();
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest[..4], [0x80, 3, 0, 7]);
    drop(client);
    assert!(matches!(ended.await.unwrap(), End::Broken(_)));
    assert!(streams.opened().await.is_none());
}

#[tokio::test]
async fn silence_ends_the_connection() {
    let idle = Duration::from_millis(50);
    let (_client, _streams, ended) = connected(Limits { idle, ..LIMITS }).await;
    assert!(matches!(ended.await.unwrap(), End::Idle(_)));
}

#[tokio::test]
async fn a_client_that_wants_answers_and_takes_none_is_not_read_any_more() {
    let (mut client, _streams, _ended) = connected(LIMITS).await;
    let pings: Vec<u8> = [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1].repeat(5000);
    let mut sent = 0_usize;
    while let Ok(written) = tokio::time::timeout(Duration::from_secs(1), client.write(&pings)).await
    {
        sent += written.unwrap();
        assert!(sent < 256 << 20, "nothing holds the client back");
    }
}

#[test]
fn addresses_that_a_client_on_this_node_can_dial() {
    for (bound, tls, expected) in [
        ("127.0.0.1:80", false, "http://127.0.0.1:80"),
        ("0.0.0.0:81", false, "http://127.0.0.1:81"),
        ("[::]:82", true, "https://[::1]:82"),
        ("[fd00::1]:83", false, "http://[fd00::1]:83"),
        ("10.0.0.7:84", true, "https://10.0.0.7:84"),
    ] {
        assert_eq!(base(bound.parse().unwrap(), tls), expected);
    }
}
