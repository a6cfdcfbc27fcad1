//! A site: the directory, bridge, subnet and cgroup parent that one daemon under test has to
//! itself, and the removal of all that, also of what a crashed run left.

use std::{
    collections::BTreeSet,
    fs,
    hash::{BuildHasher, RandomState},
    io,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use nix::{
    mount::{MntFlags, umount2},
    sys::signal::Signal,
};
use serde_json::json;

use crate::process::{kill_pid, run, until};

/// Everything named after one daemon under test.
#[derive(Debug)]
pub struct Site {
    dir: PathBuf,
    name: String,
    subnet: String,
    keep: bool,
}

/// Where sites lie: a real file system (overlay cannot lie on overlay), short enough for socket
/// paths.
fn base() -> PathBuf {
    std::env::var_os("CRISP_TEST_DIR")
        .map_or_else(|| PathBuf::from("/var/tmp/crisp-tests"), PathBuf::from)
}

impl Site {
    /// Makes a new one, after removing those whose owner died.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn new() -> io::Result<Self> {
        let base = base();
        fs::create_dir_all(&base)?;
        sweep(&base);
        let (name, subnet) = free_name(&base)?;
        let dir = base.join(&name);
        fs::create_dir(&dir)?;
        fs::write(
            dir.join("owner"),
            format!(
                "{} {}",
                std::process::id(),
                start_time(std::process::id()).unwrap_or(0)
            ),
        )?;
        Ok(Self {
            dir,
            name,
            subnet,
            keep: std::env::var_os("CRISP_TEST_KEEP").is_some(),
        })
    }

    /// Its directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its name: that of the bridge and of the CNI network, unique on the host.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The cgroup parent that pods of this site ask for.
    #[must_use]
    pub fn cgroup_parent(&self) -> String {
        format!("/{}", self.name)
    }

    /// Where the address leases of its pods lie, one file an address.
    #[must_use]
    pub fn leases(&self) -> PathBuf {
        self.dir.join("cni-leases").join(&self.name)
    }

    /// Writes the CNI configuration (bridge and portmap) and returns its directory.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_cni(&self) -> io::Result<PathBuf> {
        let dir = self.dir.join("net.d");
        fs::create_dir_all(&dir)?;
        let list = json!({
            "cniVersion": "1.0.0",
            "name": self.name,
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": self.name,
                    "isGateway": true,
                    "ipMasq": true,
                    "ipam": {
                        "type": "host-local",
                        "ranges": [[{ "subnet": self.subnet }]],
                        "routes": [{ "dst": "0.0.0.0/0" }],
                        "dataDir": self.dir.join("cni-leases"),
                    },
                },
                { "type": "portmap", "capabilities": { "portMappings": true }, "snat": true },
            ],
        });
        fs::write(dir.join("10-test.conflist"), format!("{list:#}\n"))?;
        Ok(dir)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        remove(&self.dir, &self.name);
    }
}

/// A name and a /24 that nothing on the host has.
fn free_name(base: &Path) -> io::Result<(String, String)> {
    let taken = run(Command::new("ip").args(["-4", "route", "show", "table", "all"]))?;
    for attempt in 0..64_u64 {
        let random = RandomState::new().hash_one((std::process::id(), attempt));
        let name = format!("ct{:08x}", random & 0xffff_ffff);
        let subnet = format!("10.{}.{}.", 200 + (random >> 32) % 50, (random >> 40) % 256);
        if !taken.contains(&subnet)
            && !base.join(&name).exists()
            && !Path::new("/sys/class/net").join(&name).exists()
        {
            return Ok((name, format!("{subnet}0/24")));
        }
    }
    Err(io::Error::other(
        "no free subnet in 10.200.0.0 to 10.249.255.0",
    ))
}

/// Field 22 of /proc/PID/stat: with the pid it names a process for good.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

/// Removes the sites whose owner is gone.
fn sweep(base: &Path) {
    let Ok(sites) = fs::read_dir(base) else {
        return;
    };
    for dir in sites.flatten().map(|entry| entry.path()) {
        let name = dir
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        // One without an owner file is being made, or was hardly made: it holds nothing yet.
        let Ok(owner) = fs::read_to_string(dir.join("owner")) else {
            continue;
        };
        let mut words = owner.split(' ');
        let pid = words.next().and_then(|word| word.parse().ok());
        let started = words.next().and_then(|word| word.parse().ok());
        let alive = pid.is_some_and(|pid| started.is_some() && start_time(pid) == started);
        if !alive && name.starts_with("ct") {
            remove(&dir, &name);
        }
    }
}

