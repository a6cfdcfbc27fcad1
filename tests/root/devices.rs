//! Devices: those of the host, those that a vendor's CDI spec describes, and classes.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use crisp_harness::{
    cri::v1::{
        CdiDevice, ContainerConfig, ContainerState, Device, HugepageLimit, LinuxContainerResources,
        StatusRequest,
    },
    daemon::Kind,
    process::until,
    suite::BUSYBOX,
};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use tonic::Code;

use crate::Host;

/// The numbers of /dev/fuse: a character device that no container may use unless it is told so.
const FUSE: (u64, u64) = (10, 229);

/// A device node in a directory of the test's.
fn node(path: &Path, (major, minor): (u64, u64)) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mode = Mode::from_bits_truncate(0o666);
    mknod(path, SFlag::S_IFCHR, mode, makedev(major, minor)).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    fs::set_permissions(path, mode).unwrap();
}

async fn told(host: &Host, id: &str, script: &str) -> String {
    let answer = host.pods.exec(id, &["sh", "-c", script]).await.unwrap();
    let text = [answer.stdout, answer.stderr].concat();
    String::from_utf8_lossy(&text).into_owned()
}

/// Whether the device policy lets `path` be opened: what a driver says beyond that is its own affair.
async fn allowed(host: &Host, id: &str, path: &str, how: &str) -> bool {
    let text = told(host, id, &format!(": {how} {path}")).await;
    !text.contains("Operation not permitted")
}

