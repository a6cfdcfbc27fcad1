//! version, info, runp, pods, inspectp, stopp, rmp, create, start, ps, inspect, exec, logs, stop, rm.

use std::time::Duration;

use crisp_harness::{crictl::Crictl, process::until};
use serde_json::json;

const OWN: u8 = 1;

fn own() -> serde_json::Value {
    json!({ "pid": OWN })
}

#[tokio::test]
async fn version_names_the_runtime_and_v1() {
    let crictl = Crictl::new().await.unwrap();
    let said = crictl.run(&["version"]);
    for word in [
        "Version:",
        "RuntimeName:",
        "RuntimeVersion:",
        "RuntimeApiVersion:  v1",
    ] {
        assert!(said.contains(word), "{said}");
    }
}

#[tokio::test]
async fn info_is_json_with_both_conditions_true() {
    let crictl = Crictl::new().await.unwrap();
    let info = crictl.json(&["info"]);
    let conditions = info["status"]["conditions"].as_array().unwrap();
    for name in ["RuntimeReady", "NetworkReady"] {
        let condition = conditions
            .iter()
            .find(|condition| condition["type"] == name)
            .unwrap();
        assert_eq!(condition["status"], true, "{condition}");
    }
    let handlers = info["runtimeHandlers"].as_array().unwrap();
    assert!(
        handlers
            .iter()
            .any(|handler| handler["name"].as_str().unwrap_or("").is_empty()),
        "{info}"
    );
}

#[tokio::test]
async fn runp_prints_the_id_of_a_ready_pod() {
    let crictl = Crictl::new().await.unwrap();
    let id = crictl.pod("runs", OWN);
    assert_eq!(
        crictl.json(&["inspectp", &id])["status"]["state"],
        "SANDBOX_READY"
    );
    let bad = json!({ "metadata": { "name": "", "namespace": "default", "uid": "" } });
    let _refused = crictl.refused(&["runp", &crictl.file("bad.json", &bad)]);
    assert_eq!(
        crictl.run(&["pods", "-q"]),
        id,
        "the refused one left nothing"
    );
}

#[tokio::test]
async fn pods_lists_and_filters() {
    let crictl = Crictl::new().await.unwrap();
    let one = crictl.pod("one", OWN);
    let two = crictl.pod("two", OWN);
    let all = crictl.run(&["pods"]);
    assert!(
        all.contains("one") && all.contains("two") && all.contains("Ready"),
        "{all}"
    );
    assert_eq!(
        crictl.run(&["pods", "-q", "--no-trunc", "--name", "one"]),
        one
    );
    assert_eq!(
        crictl.run(&["pods", "-q", "--no-trunc", "--label", "app=two"]),
        two
    );
    assert_eq!(
        crictl.run(&["pods", "-q", "--no-trunc", "--id", &two[..13]]),
        two,
        "an id may be shortened"
    );
    assert_eq!(crictl.run(&["pods", "-q", "--state", "notready"]), "");
}

#[tokio::test]
async fn inspectp_shows_address_and_pid() {
    let crictl = Crictl::new().await.unwrap();
    let id = crictl.pod("shown", OWN);
    let pod = crictl.json(&["inspectp", &id]);
    assert_eq!(pod["status"]["metadata"]["name"], "shown");
    assert_eq!(pod["status"]["labels"]["app"], "shown");
    assert!(
        pod["status"]["network"]["ip"]
            .as_str()
            .unwrap()
            .starts_with("10."),
        "{pod}"
    );
    assert!(pod["info"]["pid"].as_u64().unwrap() > 1, "{pod}");
}

#[tokio::test]
async fn stopp_makes_it_notready_and_twice_is_fine() {
    let crictl = Crictl::new().await.unwrap();
    let id = crictl.pod("stops", OWN);
    let container = crictl.launch(&id, "stops", "c", &["sleep", "1000"], own());
    for _ in 0..2 {
        let _said = crictl.run(&["stopp", &id]);
    }
    assert_eq!(
        crictl.json(&["inspectp", &id])["status"]["state"],
        "SANDBOX_NOTREADY"
    );
    assert_eq!(
        crictl.json(&["inspect", &container])["status"]["state"],
        "CONTAINER_EXITED"
    );
    assert_eq!(
        std::fs::read_dir(crictl.daemon.site().leases()).map_or(0, |dir| {
            dir.flatten()
                .filter(|entry| entry.file_name().to_string_lossy().starts_with("10."))
                .count()
        }),
        0,
        "its address is free again"
    );
}