/// Ends and removes everything of a site. Errors are not the caller's: what cannot be removed now
/// stays for the next sweep.
fn remove(dir: &Path, name: &str) {
    let ids = ids(dir);
    let belongs = |pid: u32| belongs_to(pid, dir, name, &ids);
    // Twice over: a daemon that is killed first makes no new children.
    until(Duration::from_secs(10), || {
        let alive: Vec<u32> = pids().into_iter().filter(|&pid| belongs(pid)).collect();
        for &pid in &alive {
            let _gone = kill_pid(pid, Signal::SIGKILL);
        }
        alive.is_empty()
    });
    unmount(dir, &ids);
    remove_cgroups(Path::new("/sys/fs/cgroup"), name, &ids, 0);
    remove_rules(name);
    let _none = Command::new("ip")
        .args(["link", "delete", name])
        .stderr(std::process::Stdio::null())
        .status();
    let _left = fs::remove_dir_all(dir);
}

/// Ids of sandboxes and containers that the daemon's directories name (ours or containerd's).
fn ids(dir: &Path) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    collect_ids(dir, 0, &mut ids);
    ids
}

fn collect_ids(dir: &Path, depth: u8, ids: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        // An image's blobs are hex too, but files, and deeper.
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        if name.len() >= 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            ids.insert(name);
        } else if depth < 4 && name != "registry" && name != "layers" {
            collect_ids(&entry.path(), depth + 1, ids);
        }
    }
}

/// All processes of the host.
#[must_use]
pub fn pids() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// What a process calls itself: the file name of its first argument, else the kernel's name for it.
/// The latter alone would not do: programs that are executed from a sealed copy or a descriptor are
/// named after that.
#[must_use]
pub fn program_of(pid: u32) -> String {
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let first = command.split(|&byte| byte == 0).next().unwrap_or_default();
    let first = String::from_utf8_lossy(first).into_owned();
    match first.rsplit('/').next().filter(|name| !name.is_empty()) {
        Some(name) => name.to_owned(),
        None => fs::read_to_string(format!("/proc/{pid}/comm"))
            .unwrap_or_default()
            .trim()
            .to_owned(),
    }
}

/// By command line, by executable, or by cgroup; never the test itself.
fn belongs_to(pid: u32, dir: &Path, name: &str, ids: &BTreeSet<String>) -> bool {
    if pid == std::process::id() {
        return false;
    }
    let read = |file: &str| {
        fs::read(format!("/proc/{pid}/{file}"))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    };
    let status = read("stat");
    if status
        .rsplit_once(") ")
        .is_some_and(|(_, rest)| rest.starts_with('Z'))
    {
        return false;
    }
    let exe = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    let text = dir.to_string_lossy();
    let command = read("cmdline");
    let ours = command
        .split('\0')
        .any(|word| ids.contains(word) || word.contains(&*text));
    let cgroup = read("cgroup");
    let grouped = cgroup.contains(&format!("/{name}"))
        || cgroup.split(['/', '\n']).any(|part| ids.contains(part));
    ours || exe.starts_with(dir) || grouped
}

/// Detaches mounts below the directory and network namespaces named after the ids, newest first.
fn unmount(dir: &Path, ids: &BTreeSet<String>) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points: Vec<PathBuf> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .collect();
    for point in points.iter().rev() {
        let file = point.file_name().unwrap_or_default().to_string_lossy();
        let netns = point.starts_with("/run/netns")
            && file
                .strip_prefix("crisp-")
                .is_some_and(|short| ids.iter().any(|id| id.starts_with(short)));
        if point.starts_with(dir) || netns {
            let _gone = umount2(point, MntFlags::MNT_DETACH);
        }
        if netns {
            let _gone = fs::remove_file(point);
        }
    }
}

/// Removes the cgroups named after the site or after its ids, children first, in every hierarchy.
fn remove_cgroups(dir: &Path, name: &str, ids: &BTreeSet<String>, depth: u8) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
    {
        let file = entry.file_name().to_string_lossy().into_owned();
        if file == name || ids.contains(&file) || ids.iter().any(|id| file.contains(id.as_str())) {
            remove_tree(&entry.path());
        } else if depth < 6 {
            remove_cgroups(&entry.path(), name, ids, depth + 1);
        }
    }
}

fn remove_tree(dir: &Path) {
    if let Ok(entries) = fs::read_dir(dir) {
        for entry in entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        {
            remove_tree(&entry.path());
        }
    }
    let _busy = fs::remove_dir(dir);
}

/// Removes the NAT rules whose comment names the network, with the chains they jump to.
fn remove_rules(network: &str) {
    for program in ["iptables", "ip6tables"] {
        let Ok(rules) = run(Command::new(program).args(["-t", "nat", "-S"])) else {
            continue;
        };
        for rule in rules
            .lines()
            .filter(|rule| rule.starts_with("-A ") && rule.contains(network))
        {
            let delete = format!("{program} -w 10 -t nat {}", rule.replacen("-A", "-D", 1));
            let _gone = run(Command::new("sh").args(["-c", &delete]));
            if let Some(chain) = rule
                .split_once(" -j CNI-")
                .and_then(|(_, rest)| rest.split(' ').next())
            {
                let chain = format!("CNI-{chain}");
                let _gone =
                    run(Command::new(program).args(["-w", "10", "-t", "nat", "-F", &chain]));
                let _gone =
                    run(Command::new(program).args(["-w", "10", "-t", "nat", "-X", &chain]));
            }
        }
    }
}
