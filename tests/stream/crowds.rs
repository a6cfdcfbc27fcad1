//! Many at once, too much of one thing, and clients that are gone without a sign of it.

use std::time::Instant;

use crisp_harness::cri::v1::{ContainerConfig, ContainerState, PortForwardRequest};
use nix::sys::socket::{setsockopt, sockopt::TcpRepair};
use tokio::net::TcpStream;
use tonic::Code;

use crate::{
    Host, LIMIT,
    client::{Said, Spdy, WebSocket, parts},
    ports::{open_pair, read_all},
    runs, soon, until,
};

/// `few` in a CI run, `many` with CRISP_TEST_FULL.
fn repeats(few: usize, many: usize) -> usize {
    if std::env::var_os("CRISP_TEST_FULL").is_some() {
        many
    } else {
        few
    }
}

async fn says_fine(host: &Host, id: &str) {
    let url = host.exec(id, "o", &["echo", "fine"]).await.unwrap();
    let all = soon(Spdy::session(&url, "o")).await.collect().await;
    assert_eq!((all.text("stdout"), all.code()), ("fine\n".into(), 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_without_end_leave_room_for_who_speaks() {
    let host = Host::new().await;
    let (_pod, id) = host.running("idle", &["sleep", "1000"]).await;
    says_fine(&host, &id).await;
    let before = host.descriptors().len();
    let url = host.exec(&id, "o", &["true"]).await.unwrap();
    let count = repeats(300, 10_000);
    let began = Instant::now();
    let mut idle = Vec::new();
    for _ in 0..count {
        idle.push(TcpStream::connect(parts(&url).0).await.unwrap());
    }
    says_fine(&host, &id).await;
    let served = began.elapsed();
    let held = host.descriptors().len().saturating_sub(before);
    println!(
        "S3 {count} idle connections: one that speaks is served after {served:?}, {held} descriptors more"
    );
    assert!(held < 400, "{held}");
    drop(idle);
    until("descriptors are as before", || {
        host.descriptors().len() <= before + 1
    })
    .await;
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sizes_that_are_none_and_a_flood_of_sizes_change_nothing_but_the_size() {
    let host = Host::new().await;
    let (_pod, id) = host.running("sizes", &["sleep", "1000"]).await;
    let url = host.exec(&id, "iot", &["sh"]).await.unwrap();
    let mut spdy = Spdy::session(&url, "iot").await;
    for odd in [
        &b"{\"Width\":0,\"Height\":0}"[..],
        b"{\"Width\":65535,\"Height\":65535}",
        b"{\"Width\":65536,\"Height\":1}",
        b"{\"Width\":-1,\"Height\":-1}",
        b"{\"Width\":1e99,\"Height\":24}",
        b"{\"Width\":\"80\"}",
        b"{}",
        b"null",
        b"\xff\xfe}{",
        b"",
    ] {
        spdy.send("resize", odd, false).await;
    }
    let began = Instant::now();
    let flood = repeats(5_000, 100_000);
    for number in 0..flood {
        let size = format!("{{\"Width\":{},\"Height\":24}}\n", 80 + number % 50);
        spdy.send("resize", size.as_bytes(), false).await;
    }
    spdy.send("resize", b"{\"Width\":123,\"Height\":45}", false)
        .await;
    let script =
        b"until [ \"$(stty size)\" = '45 123' ]; do sleep 0.05; done; echo si''zed; exit 3\n";
    spdy.send("stdin", script, false).await;
    spdy.read_until("stdout", |text| text.contains("sized"))
        .await;
    println!(
        "S5 ten sizes that are none and {flood} that are: the last is in force after {:?}",
        began.elapsed()
    );
    assert_eq!(spdy.collect().await.code(), 3);
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_that_are_none_are_refused_in_the_call_and_in_the_stream() {
    let host = Host::new().await;
    let (pod, _id) = host.running("ports", &["sleep", "1000"]).await;
    for port in [0, -1, 70_000, i32::MAX] {
        let request = PortForwardRequest {
            pod_sandbox_id: pod.clone(),
            port: vec![80, port],
        };
        let mut runtime = host.pods.cri.runtime.clone();
        let status = runtime.port_forward(request).await.unwrap_err();
        println!("S6 port {port}: {:?} {}", status.code(), status.message());
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains("port[1]"), "{status:?}");
    }
    let url = host.port_forward(&pod, &[]).await.unwrap();
    let mut spdy = Spdy::connect(&url, "portforward.k8s.io").await.unwrap();
    for port in ["0", "70000", "-1", "80x", "", "127.0.0.1:22"] {
        let stream = spdy
            .open(&[("port", port), ("streamtype", "error"), ("requestid", "9")])
            .await;
        let mut said = soon(spdy.next()).await.unwrap();
        while !matches!(said, Said::Reset(from, _) if from == stream) {
            said = soon(spdy.next()).await.unwrap();
        }
        println!("S6 a stream to port {port:?}: {said:?}");
    }
    // Loopback is the pod's own: what listens on the host's is not there.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (error, _) = open_pair(&mut spdy, port, 10).await;
    let text = String::from_utf8(read_all(&mut spdy, error).await).unwrap();
    println!("S6 a port of the host's loopback: {text}");
    assert!(text.to_lowercase().contains("refused"), "{text}");
    host.pods.remove_all().await.unwrap();
}

/// Closes a connection so that the other side is told nothing.
fn vanish(stream: TcpStream) {
    setsockopt(&stream, TcpRepair, &1).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_vanishes_without_an_end_is_noticed() {
    // Long enough that nobody is idle for so long before all are there.
    let host = Host::with("idle_timeout = \"5s\"").await;
    let (_pod, id) = host.running("vanished", &["sleep", "1000"]).await;
    says_fine(&host, &id).await;
    let before = host.descriptors().len();
    // One that is written to is noticed by that, one that is silent when its time is over.
    let mut gone = Vec::new();
    for command in [&["cat", "-", "-", "-"][..], &["yes", "73941"]] {
        let url = host.exec(&id, "io", command).await.unwrap();
        gone.push(Spdy::session(&url, "io").await);
        until("it runs", || runs(command)).await;
    }
    let url = host.exec(&id, "io", &["cat", "-", "-"]).await.unwrap();
    let socket = WebSocket::connect(&url, "v5.channel.k8s.io").await.unwrap();
    until("it runs", || runs(&["cat", "-", "-"])).await;
    let began = Instant::now();
    for spdy in gone {
        vanish(spdy.stream);
    }
    vanish(socket.stream);
    until("what wrote is gone", || !runs(&["yes", "73941"])).await;
    let written = began.elapsed();
    until("what is silent is gone", || {
        !runs(&["cat", "-", "-"]) && !runs(&["cat", "-", "-", "-"])
    })
    .await;
    println!(
        "S7 gone without a FIN: noticed after {written:?} when written to, after {:?} when idle for 5 s",
        began.elapsed()
    );
    until("descriptors are as before", || {
        host.descriptors().len() <= before + 1
    })
    .await;
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_outside_of_the_node_reaches_the_server_unless_that_is_asked_for() {
    let program = crisp_harness::tools::crisp_dir().join("crisp");
    let output = std::process::Command::new(program)
        .args(["config", "default"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text
        .lines()
        .find(|line| line.trim_start_matches('#').starts_with("address"));
    println!("S9 the default: {}", line.unwrap_or("no address"));
    assert!(
        line.is_some_and(|line| line.contains("127.0.0.1")),
        "{text}"
    );
    let host = Host::new().await;
    let (_pod, id) = host.running("bound", &["sleep", "1000"]).await;
    let url = host.exec(&id, "o", &["true"]).await.unwrap();
    let port: u16 = parts(&url).0.rsplit(':').next().unwrap().parse().unwrap();
    // A listening socket's local address, in the order of the host's bytes.
    let wanted = format!(":{port:04X} 00000000:0000 0A");
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let bound: Vec<&str> = table
        .lines()
        .filter(|line| line.contains(&wanted))
        .filter_map(|line| line.split_whitespace().nth(1))
        .collect();
    println!("S9 it listens on {bound:?}");
    assert_eq!(bound, [format!("0100007F:{port:04X}")]);
    let six = std::fs::read_to_string("/proc/net/tcp6").unwrap_or_default();
    let wanted = format!(":{port:04X} 00000000000000000000000000000000:0000 0A");
    assert!(!six.contains(&wanted), "{six}");
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_that_attaches_to_one_container_is_served_up_to_a_limit_and_told_beyond() {
    let host = Host::new().await;
    let script = "while :; do echo tick; sleep 0.2; done";
    let config = ContainerConfig {
        stdin: true,
        ..host.pods.container("c", &["sh", "-c", script])
    };
    let (_pod, id) = host.launched(&host.pods.sandbox("crowd"), &config).await;
    says_fine(&host, &id).await;
    let before = host.descriptors().len();
    let count = repeats(300, 1000);
    let (mut served, mut refused) = (Vec::new(), Vec::new());
    let began = Instant::now();
    for _ in 0..count {
        let url = host.attach(&id, "o").await.unwrap();
        served.push(Spdy::session(&url, "o").await);
    }
    // Each hears a tick, or why not.
    let mut heard = Vec::new();
    for mut client in served {
        let first = tokio::time::timeout(LIMIT, async {
            loop {
                match client.next().await {
                    Some(Said::Data(_, bytes, _)) if !bytes.is_empty() => {
                        return Some(String::from_utf8_lossy(&bytes).into_owned());
                    }
                    Some(_) => {}
                    None => return None,
                }
            }
        });
        match first.await.expect("it hears something") {
            Some(text) if text.contains("tick") => heard.push(client),
            other => refused.push(other.unwrap_or_default()),
        }
    }
    println!(
        "S10 {count} attach to one container: {} hear it, {} are told {:?}, after {:?}",
        heard.len(),
        refused.len(),
        refused.first(),
        began.elapsed()
    );
    assert!(heard.len() >= 100, "{}", heard.len());
    assert!(
        refused
            .iter()
            .all(|text| text.contains("attach") || text.contains("too many"))
    );
    let state = host.pods.status(&id).await.unwrap().state();
    assert_eq!(state, ContainerState::ContainerRunning);
    says_fine(&host, &id).await;
    drop(heard);
    until("descriptors are as before", || {
        host.descriptors().len() <= before + 1
    })
    .await;
    let url = host.attach(&id, "o").await.unwrap();
    let mut late = Spdy::session(&url, "o").await;
    late.read_until("stdout", |text| text.contains("tick"))
        .await;
    host.pods.remove_all().await.unwrap();
}
