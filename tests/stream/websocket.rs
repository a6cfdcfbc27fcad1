//! Commands over WebSocket, in every sub-protocol.

use std::collections::BTreeMap;

use crate::{Host, client::WebSocket, soon};

fn text(channels: &BTreeMap<u8, Vec<u8>>, channel: u8) -> String {
    let bytes = channels
        .get(&channel)
        .map(Vec::as_slice)
        .unwrap_or_default();
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_run_in_every_protocol() {
    let host = Host::new().await;
    let (_pod, id) = host.running("ws", &["sleep", "1000"]).await;
    let script = "echo out; echo err >&2; exit 3";
    for (asked, agreed, is_status) in [
        ("v5.channel.k8s.io", Some("v5.channel.k8s.io"), true),
        (
            "v9.channel.k8s.io, v4.channel.k8s.io",
            Some("v4.channel.k8s.io"),
            true,
        ),
        ("channel.k8s.io", Some("channel.k8s.io"), false),
        ("", None, false),
    ] {
        let url = host.exec(&id, "oe", &["sh", "-c", script]).await.unwrap();
        let mut socket = WebSocket::connect(&url, asked).await.unwrap();
        assert_eq!(socket.protocol.as_deref(), agreed);
        let (channels, code) = socket.collect().await;
        assert_eq!(
            (text(&channels, 1), text(&channels, 2)),
            ("out\n".into(), "err\n".into())
        );
        assert_eq!(code, Some(1000), "{asked}");
        let error = text(&channels, 3);
        assert_eq!(
            error.contains("\"NonZeroExitCode\""),
            is_status,
            "{asked}: {error}"
        );
        assert!(error.contains("exit code 3"), "{asked}: {error}");
    }
    let url = host
        .exec(&id, "io", &["sh", "-c", "read x; echo got $x"])
        .await
        .unwrap();
    let mut socket = WebSocket::connect(&url, "v4.base64.channel.k8s.io")
        .await
        .unwrap();
    assert_eq!(
        soon(socket.next()).await,
        Some((0x81, b"1".to_vec())),
        "the greeting"
    );
    // "hi\n"
    socket.send(0x81, b"0aGkK").await;
    let (channels, _) = socket.collect().await;
    // "got hi\n"
    assert_eq!(text(&channels, b'1'), "Z290IGhpCg==");
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn v5_closes_stdin_and_terminals_are_resized() {
    let host = Host::new().await;
    let (_pod, id) = host.running("ws5", &["sleep", "1000"]).await;
    let url = host.exec(&id, "io", &["cat"]).await.unwrap();
    let mut socket = WebSocket::connect(&url, "v5.channel.k8s.io").await.unwrap();
    socket.send(0x02, b"\0in ").await;
    socket.send(0x89, b"are you there").await;
    socket.send(0x80, b"parts").await;
    socket.send(0x82, &[255, 0]).await;
    let mut seen = Vec::new();
    while let Some((first, payload)) = soon(socket.next()).await {
        if first == 0x88 {
            break;
        }
        seen.push((first, payload));
    }
    assert!(
        seen.contains(&(0x8a, b"are you there".to_vec())),
        "{seen:?}"
    );
    let out: Vec<u8> = seen
        .iter()
        .filter(|(_, p)| p[0] == 1)
        .flat_map(|(_, p)| p[1..].to_vec())
        .collect();
    assert_eq!(String::from_utf8_lossy(&out), "in parts");
    assert!(
        seen.last()
            .unwrap()
            .1
            .ends_with(b"{\"metadata\":{},\"status\":\"Success\"}"),
        "{seen:?}"
    );

    let script = "until [ \"$(stty size 2>/dev/null)\" = '45 123' ]; do :; done; echo sized";
    let url = host.exec(&id, "iot", &["sh", "-c", script]).await.unwrap();
    let mut socket = WebSocket::connect(&url, "v5.channel.k8s.io").await.unwrap();
    socket
        .send(0x82, b"\x04{\"Width\":123,\"Height\":45}")
        .await;
    let (channels, _) = socket.collect().await;
    assert_eq!(text(&channels, 1), "sized\r\n");
    host.pods.remove_all().await.unwrap();
}