async fn launched(host: &Host, config: ContainerConfig) -> (String, String) {
    let name = config.metadata.as_ref().unwrap().name.clone();
    let sandbox = host.pods.sandbox(&format!("pod-{name}"));
    let pod = host.pods.run(&sandbox).await.unwrap();
    let id = host.pods.launch(&pod, &config, &sandbox).await.unwrap();
    (pod, id)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_devices_come_with_their_permissions_and_directories_with_all_of_theirs() {
    let host = Host::new().await;
    let dir = host.daemon.site().dir().join("devices");
    node(&dir.join("one"), FUSE);
    node(&dir.join("many/a"), (10, 232));
    node(&dir.join("many/deep/b"), (10, 237));
    let device = |container_path: &str, host_path: PathBuf, permissions: &str| Device {
        container_path: container_path.to_owned(),
        host_path: host_path.to_string_lossy().into_owned(),
        permissions: permissions.to_owned(),
    };
    let mut config = host.pods.container("c", &["sleep", "1000"]);
    config.devices = vec![
        device("/dev/mine", dir.join("one"), "r"),
        device("/dev/all", dir.join("many"), "rw"),
    ];
    let (_, id) = launched(&host, config).await;
    let text = told(&host, &id, "ls -l /dev/mine /dev/all/a /dev/all/deep/b").await;
    for number in ["10, 229", "10, 232", "10, 237"] {
        assert!(text.contains(number), "{text}");
    }
    assert!(
        allowed(&host, &id, "/dev/mine", "<").await,
        "it may be read"
    );
    assert!(
        !allowed(&host, &id, "/dev/mine", ">").await,
        "and not written"
    );
    assert!(allowed(&host, &id, "/dev/all/a", "<>").await);
    let text = told(&host, &id, "mknod /dev/other c 10 235 && : < /dev/other").await;
    assert!(
        text.contains("Operation not permitted"),
        "others are denied: {text}"
    );
    host.pods.remove_all().await.unwrap();
}

/// A vendor's spec as its tools write it, with hooks that leave marks in `dir`.
fn vendor_spec(dir: &Path) -> String {
    let dir = dir.display();
    let hook = |name: &str, script: &str| {
        format!(
            "  - hookName: {name}\n    path: /bin/busybox\n    args: [busybox, sh, -c, '{script}']\n"
        )
    };
    let hooks = [
        hook("createRuntime", &format!("cat > {dir}/created")),
        // Finds the root by what it is told, as vendors' tools do.
        hook(
            "createContainer",
            "b=$(busybox sed -e s/.*\\\"bundle\\\":\\\"// -e s/\\\".*//); \
             echo by-hook > $b/rootfs/by-hook",
        ),
        hook("poststop", &format!("cat > {dir}/stopped")),
    ]
    .concat();
    format!(
        "---\ncdiVersion: 0.7.0\nkind: vendor.com/gpu\ncontainerEdits:\n  env:\n  - \
         VENDOR_VISIBLE=yes\n  hooks:\n{hooks}  mounts:\n  - hostPath: {dir}/vendor/lib\n    \
         containerPath: /usr/lib/vendor\n    options: [ro, nosuid, nodev, rbind, rprivate]\n\
         devices:\n- name: \"0\"\n  containerEdits:\n    env: [VENDOR_GPU=zero]\n    deviceNodes:\n    \
         - path: /dev/vendor/gpu0\n      hostPath: {dir}/nodes/gpu0\n      permissions: rw\n    \
         additionalGids: [4321]\n- name: \"1\"\n  containerEdits:\n    env: [VENDOR_SECOND=one]\n    \
         deviceNodes:\n    - path: /dev/vendor/gpu1\n      type: c\n      major: 10\n      minor: 237\n      \
         fileMode: 0600\n      uid: 7\n"
    )
}

async fn vendor_host() -> (Host, PathBuf) {
    let host = Host::configured(|dir| {
        format!(
            "[runtime]\ncdi_dirs = [{:?}, {:?}]\n",
            dir.join("none"),
            dir.join("cdi")
        )
    })
    .await;
    host.pods.pull(BUSYBOX).await.unwrap();
    let dir = host.daemon.site().dir().join("vendor-site");
    fs::create_dir_all(dir.join("vendor/lib")).unwrap();
    fs::write(dir.join("vendor/lib/libvendor.so"), "code\n").unwrap();
    node(&dir.join("nodes/gpu0"), FUSE);
    (host, dir)
}

fn cdi(names: &[&str]) -> Vec<CdiDevice> {
    let device = |name: &&str| CdiDevice {
        name: (*name).to_owned(),
    };
    names.iter().map(device).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vendors_device_brings_nodes_mounts_environment_groups_and_hooks() {
    let (mut host, dir) = vendor_host().await;
    if host.daemon.kind() != Kind::Crisp {
        return;
    }
    let specs = host.daemon.site().dir().join("cdi");
    fs::create_dir(&specs).unwrap();
    let file = specs.join("vendor.yaml");
    fs::write(&file, vendor_spec(&dir)).unwrap();
    let mut config = host.pods.container("gpu", &["sleep", "1000"]);
    config.cdi_devices = cdi(&["vendor.com/gpu=0"]);
    let more = "vendor.com/gpu=1,vendor.com/gpu=0".to_owned();
    drop(
        config
            .annotations
            .insert("cdi.k8s.io/plugin".to_owned(), more),
    );
    let (pod, id) = launched(&host, config.clone()).await;

    let seen = "echo $VENDOR_VISIBLE $VENDOR_GPU $VENDOR_SECOND; id -G; \
                ls -ln /dev/vendor; cat /usr/lib/vendor/libvendor.so /by-hook; \
                touch /usr/lib/vendor/x";
    let before = told(&host, &id, seen).await;
    for part in [
        "yes zero one\n",
        "4321",
        "10, 229",
        "10, 237",
        "code\n",
        "by-hook\n",
        "Read-only file system",
    ] {
        assert!(before.contains(part), "{part:?} in {before}");
    }
    assert!(
        before
            .lines()
            .any(|line| line.starts_with("crw-------") && line.contains(" 7 ")),
        "mode and owner as the spec says: {before}"
    );
    assert!(allowed(&host, &id, "/dev/vendor/gpu0", "<>").await);
    let user = host.pods.status(&id).await.unwrap().user.unwrap();
    assert!(user.linux.unwrap().supplemental_groups.contains(&4321));
    let created: serde_json::Value =
        serde_json::from_slice(&fs::read(dir.join("created")).unwrap()).unwrap();
    assert_eq!(
        (&created["id"], &created["status"]),
        (&id.as_str().into(), &"creating".into())
    );
    assert_eq!(created["pid"], host.pods.pid(&id).await.unwrap());

    host.daemon.kill().unwrap();
    host.again().await;
    assert_eq!(
        told(&host, &id, seen).await,
        before,
        "the same after a restart"
    );

    // What is known is told, and what is gone is named.
    let mut client = host.pods.cri.runtime.clone();
    let request = StatusRequest { verbose: true };
    let info = client.status(request).await.unwrap().into_inner().info;
    assert!(info["cdi"].contains("vendor.com/gpu=1"), "{}", info["cdi"]);
    fs::remove_file(&file).unwrap();
    let sandbox = host.pods.sandbox("pod-gpu");
    config.metadata.as_mut().unwrap().attempt = 1;
    let error = host.pods.create(&pod, &config, &sandbox).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("vendor.com/gpu=0"), "{error}");

    assert!(!dir.join("stopped").exists());
    host.pods.stop(&id, 0).await.unwrap();
    let stopped = until(Duration::from_secs(10), || {
        fs::read_to_string(dir.join("stopped")).is_ok_and(|text| text.contains("\"stopped\""))
    });
    assert!(stopped, "the hook for the end has run");
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_of_a_device_that_fails_is_told_and_leaves_nothing() {
    let (host, _) = vendor_host().await;
    if host.daemon.kind() != Kind::Crisp {
        return;
    }
    let specs = host.daemon.site().dir().join("cdi");
    fs::create_dir(&specs).unwrap();
    for (device, point) in [("early", "createContainer"), ("late", "poststart")] {
        let spec = serde_json::json!({
            "cdiVersion": "0.6.0",
            "kind": format!("vendor.com/{device}"),
            "devices": [{"name": "x", "containerEdits": {"hooks": [{
                "hookName": point, "path": "/bin/busybox",
                "args": ["busybox", "sh", "-c", "echo no device behind the node; exit 7"],
            }]}}],
        });
        fs::write(specs.join(format!("{device}.json")), spec.to_string()).unwrap();
    }
    let sandbox = host.pods.sandbox("hooks");
    let pod = host.pods.run(&sandbox).await.unwrap();
    let mut config = host.pods.container("early", &["sleep", "1000"]);
    config.cdi_devices = cdi(&["vendor.com/early=x"]);
    let error = host.pods.create(&pod, &config, &sandbox).await.unwrap_err();
    for part in ["createContainer", "no device behind the node"] {
        assert!(error.message().contains(part), "{error}");
    }
    let mut config = host.pods.container("late", &["sleep", "1000"]);
    config.cdi_devices = cdi(&["vendor.com/late=x"]);
    let id = host.pods.create(&pod, &config, &sandbox).await.unwrap();
    let error = host.pods.start(&id).await.unwrap_err();
    assert!(error.message().contains("poststart"), "{error}");
    let status = host
        .pods
        .exited(&id, Duration::from_secs(10))
        .await
        .unwrap();
    assert_eq!(status.state(), ContainerState::ContainerExited);
    assert_eq!(status.exit_code, 128, "{status:?}");
    assert_eq!(host.pods.containers().await.unwrap().len(), 1);
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn classes_are_in_force_or_named_when_they_are_not_there() {
    let host = Host::configured(|dir| {
        format!(
            "[runtime]\nblockio_config = {:?}\n",
            dir.join("classes.yaml")
        )
    })
    .await;
    if host.daemon.kind() != Kind::Crisp {
        return;
    }
    host.pods.pull(BUSYBOX).await.unwrap();
    let mut sandbox = host.pods.sandbox("classes");
    let annotation = "blockio.resources.beta.kubernetes.io/container.slow".to_owned();
    drop(sandbox.annotations.insert(annotation, "slow".to_owned()));
    let annotation = "rdt.resources.beta.kubernetes.io/container.cached".to_owned();
    drop(
        sandbox
            .annotations
            .insert(annotation, "no-such-class".to_owned()),
    );
    let pod = host.pods.run(&sandbox).await.unwrap();
    let cached = host.pods.container("cached", &["sleep", "1000"]);
    let error = host.pods.create(&pod, &cached, &sandbox).await.unwrap_err();
    assert!(error.message().contains("no-such-class"), "{error}");
    let slow = host.pods.container("slow", &["sleep", "1000"]);
    let error = host.pods.create(&pod, &slow, &sandbox).await.unwrap_err();
    assert!(error.message().contains("\"slow\""), "{error}");
    let file = host.daemon.site().dir().join("classes.yaml");
    let class = "Classes:\n  slow:\n  - Devices: [/dev/loop0]\n    ThrottleReadBps: 5M\n";
    fs::write(file, class).unwrap();
    let id = host.pods.launch(&pod, &slow, &sandbox).await.unwrap();
    if Path::new("/dev/loop0").exists() {
        let limit = "cat /sys/fs/cgroup/blkio/blkio.throttle.read_bps_device /sys/fs/cgroup/io.max";
        let text = told(&host, &id, limit).await;
        assert!(text.contains("7:0") && text.contains("5000000"), "{text}");
    }
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hugepage_limits_hold_where_the_host_has_the_controller_and_harm_nobody_elsewhere() {
    let host = Host::new().await;
    let mut config = host.pods.container("c", &["sleep", "1000"]);
    config.linux.as_mut().unwrap().resources = Some(LinuxContainerResources {
        // kubelet sends one for every size of the node, mostly 0.
        hugepage_limits: vec![HugepageLimit {
            page_size: "2MB".to_owned(),
            limit: 4 << 20,
        }],
        ..LinuxContainerResources::default()
    });
    let (_, id) = launched(&host, config).await;
    let files = "cat /sys/fs/cgroup/hugetlb/hugetlb.2MB.limit_in_bytes \
                 /sys/fs/cgroup/hugetlb.2MB.max 2>/dev/null";
    let text = told(&host, &id, files).await;
    assert!(text.is_empty() || text == "4194304\n", "{text}");
    host.pods.remove_all().await.unwrap();
}
