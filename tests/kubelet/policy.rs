//! Restart policies, init containers, sidecars.

use serde_json::{Value, json};

use crate::{
    host::{Host, Seen, expect, restarts, status},
    manifest::{STAY, host_path, pod, shell, with, with_spec},
};

pub fn init_pods(host: &Host) -> Vec<Value> {
    let mounts = json!({ "volumeMounts": [
        { "name": "work", "mountPath": "/work" }, { "name": "host", "mountPath": "/host" },
    ] });
    let step = |name: &str, script: &str| with(shell(name, script), mounts.clone());
    let end = |name: &str| {
        format!("trap 'echo {name} >> /host/end; exit 0' TERM; while :; do sleep 0.1; done")
    };
    let sidecar = with(
        step(
            "side",
            &format!(
                "echo side >> /work/order; touch /work/side; {}",
                end("side")
            ),
        ),
        json!({
            "restartPolicy": "Always",
            "startupProbe": { "exec": { "command": ["cat", "/work/side"] }, "periodSeconds": 1 },
        }),
    );
    let main = step(
        "main",
        &format!("echo main >> /work/order; {}", end("main")),
    );
    let spec = json!({
        "initContainers": [
            step("first", "echo first >> /work/order"), sidecar, step("second", "echo second >> /work/order"),
        ],
        "volumes": [{ "name": "work", "emptyDir": {} }, host_path("host", &host.shared("inits"))],
        "terminationGracePeriodSeconds": 20,
    });
    vec![with_spec(pod("inits", &[main]), spec)]
}

/// Each waits for the one before it; a sidecar for its startup probe only.
pub fn init(host: &mut Host) -> Seen {
    let pod = host.ready("inits")?;
    let order = host
        .exec("inits", "main", "cat /work/order")?
        .replace('\n', " ");
    expect(order == "first side second main", format!("order: {order}"))?;
    for name in ["first", "second"] {
        let state = &status(&pod, name)["state"]["terminated"];
        expect(state["reason"] == "Completed", format!("{name}: {state}"))?;
    }
    let side = status(&pod, "side");
    expect(
        side["state"]["running"].is_object() && side["started"] == true,
        format!("sidecar: {side}"),
    )?;
    Ok(format!(
        "order {order}; first and second Completed, the sidecar still runs beside main"
    ))
}

pub fn on_failure_pods(_: &Host) -> Vec<Value> {
    let script =
        "n=$(cat /work/n 2>/dev/null || echo 0); n=$((n+1)); echo $n > /work/n; [ $n -ge 3 ]";
    let container = with(
        shell("c", script),
        json!({ "volumeMounts": [{ "name": "work", "mountPath": "/work" }] }),
    );
    let spec =
        json!({ "restartPolicy": "OnFailure", "volumes": [{ "name": "work", "emptyDir": {} }] });
    vec![with_spec(pod("onfail", &[container]), spec)]
}

/// Two failures, then success; the volume outlives the containers.
pub fn on_failure(host: &mut Host) -> Seen {
    let waiting = std::cell::Cell::new(false);
    let pod = host.wait("onfail", "Succeeded", |pod| {
        waiting.set(
            waiting.get() || status(pod, "c")["state"]["waiting"]["reason"] == "CrashLoopBackOff",
        );
        pod["status"]["phase"] == "Succeeded"
    })?;
    let count = restarts(&pod, "c");
    expect(count == 2, format!("{count} restarts"))?;
    let back_off = if waiting.get() {
        "CrashLoopBackOff seen between"
    } else {
        "back-off was over before the first look"
    };
    Ok(format!(
        "failed twice, {count} restarts, then phase Succeeded; {back_off}"
    ))
}

pub fn never_pods(_: &Host) -> Vec<Value> {
    vec![
        with_spec(
            pod("never", &[shell("c", "exit 3")]),
            json!({ "restartPolicy": "Never" }),
        ),
        pod(
            "always",
            &[shell("c", "sleep 1; exit 0"), shell("stays", STAY)],
        ),
    ]
}

/// One that failed stays so; one that succeeded is run again all the same.
pub fn never(host: &mut Host) -> Seen {
    let pod = host.wait("never", "Failed", |pod| pod["status"]["phase"] == "Failed")?;
    let end = status(&pod, "c")["state"]["terminated"].clone();
    expect(
        end["exitCode"] == 3 && end["reason"] == "Error",
        format!("never: {end}"),
    )?;
    expect(restarts(&pod, "c") == 0, "it was restarted")?;
    let pod = host.wait("always", "restarted", |pod| restarts(pod, "c") >= 2)?;
    expect(
        restarts(&pod, "stays") == 0,
        "the container beside it was restarted too",
    )?;
    let count = restarts(&pod, "c");
    host.kubelet.withdraw("always")?;
    Ok(format!(
        "Never: phase Failed, exit code 3, no restart; Always: {count} restarts after exit code 0, its neighbour untouched"
    ))
}
