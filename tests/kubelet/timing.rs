//! How long it takes from a file in the directory of static pods to a pod that is Ready.

use std::{
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use crisp_harness::{crictl::runtime_under_test, daemon::Kind};

use crate::{
    host::{Failure, Host, Seen, is_ready, settings},
    manifest::{STAY, pod, shell},
};

const PODS: usize = 9;

/// One runtime and what was measured of it, in milliseconds.
struct Peer {
    host: Host,
    /// Until the runtime says that the container runs.
    started: Vec<f64>,
    /// Until kubelet says that the pod is Ready.
    ready: Vec<f64>,
}

/// Ours beside containerd, a pod at a time and in turn, so that whatever else the machine does hits
/// both alike. The same kubelet, each with its own process.
pub fn compare() -> Seen {
    let under_test = runtime_under_test();
    let mut peers = Vec::new();
    for kind in [under_test, Kind::ContainerdRunc] {
        if peers
            .iter()
            .all(|peer: &Peer| peer.host.daemon.kind() != kind)
        {
            peers.push(Peer {
                host: Host::of(kind, settings())?,
                started: Vec::new(),
                ready: Vec::new(),
            });
        }
    }
    // The first pod of each pays for what is made once.
    for round in 0..=PODS {
        for peer in &mut peers {
            let (started, ready) = one(&peer.host, &format!("timed{round}"))?;
            if round > 0 {
                peer.started.push(started);
                peer.ready.push(ready);
            }
        }
    }
    let mut seen = Vec::new();
    for peer in &mut peers {
        let name = peer.host.daemon.kind().name();
        let (started, ready) = (median(&mut peer.started), median(&mut peer.ready));
        let (least, most) = (peer.ready[0], peer.ready[PODS - 1]);
        seen.push(format!("{name}: container started after {started:.0} ms, Ready after {ready:.0} ms ({least:.0} to {most:.0})"));
    }
    Ok(format!("medians of {PODS}: {}", seen.join("; ")))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn one(host: &Host, name: &str) -> Result<(f64, f64), Failure> {
    let (began, wall) = (Instant::now(), SystemTime::now());
    host.kubelet.manifest(&pod(name, &[shell("c", STAY)]))?;
    while !host.kubelet.pod(name)?.is_some_and(|pod| is_ready(&pod)) {
        if began.elapsed() > crate::host::LIMIT {
            return crate::host::fail(format!(
                "{name} is not Ready: {}",
                host.pod(name)?["status"]
            ));
        }
        thread::sleep(Duration::from_millis(5));
    }
    let ready = began.elapsed().as_secs_f64() * 1e3;
    let status = host
        .runtime
        .block_on(host.pods.status(&host.id(name, "c")?))?;
    let started = Duration::from_nanos(status.started_at.try_into()?);
    let started = started
        .saturating_sub(wall.duration_since(UNIX_EPOCH)?)
        .as_secs_f64()
        * 1e3;
    host.end(name)?;
    Ok((started, ready))
}
