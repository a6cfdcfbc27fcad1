//! Pods with user namespaces of their own: who is who inside and outside, what they may do, what is
//! left of them.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::Path,
    time::Duration,
};

use crisp_harness::{
    audit::{Snapshot, settled},
    cri::v1::{
        ContainerConfig, ContainerState, Device, IdMapping, LinuxContainerSecurityContext,
        LinuxSandboxSecurityContext, Mount, NamespaceMode, NamespaceOption, PodSandboxConfig,
        PodSandboxState, PodSandboxStatusRequest, StatusRequest, UserNamespace,
    },
};
use tonic::Code;

use crate::Host;

/// First id of the host's that the pods here have.
const FIRST: u32 = 200_000;
const LENGTH: u32 = 65_536;

fn ranges() -> Vec<IdMapping> {
    vec![IdMapping {
        host_id: FIRST,
        container_id: 0,
        length: LENGTH,
    }]
}

fn users() -> UserNamespace {
    UserNamespace {
        mode: NamespaceMode::Pod.into(),
        uids: ranges(),
        gids: ranges(),
    }
}

pub(crate) fn context(config: &mut PodSandboxConfig) -> &mut LinuxSandboxSecurityContext {
    config
        .linux
        .as_mut()
        .unwrap()
        .security_context
        .as_mut()
        .unwrap()
}

pub(crate) fn options(config: &mut PodSandboxConfig) -> &mut NamespaceOption {
    context(config).namespace_options.as_mut().unwrap()
}

pub(crate) fn container_context(
    config: &mut ContainerConfig,
) -> &mut LinuxContainerSecurityContext {
    config
        .linux
        .as_mut()
        .unwrap()
        .security_context
        .as_mut()
        .unwrap()
}

impl Host {
    pub(crate) fn pod_with_users(&self, name: &str) -> PodSandboxConfig {
        let mut config = self.pods.sandbox(name);
        options(&mut config).userns_options = Some(users());
        config
    }

    /// What a script prints in a container of the pod, run as its own process and to its end.
    pub(crate) async fn output(
        &self,
        pod: &str,
        sandbox: &PodSandboxConfig,
        config: ContainerConfig,
    ) -> String {
        let name = config.metadata.as_ref().unwrap().name.clone();
        let id = self.pods.launch(pod, &config, sandbox).await.unwrap();
        let ended = self
            .pods
            .exited(&id, Duration::from_secs(20))
            .await
            .unwrap();
        let log = Path::new(&sandbox.log_directory).join(format!("{name}.log"));
        let mut text = String::new();
        for stream in ["stdout", "stderr"] {
            for line in crisp_harness::pods::log_lines(&log, stream).unwrap() {
                text += &line;
                text.push('\n');
            }
        }
        assert_eq!(ended.exit_code, 0, "{text}");
        text
    }

    pub(crate) fn script(&self, name: &str, script: &str) -> ContainerConfig {
        self.pods.container(name, &["sh", "-c", script])
    }

    async fn captured(&self, container: &str, command: &[&str]) -> String {
        let answer = self.pods.exec(container, command).await.unwrap();
        format!(
            "{}{}",
            String::from_utf8_lossy(&answer.stdout),
            String::from_utf8_lossy(&answer.stderr)
        )
    }
}

fn ids_of(pid: u32) -> (u32, u32) {
    let meta = fs::metadata(format!("/proc/{pid}/task/{pid}")).unwrap();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let uid = status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))
        .unwrap();
    (
        uid.split_whitespace().next().unwrap().parse().unwrap(),
        meta.gid(),
    )
}

