//! Clients of a container's own streams.

use std::time::Duration;

use crisp_harness::cri::v1::{ContainerConfig, ContainerState};

use crate::{Host, client::Spdy, client::WebSocket, soon};

fn config(host: &Host, once: bool, tty: bool, script: &str) -> ContainerConfig {
    ContainerConfig {
        stdin: true,
        stdin_once: once,
        tty,
        ..host.pods.container("c", &["sh", "-c", script])
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_input_ends_a_container_made_for_one_client() {
    let host = Host::new().await;
    let config = config(&host, true, false, "cat; echo over; echo err >&2; exit 5");
    let (_pod, id) = host.launched(&host.pods.sandbox("once"), &config).await;
    let url = host.attach(&id, "ioe").await.unwrap();
    let mut spdy = Spdy::session(&url, "ioe").await;
    spdy.send("stdin", b"words\n", false).await;
    spdy.read_until("stdout", |text| text.ends_with("words\n"))
        .await;
    spdy.send("stdin", b"", true).await;
    let all = spdy.collect().await;
    assert_eq!(
        (all.text("stdout"), all.text("stderr")),
        ("over\n".into(), "err\n".into())
    );
    // Attaching has no exit code of its own.
    assert_eq!(all.code(), 0);
    let status = host
        .pods
        .exited(&id, Duration::from_secs(10))
        .await
        .unwrap();
    assert_eq!(status.exit_code, 5);
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn otherwise_the_end_of_input_is_a_client_that_leaves() {
    let host = Host::new().await;
    for (name, once, tty) in [("many", false, false), ("terminal", true, true)] {
        let streams = if tty { "iot" } else { "io" };
        let script = "while read line; do echo got $line; done";
        let config = config(&host, once, tty, script);
        let (_pod, id) = host.launched(&host.pods.sandbox(name), &config).await;
        // Two clients see the same; one leaves by the end of its input, the other goes on.
        let mut first = Spdy::session(&host.attach(&id, streams).await.unwrap(), streams).await;
        let mut second = Spdy::session(&host.attach(&id, streams).await.unwrap(), streams).await;
        first.send("stdin", b"one\n", false).await;
        for client in [&mut first, &mut second] {
            client
                .read_until("stdout", |text| text.contains("got one"))
                .await;
        }
        first.send("stdin", b"", true).await;
        assert_eq!(first.collect().await.code(), 0);
        second.send("stdin", b"two\n", false).await;
        second
            .read_until("stdout", |text| text.contains("got two"))
            .await;
        // A WebSocket that only looks, and goes without a word.
        let url = host
            .attach(&id, if tty { "ot" } else { "o" })
            .await
            .unwrap();
        let mut socket = WebSocket::connect(&url, "v5.channel.k8s.io").await.unwrap();
        soon(socket.next()).await.expect("the greeting");
        second.send("stdin", b"three\n", false).await;
        let mut seen = String::new();
        while !seen.contains("got three") {
            let (_, payload) = soon(socket.next()).await.unwrap();
            seen.push_str(&String::from_utf8_lossy(&payload[1..]));
        }
        drop(socket);
        let status = host.pods.status(&id).await.unwrap();
        assert_eq!(status.state(), ContainerState::ContainerRunning, "{name}");
        // Its end is everybody's.
        host.pods.stop(&id, 0).await.unwrap();
        assert_eq!(second.collect().await.code(), 0, "{name}");
    }
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_is_resized_and_a_client_that_does_not_read_is_left_behind() {
    let host = Host::new().await;
    let script = "until [ \"$(stty size 2>/dev/null)\" = '45 123' ]; do sleep 0.05; done; echo sized; sleep 1000";
    let config = config(&host, false, true, script);
    let (_pod, id) = host.launched(&host.pods.sandbox("sized"), &config).await;
    let mut spdy = Spdy::session(&host.attach(&id, "iot").await.unwrap(), "iot").await;
    spdy.send("resize", b"{\"Width\":123,\"Height\":45}", false)
        .await;
    spdy.read_until("stdout", |text| text.contains("sized"))
        .await;
    // Prints more than any pipe holds; its client reads nothing.
    let script = "read go; i=0; while [ $i -lt 40 ]; do head -c 1000000 /dev/zero; i=$((i+1)); done; echo end >&2; sleep 1000";
    let config = self::config(&host, false, false, script);
    let (_pod, id) = host.launched(&host.pods.sandbox("flood"), &config).await;
    let slow = Spdy::session(&host.attach(&id, "o").await.unwrap(), "o").await;
    let mut errors = Spdy::session(&host.attach(&id, "ie").await.unwrap(), "ie").await;
    errors.send("stdin", b"go\n", false).await;
    errors
        .read_until("stderr", |text| text.contains("end"))
        .await;
    drop(slow);
    host.pods.remove_all().await.unwrap();
}
