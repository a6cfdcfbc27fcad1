//! kubelet and the runtime end and come back; the containers do not notice.

use std::{
    collections::BTreeMap,
    fs, thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    host::{Failure, Host, Seen, expect, fail, settings},
    manifest::{STAY, pod, shell, with},
};

/// Two of its own, so that the others may come and go.
pub fn pods(_: &Host) -> Vec<Value> {
    let probe = json!({
        "readinessProbe": { "exec": { "command": ["true"] }, "periodSeconds": 1 },
        "livenessProbe": { "exec": { "command": ["true"] }, "periodSeconds": 1, "failureThreshold": 3 },
    });
    vec![pod(
        "lasting",
        &[with(shell("c", STAY), probe), shell("d", STAY)],
    )]
}

/// Containers of the pod that lasts: name to id, pid and start of the process.
fn containers(host: &Host) -> Result<BTreeMap<String, String>, Failure> {
    let mut all = BTreeMap::new();
    for name in ["c", "d"] {
        let (id, pid) = (host.id("lasting", name)?, host.pid("lasting", name)?);
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let started = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.split(' ').nth(19))
            .unwrap_or_default();
        let restarts = crate::host::restarts(&host.pod("lasting")?, name);
        all.insert(
            name.to_owned(),
            format!("{id} pid {pid} since {started}, {restarts} restarts"),
        );
    }
    Ok(all)
}

/// Ready, and the same containers as before; for long enough that a sync would have shown.
fn same(host: &Host, before: &BTreeMap<String, String>) -> Result<(), Failure> {
    host.ready("lasting")?;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(4) {
        let now = containers(host)?;
        expect(now == *before, format!("before {before:?}, now {now:?}"))?;
        thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}

/// Used by no container.
const UNUSED: &str = "registry.k8s.io/e2e-test-images/httpd:2.4.39-4";

/// It comes back with a threshold below what the disk has in use: see `images`.
pub fn kubelet(host: &mut Host) -> Seen {
    host.ready("lasting")?;
    let before = containers(host)?;
    host.runtime.block_on(host.pods.pull(UNUSED))?;
    host.kubelet.stop()?;
    let low = json!({ "imageGCHighThresholdPercent": 1, "imageGCLowThresholdPercent": 0, "imageMinimumGCAge": "1ms" });
    host.kubelet.configure(with(settings(), low));
    host.kubelet.start()?;
    same(host, &before)?;
    Ok(format!("no container restarted: {}", before["c"]))
}

fn tags(host: &Host) -> Result<Vec<String>, Failure> {
    let request = crisp_harness::cri::v1::ListImagesRequest::default();
    let list = host
        .runtime
        .block_on(host.pods.cri.image.clone().list_images(request))?
        .into_inner();
    Ok(list
        .images
        .into_iter()
        .flat_map(|image| image.repo_tags)
        .collect())
}

/// kubelet collects five minutes after it started, not sooner; the items before this one pass the
/// time.
pub fn images(host: &mut Host) -> Seen {
    let began = Instant::now();
    let left = loop {
        let left = tags(host)?;
        if !left.iter().any(|tag| tag == UNUSED) {
            break left;
        }
        if began.elapsed() > Duration::from_secs(330) {
            return fail(format!("{UNUSED} was not collected: {left:?}"));
        }
        thread::sleep(Duration::from_millis(500));
    };
    let busybox = crisp_harness::suite::BUSYBOX;
    expect(
        left.iter().any(|tag| tag == busybox),
        format!("busybox, in use, was collected: {left:?}"),
    )?;
    Ok(format!(
        "{UNUSED}, unused, was removed; left: {}",
        left.join(", ")
    ))
}

/// SIGTERM, and a new one after a while in which probes fail to be run.
pub fn runtime(host: &mut Host) -> Seen {
    host.ready("lasting")?;
    let before = containers(host)?;
    let took = host.daemon.stop(Duration::from_secs(10))?;
    thread::sleep(Duration::from_secs(3));
    let served = host.daemon_again()?;
    same(host, &before)?;
    Ok(format!(
        "SIGTERM took {took:?}, 3 s without a runtime, served again after {served:?}; no container restarted"
    ))
}

/// SIGKILL three times; then the node still makes pods.
pub fn killed(host: &mut Host) -> Seen {
    host.ready("lasting")?;
    let before = containers(host)?;
    let mut longest = Duration::ZERO;
    for _ in 0..3 {
        host.daemon.kill()?;
        longest = longest.max(host.daemon_again()?);
        same(host, &before)?;
    }
    host.kubelet
        .manifest(&pod("afterwards", &[shell("c", STAY)]))?;
    host.ready("afterwards")?;
    host.kubelet.withdraw("afterwards")?;
    Ok(format!(
        "three times, served again after {longest:?} at most; no container restarted; a new pod became Ready"
    ))
}
