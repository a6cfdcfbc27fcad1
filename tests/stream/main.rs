//! The streaming server of a real daemon: exec, attach and port-forward as clients use them, and what
//! clients do to it that it must survive. The clients are written here, byte by byte, so that they can
//! do what well-behaved ones never would.
#![forbid(unsafe_code)]
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot read its answer has failed"
)]

mod attach;
mod attacks;
mod client;
mod crowds;
mod disconnect;
mod exec;
mod ports;
mod tls;
mod websocket;

use std::time::Duration;

use crisp_harness::{
    cri::v1::{AttachRequest, ContainerConfig, ExecRequest, PodSandboxConfig, PortForwardRequest},
    daemon::{Daemon, Kind},
    pods::{Pods, words},
    registry::Registry,
    suite::{self, BUSYBOX},
};
use tonic::Status;

/// What nothing here should ever take.
const LIMIT: Duration = Duration::from_secs(30);

/// A daemon with a registry and a client.
struct Host {
    pods: Pods,
    daemon: Daemon,
    _registry: Registry,
}

impl Host {
    /// Starts them, busybox pulled.
    async fn new() -> Self {
        Self::with("").await
    }

    /// With lines for the table `stream` of the configuration.
    async fn with(lines: &str) -> Self {
        let registry = suite::registry().unwrap();
        let mut daemon = Daemon::new(Kind::Crisp, &registry.url(), None).unwrap();
        daemon.configure_stream(lines);
        daemon.start().await.unwrap();
        let pods = Pods::connect(&daemon).await.unwrap();
        pods.pull(BUSYBOX).await.unwrap();
        Self {
            pods,
            daemon,
            _registry: registry,
        }
    }

    /// A running container in a new pod: ids of both.
    async fn running(&self, name: &str, command: &[&str]) -> (String, String) {
        let config = self.pods.container("c", command);
        self.launched(&self.pods.sandbox(name), &config).await
    }

    async fn launched(
        &self,
        sandbox: &PodSandboxConfig,
        config: &ContainerConfig,
    ) -> (String, String) {
        let pod = self.pods.run(sandbox).await.unwrap();
        let container = self.pods.launch(&pod, config, sandbox).await.unwrap();
        (pod, container)
    }

    /// Where to connect for a command; `streams` holds the letters of those wanted: i, o, e, t.
    async fn exec(
        &self,
        container: &str,
        streams: &str,
        command: &[&str],
    ) -> Result<String, Status> {
        let request = ExecRequest {
            container_id: container.to_owned(),
            cmd: words(command),
            tty: streams.contains('t'),
            stdin: streams.contains('i'),
            stdout: streams.contains('o'),
            stderr: streams.contains('e'),
        };
        let mut runtime = self.pods.cri.runtime.clone();
        Ok(runtime.exec(request).await?.into_inner().url)
    }

    async fn attach(&self, container: &str, streams: &str) -> Result<String, Status> {
        let request = AttachRequest {
            container_id: container.to_owned(),
            tty: streams.contains('t'),
            stdin: streams.contains('i'),
            stdout: streams.contains('o'),
            stderr: streams.contains('e'),
        };
        let mut runtime = self.pods.cri.runtime.clone();
        Ok(runtime.attach(request).await?.into_inner().url)
    }

    async fn port_forward(&self, pod: &str, port: &[i32]) -> Result<String, Status> {
        let request = PortForwardRequest {
            pod_sandbox_id: pod.to_owned(),
            port: port.to_vec(),
        };
        let mut runtime = self.pods.cri.runtime.clone();
        Ok(runtime.port_forward(request).await?.into_inner().url)
    }

    /// Descriptors that the daemon has open, but for those of the log and the like that come and go:
    /// by what they are, so that a difference tells what was left.
    fn descriptors(&self) -> Vec<String> {
        descriptors(self.daemon.pid())
    }
}

/// What a process has open: pipes, sockets and terminals, without their numbers.
fn descriptors(pid: u32) -> Vec<String> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let mut kinds: Vec<String> = entries
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .map(|target| {
            target
                .to_string_lossy()
                .split(':')
                .next()
                .unwrap()
                .to_owned()
        })
        .collect();
    kinds.sort();
    kinds
}

/// Whether a process with exactly this command line runs anywhere.
fn runs(command: &[&str]) -> bool {
    let wanted: Vec<u8> = command
        .iter()
        .flat_map(|word| [word.as_bytes(), b"\0"].concat())
        .collect();
    crisp_harness::site::pids()
        .into_iter()
        .any(|pid| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == wanted))
}

/// Waits for a condition.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + LIMIT;
    while !condition() {
        assert!(
            tokio::time::Instant::now() < deadline,
            "not within {LIMIT:?}: {what}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A future that must not take for ever.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, what)
        .await
        .expect("it takes too long")
}
