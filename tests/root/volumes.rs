//! Mounts: images as volumes (what the newer suite demands, a test each), options, sources, order.

use std::fs;

use crisp_harness::{
    cri::v1::{ContainerConfig, ImageSpec, Mount, StatusRequest},
    daemon::Kind,
    suite::BUSYBOX,
};
use tonic::Code;

use crate::{
    Host,
    users::{container_context, options},
};

/// An image of more than one layer.
const LAYERED: &str = "gcr.io/k8s-staging-cri-tools/test-image-1:latest";
const AT: &str = "/mnt/image-volume";

/// A container that sleeps, with an image as its volume.
fn with_image(host: &Host, name: &str, image: &str, sub_path: &str) -> ContainerConfig {
    let mut config = host.pods.container(name, &["sleep", "1000"]);
    config.mounts.push(Mount {
        container_path: AT.to_owned(),
        readonly: true,
        image: Some(ImageSpec {
            image: image.to_owned(),
            user_specified_image: "as-the-user-wrote-it".to_owned(),
            ..ImageSpec::default()
        }),
        image_sub_path: sub_path.to_owned(),
        ..Mount::default()
    });
    config
}

fn bind(container_path: &str, host_path: &std::path::Path) -> Mount {
    Mount {
        container_path: container_path.to_owned(),
        host_path: host_path.to_string_lossy().into_owned(),
        ..Mount::default()
    }
}

