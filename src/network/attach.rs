//! ADD: gives a sandbox its interface and addresses.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    Network,
    bandwidth::Bandwidth,
    cache::Record,
    conflist::ConfList,
    error::{NetworkError, PluginFailure},
    exec,
    invocation::{CapabilityArgs, Target, Verb, arguments, plugin_input},
    result::{self, CniResult, is_interface_name, parse_cidr},
    watch::NotReady,
};
use crate::{error::Chain, failpoint, id::SandboxId};

/// Who the pod is, for `CNI_ARGS`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodIdentity {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Pod name.
    pub name: String,
    /// Pod UID.
    pub uid: String,
}

/// Transport of a port mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// A port of the host that leads into the pod. Ports are not 0: those without a host port are no
/// mappings and left out by the caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortMapping {
    /// Transport.
    pub protocol: Protocol,
    /// Port in the pod.
    pub container_port: u16,
    /// Port on the host.
    pub host_port: u16,
    /// Address of the host to listen on; all of them if absent.
    pub host_ip: Option<IpAddr>,
}

/// DNS settings, for plugins that advertise `dns`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DnsConfig {
    /// Servers.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Options.
    pub options: Vec<String>,
}

/// What [`Network::attach`] is asked.
#[derive(Debug, Clone)]
pub struct AttachRequest {
    /// The sandbox.
    pub sandbox: SandboxId,
    /// Path of its network namespace: the pin, not a process's link.
    pub netns: PathBuf,
    /// The interface to make, `eth0`.
    pub ifname: String,
    /// The pod.
    pub pod: PodIdentity,
    /// Host ports.
    pub port_mappings: Vec<PortMapping>,
    /// The pod's annotations: bandwidth limits are read from them, and plugins that advertise
    /// `io.kubernetes.cri.pod-annotations` get them all.
    pub annotations: BTreeMap<String, String>,
    /// DNS settings.
    pub dns: Option<DnsConfig>,
    /// The pod's cgroup, for plugins that advertise `cgroupPath`.
    pub cgroup_path: Option<String>,
    /// A fixed hardware address, for plugins that advertise `mac`.
    pub mac: Option<String>,
    /// Fixed addresses with prefix length, for plugins that advertise `ips`.
    pub ips: Vec<String>,
}

/// A finished attachment.
#[derive(Debug, Clone, PartialEq)]
pub struct Attachment {
    /// The network's name.
    pub network: String,
    /// The pod's addresses on its interface, as the plugins ordered them; at least one. The first
    /// is the one CRI calls the pod's IP.
    pub ips: Vec<IpAddr>,
    /// The result as the last plugin gave it, for verbose status.
    pub result: Value,
}

impl Network {
    /// Runs the ADD chain. An attachment left by an earlier, interrupted attempt is detached
    /// first. One sandbox must not be attached and detached at the same time; its driver sees to it.
    ///
    /// Dropping the future kills the running plugin and leaves the record: `detach` then undoes it.
    ///
    /// # Errors
    /// At once if the network is not ready. If a plugin fails, everything is undone before this
    /// returns; [`NetworkError::Undo`] says that not all could be, and `detach` is to be repeated.
    pub async fn attach(&self, request: &AttachRequest) -> Result<Attachment, NetworkError> {
        self.ready().map_err(NetworkError::NotReady)?;
        let _no_gc = self.inner.changes.read().await;
        let list = self
            .loaded()
            .list
            .clone()
            .ok_or(NetworkError::NotReady(NotReady::Starting))?;
        let record = self.intent(request, &list)?;
        self.delete_chain(request.sandbox.as_str()).await?;
        self.inner.cache.write(&record)?;
        match self.add_chain(&record).await {
            Ok(result) => {
                let ips = result.pod_ips(&record.target.ifname);
                let raw = result.raw.clone();
                self.finish(record, result.raw).await?;
                Ok(Attachment {
                    network: list.name.clone(),
                    ips,
                    result: raw,
                })
            }
            Err(first) => Err(self.undo(request.sandbox.as_str(), first).await),
        }
    }

    /// The record of what is about to be done.
    fn intent(&self, request: &AttachRequest, list: &ConfList) -> Result<Record, NetworkError> {
        if !is_interface_name(&request.ifname) {
            return Err(NetworkError::Request {
                field: "interface name",
                problem: format!("{:?} is not one", request.ifname),
            });
        }
        let args = arguments(&[
            ("K8S_POD_NAMESPACE", &request.pod.namespace),
            ("K8S_POD_NAME", &request.pod.name),
            ("K8S_POD_INFRA_CONTAINER_ID", request.sandbox.as_str()),
            ("K8S_POD_UID", &request.pod.uid),
        ])?;
        Ok(Record {
            target: Target {
                container_id: request.sandbox.as_str().to_owned(),
                netns: request.netns.clone(),
                ifname: request.ifname.clone(),
                args,
            },
            list: list.clone(),
            capabilities: capabilities(request, &self.inner.pod_cidrs.load())?,
            result: None,
        })
    }

