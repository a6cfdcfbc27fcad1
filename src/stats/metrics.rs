//! Metrics of pods and containers, under the names and labels that cAdvisor gave them.
//!
//! One table says what there is: every entry has a value for every container and for every pod as a
//! whole (whose labels `container` and `image` are empty, so that sums over containers stay right).
//! Traffic is counted for pods only, and not for those on the host's network, whose traffic is the
//! host's. What nothing limits is 0. The protocol has whole numbers only; seconds are cut.

use std::{path::Path, sync::Arc};

use crisp_oci::cgroup::Hierarchy;

use super::{
    Pressure, StatsError, blocking,
    pod::{self, Census},
    subject::{Context, Subject},
};
use crate::{container::Container, network::counters::Traffic, node::Node, sandbox::Sandbox};

/// The labels that every metric begins with: the control group, the id, the image and the names.
pub const LABELS: [&str; 6] = ["id", "name", "image", "namespace", "pod", "container"];

/// Whether a value only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It does.
    Counter,
    /// It may fall.
    Gauge,
}

/// What a host must have for a metric to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    Pressure,
    Hugepages,
}

/// One metric.
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// What it says.
    pub help: &'static str,
    /// Whether it only grows.
    pub kind: Kind,
    /// Labels after [`LABELS`].
    pub labels: &'static [&'static str],
    needs: Needs,
    read: fn(&Subject, &mut Emit<'_>),
}

/// One value of a metric.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Of which metric.
    pub name: &'static str,
    /// Whether it only grows.
    pub kind: Kind,
    /// When it was read, nanoseconds since the epoch.
    pub at: i64,
    /// Values of the labels, in the order of the metric.
    pub labels: Vec<String>,
    /// The value.
    pub value: u64,
}

/// The metrics of a pod.
#[derive(Clone)]
pub struct PodMetrics {
    /// Whose.
    pub sandbox: Arc<Sandbox>,
    /// Of the pod as a whole.
    pub samples: Vec<Sample>,
    /// Of each container that runs.
    pub containers: Vec<(Arc<Container>, Vec<Sample>)>,
}

/// Takes the values of one metric.
struct Emit<'a> {
    metric: &'static Metric,
    subject: &'a Subject,
    samples: &'a mut Vec<Sample>,
}

impl Emit<'_> {
    /// A value that may be unknown: then it is 0.
    fn one(&mut self, value: Option<u64>) {
        self.with(&[], value.unwrap_or(0));
    }

    /// A value with the metric's own labels.
    fn with(&mut self, labels: &[&str], value: u64) {
        let own = labels.iter().map(|label| (*label).to_owned());
        self.samples.push(Sample {
            name: self.metric.name,
            kind: self.metric.kind,
            at: self.subject.at,
            labels: self.subject.labels.iter().cloned().chain(own).collect(),
            value,
        });
    }
}

/// The metrics that this host can tell: always the same ones.
pub fn descriptors(node: &Node) -> impl Iterator<Item = &'static Metric> + use<> {
    let pressure = tells_pressure(&node.facts.cgroup);
    let hugepages = !node.host.hugepage_sizes.is_empty();
    METRICS.iter().filter(move |metric| match metric.needs {
        Needs::Nothing => true,
        Needs::Pressure => pressure,
        Needs::Hugepages => hugepages,
    })
}

/// Groups of the unified tree tell it, if the kernel keeps count.
fn tells_pressure(hierarchy: &Hierarchy) -> bool {
    let unified = match hierarchy {
        Hierarchy::V2 { .. } => true,
        Hierarchy::V1 { unified, .. } => unified.is_some(),
    };
    unified && Path::new("/proc/pressure/cpu").exists()
}

/// Of all pods that are ready. One that is stopped meanwhile is left out.
///
/// # Errors
/// Only when the daemon is ending.
pub async fn list(
    node: &Arc<Node>,
    sandboxes: Vec<Arc<Sandbox>>,
) -> Result<Vec<PodMetrics>, StatsError> {
    let node = Arc::clone(node);
    blocking(move || {
        let census = Census::take(&node);
        let mut context = Context::new(&node, &census);
        let wanted: Vec<&'static Metric> = descriptors(&node).collect();
        let pods = pod::read_all(&node, &census, &sandboxes);
        let metrics = pods.iter().map(|pod| {
            let containers: Vec<Subject> = pod
                .containers
                .iter()
                .map(|usage| Subject::container(&mut context, pod, usage))
                .collect();
            let whole = Subject::pod(&mut context, pod, &containers);
            let of = pod.containers.iter().zip(&containers);
            PodMetrics {
                sandbox: Arc::clone(&pod.sandbox),
                samples: samples(&wanted, &whole),
                containers: of
                    .map(|(usage, subject)| {
                        (Arc::clone(&usage.container), samples(&wanted, subject))
                    })
                    .collect(),
            }
        });
        metrics.collect()
    })
    .await
}

