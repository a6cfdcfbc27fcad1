//! The host's network and its ports.

use std::fs;

use serde_json::{Value, json};

use crate::{
    host::{Host, Seen, expect, fail},
    manifest::{STAY, pod, shell, web, with, with_spec},
};

pub fn host_pods(_: &Host) -> Vec<Value> {
    vec![with_spec(
        pod("hostnet", &[shell("c", STAY)]),
        json!({ "hostNetwork": true }),
    )]
}

pub fn host(host: &mut Host) -> Seen {
    host.ready("hostnet")?;
    let pid = host.pid("hostnet", "c")?;
    let (own, its) = (
        fs::read_link("/proc/self/ns/net")?,
        fs::read_link(format!("/proc/{pid}/ns/net"))?,
    );
    expect(own == its, "it has a network namespace of its own")?;
    let interfaces = host
        .exec("hostnet", "c", "ls /sys/class/net")?
        .replace('\n', " ");
    Ok(format!(
        "in the host's namespace {}, with its interfaces: {interfaces}",
        own.display()
    ))
}

pub fn port_pods(host: &Host) -> Vec<Value> {
    let port =
        json!({ "ports": [{ "containerPort": 80, "hostPort": host.port, "protocol": "TCP" }] });
    vec![pod("hostport", &[with(web("web"), port)])]
}

pub fn port(host: &mut Host) -> Seen {
    let pod = host.ready("hostport")?;
    let page = crisp_harness::kubelet::get(host.port, "/")?;
    expect(page.contains("It works"), page)?;
    let ip = &pod["status"]["podIP"];
    host.kubelet.withdraw("hostport")?;
    let port = host.port;
    let closed = crisp_harness::process::until(crate::host::LIMIT, || {
        crisp_harness::kubelet::get(port, "/").is_err()
    });
    if !closed {
        return fail("the port still answers after the pod was withdrawn");
    }
    Ok(format!(
        "127.0.0.1:{port} answered by the pod {ip}, closed after its end"
    ))
}
