//! Malformed requests: the right code, a message that names the field, and nothing left behind.

use crisp_harness::{
    audit::{Snapshot, settled},
    cri::v1::{
        ContainerConfig, ContainerStatusRequest, CreateContainerRequest, Int64Value, KeyValue,
        Mount, NamespaceMode, PodSandboxConfig, RunPodSandboxRequest, StartContainerRequest,
    },
    pods::namespaces,
};
use tonic::{Code, Status};

use crate::Host;

type SandboxCase = (&'static str, fn(&mut PodSandboxConfig), &'static str);
type ContainerCase = (&'static str, fn(&mut ContainerConfig), Code, &'static str);

/// What is wrong, how, and the word that the message must hold.
const SANDBOXES: &[SandboxCase] = &[
    ("no metadata", |config| config.metadata = None, "metadata"),
    (
        "no name",
        |config| config.metadata.as_mut().unwrap().name.clear(),
        "name",
    ),
    (
        "no uid",
        |config| config.metadata.as_mut().unwrap().uid.clear(),
        "uid",
    ),
    (
        "no namespace",
        |config| config.metadata.as_mut().unwrap().namespace.clear(),
        "namespace",
    ),
    (
        "a name with a slash",
        |config| config.metadata.as_mut().unwrap().name = "a/../b".into(),
        "name",
    ),
    (
        "a name with NUL",
        |config| config.metadata.as_mut().unwrap().name = "a\0b".into(),
        "name",
    ),
    (
        "a relative log directory",
        |config| config.log_directory = "logs".into(),
        "log_directory",
    ),
    (
        "a log directory with NUL",
        |config| config.log_directory = "/tmp/a\0b".into(),
        "log_directory",
    ),
    (
        "a host name with NUL",
        |config| config.hostname = "a\0b".into(),
        "hostname",
    ),
    (
        "a host name too long",
        |config| config.hostname = "h".repeat(300),
        "hostname",
    ),
    (
        "a group without a user",
        |config| {
            let context = config
                .linux
                .as_mut()
                .unwrap()
                .security_context
                .as_mut()
                .unwrap();
            context.run_as_group = Some(Int64Value { value: 1000 });
        },
        "run_as_group",
    ),
    (
        "an unknown sysctl",
        |config| {
            config
                .linux
                .as_mut()
                .unwrap()
                .sysctls
                .insert("no/such\0thing".into(), "1".into());
        },
        "sysctl",
    ),
    (
        "a cgroup parent that escapes",
        |config| config.linux.as_mut().unwrap().cgroup_parent = "/../../x".into(),
        "cgroup_parent",
    ),
    (
        "oversized annotations",
        |config| {
            config.annotations.insert("k".into(), "v".repeat(2 << 20));
        },
        "annotations",
    ),
    (
        "pid mode TARGET for a pod",
        |config| {
            let context = config
                .linux
                .as_mut()
                .unwrap()
                .security_context
                .as_mut()
                .unwrap();
            context.namespace_options = Some(namespaces(NamespaceMode::Target));
        },
        "pid",
    ),
];

fn context(
    config: &mut ContainerConfig,
) -> &mut crisp_harness::cri::v1::LinuxContainerSecurityContext {
    config
        .linux
        .as_mut()
        .unwrap()
        .security_context
        .as_mut()
        .unwrap()
}

fn mount(container_path: &str, host_path: &str) -> Mount {
    Mount {
        container_path: container_path.into(),
        host_path: host_path.into(),
        ..Mount::default()
    }
}