fn owner_of_namespace(pid: u32, kind: &str) -> String {
    fs::read_link(format!("/proc/{pid}/ns/{kind}"))
        .unwrap()
        .display()
        .to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn root_of_a_pod_with_users_is_nobody_on_the_host_and_root_inside() {
    let host = Host::new().await;
    let sandbox = host.pod_with_users("users-basic");
    let pod = host.pods.run(&sandbox).await.unwrap();
    let script = "cat /proc/self/uid_map /proc/self/gid_map; id -u; stat -c '%u %g %n' / /bin/busybox \
         /etc/hosts /etc/resolv.conf /etc/hostname /dev/shm; stat -L -c '%u %g %n' /proc/self; \
         cat /proc/self/setgroups; \
         echo x > /file && stat -c '%u %g %n' /file; echo line >> /etc/hosts && echo appended; \
         for d in null zero full random urandom tty; do stat -c '%F %t:%T' /dev/$d; done; \
         echo gone > /dev/null && head -c 3 /dev/zero | wc -c; \
         grep -c . /proc/mounts >/dev/null && echo mounts; ls /sys/class/net; \
         echo x > /dev/shm/f && stat -c '%u' /dev/shm/f; ls -d /dev/mqueue /dev/pts /sys/fs/cgroup; \
         hostname; exec sleep 1000";
    let mut config = host.script("c", script);
    container_context(&mut config)
        .namespace_options
        .as_mut()
        .unwrap()
        .userns_options = Some(users());
    let container = host.pods.launch(&pod, &config, &sandbox).await.unwrap();
    let log = Path::new(&sandbox.log_directory).join("c.log");
    let done = || {
        crisp_harness::pods::log_lines(&log, "stdout")
            .is_ok_and(|lines| lines.last().is_some_and(|line| line == "users-basic"))
    };
    let shown = || fs::read_to_string(&log).unwrap_or_default();
    assert!(
        crisp_harness::process::until(Duration::from_secs(20), done),
        "{}",
        shown()
    );
    let lines = crisp_harness::pods::log_lines(&log, "stdout").unwrap();
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let map = format!("0 {FIRST} {LENGTH}");
    assert_eq!(words(&lines[0]), map, "{}", shown());
    assert_eq!(words(&lines[1]), map);
    let mut expected = vec!["0".to_owned()];
    for file in [
        "/",
        "/bin/busybox",
        "/etc/hosts",
        "/etc/resolv.conf",
        "/etc/hostname",
        "/dev/shm",
        "/proc/self",
    ] {
        expected.push(format!("0 0 {file}"));
    }
    expected.extend(["allow", "0 0 /file", "appended"].map(str::to_owned));
    for number in ["1:3", "1:5", "1:7", "1:8", "1:9", "5:0"] {
        expected.push(format!("character special file {number}"));
    }
    for line in [
        "3",
        "mounts",
        "eth0",
        "lo",
        "0",
        "/dev/mqueue",
        "/dev/pts",
        "/sys/fs/cgroup",
        "users-basic",
    ] {
        expected.push(line.to_owned());
    }
    assert_eq!(lines[2..], expected, "{}", shown());

    seen_from_outside(&host, &pod, &container).await;
    host.pods.remove_all().await.unwrap();
}

/// The host sees other ids, and namespaces that belong to the pod's users; what is reported is as
/// inside, and a command enters the same way.
async fn seen_from_outside(host: &Host, pod: &str, container: &str) {
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let map = format!("0 {FIRST} {LENGTH}");
    let pid = host.pods.pid(container).await.unwrap();
    assert_eq!(ids_of(pid).0, FIRST);
    let own = owner_of_namespace(pid, "user");
    assert_ne!(own, owner_of_namespace(std::process::id(), "user"));
    let kept = host.pods.status(container).await.unwrap();
    let user = kept.user.unwrap().linux.unwrap();
    assert_eq!((user.uid, user.gid), (0, 0), "reported as inside");

    // And so does the status of the pod.
    let request = PodSandboxStatusRequest {
        pod_sandbox_id: pod.to_owned(),
        verbose: false,
    };
    let answer = host
        .pods
        .cri
        .runtime
        .clone()
        .pod_sandbox_status(request)
        .await
        .unwrap();
    let status = answer.into_inner().status.unwrap();
    let reported = status.linux.unwrap().namespaces.unwrap().options.unwrap();
    assert_eq!(reported.userns_options, Some(users()));

    // A command enters the same way.
    let text = host
        .captured(container, &["sh", "-c", "id -u; cat /proc/self/uid_map; readlink /proc/self/ns/user; echo x > /f2; stat -c %u /f2; echo out > /dev/stdout"])
        .await;
    let lines: Vec<String> = text.lines().map(words).collect();
    assert_eq!(lines, ["0", &map, &own, "0", "out"], "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_groups_and_capabilities_count_inside_only() {
    let host = Host::new().await;
    let sandbox = host.pod_with_users("users-caps");
    let pod = host.pods.run(&sandbox).await.unwrap();
    let mut config = host.script(
        "user",
        "id -u; id -g; id -G; echo again > /dev/stdout; cat /proc/self/oom_score_adj",
    );
    let asked = container_context(&mut config);
    asked.run_as_user = Some(crisp_harness::cri::v1::Int64Value { value: 1000 });
    asked.run_as_group = Some(crisp_harness::cri::v1::Int64Value { value: 1001 });
    asked.supplemental_groups = vec![1002];
    config.linux.as_mut().unwrap().resources =
        Some(crisp_harness::cri::v1::LinuxContainerResources {
            oom_score_adj: 777,
            ..Default::default()
        });
    let text = host.output(&pod, &sandbox, config).await;
    assert_eq!(text, "1000\n1001\n1001 1002\nagain\n777\n");

    // Root of the pod may mount what belongs to it, but not a disk, nor touch the host's clock.
    let mut config = host.script(
        "admin",
        "mount -t tmpfs none /tmp && echo mounted; mount -t proc none /mnt 2>/dev/null; \
         mknod /tmp/sda b 8 0 2>/dev/null || echo 'no node'; \
         echo 1 > /proc/sys/vm/drop_caches 2>/dev/null || echo 'no host'; \
         echo 1 > /proc/sys/net/ipv4/ip_forward && echo forwards; \
         echo 1 > /sys/fs/cgroup/cgroup.procs 2>/dev/null || echo 'no cgroup'",
    );
    let asked = container_context(&mut config);
    asked.masked_paths = Vec::new();
    asked.capabilities = Some(crisp_harness::cri::v1::Capability {
        add_capabilities: vec!["SYS_ADMIN".to_owned(), "NET_ADMIN".to_owned()],
        ..Default::default()
    });
    let text = host.output(&pod, &sandbox, config).await;
    for line in ["mounted", "no node", "no host", "forwards", "no cgroup"] {
        assert!(text.lines().any(|said| said == line), "{line}: {text}");
    }

    // Ids beyond the map name themselves.
    let mut config = host.script("beyond", "true");
    container_context(&mut config).run_as_user =
        Some(crisp_harness::cri::v1::Int64Value { value: 70_000 });
    let error = host.pods.create(&pod, &config, &sandbox).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    assert!(error.message().contains("70000 is not mapped"), "{error}");
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_of_a_pod_with_users_show_its_owners_if_asked() {
    let host = Host::new().await;
    let sandbox = host.pod_with_users("users-volumes");
    let pod = host.pods.run(&sandbox).await.unwrap();
    let volume = host.daemon.site().dir().join("volume");
    fs::create_dir_all(&volume).unwrap();
    for (name, owner) in [("root", 0), ("app", 1000)] {
        fs::write(volume.join(name), name).unwrap();
        chown(volume.join(name), Some(owner), Some(owner)).unwrap();
        fs::set_permissions(volume.join(name), fs::Permissions::from_mode(0o600)).unwrap();
    }
    let mount = |mapped: bool| Mount {
        container_path: "/v".to_owned(),
        host_path: volume.display().to_string(),
        uid_mappings: if mapped { ranges() } else { Vec::new() },
        gid_mappings: if mapped { ranges() } else { Vec::new() },
        ..Mount::default()
    };
    let mut config = host.script(
        "mapped",
        "stat -c '%u %g' /v/root /v/app; cat /v/root; echo; echo new > /v/new; stat -c %u /v/new",
    );
    config.mounts = vec![mount(true)];
    assert_eq!(
        host.output(&pod, &sandbox, config).await,
        "0 0\n1000 1000\nroot\n0\n"
    );
    let new = fs::metadata(volume.join("new")).unwrap();
    assert_eq!((new.uid(), new.gid()), (0, 0), "on disk it is as inside");

    let mut config = host.script(
        "plain",
        "stat -c '%u %g' /v/root; cat /v/root 2>/dev/null || echo closed",
    );
    config.mounts = vec![mount(false)];
    assert_eq!(
        host.output(&pod, &sandbox, config).await,
        "65534 65534\nclosed\n"
    );

    // Other ranges than the pod's take a namespace of their own.
    let mut config = host.script("shifted", "stat -c '%u %g' /v/root /v/app");
    let mut other = mount(true);
    for ranges in [&mut other.uid_mappings, &mut other.gid_mappings] {
        ranges[0].host_id = FIRST + 500;
        ranges[0].length = 10;
    }
    config.mounts = vec![other];
    let text = host.output(&pod, &sandbox, config).await;
    assert_eq!(text.lines().next(), Some("500 500"), "{text}");

    // Not every file system can, and none is changed instead.
    let mut config = host.script("proc", "true");
    let mut proc = mount(true);
    proc.host_path = "/proc/sys/kernel".to_owned();
    config.mounts = vec![proc];
    let error = host.pods.create(&pod, &config, &sandbox).await.unwrap_err();
    assert!(
        error.message().contains("/proc/sys/kernel")
            && error.message().contains("proc, cannot be idmapped"),
        "{error}"
    );
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_with_users_in_every_shape_survive_a_restart_and_leave_nothing() {
    let mut host = Host::new().await;
    // What stays by design.
    host.running("users-warm", &["sleep", "1000"]).await;
    host.pods.remove_all().await.unwrap();
    let before = Snapshot::take(&host.daemon);

    let mut shared = host.pod_with_users("users-shared");
    options(&mut shared).pid = NamespaceMode::Pod.into();
    shared.linux.as_mut().unwrap().sysctls = [
        ("kernel.shm_rmid_forced", "1"),
        ("net.ipv4.ip_local_port_range", "10000 20000"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    let mut with_host_network = host.pods.host_network_sandbox("users-network");
    options(&mut with_host_network).userns_options = Some(users());
    let mut privileged = host.pod_with_users("users-privileged");
    context(&mut privileged).privileged = true;

    let mut running = Vec::new();
    for sandbox in [&shared, &with_host_network, &privileged] {
        let pod = host.pods.run(sandbox).await.unwrap();
        let mut config = host.pods.container("c", &["sleep", "1000"]);
        let asked = container_context(&mut config);
        let given = context(&mut sandbox.clone()).clone();
        asked.namespace_options.clone_from(&given.namespace_options);
        asked.privileged = given.privileged;
        let container = host.pods.launch(&pod, &config, sandbox).await.unwrap();
        running.push((pod, container));
    }
    each_has_what_it_may(&host, &running).await;

    host.daemon.kill().unwrap();
    host.again().await;
    for (pod, container) in &running {
        assert_eq!(
            host.pods.pod_state(pod).await.unwrap(),
            PodSandboxState::SandboxReady
        );
        let status = host.pods.status(container).await.unwrap();
        assert_eq!(status.state(), ContainerState::ContainerRunning);
        assert_eq!(
            host.captured(container, &["cat", "/proc/self/uid_map"])
                .await
                .split_whitespace()
                .collect::<Vec<_>>(),
            ["0", "200000", "65536"]
        );
    }
    // Another container after the restart finds the same users.
    let script = host.script("later", "cat /proc/self/uid_map; ls /dev/shm");
    let text = host.output(&running[0].0, &shared, script).await;
    assert!(text.contains(&FIRST.to_string()), "{text}");

    // One that looks at another's processes enters both namespaces.
    let mut config = host.script("target", "echo $$; tr '\\0' ' ' < /proc/1/cmdline");
    let asked = container_context(&mut config)
        .namespace_options
        .as_mut()
        .unwrap();
    asked.pid = NamespaceMode::Target.into();
    asked.target_id.clone_from(&running[1].1);
    let text = host.output(&running[1].0, &with_host_network, config).await;
    assert_eq!(text.lines().last(), Some("sleep 1000 "), "{text}");

    host.pods.remove_all().await.unwrap();
    assert_eq!(
        settled(&host.daemon, &before, Duration::from_secs(20)).await,
        Vec::<String>::new()
    );
}

/// The shared one its processes and parameters, the one with the host's network no say over that, the
/// privileged one its own groups.
async fn each_has_what_it_may(host: &Host, running: &[(String, String)]) {
    let text = host
        .captured(&running[0].1, &["sh", "-c", "cat /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ip_local_port_range; tr '\\0' ' ' < /proc/1/cmdline; cat /proc/1/environ"])
        .await;
    assert!(text.starts_with("1\n10000\t20000\ncrisp-pause"), "{text}");
    assert!(
        text.contains("Permission denied"),
        "pause stays closed: {text}"
    );
    let text = host
        .captured(&running[1].1, &["sh", "-c", "ls /sys/class/net; f=/proc/sys/net/ipv4/ip_forward; v=$(cat $f); echo $v > $f; touch /sys/x; mount | grep -c ' /sys '"])
        .await;
    let links = fs::read_dir("/sys/class/net").unwrap().count();
    assert!(
        text.lines().filter(|line| !line.contains(' ')).count() > links - 1,
        "{text}"
    );
    assert!(
        text.contains("ip_forward: "),
        "the host's network is not its own: {text}"
    );
    let text = host
        .captured(&running[2].1, &["sh", "-c", "grep CapEff /proc/self/status; ls /dev | wc -l; echo hidden > /dev/kmsg || echo closed; cat /proc/self/cgroup | grep -c ':/$'"])
        .await;
    assert!(text.contains("closed"), "devices have their owners: {text}");

    // Its own groups are its to divide.
    let text = host
        .captured(&running[2].1, &["sh", "-c", "cd /sys/fs/cgroup/unified 2>/dev/null || cd /sys/fs/cgroup; mkdir sub && rmdir sub && mkdir again && echo made"])
        .await;
    assert_eq!(text, "made\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_says_that_pods_can_have_users() {
    let host = Host::without_image().await;
    let status = host
        .pods
        .cri
        .runtime
        .clone()
        .status(StatusRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert!(status.features.unwrap().user_namespaces_host_network);
    for handler in ["", "crisp"] {
        let found = status
            .runtime_handlers
            .iter()
            .find(|known| known.name == handler);
        assert!(
            found.unwrap().features.unwrap().user_namespaces,
            "{handler:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_of_a_pod_with_users_is_the_hosts_own_node() {
    let host = Host::new().await;
    let sandbox = host.pod_with_users("users-device");
    let pod = host.pods.run(&sandbox).await.unwrap();
    let mut config = host.script(
        "c",
        "stat -c '%F %t:%T' /dev/mine && head -c 2 /dev/mine | wc -c; head -c 1 /dev/full | wc -c",
    );
    config.devices = vec![Device {
        container_path: "/dev/mine".to_owned(),
        host_path: "/dev/zero".to_owned(),
        permissions: "r".to_owned(),
    }];
    let text = host.output(&pod, &sandbox, config).await;
    assert_eq!(text, "character special file 1:5\n2\n1\n");
    host.pods.remove_all().await.unwrap();
}
