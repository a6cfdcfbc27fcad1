//! What a runtime keeps in memory: its daemon idle and with 40 pods, and its helpers per pod.

use std::fs;

use crisp_harness::site::{pids, program_of};
use tonic::Status;

use crate::Peer;

/// Pods that run while memory is read.
const PODS: u32 = 40;

/// One value of a file of `Name: N kB` lines, in KiB.
fn field(path: &str, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|line| line.trim().split(' ').next()?.parse().ok())
        .unwrap_or(0)
}

/// Resident memory of a process in KiB.
pub fn resident(pid: u32) -> u64 {
    field(&format!("/proc/{pid}/status"), "VmRSS")
}

/// Proportional and private memory of all processes of a name that serve these pods, in KiB, and
/// how many there are.
fn helpers(name: &str, ids: &[String]) -> (usize, u64, u64) {
    let mut sum = (0, 0, 0);
    for pid in pids() {
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command);
        let group = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let serves = ids
            .iter()
            .any(|id| command.contains(id.as_str()) || group.contains(id.as_str()));
        if serves && program_of(pid) == name {
            let rollup = format!("/proc/{pid}/smaps_rollup");
            let private = field(&rollup, "Private_Clean") + field(&rollup, "Private_Dirty");
            sum = (sum.0 + 1, sum.1 + field(&rollup, "Pss"), sum.2 + private);
        }
    }
    sum
}

/// Runs 40 pods on each runtime in turn and prints what they cost.
///
/// # Errors
/// The runtime's.
pub async fn print(peers: &mut [Peer], idle: &[u64]) -> Result<(), Status> {
    println!(
        "\nmemory with {PODS} pods running (budgets: daemon 20 MB with 40 pods, 0.3 MB a pod)"
    );
    for (peer, idle) in peers.iter().zip(idle) {
        let mut ids = Vec::new();
        for number in 0..PODS {
            let sandbox = peer.pods.sandbox(&format!("mem{number}"));
            let pod = peer.pods.run(&sandbox).await?;
            let config = peer.pods.container("c", &["sleep", "1000"]);
            ids.push(peer.pods.launch(&pod, &config, &sandbox).await?);
            ids.push(pod);
        }
        let name = peer.daemon.kind().name();
        println!(
            "{name:<18} daemon {:.1} MB idle, {:.1} MB with pods",
            mega(*idle),
            mega(resident(peer.daemon.pid()))
        );
        let mut all = 0;
        for helper in [
            "conmon-rs",
            "crisp-pause",
            "containerd-shim-runc-v2",
            "pause",
        ] {
            let (count, pss, private) = helpers(helper, &ids);
            if count > 0 {
                all += pss;
                let each = |sum: u64| sum / count as u64;
                println!(
                    "{:<18} {count} {helper}: PSS {} KiB, private {} KiB each",
                    "",
                    each(pss),
                    each(private)
                );
            }
        }
        #[expect(
            clippy::cast_precision_loss,
            reason = "kibibytes of a test machine fit"
        )]
        let per_pod = all as f64 / f64::from(PODS) / 1024.0;
        println!("{:<18} {per_pod:.2} MB of helpers a pod", "");
        peer.pods.remove_all().await?;
    }
    Ok(())
}

#[expect(
    clippy::cast_precision_loss,
    reason = "kibibytes of a test machine fit"
)]
fn mega(kibibytes: u64) -> f64 {
    kibibytes as f64 / 1024.0
}