#[tokio::test]
async fn rmp_removes_only_stopped_pods_unless_forced() {
    let crictl = Crictl::new().await.unwrap();
    let id = crictl.pod("goes", OWN);
    let _refused = crictl.refused(&["rmp", &id]);
    let said = crictl.run(&["rmp", "-f", &id]);
    assert!(said.contains(&id), "{said}");
    assert_eq!(crictl.run(&["pods", "-q"]), "");
    let _unknown = crictl.refused(&["inspectp", &id]);
}

#[tokio::test]
async fn create_makes_a_container_that_does_not_run_yet() {
    let crictl = Crictl::new().await.unwrap();
    let pod = crictl.pod("created", OWN);
    let id = crictl.create(
        &pod,
        "created",
        &crictl.container("c", &["sleep", "1000"], own()),
    );
    assert_eq!(
        crictl.json(&["inspect", &id])["status"]["state"],
        "CONTAINER_CREATED"
    );
    let mut unknown = crictl.container("d", &["true"], own());
    unknown["image"]["image"] = json!("registry.k8s.io/no/such-image:1");
    let sandbox = crictl.daemon.site().dir().join("created.pod.json");
    let refused = crictl.refused(&[
        "create",
        "--no-pull",
        &pod,
        &crictl.file("d.json", &unknown),
        &sandbox.to_string_lossy(),
    ]);
    assert!(refused.contains("such-image"), "{refused}");
    assert_eq!(crictl.run(&["ps", "-aq", "--no-trunc"]), id);
}

#[tokio::test]
async fn start_runs_it_and_says_why_it_cannot() {
    let crictl = Crictl::new().await.unwrap();
    let pod = crictl.pod("started", OWN);
    let id = crictl.launch(&pod, "started", "c", &["sleep", "1000"], own());
    assert_eq!(
        crictl.json(&["inspect", &id])["status"]["state"],
        "CONTAINER_RUNNING"
    );
    let _twice = crictl.refused(&["start", &id]);
    // A program that is not there is refused at create or at start, by name.
    let request = crictl.file(
        "no.json",
        &crictl.container("no", &["no-such-program"], own()),
    );
    let sandbox = crictl.daemon.site().dir().join("started.pod.json");
    let created = crictl.output(&["create", &pod, &request, &sandbox.to_string_lossy()]);
    let refused = if created.status.success() {
        crictl.refused(&["start", String::from_utf8_lossy(&created.stdout).trim()])
    } else {
        String::from_utf8_lossy(&created.stderr).into_owned()
    };
    assert!(refused.contains("no-such-program"), "{refused}");
}

#[tokio::test]
async fn ps_lists_running_ones_and_all_with_a() {
    let crictl = Crictl::new().await.unwrap();
    let pod = crictl.pod("listed", OWN);
    let runs = crictl.launch(&pod, "listed", "runs", &["sleep", "1000"], own());
    let created = crictl.create(&pod, "listed", &crictl.container("waits", &["true"], own()));
    assert_eq!(crictl.run(&["ps", "-q", "--no-trunc"]), runs);
    let all = crictl.run(&["ps", "-aq", "--no-trunc"]);
    assert!(all.contains(&runs) && all.contains(&created), "{all}");
    assert_eq!(
        crictl.run(&["ps", "-aq", "--no-trunc", "--name", "waits"]),
        created
    );
    assert_eq!(crictl.run(&["ps", "-q", "--no-trunc", "--pod", &pod]), runs);
    assert!(crictl.run(&["ps"]).contains("Running"));
}

#[tokio::test]
async fn inspect_shows_pid_spec_and_image() {
    let crictl = Crictl::new().await.unwrap();
    let pod = crictl.pod("inspected", OWN);
    let id = crictl.launch(&pod, "inspected", "c", &["sleep", "1000"], own());
    let container = crictl.json(&["inspect", &id]);
    let pid = container["info"]["pid"].as_u64().unwrap();
    let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    assert_eq!(command, "sleep\u{0}1000\u{0}");
    assert_eq!(
        container["info"]["runtimeSpec"]["process"]["args"],
        json!(["sleep", "1000"])
    );
    assert_eq!(
        container["status"]["logPath"],
        crictl.logs("inspected").join("c.log").to_str().unwrap()
    );
    assert!(
        container["status"]["imageRef"]
            .as_str()
            .unwrap()
            .contains("sha256:"),
        "{container}"
    );
    assert_eq!(
        crictl.json(&["inspect", &id[..13]])["status"]["id"],
        id.as_str(),
        "an id may be shortened"
    );
}

