//! Probes.

use std::{fs, time::Duration};

use serde_json::{Value, json};

use crate::{
    host::{Host, Seen, expect, is_ready, restarts, status},
    manifest::{host_path, pod, shell, web, with, with_spec},
};

pub fn ready_pods(host: &Host) -> Vec<Value> {
    let every = |probe: Value| with(probe, json!({ "periodSeconds": 1 }));
    let server = with(
        web("web"),
        json!({
            "readinessProbe": every(json!({ "httpGet": { "port": 80, "path": "/" } })),
            "livenessProbe": every(json!({ "exec": { "command": ["true"] } })),
            "startupProbe": every(json!({ "exec": { "command": ["test", "-e", "/var/run/nginx.pid"] } })),
        }),
    );
    let file = with(
        shell("file", crate::manifest::STAY),
        json!({
            "readinessProbe": every(json!({ "exec": { "command": ["cat", "/host/ready"] } })),
            "volumeMounts": [{ "name": "host", "mountPath": "/host" }],
        }),
    );
    let volumes = json!({ "volumes": [host_path("host", &host.shared("probes"))] });
    vec![with_spec(pod("probes", &[server, file]), volumes)]
}

/// Ready follows the probes both ways.
pub fn ready(host: &mut Host) -> Seen {
    let started = host.wait("probes", "started", |pod| {
        status(pod, "web")["ready"] == true
    })?;
    expect(
        !is_ready(&started),
        "the pod is Ready although a probe of it fails",
    )?;
    fs::write(host.shared("probes").join("ready"), "")?;
    let pod = host.ready("probes")?;
    fs::remove_file(host.shared("probes").join("ready"))?;
    host.wait("probes", "not Ready again", |pod| {
        !pod.is_null() && !is_ready(pod)
    })?;
    let count = restarts(&pod, "web") + restarts(&pod, "file");
    expect(count == 0, format!("{count} restarts"))?;
    let events = host.kubelet.get("/metrics/probes")?;
    let passed = |kind: &str| {
        let of = |line: &&str| {
            line.starts_with("prober_probe_total")
                && line.contains("pod=\"probes-")
                && line.contains(kind)
                && line.contains("result=\"successful\"")
        };
        events
            .lines()
            .filter(of)
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum::<f64>()
    };
    Ok(format!(
        "Ready when all probes passed and NotReady again when one failed, no restart; passed: {} readiness, {} liveness, {} startup",
        passed("Readiness"),
        passed("Liveness"),
        passed("Startup")
    ))
}

pub fn liveness_pods(_: &Host) -> Vec<Value> {
    let probe = |command: &[&str]| {
        json!({ "livenessProbe": {
            "exec": { "command": command }, "periodSeconds": 1, "failureThreshold": 1, "timeoutSeconds": 1,
            "terminationGracePeriodSeconds": 1,
        } })
    };
    vec![
        pod(
            "dying",
            &[with(
                shell("c", "touch /tmp/live; sleep 4; rm /tmp/live; sleep 1000"),
                probe(&["cat", "/tmp/live"]),
            )],
        ),
        pod(
            "hanging",
            &[with(shell("c", "sleep 1000"), probe(&["sleep", "1000"]))],
        ),
    ]
}

/// A probe that fails, and one that does not end in time.
pub fn liveness(host: &mut Host) -> Seen {
    let mut seen = Vec::new();
    for name in ["dying", "hanging"] {
        let pod = host.wait(name, "restarted", |pod| {
            restarts(pod, "c") > 0 && status(pod, "c")["lastState"]["terminated"].is_object()
        })?;
        let last = &status(&pod, "c")["lastState"]["terminated"];
        expect(last["exitCode"] == 137, format!("{name}: {last}"))?;
        seen.push(format!(
            "{name}: exit code {} ({})",
            last["exitCode"], last["reason"]
        ));
        host.kubelet.withdraw(name)?;
    }
    // A probe's process that ran into its time limit is gone.
    let gone = crisp_harness::process::until(Duration::from_secs(20), || {
        !crisp_harness::site::pids().into_iter().any(|pid| {
            fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == b"sleep\x001000\x00")
                && fs::read_to_string(format!("/proc/{pid}/cgroup"))
                    .is_ok_and(|group| group.contains(host.daemon.site().name()))
        })
    });
    expect(gone, "a probe that was given up still runs")?;
    Ok(seen.join(", "))
}