/// What a command prints on either stream, and its code.
async fn told(host: &Host, id: &str, script: &str) -> (String, i32) {
    let answer = host.pods.exec(id, &["sh", "-c", script]).await.unwrap();
    let text = [answer.stdout, answer.stderr].concat();
    (
        String::from_utf8_lossy(&text).into_owned(),
        answer.exit_code,
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_volume_reports_the_digest_that_the_pull_told() {
    let host = Host::new().await;
    let image = host.pods.pull(LAYERED).await.unwrap();
    let sandbox = host.pods.sandbox("digest");
    let pod = host.pods.run(&sandbox).await.unwrap();
    let config = with_image(&host, "c", &image, "");
    let id = host.pods.create(&pod, &config, &sandbox).await.unwrap();
    let status = host.pods.status(&id).await.unwrap();
    let mount = status.mounts.iter().find(|m| m.container_path == AT);
    let mount = mount.expect("the mount is listed");
    let shown = mount.image.as_ref().expect("with its image");
    assert_eq!((&shown.image, &shown.image_ref), (&image, &image));
    assert_eq!(shown.user_specified_image, "as-the-user-wrote-it");
    assert!(mount.readonly && mount.host_path.is_empty());
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_volume_is_read_only_and_its_programs_run() {
    let host = Host::new().await;
    let image = host.pods.pull(LAYERED).await.unwrap();
    let (pod, id) = launched(&host, with_image(&host, "c", &image, "")).await;
    let (text, code) = told(&host, &id, "cat /mnt/image-volume/test-image-1.txt").await;
    assert_eq!((&*text, code), ("test-image-1\n", 0));
    let (text, code) = told(&host, &id, "touch /mnt/image-volume/x").await;
    assert!(
        code != 0 && text.contains("Read-only file system"),
        "{text}"
    );
    let (text, code) = told(&host, &id, "/mnt/image-volume/bin/ls /mnt/image-volume").await;
    assert!(code == 0 && text.contains("bin\n"), "{text}");
    // One mount, and nothing of it on the host.
    let (text, _) = told(
        &host,
        &id,
        "grep -c ' /mnt/image-volume ' /proc/self/mountinfo",
    )
    .await;
    assert_eq!(text, "1\n");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains("volumes/0") && !mounts.contains(AT));
    host.pods.stop_pod(&pod).await.unwrap();
    host.pods.remove_pod(&pod).await.unwrap();
}

/// A pod with one started container: ids of both.
async fn launched(host: &Host, config: ContainerConfig) -> (String, String) {
    let name = config.metadata.as_ref().unwrap().name.clone();
    let sandbox = host.pods.sandbox(&format!("pod-{name}"));
    let pod = host.pods.run(&sandbox).await.unwrap();
    let id = host.pods.launch(&pod, &config, &sandbox).await.unwrap();
    (pod, id)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writable_image_volume_is_refused() {
    let host = Host::new().await;
    let sandbox = host.pods.sandbox("writable");
    let pod = host.pods.run(&sandbox).await.unwrap();
    let mut config = with_image(&host, "c", BUSYBOX, "");
    config.mounts[0].readonly = false;
    let error = host.pods.create(&pod, &config, &sandbox).await.unwrap_err();
    assert!(error.code() != Code::Unimplemented && error.code() != Code::Unknown);
    if host.daemon.kind() == Kind::Crisp {
        assert!(error.message().contains("mounts[0].readonly"), "{error}");
    }
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_of_an_image_is_a_volume() {
    let host = Host::new().await;
    host.pods.pull(LAYERED).await.unwrap();
    let (_, id) = launched(&host, with_image(&host, "c", LAYERED, "etc")).await;
    let (text, code) = told(&host, &id, "ls /mnt/image-volume; ls /mnt/image-volume/etc").await;
    assert!(text.contains("passwd") && code != 0, "{text}");
    let (_, code) = told(&host, &id, "touch /mnt/image-volume/x").await;
    assert_ne!(code, 0);
    if host.daemon.kind() == Kind::Crisp {
        // Its own root is as far as it goes.
        let climbing = with_image(&host, "d", BUSYBOX, "etc/../../../etc");
        let (_, id) = launched(&host, climbing).await;
        let (text, code) = told(&host, &id, "cat /mnt/image-volume/passwd").await;
        assert!(code == 0 && text.contains("www-data"), "{text}");
    }
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_directory_of_an_image_is_an_error_kubelet_knows() {
    let host = Host::new().await;
    let sandbox = host.pods.sandbox("missing");
    let pod = host.pods.run(&sandbox).await.unwrap();
    for sub_path in ["not-existing", "etc/passwd"] {
        let config = with_image(&host, "c", BUSYBOX, sub_path);
        let error = host.pods.create(&pod, &config, &sandbox).await.unwrap_err();
        let text = error.message();
        assert!(text.contains("ImageVolumeMountFailed"), "{error}");
        assert!(text.contains(sub_path), "{error}");
        assert_ne!(error.code(), Code::Unimplemented);
    }
    let config = with_image(&host, "c", "registry.k8s.io/nobody/pulled:1", "");
    let error = host.pods.create(&pod, &config, &sandbox).await.unwrap_err();
    assert!(
        error.message().contains("registry.k8s.io/nobody/pulled:1"),
        "{error}"
    );
    // Nothing of the attempts is in the way.
    let config = with_image(&host, "c", BUSYBOX, "");
    host.pods.launch(&pod, &config, &sandbox).await.unwrap();
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_pod_with_users_an_image_volume_has_the_owners_of_the_image() {
    let host = Host::new().await;
    let sandbox = host.pod_with_users("image-users");
    let users = options(&mut sandbox.clone())
        .userns_options
        .clone()
        .unwrap();
    let pod = host.pods.run(&sandbox).await.unwrap();
    for (name, sub_path, file) in [("whole", "", "etc/passwd"), ("part", "etc", "passwd")] {
        let mut config = with_image(&host, name, BUSYBOX, sub_path);
        // kubelet asks for it as for every volume of such a pod.
        config.mounts[0].uid_mappings = users.uids.clone();
        config.mounts[0].gid_mappings = users.gids.clone();
        container_context(&mut config)
            .namespace_options
            .as_mut()
            .unwrap()
            .userns_options = Some(users.clone());
        let id = host.pods.launch(&pod, &config, &sandbox).await.unwrap();
        let script = format!("stat -c '%u %g' {AT}/{file}; touch {AT}/x");
        let (text, code) = told(&host, &id, &script).await;
        assert!(text.starts_with("0 0\n") && code != 0, "{name}: {text}");
        assert!(text.contains("Read-only file system"), "{name}: {text}");
    }
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_removed_under_a_container_stays_whole_for_it() {
    let mut host = Host::new().await;
    let image = host.pods.pull(LAYERED).await.unwrap();
    let (pod, id) = launched(&host, with_image(&host, "c", LAYERED, "")).await;
    host.pods.remove_image(LAYERED).await.unwrap();
    let read = "cat /mnt/image-volume/test-image-1.txt && ls /mnt/image-volume/bin | wc -l";
    let (before, code) = told(&host, &id, read).await;
    assert_eq!(code, 0, "{before}");
    host.daemon.kill().unwrap();
    host.again().await;
    let (after, _) = told(&host, &id, read).await;
    assert_eq!(after, before, "a new daemon's collection leaves it alone");
    if host.daemon.kind() == Kind::Crisp {
        let status = host.pods.status(&id).await.unwrap();
        let shown = status.mounts[0].image.as_ref().unwrap();
        assert_eq!(shown.image_ref, image, "the digest is remembered");
        let sandbox = host.pods.sandbox("pod-c");
        let config = with_image(&host, "late", LAYERED, "");
        let error = host.pods.create(&pod, &config, &sandbox).await.unwrap_err();
        assert_eq!(error.code(), Code::NotFound, "{error}");
    }
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mount_options_are_in_force_for_the_one_mount() {
    let host = Host::new().await;
    if host.daemon.kind() != Kind::Crisp {
        return;
    }
    let mut client = host.pods.cri.runtime.clone();
    let status = client.status(StatusRequest::default()).await.unwrap();
    assert!(status.into_inner().features.unwrap().mount_options);
    let shared = host.daemon.site().dir().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("run"), "#!/bin/sh\necho ran\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(shared.join("run"), mode).unwrap();
    let mut config = host.pods.container("c", &["sleep", "1000"]);
    config.mounts.push(bind("/plain", &shared));
    let mut hardened = bind("/hardened", &shared);
    hardened.mount_options = ["noexec", "nosuid", "nodev"].map(str::to_owned).into();
    config.mounts.push(hardened.clone());
    let (_, id) = launched(&host, config).await;
    assert_eq!(
        told(&host, &id, "/plain/run").await,
        ("ran\n".to_owned(), 0)
    );
    let (text, code) = told(&host, &id, "/hardened/run").await;
    assert!(code != 0 && text.contains("Permission denied"), "{text}");
    let (text, _) = told(&host, &id, "grep ' /hardened ' /proc/self/mountinfo").await;
    for flag in ["nosuid", "nodev", "noexec"] {
        assert!(text.contains(flag), "{text}");
    }
    let shown = &host.pods.status(&id).await.unwrap().mounts[1];
    assert_eq!(shown.mount_options, hardened.mount_options);
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_source_is_an_error_or_made_as_configured() {
    let host = Host::new().await;
    if host.daemon.kind() != Kind::Crisp {
        return;
    }
    let sandbox = host.pods.sandbox("missing-source");
    let pod = host.pods.run(&sandbox).await.unwrap();
    let missing = host.daemon.site().dir().join("not/there");
    let mut config = host.pods.container("c", &["sleep", "1000"]);
    config.mounts.push(bind("/v", &missing));
    let error = host.pods.create(&pod, &config, &sandbox).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(
        error.message().contains("config.mounts[0].host_path"),
        "{error}"
    );
    assert!(!missing.exists());
    host.pods.remove_all().await.unwrap();
    drop(host);

    let host = Host::configured(|_| "[runtime]\ncreate_mount_sources = true\n".to_owned()).await;
    host.pods.pull(BUSYBOX).await.unwrap();
    let made = host.daemon.site().dir().join("not/there");
    let mut config = host.pods.container("c", &["sleep", "1000"]);
    config.mounts.push(bind("/v", &made));
    let (_, id) = launched(&host, config).await;
    assert_eq!(told(&host, &id, "touch /v/x").await.1, 0);
    assert!(made.join("x").exists());
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_lie_below_each_other_in_any_order_and_links_are_followed() {
    let host = Host::new().await;
    let dir = host.daemon.site().dir().join("order");
    for name in ["outer/inner", "inner/deep", "deep"] {
        fs::create_dir_all(dir.join(name)).unwrap();
        fs::write(dir.join(name).join("mark"), format!("{name}\n")).unwrap();
    }
    fs::write(dir.join("outer/mark"), "outer\n").unwrap();
    fs::write(dir.join("inner/mark"), "inner\n").unwrap();
    std::os::unix::fs::symlink(dir.join("deep"), dir.join("link")).unwrap();
    let mut config = host.pods.container("c", &["sleep", "1000"]);
    // The deepest first, as no list of a pod promises an order.
    config.mounts.push(bind("/v/inner/deep", &dir.join("link")));
    config.mounts.push(bind("/v/inner", &dir.join("inner")));
    config.mounts.push(bind("/v", &dir.join("outer")));
    let (_, id) = launched(&host, config).await;
    let read = "cat /v/mark /v/inner/mark /v/inner/deep/mark";
    let (text, _) = told(&host, &id, read).await;
    assert_eq!(text, "outer\ninner\ndeep\n");
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_of_a_pod_share_memory_and_other_pods_do_not() {
    let host = Host::new().await;
    let sandbox = host.pods.sandbox("memory");
    let pod = host.pods.run(&sandbox).await.unwrap();
    let mut ids = Vec::new();
    for name in ["a", "b"] {
        let config = host.pods.container(name, &["sleep", "1000"]);
        ids.push(host.pods.launch(&pod, &config, &sandbox).await.unwrap());
    }
    assert_eq!(told(&host, &ids[0], "echo here > /dev/shm/x").await.1, 0);
    let (text, _) = told(&host, &ids[1], "cat /dev/shm/x").await;
    assert_eq!(text, "here\n");
    let (_, other) = launched(&host, host.pods.container("c", &["sleep", "1000"])).await;
    assert_ne!(told(&host, &other, "cat /dev/shm/x").await.1, 0);
    host.pods.remove_all().await.unwrap();
}
