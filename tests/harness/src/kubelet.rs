//! A real kubelet in standalone mode over a daemon under test: static pods from a directory of its
//! own, ports, cgroup root and node name of its own, and the removal of what it leaves on the host.

use std::{
    fs,
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    daemon::Daemon,
    process::{Process, until},
    tools,
};

/// What kubelet writes where every kubelet of the host does, whatever its directories are.
const HOME: &str = "/var/lib/kubelet";
const LINKS: &str = "/var/log/containers";

/// What kubelet sets for the whole host as it starts.
const SYSCTLS: [&str; 6] = [
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];

/// A kubelet. Dropping it ends it; the containers stay for the daemon's site to remove. Drop it
/// before its daemon.
#[derive(Debug)]
pub struct Kubelet {
    program: PathBuf,
    dir: PathBuf,
    name: String,
    endpoint: String,
    port: u16,
    read_only_port: u16,
    settings: Value,
    cluster: bool,
    process: Option<Process>,
    sysctls: Vec<(PathBuf, String)>,
}

impl Kubelet {
    /// Prepares one for a daemon; it is not started yet. `settings` are keys of its configuration
    /// that override those here.
    ///
    /// # Errors
    /// When the tool does not come or a directory cannot be made.
    pub fn new(daemon: &Daemon, settings: Value) -> io::Result<Self> {
        let program = tools::program("kubelet", "kubelet")?;
        let dir = daemon.site().dir().join("kubelet");
        for part in ["root", "pods", "logs", "host", "plugins", "pki"] {
            fs::create_dir_all(dir.join(part))?;
        }
        make_cgroups(daemon.site().name())?;
        let read = |name: &&str| {
            let path = Path::new("/proc/sys").join(name);
            fs::read_to_string(&path).ok().map(|value| (path, value))
        };
        Ok(Self {
            program,
            dir,
            name: daemon.site().name().to_owned(),
            endpoint: daemon.endpoint(),
            port: free_port()?,
            read_only_port: free_port()?,
            settings,
            cluster: false,
            process: None,
            sysctls: SYSCTLS.iter().filter_map(read).collect(),
        })
    }

    /// Replaces the overriding keys; the next start reads them.
    pub fn configure(&mut self, settings: Value) {
        self.settings = settings;
    }

    /// Whether the next start believes in an API server (which never answers), as on a machine whose
    /// control plane is to run as static pods: some volumes are refused without one.
    pub fn in_cluster(&mut self, cluster: bool) {
        self.cluster = cluster;
    }

