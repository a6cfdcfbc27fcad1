//! The four PID modes: who is PID 1, who sees whom.

use std::{fs, time::Duration};

use crisp_harness::{crictl::Crictl, process::until};
use serde_json::json;

fn namespace(crictl: &Crictl, container: &str) -> String {
    crictl.run(&["exec", "-s", container, "readlink", "/proc/self/ns/pid"])
}

#[tokio::test]
async fn pod_pause_is_pid_1_and_reaps() {
    let crictl = Crictl::new().await.unwrap();
    let pod = crictl.pod("shared", 0);
    let one = crictl.launch(
        &pod,
        "shared",
        "one",
        &["sleep", "1001"],
        json!({ "pid": 0 }),
    );
    let two = crictl.launch(
        &pod,
        "shared",
        "two",
        &["sleep", "1002"],
        json!({ "pid": 0 }),
    );
    let first = crictl.run(&["exec", "-s", &one, "cat", "/proc/1/comm"]);
    assert!(first.contains("pause"), "PID 1 is {first}");
    assert_eq!(namespace(&crictl, &one), namespace(&crictl, &two));
    assert_ne!(
        crictl.run(&["exec", "-s", &one, "pgrep", "-f", "^sleep 1002"]),
        "",
        "one container sees the other"
    );
    // Orphans: their parent ends first, so PID 1 inherits them, and must reap them.
    for _ in 0..5 {
        let _done = crictl.run(&["exec", "-s", &one, "sh", "-c", "(sleep 0.05 &) ; exit 0"]);
    }
    let zombies = || {
        crictl.run(&[
            "exec",
            "-s",
            &one,
            "sh",
            "-c",
            "grep -l 'State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l",
        ])
    };
    let sleepers = || {
        crictl.run(&[
            "exec",
            "-s",
            &one,
            "sh",
            "-c",
            "pgrep -f '^sleep 0.05' | wc -l",
        ])
    };
    assert!(
        until(Duration::from_secs(10), || sleepers() == "0"),
        "the orphans ended"
    );
    assert!(
        until(Duration::from_secs(5), || zombies() == "0"),
        "zombies: {}",
        zombies()
    );
}

#[tokio::test]
async fn container_is_its_own_pid_1() {
    let crictl = Crictl::new().await.unwrap();
    let pod = crictl.pod("own", 1);
    let one = crictl.launch(&pod, "own", "one", &["sleep", "1001"], json!({ "pid": 1 }));
    let two = crictl.launch(&pod, "own", "two", &["sleep", "1002"], json!({ "pid": 1 }));
    assert_eq!(
        crictl.run(&[
            "exec",
            "-s",
            &one,
            "sh",
            "-c",
            "tr '\\0' ' ' </proc/1/cmdline"
        ]),
        "sleep 1001"
    );
    assert_ne!(namespace(&crictl, &one), namespace(&crictl, &two));
    assert_eq!(
        crictl.run(&[
            "exec",
            "-s",
            &one,
            "sh",
            "-c",
            "pgrep -f '^sleep 1002' || echo none"
        ]),
        "none"
    );
}

#[tokio::test]
async fn node_sees_the_host() {
    let crictl = Crictl::new().await.unwrap();
    let pod = crictl.pod("node", 2);
    let id = crictl.launch(&pod, "node", "one", &["sleep", "1001"], json!({ "pid": 2 }));
    let host = fs::read_link("/proc/self/ns/pid").unwrap();
    assert_eq!(namespace(&crictl, &id), host.to_string_lossy());
    let pid = crictl.json(&["inspect", &id])["info"]["pid"].to_string();
    assert_eq!(
        crictl.run(&[
            "exec",
            "-s",
            &id,
            "sh",
            "-c",
            &format!("tr '\\0' ' ' </proc/{pid}/cmdline")
        ]),
        "sleep 1001"
    );
    let _said = crictl.run(&["stop", "-t", "0", &id]);
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
}

#[tokio::test]
async fn target_joins_the_other_container() {
    let crictl = Crictl::new().await.unwrap();
    let pod = crictl.pod("target", 1);
    let one = crictl.launch(
        &pod,
        "target",
        "one",
        &["sleep", "1001"],
        json!({ "pid": 1 }),
    );
    let debug = crictl.launch(
        &pod,
        "target",
        "debug",
        &["sleep", "1002"],
        json!({ "pid": 3, "target_id": one }),
    );
    assert_eq!(namespace(&crictl, &one), namespace(&crictl, &debug));
    assert_eq!(
        crictl.run(&[
            "exec",
            "-s",
            &debug,
            "sh",
            "-c",
            "tr '\\0' ' ' </proc/1/cmdline"
        ]),
        "sleep 1001"
    );
    // The debugger goes, its target stays.
    let _said = crictl.run(&["rm", "-f", &debug]);
    assert_eq!(
        crictl.json(&["inspect", &one])["status"]["state"],
        "CONTAINER_RUNNING"
    );
}
