//! The streaming server against client-go, which is what kubectl and an API server are made of.
//!
//! `CRISP_TEST_RUNTIME` runs the same against a rival.
#![forbid(unsafe_code)]
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test that cannot read its answer has failed; the counts seen are of interest"
)]

mod disconnect;
mod forward;
mod stream;

use std::fs;

use crisp_harness::{
    cri::v1::{AttachRequest, ExecRequest, PortForwardRequest},
    crictl::runtime_under_test,
    daemon::Daemon,
    peer::Peer,
    pods::{Pods, words},
    registry::Registry,
    site,
    suite::{self, BUSYBOX},
};

/// A daemon with a pod, and the peer.
struct Host {
    pods: Pods,
    peer: Peer,
    daemon: Daemon,
    _registry: Registry,
}

/// Which streams a request asks for.
#[derive(Clone, Copy)]
enum Streams {
    /// stdin, stdout and stderr.
    All,
    /// stdout and stderr.
    Output,
    /// stdin and stdout of a terminal.
    Terminal,
}

impl Host {
    /// Starts a daemon with these lines added to its configuration, busybox pulled.
    async fn new(config: &str) -> Self {
        let registry = suite::registry().unwrap();
        let mut daemon = Daemon::new(runtime_under_test(), &registry.url(), None).unwrap();
        daemon.configure(config);
        daemon.start().await.unwrap();
        let pods = Pods::connect(&daemon).await.unwrap();
        pods.pull(BUSYBOX).await.unwrap();
        Self {
            pods,
            peer: Peer::new().unwrap(),
            daemon,
            _registry: registry,
        }
    }

    /// A running container in a pod of its own: ids of both.
    async fn running(&self, name: &str, command: &[&str]) -> (String, String) {
        let sandbox = self.pods.sandbox(name);
        let pod = self.pods.run(&sandbox).await.unwrap();
        let config = self.pods.container("c", command);
        let container = self.pods.launch(&pod, &config, &sandbox).await.unwrap();
        (pod, container)
    }

    /// A URL to run a command at.
    async fn exec(&self, container: &str, streams: Streams, command: &[&str]) -> String {
        let tty = matches!(streams, Streams::Terminal);
        let request = ExecRequest {
            container_id: container.to_owned(),
            cmd: words(command),
            tty,
            stdin: !matches!(streams, Streams::Output),
            stdout: true,
            stderr: !tty,
        };
        let answer = self.pods.cri.runtime.clone().exec(request).await.unwrap();
        answer.into_inner().url
    }

    /// As many of them.
    async fn execs(
        &self,
        count: usize,
        container: &str,
        streams: Streams,
        command: &[&str],
    ) -> Vec<String> {
        let mut urls = Vec::new();
        for _ in 0..count {
            urls.push(self.exec(container, streams, command).await);
        }
        urls
    }

    /// A URL to attach at, with all streams.
    async fn attach(&self, container: &str) -> String {
        let request = AttachRequest {
            container_id: container.to_owned(),
            stdin: true,
            tty: false,
            stdout: true,
            stderr: true,
        };
        let answer = self.pods.cri.runtime.clone().attach(request).await.unwrap();
        answer.into_inner().url
    }

    /// A URL to forward a port of a pod at.
    async fn port_forward(&self, pod: &str, port: i32) -> String {
        let request = PortForwardRequest {
            pod_sandbox_id: pod.to_owned(),
            port: vec![port],
        };
        let answer = self.pods.cri.runtime.clone().port_forward(request).await;
        answer.unwrap().into_inner().url
    }

    /// Open descriptors of the daemon.
    fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.daemon.pid()))
            .unwrap()
            .count()
    }
}

/// Command lines of the processes in a container's cgroup, in no order.
fn processes(container: &str) -> Vec<String> {
    let inside = |pid: &u32| {
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        groups.contains(container)
    };
    let command = |pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line)
            .replace('\0', " ")
            .trim()
            .to_owned()
    };
    let all = site::pids().into_iter().filter(inside).map(command);
    // A zombie has no command line, and is on its way.
    all.filter(|line| !line.is_empty()).collect()
}
