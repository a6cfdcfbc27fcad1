//! Requests the tests send: pods as kubelet makes them (a PID namespace per container, a log
//! directory, a cgroup parent of its own), and what is asked of them most.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use tonic::Status;

use crate::{
    cri::{
        Cri,
        v1::{
            AuthConfig, Container, ContainerConfig, ContainerMetadata, ContainerState,
            ContainerStatus, ContainerStatusRequest, CreateContainerRequest, ExecSyncRequest,
            ExecSyncResponse, ImageSpec, LinuxContainerConfig, LinuxContainerSecurityContext,
            LinuxPodSandboxConfig, LinuxSandboxSecurityContext, ListContainersRequest,
            ListPodSandboxRequest, NamespaceMode, NamespaceOption, PodSandboxConfig,
            PodSandboxMetadata, PodSandboxState, PodSandboxStatusRequest, PullImageRequest,
            RemoveContainerRequest, RemoveImageRequest, RemovePodSandboxRequest,
            RunPodSandboxRequest, StartContainerRequest, StopContainerRequest,
            StopPodSandboxRequest,
        },
    },
    daemon::Daemon,
    suite::BUSYBOX,
};

type Answer<T> = Result<T, Status>;

/// A client with the names of one site in its requests.
#[derive(Debug, Clone)]
pub struct Pods {
    /// The client itself, for what is not below.
    pub cri: Cri,
    logs: PathBuf,
    cgroup_parent: String,
}

/// Namespace options as kubelet sends them.
#[must_use]
pub fn namespaces(pid: NamespaceMode) -> NamespaceOption {
    NamespaceOption {
        pid: pid.into(),
        ..NamespaceOption::default()
    }
}

/// The words of a command.
#[must_use]
pub fn words(command: &[&str]) -> Vec<String> {
    command.iter().map(|&word| word.to_owned()).collect()
}

impl Pods {
    /// A client of a daemon.
    ///
    /// # Errors
    /// When it does not serve.
    pub async fn connect(daemon: &Daemon) -> std::io::Result<Self> {
        Ok(Self {
            cri: daemon.connect().await?,
            logs: daemon.site().dir().join("logs"),
            cgroup_parent: daemon.site().cgroup_parent(),
        })
    }

