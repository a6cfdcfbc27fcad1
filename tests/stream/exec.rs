//! Commands over SPDY.

use tonic::Code;

use crate::{Host, client::Spdy, soon};

/// Runs a command to its end, its input finished at once.
async fn run(
    host: &Host,
    container: &str,
    streams: &str,
    command: &[&str],
) -> crate::client::Collected {
    let url = host.exec(container, streams, command).await.unwrap();
    let mut spdy = Spdy::session(&url, streams).await;
    if streams.contains('i') {
        spdy.send("stdin", b"", true).await;
    }
    spdy.collect().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_and_exit_codes_are_the_commands_own() {
    let host = Host::new().await;
    let (_pod, id) = host.running("codes", &["sleep", "1000"]).await;
    for (command, code) in [
        ("exit 0", 0),
        ("exit 1", 1),
        ("exit 255", 255),
        ("kill -9 $$", 137),
    ] {
        let all = run(&host, &id, "ioe", &["sh", "-c", command]).await;
        assert_eq!(all.code(), code, "{command}: {all:?}");
        let mut finished = all.finished.clone();
        assert_eq!(
            finished.pop().as_deref(),
            Some("error"),
            "{command}: the outcome comes last"
        );
        finished.sort();
        assert_eq!(finished, ["stderr", "stdout"], "{command}");
    }
    let all = run(
        &host,
        &id,
        "oe",
        &["sh", "-c", "echo out; echo err >&2; exit 3"],
    )
    .await;
    assert_eq!(
        (all.text("stdout"), all.text("stderr"), all.code()),
        ("out\n".into(), "err\n".into(), 3)
    );
    // Only what was asked for; the rest goes nowhere.
    let all = run(&host, &id, "e", &["sh", "-c", "echo out; echo err >&2"]).await;
    assert_eq!((all.text("stderr"), all.code()), ("err\n".into(), 0));
    // The exit ends it, whatever the input does.
    let url = host
        .exec(&id, "io", &["sh", "-c", "echo done; exit 7"])
        .await
        .unwrap();
    let mut spdy = Spdy::session(&url, "io").await;
    let all = spdy.collect().await;
    assert_eq!((all.text("stdout"), all.code()), ("done\n".into(), 7));
    // The end of the output is not the end of the input.
    let script = "exec >&-; wc -c >&2";
    let url = host.exec(&id, "ioe", &["sh", "-c", script]).await.unwrap();
    let mut spdy = Spdy::session(&url, "ioe").await;
    for _ in 0..64 {
        spdy.send("stdin", &[b'x'; 16384], false).await;
    }
    spdy.send("stdin", b"", true).await;
    let all = spdy.collect().await;
    assert_eq!((all.text("stderr").trim(), all.code()), ("1048576", 0));
    // What cannot be executed is a failure, not a code.
    let all = run(&host, &id, "o", &["/no/such/program"]).await;
    let status = all.status();
    assert_eq!(
        (&status["status"], &status["reason"]),
        (&"Failure".into(), &"InternalError".into())
    );
    assert!(
        status["message"]
            .as_str()
            .unwrap()
            .contains("/no/such/program"),
        "{status}"
    );
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_through_cat_comes_back_whole() {
    const SIZE: usize = 16 << 20;
    let host = Host::new().await;
    let (_pod, id) = host.running("cat", &["sleep", "1000"]).await;
    let url = host.exec(&id, "io", &["cat"]).await.unwrap();
    let spdy = Spdy::session(&url, "io").await;
    let pattern: Vec<u8> = (0..SIZE).map(|i| (i * 31 >> 7) as u8).collect();
    let (mut read, mut write) = spdy.stream.into_split();
    let sent = pattern.clone();
    let writing = tokio::spawn(async move {
        use tokio::io::AsyncWriteExt;
        for chunk in sent.chunks(50_000) {
            // The second stream that was opened.
            write
                .write_all(&crate::client::data(3, chunk, false))
                .await
                .unwrap();
        }
        write
            .write_all(&crate::client::data(3, b"", true))
            .await
            .unwrap();
        write
    });
    let mut got = Vec::with_capacity(SIZE);
    use tokio::io::AsyncReadExt;
    loop {
        let (id, word) = (
            read.read_u32().await.unwrap(),
            read.read_u32().await.unwrap(),
        );
        let mut body = vec![0; usize::try_from(word & 0xff_ffff).unwrap()];
        soon(read.read_exact(&mut body)).await.unwrap();
        if id == 5 {
            got.extend(body);
            if word >> 24 == 1 {
                break;
            }
        }
    }
    drop(writing.await.unwrap());
    assert!(got == pattern, "{} of {SIZE} bytes", got.len());
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn terminals_have_a_size_a_type_and_lose_nothing() {
    let host = Host::new().await;
    let (_pod, id) = host.running("tty", &["sleep", "1000"]).await;
    let url = host.exec(&id, "iot", &["sh"]).await.unwrap();
    let mut spdy = Spdy::session(&url, "iot").await;
    spdy.send("resize", b"{\"Width\":123,\"Height\":45}\n", false)
        .await;
    spdy.send(
        "stdin",
        b"until [ \"$(stty size 2>/dev/null)\" = '45 123' ]; do :; done; echo $TERM $((6*7)); tty; exit 9\n",
        false,
    )
    .await;
    let all = spdy.collect().await;
    let text = all.text("stdout");
    assert!(
        text.contains("xterm 42\r\n") && text.contains("/dev/pts/"),
        "{text:?}"
    );
    assert_eq!(all.code(), 9);
    for round in 0..crisp_rounds(20, 1000) {
        let all = run(
            &host,
            &id,
            "ot",
            &["sh", "-c", "echo one; echo two; echo last"],
        )
        .await;
        assert_eq!(
            all.text("stdout"),
            "one\r\ntwo\r\nlast\r\n",
            "round {round}"
        );
    }
    host.pods.remove_all().await.unwrap();
}

/// `few` in a CI run, `many` with CRISP_TEST_FULL.
fn crisp_rounds(few: usize, many: usize) -> usize {
    if std::env::var_os("CRISP_TEST_FULL").is_some() {
        many
    } else {
        few
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn older_protocols_tell_the_outcome_as_text() {
    let host = Host::new().await;
    let (_pod, id) = host.running("old", &["sleep", "1000"]).await;
    for protocol in ["v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"] {
        for (script, error) in [
            ("echo hi", ""),
            ("exit 5", "command terminated with exit code 5"),
        ] {
            let url = host.exec(&id, "o", &["sh", "-c", script]).await.unwrap();
            let mut spdy = Spdy::connect(&url, protocol).await.unwrap();
            spdy.open_for("o").await;
            let all = spdy.collect().await;
            assert_eq!(all.text("error"), error, "{protocol}");
            assert_eq!(all.text("stdout") == "hi\n", error.is_empty(), "{protocol}");
        }
    }
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_command_leaves_behind_does_not_hold_its_session() {
    let host = Host::new().await;
    let (_pod, id) = host.running("left", &["sleep", "1000"]).await;
    let all = run(
        &host,
        &id,
        "oe",
        &["sh", "-c", "sleep 98761 & echo started"],
    )
    .await;
    assert_eq!((all.text("stdout"), all.code()), ("started\n".into(), 0));
    assert!(crate::runs(&["sleep", "98761"]), "it was left alone");
    let all = run(&host, &id, "oe", &["sh", "-c", "yes & echo started >&2"]).await;
    assert_eq!((all.text("stderr"), all.code()), ("started\n".into(), 0));
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_cannot_be_served_say_why() {
    let host = Host::new().await;
    let (pod, id) = host.running("why", &["sleep", "1000"]).await;
    let code = |answer: Result<String, tonic::Status>| answer.unwrap_err().code();
    assert_eq!(
        code(host.exec("", "o", &["true"]).await),
        Code::InvalidArgument
    );
    assert_eq!(
        code(host.exec(&id, "", &["true"]).await),
        Code::InvalidArgument
    );
    assert_eq!(
        code(host.exec(&id, "oet", &["true"]).await),
        Code::InvalidArgument
    );
    assert_eq!(code(host.exec(&id, "o", &[]).await), Code::InvalidArgument);
    assert_eq!(
        code(host.exec(&"0".repeat(64), "o", &["true"]).await),
        Code::NotFound
    );
    assert_eq!(code(host.attach(&id, "").await), Code::InvalidArgument);
    assert_eq!(code(host.attach("x", "o").await), Code::NotFound);
    assert_eq!(
        code(host.port_forward("", &[]).await),
        Code::InvalidArgument
    );
    assert_eq!(
        code(host.port_forward(&pod, &[70_000]).await),
        Code::InvalidArgument
    );
    assert_eq!(code(host.port_forward("x", &[80]).await), Code::NotFound);
    // Granted, and stopped before the client came.
    let url = host.exec(&id, "o", &["true"]).await.unwrap();
    let ports = host.port_forward(&pod, &[]).await.unwrap();
    host.pods.stop(&id, 0).await.unwrap();
    let all = Spdy::session(&url, "o").await.collect().await;
    assert_eq!(all.status()["reason"], "InternalError");
    assert_eq!(
        code(host.exec(&id, "o", &["true"]).await),
        Code::FailedPrecondition
    );
    assert_eq!(code(host.attach(&id, "o").await), Code::FailedPrecondition);
    host.pods.stop_pod(&pod).await.unwrap();
    assert_eq!(
        code(host.port_forward(&pod, &[80]).await),
        Code::FailedPrecondition
    );
    let mut spdy = Spdy::connect(&ports, "portforward.k8s.io").await.unwrap();
    let (error, _) = crate::ports::open_pair(&mut spdy, 80, 0).await;
    let text = crate::ports::read_all(&mut spdy, error).await;
    assert!(
        String::from_utf8_lossy(&text).contains("not ready"),
        "{text:?}"
    );
    host.pods.remove_all().await.unwrap();
}
