//! Statistics as kubelet passes them on, beside what the kernel says.

use std::{collections::BTreeSet, fs};

use serde_json::{Value, json};

use crate::{
    host::{Failure, Host, Seen, expect, fail, settings},
    manifest::{STAY, pod, shell},
};

/// It holds 8 MiB of memory, has written 4 MiB, and uses some processor time.
pub fn pods(_: &Host) -> Vec<Value> {
    let files =
        "dd if=/dev/zero of=/dev/shm/held bs=1M count=8; dd if=/dev/zero of=/written bs=1M count=4";
    let busy = "i=0; while [ $i -lt 2000000 ]; do i=$((i+1)); done";
    let script = format!("{files}; {busy}; {STAY}");
    vec![pod("measured", &[shell("c", &script)])]
}

/// What the kernel counts for the container.
struct Truth {
    memory: u64,
    cpu_nanos: u64,
    received: u64,
}

fn truth(host: &Host) -> Result<Truth, Failure> {
    let pid = host.pid("measured", "c")?;
    let number = |dir: std::path::PathBuf, files: [&str; 2]| {
        let text = files
            .iter()
            .find_map(|file| fs::read_to_string(dir.join(file)).ok())
            .unwrap_or_default();
        text.lines()
            .next()
            .and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
            .unwrap_or(0)
    };
    let v2 = !std::path::Path::new("/sys/fs/cgroup/cpuacct").exists();
    let cpu = number(host.cgroup(pid, "cpuacct")?, ["cpuacct.usage", "cpu.stat"]);
    let net = fs::read_to_string(format!("/proc/{pid}/net/dev"))?;
    let eth0 = net
        .lines()
        .find_map(|line| line.trim().strip_prefix("eth0:"))
        .unwrap_or_default();
    Ok(Truth {
        memory: number(
            host.cgroup(pid, "memory")?,
            ["memory.usage_in_bytes", "memory.current"],
        ),
        cpu_nanos: if v2 { cpu * 1000 } else { cpu },
        received: eth0
            .split_whitespace()
            .next()
            .and_then(|word| word.parse().ok())
            .unwrap_or(0),
    })
}

/// Whether two counts of bytes are those of the same moment, nearly.
fn near(value: f64, truth: u64) -> bool {
    #[expect(clippy::cast_precision_loss, reason = "bytes of a small container")]
    let truth = truth as f64;
    (value - truth).abs() <= (truth / 4.0).max(1e6)
}

fn pod_of(host: &Host) -> Result<Value, Failure> {
    let summary: Value = serde_json::from_str(&host.kubelet.get("/stats/summary")?)?;
    let name = host.kubelet.pod_name("measured");
    let pods = summary["pods"].as_array().cloned().unwrap_or_default();
    Ok(pods
        .into_iter()
        .find(|pod| pod["podRef"]["name"] == name.as_str())
        .unwrap_or_default())
}

/// Numbers of the container and of the pod.
pub fn summary(host: &mut Host) -> Seen {
    host.ready("measured")?;
    // Rates need two reads.
    let complete = |pod: &Value| {
        pod["containers"][0]["cpu"]["usageNanoCores"].is_number()
            && pod["containers"][0]["rootfs"]["usedBytes"].as_u64() >= Some(4 << 20)
    };
    let deadline = std::time::Instant::now() + crate::host::LIMIT;
    while !complete(&pod_of(host)?) && std::time::Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
    let before = truth(host)?;
    let pod = pod_of(host)?;
    let after = truth(host)?;
    let container = &pod["containers"][0];
    let (memory, cpu) = (&container["memory"], &container["cpu"]);
    let usage = memory["usageBytes"].as_f64().unwrap_or(-1.0);
    expect(
        near(usage, after.memory) && usage > 8e6,
        format!("memory {memory}, the kernel's {}", after.memory),
    )?;
    let nanos = cpu["usageCoreNanoSeconds"].as_u64().unwrap_or(0);
    // A read of the last seconds may be what is shown.
    expect(
        nanos <= after.cpu_nanos && nanos + 5_000_000_000 >= before.cpu_nanos && nanos > 0,
        format!(
            "cpu {cpu}, the kernel's {} to {}",
            before.cpu_nanos, after.cpu_nanos
        ),
    )?;
    let written = container["rootfs"]["usedBytes"].as_u64().unwrap_or(0);
    expect(
        written >= 4 << 20,
        format!("rootfs {}", container["rootfs"]),
    )?;
    let received = pod["network"]["rxBytes"].as_u64();
    expect(
        received.is_some_and(|bytes| bytes <= after.received),
        format!(
            "network {}, the kernel's {}",
            pod["network"], after.received
        ),
    )?;
    for part in ["cpu", "memory"] {
        expect(
            pod[part].is_object(),
            format!("the pod has no {part}: {pod}"),
        )?;
    }
    expect(
        container["logs"]["usedBytes"].is_number(),
        format!("logs: {}", container["logs"]),
    )?;
    Ok(format!(
        "memory {usage} (cgroup {}), cpu {nanos} ns (cgroup {} to {}), {} nanocores, working set {}, rootfs {written}, rx {} (kernel {}), processes {}",
        after.memory,
        before.cpu_nanos,
        after.cpu_nanos,
        cpu["usageNanoCores"],
        memory["workingSetBytes"],
        pod["network"]["rxBytes"],
        after.received,
        pod["process_stats"]["process_count"]
    ))
}

