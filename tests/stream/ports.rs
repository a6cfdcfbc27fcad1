//! Connections to ports of pods. The servers of most of these tests are here: a pod in the host's
//! network reaches them, and they can behave as badly as they like.

use std::time::Duration;

use crisp_harness::cri::v1::NamespaceMode;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
};

use crate::{
    Host,
    client::{Said, Spdy, WebSocket, frame},
    soon, until,
};

/// Opens a pair of streams: error and data.
pub async fn open_pair<T>(spdy: &mut Spdy<T>, port: u16, request: usize) -> (u32, u32)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let (port, request) = (port.to_string(), request.to_string());
    let mut ids = Vec::new();
    for kind in ["error", "data"] {
        let headers = [
            ("streamtype", kind),
            ("port", &port),
            ("requestid", &request),
        ];
        let id = spdy.open(&headers).await;
        // What is left of earlier pairs comes before.
        while soon(spdy.next()).await.unwrap() != Said::Reply(id) {}
        if kind == "error" {
            spdy.send_to(id, b"", true).await;
        }
        ids.push(id);
    }
    (ids[0], ids[1])
}

/// What comes on a stream until it is finished.
pub async fn read_all<T>(spdy: &mut Spdy<T>, id: u32) -> Vec<u8>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut all = Vec::new();
    loop {
        match soon(spdy.next()).await {
            Some(Said::Data(from, bytes, last)) if from == id => {
                all.extend(bytes);
                if last {
                    return all;
                }
            }
            Some(Said::Reset(from, _)) if from == id => panic!("stream {id} was reset"),
            Some(_) => {}
            None => panic!("the connection ended"),
        }
    }
}

async fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// A pod in the host's network, and a client of its ports.
async fn host_network(host: &Host, name: &str) -> (String, Spdy) {
    let sandbox = host.pods.host_network_sandbox(name);
    let pod = host.pods.run(&sandbox).await.unwrap();
    let url = host.port_forward(&pod, &[]).await.unwrap();
    (
        pod,
        Spdy::connect(&url, "portforward.k8s.io").await.unwrap(),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_direction_ends_by_itself() {
    let host = Host::new().await;
    let (_pod, mut spdy) = host_network(&host, "half").await;
    // Answers three seconds after the end of the question.
    let (listener, port) = listen().await;
    let serving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut question = Vec::new();
        stream.read_to_end(&mut question).await.unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await;
        stream
            .write_all(format!("{} bytes", question.len()).as_bytes())
            .await
            .unwrap();
    });
    let (error, data) = open_pair(&mut spdy, port, 0).await;
    for _ in 0..100 {
        spdy.send_to(data, &[7; 10_000], false).await;
    }
    spdy.send_to(data, b"", true).await;
    assert_eq!(read_all(&mut spdy, data).await, b"1000000 bytes");
    assert_eq!(
        read_all(&mut spdy, error).await,
        b"",
        "the error stream ends without a word"
    );
    serving.await.unwrap();
    // The other way round: the server has said its word, and goes on listening.
    let (listener, port) = listen().await;
    let serving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        rest
    });
    let (_, data) = open_pair(&mut spdy, port, 1).await;
    assert_eq!(read_all(&mut spdy, data).await, b"hello");
    spdy.send_to(data, b"late words", true).await;
    assert_eq!(soon(serving).await.unwrap(), b"late words");
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_failed_connect_is_told_on_the_error_stream() {
    let host = Host::new().await;
    let (pod, mut spdy) = host_network(&host, "errors").await;
    let (listener, port) = listen().await;
    drop(listener);
    let (error, _) = open_pair(&mut spdy, port, 0).await;
    let text = String::from_utf8(read_all(&mut spdy, error).await).unwrap();
    assert!(
        text.contains(&port.to_string()) && text.contains(&pod),
        "{text}"
    );
    assert!(text.to_lowercase().contains("refused"), "{text}");
    // A server that breaks off: the data stream is reset, the error stream ends empty.
    let (listener, port) = listen().await;
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.read_u8().await.unwrap();
        stream.set_zero_linger().unwrap();
    });
    let (error, data) = open_pair(&mut spdy, port, 1).await;
    spdy.send_to(data, b"x", false).await;
    let mut seen = Vec::new();
    while !seen
        .iter()
        .any(|said| *said == Said::Data(error, Vec::new(), true))
    {
        seen.push(soon(spdy.next()).await.unwrap());
    }
    assert!(
        seen.iter()
            .any(|said| matches!(said, Said::Reset(id, _) if *id == data)),
        "{seen:?}"
    );
    // A client that breaks off: the server sees a reset.
    let (listener, port) = listen().await;
    let serving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.read_u8().await.unwrap();
        stream.read_u8().await.unwrap_err().kind()
    });
    let (error, data) = open_pair(&mut spdy, port, 2).await;
    spdy.send_to(data, b"x", false).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    spdy.reset(data).await;
    assert_eq!(
        soon(serving).await.unwrap(),
        std::io::ErrorKind::ConnectionReset
    );
    assert_eq!(read_all(&mut spdy, error).await, b"");
    // Where nobody listens on IPv4, IPv6 is tried.
    if let Ok(listener) = TcpListener::bind("[::1]:0").await {
        let port = listener.local_addr().unwrap().port();
        let (_, data) = open_pair(&mut spdy, port, 3).await;
        let (mut stream, _) = soon(listener.accept()).await.unwrap();
        stream.write_all(b"six").await.unwrap();
        drop(stream);
        assert_eq!(read_all(&mut spdy, data).await, b"six");
    }
    // Headers that make no sense are a reset of their stream.
    for headers in [
        [("streamtype", "data"), ("port", "0")],
        [("streamtype", "data"), ("port", "70000")],
        [("streamtype", "what"), ("port", "80")],
    ] {
        let id = spdy.open(&headers).await;
        let mut said = soon(spdy.next()).await.unwrap();
        while !matches!(said, Said::Reset(from, _) if from == id) {
            said = soon(spdy.next()).await.unwrap();
        }
    }
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_connections_and_one_that_stands_still() {
    let host = Host::new().await;
    let (_pod, mut spdy) = host_network(&host, "many").await;
    let (listener, port) = listen().await;
    tokio::spawn(async move {
        let mut stalled = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            if stalled.is_empty() {
                // Never read.
                stalled.push(stream);
                continue;
            }
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await.ok();
            });
        }
    });
    let before = host.descriptors().len();
    let (_, still) = open_pair(&mut spdy, port, 0).await;
    // Less than the limit, and more than the kernel takes from a connection that nobody reads.
    for _ in 0..24 {
        spdy.send_to(still, &[0; 32 * 1024], false).await;
    }
    for i in 1..=100 {
        let (error, data) = open_pair(&mut spdy, port, i).await;
        let text = format!("number {i}");
        spdy.send_to(data, text.as_bytes(), true).await;
        assert_eq!(read_all(&mut spdy, data).await, text.as_bytes());
        assert_eq!(read_all(&mut spdy, error).await, b"");
    }
    drop(spdy);
    until("descriptors are as before", || {
        host.descriptors().len() <= before
    })
    .await;
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_inside_a_pod_are_reached_and_those_outside_are_not() {
    let host = Host::new().await;
    let sandbox = host.pods.sandbox("inside");
    let security = sandbox
        .linux
        .as_ref()
        .unwrap()
        .security_context
        .as_ref()
        .unwrap();
    assert_ne!(
        security.namespace_options.as_ref().unwrap().network(),
        NamespaceMode::Node
    );
    let script = "mkdir /w; echo page from the pod >/w/index.html; exec httpd -f -p 8080 -h /w";
    let config = host.pods.container("c", &["sh", "-c", script]);
    let (pod, id) = host.launched(&sandbox, &config).await;
    let deadline = tokio::time::Instant::now() + crate::LIMIT;
    while host
        .pods
        .exec(&id, &["wget", "-q", "-O-", "127.0.0.1:8080"])
        .await
        .unwrap()
        .exit_code
        != 0
    {
        assert!(
            tokio::time::Instant::now() < deadline,
            "the server in the pod does not start"
        );
    }
    let (outside, port) = listen().await;
    let url = host.port_forward(&pod, &[]).await.unwrap();
    let mut spdy = Spdy::connect(&url, "portforward.k8s.io").await.unwrap();
    let get = b"GET / HTTP/1.0\r\n\r\n";
    let (_, data) = open_pair(&mut spdy, 8080, 0).await;
    spdy.send_to(data, get, true).await;
    let page = String::from_utf8(read_all(&mut spdy, data).await).unwrap();
    assert!(page.ends_with("page from the pod\n"), "{page}");
    let (error, _) = open_pair(&mut spdy, port, 1).await;
    assert!(
        !read_all(&mut spdy, error).await.is_empty(),
        "a port of the host is none of the pod's"
    );
    drop(outside);
    over_websocket(&host, &pod, get).await;
    host.pods.remove_all().await.unwrap();
}