const CONTAINERS: &[ContainerCase] = &[
    (
        "no metadata",
        |config| config.metadata = None,
        Code::InvalidArgument,
        "metadata",
    ),
    (
        "no name",
        |config| config.metadata.as_mut().unwrap().name.clear(),
        Code::InvalidArgument,
        "name",
    ),
    (
        "a name with a slash",
        |config| config.metadata.as_mut().unwrap().name = "a/b".into(),
        Code::InvalidArgument,
        "name",
    ),
    (
        "no image",
        |config| config.image = None,
        Code::InvalidArgument,
        "image",
    ),
    (
        "an unknown image",
        |config| config.image.as_mut().unwrap().image = "registry.k8s.io/none:1".into(),
        Code::NotFound,
        "none:1",
    ),
    (
        "an absolute log path",
        |config| config.log_path = "/etc/passwd".into(),
        Code::InvalidArgument,
        "log_path",
    ),
    (
        "an escaping log path",
        |config| config.log_path = "../../x.log".into(),
        Code::InvalidArgument,
        "log_path",
    ),
    (
        "an argument with NUL",
        |config| config.command = vec!["a\0b".into()],
        Code::InvalidArgument,
        "command",
    ),
    (
        "an env key with =",
        |config| {
            config.envs.push(KeyValue {
                key: "A=B".into(),
                value: b"x".to_vec(),
            });
        },
        Code::InvalidArgument,
        "envs",
    ),
    (
        "an env value with NUL",
        |config| {
            config.envs.push(KeyValue {
                key: "A".into(),
                value: b"x\0y".to_vec(),
            });
        },
        Code::InvalidArgument,
        "envs",
    ),
    (
        "a relative working directory",
        |config| config.working_dir = "tmp".into(),
        Code::InvalidArgument,
        "working_dir",
    ),
    (
        "a mount without a container path",
        |config| config.mounts.push(mount("", "/tmp")),
        Code::InvalidArgument,
        "container_path",
    ),
    (
        "a relative container path",
        |config| config.mounts.push(mount("tmp", "/tmp")),
        Code::InvalidArgument,
        "container_path",
    ),
    (
        "a relative host path",
        |config| config.mounts.push(mount("/x", "tmp")),
        Code::InvalidArgument,
        "host_path",
    ),
    (
        "a mount below a file",
        |config| config.mounts.push(mount("/x", "/etc/hostname/x")),
        Code::InvalidArgument,
        "host_path",
    ),
    (
        "a group without a user",
        |config| context(config).run_as_group = Some(Int64Value { value: 5 }),
        Code::InvalidArgument,
        "run_as_group",
    ),
    (
        "a user name that is not there",
        |config| context(config).run_as_username = "nobody-here".into(),
        Code::InvalidArgument,
        "nobody-here",
    ),
    (
        "an unknown capability",
        |config| {
            context(config).capabilities = Some(crisp_harness::cri::v1::Capability {
                add_capabilities: vec!["FLY".into()],
                ..Default::default()
            });
        },
        Code::InvalidArgument,
        "capabilit",
    ),
    (
        "a target that is not there",
        |config| {
            context(config).namespace_options = Some(crisp_harness::cri::v1::NamespaceOption {
                target_id: "0123456789abcdef".into(),
                ..namespaces(NamespaceMode::Target)
            });
        },
        Code::InvalidArgument,
        "target",
    ),
    (
        "oversized annotations",
        |config| {
            config.annotations.insert("k".into(), "v".repeat(2 << 20));
        },
        Code::InvalidArgument,
        "annotations",
    ),
    (
        "a negative memory limit",
        |config| {
            config.linux.as_mut().unwrap().resources =
                Some(crisp_harness::cri::v1::LinuxContainerResources {
                    memory_limit_in_bytes: -7,
                    ..Default::default()
                });
        },
        Code::InvalidArgument,
        "memory_limit",
    ),
];

