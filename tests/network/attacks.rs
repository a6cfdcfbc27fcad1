//! Plugins that misbehave: attacks C1 to C9 and C11 and what a broken binary does.

use std::{
    fs,
    time::{Duration, Instant},
};

use crisp::{
    error::{Chain, Classify, ErrorKind},
    network::{DetachRequest, NetworkError, PluginFailure},
};

use super::{Fakes, RESULT, eventually, own_namespace, request, runs};

/// Attaches with one plugin of this body and returns the error; checks that it was undone.
async fn refused(body: &str) -> NetworkError {
    let fakes = Fakes::new();
    let body = format!("[ $CNI_COMMAND = DEL ] && exit 0\n{body}");
    fakes.plugin("bad", &body);
    fakes.conf("1.0.0", &["bad"]);
    let error = fakes
        .network()
        .attach(&request(&own_namespace()))
        .await
        .unwrap_err();
    assert_eq!(fakes.calls(), ["bad ADD", "bad DEL"], "{}", Chain(&error));
    assert_eq!(fakes.records(), 0);
    error
}

fn failure(error: &NetworkError) -> &PluginFailure {
    match error {
        NetworkError::Plugin { failure, .. } => failure,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn c1_a_flood_of_output_is_cut_off() {
    let started = Instant::now();
    let error = refused("exec cat /dev/zero").await;
    assert!(
        matches!(failure(&error), PluginFailure::TooMuchOutput { .. }),
        "{error:?}"
    );
    assert!(
        started.elapsed() < Duration::from_secs(60),
        "it never ends by itself"
    );
}

#[tokio::test]
async fn c1_a_flood_of_errors_is_kept_short() {
    let error =
        refused("head -c 50000000 /dev/zero | tr '\\0' e >&2; echo 'the reason' >&2; exit 1").await;
    let text = Chain(&error).to_string();
    assert!(
        text.ends_with("the reason") && text.len() < 2000,
        "{} bytes",
        text.len()
    );
}

#[tokio::test]
async fn c2_c3_c4_c5_c6_unusable_results_are_named() {
    for (result, problem) in [
        ("Segmentation fault", "printed no JSON object"),
        ("", "printed nothing"),
        (
            r#"{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.1/24"}}"#,
            "is of version \"0.2.0\"",
        ),
        (
            &RESULT.replace("\"eth0\"", "\"../../x\""),
            "interfaces[0].name",
        ),
        (
            &RESULT.replace("\"eth0\"", "\"sixteen-chars-xx\""),
            "interfaces[0].name",
        ),
        (&RESULT.replace("/24", "/240"), "ips[0].address"),
        (
            r#"{"cniVersion":"1.0.0"}"#,
            "gave interface \"eth0\" no address",
        ),
        (
            &RESULT.replace("\"eth0\"", "\"eth1\""),
            "gave interface \"eth0\" no address",
        ),
    ] {
        let text = Chain(&refused(&format!("cat <<'END'\n{result}\nEND")).await).to_string();
        assert!(text.contains(problem), "{result}: {text}");
    }
}

#[tokio::test]
async fn c4_a_result_of_another_known_version_is_converted() {
    let fakes = Fakes::new();
    let old = RESULT
        .replace("1.0.0", "0.3.1")
        .replace("{\"address\"", "{\"version\":\"4\",\"address\"");
    fakes.well_behaved("one", &old);
    fakes.well_behaved("two", RESULT);
    fakes.conf("1.0.0", &["one", "two"]);
    fakes
        .network()
        .attach(&request(&own_namespace()))
        .await
        .unwrap();
    let given = &fakes.input("two", "ADD")["prevResult"];
    assert_eq!(given["cniVersion"], "1.0.0");
    assert_eq!(given["ips"][0].get("version"), None);
}

#[tokio::test]
async fn c7_error_texts_cannot_drive_a_terminal_or_a_log() {
    let body = r#"printf '{"code":"7","msg":"\\u001b[2Jbad\\nfake log line","details":"\\u0007"}'; exit 1"#;
    let text = Chain(&refused(body).await).to_string();
    assert!(text.ends_with("error 7: bad fake log line"), "{text:?}");
    let text = Chain(&refused("printf '\\033[2Jno \\001 json' >&2; exit 9").await).to_string();
    assert!(text.ends_with("exit status 9, saying: no json"), "{text:?}");
}

#[tokio::test]
async fn c8_a_child_that_keeps_the_output_open_delays_nobody() {
    let fakes = Fakes::new();
    fakes.plugin(
        "daemonises",
        &format!(
            "[ $CNI_COMMAND = DEL ] && exit 0\n\
             setsid sh -c 'echo $$ > \"$0\"; exec sleep 600' \"$dir/pid\" &\n\
             while [ ! -s \"$dir/pid\" ]; do :; done\ncat <<'END'\n{RESULT}\nEND"
        ),
    );
    fakes.conf("1.0.0", &["daemonises"]);
    let attached = fakes.network().attach(&request(&own_namespace())).await;
    let pid = fs::read_to_string(fakes.path("pid")).unwrap();
    let alive = runs(&pid);
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid.trim().parse().unwrap()),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    assert_eq!(attached.unwrap().ips.len(), 1);
    assert!(
        alive,
        "what a plugin that succeeded left running is its own affair"
    );
}

#[tokio::test]
async fn c9_a_plugin_that_ignores_sigterm_is_killed_with_its_children() {
    let fakes = Fakes::new();
    fakes.plugin(
        "stubborn",
        "[ $CNI_COMMAND = DEL ] && exit 0\ntrap '' TERM\necho waiting >&2\n\
         sleep 600 & echo $! > \"$dir/child\"\necho $$ > \"$dir/leader\"\nwait",
    );
    fakes.conf("1.0.0", &["stubborn"]);
    let error = fakes
        .network()
        .attach(&request(&own_namespace()))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Deadline);
    let text = Chain(&error).to_string();
    assert!(text.contains("was killed, saying: waiting"), "{text}");
    for who in ["leader", "child"] {
        let pid = fs::read_to_string(fakes.path(who)).unwrap();
        eventually(who, || !runs(&pid)).await;
    }
}

