//! The real crictl against a daemon of the test's own.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::{Value, json};

use crate::{
    daemon::{Daemon, Kind},
    registry::Registry,
    suite, tools,
};

/// A daemon with the suite's images within reach, and crictl to talk to it.
#[derive(Debug)]
pub struct Crictl {
    /// The daemon.
    pub daemon: Daemon,
    program: PathBuf,
    _registry: Registry,
}

/// The runtime that the rings test: `CRISP_TEST_RUNTIME`, or crisp.
///
/// # Panics
/// When the variable names no runtime.
#[must_use]
pub fn runtime_under_test() -> Kind {
    let name = std::env::var("CRISP_TEST_RUNTIME").unwrap_or_else(|_| "crisp".to_owned());
    Kind::parse(&name).unwrap_or_else(|| panic!("CRISP_TEST_RUNTIME names no runtime: {name}"))
}

impl Crictl {
    /// Starts a daemon.
    ///
    /// # Errors
    /// When it does not serve.
    pub async fn new() -> io::Result<Self> {
        let registry = suite::registry()?;
        let mut daemon = Daemon::new(runtime_under_test(), &registry.url(), None)?;
        daemon.start().await?;
        let program = tools::program("cri-tools", "crictl")?;
        fs::write(daemon.site().dir().join("crictl.yaml"), "")?;
        Ok(Self {
            daemon,
            program,
            _registry: registry,
        })
    }

    /// Runs crictl.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("crictl starts")
    }

    /// crictl, ready to be run.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--config")
            .arg(self.daemon.site().dir().join("crictl.yaml"))
            .args([
                "--timeout",
                "30s",
                "--runtime-endpoint",
                &self.daemon.endpoint(),
            ])
            .args(["--image-endpoint", &self.daemon.endpoint()])
            .args(arguments);
        command
    }

    /// Its stdout, without the white space around it.
    ///
    /// # Panics
    /// With everything it said, when it fails.
    #[must_use]
    pub fn run(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        assert!(
            output.status.success(),
            "crictl {arguments:?}: {}\n{}{}\ndaemon:\n{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
            crate::process::tail(&self.daemon.log(), 15),
        );
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// What it said on stderr as it failed.
    ///
    /// # Panics
    /// When it does not fail.
    #[must_use]
    pub fn refused(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        assert!(
            !output.status.success(),
            "crictl {arguments:?} succeeded: {}",
            String::from_utf8_lossy(&output.stdout)
        );
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Its stdout as JSON.
    ///
    /// # Panics
    /// When it fails or prints something else.
    #[must_use]
    pub fn json(&self, arguments: &[&str]) -> Value {
        let text = self.run(arguments);
        serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("crictl {arguments:?}: {error}:\n{text}"))
    }

    /// Writes a request to a file and returns its path.
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn file(&self, name: &str, request: &Value) -> String {
        let path = self.daemon.site().dir().join(name);
        fs::write(&path, request.to_string()).expect("the request is written");
        path.to_string_lossy().into_owned()
    }

    /// A pod's request as kubelet makes it, with a PID mode (0 POD, 1 CONTAINER, 2 NODE, 3 TARGET).
    ///
    /// # Panics
    /// When its log directory cannot be made.
    #[must_use]
    pub fn sandbox(&self, name: &str, pid: u8) -> Value {
        let logs = self.logs(name);
        fs::create_dir_all(&logs).expect("the log directory is made");
        json!({
            "metadata": { "name": name, "namespace": "default", "uid": format!("uid-{name}"), "attempt": 0 },
            "hostname": name,
            "log_directory": logs,
            "labels": { "app": name },
            "linux": {
                "cgroup_parent": self.daemon.site().cgroup_parent(),
                "security_context": { "namespace_options": { "pid": pid } },
            },
        })
    }

    /// Where a pod's logs lie.
    #[must_use]
    pub fn logs(&self, pod: &str) -> PathBuf {
        self.daemon.site().dir().join("logs").join(pod)
    }

    /// A busybox container's request.
    #[must_use]
    pub fn container(&self, name: &str, command: &[&str], pid: Value) -> Value {
        json!({
            "metadata": { "name": name, "attempt": 0 },
            "image": { "image": suite::BUSYBOX },
            "command": command,
            "log_path": format!("{name}.log"),
            "linux": { "security_context": { "namespace_options": pid } },
        })
    }

    /// Pulls busybox, runs a pod and returns its id.
    #[must_use]
    pub fn pod(&self, name: &str, pid: u8) -> String {
        let _image = self.run(&["pull", suite::BUSYBOX]);
        self.run(&[
            "runp",
            &self.file(&format!("{name}.pod.json"), &self.sandbox(name, pid)),
        ])
    }

    /// Creates a container in `pod` (named `pod_name`) and returns its id.
    #[must_use]
    pub fn create(&self, pod: &str, pod_name: &str, container: &Value) -> String {
        let name = container["metadata"]["name"]
            .as_str()
            .unwrap_or("container")
            .to_owned();
        let request = self.file(&format!("{name}.json"), container);
        let sandbox = self
            .daemon
            .site()
            .dir()
            .join(format!("{pod_name}.pod.json"));
        self.run(&["create", pod, &request, &sandbox.to_string_lossy()])
    }

    /// Creates and starts a container that runs `command`, in a PID namespace as `pid` says.
    #[must_use]
    pub fn launch(
        &self,
        pod: &str,
        pod_name: &str,
        name: &str,
        command: &[&str],
        pid: Value,
    ) -> String {
        let id = self.create(pod, pod_name, &self.container(name, command, pid));
        let _id = self.run(&["start", &id]);
        id
    }

    /// The bundle of a container: the directory with its config.json.
    #[must_use]
    pub fn bundle(&self, container: &str) -> PathBuf {
        match self.daemon.kind() {
            Kind::Crisp => self.daemon.state().join("containers").join(container),
            _ => self
                .daemon
                .state()
                .join("io.containerd.runtime.v2.task/k8s.io")
                .join(container),
        }
    }
}

/// The lower directories of the overlay that is a process's root, as its mount table names them.
///
/// # Errors
/// When its root is no overlay.
pub fn lower_directories(pid: u32) -> io::Result<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/mountinfo"))?;
    let root = text
        .lines()
        .find(|line| line.split(' ').nth(4) == Some("/") && line.contains(" - overlay "));
    let options = root
        .and_then(|line| line.rsplit(' ').next())
        .ok_or_else(|| io::Error::other("its root is no overlay"))?;
    let mut lowers = Vec::new();
    for option in options.split(',') {
        if let Some(list) = option.strip_prefix("lowerdir=") {
            lowers.extend(list.split(':').map(str::to_owned));
        } else if let Some(one) = option.strip_prefix("lowerdir+=") {
            lowers.push(one.to_owned());
        }
    }
    Ok(lowers)
}

/// Mounts a fresh overlay of `lowers` (top first) on `target`, its own upper below `scratch`.
///
/// # Errors
/// When it cannot be mounted.
pub fn mount_overlay(lowers: &[String], scratch: &Path, target: &Path) -> io::Result<()> {
    let (upper, work) = (scratch.join("upper"), scratch.join("work"));
    for dir in [&upper, &work, &target.to_owned()] {
        fs::create_dir_all(dir)?;
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lowers.join(":"),
        upper.display(),
        work.display()
    );
    crate::process::run(
        Command::new("mount")
            .args(["-t", "overlay", "overlay", "-o", &options])
            .arg(target),
    )
    .map(drop)
}