/// The code and the word, or what was wrong with the answer.
fn judged<T: std::fmt::Debug>(
    what: &str,
    answer: Result<T, Status>,
    code: Code,
    word: &str,
) -> Option<String> {
    match answer {
        Ok(answer) => Some(format!("{what}: accepted: {answer:?}")),
        Err(status) if status.code() != code || !status.message().contains(word) => {
            let short: String = status.message().chars().take(300).collect();
            Some(format!(
                "{what}: {:?} {short:?}, wanted {code:?} naming {word:?}",
                status.code()
            ))
        }
        Err(_) => None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_sandboxes_are_refused_by_field_and_leave_nothing() {
    let host = Host::new().await;
    let good = host.pods.sandbox("good");
    let pod = host.pods.run(&good).await.unwrap();
    let before = Snapshot::take(&host.daemon);
    let mut wrong = Vec::new();
    for (what, spoil, word) in SANDBOXES {
        let mut config = host.pods.sandbox("bad");
        spoil(&mut config);
        let request = RunPodSandboxRequest {
            config: Some(config),
            runtime_handler: String::new(),
        };
        let answer = host.pods.cri.runtime.clone().run_pod_sandbox(request).await;
        wrong.extend(judged(what, answer, Code::InvalidArgument, word));
    }
    let request = RunPodSandboxRequest {
        config: Some(host.pods.sandbox("bad")),
        runtime_handler: "no-such".into(),
    };
    let answer = host.pods.cri.runtime.clone().run_pod_sandbox(request).await;
    wrong.extend(judged(
        "an unknown handler",
        answer,
        Code::InvalidArgument,
        "no-such",
    ));
    let request = RunPodSandboxRequest {
        config: None,
        runtime_handler: String::new(),
    };
    let answer = host.pods.cri.runtime.clone().run_pod_sandbox(request).await;
    wrong.extend(judged("no config", answer, Code::InvalidArgument, "config"));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(host.pods.pods().await.unwrap(), [pod]);
    let left = settled(&host.daemon, &before, std::time::Duration::from_secs(10)).await;
    assert!(left.is_empty(), "left behind:\n{}", left.join("\n"));
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_containers_are_refused_by_field_and_leave_nothing() {
    let host = Host::new().await;
    let sandbox = host.pods.sandbox("good");
    let pod = host.pods.run(&sandbox).await.unwrap();
    let before = Snapshot::take(&host.daemon);
    let mut wrong = Vec::new();
    for (what, spoil, code, word) in CONTAINERS {
        let mut config = host.pods.container("bad", &["true"]);
        spoil(&mut config);
        wrong.extend(judged(
            what,
            host.pods.create(&pod, &config, &sandbox).await,
            *code,
            word,
        ));
    }
    let config = host.pods.container("bad", &["true"]);
    let unknown = host
        .pods
        .create("0123456789abcdef", &config, &sandbox)
        .await;
    wrong.extend(judged(
        "an unknown pod",
        unknown,
        Code::NotFound,
        "0123456789abcdef",
    ));
    let request = CreateContainerRequest {
        pod_sandbox_id: pod.clone(),
        config: None,
        sandbox_config: Some(sandbox),
    };
    let answer = host
        .pods
        .cri
        .runtime
        .clone()
        .create_container(request)
        .await;
    wrong.extend(judged("no config", answer, Code::InvalidArgument, "config"));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(host.pods.containers().await.unwrap().is_empty());
    let left = settled(&host.daemon, &before, std::time::Duration::from_secs(10)).await;
    assert!(left.is_empty(), "left behind:\n{}", left.join("\n"));
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_ids_are_not_found_and_stopping_them_is_fine() {
    let host = Host::without_image().await;
    let pods = &host.pods;
    let id = "f".repeat(64);
    let mut wrong = Vec::new();
    let mut runtime = pods.cri.runtime.clone();
    let status = ContainerStatusRequest {
        container_id: id.clone(),
        verbose: false,
    };
    wrong.extend(judged(
        "status",
        runtime.container_status(status).await,
        Code::NotFound,
        &id,
    ));
    let start = StartContainerRequest {
        container_id: id.clone(),
    };
    wrong.extend(judged(
        "start",
        runtime.start_container(start).await,
        Code::NotFound,
        &id,
    ));
    wrong.extend(judged(
        "exec",
        pods.exec(&id, &["true"]).await,
        Code::NotFound,
        &id,
    ));
    wrong.extend(judged(
        "pod status",
        pods.pod_state(&id).await,
        Code::NotFound,
        &id,
    ));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    pods.stop(&id, 0).await.unwrap();
    pods.remove(&id).await.unwrap();
    pods.stop_pod(&id).await.unwrap();
    pods.remove_pod(&id).await.unwrap();
    // Bytes that are no UTF-8 where the protocol has strings: field 1 of ContainerStatus.
    for raw in [&b"\x0a\x02\xff\xfe"[..], b"\x0a\xff", b"\xff\xff\xff\xff"] {
        let answer = raw_status(&host, raw.to_vec()).await;
        let code = answer
            .expect_err("no answer to bytes that are no request")
            .code();
        assert!(
            matches!(code, Code::Internal | Code::InvalidArgument),
            "{raw:?}: {code:?}"
        );
    }
    host.daemon
        .connect()
        .await
        .expect("the daemon is not disturbed");
}

/// ContainerStatus with a body that is not made by a protobuf encoder.
async fn raw_status(host: &Host, body: Vec<u8>) -> Result<(), Status> {
    crisp_harness::cri::raw(
        &host.daemon.socket(),
        "/runtime.v1.RuntimeService/ContainerStatus",
        body,
    )
    .await
}
