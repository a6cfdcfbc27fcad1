//! Usage and metrics to protobuf answers.

use std::path::Path;

use super::render::map;
use crate::{
    container::Container,
    cri::proto,
    network::counters::Interface,
    stats::{
        GroupUsage, Pressure, Share,
        container::ContainerUsage,
        layer::LayerUsage,
        metrics::{Kind, LABELS, Metric, PodMetrics, Sample},
        pod::{NetworkUsage, PodUsage},
    },
};

/// What a container uses. `layers` is where writable layers lie.
#[must_use]
pub fn container(usage: &ContainerUsage, layers: &Path) -> proto::ContainerStats {
    let (at, group) = (usage.at, &usage.group);
    proto::ContainerStats {
        attributes: Some(attributes(&usage.container)),
        cpu: Some(cpu(at, group, usage.nano_cores)),
        memory: Some(memory(at, group)),
        writable_layer: usage.layer.map(|layer| filesystem(layer, layers)),
        swap: Some(proto::SwapUsage {
            timestamp: at,
            swap_available_bytes: group
                .swap_limit
                .map(|limit| value(limit.saturating_sub(group.swap_usage.unwrap_or(0)))),
            swap_usage_bytes: group.swap_usage.map(value),
        }),
        io: Some(io(at, group)),
    }
}

/// What a pod uses, with its containers.
#[must_use]
pub fn pod(usage: &PodUsage, layers: &Path) -> proto::PodSandboxStats {
    let (at, group, spec) = (usage.at, &usage.group, &usage.sandbox.spec);
    let containers = usage.containers.iter();
    proto::PodSandboxStats {
        attributes: Some(proto::PodSandboxAttributes {
            id: usage.sandbox.id.to_string(),
            metadata: Some(super::render::sandbox_metadata(&spec.metadata)),
            labels: map(&spec.labels),
            annotations: map(&spec.annotations),
        }),
        linux: Some(proto::LinuxPodSandboxStats {
            cpu: Some(cpu(at, group, usage.nano_cores)),
            memory: Some(memory(at, group)),
            network: usage.network.as_ref().map(network),
            process: Some(proto::ProcessUsage {
                timestamp: at,
                process_count: group.pids.map(value),
            }),
            containers: containers.map(|usage| container(usage, layers)).collect(),
            io: Some(io(at, group)),
        }),
        windows: None,
    }
}

/// A part of a file system. kubelet finds out which file system from any path on it.
#[must_use]
pub fn filesystem(usage: LayerUsage, path: &Path) -> proto::FilesystemUsage {
    proto::FilesystemUsage {
        timestamp: usage.at,
        fs_id: Some(proto::FilesystemIdentifier {
            mountpoint: path.to_string_lossy().into_owned(),
        }),
        used_bytes: Some(value(usage.bytes)),
        inodes_used: Some(value(usage.inodes)),
    }
}

/// What a metric is, with the keys of its labels in the order of their values.
#[must_use]
pub fn descriptor(metric: &Metric) -> proto::MetricDescriptor {
    let keys = LABELS.iter().chain(metric.labels);
    proto::MetricDescriptor {
        name: metric.name.to_owned(),
        help: metric.help.to_owned(),
        label_keys: keys.map(|key| (*key).to_owned()).collect(),
    }
}

/// The metrics of a pod.
#[must_use]
pub fn metrics(metrics: &PodMetrics) -> proto::PodSandboxMetrics {
    let containers = metrics.containers.iter();
    proto::PodSandboxMetrics {
        pod_sandbox_id: metrics.sandbox.id.to_string(),
        metrics: metrics.samples.iter().map(sample).collect(),
        container_metrics: containers
            .map(|(container, samples)| proto::ContainerMetrics {
                container_id: container.id.to_string(),
                metrics: samples.iter().map(sample).collect(),
            })
            .collect(),
    }
}

fn sample(sample: &Sample) -> proto::Metric {
    let kind = match sample.kind {
        Kind::Counter => proto::MetricType::Counter,
        Kind::Gauge => proto::MetricType::Gauge,
    };
    proto::Metric {
        name: sample.name.to_owned(),
        timestamp: sample.at,
        metric_type: kind.into(),
        label_values: sample.labels.clone(),
        value: Some(value(sample.value)),
    }
}