/// The value of a metric of the pod's container (or of the pod, for those without one).
fn metric(text: &str, name: &str, pod: &str, container: Option<&str>) -> Option<f64> {
    let of = |line: &&str| {
        line.strip_prefix(name)
            .is_some_and(|rest| rest.starts_with('{'))
            && line.contains(&format!("pod=\"{pod}\""))
            && container
                .is_none_or(|container| line.contains(&format!("container=\"{container}\"")))
    };
    let line = text.lines().find(of)?;
    line.rsplit_once("} ")?.1.split(' ').next()?.parse().ok()
}

/// Metrics of a pod in whose labels this is found.
fn names_of(text: &str, pod: &str, label: &str) -> BTreeSet<String> {
    let of = |line: &&str| line.contains(&format!("pod=\"{pod}\"")) && line.contains(label);
    let names = text
        .lines()
        .filter(of)
        .filter_map(|line| line.split_once('{'));
    names.map(|(name, _)| name.to_owned()).collect()
}

/// The names of cAdvisor, from the runtime.
pub fn cadvisor(host: &mut Host) -> Seen {
    host.ready("measured")?;
    let name = host.kubelet.pod_name("measured");
    let cpu_name = "container_cpu_usage_seconds_total";
    // The protocol has whole numbers only: the first second must be over.
    let mut text = String::new();
    crisp_harness::process::until(crate::host::LIMIT, || {
        text = host.kubelet.get("/metrics/cadvisor").unwrap_or_default();
        metric(&text, cpu_name, &name, Some("c")).is_some_and(|seconds| seconds >= 1.0)
    });
    let now = truth(host)?;
    let value = |metric_name: &str, container| {
        metric(&text, metric_name, &name, container)
            .map_or_else(|| fail(format!("no {metric_name} of {name}")), Ok)
    };
    let memory = value("container_memory_usage_bytes", Some("c"))?;
    expect(
        near(memory, now.memory),
        format!("memory {memory}, the kernel's {}", now.memory),
    )?;
    let cpu = value(cpu_name, Some("c"))?;
    #[expect(clippy::cast_precision_loss, reason = "seconds")]
    let kernel = now.cpu_nanos as f64 / 1e9;
    expect(
        cpu >= 1.0 && cpu <= kernel && cpu + 15.0 > kernel,
        format!("cpu {cpu} s, the kernel's {kernel}"),
    )?;
    let received = value("container_network_receive_bytes_total", None)?;
    let written = value("container_fs_usage_bytes", Some("c"))?;
    Ok(format!(
        "{} names; memory {memory} (cgroup {}), cpu {cpu} s (cgroup {kernel:.3}), rx {received} (kernel {}), fs {written}",
        names_of(&text, &name, "").len(),
        now.memory,
        now.received
    ))
}

/// What an operator misses who does not set the gate: seen, not judged.
pub fn without_gate(host: &mut Host) -> Seen {
    host.kubelet.stop()?;
    let mut plain = settings();
    plain["featureGates"] = json!({});
    host.kubelet.configure(plain);
    host.kubelet.start()?;
    host.ready("measured")?;
    // cAdvisor looks at new groups every few seconds.
    let complete = |pod: &Value| pod["containers"][0]["cpu"]["usageNanoCores"].is_number();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !complete(&pod_of(host)?) && std::time::Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
    let pod = pod_of(host)?;
    let container = pod["containers"][0].clone();
    let said = |value: &Value, parts: &[&str]| {
        parts
            .iter()
            .map(|part| {
                format!(
                    "{part} {}",
                    if value[part].is_object() { "yes" } else { "NO" }
                )
            })
            .collect::<Vec<_>>()
            .join(", ")
    };
    let name = host.kubelet.pod_name("measured");
    let text = host.kubelet.get("/metrics/cadvisor")?;
    let (of_pod, of_container) = (
        names_of(&text, &name, "container=\"\""),
        names_of(&text, &name, "container=\"c\""),
    );
    let network = if of_pod.iter().any(|name| name.contains("_network_")) {
        "yes"
    } else {
        "NO"
    };
    let seen = format!(
        "summary of the pod: {}; of the container: {}; /metrics/cadvisor: {} names of the pod (network {network}), {} of the container",
        said(&pod, &["cpu", "memory", "network", "process_stats", "swap"]),
        said(&container, &["cpu", "memory", "rootfs", "logs", "swap"]),
        of_pod.len(),
        of_container.len()
    );
    host.kubelet.stop()?;
    host.kubelet.configure(settings());
    host.kubelet.start()?;
    Ok(seen)
}
