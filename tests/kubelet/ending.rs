//! How pods end.

use std::{
    fs,
    time::{Duration, Instant},
};

use crisp_harness::{cri::v1::ContainerState, process::until};
use serde_json::{Value, json};

use crate::{
    host::{Failure, Host, LIMIT, Seen, expect},
    manifest::{host_path, pod, shell, with, with_spec},
};

pub fn graceful_pods(host: &Host) -> Vec<Value> {
    let note = |word: &str| json!({ "exec": { "command": ["sh", "-c", format!("echo {word} >> /host/end; sleep 1")] } });
    let container = with(
        shell(
            "c",
            "trap 'echo term >> /host/end; exit 0' TERM; while :; do sleep 0.1; done",
        ),
        json!({
            "lifecycle": { "postStart": note("poststart"), "preStop": note("prestop") },
            "volumeMounts": [{ "name": "host", "mountPath": "/host" }],
        }),
    );
    let spec = json!({ "volumes": [host_path("host", &host.shared("graceful"))], "terminationGracePeriodSeconds": 20 });
    vec![with_spec(pod("graceful", &[container]), spec)]
}

pub fn graceful(host: &mut Host) -> Seen {
    host.ready("graceful")?;
    let took = host.end("graceful")?;
    let order = fs::read_to_string(host.shared("graceful").join("end"))?.replace('\n', " ");
    expect(
        order == "poststart prestop term ",
        format!("order: {order}"),
    )?;
    expect(
        took > Duration::from_secs(1) && took < Duration::from_secs(15),
        format!("it took {took:?}"),
    )?;
    Ok(format!(
        "{order}in {:.1} s of 20 s grace",
        took.as_secs_f64()
    ))
}

pub fn deaf_pods(_: &Host) -> Vec<Value> {
    vec![with_spec(
        pod(
            "deaf",
            &[shell("c", "trap '' TERM; while :; do sleep 0.2; done")],
        ),
        json!({ "terminationGracePeriodSeconds": 3 }),
    )]
}

pub fn deaf(host: &mut Host) -> Seen {
    host.ready("deaf")?;
    let pid = host.pid("deaf", "c")?;
    let took = host.end("deaf")?;
    expect(
        !std::path::Path::new(&format!("/proc/{pid}")).exists(),
        "its process still runs",
    )?;
    expect(
        took > Duration::from_secs(3),
        format!("killed after {took:?} already"),
    )?;
    Ok(format!(
        "killed after {:.1} s, grace 3 s",
        took.as_secs_f64()
    ))
}

/// Of the pod whose order of starting was looked at before.
pub fn sidecar(host: &mut Host) -> Seen {
    host.ready("inits")?;
    let took = host.end("inits")?;
    let order = fs::read_to_string(host.shared("inits").join("end"))?.replace('\n', " ");
    expect(order == "main side ", format!("order: {order}"))?;
    Ok(format!("{order}in {:.1} s", took.as_secs_f64()))
}

/// Everything is withdrawn; kubelet ends and removes it, and so it is gone.
pub fn all(host: &mut Host) -> Seen {
    let began = Instant::now();
    for entry in fs::read_dir(host.kubelet.dir().join("pods"))?.flatten() {
        fs::remove_file(entry.path())?;
    }
    let running = |host: &Host| -> Result<usize, Failure> {
        let all = host.runtime.block_on(host.pods.containers())?;
        Ok(all
            .iter()
            .filter(|one| one.state() == ContainerState::ContainerRunning)
            .count())
    };
    let quiet = until(LIMIT, || running(host).is_ok_and(|count| count == 0));
    expect(quiet, "containers still run")?;
    let stopped = began.elapsed();
    // Dead sandboxes are kubelet's to collect, once a minute.
    let limit = Duration::from_secs(150);
    let gone = until(limit, || {
        host.runtime
            .block_on(host.pods.pods())
            .is_ok_and(|pods| pods.is_empty())
    });
    expect(gone, format!("sandboxes are left after {limit:?}"))?;
    let containers = host.runtime.block_on(host.pods.containers())?.len();
    expect(containers == 0, format!("{containers} containers are left"))?;
    Ok(format!(
        "all ended in {:.1} s, kubelet removed every sandbox and container in {:.0} s",
        stopped.as_secs_f64(),
        began.elapsed().as_secs_f64()
    ))
}
