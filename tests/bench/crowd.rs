//! Forty pods at once: what they cost in memory, how fast they are listed, and how soon a daemon that
//! was killed serves them again.

use std::{
    fs, io,
    time::{Duration, Instant},
};

use crisp_harness::{
    cri::{
        Cri,
        v1::{ContainerState, ListContainerStatsRequest, ListContainersRequest},
    },
    pods::Pods,
    site::{pids, program_of},
};
use tonic::{Code, Status};

use crate::{Peer, operations::Samples};

/// How many pods.
pub const PODS: usize = 40;
/// How often the statistics are listed and the daemon is killed.
const LISTS: usize = 20;
const KILLS: usize = 5;
/// How long a killed daemon may take to serve again.
const PATIENCE: Duration = Duration::from_secs(60);

/// One value of a file of `Name: N kB` lines, in KiB.
fn field(path: &str, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|line| line.trim().split(' ').next()?.parse().ok())
        .unwrap_or(0)
}

/// What a process holds for itself, without pages of its program that the kernel may take back, in MB.
pub fn anonymous(pid: u32) -> f64 {
    mega(field(&format!("/proc/{pid}/status"), "RssAnon"))
}

/// Resident memory of a process in MB.
pub fn resident(pid: u32) -> f64 {
    mega(field(&format!("/proc/{pid}/status"), "VmRSS"))
}

#[expect(
    clippy::cast_precision_loss,
    reason = "kibibytes of a test machine fit"
)]
fn mega(kibibytes: u64) -> f64 {
    kibibytes as f64 / 1024.0
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

/// Runs the pods on one runtime, measures, and removes them. Returns the lines about its helpers
/// beside the samples.
///
/// # Errors
/// The runtime's.
pub async fn measure(peer: &mut Peer) -> io::Result<(Samples, Vec<String>)> {
    let mut samples = Samples::default();
    let mut ids = Vec::new();
    for number in 0..PODS {
        let sandbox = peer.pods.sandbox(&format!("crowd{number}"));
        let pod = peer.pods.run(&sandbox).await.map_err(io::Error::other)?;
        let config = peer.pods.container("c", &["sleep", "1000"]);
        let container = peer.pods.launch(&pod, &config, &sandbox).await;
        ids.push(container.map_err(io::Error::other)?);
        ids.push(pod);
    }
    samples.push("daemon with 40 pods, MB", resident(peer.daemon.pid()));
    samples.push("  of it anonymous, MB", anonymous(peer.daemon.pid()));
    let mut lines = Vec::new();
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
            lines.push(format!(
                "{}: {count} {helper}: PSS {} KiB, private {} KiB each",
                peer.label,
                each(pss),
                each(private)
            ));
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "forty is exact")]
    samples.push("helpers a pod (PSS), MB", mega(all) / PODS as f64);
    list_statistics(&peer.pods, &mut samples).await?;
    for _ in 0..KILLS {
        samples.push("restart to 40 served", restart(peer).await?);
    }
    peer.pods.remove_all().await.map_err(io::Error::other)?;
    Ok((samples, lines))
}

async fn list_statistics(pods: &Pods, samples: &mut Samples) -> io::Result<()> {
    const NAME: &str = "ListContainerStats of 40";
    for _ in 0..LISTS {
        let began = Instant::now();
        let request = ListContainerStatsRequest::default();
        match pods.cri.runtime.clone().list_container_stats(request).await {
            Ok(answer) => {
                let found = answer.into_inner().stats.len();
                if found != PODS {
                    samples.note(NAME, format!("{found} of them"));
                    return Ok(());
                }
                samples.push(NAME, began.elapsed().as_secs_f64() * 1e3);
            }
            Err(status) if status.code() == Code::Unimplemented => {
                samples.note(NAME, "UNIMPLEMENTED".to_owned());
                return Ok(());
            }
            Err(status) => return Err(io::Error::other(status)),
        }
    }
    Ok(())
}

/// Kills the daemon and starts it again: milliseconds until all containers are listed as running.
async fn restart(peer: &mut Peer) -> io::Result<f64> {
    peer.daemon.kill()?;
    let began = Instant::now();
    peer.daemon.spawn()?;
    while !serves_all(peer).await.unwrap_or(false) {
        if began.elapsed() > PATIENCE {
            return Err(io::Error::other(format!("{} does not serve", peer.label)));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let took = began.elapsed().as_secs_f64() * 1e3;
    peer.pods = Pods::connect(&peer.daemon).await?;
    Ok(took)
}

async fn serves_all(peer: &Peer) -> io::Result<bool> {
    let mut client = Cri::connect(&peer.daemon.socket()).await?;
    let listed = client
        .runtime
        .list_containers(ListContainersRequest::default());
    let listed: Result<_, Status> = listed.await;
    let containers = listed.map_err(io::Error::other)?.into_inner().containers;
    let running = containers
        .iter()
        .filter(|one| one.state() == ContainerState::ContainerRunning);
    Ok(running.count() == PODS)
}
