//! Ports.

use std::time::Duration;

use crisp_harness::{peer::Transport, process::until};

use crate::Host;

/// A container that sends back what it gets on port 7007, and on 7008 answers only when the other
/// side has ended.
const SERVER: &str =
    "nc -lk -p 7008 -e sh -c 'n=$(wc -c); sleep 1.5; echo $n bytes' & exec nc -lk -p 7007 -e cat";

async fn server(host: &Host) -> String {
    let (pod, container) = host.running("server", &["sh", "-c", SERVER]).await;
    let script = "netstat -ltn | grep -c ':700[78] ' | grep -qx 2";
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while host
        .pods
        .exec(&container, &["sh", "-c", script])
        .await
        .unwrap()
        .exit_code
        != 0
    {
        assert!(
            tokio::time::Instant::now() < deadline,
            "the servers do not listen"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    pod
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn four_mib_go_through_a_forwarded_port_and_back() {
    let host = Host::new("").await;
    let pod = server(&host).await;
    for transport in Transport::ALL {
        let url = host.port_forward(&pod, 7007).await;
        let before = host.descriptors();
        let flags = ["-port", "7007", "-send", "4194304", "-connections", "4"];
        for outcome in host.peer.forward(transport, &flags, &url).unwrap() {
            assert_eq!(outcome.stdout, 4 << 20, "{}: {outcome:?}", transport.name());
            assert_eq!(
                outcome.stdout_sha256,
                outcome.sent_sha256,
                "{}",
                transport.name()
            );
            assert_eq!(outcome.stderr_text, "", "{}", transport.name());
        }
        let gone = until(Duration::from_secs(20), || host.descriptors() <= before);
        assert!(
            gone,
            "{}: {} descriptors, {before} before",
            transport.name(),
            host.descriptors()
        );
    }
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_server_may_answer_after_the_client_has_ended_its_direction() {
    let host = Host::new("").await;
    let pod = server(&host).await;
    for transport in Transport::ALL {
        let url = host.port_forward(&pod, 7008).await;
        let flags = ["-port", "7008", "-send", "100000"];
        let outcome = host
            .peer
            .forward(transport, &flags, &url)
            .unwrap()
            .remove(0);
        assert_eq!(
            outcome.stdout_text,
            "100000 bytes\n",
            "{}: {outcome:?}",
            transport.name()
        );
    }
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_port_without_a_server_is_named_as_the_reason() {
    let host = Host::new("").await;
    let pod = server(&host).await;
    for transport in Transport::ALL {
        let url = host.port_forward(&pod, 7099).await;
        let outcome = host
            .peer
            .forward(transport, &["-port", "7099", "-send", "1"], &url)
            .unwrap()
            .remove(0);
        assert_eq!(outcome.stdout, 0, "{}", transport.name());
        let said = outcome.stderr_text.to_lowercase();
        assert!(
            said.contains("7099") && said.contains("refused"),
            "{}: {outcome:?}",
            transport.name()
        );
    }
    host.pods.remove_all().await.unwrap();
}
