//! The whole daemon on a real kernel, through its socket: faults, restarts, cancelled calls, bad
//! input, and what is left of all that afterwards.
//!
//! `CRISP_TEST_FULL=1` repeats what is worth repeating as often as a release demands.
#![forbid(unsafe_code)]
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot read its answer has failed"
)]

mod cancel;
mod chroot;
mod churn;
mod devices;
mod exec;
mod harm;
mod input;
mod lifecycle;
mod logs;
mod oom;
mod recovery;
mod restart;
mod security;
mod steps;
mod updates;
mod usage;
mod users;
mod volumes;
mod watching;

use std::time::Duration;

use crisp_harness::{
    crictl::runtime_under_test,
    daemon::Daemon,
    pods::Pods,
    registry::Registry,
    suite::{self, BUSYBOX},
};

/// A daemon with a registry and a client.
struct Host {
    pods: Pods,
    daemon: Daemon,
    _registry: Registry,
}

impl Host {
    /// Starts them, busybox pulled.
    async fn new() -> Self {
        let host = Self::without_image().await;
        host.pods.pull(BUSYBOX).await.unwrap();
        host
    }

    async fn without_image() -> Self {
        Self::configured(|_| String::new()).await
    }

    /// Starts them with more lines of configuration (whole tables), made for the daemon's directory.
    async fn configured(lines: impl FnOnce(&std::path::Path) -> String) -> Self {
        let registry = suite::registry().unwrap();
        let mut daemon = Daemon::new(runtime_under_test(), &registry.url(), None).unwrap();
        let lines = lines(daemon.site().dir());
        daemon.configure(&lines);
        daemon.start().await.unwrap();
        let pods = Pods::connect(&daemon).await.unwrap();
        Self {
            pods,
            daemon,
            _registry: registry,
        }
    }

    /// Starts the daemon again after it ended, and connects anew.
    async fn again(&mut self) -> Duration {
        let took = self.daemon.start().await.unwrap();
        self.pods = Pods::connect(&self.daemon).await.unwrap();
        took
    }

    /// A running container in a new pod: ids of both.
    async fn running(&self, name: &str, command: &[&str]) -> (String, String) {
        let sandbox = self.pods.sandbox(name);
        let pod = self.pods.run(&sandbox).await.unwrap();
        let container = self
            .pods
            .launch(&pod, &self.pods.container("c", command), &sandbox)
            .await
            .unwrap();
        (pod, container)
    }
}

/// `few` in a CI run, `many` with CRISP_TEST_FULL.
fn repeats(few: usize, many: usize) -> usize {
    if std::env::var_os("CRISP_TEST_FULL").is_some() {
        many
    } else {
        few
    }
}

/// The process whose command line is this program with this id, as the daemon's helpers have it.
fn helper(program: &str, id: &str) -> Option<u32> {
    crisp_harness::site::pids().into_iter().find(|pid| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = command.split(|&byte| byte == 0);
        words
            .next()
            .is_some_and(|word| word.ends_with(program.as_bytes()))
            && words.any(|word| word == id.as_bytes())
    })
}
