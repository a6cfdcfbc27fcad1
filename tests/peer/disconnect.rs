//! Clients that vanish.

use std::time::Duration;

use crisp_harness::{daemon::Kind, peer::Transport, process::until};

use crate::{Host, Streams, processes};

const LIMIT: Duration = Duration::from_secs(20);

/// Clients of each kind that vanish at once.
const CLIENTS: usize = 5;

/// Holds execs of these commands, then cuts them off: counts of processes and of the daemon's
/// descriptors before, during and after.
async fn cut_off(
    host: &Host,
    container: &str,
    transport: Transport,
    commands: &[(Streams, &[&str])],
) -> [(usize, usize); 3] {
    let before = (processes(container).len(), host.descriptors());
    let mut held = Vec::new();
    for &(streams, command) in commands {
        let urls = host.execs(CLIENTS, container, streams, command).await;
        let flags: &[&str] = match streams {
            Streams::Output => &[],
            Streams::All => &["-stdin", "-hold", "-text", "hello\n"],
            Streams::Terminal => &["-stdin", "-tty", "-hold", "-text", "hello\n"],
        };
        held.push(host.peer.hold(transport, flags, &urls).unwrap());
    }
    let during = (processes(container).len(), host.descriptors());
    drop(held);
    let mut after = before;
    until(LIMIT, || {
        after = (processes(container).len(), host.descriptors());
        after.0 <= before.0 && after.1 <= before.1
    });
    eprintln!(
        "{}: processes and descriptors before {before:?}, during {during:?}, after {after:?}",
        transport.name()
    );
    [before, during, after]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_vanished_client_leaves_no_descriptor_and_no_process_that_reads_or_writes() {
    let host = Host::new("").await;
    let (_pod, container) = host.running("vanish", &["sleep", "1000"]).await;
    // What is made with the first exec and stays (a thread's descriptor, a template) is no leak.
    let url = host
        .exec(&container, Streams::Output, &["echo", "first"])
        .await;
    host.peer.stream(Transport::Spdy, &[], &[url]).unwrap();
    for transport in Transport::ALL {
        let commands: [(Streams, &[&str]); 3] = [
            (Streams::All, &["cat"]),
            (Streams::Output, &["yes"]),
            (Streams::Terminal, &["sh", "-c", "echo on; exec sleep 1000"]),
        ];
        let [before, during, after] = cut_off(&host, &container, transport, &commands).await;
        assert_eq!(during.0, before.0 + 3 * CLIENTS, "{}", transport.name());
        assert!(during.1 > before.1, "{}", transport.name());
        assert_eq!(
            after.0,
            before.0,
            "{}: {:?}",
            transport.name(),
            processes(&container)
        );
        assert!(
            after.1 <= before.1,
            "{}: {after:?} {before:?}",
            transport.name()
        );
    }
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_job_goes_on_without_its_client_unless_kill_on_disconnect_is_set() {
    for kill in [false, true] {
        // The harness's own table comes last: [stream].
        let host = Host::new(if kill {
            "kill_on_disconnect = true\n"
        } else {
            ""
        })
        .await;
        if host.daemon.kind() != Kind::Crisp {
            return;
        }
        let (_pod, container) = host.running("job", &["sleep", "1000"]).await;
        for transport in Transport::ALL {
            // It neither reads nor writes; the second one ignores the hang-up as well.
            let commands: [(Streams, &[&str]); 2] = [
                (Streams::All, &["sh", "-c", "echo on; exec sleep 2000"]),
                (
                    Streams::Output,
                    &["sh", "-c", "trap '' HUP; echo on; sleep 2000 & wait"],
                ),
            ];
            let left = cut_off_and_count(&host, &container, transport, &commands, kill).await;
            let wanted = if kill { 0 } else { 3 * CLIENTS };
            assert_eq!(
                left,
                wanted,
                "{}, kill {kill}: {:?}",
                transport.name(),
                processes(&container)
            );
            if !kill {
                let stop = host
                    .pods
                    .exec(&container, &["pkill", "-9", "-f", "sleep 2000|echo on"])
                    .await;
                stop.unwrap();
                // The next round counts from what is there before it.
                assert!(until(LIMIT, || processes(&container).len() <= 1));
            }
        }
        host.pods.remove_all().await.unwrap();
    }
}

/// Processes left of these commands.
async fn cut_off_and_count(
    host: &Host,
    container: &str,
    transport: Transport,
    commands: &[(Streams, &[&str])],
    gone: bool,
) -> usize {
    if gone {
        let [before, _, after] = cut_off(host, container, transport, commands).await;
        assert!(after.1 <= before.1, "descriptors: {after:?} {before:?}");
        return after.0 - before.0;
    }
    let before = (processes(container).len(), host.descriptors());
    for &(streams, command) in commands {
        let urls = host.execs(CLIENTS, container, streams, command).await;
        let flags: &[&str] = if matches!(streams, Streams::All) {
            &["-stdin", "-hold"]
        } else {
            &[]
        };
        drop(host.peer.hold(transport, flags, &urls).unwrap());
    }
    // The descriptors go; then the processes have had their time to go as well.
    assert!(
        until(LIMIT, || host.descriptors() <= before.1),
        "{} descriptors, {} before",
        host.descriptors(),
        before.1
    );
    // A shell may not have got so far as to start its child.
    until(LIMIT, || {
        processes(container).len() >= before.0 + 3 * CLIENTS
    });
    processes(container).len() - before.0
}
