//! Exec and attach.

use crisp_harness::peer::{Outcome, Transport};

use crate::{Host, Streams};

/// What succeeded.
fn succeeded(transport: Transport, outcome: &Outcome) {
    assert!(
        outcome.error.is_empty() && outcome.exit == 0,
        "{}: {outcome:?}",
        transport.name()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn stdin_of_64_mib_comes_back_whole_through_cat() {
    let host = Host::new("").await;
    let (_pod, container) = host.running("cat", &["sleep", "1000"]).await;
    for transport in Transport::ALL {
        let url = host.exec(&container, Streams::All, &["cat"]).await;
        let size = (64 << 20).to_string();
        let flags = ["-stdin", "-send", &size];
        let outcome = host
            .peer
            .stream(transport, &flags, &[url])
            .unwrap()
            .remove(0);
        succeeded(transport, &outcome);
        assert_eq!(outcome.stdout, 64 << 20, "{}", transport.name());
        assert_eq!(outcome.stdout_sha256, outcome.sent_sha256);
        eprintln!(
            "{}: 64 MiB there and back in {} ms",
            transport.name(),
            outcome.ms
        );
    }
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn two_hundred_execs_at_once_each_get_their_own_answer() {
    let host = Host::new("").await;
    let (_pod, container) = host.running("many", &["sleep", "1000"]).await;
    for transport in Transport::ALL {
        let mut urls = Vec::new();
        for i in 0..200 {
            let script = format!("read line; echo $line {i}; exit {}", i % 200);
            urls.push(
                host.exec(&container, Streams::All, &["sh", "-c", &script])
                    .await,
            );
        }
        let flags = ["-stdin", "-text", "answer\n"];
        let outcomes = host.peer.stream(transport, &flags, &urls).unwrap();
        assert_eq!(outcomes.len(), 200);
        for (i, outcome) in outcomes.iter().enumerate() {
            assert_eq!(outcome.error, "", "{} {i}: {outcome:?}", transport.name());
            assert_eq!(
                outcome.stdout_text,
                format!("answer {i}\n"),
                "{}",
                transport.name()
            );
            assert_eq!(
                usize::try_from(outcome.exit),
                Ok(i % 200),
                "{}",
                transport.name()
            );
        }
        let longest = outcomes.iter().map(|outcome| outcome.ms).max();
        eprintln!(
            "{}: 200 execs, the last after {longest:?} ms",
            transport.name()
        );
    }
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn exit_codes_and_both_streams_arrive() {
    let host = Host::new("").await;
    let (_pod, container) = host.running("codes", &["sleep", "1000"]).await;
    for transport in Transport::ALL {
        for (script, code) in [
            ("true", 0),
            ("exit 1", 1),
            ("no-such-program", 127),
            ("kill -9 $$", 137),
            ("exit 255", 255),
        ] {
            let script = format!("echo out; echo err >&2; {script}");
            let url = host
                .exec(&container, Streams::Output, &["sh", "-c", &script])
                .await;
            let outcome = host.peer.stream(transport, &[], &[url]).unwrap().remove(0);
            let name = transport.name();
            assert_eq!(
                (outcome.exit, outcome.error.as_str()),
                (code, ""),
                "{name} {script}: {outcome:?}"
            );
            assert_eq!(outcome.stdout_text, "out\n", "{name} {script}");
            assert!(
                outcome.stderr_text.starts_with("err\n"),
                "{name} {script}: {outcome:?}"
            );
        }
        // A command that is not there is an error and not an exit code, or both: never success.
        let url = host
            .exec(&container, Streams::Output, &["no-such-program"])
            .await;
        let outcome = host.peer.stream(transport, &[], &[url]).unwrap().remove(0);
        assert!(
            outcome.exit != 0 || outcome.error.contains("no-such-program"),
            "{outcome:?}"
        );
        // Both streams at once, more than any pipe holds.
        let script = "seq 1 200000; seq 1 200000 >&2";
        let url = host
            .exec(&container, Streams::Output, &["sh", "-c", script])
            .await;
        let outcome = host.peer.stream(transport, &[], &[url]).unwrap().remove(0);
        succeeded(transport, &outcome);
        assert_eq!(outcome.stdout, 1_288_895, "{}", transport.name());
    }
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_end_of_stdin_reaches_the_command_and_its_last_words_come_back() {
    let host = Host::new("").await;
    let (_pod, container) = host.running("half", &["sleep", "1000"]).await;
    for transport in Transport::ALL {
        let script = "cat; sleep 0.5; echo after";
        let url = host
            .exec(&container, Streams::All, &["sh", "-c", script])
            .await;
        let flags = ["-stdin", "-text", "before\n"];
        let outcome = host
            .peer
            .stream(transport, &flags, &[url])
            .unwrap()
            .remove(0);
        succeeded(transport, &outcome);
        assert_eq!(
            outcome.stdout_text,
            "before\nafter\n",
            "{}",
            transport.name()
        );
        // A command that reads nothing ends although its stdin is still open.
        let url = host.exec(&container, Streams::All, &["echo", "done"]).await;
        let outcome = host
            .peer
            .stream(transport, &["-stdin", "-hold"], &[url])
            .unwrap()
            .remove(0);
        succeeded(transport, &outcome);
        assert_eq!(outcome.stdout_text, "done\n", "{}", transport.name());
    }
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_terminal_has_the_size_of_the_clients_and_follows_it() {
    let host = Host::new("").await;
    let (_pod, container) = host.running("size", &["sleep", "1000"]).await;
    for transport in Transport::ALL {
        let script = "until [ \"$(stty size 2>/dev/null)\" = '30 100' ]; do sleep 0.05; done; echo $TERM; stty size";
        let url = host
            .exec(&container, Streams::Terminal, &["sh", "-c", script])
            .await;
        let flags = ["-stdin", "-tty", "-hold", "-sizes", "80x24,100x30"];
        let outcome = host
            .peer
            .stream(transport, &flags, &[url])
            .unwrap()
            .remove(0);
        succeeded(transport, &outcome);
        assert_eq!(
            outcome.stdout_text,
            "xterm\r\n30 100\r\n",
            "{}",
            transport.name()
        );
    }
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn attached_clients_write_to_and_read_from_the_container() {
    let host = Host::new("").await;
    for transport in Transport::ALL {
        let name = format!("attach-{}", transport.name());
        let sandbox = host.pods.sandbox(&name);
        let pod = host.pods.run(&sandbox).await.unwrap();
        let script = "while read line; do echo got $line; done; echo over";
        let mut config = host.pods.container("c", &["sh", "-c", script]);
        config.stdin = true;
        config.stdin_once = true;
        let container = host.pods.launch(&pod, &config, &sandbox).await.unwrap();
        let url = host.attach(&container).await;
        let flags = ["-stdin", "-text", "one\ntwo\n"];
        let outcome = host
            .peer
            .stream(transport, &flags, &[url])
            .unwrap()
            .remove(0);
        succeeded(transport, &outcome);
        assert_eq!(
            outcome.stdout_text,
            "got one\ngot two\nover\n",
            "{}",
            transport.name()
        );
    }
    host.pods.remove_all().await.unwrap();
}