fn attributes(container: &Container) -> proto::ContainerAttributes {
    let spec = &container.spec;
    proto::ContainerAttributes {
        id: container.id.to_string(),
        metadata: Some(proto::ContainerMetadata {
            name: spec.metadata.name.clone(),
            attempt: spec.metadata.attempt,
        }),
        labels: map(&spec.labels),
        annotations: map(&spec.annotations),
    }
}

fn cpu(at: i64, group: &GroupUsage, nano_cores: Option<u64>) -> proto::CpuUsage {
    proto::CpuUsage {
        timestamp: at,
        usage_core_nano_seconds: group.cpu_usage_ns.map(value),
        usage_nano_cores: nano_cores.map(value),
        psi: group.cpu_pressure.map(pressure),
    }
}

fn memory(at: i64, group: &GroupUsage) -> proto::MemoryUsage {
    let working_set = group.memory_working_set;
    let available = group.memory_limit.zip(working_set);
    proto::MemoryUsage {
        timestamp: at,
        working_set_bytes: working_set.map(value),
        available_bytes: available.map(|(limit, used)| value(limit.saturating_sub(used))),
        usage_bytes: group.memory_usage.map(value),
        rss_bytes: group.memory_rss.map(value),
        page_faults: group.page_faults.map(value),
        major_page_faults: group.major_page_faults.map(value),
        psi: group.memory_pressure.map(pressure),
    }
}

fn io(at: i64, group: &GroupUsage) -> proto::IoUsage {
    proto::IoUsage {
        timestamp: at,
        psi: group.io_pressure.map(pressure),
    }
}

fn pressure(pressure: Pressure) -> proto::PsiStats {
    let percent = |hundredths: u32| f64::from(hundredths) / 100.0;
    let share = |share: Share| proto::PsiData {
        total: share.total_us,
        avg10: percent(share.avg10),
        avg60: percent(share.avg60),
        avg300: percent(share.avg300),
    };
    proto::PsiStats {
        full: Some(share(pressure.full)),
        some: Some(share(pressure.some)),
    }
}

fn network(usage: &NetworkUsage) -> proto::NetworkUsage {
    proto::NetworkUsage {
        timestamp: usage.at,
        default_interface: usage.default.as_ref().map(interface),
        interfaces: usage.others.iter().map(interface).collect(),
    }
}

fn interface(interface: &Interface) -> proto::NetworkInterfaceUsage {
    proto::NetworkInterfaceUsage {
        name: interface.name.clone(),
        rx_bytes: Some(value(interface.received.bytes)),
        rx_errors: Some(value(interface.received.errors)),
        tx_bytes: Some(value(interface.sent.bytes)),
        tx_errors: Some(value(interface.sent.errors)),
    }
}

fn value(value: u64) -> proto::UInt64Value {
    proto::UInt64Value { value }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::counters::Traffic;

    fn plain(value: Option<proto::UInt64Value>) -> Option<u64> {
        value.map(|value| value.value)
    }

    #[test]
    fn what_is_left_of_memory_is_told_only_under_a_limit() {
        let usage = |limit| GroupUsage {
            memory_limit: limit,
            memory_working_set: Some(70),
            ..GroupUsage::default()
        };
        for (limit, available) in [(None, None), (Some(100), Some(30)), (Some(50), Some(0))] {
            let memory = memory(1, &usage(limit));
            assert_eq!(plain(memory.available_bytes), available);
            assert_eq!((memory.timestamp, memory.psi), (1, None));
        }
    }

    #[test]
    fn pressure_is_in_percent() {
        let psi = pressure(Pressure {
            some: Share {
                total_us: 3,
                avg10: 1234,
                avg60: 5,
                avg300: 10_000,
            },
            full: Share::default(),
        });
        let some = psi.some.unwrap();
        assert_eq!(
            (some.total, some.avg10, some.avg60, some.avg300),
            (3, 12.34, 0.05, 100.0)
        );
    }

    #[test]
    fn the_default_interface_is_not_told_twice() {
        let of = |name: &str, bytes| Interface {
            name: name.to_owned(),
            received: Traffic {
                bytes,
                ..Traffic::default()
            },
            ..Interface::default()
        };
        let told = network(&NetworkUsage {
            at: 9,
            default: Some(of("eth0", 5)),
            others: vec![of("net1", 6)],
        });
        assert_eq!(plain(told.default_interface.unwrap().rx_bytes), Some(5));
        assert_eq!(told.interfaces.len(), 1);
        assert_eq!(told.interfaces[0].name, "net1");
    }
}
