//! Calls that are wrong as calls: bytes that are no request, ids that nobody has, crowds.

use std::{
    fs,
    time::{Duration, Instant},
};

use crisp_harness::{
    cri::{
        Cri, raw,
        v1::{
            ContainerEventType, ContainerFilter, GetEventsRequest, ImageSpec, ImageStatusRequest,
            ListContainersRequest, PullImageRequest, VersionRequest,
        },
    },
    process::until,
};
use tonic::{Code, Status};

use super::{judged, tell};
use crate::Host;

const RUNTIME: &str = "/runtime.v1.RuntimeService/";

/// Calls a method with these bytes.
async fn call(host: &Host, method: &'static str, body: Vec<u8>) -> Result<(), Status> {
    raw(&host.daemon.socket(), method, body).await
}

/// A field of a message: its number and its content.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    let mut length = content.len();
    while length >= 0x80 {
        bytes.push(u8::try_from(length & 0x7f).unwrap() | 0x80);
        length >>= 7;
    }
    bytes.push(u8::try_from(length).unwrap());
    bytes.extend(content);
    bytes
}

fn text(number: u8, text: &str) -> Vec<u8> {
    field(number, text.as_bytes())
}

/// Kilobytes of memory that the daemon has in use.
fn resident(host: &Host) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", host.daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.unwrap().trim().trim_end_matches(" kB");
    number.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_no_request_are_answered_and_disturb_nobody() {
    let host = Host::without_image().await;
    let before = resident(&host);
    let status = "/runtime.v1.RuntimeService/ContainerStatus";
    // Groups may lie in groups: field 9 begins a group.
    let deep = vec![9 << 3 | 3; 1_000_000];
    // A number of eleven bytes, and one of more than 64 bits, where a limit is.
    let update = "/runtime.v1.RuntimeService/UpdateContainerResources";
    let number = [&[0x12, 12, 0x08][..], &[0xff; 10], &[0x01]].concat();
    let mut wrong = Vec::new();
    for (case, method, body) in [
        (
            "G2 a string that is no UTF-8",
            status,
            b"\x0a\x02\xff\xfe".to_vec(),
        ),
        ("G3 a string that ends early", status, b"\x0a\xff".to_vec()),
        (
            "G3 a length of 2^63",
            status,
            b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f".to_vec(),
        ),
        ("G3 a field without end", status, vec![0xff; 100]),
        ("G3 a million groups in each other", status, deep),
        ("G21 a number of more than 64 bits", update, number),
    ] {
        let answer = call(&host, method, body).await;
        let code = answer.as_ref().err().map(Status::code);
        if !matches!(code, Some(Code::Internal | Code::InvalidArgument)) {
            wrong.push(format!("{case}: {answer:?}"));
        } else if let Err(status) = answer {
            tell(case, &format!("{:?} {}", status.code(), status.message()));
        }
    }
    // kubelet's own limit is 16 MiB; what is larger than ours is refused by its length alone.
    for (case, size, code) in [
        ("G1 a message of 20 MiB", 20 << 20, Code::NotFound),
        ("G1 a message of 65 MiB", 65 << 20, Code::OutOfRange),
    ] {
        let answer = call(&host, status, text(1, &"x".repeat(size))).await;
        wrong.extend(judged(case, answer, code, ""));
    }
    let answer = call(&host, "/runtime.v1.RuntimeService/NoSuchMethod", Vec::new()).await;
    wrong.extend(judged(
        "G3 a method that is none",
        answer,
        Code::Unimplemented,
        "",
    ));
    let answer = call(
        &host,
        "/runtime.v1alpha2.RuntimeService/Version",
        Vec::new(),
    )
    .await;
    wrong.extend(judged(
        "G3 a version of the protocol that is gone",
        answer,
        Code::Unimplemented,
        "",
    ));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    host.daemon
        .connect()
        .await
        .expect("the daemon is not disturbed");
    let more = resident(&host).saturating_sub(before) >> 10;
    tell("G1 memory after all that", &format!("{more} MiB more"));
    assert!(more < 200, "{more} MiB");
}

