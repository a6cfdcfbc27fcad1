//! Out of memory: who is killed, what the container's end is called.

use std::time::Duration;

use crisp_harness::{
    cri::v1::{ContainerConfig, LinuxContainerResources},
    process::until,
};

use crate::{Host, repeats};

/// Takes more memory than there is.
const HOG: &str = "dd if=/dev/zero of=/dev/null bs=60M count=1 2>/dev/null";

fn limited(host: &Host, name: &str, script: &str) -> ContainerConfig {
    let mut config = host.pods.container(name, &["sh", "-c", script]);
    let limit = 24 << 20;
    config.linux.as_mut().unwrap().resources = Some(LinuxContainerResources {
        memory_limit_in_bytes: limit,
        memory_swap_limit_in_bytes: limit,
        ..Default::default()
    });
    config
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_container_is_oomkilled_if_memory_killed_in_it() {
    let host = Host::new().await;
    let sandbox = host.pods.sandbox("oom");
    let pod = host.pods.run(&sandbox).await.unwrap();
    let cases = [
        ("init", format!("exec {HOG}"), 137, "OOMKilled"),
        ("child", format!("{HOG}; exit $?"), 137, "OOMKilled"),
        (
            "grandchild",
            format!("sh -c '{HOG}; exit 5'; exit 6"),
            6,
            "OOMKilled",
        ),
        (
            "killed-otherwise",
            "sh -c 'kill -9 $$'; exit $?".to_owned(),
            137,
            "Error",
        ),
        ("within", "exit 0".to_owned(), 0, "Completed"),
    ];
    for round in 0..repeats(2, 20) {
        for (name, script, code, reason) in &cases {
            let config = limited(&host, &format!("{name}{round}"), script);
            let id = host.pods.launch(&pod, &config, &sandbox).await.unwrap();
            let status = host
                .pods
                .exited(&id, Duration::from_secs(30))
                .await
                .unwrap();
            println!("{name}: {} {}", status.exit_code, status.reason);
            assert_eq!(
                (status.exit_code, status.reason.as_str()),
                (*code, *reason),
                "{name}"
            );
            host.pods.remove(&id).await.unwrap();
        }
    }
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_is_killed_for_memory_leaves_its_container_running() {
    let mut host = Host::new().await;
    let sandbox = host.pods.sandbox("oom-exec");
    let pod = host.pods.run(&sandbox).await.unwrap();
    let script = "trap 'exit 3' TERM; while :; do usleep 10000; done";
    let config = limited(&host, "c", script);
    let id = host.pods.launch(&pod, &config, &sandbox).await.unwrap();
    let answer = host
        .pods
        .exec(&id, &["sh", "-c", &format!("exec {HOG}")])
        .await
        .unwrap();
    println!("the command: {}", answer.exit_code);
    assert_eq!(answer.exit_code, 137);
    let status = host.pods.status(&id).await.unwrap();
    assert_eq!(status.reason, "", "it runs on");
    let answer = host.pods.exec(&id, &["echo", "unharmed"]).await.unwrap();
    assert_eq!(answer.stdout, b"unharmed\n");
    // What happened before a restart of the daemon counts as well.
    host.daemon.kill().unwrap();
    host.again().await;
    host.pods.stop(&id, 10).await.unwrap();
    let status = host.pods.status(&id).await.unwrap();
    println!("its container: {} {}", status.exit_code, status.reason);
    assert_eq!((status.exit_code, status.reason.as_str()), (3, "OOMKilled"));
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_killed_for_memory_while_no_daemon_runs() {
    let mut host = Host::new().await;
    let sandbox = host.pods.sandbox("oom-alone");
    let pod = host.pods.run(&sandbox).await.unwrap();
    let script = format!("while [ ! -e /tmp/go ]; do usleep 10000; done; exec {HOG}");
    let id = host
        .pods
        .launch(&pod, &limited(&host, "c", &script), &sandbox)
        .await
        .unwrap();
    let pid = host.pods.pid(&id).await.unwrap();
    host.daemon.kill().unwrap();
    std::fs::write(format!("/proc/{pid}/root/tmp/go"), "").unwrap();
    let gone = || !std::path::Path::new(&format!("/proc/{pid}")).exists();
    assert!(until(Duration::from_secs(30), gone), "it is killed");
    host.again().await;
    let status = host
        .pods
        .exited(&id, Duration::from_secs(10))
        .await
        .unwrap();
    println!("{} {}", status.exit_code, status.reason);
    assert_eq!(
        (status.exit_code, status.reason.as_str()),
        (137, "OOMKilled")
    );
    host.pods.remove_all().await.unwrap();
}