    /// Its directory; `host` below it is for what pods mount from the host.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where it writes containers' logs.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    /// Its own log.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.dir.join("kubelet.log")
    }

    /// The name it gives to a static pod.
    #[must_use]
    pub fn pod_name(&self, name: &str) -> String {
        format!("{name}-{}", self.name)
    }

    /// The address of its server with TLS: `https://127.0.0.1:PORT`.
    #[must_use]
    pub fn server(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// Starts it and waits until it answers; how the last start of this directory ended does not
    /// matter.
    ///
    /// # Errors
    /// With the end of its log, when it does not answer within a minute.
    pub fn start(&mut self) -> io::Result<()> {
        let config = self.dir.join("kubelet.json");
        fs::write(&config, format!("{:#}", self.configuration()))?;
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(&config);
        command.arg("--root-dir").arg(self.dir.join("root"));
        command.arg("--cert-dir").arg(self.dir.join("pki"));
        command.args(["--hostname-override", &self.name, "--v=2"]);
        if self.cluster {
            command.arg("--kubeconfig").arg(self.write_kubeconfig()?);
        }
        let mut process = Process::start(&mut command, &self.log())?;
        let mut ended = false;
        let served = until(Duration::from_secs(60), || {
            ended = process.exited().is_ok_and(|status| status.is_some());
            ended || self.get("/pods").is_ok()
        });
        if !served || ended {
            return Err(io::Error::other(format!(
                "kubelet does not serve:\n{}",
                process.log_tail()
            )));
        }
        self.process = Some(process);
        Ok(())
    }

    /// SIGTERM; it leaves its containers running.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn stop(&mut self) -> io::Result<()> {
        let process = self.process.take();
        process.map_or(Ok(()), |mut process| {
            process.stop(Duration::from_secs(10)).map(drop)
        })
    }

    /// Puts a pod into its directory, whole at once.
    ///
    /// # Errors
    /// When it cannot be written.
    ///
    /// # Panics
    /// When the pod has no name.
    pub fn manifest(&self, pod: &Value) -> io::Result<()> {
        let name = pod["metadata"]["name"].as_str().expect("a pod has a name");
        let fresh = self.dir.join(format!("{name}.json"));
        fs::write(&fresh, format!("{pod:#}"))?;
        fs::rename(fresh, self.manifest_path(name))
    }

    /// Takes a pod out of its directory.
    ///
    /// # Errors
    /// When it is not there.
    pub fn withdraw(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.manifest_path(name))
    }

    fn manifest_path(&self, name: &str) -> PathBuf {
        self.dir.join("pods").join(format!("{name}.json"))
    }

    /// GET on its read-only port.
    ///
    /// # Errors
    /// When it does not answer, or not with 200.
    pub fn get(&self, path: &str) -> io::Result<String> {
        get(self.read_only_port, path)
    }

    /// A static pod as its /pods shows it.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn pod(&self, name: &str) -> io::Result<Option<Value>> {
        let mut list: Value = serde_json::from_str(&self.get("/pods")?)?;
        let wanted = self.pod_name(name);
        let pods = list["items"]
            .as_array_mut()
            .map(std::mem::take)
            .unwrap_or_default();
        Ok(pods
            .into_iter()
            .find(|pod| pod["metadata"]["name"] == wanted.as_str()))
    }

    fn write_kubeconfig(&self) -> io::Result<PathBuf> {
        let path = self.dir.join("kubeconfig");
        let config = json!({
            "kind": "Config",
            "apiVersion": "v1",
            "current-context": "none",
            "contexts": [{ "name": "none", "context": { "cluster": "none", "user": "none" } }],
            "clusters": [{ "name": "none", "cluster": { "server": "http://127.0.0.1:9" } }],
            "users": [{ "name": "none", "user": {} }],
        });
        fs::write(&path, config.to_string())?;
        Ok(path)
    }

    fn configuration(&self) -> Value {
        let mut config = json!({
            "kind": "KubeletConfiguration",
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "authentication": { "anonymous": { "enabled": true }, "webhook": { "enabled": false } },
            "authorization": { "mode": "AlwaysAllow" },
            "address": "127.0.0.1",
            "port": self.port,
            "readOnlyPort": self.read_only_port,
            "healthzPort": 0,
            "containerRuntimeEndpoint": self.endpoint,
            "imageServiceEndpoint": self.endpoint,
            "staticPodPath": self.dir.join("pods"),
            "podLogsDir": self.logs(),
            "volumePluginDir": self.dir.join("plugins"),
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": format!("/{}", self.name),
            "enforceNodeAllocatable": ["pods"],
            // The host of a test may be on cgroup v1, have swap, and lack CAP_SYS_RESOURCE.
            "failCgroupV1": false,
            "failSwapOn": false,
            "oomScoreAdj": 0,
            "makeIPTablesUtilChains": false,
            // A full disk of the test machine is no reason to evict pods.
            "evictionHard": {
                "memory.available": "1Mi", "nodefs.available": "0%", "imagefs.available": "0%",
                "nodefs.inodesFree": "0%", "imagefs.inodesFree": "0%",
            },
            "imageGCHighThresholdPercent": 100,
            "maxPods": 200,
        });
        if let (Some(all), Some(own)) = (config.as_object_mut(), self.settings.as_object()) {
            all.extend(own.clone());
        }
        config
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        let _ended = self.stop();
        for (path, value) in &self.sysctls {
            let _unchanged = fs::write(path, value);
        }
        remove_links(&self.dir);
        // A kubelet that is the host's own has more there.
        let only_plugins = |entry: fs::DirEntry| entry.file_name() == "device-plugins";
        if fs::read_dir(HOME).is_ok_and(|mut all| all.all(|entry| entry.is_ok_and(only_plugins))) {
            let _left = fs::remove_dir_all(HOME);
        }
    }
}

/// kubelet links every log from one directory of the host. Ours go, and those that a killed test
/// left pointing nowhere; the directory too if nothing else is in it.
fn remove_links(dir: &Path) {
    let sites = dir.ancestors().nth(2).unwrap_or(dir);
    for entry in fs::read_dir(LINKS).into_iter().flatten().flatten() {
        let ours = |target: PathBuf| {
            target.starts_with(dir) || target.starts_with(sites) && !target.exists()
        };
        if fs::read_link(entry.path()).is_ok_and(ours) {
            let _gone = fs::remove_file(entry.path());
        }
    }
    let _not_empty = fs::remove_dir(LINKS);
}

/// kubelet wants its root in every hierarchy before it starts. The name is the site's, which
/// removes what is named after it.
fn make_cgroups(name: &str) -> io::Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    for line in mounts.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        if let [_, point, kind, ..] = words[..]
            && matches!(kind, "cgroup" | "cgroup2")
        {
            fs::create_dir_all(Path::new(point).join(name))?;
            copy_cpuset(Path::new(point), name);
        }
    }
    Ok(())
}

/// An empty cpuset of the first version takes no process.
fn copy_cpuset(point: &Path, name: &str) {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if let Ok(value) = fs::read_to_string(point.join(file)) {
            let _version_two = fs::write(point.join(name).join(file), value.trim());
        }
    }
}

fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// GET on a loopback port; the body of a 200.
///
/// # Errors
/// When nothing answers within ten seconds, or something else than 200.
pub fn get(port: u16, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    // The older version has no chunks to put together.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .ok_or_else(|| io::Error::other(format!("no answer to GET {path}")))?;
    let status = head.lines().next().unwrap_or_default();
    if !status.contains(" 200 ") && !status.ends_with(" 200") {
        return Err(io::Error::other(format!("GET {path}: {status}: {body}")));
    }
    Ok(body.to_owned())
}
