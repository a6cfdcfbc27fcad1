use std::collections::BTreeSet;

use crisp_oci::cgroup::{DeviceIo, HugepageUse};

use super::*;
use crate::{
    network::counters::Interface,
    stats::{pod::NetworkUsage, subject::Device},
};

/// What cAdvisor tells, and the Kubernetes suite asks for.
const EXPECTED: &str = "blkio_device_usage_total cpu_cfs_periods_total cpu_cfs_throttled_periods_total \
    cpu_cfs_throttled_seconds_total cpu_system_seconds_total cpu_usage_seconds_total \
    cpu_user_seconds_total file_descriptors fs_inodes_free fs_inodes_total fs_limit_bytes \
    fs_reads_bytes_total fs_reads_total fs_usage_bytes fs_writes_bytes_total fs_writes_total \
    hugetlb_max_usage_bytes hugetlb_usage_bytes last_seen memory_cache memory_failcnt \
    memory_failures_total memory_kernel_usage memory_mapped_file memory_max_usage_bytes memory_rss \
    memory_swap memory_usage_bytes memory_working_set_bytes network_receive_bytes_total \
    network_receive_errors_total network_receive_packets_dropped_total \
    network_receive_packets_total network_transmit_bytes_total network_transmit_errors_total \
    network_transmit_packets_dropped_total network_transmit_packets_total oom_events_total \
    pressure_cpu_stalled_seconds_total pressure_cpu_waiting_seconds_total \
    pressure_io_stalled_seconds_total pressure_io_waiting_seconds_total \
    pressure_memory_stalled_seconds_total pressure_memory_waiting_seconds_total processes sockets \
    spec_cpu_period spec_cpu_quota spec_cpu_shares spec_memory_limit_bytes \
    spec_memory_reservation_limit_bytes spec_memory_swap_limit_bytes start_time_seconds threads \
    threads_max ulimits_soft";

/// A pod of which nothing is known but that it has an interface and a disk.
fn bare() -> Subject {
    Subject {
        labels: LABELS.map(|label| format!("a {label}")).to_vec(),
        at: 5_000_000_000,
        io: vec![(Device::default(), DeviceIo::default())],
        network: Some(NetworkUsage {
            default: Some(Interface {
                name: "eth0".to_owned(),
                ..Interface::default()
            }),
            ..NetworkUsage::default()
        }),
        details: crisp_oci::cgroup::Details {
            hugepages: vec![HugepageUse {
                size: "2MB".to_owned(),
                ..HugepageUse::default()
            }],
            ..crisp_oci::cgroup::Details::default()
        },
        ..Subject::default()
    }
}

fn all() -> Vec<&'static Metric> {
    METRICS.iter().collect()
}

#[test]
fn the_names_are_those_that_tools_know() {
    let ours: BTreeSet<&str> = METRICS.iter().map(|metric| metric.name).collect();
    let expected: Vec<String> = EXPECTED
        .split_whitespace()
        .map(|name| format!("container_{name}"))
        .collect();
    assert_eq!(ours.len(), METRICS.len(), "a name occurs twice");
    assert_eq!(ours, expected.iter().map(String::as_str).collect());
    assert_eq!(ours.len(), 56);
}

#[test]
fn every_metric_has_a_sample_with_all_its_labels_though_nothing_is_known() {
    let samples = samples(&all(), &bare());
    for metric in &METRICS {
        let of: Vec<&Sample> = samples
            .iter()
            .filter(|sample| sample.name == metric.name)
            .collect();
        assert!(!of.is_empty(), "{} has no sample", metric.name);
        for sample in of {
            assert_eq!(
                sample.labels.len(),
                LABELS.len() + metric.labels.len(),
                "{sample:?}"
            );
        }
        assert!(metric.help.ends_with('.') && metric.name.starts_with("container_"));
    }
}

#[test]
fn no_two_samples_have_the_same_name_and_labels() {
    let samples = samples(&all(), &bare());
    let different: BTreeSet<(&str, &[String])> = samples
        .iter()
        .map(|sample| (sample.name, sample.labels.as_slice()))
        .collect();
    assert_eq!(different.len(), samples.len());
}

#[test]
fn values_are_in_the_units_of_their_names() {
    let mut subject = bare();
    subject.group.cpu_usage_ns = Some(2_999_999_999);
    subject.group.memory_limit = Some(64);
    subject.group.swap_limit = Some(36);
    subject.group.cpu_pressure = Some(Pressure {
        some: super::super::Share {
            total_us: 7_900_000,
            ..super::super::Share::default()
        },
        ..Pressure::default()
    });
    let samples = samples(&all(), &subject);
    let value = |name: &str| {
        let sample = samples.iter().find(|sample| sample.name == name);
        sample.map(|sample| sample.value)
    };
    for (name, expected) in [
        ("container_cpu_usage_seconds_total", 2),
        ("container_spec_memory_swap_limit_bytes", 100),
        ("container_pressure_cpu_waiting_seconds_total", 7),
        ("container_pressure_cpu_stalled_seconds_total", 0),
        ("container_last_seen", 5),
    ] {
        assert_eq!(value(name), Some(expected), "{name}");
    }
}
