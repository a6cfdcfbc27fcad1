//! Malformed requests: the right code, a message that names the field, and nothing left behind. What
//! happened to each is printed.

mod calls;
mod containers;
mod files;
mod pods;

use std::{fmt::Debug, time::Duration};

use crisp_harness::{
    audit::{Snapshot, settled},
    cri::v1::{
        ContainerConfig, CreateContainerRequest, LinuxContainerSecurityContext, PodSandboxConfig,
        RunPodSandboxRequest,
    },
};
use tonic::{Code, Status};

use crate::Host;

/// The case by its number in the list of attacks and in words, how the config is spoilt, and the word
/// that the message must hold.
type SandboxCase = (&'static str, fn(&mut PodSandboxConfig), &'static str);
type ContainerCase = (&'static str, fn(&mut ContainerConfig), Code, &'static str);

/// Prints what happened.
fn tell(case: &str, what: &str) {
    let what: String = what.chars().take(200).collect();
    println!("{case}: {what}");
}

/// Prints the answer; what is wrong with it, if it is not this code or does not hold this word.
fn judged<T: Debug>(
    case: &str,
    answer: Result<T, Status>,
    code: Code,
    word: &str,
) -> Option<String> {
    let status = match answer {
        Ok(answer) => return Some(format!("{case}: accepted: {answer:?}")),
        Err(status) => status,
    };
    tell(case, &format!("{:?} {}", status.code(), status.message()));
    let message = status.message();
    let fits = status.code() == code && message.contains(word) && message.len() < 5000;
    (!fits).then(|| {
        let short: String = message.chars().take(300).collect();
        format!(
            "{case}: {:?} {short:?}, wanted {code:?} naming {word:?}",
            status.code()
        )
    })
}

fn context(config: &mut ContainerConfig) -> &mut LinuxContainerSecurityContext {
    let linux = config.linux.as_mut().unwrap();
    linux.security_context.as_mut().unwrap()
}

/// Waits until the host is as it was before.
async fn nothing_left(host: &Host, before: &Snapshot) {
    let left = settled(&host.daemon, before, Duration::from_secs(10)).await;
    assert!(left.is_empty(), "left behind:\n{}", left.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_sandboxes_are_refused_by_field_and_leave_nothing() {
    let host = Host::new().await;
    let good = host.pods.sandbox("good");
    let pod = host.pods.run(&good).await.unwrap();
    let before = Snapshot::take(&host.daemon);
    let mut wrong = Vec::new();
    let run = async |config, handler: &str| {
        let request = RunPodSandboxRequest {
            config,
            runtime_handler: handler.to_owned(),
        };
        let mut runtime = host.pods.cri.runtime.clone();
        runtime.run_pod_sandbox(request).await
    };
    for (case, spoil, word) in pods::CASES {
        let mut config = host.pods.sandbox("bad");
        spoil(&mut config);
        let answer = run(Some(config), "").await;
        wrong.extend(judged(case, answer, Code::InvalidArgument, word));
    }
    for (case, handler, word) in [
        ("G31 an unknown handler", "no-such", "no-such"),
        ("G31 a handler that is a path", "../runc", "runtime_handler"),
    ] {
        let answer = run(Some(host.pods.sandbox("bad")), handler).await;
        wrong.extend(judged(case, answer, Code::InvalidArgument, word));
    }
    let answer = run(None, "").await;
    wrong.extend(judged(
        "G4 no config",
        answer,
        Code::InvalidArgument,
        "config",
    ));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(host.pods.pods().await.unwrap(), [pod]);
    nothing_left(&host, &before).await;
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_containers_are_refused_by_field_and_leave_nothing() {
    let host = Host::new().await;
    let sandbox = host.pods.sandbox("good");
    let pod = host.pods.run(&sandbox).await.unwrap();
    let before = Snapshot::take(&host.daemon);
    let mut wrong = Vec::new();
    for (case, spoil, code, word) in containers::CASES {
        let mut config = host.pods.container("bad", &["true"]);
        spoil(&mut config);
        let answer = host.pods.create(&pod, &config, &sandbox).await;
        wrong.extend(judged(case, answer, *code, word));
    }
    let config = host.pods.container("bad", &["true"]);
    let unknown = "0123456789abcdef";
    let answer = host.pods.create(unknown, &config, &sandbox).await;
    wrong.extend(judged(
        "G25 an unknown pod",
        answer,
        Code::NotFound,
        unknown,
    ));
    let request = CreateContainerRequest {
        pod_sandbox_id: pod.clone(),
        config: None,
        sandbox_config: Some(sandbox),
    };
    let mut runtime = host.pods.cri.runtime.clone();
    let answer = runtime.create_container(request).await;
    wrong.extend(judged(
        "G4 no config",
        answer,
        Code::InvalidArgument,
        "config",
    ));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(host.pods.containers().await.unwrap().is_empty());
    nothing_left(&host, &before).await;
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_requests_that_mean_something_are_served_and_change_nothing_else() {
    let host = Host::new().await;
    let mut sandbox = host.pods.sandbox("odd");
    for (key, value) in pods::FOREIGN_ANNOTATIONS {
        sandbox.annotations.insert((*key).into(), (*value).into());
    }
    let pod = host.pods.run(&sandbox).await.unwrap();
    let before = Snapshot::take(&host.daemon);
    for (number, (case, change, script, expected)) in containers::SERVED.iter().enumerate() {
        let mut config = host.script(&format!("c{number}"), script);
        change(&mut config);
        let text = host.output(&pod, &sandbox, config).await;
        tell(case, &format!("{:?}", text.trim_end()));
        assert!(text.contains(expected), "{case}: {text}");
    }
    // What is in the pod's annotations and in those of the image's user is not in what a runtime reads.
    let mut config = host.pods.container("annotated", &["sleep", "1000"]);
    for (key, value) in pods::FOREIGN_ANNOTATIONS {
        config.annotations.insert((*key).into(), (*value).into());
    }
    let id = host.pods.launch(&pod, &config, &sandbox).await.unwrap();
    let bundle = host.daemon.state().join("containers").join(&id);
    let spec = std::fs::read_to_string(bundle.join("config.json")).unwrap();
    for (key, _) in pods::FOREIGN_ANNOTATIONS {
        assert!(!spec.contains(key), "{key} is in config.json");
    }
    let sandbox_id = serde_json::from_str::<serde_json::Value>(&spec).unwrap();
    let sandbox_id = &sandbox_id["annotations"]["io.kubernetes.cri.sandbox-id"];
    assert_eq!(*sandbox_id, pod, "ours is not to be overwritten");
    tell(
        "G14 annotations like ours, of systemd, of other runtimes, of NRI",
        "kept for the client, none is in config.json, ours stands",
    );
    for container in host.pods.containers().await.unwrap() {
        host.pods.remove(&container.id).await.unwrap();
    }
    nothing_left(&host, &before).await;
    host.pods.remove_all().await.unwrap();
}