#[tokio::test]
async fn exec_sync_prints_both_streams_and_the_exit_code() {
    let crictl = Crictl::new().await.unwrap();
    let pod = crictl.pod("execs", OWN);
    let id = crictl.launch(&pod, "execs", "c", &["sleep", "1000"], own());
    let output = crictl.output(&["exec", "-s", &id, "sh", "-c", "echo out; echo err >&2"]);
    assert!(output.status.success());
    // crictl prints both to its stdout, the container's stdout first.
    let words: Vec<String> = String::from_utf8_lossy(&output.stdout)
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    assert_eq!(words, ["out", "err"]);
    let refused = crictl.refused(&["exec", "-s", &id, "sh", "-c", "exit 7"]);
    assert!(
        refused.contains("exit code 7") || refused.contains("exited with 7"),
        "{refused}"
    );
    let _missing = crictl.refused(&["exec", "-s", &id, "no-such-program"]);
    let slow = crictl.refused(&["exec", "-s", "--timeout", "1", &id, "sleep", "100"]);
    assert!(
        slow.to_lowercase().contains("deadline") || slow.contains("timed out"),
        "{slow}"
    );
    assert_eq!(
        crictl.run(&[
            "exec",
            "-s",
            &id,
            "sh",
            "-c",
            "pgrep -f 'sleep 100$' || echo none"
        ]),
        "none"
    );
}

#[tokio::test]
async fn logs_prints_what_it_wrote() {
    let crictl = Crictl::new().await.unwrap();
    let pod = crictl.pod("logs", OWN);
    let script = "echo one; echo two >&2; printf 'no newline'";
    let id = crictl.launch(&pod, "logs", "c", &["sh", "-c", script], own());
    assert!(until(Duration::from_secs(10), || crictl
        .json(&["inspect", &id])["status"]["state"]
        == "CONTAINER_EXITED"));
    let output = crictl.output(&["logs", &id]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "one\nno newline");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "two\n");
    assert_eq!(crictl.run(&["logs", "--tail", "1", &id]), "no newline");
}

#[tokio::test]
async fn stop_ends_it_with_its_exit_code() {
    let crictl = Crictl::new().await.unwrap();
    let pod = crictl.pod("stopped", OWN);
    let polite = crictl.launch(
        &pod,
        "stopped",
        "polite",
        &[
            "sh",
            "-c",
            "trap 'exit 5' TERM; while :; do sleep 0.1; done",
        ],
        own(),
    );
    let deaf = crictl.launch(
        &pod,
        "stopped",
        "deaf",
        &["sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"],
        own(),
    );
    // The trap is set when the shell has got so far as to run its first sleep.
    assert!(until(Duration::from_secs(10), || [&polite, &deaf]
        .iter()
        .all(|id| {
            crictl
                .run(&["exec", "-s", id, "sh", "-c", "pgrep sleep || true"])
                .lines()
                .count()
                > 0
        })));
    let _said = crictl.run(&["stop", "-t", "10", &polite]);
    let _said = crictl.run(&["stop", "-t", "1", &deaf]);
    for (id, code) in [(&polite, 5), (&deaf, 137)] {
        let status = &crictl.json(&["inspect", id])["status"];
        assert_eq!(
            (
                status["state"].as_str().unwrap(),
                status["exitCode"].as_i64()
            ),
            ("CONTAINER_EXITED", Some(code)),
            "{status}"
        );
    }
    let _again = crictl.run(&["stop", &polite]);
}

#[tokio::test]
async fn rm_removes_stopped_ones_and_running_ones_with_force() {
    let crictl = Crictl::new().await.unwrap();
    let pod = crictl.pod("removed", OWN);
    let id = crictl.launch(&pod, "removed", "c", &["sleep", "1000"], own());
    let pid = crictl.json(&["inspect", &id])["info"]["pid"]
        .as_u64()
        .unwrap();
    let _refused = crictl.refused(&["rm", &id]);
    let said = crictl.run(&["rm", "-f", &id]);
    assert!(said.lines().all(|line| line == id), "{said}");
    assert_eq!(crictl.run(&["ps", "-aq"]), "");
    assert!(
        !std::path::Path::new(&format!("/proc/{pid}")).exists(),
        "its process is gone when it is removed"
    );
    assert!(
        !crictl.bundle(&id).exists(),
        "its bundle is gone when it is removed"
    );
}