#[tokio::test]
async fn a_caller_that_gives_up_leaves_no_process_and_can_be_undone() {
    let fakes = Fakes::new();
    fakes.plugin(
        "slow",
        "[ $CNI_COMMAND = DEL ] && exit 0\nsleep 600 & echo $! > \"$dir/child\"\nwait",
    );
    fakes.conf("1.0.0", &["slow"]);
    let network = fakes.network();
    let request = request(&own_namespace());
    let task = tokio::spawn({
        let (network, request) = (network.clone(), request.clone());
        async move { network.attach(&request).await.map(drop) }
    });
    let written = || fs::read_to_string(fakes.path("child")).is_ok_and(|pid| pid.ends_with('\n'));
    eventually("the plugin runs", written).await;
    task.abort();
    let pid = fs::read_to_string(fakes.path("child")).unwrap();
    eventually("its child is gone", || !runs(&pid)).await;
    network
        .detach(&DetachRequest {
            sandbox: request.sandbox,
        })
        .await
        .unwrap();
    assert_eq!(fakes.calls(), ["slow ADD", "slow DEL"]);
}

#[tokio::test]
async fn a_plugin_that_reads_no_input_is_judged_by_its_answer() {
    let fakes = Fakes::new();
    fakes.plugin("deaf", &format!("exec <&-\ncat <<'END'\n{RESULT}\nEND"));
    // Larger than a pipe holds.
    let filler = "x".repeat(300_000);
    let text = format!(
        r#"{{"cniVersion":"1.0.0","name":"n","plugins":[{{"type":"deaf","filler":"{filler}"}}]}}"#
    );
    fs::write(fakes.path("conf/10.conflist"), text).unwrap();
    fakes
        .network()
        .attach(&request(&own_namespace()))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_crash_and_a_binary_that_cannot_run_are_told_apart() {
    let text = Chain(&refused("kill -SEGV $$").await).to_string();
    assert!(text.contains("ended with signal 11"), "{text}");
    let fakes = Fakes::new();
    fakes.plugin("bad", "");
    fakes.conf("1.0.0", &["bad"]);
    let network = fakes.network();
    let replace = std::process::Command::new("sh")
        .args(["-c", "printf '\\177ELFnot' > \"$1\"", "sh"])
        .arg(fakes.path("bin/bad"))
        .status();
    assert!(replace.unwrap().success());
    let error = network
        .attach(&request(&own_namespace()))
        .await
        .unwrap_err();
    let text = Chain(&error).to_string();
    assert!(text.contains("cannot execute"), "{text}");
}