    /// The config of a pod; its name is also its uid and its log directory.
    #[must_use]
    pub fn sandbox(&self, name: &str) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("uid-{name}"),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: self.log_directory(name).to_string_lossy().into_owned(),
            labels: HashMap::from([("app".to_owned(), name.to_owned())]),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: self.cgroup_parent.clone(),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces(NamespaceMode::Container)),
                    ..LinuxSandboxSecurityContext::default()
                }),
                ..LinuxPodSandboxConfig::default()
            }),
            ..PodSandboxConfig::default()
        }
    }

    /// The same with the host's network.
    #[must_use]
    pub fn host_network_sandbox(&self, name: &str) -> PodSandboxConfig {
        let mut config = self.sandbox(name);
        let options = config
            .linux
            .as_mut()
            .and_then(|linux| linux.security_context.as_mut())
            .and_then(|context| context.namespace_options.as_mut());
        options.expect("sandbox() sets them").network = NamespaceMode::Node.into();
        config
    }

    /// Where the pod's container logs lie.
    #[must_use]
    pub fn log_directory(&self, pod: &str) -> PathBuf {
        self.logs.join(pod)
    }

    /// The config of a busybox container that runs `command`.
    #[must_use]
    pub fn container(&self, name: &str, command: &[&str]) -> ContainerConfig {
        ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: name.to_owned(),
                attempt: 0,
            }),
            image: Some(ImageSpec {
                image: BUSYBOX.to_owned(),
                ..ImageSpec::default()
            }),
            command: words(command),
            log_path: format!("{name}.log"),
            linux: Some(LinuxContainerConfig {
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: Some(namespaces(NamespaceMode::Container)),
                    ..LinuxContainerSecurityContext::default()
                }),
                ..LinuxContainerConfig::default()
            }),
            ..ContainerConfig::default()
        }
    }

    /// PullImage.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn pull(&self, image: &str) -> Answer<String> {
        let request = PullImageRequest {
            image: Some(ImageSpec {
                image: image.to_owned(),
                ..ImageSpec::default()
            }),
            auth: Some(AuthConfig::default()),
            sandbox_config: None,
        };
        Ok(self
            .cri
            .image
            .clone()
            .pull_image(request)
            .await?
            .into_inner()
            .image_ref)
    }

    /// RemoveImage.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn remove_image(&self, image: &str) -> Answer<()> {
        let request = RemoveImageRequest {
            image: Some(ImageSpec {
                image: image.to_owned(),
                ..ImageSpec::default()
            }),
        };
        self.cri.image.clone().remove_image(request).await.map(drop)
    }

    /// RunPodSandbox; makes the log directory as kubelet does.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn run(&self, config: &PodSandboxConfig) -> Answer<String> {
        if !config.log_directory.is_empty() {
            fs::create_dir_all(&config.log_directory)
                .map_err(|error| Status::internal(error.to_string()))?;
        }
        let request = RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: String::new(),
        };
        Ok(self
            .cri
            .runtime
            .clone()
            .run_pod_sandbox(request)
            .await?
            .into_inner()
            .pod_sandbox_id)
    }

    /// CreateContainer.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn create(
        &self,
        pod: &str,
        config: &ContainerConfig,
        sandbox: &PodSandboxConfig,
    ) -> Answer<String> {
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config.clone()),
            sandbox_config: Some(sandbox.clone()),
        };
        Ok(self
            .cri
            .runtime
            .clone()
            .create_container(request)
            .await?
            .into_inner()
            .container_id)
    }

    /// StartContainer.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn start(&self, container: &str) -> Answer<()> {
        let request = StartContainerRequest {
            container_id: container.to_owned(),
        };
        self.cri
            .runtime
            .clone()
            .start_container(request)
            .await
            .map(drop)
    }

    /// Create and start.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn launch(
        &self,
        pod: &str,
        config: &ContainerConfig,
        sandbox: &PodSandboxConfig,
    ) -> Answer<String> {
        let id = self.create(pod, config, sandbox).await?;
        self.start(&id).await?;
        Ok(id)
    }

    /// StopContainer.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn stop(&self, container: &str, timeout: i64) -> Answer<()> {
        let request = StopContainerRequest {
            container_id: container.to_owned(),
            timeout,
        };
        self.cri
            .runtime
            .clone()
            .stop_container(request)
            .await
            .map(drop)
    }

    /// RemoveContainer.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn remove(&self, container: &str) -> Answer<()> {
        let request = RemoveContainerRequest {
            container_id: container.to_owned(),
        };
        self.cri
            .runtime
            .clone()
            .remove_container(request)
            .await
            .map(drop)
    }

    /// StopPodSandbox.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn stop_pod(&self, pod: &str) -> Answer<()> {
        let request = StopPodSandboxRequest {
            pod_sandbox_id: pod.to_owned(),
        };
        self.cri
            .runtime
            .clone()
            .stop_pod_sandbox(request)
            .await
            .map(drop)
    }

    /// RemovePodSandbox.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn remove_pod(&self, pod: &str) -> Answer<()> {
        let request = RemovePodSandboxRequest {
            pod_sandbox_id: pod.to_owned(),
        };
        self.cri
            .runtime
            .clone()
            .remove_pod_sandbox(request)
            .await
            .map(drop)
    }

    /// ExecSync with a limit of ten seconds.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn exec(&self, container: &str, command: &[&str]) -> Answer<ExecSyncResponse> {
        let request = ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: words(command),
            timeout: 10,
        };
        Ok(self
            .cri
            .runtime
            .clone()
            .exec_sync(request)
            .await?
            .into_inner())
    }

    /// ContainerStatus.
    ///
    /// # Errors
    /// The daemon's, or NOT_FOUND for an answer without a status.
    pub async fn status(&self, container: &str) -> Answer<ContainerStatus> {
        let request = ContainerStatusRequest {
            container_id: container.to_owned(),
            verbose: false,
        };
        let answer = self
            .cri
            .runtime
            .clone()
            .container_status(request)
            .await?
            .into_inner();
        answer
            .status
            .ok_or_else(|| Status::not_found("an answer without a status"))
    }

    /// The pid of a container's init, from the verbose status.
    ///
    /// # Errors
    /// The daemon's, or NOT_FOUND when the status does not tell it.
    pub async fn pid(&self, container: &str) -> Answer<u32> {
        let request = ContainerStatusRequest {
            container_id: container.to_owned(),
            verbose: true,
        };
        let answer = self
            .cri
            .runtime
            .clone()
            .container_status(request)
            .await?
            .into_inner();
        let info: serde_json::Value =
            serde_json::from_str(answer.info.get("info").map_or("{}", String::as_str))
                .map_err(|error| Status::internal(format!("info is no JSON: {error}")))?;
        let pid = info["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        pid.filter(|&pid| pid > 0)
            .ok_or_else(|| Status::not_found(format!("no pid in info: {info}")))
    }

    /// Waits until a container is EXITED and returns its status.
    ///
    /// # Errors
    /// The daemon's, or DEADLINE_EXCEEDED.
    pub async fn exited(&self, container: &str, limit: Duration) -> Answer<ContainerStatus> {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            let status = self.status(container).await?;
            if status.state() == ContainerState::ContainerExited {
                return Ok(status);
            }
            if tokio::time::Instant::now() > deadline {
                return Err(Status::deadline_exceeded(format!(
                    "{container} is {:?} after {limit:?}",
                    status.state()
                )));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The state of a pod.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn pod_state(&self, pod: &str) -> Answer<PodSandboxState> {
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: pod.to_owned(),
            verbose: false,
        };
        let answer = self
            .cri
            .runtime
            .clone()
            .pod_sandbox_status(request)
            .await?
            .into_inner();
        Ok(answer
            .status
            .ok_or_else(|| Status::not_found("an answer without a status"))?
            .state())
    }

    /// The address of a pod.
    ///
    /// # Errors
    /// The daemon's, or NOT_FOUND when it has none.
    pub async fn ip(&self, pod: &str) -> Answer<String> {
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: pod.to_owned(),
            verbose: false,
        };
        let mut runtime = self.cri.runtime.clone();
        let answer = runtime.pod_sandbox_status(request).await?.into_inner();
        let network = answer.status.and_then(|status| status.network);
        network
            .map(|network| network.ip)
            .filter(|ip| !ip.is_empty())
            .ok_or_else(|| Status::not_found("the pod has no address"))
    }

    /// Ids of all pods.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn pods(&self) -> Answer<Vec<String>> {
        let answer = self
            .cri
            .runtime
            .clone()
            .list_pod_sandbox(ListPodSandboxRequest::default())
            .await?;
        Ok(answer
            .into_inner()
            .items
            .into_iter()
            .map(|pod| pod.id)
            .collect())
    }

    /// All containers.
    ///
    /// # Errors
    /// The daemon's.
    pub async fn containers(&self) -> Answer<Vec<Container>> {
        Ok(self
            .cri
            .runtime
            .clone()
            .list_containers(ListContainersRequest::default())
            .await?
            .into_inner()
            .containers)
    }

    /// Stops and removes every pod.
    ///
    /// # Errors
    /// The first one of the daemon's.
    pub async fn remove_all(&self) -> Answer<()> {
        for pod in self.pods().await? {
            self.stop_pod(&pod).await?;
            self.remove_pod(&pod).await?;
        }
        Ok(())
    }
}

/// What a container wrote to one stream: the lines of its CRI log, partial ones joined.
///
/// # Errors
/// When the file cannot be read, or a line is not `TIME STREAM TAG TEXT`.
pub fn log_lines(path: &Path, stream: &str) -> std::io::Result<Vec<String>> {
    let text = String::from_utf8_lossy(&fs::read(path)?).into_owned();
    let mut lines = Vec::new();
    let mut partial = String::new();
    for line in text.lines() {
        let mut parts = line.splitn(4, ' ');
        let (Some(time), Some(from), Some(tag), Some(content)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(std::io::Error::other(format!(
                "{}: no log line: {line:?}",
                path.display()
            )));
        };
        if !time.contains('T') || !matches!(from, "stdout" | "stderr") || !matches!(tag, "F" | "P")
        {
            return Err(std::io::Error::other(format!(
                "{}: no log line: {line:?}",
                path.display()
            )));
        }
        if from == stream {
            partial.push_str(content);
            if tag == "F" {
                lines.push(std::mem::take(&mut partial));
            }
        }
    }
    if !partial.is_empty() {
        lines.push(partial);
    }
    Ok(lines)
}
