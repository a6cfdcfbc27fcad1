//! The daemon is killed under containers that print to their logs.

use std::{fs, path::PathBuf, time::Duration};

use crisp_harness::{
    cri::v1::{ContainerState, Mount, PodSandboxState},
    pods::log_lines,
    process::until,
};

use crate::{Host, repeats};

/// Containers that print one numbered line after the other for ever.
const PRINTERS: usize = 20;
/// Exit codes of those that end while no daemon is there.
const CODES: [i32; 3] = [0, 3, 42];

/// Numbers without a gap and without a repetition, from 0: how many there are.
fn counted(log: &PathBuf) -> usize {
    let lines = log_lines(log, "stdout").unwrap();
    // The last one may be half written at this very moment.
    let whole = lines.len().saturating_sub(1);
    for (expected, line) in lines.iter().take(whole).enumerate() {
        assert_eq!(line, &format!("line {expected}"), "{}", log.display());
    }
    whole
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_under_printing_containers_loses_nothing() {
    let mut host = Host::new().await;
    let sandbox = host.pods.sandbox("printers");
    let pod = host.pods.run(&sandbox).await.unwrap();
    let script = "i=0; while :; do echo line $i; i=$((i+1)); usleep 2000; done";
    let mut printers = Vec::new();
    for number in 0..PRINTERS {
        let config = host
            .pods
            .container(&format!("p{number}"), &["sh", "-c", script]);
        printers.push(host.pods.launch(&pod, &config, &sandbox).await.unwrap());
    }
    let logs: Vec<PathBuf> = (0..PRINTERS)
        .map(|number| {
            host.pods
                .log_directory("printers")
                .join(format!("p{number}.log"))
        })
        .collect();
    let mut pids = Vec::new();
    for id in &printers {
        pids.push(host.pods.pid(id).await.unwrap());
    }

    for round in 0..repeats(5, 50) {
        let gate = host.daemon.site().dir().join(format!("gate{round}"));
        fs::create_dir(&gate).unwrap();
        let enders = enders(&host, &pod, &sandbox, round, &gate).await;
        let before: Vec<usize> = logs.iter().map(counted).collect();

        host.daemon.kill().unwrap();
        fs::write(gate.join("open"), "").unwrap();
        for (_, pid, _) in &enders {
            let gone = until(Duration::from_secs(20), || {
                !PathBuf::from(format!("/proc/{pid}")).exists()
            });
            assert!(gone, "round {round}: process {pid} ends without a daemon");
        }
        let printed = until(Duration::from_secs(20), || {
            logs.iter()
                .map(counted)
                .zip(&before)
                .all(|(now, then)| now > *then)
        });
        assert!(printed, "round {round}: the logs grow without a daemon");

        host.again().await;
        for (id, pid) in printers.iter().zip(&pids) {
            let status = host.pods.status(id).await.unwrap();
            assert_eq!(
                status.state(),
                ContainerState::ContainerRunning,
                "round {round}: {id}: {}",
                status.reason
            );
            assert_eq!(
                host.pods.pid(id).await.unwrap(),
                *pid,
                "round {round}: it is the same process"
            );
        }
        assert_eq!(
            host.pods.pod_state(&pod).await.unwrap(),
            PodSandboxState::SandboxReady,
            "round {round}"
        );
        for (id, _, code) in &enders {
            let status = host.pods.exited(id, Duration::from_secs(10)).await.unwrap();
            assert_eq!(status.exit_code, *code, "round {round}: {}", status.reason);
            assert!(
                status.finished_at >= status.started_at && status.started_at > 0,
                "round {round}: {status:?}"
            );
            host.pods.remove(id).await.unwrap();
        }
        let said = host
            .pods
            .exec(&printers[round % PRINTERS], &["echo", "served"])
            .await
            .unwrap();
        assert_eq!(said.stdout, b"served\n", "round {round}");
    }

    for id in &printers {
        host.pods.stop(id, 0).await.unwrap();
        assert_eq!(host.pods.status(id).await.unwrap().exit_code, 137);
    }
    for log in &logs {
        assert!(counted(log) > 0);
    }
    host.pods.remove_all().await.unwrap();
}

/// Containers that end when the gate opens: id, pid, exit code to come.
async fn enders(
    host: &Host,
    pod: &str,
    sandbox: &crisp_harness::cri::v1::PodSandboxConfig,
    round: usize,
    gate: &std::path::Path,
) -> Vec<(String, u32, i32)> {
    let mut enders = Vec::new();
    for code in CODES {
        let script = format!("while ! [ -e /gate/open ]; do usleep 5000; done; exit {code}");
        let mut config = host
            .pods
            .container(&format!("e{round}-{code}"), &["sh", "-c", &script]);
        config.mounts.push(Mount {
            container_path: "/gate".to_owned(),
            host_path: gate.to_string_lossy().into_owned(),
            readonly: true,
            ..Mount::default()
        });
        let id = host.pods.launch(pod, &config, sandbox).await.unwrap();
        let pid = host.pods.pid(&id).await.unwrap();
        enders.push((id, pid, code));
    }
    enders
}