fn samples(wanted: &[&'static Metric], subject: &Subject) -> Vec<Sample> {
    let mut samples = Vec::with_capacity(wanted.len());
    for metric in wanted.iter().copied() {
        (metric.read)(
            subject,
            &mut Emit {
                metric,
                subject,
                samples: &mut samples,
            },
        );
    }
    samples
}

const fn metric(
    kind: Kind,
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
    read: fn(&Subject, &mut Emit<'_>),
) -> Metric {
    Metric {
        name,
        help,
        kind,
        labels,
        needs: Needs::Nothing,
        read,
    }
}

const fn counter(
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
    read: fn(&Subject, &mut Emit<'_>),
) -> Metric {
    metric(Kind::Counter, name, help, labels, read)
}

const fn gauge(
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
    read: fn(&Subject, &mut Emit<'_>),
) -> Metric {
    metric(Kind::Gauge, name, help, labels, read)
}

const fn pressure(
    name: &'static str,
    help: &'static str,
    read: fn(&Subject, &mut Emit<'_>),
) -> Metric {
    Metric {
        needs: Needs::Pressure,
        ..counter(name, help, &[], read)
    }
}

const fn hugepages(
    name: &'static str,
    help: &'static str,
    read: fn(&Subject, &mut Emit<'_>),
) -> Metric {
    Metric {
        needs: Needs::Hugepages,
        ..gauge(name, help, &["pagesize"], read)
    }
}

fn seconds(ns: Option<u64>) -> Option<u64> {
    ns.map(|ns| ns / 1_000_000_000)
}

fn stalled(pressure: Option<Pressure>) -> Option<u64> {
    pressure.map(|pressure| pressure.full.total_us / 1_000_000)
}

fn waiting(pressure: Option<Pressure>) -> Option<u64> {
    pressure.map(|pressure| pressure.some.total_us / 1_000_000)
}

fn received(of: &Subject, emit: &mut Emit<'_>, figure: fn(&Traffic) -> u64) {
    for interface in of.network.iter().flat_map(|network| network.all()) {
        emit.with(&[&interface.name], figure(&interface.received));
    }
}

fn sent(of: &Subject, emit: &mut Emit<'_>, figure: fn(&Traffic) -> u64) {
    for interface in of.network.iter().flat_map(|network| network.all()) {
        emit.with(&[&interface.name], figure(&interface.sent));
    }
}

/// Memory and swap together, as the protocol limits them.
fn memory_and_swap(of: &Subject) -> Option<u64> {
    let (memory, swap) = (of.group.memory_limit?, of.group.swap_limit?);
    Some(memory.saturating_add(swap))
}

/// Everything there is.
static METRICS: [Metric; 56] = [
    counter(
        "container_cpu_usage_seconds_total",
        "CPU time.",
        &["cpu"],
        |of, emit| emit.with(&["total"], seconds(of.group.cpu_usage_ns).unwrap_or(0)),
    ),
    counter(
        "container_cpu_user_seconds_total",
        "CPU time outside of the kernel.",
        &[],
        |of, emit| emit.one(seconds(of.details.cpu_user_ns)),
    ),
    counter(
        "container_cpu_system_seconds_total",
        "CPU time inside of the kernel.",
        &[],
        |of, emit| emit.one(seconds(of.details.cpu_system_ns)),
    ),
    counter(
        "container_cpu_cfs_periods_total",
        "Periods of the CPU quota in which something wanted to run.",
        &[],
        |of, emit| emit.one(of.details.cfs_periods),
    ),
    counter(
        "container_cpu_cfs_throttled_periods_total",
        "Periods in which the CPU quota was used up.",
        &[],
        |of, emit| emit.one(of.details.cfs_throttled_periods),
    ),
    counter(
        "container_cpu_cfs_throttled_seconds_total",
        "How long tasks were held back by the CPU quota.",
        &[],
        |of, emit| emit.one(seconds(of.details.cfs_throttled_ns)),
    ),
    gauge(
        "container_memory_usage_bytes",
        "Memory in use, page cache included.",
        &[],
        |of, emit| emit.one(of.group.memory_usage),
    ),
    gauge(
        "container_memory_working_set_bytes",
        "Memory in use without inactive page cache.",
        &[],
        |of, emit| emit.one(of.group.memory_working_set),
    ),
    gauge(
        "container_memory_rss",
        "Anonymous memory in bytes.",
        &[],
        |of, emit| emit.one(of.group.memory_rss),
    ),
    gauge(
        "container_memory_cache",
        "Page cache in bytes.",
        &[],
        |of, emit| emit.one(of.details.memory_cache),
    ),
    gauge(
        "container_memory_mapped_file",
        "Mapped files in bytes.",
        &[],
        |of, emit| emit.one(of.details.memory_mapped_file),
    ),
    gauge(
        "container_memory_kernel_usage",
        "Memory of the kernel's own in bytes.",
        &[],
        |of, emit| emit.one(of.details.memory_kernel),
    ),
    gauge(
        "container_memory_max_usage_bytes",
        "The most memory that was ever in use.",
        &[],
        |of, emit| emit.one(of.details.memory_peak),
    ),
    gauge(
        "container_memory_swap",
        "Swap in use in bytes.",
        &[],
        |of, emit| emit.one(of.group.swap_usage),
    ),
    counter(
        "container_memory_failcnt",
        "How often the memory limit was hit.",
        &[],
        |of, emit| emit.one(of.details.memory_limit_hits),
    ),
    counter(
        "container_memory_failures_total",
        "Page faults (pgfault), and those that waited for a device (pgmajfault).",
        &["failure_type", "scope"],
        |of, emit| {
            let (all, own) = (&of.group, &of.details);
            let mut fault = |kind, all: Option<u64>, own: Option<u64>| {
                emit.with(&[kind, "container"], own.or(all).unwrap_or(0));
                emit.with(&[kind, "hierarchy"], all.unwrap_or(0));
            };
            fault("pgfault", all.page_faults, own.own_page_faults);
            fault(
                "pgmajfault",
                all.major_page_faults,
                own.own_major_page_faults,
            );
        },
    ),
    counter(
        "container_oom_events_total",
        "Processes that the kernel killed for want of memory.",
        &[],
        |of, emit| emit.one(of.details.oom_kills),
    ),
    pressure(
        "container_pressure_cpu_waiting_seconds_total",
        "Time in which some task waited for CPU.",
        |of, emit| emit.one(waiting(of.group.cpu_pressure)),
    ),
    pressure(
        "container_pressure_cpu_stalled_seconds_total",
        "Time in which all tasks waited for CPU.",
        |of, emit| emit.one(stalled(of.group.cpu_pressure)),
    ),
    pressure(
        "container_pressure_memory_waiting_seconds_total",
        "Time in which some task waited for memory.",
        |of, emit| emit.one(waiting(of.group.memory_pressure)),
    ),
    pressure(
        "container_pressure_memory_stalled_seconds_total",
        "Time in which all tasks waited for memory.",
        |of, emit| emit.one(stalled(of.group.memory_pressure)),
    ),
    pressure(
        "container_pressure_io_waiting_seconds_total",
        "Time in which some task waited for devices.",
        |of, emit| emit.one(waiting(of.group.io_pressure)),
    ),
    pressure(
        "container_pressure_io_stalled_seconds_total",
        "Time in which all tasks waited for devices.",
        |of, emit| emit.one(stalled(of.group.io_pressure)),
    ),
    hugepages(
        "container_hugetlb_usage_bytes",
        "Hugepages in use.",
        |of, emit| {
            for pages in &of.details.hugepages {
                emit.with(&[&pages.size], pages.usage);
            }
        },
    ),
    hugepages(
        "container_hugetlb_max_usage_bytes",
        "The most hugepages that were ever in use.",
        |of, emit| {
            for pages in &of.details.hugepages {
                emit.with(&[&pages.size], pages.peak);
            }
        },
    ),
    counter(
        "container_network_receive_bytes_total",
        "Bytes received.",
        &["interface"],
        |of, emit| received(of, emit, |traffic| traffic.bytes),
    ),
    counter(
        "container_network_receive_packets_total",
        "Packets received.",
        &["interface"],
        |of, emit| received(of, emit, |traffic| traffic.packets),
    ),
    counter(
        "container_network_receive_errors_total",
        "Packets received with errors.",
        &["interface"],
        |of, emit| received(of, emit, |traffic| traffic.errors),
    ),
    counter(
        "container_network_receive_packets_dropped_total",
        "Packets to be received that were dropped.",
        &["interface"],
        |of, emit| received(of, emit, |traffic| traffic.dropped),
    ),
    counter(
        "container_network_transmit_bytes_total",
        "Bytes sent.",
        &["interface"],
        |of, emit| sent(of, emit, |traffic| traffic.bytes),
    ),
    counter(
        "container_network_transmit_packets_total",
        "Packets sent.",
        &["interface"],
        |of, emit| sent(of, emit, |traffic| traffic.packets),
    ),
    counter(
        "container_network_transmit_errors_total",
        "Packets sent with errors.",
        &["interface"],
        |of, emit| sent(of, emit, |traffic| traffic.errors),
    ),
    counter(
        "container_network_transmit_packets_dropped_total",
        "Packets to be sent that were dropped.",
        &["interface"],
        |of, emit| sent(of, emit, |traffic| traffic.dropped),
    ),
    counter(
        "container_fs_reads_bytes_total",
        "Bytes read from block devices.",
        &["device"],
        |of, emit| {
            for (device, io) in &of.io {
                emit.with(&[&device.name], io.read_bytes);
            }
        },
    ),
    counter(
        "container_fs_reads_total",
        "Reads of block devices.",
        &["device"],
        |of, emit| {
            for (device, io) in &of.io {
                emit.with(&[&device.name], io.reads);
            }
        },
    ),
    counter(
        "container_fs_writes_bytes_total",
        "Bytes written to block devices.",
        &["device"],
        |of, emit| {
            for (device, io) in &of.io {
                emit.with(&[&device.name], io.written_bytes);
            }
        },
    ),
    counter(
        "container_fs_writes_total",
        "Writes to block devices.",
        &["device"],
        |of, emit| {
            for (device, io) in &of.io {
                emit.with(&[&device.name], io.writes);
            }
        },
    ),
    counter(
        "container_blkio_device_usage_total",
        "Bytes read from and written to block devices.",
        &["device", "major", "minor", "operation"],
        |of, emit| {
            for (device, io) in &of.io {
                let (major, minor) = (device.major.to_string(), device.minor.to_string());
                emit.with(&[&device.name, &major, &minor, "Read"], io.read_bytes);
                emit.with(&[&device.name, &major, &minor, "Write"], io.written_bytes);
            }
        },
    ),
    gauge(
        "container_fs_usage_bytes",
        "What the writable layer takes on disk.",
        &["device"],
        |of, emit| emit.with(&[&of.disk.device.name], of.layer.bytes),
    ),
    gauge(
        "container_fs_limit_bytes",
        "Size of the file system that the writable layer lies on.",
        &["device"],
        |of, emit| emit.with(&[&of.disk.device.name], of.disk.bytes),
    ),
    gauge(
        "container_fs_inodes_total",
        "Inodes of the file system that the writable layer lies on.",
        &["device"],
        |of, emit| emit.with(&[&of.disk.device.name], of.disk.inodes),
    ),
    gauge(
        "container_fs_inodes_free",
        "Those of them that are free.",
        &["device"],
        |of, emit| emit.with(&[&of.disk.device.name], of.disk.inodes_free),
    ),
    gauge("container_processes", "Processes.", &[], |of, emit| {
        emit.one(Some(of.held.processes))
    }),
    gauge(
        "container_threads",
        "Tasks, threads among them.",
        &[],
        |of, emit| emit.one(of.group.pids),
    ),
    gauge(
        "container_threads_max",
        "Most tasks allowed; 0 is unlimited.",
        &[],
        |of, emit| emit.one(of.group.pids_limit),
    ),
    gauge(
        "container_file_descriptors",
        "Open descriptors of all processes.",
        &[],
        |of, emit| emit.one(Some(of.held.descriptors)),
    ),
    gauge(
        "container_sockets",
        "Open sockets of all processes.",
        &[],
        |of, emit| emit.one(Some(of.held.sockets)),
    ),
    gauge(
        "container_ulimits_soft",
        "Soft limits of the first process; 0 is unlimited.",
        &["ulimit"],
        |of, emit| emit.with(&["max_open_files"], of.open_files),
    ),
    gauge(
        "container_spec_cpu_period",
        "Microseconds of a period of the CPU quota.",
        &[],
        |of, emit| emit.one(of.details.cpu_period),
    ),
    gauge(
        "container_spec_cpu_quota",
        "Microseconds of CPU time in a period; 0 is unlimited.",
        &[],
        |of, emit| emit.one(of.details.cpu_quota),
    ),
    gauge(
        "container_spec_cpu_shares",
        "Weight of the CPU share.",
        &[],
        |of, emit| emit.one(of.details.cpu_shares),
    ),
    gauge(
        "container_spec_memory_limit_bytes",
        "Memory limit; 0 is unlimited.",
        &[],
        |of, emit| emit.one(of.group.memory_limit),
    ),
    gauge(
        "container_spec_memory_reservation_limit_bytes",
        "Memory kept under pressure; 0 is none.",
        &[],
        |of, emit| emit.one(of.details.memory_reservation),
    ),
    gauge(
        "container_spec_memory_swap_limit_bytes",
        "Limit of memory and swap together; 0 is unlimited.",
        &[],
        |of, emit| emit.one(memory_and_swap(of)),
    ),
    gauge(
        "container_start_time_seconds",
        "Since when it runs, seconds since the epoch.",
        &[],
        |of, emit| emit.one(seconds(u64::try_from(of.started_at).ok())),
    ),
    gauge(
        "container_last_seen",
        "When it was read, seconds since the epoch.",
        &[],
        |of, emit| emit.one(seconds(u64::try_from(of.at).ok())),
    ),
];

#[cfg(test)]
mod tests;
