//! A real kubelet over the daemon: what a node does with pods, item by item, a line each with what
//! was seen. `tests/run kubelet` is the one command; it is no part of a plain `tests/run`.
//!
//! Static pods need no API server, so neither do these: what only an API server can give (secrets,
//! config maps, tokens) is not here. `CRISP_TEST_RUNTIME` runs the same against a rival; arguments
//! are parts of item names, to run only those.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a ring that prints what it saw")]

mod ending;
mod host;
mod manifest;
mod network;
mod policy;
mod probes;
mod resources;
mod restarts;
mod server;
mod stats;
mod timing;
mod volumes;

use std::{process::ExitCode, time::Instant};

use serde_json::Value;

use host::{Host, Seen};

/// One line of the result.
struct Item {
    name: &'static str,
    /// The pods it looks at; all of all items are there from the start.
    pods: fn(&Host) -> Vec<Value>,
    check: fn(&mut Host) -> Seen,
}

/// In this order: the last ones take away what the first ones look at.
const ITEMS: &[Item] = &[
    Item {
        name: "restart policy OnFailure, with back-off",
        pods: policy::on_failure_pods,
        check: policy::on_failure,
    },
    Item {
        name: "probes: ready by exec, HTTP and startup probes",
        pods: probes::ready_pods,
        check: probes::ready,
    },
    Item {
        name: "probes: a failing liveness probe restarts",
        pods: probes::liveness_pods,
        check: probes::liveness,
    },
    Item {
        name: "init containers and sidecars in order",
        pods: policy::init_pods,
        check: policy::init,
    },
    Item {
        name: "restart policies Never and Always",
        pods: policy::never_pods,
        check: policy::never,
    },
    Item {
        name: "volumes: emptyDir, hostPath, subPath",
        pods: volumes::pods,
        check: volumes::directories,
    },
    Item {
        name: "volumes: projected files, downward API",
        pods: volumes::projected_pods,
        check: volumes::projected,
    },
    Item {
        name: "resource limits in cgroups",
        pods: resources::limit_pods,
        check: resources::limits,
    },
    Item {
        name: "a memory hog is OOMKilled",
        pods: resources::hog_pods,
        check: resources::hog,
    },
    Item {
        name: "host network",
        pods: network::host_pods,
        check: network::host,
    },
    Item {
        name: "a host port answers on the host",
        pods: network::port_pods,
        check: network::port,
    },
    Item {
        name: "log rotation by kubelet",
        pods: server::log_pods,
        check: server::rotation,
    },
    Item {
        name: "container logs through kubelet",
        pods: server::talk_pods,
        check: server::logs,
    },
    Item {
        name: "exec through kubelet",
        pods: server::talk_pods,
        check: server::exec,
    },
    Item {
        name: "attach through kubelet",
        pods: server::attach_pods,
        check: server::attach,
    },
    Item {
        name: "port-forward through kubelet",
        pods: server::forward_pods,
        check: server::forward,
    },
    Item {
        name: "/stats/summary beside cgroup truth",
        pods: stats::pods,
        check: stats::summary,
    },
    Item {
        name: "/metrics/cadvisor beside cgroup truth",
        pods: stats::pods,
        check: stats::cadvisor,
    },
    Item {
        name: "without the feature gate",
        pods: stats::pods,
        check: stats::without_gate,
    },
    Item {
        name: "kubelet restarted",
        pods: restarts::pods,
        check: restarts::kubelet,
    },
    Item {
        name: "runtime restarted under kubelet",
        pods: restarts::pods,
        check: restarts::runtime,
    },
    Item {
        name: "runtime killed under kubelet",
        pods: restarts::pods,
        check: restarts::killed,
    },
    Item {
        name: "graceful end: preStop, then SIGTERM",
        pods: ending::graceful_pods,
        check: ending::graceful,
    },
    Item {
        name: "a deaf container is killed after its grace",
        pods: ending::deaf_pods,
        check: ending::deaf,
    },
    Item {
        name: "a sidecar ends after the main container",
        pods: policy::init_pods,
        check: ending::sidecar,
    },
    Item {
        name: "time from file to Ready",
        pods: |_| Vec::new(),
        check: |_| timing::compare(),
    },
    Item {
        name: "image garbage collection",
        pods: restarts::pods,
        check: restarts::images,
    },
    Item {
        name: "pods withdrawn leave nothing",
        pods: |_| Vec::new(),
        check: ending::all,
    },
];

fn main() -> ExitCode {
    let filters: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'))
        .collect();
    let wanted = |name: &str| {
        filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()))
    };
    let items: Vec<&Item> = ITEMS.iter().filter(|item| wanted(item.name)).collect();
    let began = Instant::now();
    let mut failed = 0_usize;
    let mut report = |name: &str, seen: Seen| match seen {
        Ok(seen) => println!("item {name}: ok: {seen}"),
        Err(error) => {
            failed += 1;
            println!("item {name}: FAILED: {error}");
        }
    };
    if let Err(error) = run(&items, &mut report) {
        report("start", Err(error));
    }
    println!(
        "{} passed, {failed} failed, {:.0} s",
        items.len().saturating_sub(failed),
        began.elapsed().as_secs_f64()
    );
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// All pods at once, then the items one by one.
fn run(items: &[&Item], report: &mut impl FnMut(&str, Seen)) -> Result<(), host::Failure> {
    if items.is_empty() {
        return Ok(());
    }
    let mut host = Host::start()?;
    let pods: Vec<Value> = items.iter().flat_map(|item| (item.pods)(&host)).collect();
    for pod in &pods {
        host.kubelet.manifest(pod)?;
    }
    for item in items {
        let began = Instant::now();
        let seen = (item.check)(&mut host);
        let took = began.elapsed().as_secs_f64();
        report(item.name, seen.map(|seen| format!("{seen} ({took:.1} s)")));
    }
    Ok(())
}
