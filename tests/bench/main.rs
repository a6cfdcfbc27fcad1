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

mod crowd;
mod operations;
mod table;

use std::{
    io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use crisp_harness::{
    daemon::{Daemon, Kind},
    pods::Pods,
    registry::Registry,
    suite::{self, BUSYBOX},
};

use operations::Samples;

const USAGE: &str = "usage: crisp-bench [--runtimes crisp,crisp=DIR,containerd+crun,containerd+runc] [--pods N] [--no-crowd]

crisp=DIR is another build of crisp: the directory of its four programs. --no-crowd leaves out what
is measured with 40 pods at once.";

/// A runtime to be measured.
struct Subject {
    kind: Kind,
    /// Where the programs of another build of crisp lie.
    programs: Option<PathBuf>,
    label: String,
}

impl Subject {
    fn parse(name: &str) -> Option<Self> {
        let (kind, programs) = match name.split_once('=') {
            Some((kind, dir)) => (Kind::parse(kind)?, Some(PathBuf::from(dir))),
            None => (Kind::parse(name)?, None),
        };
        if programs.is_some() && kind != Kind::Crisp {
            return None;
        }
        // The end of a path says most about it.
        let end = name.chars().count().saturating_sub(18);
        Some(Self {
            kind,
            programs,
            label: name.chars().skip(end).collect(),
        })
    }
}

/// One runtime under measurement.
struct Peer {
    pods: Pods,
    samples: Samples,
    clock: PathBuf,
    label: String,
    // After the client: its files go last.
    daemon: Daemon,
}

struct Arguments {
    subjects: Vec<Subject>,
    pods: usize,
    crowd: bool,
}

fn arguments() -> Result<Arguments, String> {
    let mut names = "crisp,containerd+crun,containerd+runc".to_owned();
    let (mut pods, mut crowd) = (40, true);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--runtimes" => names = words.next().ok_or("--runtimes wants names")?,
            "--pods" => {
                pods = words
                    .next()
                    .and_then(|count| count.parse().ok())
                    .filter(|&count| count > 0)
                    .ok_or("--pods wants a number")?;
            }
            "--no-crowd" => crowd = false,
            other => return Err(format!("unknown option {other}")),
        }
    }
    let subjects: Option<Vec<Subject>> = names.split(',').map(Subject::parse).collect();
    Ok(Arguments {
        subjects: subjects.ok_or_else(|| format!("unknown runtime in {names}"))?,
        pods,
        crowd,
    })
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
async fn peer(subject: &Subject, registry: &Registry, scratch: &Path) -> io::Result<Peer> {
    let clock = scratch.join("cni.log");
    let plugins = operations::clocked_plugins(scratch, &clock)?;
    let mut daemon = Daemon::new(subject.kind, &registry.url(), Some(&plugins))?;
    if let Some(programs) = &subject.programs {
        daemon.use_programs(programs);
    }
    daemon.start().await?;
    let pods = Pods::connect(&daemon).await?;
    pods.pull(BUSYBOX).await.map_err(io::Error::other)?;
    let mut samples = Samples::default();
    samples.push("daemon idle, MB", crowd::resident(daemon.pid()));
    Ok(Peer {
        pods,
        samples,
        clock,
        label: subject.label.clone(),
        daemon,
    })
}

async fn bench(all: &Arguments) -> io::Result<()> {
    let registry = suite::registry()?;
    let scratch = tempfile::tempdir()?;
    let mut peers = Vec::new();
    for (number, subject) in all.subjects.iter().enumerate() {
        let dir = scratch.path().join(number.to_string());
        peers.push(peer(subject, &registry, &dir).await?);
    }
    one_by_one(&mut peers, all.pods).await?;
    for peer in &mut peers {
        let failed = |status| io::Error::other(format!("{}: {status}", peer.label));
        let busy = operations::busy_exec(&peer.pods).await;
        peer.samples.add(busy.map_err(failed)?);
        let at_once = operations::pods_at_once(&peer.pods, 40, 4).await;
        peer.samples.add(at_once.map_err(failed)?);
        let flood = operations::log_flood(&peer.pods, scratch.path()).await;
        peer.samples.add(flood.map_err(failed)?);
    }
    // Before the daemons are killed: the steps are counted since their start.
    for peer in (peers.iter()).filter(|peer| peer.daemon.kind() == Kind::Crisp) {
        println!("\n{}", peer.label);
        table::steps(&peer.pods).await.map_err(io::Error::other)?;
    }
    let mut helpers = Vec::new();
    if all.crowd {
        for peer in &mut peers {
            let (samples, lines) = crowd::measure(peer).await?;
            peer.samples.add(samples);
            helpers.extend(lines);
        }
    }
    let columns: Vec<(&str, &Samples)> = peers
        .iter()
        .map(|peer| (peer.label.as_str(), &peer.samples))
        .collect();
    table::print(&columns, all.pods);
    for line in helpers {
        println!("{line}");
    }
    Ok(())
}

/// The life of one pod after the other, on each runtime in turn.
async fn one_by_one(peers: &mut [Peer], pods: usize) -> io::Result<()> {
    // The first pods pay for what is made once: bridge, rules, page cache.
    for round in 0..pods + 2 {
        for peer in &mut *peers {
            let measured = operations::one_pod(&peer.pods, &format!("bench{round}")).await;
            let measured =
                measured.map_err(|status| io::Error::other(format!("{}: {status}", peer.label)))?;
            if round >= 2 {
                peer.samples.add(measured);
            } else {
                let _warm = std::fs::remove_file(&peer.clock);
            }
        }
    }
    for peer in peers {
        peer.samples.add(operations::plugin_times(&peer.clock)?);
    }
    Ok(())
}
