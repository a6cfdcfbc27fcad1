//! `crisp demo`: one pod from start to end over the CRI, as a first look and a smoke test.

use std::{collections::HashMap, path::PathBuf, time::Instant};

use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint};

use crate::cri::proto::{self, runtime_service_client::RuntimeServiceClient};

/// Which daemon and which image.
#[derive(Debug, clap::Args)]
pub struct DemoArgs {
    /// The daemon's socket
    #[arg(
        long,
        value_name = "unix://PATH",
        default_value = "unix:///run/crisp/crisp.sock"
    )]
    listen: String,
    /// An image that the daemon has, with a shell in it
    #[arg(long, value_name = "REFERENCE")]
    image: String,
    /// Directory for the pod's log
    #[arg(long, value_name = "DIR")]
    logs: PathBuf,
    /// Use the host's network, for a machine without a pod network
    #[arg(long)]
    host_network: bool,
}

/// Why the pod did not run.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// No daemon answers.
    #[error("cannot reach the daemon")]
    Connect(#[from] tonic::transport::Error),
    /// The daemon refused a step.
    #[error("{step}: {message}")]
    Step {
        /// Which.
        step: &'static str,
        /// The daemon's words.
        message: String,
    },
    /// The log cannot be read, or there is no runtime.
    #[error("cannot read the log of the pod")]
    Log(#[from] std::io::Error),
}

type Client = RuntimeServiceClient<Channel>;

pub(super) fn run(args: DemoArgs) -> Result<(), DemoError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut client = connect(&args.listen).await?;
        let pod = timed(
            "run the pod sandbox",
            client.run_pod_sandbox(sandbox(&args)),
        )
        .await?;
        let id = pod.pod_sandbox_id;
        let shown = show(&mut client, &args, &id).await;
        let stop = proto::StopPodSandboxRequest {
            pod_sandbox_id: id.clone(),
        };
        let stopped = timed("stop the pod sandbox", client.stop_pod_sandbox(stop)).await;
        let remove = proto::RemovePodSandboxRequest { pod_sandbox_id: id };
        let removed = timed("remove the pod sandbox", client.remove_pod_sandbox(remove)).await;
        shown.and(stopped.map(drop)).and(removed.map(drop))
    })
}

async fn connect(listen: &str) -> Result<Client, DemoError> {
    let path = super::socket_path(listen);
    let connector = tower::service_fn(move |_: http::Uri| {
        let path = path.clone();
        async move {
            tokio::net::UnixStream::connect(path)
                .await
                .map(TokioIo::new)
        }
    });
    // The address is never looked up: the connector knows the socket.
    let endpoint = Endpoint::from_static("http://localhost");
    Ok(Client::new(
        endpoint.connect_with_connector(connector).await?,
    ))
}

async fn show(client: &mut Client, args: &DemoArgs, pod: &str) -> Result<(), DemoError> {
    let create = container(args, pod);
    let container = timed("create the container", client.create_container(create)).await?;
    let id = container.container_id;
    let start = proto::StartContainerRequest {
        container_id: id.clone(),
    };
    timed("start the container", client.start_container(start)).await?;
    let exec = proto::ExecSyncRequest {
        container_id: id.clone(),
        cmd: [
            "/bin/sh",
            "-c",
            "echo \"exec: I am process $$ of $(hostname)\"",
        ]
        .map(str::to_owned)
        .into(),
        timeout: 10,
    };
    let ran = timed("run a command in it", client.exec_sync(exec)).await?;
    say(String::from_utf8_lossy(&ran.stdout).trim_end());
    say("log:");
    say(std::fs::read_to_string(args.logs.join("demo.log"))?.trim_end());
    let stop = proto::StopContainerRequest {
        container_id: id.clone(),
        timeout: 5,
    };
    timed("stop the container", client.stop_container(stop)).await?;
    let remove = proto::RemoveContainerRequest { container_id: id };
    timed("remove the container", client.remove_container(remove))
        .await
        .map(drop)
}

fn sandbox(args: &DemoArgs) -> proto::RunPodSandboxRequest {
    let network = if args.host_network {
        proto::NamespaceMode::Node
    } else {
        proto::NamespaceMode::Pod
    };
    let namespaces = proto::NamespaceOption {
        network: network.into(),
        pid: proto::NamespaceMode::Container.into(),
        ..Default::default()
    };
    proto::RunPodSandboxRequest {
        config: Some(proto::PodSandboxConfig {
            metadata: Some(proto::PodSandboxMetadata {
                name: "demo".to_owned(),
                uid: format!("demo-{}", std::process::id()),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            hostname: "demo".to_owned(),
            log_directory: args.logs.to_string_lossy().into_owned(),
            labels: HashMap::from([("app".to_owned(), "demo".to_owned())]),
            linux: Some(proto::LinuxPodSandboxConfig {
                security_context: Some(proto::LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }),
        runtime_handler: String::new(),
    }
}

fn container(args: &DemoArgs, pod: &str) -> proto::CreateContainerRequest {
    let script = "echo hello from a container; exec sleep 1000000";
    let namespaces = proto::NamespaceOption {
        pid: proto::NamespaceMode::Container.into(),
        ..Default::default()
    };
    proto::CreateContainerRequest {
        pod_sandbox_id: pod.to_owned(),
        config: Some(proto::ContainerConfig {
            metadata: Some(proto::ContainerMetadata {
                name: "demo".to_owned(),
                attempt: 0,
            }),
            image: Some(proto::ImageSpec {
                image: args.image.clone(),
                ..Default::default()
            }),
            command: ["/bin/sh", "-c", script].map(str::to_owned).into(),
            log_path: "demo.log".to_owned(),
            stop_signal: proto::Signal::Sigkill.into(),
            linux: Some(proto::LinuxContainerConfig {
                security_context: Some(proto::LinuxContainerSecurityContext {
                    namespace_options: Some(namespaces),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }),
        sandbox_config: sandbox(args).config,
    }
}

/// Waits for a step and says how long it took.
async fn timed<T>(
    step: &'static str,
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, DemoError> {
    let begun = Instant::now();
    let answer = call.await;
    let took = begun.elapsed();
    match answer {
        Ok(answer) => {
            say(&format!("{:>9.2} ms  {step}", took.as_secs_f64() * 1000.0));
            Ok(answer.into_inner())
        }
        Err(status) => Err(DemoError::Step {
            step,
            message: status.message().to_owned(),
        }),
    }
}

#[expect(clippy::print_stdout, reason = "showing is what this command is for")]
fn say(line: &str) {
    println!("{line}");
}
