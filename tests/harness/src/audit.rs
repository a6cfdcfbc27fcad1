//! The host before and after: everything a pod may leave behind, as a set of lines that can be
//! compared.

use std::{collections::BTreeSet, fs, path::Path, time::Duration};

use crate::{daemon::Daemon, site};

/// What is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    lines: BTreeSet<String>,
    /// Open descriptors of the daemon.
    pub descriptors: usize,
}

impl Snapshot {
    /// Looks at the host and at the daemon's directories.
    #[must_use]
    pub fn take(daemon: &Daemon) -> Self {
        let mut lines = BTreeSet::new();
        processes(daemon, &mut lines);
        mounts(daemon.site().dir(), &mut lines);
        listing(Path::new("/run/netns"), "netns", 1, &mut lines);
        forget_neighbours(daemon.site().dir(), &mut lines);
        cgroups(
            Path::new("/sys/fs/cgroup"),
            daemon.site().name(),
            0,
            &mut lines,
        );
        interfaces(daemon.site().name(), &mut lines);
        listing(&daemon.site().leases(), "lease", 1, &mut lines);
        directories(daemon, &mut lines);
        lines.retain(|line| !line.contains("last_reserved_ip") && !line.ends_with("/lock"));
        let descriptors =
            fs::read_dir(format!("/proc/{}/fd", daemon.pid())).map_or(0, Iterator::count);
        Self { lines, descriptors }
    }

    /// What is there now and was not before, and the other way round.
    #[must_use]
    pub fn difference(&self, before: &Self) -> Vec<String> {
        let mut difference: Vec<String> = self
            .lines
            .difference(&before.lines)
            .map(|line| format!("left: {line}"))
            .collect();
        if self.descriptors > before.descriptors {
            difference.push(format!(
                "left: {} descriptors, {} before",
                self.descriptors, before.descriptors
            ));
        }
        difference
    }
}

/// Waits until nothing is left that was not there before; what still is, if `limit` ends first.
/// Work that goes on in the background (a retried DEL, a group that empties) has until then.
pub async fn settled(daemon: &Daemon, before: &Snapshot, limit: Duration) -> Vec<String> {
    let deadline = tokio::time::Instant::now() + limit;
    loop {
        let difference = Snapshot::take(daemon).difference(before);
        if difference.is_empty() || tokio::time::Instant::now() > deadline {
            return difference;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The helpers of the daemon, its children, and whatever runs in this site's groups.
fn processes(daemon: &Daemon, lines: &mut BTreeSet<String>) {
    let (own, site) = (std::process::id(), daemon.site());
    for pid in site::pids()
        .into_iter()
        .filter(|&pid| pid != own && pid != daemon.pid())
    {
        let read = |file: &str| {
            fs::read(format!("/proc/{pid}/{file}"))
                .map(|text| String::from_utf8_lossy(&text).into_owned())
                .unwrap_or_default()
        };
        let name = site::program_of(pid);
        let helper = matches!(
            name.as_str(),
            "conmon-rs" | "crisp-pause" | "crisp-oci" | "containerd-shim-runc-v2"
        );
        let child = read("stat")
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.split(' ').nth(1).map(str::to_owned))
            == Some(daemon.pid().to_string());
        let here = || read("cmdline").contains(&*site.dir().to_string_lossy());
        let ours = helper && (here() || holds_file_in(pid, site.dir()));
        if ours || child || read("cgroup").contains(&format!("/{}", site.name())) {
            lines.insert(format!("process {pid} {name}"));
        }
    }
}

/// Whether a process has a file of a directory open: a monitor has its messages in its container's.
fn holds_file_in(pid: u32, dir: &Path) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten();
    descriptors
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .any(|target| target.starts_with(dir))
}

/// Takes out the network namespaces of other sites: other rings may run on this host.
fn forget_neighbours(dir: &Path, lines: &mut BTreeSet<String>) {
    let sites = dir.parent().and_then(|base| fs::read_dir(base).ok());
    for site in sites.into_iter().flatten().flatten() {
        if site.path() == dir {
            continue;
        }
        for part in ["root/sandboxes", "state/sandboxes"] {
            let pods = fs::read_dir(site.path().join(part)).into_iter().flatten();
            for pod in pods.flatten() {
                let id = pod.file_name().to_string_lossy().into_owned();
                if let Some(short) = id.get(..13) {
                    lines.retain(|line| !line.contains(&format!("/crisp-{short}")));
                }
            }
        }
    }
}

fn mounts(dir: &Path, lines: &mut BTreeSet<String>) {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for point in text.lines().filter_map(|line| line.split(' ').nth(4)) {
        if Path::new(point).starts_with(dir) || point.starts_with("/run/netns") {
            lines.insert(format!("mount {point}"));
        }
    }
}

fn cgroups(dir: &Path, name: &str, depth: u8, lines: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
    {
        let path = entry.path();
        let inside = path.to_string_lossy().contains(&format!("/{name}/"));
        if inside {
            lines.insert(format!("cgroup {}", path.display()));
        }
        if depth < 8 {
            cgroups(&path, name, depth + 1, lines);
        }
    }
}

/// What hangs on the site's bridge.
fn interfaces(bridge: &str, lines: &mut BTreeSet<String>) {
    listing(
        &Path::new("/sys/class/net").join(bridge).join("brif"),
        "interface",
        1,
        lines,
    );
}

/// Everything per pod that the daemon keeps on disk. What grows by design (images, layers, the
/// store's own files) is left out; the store's records are compared by the lists it answers.
fn directories(daemon: &Daemon, lines: &mut BTreeSet<String>) {
    for base in [daemon.root(), daemon.state()] {
        for part in ["containers", "sandboxes", "staging", "network"] {
            listing(&base.join(part), "directory", 3, lines);
        }
    }
}

fn listing(dir: &Path, what: &str, depth: u8, lines: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        lines.insert(format!("{what} {}", path.display()));
        if depth > 1 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            listing(&path, what, depth - 1, lines);
        }
    }
}