/// The same page through a tunnel, and through channels.
async fn over_websocket(host: &Host, pod: &str, get: &[u8]) {
    let url = host.port_forward(pod, &[]).await.unwrap();
    let socket = WebSocket::connect(&url, "SPDY/3.1+portforward.k8s.io")
        .await
        .unwrap();
    assert_eq!(
        socket.protocol.as_deref(),
        Some("SPDY/3.1+portforward.k8s.io")
    );
    let (mut from, mut to) = socket.stream.into_split();
    // SPDY through a pipe, so that the same client speaks it.
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let (mut read, mut write) = tokio::io::split(theirs);
    tokio::spawn(async move {
        let mut room = vec![0; 1000];
        while let Ok(count @ 1..) = read.read(&mut room).await {
            to.write_all(&frame(0x82, &room[..count])).await.unwrap();
        }
        to.write_all(&frame(0x88, &1000_u16.to_be_bytes()))
            .await
            .ok();
    });
    tokio::spawn(async move {
        loop {
            let Ok(_kind) = from.read_u8().await else {
                return;
            };
            let length = match from.read_u8().await.unwrap() {
                126 => u64::from(from.read_u16().await.unwrap()),
                127 => from.read_u64().await.unwrap(),
                short => short.into(),
            };
            let mut payload = vec![0; usize::try_from(length).unwrap()];
            from.read_exact(&mut payload).await.unwrap();
            write.write_all(&payload).await.ok();
        }
    });
    let mut spdy = Spdy::bare(ours);
    let (_, data) = open_pair(&mut spdy, 8080, 0).await;
    spdy.send_to(data, get, true).await;
    let page = read_all(&mut spdy, data).await;
    assert!(page.ends_with(b"page from the pod\n"));
    // Channels, as clients before the tunnel had it. Such a client cannot end its direction.
    let url = host.port_forward(pod, &[8080]).await.unwrap();
    let mut socket = WebSocket::connect(&url, "v4.channel.k8s.io").await.unwrap();
    for channel in [0, 1] {
        assert_eq!(
            soon(socket.next()).await,
            Some((0x82, vec![channel, 0x90, 0x1f]))
        );
    }
    socket.send(0x82, &[b"\0", get].concat()).await;
    let mut page = Vec::new();
    while !page.ends_with(b"page from the pod\n") {
        let (_, payload) = soon(socket.next()).await.unwrap();
        assert_eq!(payload[0], 0, "{}", String::from_utf8_lossy(&payload));
        page.extend(&payload[1..]);
    }
}