    async fn add_chain(&self, record: &Record) -> Result<CniResult, NetworkError> {
        let list = &record.list;
        let deadline = Instant::now() + self.inner.config.add_deadline;
        let mut previous: Option<CniResult> = None;
        for plugin in &list.plugins {
            let prev = previous.as_ref().map(|result| &result.raw);
            let run = exec::Run {
                kind: &plugin.kind,
                verb: Verb::Add,
                target: Some(&record.target),
                input: plugin_input(list, plugin, &record.capabilities, prev),
                dirs: &self.inner.config.plugin_dirs,
                deadline,
            };
            let result = exec::run(run).await.and_then(|stdout| {
                result::parse(&stdout, list.version).map_err(PluginFailure::Result)
            });
            previous = Some(result.map_err(|failure| NetworkError::Plugin {
                network: list.name.clone(),
                verb: Verb::Add.as_str(),
                plugin: plugin.kind.clone(),
                failure,
            })?);
            failpoint::reach(format_args!("network.add.{}", plugin.kind));
        }
        let ifname = &record.target.ifname;
        previous
            .filter(|result| !result.pod_ips(ifname).is_empty())
            .ok_or_else(|| NetworkError::NoAddress {
                network: list.name.clone(),
                ifname: ifname.clone(),
            })
    }

    /// Puts the result on record. If the disk does not take it the pod must not start: its DEL
    /// would lack the result.
    async fn finish(&self, record: Record, result: Value) -> Result<(), NetworkError> {
        let finished = Record {
            result: Some(result),
            ..record
        };
        match self.inner.cache.write(&finished) {
            Ok(()) => Ok(()),
            Err(first) => Err(self.undo(&finished.target.container_id, first).await),
        }
    }

    /// Undoes a failed chain; whatever happens the first error is what is told.
    async fn undo(&self, sandbox: &str, first: NetworkError) -> NetworkError {
        match self.delete_chain(sandbox).await {
            Ok(()) => first,
            Err(undo) => NetworkError::Undo {
                first: Chain(&first).to_string(),
                undo: Chain(&undo).to_string(),
            },
        }
    }
}

/// The dynamic values by capability; each plugin gets those it advertises.
///
/// # Errors
/// If an annotation or a value cannot be.
pub fn capabilities(
    request: &AttachRequest,
    pod_cidrs: &[String],
) -> Result<CapabilityArgs, NetworkError> {
    if let Some(bad) = request.ips.iter().find(|ip| parse_cidr(ip).is_none()) {
        return Err(NetworkError::Request {
            field: "ips",
            problem: format!("{bad:?} is no address with a prefix length"),
        });
    }
    let mut args = CapabilityArgs::default();
    args.set("portMappings", port_mappings(&request.port_mappings));
    args.set(
        "bandwidth",
        Bandwidth::from_annotations(&request.annotations)?.to_json(),
    );
    args.set("dns", request.dns.as_ref().map(|dns| {
        json!({ "servers": dns.servers, "searches": dns.searches, "options": dns.options })
    }));
    args.set("mac", request.mac.as_ref().map(|mac| json!(mac)));
    args.set("ips", (!request.ips.is_empty()).then(|| json!(request.ips)));
    args.set("ipRanges", ip_ranges(pod_cidrs));
    args.set(
        "cgroupPath",
        request.cgroup_path.as_ref().map(|path| json!(path)),
    );
    args.set(
        "io.kubernetes.cri.pod-annotations",
        (!request.annotations.is_empty()).then(|| json!(request.annotations)),
    );
    Ok(args)
}

fn port_mappings(mappings: &[PortMapping]) -> Option<Value> {
    let all: Vec<Value> = mappings
        .iter()
        .map(|mapping| {
            json!({
                "hostPort": mapping.host_port,
                "containerPort": mapping.container_port,
                "protocol": mapping.protocol.as_str(),
                "hostIP": mapping.host_ip.map(|ip| ip.to_string()).unwrap_or_default(),
            })
        })
        .collect();
    (!all.is_empty()).then_some(Value::Array(all))
}

/// One range set per family: a pod gets one address from each set.
fn ip_ranges(pod_cidrs: &[String]) -> Option<Value> {
    let sets: Vec<Value> = pod_cidrs
        .iter()
        .map(|cidr| json!([{ "subnet": cidr }]))
        .collect();
    (!sets.is_empty()).then_some(Value::Array(sets))
}
