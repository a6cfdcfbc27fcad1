//! Limits, and what happens beyond them.

use std::{fs, path::Path};

use serde_json::{Value, json};

use crate::{
    host::{Host, Seen, expect, status},
    manifest::{STAY, pod, shell, with, with_spec},
};

pub fn limit_pods(_: &Host) -> Vec<Value> {
    let container = with(
        shell("c", STAY),
        json!({ "resources": {
            "requests": { "cpu": "50m", "memory": "32Mi" }, "limits": { "cpu": "100m", "memory": "64Mi" },
        } }),
    );
    vec![pod("limits", &[container])]
}

/// The first of these files that is there, without white space around it.
fn first(dir: &Path, files: &[&str]) -> String {
    let read = |file: &&str| fs::read_to_string(dir.join(file)).ok();
    files
        .iter()
        .find_map(read)
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// What the pod asks for is what the kernel enforces.
pub fn limits(host: &mut Host) -> Seen {
    host.ready("limits")?;
    let pid = host.pid("limits", "c")?;
    let (memory, cpu, pids) = (
        host.cgroup(pid, "memory")?,
        host.cgroup(pid, "cpu")?,
        host.cgroup(pid, "pids")?,
    );
    let limit = first(&memory, &["memory.max", "memory.limit_in_bytes"]);
    expect(limit == "67108864", format!("memory limit {limit}"))?;
    let quota = match first(&cpu, &["cpu.max"]) {
        text if text.is_empty() => format!(
            "{} {}",
            first(&cpu, &["cpu.cfs_quota_us"]),
            first(&cpu, &["cpu.cfs_period_us"])
        ),
        text => text,
    };
    expect(quota == "10000 100000", format!("cpu quota {quota}"))?;
    let weight = first(&cpu, &["cpu.weight", "cpu.shares"]);
    expect(
        weight == "51" || cpu.join("cpu.weight").exists(),
        format!("cpu shares {weight}"),
    )?;
    let (pod_memory, pod_pids) = (memory.parent(), pids.parent());
    let pod_limit = pod_memory
        .map(|dir| first(dir, &["memory.max", "memory.limit_in_bytes"]))
        .unwrap_or_default();
    let pod_pids = pod_pids
        .map(|dir| first(dir, &["pids.max"]))
        .unwrap_or_default();
    expect(
        pod_limit == "67108864" && pod_pids == "100",
        format!("the pod's group: memory {pod_limit}, pids {pod_pids}"),
    )?;
    let burstable = memory.to_string_lossy().contains(&format!(
        "/{}/kubepods/burstable/pod",
        host.daemon.site().name()
    ));
    expect(burstable, format!("its group is {}", memory.display()))?;
    let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?;
    Ok(format!(
        "memory {limit}, cpu quota {quota}, shares {weight}; the pod's group: memory {pod_limit}, {pod_pids} pids; below kubepods/burstable; oom_score_adj {}",
        score.trim()
    ))
}

pub fn hog_pods(_: &Host) -> Vec<Value> {
    let limit = json!({ "resources": { "limits": { "memory": "20Mi" } } });
    let never = json!({ "restartPolicy": "Never" });
    vec![
        with_spec(
            pod(
                "hog",
                &[with(shell("c", "exec tail /dev/zero"), limit.clone())],
            ),
            never.clone(),
        ),
        with_spec(
            pod(
                "hogchild",
                &[with(shell("c", "tail /dev/zero; exit 9"), limit)],
            ),
            never,
        ),
    ]
}

/// Of a hog that is init, and of one that is init's child.
pub fn hog(host: &mut Host) -> Seen {
    let ended = |pod: &Value| status(pod, "c")["state"]["terminated"].is_object();
    let pod = host.wait("hog", "ended", ended)?;
    let end = status(&pod, "c")["state"]["terminated"].clone();
    expect(
        end["reason"] == "OOMKilled" && end["exitCode"] == 137,
        format!("hog: {end}"),
    )?;
    let pod = host.wait("hogchild", "ended", ended)?;
    let child = status(&pod, "c")["state"]["terminated"].clone();
    Ok(format!(
        "reason {}, exit code {}; where a child was the hog: {}, {}",
        end["reason"], end["exitCode"], child["reason"], child["exitCode"]
    ))
}
