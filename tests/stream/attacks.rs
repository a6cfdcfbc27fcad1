//! Clients that are no clients, or want too much. After each of them the daemon serves as before.

use std::time::{Duration, Instant};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::Code;

use crate::{
    Host, LIMIT,
    client::{Spdy, WebSocket, control, data, frame, parts, request, spdy_head},
    soon, until,
};

/// Whether a command still runs to its end.
async fn serves(host: &Host, id: &str) {
    let url = host.exec(id, "o", &["echo", "fine"]).await.unwrap();
    let all = Spdy::session(&url, "o").await.collect().await;
    assert_eq!((all.text("stdout"), all.code()), ("fine\n".into(), 0));
}

/// Whether the server ends a connection.
async fn ends(mut stream: TcpStream) {
    let mut rest = Vec::new();
    // A reset is an end as well.
    soon(stream.read_to_end(&mut rest)).await.ok();
}

async fn connect(url: &str) -> TcpStream {
    TcpStream::connect(parts(url).0).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_and_requests_that_are_none() {
    let host = Host::with("creation_timeout = \"1s\"").await;
    let (_pod, id) = host.running("tokens", &["sleep", "1000"]).await;
    serves(&host, &id).await;
    let before = host.descriptors();
    let url = host.exec(&id, "o", &["true"]).await.unwrap();
    let base = url.rsplit_once("/exec/").unwrap().0.to_owned();
    let token = url.rsplit('/').next().unwrap().to_owned();
    let spdy = ["v4.channel.k8s.io"];
    for (path, protocols, expected) in [
        ("/exec/AAAAAAAAAAAAAAAAAAAAAA".to_owned(), &spdy[..], 404),
        (format!("/attach/{token}"), &spdy, 404),
        (format!("/exec/{token}/x"), &spdy, 404),
        (format!("/{token}"), &spdy, 404),
        ("/exec/".to_owned(), &spdy, 404),
        ("/".to_owned(), &spdy, 404),
        (format!("/exec/{token}"), &[], 400),
        (format!("/exec/{token}"), &["v9.channel.k8s.io"], 403),
    ] {
        let url = format!("{base}{path}");
        let error = Spdy::over(connect(&url).await, &url, protocols)
            .await
            .err()
            .unwrap();
        let shown = path.replace(&token, "TOKEN");
        println!("S1 {shown} with {protocols:?}: {}", error.status);
        assert_eq!(error.status, expected, "{path}: {error:?}");
        let names = error
            .text
            .contains("x-accepted-stream-protocol-versions: v4.channel.k8s.io");
        assert_eq!(names, expected == 403, "{error:?}");
    }
    let (authority, path) = parts(&url);
    let plain = format!("GET {path} HTTP/1.1\r\nHost: {authority}\r\n\r\n");
    let delete = spdy_head(&url, &spdy).replacen("POST", "DELETE", 1);
    let old = spdy_head(&url, &spdy).replacen("HTTP/1.1", "HTTP/1.0", 1);
    for (head, expected) in [(plain, 400), (delete, 405), (old, 400)] {
        let error = request(&mut connect(&url).await, &head).await.unwrap_err();
        assert_eq!(error.status, expected, "{head}: {error:?}");
    }
    // All that has not used it up. The first to come gets it, the second nothing.
    let all = Spdy::session(&url, "o").await.collect().await;
    assert_eq!(all.code(), 0);
    let again = Spdy::connect(&url, "v4.channel.k8s.io")
        .await
        .err()
        .unwrap();
    println!("S1 a token used again: {}", again.status);
    assert_eq!(again.status, 404);
    // Bytes that are no HTTP, and a head without end.
    for garbage in [
        &b"\0\xff\x80\x03 what is this\r\n\r\n"[..],
        &[b'x'; 100_000],
    ] {
        let mut stream = connect(&url).await;
        stream.write_all(garbage).await.ok();
        ends(stream).await;
    }
    // A client that never opens its streams.
    let url = host.exec(&id, "io", &["sleep", "73921"]).await.unwrap();
    let silent = Spdy::connect(&url, "v4.channel.k8s.io").await.unwrap();
    ends(silent.stream).await;
    // More grants than are kept.
    let mut codes = Vec::new();
    for _ in 0..1001 {
        codes.push(
            host.exec(&id, "o", &["true"])
                .await
                .err()
                .map(|status| status.code()),
        );
    }
    println!(
        "S1 1001 grants that nobody uses: the last one is {:?}",
        codes.last()
    );
    assert_eq!(
        codes.iter().flatten().collect::<Vec<_>>(),
        [&Code::ResourceExhausted]
    );
    until("descriptors are as before", || {
        host.descriptors().len() <= before.len()
    })
    .await;
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_that_drip_and_silence_are_cut() {
    let host = Host::new().await;
    let (_pod, id) = host.running("drip", &["sleep", "1000"]).await;
    let url = host.exec(&id, "o", &["true"]).await.unwrap();
    let began = Instant::now();
    let silent = connect(&url).await;
    let mut dripping = connect(&url).await;
    let drip = async {
        let head = spdy_head(&url, &["v4.channel.k8s.io"]);
        for byte in head.trim_end().bytes().cycle() {
            if dripping.write_all(&[byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let both = async { tokio::join!(drip, ends(silent)) };
    tokio::time::timeout(LIMIT, both)
        .await
        .expect("both are cut");
    println!(
        "S2 a silent and a dripping head are cut after {:?}",
        began.elapsed()
    );
    assert!(
        began.elapsed() > Duration::from_secs(2),
        "not before a slow client had a chance"
    );
    // More silent ones than are kept: whoever has something to say is not held up by them.
    let began = Instant::now();
    let mut crowd = Vec::new();
    for _ in 0..200 {
        crowd.push(connect(&url).await);
    }
    serves(&host, &id).await;
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "not by the limit of their heads"
    );
    drop(crowd);
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_that_break_the_protocol_end_their_connection_only() {
    let host = Host::new().await;
    let (_pod, id) = host.running("frames", &["sleep", "1000"]).await;
    let witness = host.exec(&id, "io", &["cat"]).await.unwrap();
    let mut witness = Spdy::session(&witness, "io").await;
    // A block of a stored deflate stream that claims four thousand million headers.
    let mut claim = vec![0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0x78, 1, 0, 4, 0, 0xfb, 0xff];
    claim.extend([0xff; 4]);
    for bytes in [
        control(1, &claim),
        control(99, &[]),
        control(4, &[0xff; 12]),
        control(6, &[0; 9]),
        control(1, &[0; 20_000]),
        vec![0x80, 2, 0, 1, 0, 0, 0, 0],
        [&[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff][..], &[0; 64]].concat(),
    ] {
        let url = host.exec(&id, "io", &["cat"]).await.unwrap();
        let mut spdy = Spdy::session(&url, "io").await;
        spdy.stream.write_all(&bytes).await.unwrap();
        ends(spdy.stream).await;
        println!("S4 SPDY {:02x?}...: the connection is ended", &bytes[..8]);
    }
    let huge = [&[0x82, 0xff][..], &u64::MAX.to_be_bytes()].concat();
    for (bytes, expected) in [
        (huge, 1009),
        (vec![0x82, 1, 0], 1002),
        (frame(0xc2, b"\0x"), 1002),
        (frame(0x82, b"\x01not yours"), 1002),
        (frame(0x81, b"0text"), 1003),
    ] {
        let url = host.exec(&id, "io", &["cat"]).await.unwrap();
        let mut socket = WebSocket::connect(&url, "v5.channel.k8s.io").await.unwrap();
        socket.stream.write_all(&bytes).await.unwrap();
        let (_, code) = socket.collect().await;
        println!(
            "S4 WebSocket {:02x?}: closed with {code:?}",
            &bytes[..bytes.len().min(8)]
        );
        assert_eq!(code, Some(expected), "{bytes:02x?}");
    }
    // Streams that nobody asked for are reset, and the session goes on.
    let stray = witness.open(&[("streamtype", "stdin")]).await;
    witness.send("stdin", b"still here\n", false).await;
    witness
        .read_until("stdout", |text| text.ends_with("still here\n"))
        .await;
    assert!(stray > 0);
    serves(&host, &id).await;
    host.pods.remove_all().await.unwrap();
}

/// Kilobytes of memory that the daemon has in use.
fn resident(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_and_greedy_clients_hold_up_nobody_and_cost_little() {
    let host = Host::new().await;
    let (_pod, id) = host.running("greedy", &["sleep", "1000"]).await;
    serves(&host, &id).await;
    let before = resident(host.daemon.pid());
    // Twenty that take nothing of what never ends, twenty that give without end to nobody, and one
    // that wants answers and takes none.
    let mut held = Vec::new();
    for _ in 0..20 {
        let url = host.exec(&id, "o", &["yes"]).await.unwrap();
        held.push(Spdy::session(&url, "o").await);
    }
    for _ in 0..20 {
        let url = host.exec(&id, "io", &["sleep", "73931"]).await.unwrap();
        let mut spdy = Spdy::session(&url, "io").await;
        let chunk = data(3, &[0; 32 * 1024], false);
        let mut quiet = Duration::from_millis(300);
        while tokio::time::timeout(quiet, spdy.stream.write_all(&chunk))
            .await
            .is_ok()
        {
            quiet = Duration::from_millis(50);
        }
        held.push(spdy);
    }
    let url = host.exec(&id, "io", &["cat"]).await.unwrap();
    let mut spdy = Spdy::session(&url, "io").await;
    let pings = control(6, &[0, 0, 0, 1]).repeat(10_000);
    while tokio::time::timeout(Duration::from_millis(300), spdy.stream.write_all(&pings))
        .await
        .is_ok()
    {}
    held.push(spdy);
    serves(&host, &id).await;
    let more = resident(host.daemon.pid()).saturating_sub(before) / 1024;
    println!("41 slow and greedy clients cost {more} MiB");
    assert!(more < 100, "they cost {more} MiB");
    // None of them delays the end of the container.
    let began = Instant::now();
    host.pods.stop(&id, 0).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(10));
    host.pods.remove_all().await.unwrap();
}
