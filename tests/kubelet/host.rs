//! The node under test: a daemon, a kubelet over it, a CRI client to look behind it, the peer.

use std::{
    fmt,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use crisp_harness::{
    cri::v1::{ContainerState, ListPodSandboxRequest, PodSandboxState},
    crictl::runtime_under_test,
    daemon::{Daemon, Kind},
    kubelet::Kubelet,
    peer::Peer,
    pods::Pods,
    registry::Registry,
    suite::{self, BUSYBOX},
};
use serde_json::{Value, json};

use crate::manifest::WEB;

/// Why an item fails.
pub struct Failure(String);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

/// What was seen, or why not.
pub type Seen = Result<String, Failure>;

/// A failure in words.
pub fn fail<T>(why: impl Into<String>) -> Result<T, Failure> {
    Err(Failure(why.into()))
}

/// Fails with `why` unless it is so.
pub fn expect(so: bool, why: impl Into<String>) -> Result<(), Failure> {
    if so { Ok(()) } else { fail(why) }
}

/// Longest a pod may take for anything; generous, since several build on the machine.
pub const LIMIT: Duration = Duration::from_secs(60);

/// The node.
pub struct Host {
    // In this order they end.
    pub kubelet: Kubelet,
    pub pods: Pods,
    pub daemon: Daemon,
    pub peer: Peer,
    pub runtime: tokio::runtime::Runtime,
    /// A free port of the host.
    pub port: u16,
    _registry: Registry,
}

/// The settings of kubelet that the items need.
pub fn settings() -> Value {
    json!({
        "featureGates": { "PodAndContainerStatsFromCRI": true },
        "containerLogMaxSize": "64Ki",
        "containerLogMaxFiles": 4,
        "containerLogMonitorInterval": "3s",
        "crashLoopBackOff": { "maxContainerRestartPeriod": "3s" },
        "podPidsLimit": 100,
    })
}

impl Host {
    /// The runtime that `CRISP_TEST_RUNTIME` names, with the images in it.
    pub fn start() -> Result<Self, Failure> {
        Self::of(runtime_under_test(), settings())
    }

    /// A runtime with a kubelet of these settings.
    pub fn of(kind: Kind, settings: Value) -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let peer = Peer::new()?;
        let registry = suite::registry()?;
        let mut daemon = Daemon::new(kind, &registry.url(), None)?;
        runtime.block_on(daemon.start())?;
        let pods = runtime.block_on(Pods::connect(&daemon))?;
        for image in [BUSYBOX, WEB] {
            runtime.block_on(pods.pull(image))?;
        }
        let port = std::net::TcpListener::bind("127.0.0.1:0")?
            .local_addr()?
            .port();
        let mut kubelet = Kubelet::new(&daemon, settings)?;
        kubelet.start()?;
        Ok(Self {
            kubelet,
            pods,
            daemon,
            peer,
            runtime,
            port,
            _registry: registry,
        })
    }

    /// Starts the daemon again after it ended, and connects anew.
    pub fn daemon_again(&mut self) -> Result<Duration, Failure> {
        let took = self.runtime.block_on(self.daemon.start())?;
        self.pods = self.runtime.block_on(Pods::connect(&self.daemon))?;
        Ok(took)
    }

    /// A directory of the host for pods to mount, of this name.
    pub fn shared(&self, name: &str) -> PathBuf {
        self.kubelet.dir().join("host").join(name)
    }

    /// A static pod as kubelet shows it now.
    pub fn pod(&self, name: &str) -> Result<Value, Failure> {
        self.kubelet
            .pod(name)?
            .map_or_else(|| fail(format!("kubelet has no pod {name}")), Ok)
    }

    /// Waits until a pod is as wanted.
    pub fn wait(
        &self,
        name: &str,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value, Failure> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let pod = self.kubelet.pod(name).ok().flatten().unwrap_or_default();
            if wanted(&pod) {
                return Ok(pod);
            }
            if Instant::now() > deadline {
                return fail(format!(
                    "{name} is not {what} after {LIMIT:?}: {}",
                    pod["status"]
                ));
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until a pod is Ready.
    pub fn ready(&self, name: &str) -> Result<Value, Failure> {
        self.wait(name, "Ready", is_ready)
    }

    /// Withdraws a pod and waits until nothing of it runs; how long that took. (kubelet shows it no
    /// more at once, and ends it then.)
    pub fn end(&self, name: &str) -> Result<Duration, Failure> {
        let began = Instant::now();
        self.kubelet.withdraw(name)?;
        let pod = self.kubelet.pod_name(name);
        let runs = || -> Result<bool, Failure> {
            let containers = self.runtime.block_on(self.pods.containers())?;
            let running = containers.iter().any(|one| {
                one.state() == ContainerState::ContainerRunning
                    && one.labels.get("io.kubernetes.pod.name") == Some(&pod)
            });
            let mut client = self.pods.cri.runtime.clone();
            let list = client.list_pod_sandbox(ListPodSandboxRequest::default());
            let list = self.runtime.block_on(list)?.into_inner().items;
            let ready = list.iter().any(|one| {
                one.state() == PodSandboxState::SandboxReady
                    && one
                        .metadata
                        .as_ref()
                        .is_some_and(|metadata| metadata.name == pod)
            });
            Ok(running || ready)
        };
        while runs()? {
            if began.elapsed() > LIMIT {
                return fail(format!("{name} still runs after {LIMIT:?}"));
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(began.elapsed())
    }

    /// The id of a running container of a pod.
    pub fn id(&self, pod: &str, container: &str) -> Result<String, Failure> {
        let pod = self.pod(pod)?;
        let status = status(&pod, container);
        let id = status["containerID"]
            .as_str()
            .and_then(|id| id.split_once("://"));
        id.map_or_else(
            || fail(format!("{container} has no id: {status}")),
            |(_, id)| Ok(id.to_owned()),
        )
    }

    /// The pid of a container's init.
    pub fn pid(&self, pod: &str, container: &str) -> Result<u32, Failure> {
        Ok(self
            .runtime
            .block_on(self.pods.pid(&self.id(pod, container)?))?)
    }

    /// Runs a script in a container by ExecSync; its stdout.
    pub fn exec(&self, pod: &str, container: &str, script: &str) -> Result<String, Failure> {
        let id = self.id(pod, container)?;
        let answer = self
            .runtime
            .block_on(self.pods.exec(&id, &["sh", "-c", script]))?;
        let (out, err) = (
            String::from_utf8_lossy(&answer.stdout),
            String::from_utf8_lossy(&answer.stderr),
        );
        expect(
            answer.exit_code == 0,
            format!("{script:?} in {pod}: {} {out} {err}", answer.exit_code),
        )?;
        Ok(out.trim().to_owned())
    }

    /// The directory of a container's cgroup in the hierarchy of `controller`, or in the one there is.
    pub fn cgroup(&self, pid: u32, controller: &str) -> Result<PathBuf, Failure> {
        let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let line = |wanted: &str| {
            groups.lines().find_map(|line| {
                let (names, path) = line.split_once(':')?.1.split_once(':')?;
                names
                    .split(',')
                    .any(|name| name == wanted)
                    .then(|| path.trim_start_matches('/').to_owned())
            })
        };
        let v1 = PathBuf::from("/sys/fs/cgroup").join(controller);
        match line(controller) {
            Some(path) => Ok(v1.join(path)),
            None => line("").map_or_else(
                || fail("no cgroup"),
                |path| Ok(PathBuf::from("/sys/fs/cgroup").join(path)),
            ),
        }
    }
}

/// Whether a pod's condition Ready is True.
pub fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.is_some_and(|all| {
        all.iter()
            .any(|one| one["type"] == "Ready" && one["status"] == "True")
    })
}

/// The status of a container, init or not; null if there is none.
pub fn status(pod: &Value, container: &str) -> Value {
    let lists = ["containerStatuses", "initContainerStatuses"];
    let mut all = lists
        .iter()
        .filter_map(|list| pod["status"][list].as_array())
        .flatten();
    all.find(|status| status["name"] == container)
        .cloned()
        .unwrap_or_default()
}

/// How often a container was restarted.
pub fn restarts(pod: &Value, container: &str) -> u64 {
    status(pod, container)["restartCount"].as_u64().unwrap_or(0)
}
