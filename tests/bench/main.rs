//! The bench: the same requests to two or three runtimes in turn, pod by pod, so that whatever else
//! the machine does hits all of them alike; medians and 95th percentiles side by side, crisp's own
//! steps, memory, and the budgets.
//!
//! Pods as kubelet makes them: a PID namespace per container, bridge and portmap executed. What the
//! plugins take is measured by a plugin of its own that runs the real one and notes the time.
#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool that prints tables"
)]

mod memory;
mod operations;
mod table;

use std::{io, path::PathBuf, process::ExitCode};

use crisp_harness::{
    daemon::{Daemon, Kind},
    pods::Pods,
    registry::Registry,
    suite::{self, BUSYBOX},
};

use operations::Samples;

const USAGE: &str = "usage: crisp-bench [--runtimes crisp,containerd+crun,containerd+runc] [--pods N] [--no-memory]";

/// One runtime under measurement.
struct Peer {
    pods: Pods,
    samples: Samples,
    clock: PathBuf,
    // After the client: its files go last.
    daemon: Daemon,
}

struct Arguments {
    kinds: Vec<Kind>,
    pods: usize,
    memory: bool,
}

fn arguments() -> Result<Arguments, String> {
    let mut all = Arguments {
        kinds: vec![Kind::Crisp, Kind::ContainerdCrun, Kind::ContainerdRunc],
        pods: 40,
        memory: true,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--runtimes" => {
                let names = words.next().ok_or("--runtimes wants names")?;
                let kinds: Option<Vec<Kind>> = names.split(',').map(Kind::parse).collect();
                all.kinds = kinds.ok_or_else(|| format!("unknown runtime in {names}"))?;
            }
            "--pods" => {
                all.pods = words
                    .next()
                    .and_then(|count| count.parse().ok())
                    .filter(|&count| count > 0)
                    .ok_or("--pods wants a number")?;
            }
            "--no-memory" => all.memory = false,
            other => return Err(format!("unknown option {other}")),
        }
    }
    Ok(all)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let all = match arguments() {
        Ok(all) => all,
        Err(error) => {
            eprintln!("error: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match bench(&all).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Starts one runtime with its plugins clocked and busybox pulled.
async fn peer(kind: Kind, registry: &Registry, scratch: &std::path::Path) -> io::Result<Peer> {
    let dir = scratch.join(kind.name());
    let clock = dir.join("cni.log");
    let plugins = operations::clocked_plugins(&dir, &clock)?;
    let mut daemon = Daemon::new(kind, &registry.url(), Some(&plugins))?;
    daemon.start().await?;
    let pods = Pods::connect(&daemon).await?;
    pods.pull(BUSYBOX).await.map_err(io::Error::other)?;
    Ok(Peer {
        pods,
        samples: Samples::default(),
        clock,
        daemon,
    })
}

async fn bench(all: &Arguments) -> io::Result<()> {
    let registry = suite::registry()?;
    let scratch = tempfile::tempdir()?;
    let mut peers = Vec::new();
    for &kind in &all.kinds {
        peers.push(peer(kind, &registry, scratch.path()).await?);
    }
    let mut idle = Vec::new();
    for peer in &peers {
        idle.push(memory::resident(peer.daemon.pid()));
    }
    // The first pods pay for what is made once: bridge, rules, page cache.
    for round in 0..all.pods + 2 {
        for peer in &mut peers {
            let measured = operations::one_pod(&peer.pods, &format!("bench{round}")).await;
            let measured = measured.map_err(|status| {
                io::Error::other(format!("{}: {status}", peer.daemon.kind().name()))
            })?;
            if round >= 2 {
                peer.samples.add(measured);
            } else {
                let _warm = std::fs::remove_file(&peer.clock);
            }
        }
    }
    for peer in &mut peers {
        peer.samples.add(operations::plugin_times(&peer.clock)?);
    }
    for peer in &mut peers {
        let measured = operations::busy_exec(&peer.pods)
            .await
            .map_err(io::Error::other)?;
        peer.samples.add(measured);
        let measured = operations::pods_at_once(&peer.pods, 40, 4)
            .await
            .map_err(io::Error::other)?;
        peer.samples.add(measured);
    }
    let columns: Vec<(&str, &Samples)> = peers
        .iter()
        .map(|peer| (peer.daemon.kind().name(), &peer.samples))
        .collect();
    table::print(&columns, all.pods);
    for peer in peers
        .iter()
        .filter(|peer| peer.daemon.kind() == Kind::Crisp)
    {
        table::steps(&peer.pods).await.map_err(io::Error::other)?;
    }
    if all.memory {
        memory::print(&mut peers, &idle)
            .await
            .map_err(io::Error::other)?;
    }
    Ok(())
}