/// Every method that takes an id, what else it needs to come to look for it, and whether there being
/// no such thing is fine.
fn methods() -> Vec<(&'static str, Vec<u8>, bool)> {
    let method = |name: &'static str, more: Vec<u8>, fine| (name, more, fine);
    let cmd = text(2, "true");
    let config = [field(1, &text(1, "c")), field(2, &text(1, "none"))].concat();
    vec![
        method("StopPodSandbox", vec![], true),
        method("RemovePodSandbox", vec![], true),
        method("PodSandboxStatus", vec![], false),
        method("CreateContainer", field(2, &config), false),
        method("StartContainer", vec![], false),
        method("StopContainer", vec![], true),
        method("RemoveContainer", vec![], true),
        method("ContainerStatus", vec![], false),
        method("UpdateContainerResources", vec![0x12, 0], false),
        method("ReopenContainerLog", vec![], false),
        method("ExecSync", cmd.clone(), false),
        method("Exec", [&cmd[..], &[0x28, 1]].concat(), false),
        method("Attach", vec![0x20, 1], false),
        method("PortForward", vec![], false),
        method("ContainerStats", vec![], false),
        method("PodSandboxStats", vec![], false),
        method("UpdatePodSandboxResources", vec![], false),
        method("CheckpointContainer", vec![], false),
    ]
}

