//! What verbose statuses tell beyond the protocol, as JSON objects by name.

use std::{collections::HashMap, sync::Arc};

use serde_json::{Value, json};

use crate::{
    container::{self, Container},
    monitor,
    node::Node,
    observe,
    sandbox::Sandbox,
};

/// Of the daemon.
#[must_use]
pub fn node(node: &Node) -> HashMap<String, String> {
    let config = json!({
        "root": node.config.root,
        "state": node.config.state,
        // Tools look up where runtime state lies under this name.
        "stateDir": node.config.state,
        "listen": node.config.listen,
        "network": {
            "confDir": node.config.network.conf_dir,
            "pluginDirs": node.config.network.plugin_dirs,
        },
        "image": { "hostsDir": node.config.image.hosts_dir },
        "runtime": {
            "default": node.config.runtime.default,
            "cdiDirs": node.config.runtime.cdi_dirs,
            "blockioConfig": node.config.runtime.blockio_config,
            "createMountSources": node.config.runtime.create_mount_sources,
        },
    });
    let steps: serde_json::Map<String, Value> = observe::steps::snapshot()
        .into_iter()
        .map(|step| {
            let figures = json!({
                "count": step.count,
                "median_us": micros(step.median),
                "p95_us": micros(step.p95),
            });
            (step.name, figures)
        })
        .collect();
    let network = json!({ "configuration": node.network.loaded().list.as_ref().map(|list| list.name.clone()) });
    let known = node.cdi.known();
    let cdi = json!({ "devices": known.names(), "problems": known.problems });
    let cut = monitor::cut_outputs();
    let exec = json!({ "outputsCut": cut.commands, "bytesCut": cut.bytes });
    HashMap::from([
        ("cdi".to_owned(), cdi.to_string()),
        ("config".to_owned(), config.to_string()),
        ("exec".to_owned(), exec.to_string()),
        ("network".to_owned(), network.to_string()),
        ("steps".to_owned(), Value::Object(steps).to_string()),
    ])
}

/// Of a sandbox.
#[must_use]
pub fn sandbox(node: &Node, sandbox: &Arc<Sandbox>) -> HashMap<String, String> {
    let published = sandbox.published();
    let info = json!({
        "pid": published.pause.map_or(0, |pause| pause.pid),
        "netns": published.netns,
        "cgroupParent": sandbox.cgroup_parent,
        "stateDir": node.paths.sandbox_state(&sandbox.id),
        "runtimeHandler": sandbox.spec.runtime_handler,
        "resources": serde_json::to_value(&published.resources).unwrap_or_default(),
        "config": serde_json::to_value(&*sandbox.spec).unwrap_or_default(),
    });
    HashMap::from([("info".to_owned(), info.to_string())])
}

/// Of a container. Its runtime spec is read from its bundle.
#[must_use]
pub fn container(node: &Node, container: &Arc<Container>) -> HashMap<String, String> {
    let bundle = node.paths.container_state(&container.id);
    let spec: Value = std::fs::read(bundle.join("config.json"))
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default();
    let pid = match &*container.state() {
        container::state::State::Exited(_) => 0,
        _ => container.fixed.pid,
    };
    let info = json!({
        "sandboxID": container.sandbox.as_str(),
        "pid": pid,
        "privileged": container.spec.security.privileged,
        "bundle": bundle,
        "cgroup": container.fixed.cgroup,
        "output": container.output.to_json(),
        "config": serde_json::to_value(&*container.spec).unwrap_or_default(),
        "runtimeSpec": spec,
    });
    HashMap::from([("info".to_owned(), info.to_string())])
}

fn micros(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
