//! Clients that go without a word.

use crate::{Host, client::Spdy, client::WebSocket, descriptors, runs, until};

/// A process of the monitor's container, by its command line, with a number that nothing else has.
fn sleeping(number: &str) -> bool {
    runs(&["sleep", number])
}

/// The monitor of a container.
fn monitor(id: &str) -> u32 {
    let is_it = |pid: &u32| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = command.split(|&byte| byte == 0);
        words
            .next()
            .is_some_and(|word| word.ends_with(b"conmon-rs"))
            && words.any(|word| word == id.as_bytes())
    };
    crisp_harness::site::pids().into_iter().find(is_it).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_the_daemons_stays_and_no_process_that_reads_or_writes() {
    let host = Host::new().await;
    let (_pod, id) = host.running("gone", &["sleep", "1000"]).await;
    let monitor = monitor(&id);
    // Once as a rehearsal: what is opened once and kept is no leak.
    for streams in ["ioe", "iot"] {
        let url = host.exec(&id, streams, &["true"]).await.unwrap();
        Spdy::session(&url, streams).await.collect().await;
    }
    let (before, monitors) = (host.descriptors(), descriptors(monitor));
    let commands: [(&str, &[&str]); 5] = [
        ("io", &["cat", "-"]),
        ("ioe", &["sh", "-c", "yes 73901"]),
        ("oe", &["yes", "73902"]),
        ("iot", &["sh", "-c", "cat; sleep 73903"]),
        ("ot", &["yes", "73904"]),
    ];
    for round in 0..3 {
        let mut sessions = Vec::new();
        for (streams, command) in commands {
            let url = host.exec(&id, streams, command).await.unwrap();
            let mut spdy = Spdy::session(&url, streams).await;
            if streams.contains('i') && round > 0 {
                spdy.send("stdin", b"some input", false).await;
            }
            sessions.push(spdy);
        }
        // One that has never opened a stream, and one in the middle of a frame.
        let url = host.exec(&id, "io", &["sleep", "73905"]).await.unwrap();
        let idle = Spdy::connect(&url, "v4.channel.k8s.io").await.unwrap();
        let url = host.exec(&id, "io", &["cat", "--", "-"]).await.unwrap();
        let mut socket = WebSocket::connect(&url, "v5.channel.k8s.io").await.unwrap();
        socket.send(0x02, b"\0half a message").await;
        until("all of them run", || {
            runs(&["yes", "73904"]) && runs(&["cat", "-"])
        })
        .await;
        drop((sessions, idle, socket));
        until("what read or wrote is gone", || {
            let lines: [&[&str]; 6] = [
                &["cat", "-"],
                &["cat", "--", "-"],
                &["yes", "73901"],
                &["yes", "73902"],
                &["sleep", "73903"],
                &["yes", "73904"],
            ];
            !lines.into_iter().any(runs)
        })
        .await;
        assert!(
            !sleeping("73905"),
            "a command whose client has no streams is not run"
        );
    }
    until("descriptors of the daemon are as before", || {
        host.descriptors().len() <= before.len()
    })
    .await;
    until("descriptors of the monitor are as before", || {
        descriptors(monitor).len() <= monitors.len()
    })
    .await;
    println!(
        "S7 21 clients gone by a FIN or a reset: no process that reads or writes, no descriptor stays"
    );
    // Without the setting, what does without its streams goes on.
    let url = host.exec(&id, "io", &["sleep", "73906"]).await.unwrap();
    let spdy = Spdy::session(&url, "io").await;
    until("it runs", || sleeping("73906")).await;
    drop(spdy);
    until("its descriptors are gone", || {
        host.descriptors().len() <= before.len()
    })
    .await;
    assert!(sleeping("73906"));
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_setting_no_process_stays_at_all() {
    let host = Host::with("kill_on_disconnect = true").await;
    let (_pod, id) = host.running("killed", &["sleep", "1000"]).await;
    let stubborn = "trap '' HUP TERM INT PIPE; sleep 73911 & sleep 73912; sleep 73913";
    let mut sessions = Vec::new();
    for (streams, command) in [
        ("oe", &["sleep", "73910"][..]),
        ("ioe", &["sh", "-c", stubborn]),
        ("iot", &["sh", "-c", "trap '' HUP; sleep 73914"]),
    ] {
        let url = host.exec(&id, streams, command).await.unwrap();
        sessions.push(Spdy::session(&url, streams).await);
    }
    let all = ["73910", "73911", "73912", "73914"];
    until("they run", || all.into_iter().all(sleeping)).await;
    drop(sessions);
    until("they are gone", || !all.into_iter().any(sleeping)).await;
    assert!(!sleeping("73913"));
    // A command whose client stays is not touched.
    let url = host.exec(&id, "o", &["sh", "-c", "exit 4"]).await.unwrap();
    assert_eq!(Spdy::session(&url, "o").await.collect().await.code(), 4);
    host.pods.remove_all().await.unwrap();
}