fn path(method: &str) -> &'static str {
    Box::leak(format!("{RUNTIME}{method}").into_boxed_str())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_that_nobody_has_are_not_found_by_any_method_and_stopping_them_is_fine() {
    let host = Host::new().await;
    // The only ones there are: no id that is none may lead to them.
    let (pod, container) = host.running("only", &["sleep", "1000"]).await;
    let (unknown, long) = ("f".repeat(64), "f".repeat(1 << 20));
    let ids = [
        ("unknown", &*unknown),
        ("empty", ""),
        ("a path", "../../etc"),
        ("all", "*"),
        ("of two lines", "a\nb"),
        ("of 1 MiB", &*long),
    ];
    let mut wrong = Vec::new();
    for (kind, id) in ids {
        let (mut fine, mut refused) = (Vec::new(), Vec::new());
        for (method, more, may) in methods() {
            let answer = call(&host, path(method), [text(1, id), more].concat()).await;
            match answer.as_ref().map_err(Status::code) {
                Ok(()) if may => fine.push(method),
                Err(Code::NotFound) if !may => refused.push(method),
                Err(Code::InvalidArgument) if id.is_empty() && !may => refused.push(method),
                Err(Code::Unimplemented) if method == "CheckpointContainer" => {}
                _ => wrong.push(format!("{method} of an id {kind}: {answer:?}")),
            }
        }
        tell(
            &format!("G25 an id {kind}"),
            &format!(
                "{} say it is not there, {} that it is gone",
                refused.len(),
                fine.len()
            ),
        );
        let filter = ContainerFilter {
            id: id.chars().take(1000).collect(),
            ..ContainerFilter::default()
        };
        let request = ListContainersRequest {
            filter: Some(filter),
        };
        let mut runtime = host.pods.cri.runtime.clone();
        let found = runtime.list_containers(request).await;
        let found = found.map(|answer| answer.into_inner().containers.len());
        let expected = usize::from(id.is_empty());
        if found.as_ref().ok() != Some(&expected) {
            wrong.push(format!("a filter for an id {kind}: {found:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let state = host.pods.status(&container).await.unwrap().state;
    assert_eq!(state, 1, "the only container is untouched");
    assert_eq!(host.pods.pods().await.unwrap(), [pod]);
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_is_taken_once_and_a_prefix_means_one_or_none() {
    let host = Host::new().await;
    let sandbox = host.pods.sandbox("names");
    let pod = host.pods.run(&sandbox).await.unwrap();
    let mut ids: Vec<String> = Vec::new();
    // Seventeen ids of sixteen first digits.
    let shared = loop {
        let config = host.pods.container(&format!("c{}", ids.len()), &["true"]);
        let id = host.pods.create(&pod, &config, &sandbox).await.unwrap();
        let first = id[..1].to_owned();
        let met = ids.iter().any(|known| known.starts_with(&first));
        ids.push(id);
        if met {
            break first;
        }
    };
    let mut wrong = Vec::new();
    let case = "G25 a prefix that two ids have";
    let more = "more than one";
    let answer = host.pods.status(&shared).await;
    wrong.extend(judged(case, answer, Code::InvalidArgument, more));
    let answer = host.pods.remove(&shared).await;
    wrong.extend(judged(case, answer, Code::InvalidArgument, more));
    let answer = host.pods.stop(&shared, 0).await;
    wrong.extend(judged(case, answer, Code::InvalidArgument, more));
    let config = host.pods.container("c0", &["other", "command"]);
    let answer = host.pods.create(&pod, &config, &sandbox).await;
    wrong.extend(judged(
        "G25 a name that is taken by another",
        answer,
        Code::AlreadyExists,
        &ids[0],
    ));
    let same = host.pods.container("c0", &["true"]);
    let again = host.pods.create(&pod, &same, &sandbox).await.unwrap();
    assert_eq!(again, ids[0]);
    tell("G25 the same request again", "the same id");
    let mut other = sandbox.clone();
    other.hostname = "other".into();
    let answer = host.pods.run(&other).await;
    wrong.extend(judged(
        "G25 a pod's name that is taken by another",
        answer,
        Code::AlreadyExists,
        &pod,
    ));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(host.pods.containers().await.unwrap().len(), ids.len());
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_that_are_none_are_refused_before_anything_runs() {
    let host = Host::new().await;
    let (_pod, id) = host.running("commands", &["sleep", "1000"]).await;
    let long = "x".repeat(100_000);
    let many: Vec<&str> = vec![&long; 60];
    let fitting: Vec<&str> = [&["true"][..], &many[..15]].concat();
    let mut wrong = Vec::new();
    for (case, command) in [
        ("G15 no command", &[][..]),
        ("G15 a command of no name", &["", "x"]),
        ("G15 a command with NUL", &["sh", "-c", "a\0b"]),
        ("G15 a command of 6 MB", &many),
    ] {
        let answer = host.pods.exec(&id, command).await;
        wrong.extend(judged(case, answer, Code::InvalidArgument, "cmd"));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let answer = host.pods.exec(&id, &fitting).await.unwrap();
    tell(
        "G15 a command of 1.5 MB",
        &format!("code {}", answer.exit_code),
    );
    assert_eq!(answer.exit_code, 0);
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_that_are_no_images_are_refused_by_every_method() {
    let host = Host::without_image().await;
    let digest = format!("registry.k8s.io/pause@sha256:{}", "A".repeat(64));
    let mut wrong = Vec::new();
    for (case, name) in [
        ("G23 a short digest", "registry.k8s.io/pause@sha256:abc"),
        ("G23 a digest in capitals", &digest),
        (
            "G23 a digest that is a path",
            "pause@sha256:../../etc/passwd",
        ),
        ("G23 an image that is a path", "../../etc/passwd"),
        ("G23 an absolute path", "/etc/passwd"),
        ("G23 an address", "http://169.254.169.254/latest"),
        ("G23 an image of two lines", "pause\nHost: evil"),
        ("G23 an image of 5 KiB", &"a".repeat(5 << 10)),
        (
            "G23 letters that look like others",
            "regіstry.k8s.io/pause:1",
        ),
    ] {
        let image = Some(ImageSpec {
            image: name.to_owned(),
            ..ImageSpec::default()
        });
        let mut images = host.pods.cri.image.clone();
        let request = PullImageRequest {
            image: image.clone(),
            ..PullImageRequest::default()
        };
        let answer = images.pull_image(request).await;
        wrong.extend(judged(case, answer, Code::InvalidArgument, ""));
        let request = ImageStatusRequest {
            image,
            verbose: false,
        };
        // A name that is none is the name of nothing.
        match images.image_status(request).await {
            Ok(answer) if answer.get_ref().image.is_none() => {}
            Err(status) if status.code() == Code::InvalidArgument => {}
            other => wrong.push(format!("{case}: {other:?}")),
        }
        match host.pods.remove_image(name).await {
            Ok(()) => {}
            Err(status) if status.code() == Code::InvalidArgument => {}
            Err(status) => wrong.push(format!("{case}: {status:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_calls_at_once_are_all_answered() {
    let host = Host::new().await;
    let (_pod, id) = host.running("crowd", &["sleep", "1000"]).await;
    let before = resident(&host);
    let began = Instant::now();
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let client = host.daemon.connect().await.unwrap();
        for _ in 0..crate::repeats(125, 500) {
            let (mut runtime, id) = (client.runtime.clone(), id.clone());
            calls.spawn(async move {
                let filter = Some(ContainerFilter {
                    id,
                    ..ContainerFilter::default()
                });
                let answer = runtime
                    .list_containers(ListContainersRequest { filter })
                    .await;
                answer.map(|answer| answer.into_inner().containers.len())
            });
        }
    }
    let answers = calls.join_all().await;
    let right = answers.iter().filter(|a| matches!(a, Ok(1))).count();
    let more = resident(&host).saturating_sub(before) >> 10;
    tell(
        &format!("G30 {} calls on 20 connections at once", answers.len()),
        &format!(
            "{right} right answers in {:?}, {more} MiB more",
            began.elapsed()
        ),
    );
    assert_eq!(right, answers.len());
    assert!(more < 200, "{more} MiB");
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_listeners_that_do_not_read_hold_up_nobody() {
    const LISTENERS: usize = 1000;
    const LIVES: usize = 3;
    let host = Host::new().await;
    let before = resident(&host);
    let mut deaf = Vec::new();
    for _ in 0..4 {
        let client = host.daemon.connect().await.unwrap();
        for _ in 0..LISTENERS / 4 {
            let mut runtime = client.runtime.clone();
            let events = runtime.get_container_events(GetEventsRequest {}).await;
            deaf.push(events.unwrap().into_inner());
        }
    }
    let mut runtime = host.daemon.connect().await.unwrap().runtime;
    let events = runtime.get_container_events(GetEventsRequest {}).await;
    let mut heard = events.unwrap().into_inner();
    let began = Instant::now();
    let sandbox = host.pods.sandbox("told");
    let pod = host.pods.run(&sandbox).await.unwrap();
    for number in 0..LIVES {
        let config = host.pods.container(&format!("c{number}"), &["true"]);
        let id = host.pods.launch(&pod, &config, &sandbox).await.unwrap();
        host.pods.remove(&id).await.unwrap();
    }
    let mut deleted = 0;
    while deleted < LIVES {
        let event = tokio::time::timeout(Duration::from_secs(60), heard.message());
        let event = event.await.expect("it hears").unwrap().unwrap();
        let kind = event.container_event_type();
        deleted += usize::from(kind == ContainerEventType::ContainerDeletedEvent);
    }
    let more = resident(&host).saturating_sub(before) >> 10;
    tell(
        "G30 1000 listeners that do not read",
        &format!(
            "{LIVES} lives are heard in {:?}, {more} MiB more",
            began.elapsed()
        ),
    );
    assert!(more < 200, "{more} MiB");
    drop((deaf, heard));
    let threads = || fs::read_dir(format!("/proc/{}/fd", host.daemon.pid())).unwrap();
    assert!(until(Duration::from_secs(10), || threads().count() < 200));
    host.pods.remove_all().await.unwrap();
}

/// Seconds of processor time that the daemon has used.
fn used(host: &Host) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", host.daemon.pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks = |at: usize| fields[at].parse::<f64>().unwrap();
    (ticks(11) + ticks(12)) / 100.0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_without_end_are_not_worth_a_processor() {
    let host = Host::new().await;
    let (_pod, id) = host.running("crowded", &["sleep", "1000"]).await;
    let descriptors = || {
        let entries = fs::read_dir(format!("/proc/{}/fd", host.daemon.pid()));
        entries.unwrap().count()
    };
    let limit = descriptors() + 50;
    let pid = i32::try_from(host.daemon.pid()).unwrap();
    let limited = std::process::Command::new("prlimit")
        .args(["--pid", &pid.to_string(), &format!("--nofile={limit}:")])
        .status();
    assert!(limited.unwrap().success());
    let socket = host.daemon.socket();
    let connect = || std::os::unix::net::UnixStream::connect(&socket);
    let crowd: Vec<_> = (0..100).map_while(|_| connect().ok()).collect();
    assert!(until(Duration::from_secs(10), || descriptors() + 1 >= limit));
    let (began, before) = (Instant::now(), used(&host));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let share = (used(&host) - before) / began.elapsed().as_secs_f64();
    drop(crowd);
    // And when they have gone everything is as before.
    let mut client = Cri::connect_until_served(&socket, Duration::from_secs(10))
        .await
        .unwrap();
    let version = client.runtime.version(VersionRequest::default());
    version.await.unwrap();
    let answer = host.pods.exec(&id, &["echo", "fine"]).await.unwrap();
    assert_eq!(answer.stdout, b"fine\n");
    tell(
        "G30 more connections than descriptors",
        &format!(
            "{:.0} % of a processor meanwhile, then served",
            share * 100.0
        ),
    );
    assert!(share < 0.2, "{share}");
    host.pods.remove_all().await.unwrap();
}
