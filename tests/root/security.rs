//! Security contexts: what a container asks for is what its process has, no more and no less.

use std::{fs, os::unix::fs::FileTypeExt};

use crisp_harness::cri::v1::{
    Capability, ContainerConfig, Int64Value, LinuxContainerSecurityContext, NamespaceMode,
    SeLinuxOption, SecurityProfile, SupplementalGroupsPolicy, security_profile::ProfileType,
};
use tonic::Code;

use crate::{
    Host,
    users::{container_context, context, options},
};

/// The field of a process's status file, of the test itself or of a container.
fn field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name} in {status}"))
        .trim()
        .to_owned()
}

fn own_status(name: &str) -> String {
    field(&fs::read_to_string("/proc/self/status").unwrap(), name)
}

/// What `cat /proc/self/status` says in a container of each context, in one pod.
async fn statuses(
    host: &Host,
    pod: &str,
    contexts: Vec<LinuxContainerSecurityContext>,
) -> Vec<String> {
    let mut sandbox = host.pods.sandbox(pod);
    context(&mut sandbox).privileged = contexts.iter().any(|context| context.privileged);
    let id = host.pods.run(&sandbox).await.unwrap();
    let mut texts = Vec::new();
    for (number, asked) in contexts.into_iter().enumerate() {
        let mut config = host
            .pods
            .container(&format!("c{number}"), &["cat", "/proc/self/status"]);
        *container_context(&mut config) = asked;
        texts.push(host.output(&id, &sandbox, config).await);
    }
    host.pods.stop_pod(&id).await.unwrap();
    texts
}

fn capability(add: &[&str], drop: &[&str], ambient: &[&str]) -> LinuxContainerSecurityContext {
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    LinuxContainerSecurityContext {
        capabilities: Some(Capability {
            add_capabilities: names(add),
            drop_capabilities: names(drop),
            add_ambient_capabilities: names(ambient),
        }),
        ..LinuxContainerSecurityContext::default()
    }
}

const SETS: [&str; 5] = ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"];

fn sets(status: &str) -> [u64; 5] {
    SETS.map(|name| u64::from_str_radix(&field(status, name), 16).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn capabilities_are_those_asked_for_within_the_hosts_own() {
    const DEFAULT: u64 = 0xa804_25fb;
    const NET_ADMIN: u64 = 1 << 12;
    const NET_BIND_SERVICE: u64 = 1 << 10;
    let host = Host::new().await;
    let bounds = u64::from_str_radix(&own_status("CapBnd:"), 16).unwrap();
    let mut as_user = capability(&[], &["ALL"], &["NET_BIND_SERVICE"]);
    as_user.run_as_user = Some(Int64Value { value: 1000 });
    let privileged = LinuxContainerSecurityContext {
        privileged: true,
        ..LinuxContainerSecurityContext::default()
    };
    let asked = vec![
        capability(&[], &[], &[]),
        capability(&["NET_ADMIN"], &["CHOWN"], &[]),
        capability(&[], &["ALL"], &[]),
        capability(&["ALL"], &[], &[]),
        capability(&["ALL"], &["NET_ADMIN"], &[]),
        capability(&["NET_ADMIN"], &["ALL"], &[]),
        privileged,
        as_user,
    ];
    let texts = statuses(&host, "capabilities", asked).await;
    let plain = |set: u64| [0, set, set, set, 0].map(|set| set & bounds);
    for (text, expected) in texts.iter().zip([
        plain(DEFAULT),
        plain(DEFAULT & !1 | NET_ADMIN),
        plain(0),
        plain(bounds),
        plain(bounds & !NET_ADMIN),
        plain(NET_ADMIN),
        plain(bounds),
        [NET_BIND_SERVICE; 5].map(|set| set & bounds),
    ]) {
        assert_eq!(sets(text), expected, "{text}");
    }
    let sandbox = host.pods.sandbox("unknown-capability");
    let pod = host.pods.run(&sandbox).await.unwrap();
    let mut config = host.pods.container("c", &["true"]);
    *container_context(&mut config) = capability(&["NOT_THERE"], &[], &[]);
    let error = host.pods.create(&pod, &config, &sandbox).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("add_capabilities[0]"), "{error}");
    host.pods.remove_all().await.unwrap();
}

fn profile(kind: ProfileType, localhost: &str) -> Option<SecurityProfile> {
    Some(SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: localhost.to_owned(),
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filters_are_the_default_a_file_or_none() {
    let host = Host::new().await;
    let file = host.daemon.site().dir().join("profile.json");
    let text = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]}"#;
    fs::write(&file, text).unwrap();
    let sandbox = host.pods.sandbox("filters");
    let pod = host.pods.run(&sandbox).await.unwrap();
    let script =
        "grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status; mkdir /d 2>&1; unshare -m true 2>&1";
    let run = |name: &str, seccomp| {
        let mut config = host.script(name, &format!("{script}; true"));
        let asked = container_context(&mut config);
        asked.seccomp = seccomp;
        asked.capabilities = capability(&["SYS_ADMIN"], &[], &[]).capabilities;
        config
    };
    let localhost = profile(ProfileType::Localhost, &file.to_string_lossy());
    let text = host.output(&pod, &sandbox, run("file", localhost)).await;
    assert!(
        text.contains("Seccomp:\t2") && text.contains("Function not implemented"),
        "{text}"
    );
    let unconfined = profile(ProfileType::Unconfined, "");
    let text = host.output(&pod, &sandbox, run("none", unconfined)).await;
    assert_eq!(text, "NoNewPrivs:\t0\nSeccomp:\t0\n");
    // The default depends on the capabilities, and so do its rules.
    let default = profile(ProfileType::RuntimeDefault, "");
    let mut config = run("default", default.clone());
    let text = host.output(&pod, &sandbox, config.clone()).await;
    assert_eq!(
        text, "NoNewPrivs:\t0\nSeccomp:\t2\n",
        "SYS_ADMIN may unshare"
    );
    config.metadata.as_mut().unwrap().name = "default-less".to_owned();
    config.log_path = "default-less.log".to_owned();
    container_context(&mut config).capabilities = None;
    container_context(&mut config).no_new_privs = true;
    let text = host.output(&pod, &sandbox, config).await;
    assert!(
        text.starts_with("NoNewPrivs:\t1\nSeccomp:\t2\n") && text.contains("unshare"),
        "{text}"
    );
    // A profile that is not there is the client's mistake and named.
    let mut config = host.script("missing", "true");
    container_context(&mut config).seccomp = profile(ProfileType::Localhost, "/no/such/profile");
    let error = host.pods.create(&pod, &config, &sandbox).await.unwrap_err();
    assert!(error.message().contains("/no/such/profile"), "{error}");
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_and_groups_are_those_of_request_and_image() {
    let host = Host::new().await;
    let sandbox = host.pods.sandbox("identity");
    let pod = host.pods.run(&sandbox).await.unwrap();
    let config = |name: &str, change: &dyn Fn(&mut LinuxContainerSecurityContext)| {
        let mut config = host.script(name, "id -u; id -g; id -G");
        change(container_context(&mut config));
        config
    };
    // busybox's image has www-data (33) in its passwd file, or at least root in its group file.
    let id = |value| Some(Int64Value { value });
    let cases: [(&str, ContainerConfig, &str); 3] = [
        (
            "numbers",
            config("numbers", &|asked| {
                asked.run_as_user = id(1000);
                asked.run_as_group = id(2000);
                asked.supplemental_groups = vec![3000, 4000];
            }),
            "1000\n2000\n2000 3000 4000\n",
        ),
        (
            "strict",
            config("strict", &|asked| {
                asked.run_as_user = id(0);
                asked.run_as_group = id(2000);
                asked.supplemental_groups = vec![3000];
                asked.supplemental_groups_policy = SupplementalGroupsPolicy::Strict.into();
            }),
            "0\n2000\n2000 3000\n",
        ),
        (
            "name",
            config("name", &|asked| asked.run_as_username = "root".to_owned()),
            "0\n0\n",
        ),
    ];
    for (name, config, expected) in cases {
        let text = host.output(&pod, &sandbox, config).await;
        assert!(text.starts_with(expected), "{name}: {text}");
    }
    let unknown = config("unknown", &|asked| {
        asked.run_as_username = "nosuchuser".to_owned()
    });
    let error = host
        .pods
        .create(&pod, &unknown, &sandbox)
        .await
        .unwrap_err();
    assert!(error.message().contains("nosuchuser"), "{error}");
    let lonely = config("lonely", &|asked| asked.run_as_group = id(5));
    let error = host.pods.create(&pod, &lonely, &sandbox).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("run_as_group"), "{error}");
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hidden_paths_are_exactly_those_asked_for() {
    let host = Host::new().await;
    let mut sandbox = host.pods.sandbox("hidden");
    context(&mut sandbox).privileged = true;
    let pod = host.pods.run(&sandbox).await.unwrap();
    let script = "wc -c < /proc/timer_list; wc -c < /proc/version; \
                  touch /proc/sys/vm/swappiness 2>/dev/null && echo open || echo closed; \
                  grep -o '/proc/irq proc ro' /proc/mounts";
    let mut config = host.script("asked", &format!("{script}; true"));
    let asked = container_context(&mut config);
    asked.masked_paths = vec!["/proc/version".to_owned()];
    asked.readonly_paths = vec!["/proc/irq".to_owned()];
    let text = host.output(&pod, &sandbox, config).await;
    let lines: Vec<&str> = text.lines().collect();
    assert_ne!(lines[0], "0", "not asked for: {text}");
    assert_eq!(lines[1..], ["0", "open", "/proc/irq proc ro"], "{text}");
    // A client that says nothing gets what is safe on the host's users.
    let text = host
        .output(
            &pod,
            &sandbox,
            host.script("default", &format!("{script}; true")),
        )
        .await;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "0", "{text}");
    assert_eq!(lines[2..], ["closed", "/proc/irq proc ro"], "{text}");
    let mut config = host.script("privileged", &format!("{script}; true"));
    container_context(&mut config).privileged = true;
    let text = host.output(&pod, &sandbox, config).await;
    assert!(text.contains("open") && !text.contains("proc ro"), "{text}");
    host.pods.stop_pod(&pod).await.unwrap();

    // A pod with users of its own may have its /proc whole.
    let sandbox = host.pod_with_users("unmasked");
    let pod = host.pods.run(&sandbox).await.unwrap();
    let text = host
        .output(
            &pod,
            &sandbox,
            host.script("c", "grep -c ' /proc[/ ]' /proc/mounts"),
        )
        .await;
    assert_eq!(text, "1\n", "one mount at /proc and none below");
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_privileged_container_has_the_hosts_devices() {
    let host = Host::new().await;
    let mut sandbox = host.pods.sandbox("privileged");
    context(&mut sandbox).privileged = true;
    let pod = host.pods.run(&sandbox).await.unwrap();
    let mut config = host.script(
        "c",
        "for d in /dev/*; do [ -c $d -o -b $d ] && echo $d; done; \
         head -c 1 /dev/kmsg > /dev/null && echo kmsg; mount -t tmpfs t /tmp && echo mounts",
    );
    container_context(&mut config).privileged = true;
    let text = host.output(&pod, &sandbox, config).await;
    for entry in fs::read_dir("/dev").unwrap().flatten() {
        let kind = entry.file_type().unwrap();
        let name = entry.path().display().to_string();
        if (kind.is_char_device() || kind.is_block_device()) && !name.contains("tty") {
            let known = text.lines().any(|line| line == name);
            assert!(
                known || name == "/dev/console" || name == "/dev/ptmx",
                "{name}: {text}"
            );
        }
    }
    assert!(text.contains("mounts"), "{text}");
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_namespaces_are_the_hosts() {
    let host = Host::new().await;
    let mut sandbox = host.pods.host_network_sandbox("host");
    let asked = options(&mut sandbox);
    asked.pid = NamespaceMode::Node.into();
    asked.ipc = NamespaceMode::Node.into();
    let pod = host.pods.run(&sandbox).await.unwrap();
    let mut config = host.script(
        "c",
        "for n in net ipc pid uts mnt; do readlink /proc/self/ns/$n; done",
    );
    container_context(&mut config).namespace_options = options(&mut sandbox).clone().into();
    let text = host.output(&pod, &sandbox, config).await;
    let own = |kind: &str| {
        fs::read_link(format!("/proc/self/ns/{kind}"))
            .unwrap()
            .display()
            .to_string()
    };
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..4], ["net", "ipc", "pid", "uts"].map(own), "{text}");
    assert_ne!(lines[4], own("mnt"));
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_host_has_no_module_for_is_refused_or_means_nothing() {
    let host = Host::new().await;
    let sandbox = host.pods.sandbox("modules");
    let pod = host.pods.run(&sandbox).await.unwrap();
    let apparmor =
        fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text[0] == b'Y');
    let mut config = host.script("named", "true");
    container_context(&mut config).apparmor = profile(ProfileType::Localhost, "nosuchprofile");
    let error = host.pods.create(&pod, &config, &sandbox).await.unwrap_err();
    let says = if apparmor {
        "apparmor"
    } else {
        "this host has no AppArmor"
    };
    assert!(error.message().contains(says), "{error}");
    for (name, kind) in [
        ("default", ProfileType::RuntimeDefault),
        ("unconfined", ProfileType::Unconfined),
    ] {
        if apparmor {
            continue;
        }
        let mut config = host.script(name, "echo runs");
        container_context(&mut config).apparmor = profile(kind, "");
        assert_eq!(host.output(&pod, &sandbox, config).await, "runs\n");
    }
    // Labels are for a host that has SELinux; elsewhere a pod that has them runs all the same.
    if !std::path::Path::new("/sys/fs/selinux/enforce").exists() {
        let mut config = host.script("labelled", "echo runs");
        container_context(&mut config).selinux_options = Some(SeLinuxOption {
            level: "s0:c1,c2".to_owned(),
            ..SeLinuxOption::default()
        });
        assert_eq!(host.output(&pod, &sandbox, config).await, "runs\n");
    }
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_may_do_what_its_container_may_and_no_more() {
    let host = Host::new().await;
    let sandbox = host.pods.sandbox("command");
    let pod = host.pods.run(&sandbox).await.unwrap();
    let mut config = host.pods.container("c", &["sleep", "1000"]);
    *container_context(&mut config) = capability(&["NET_ADMIN"], &["ALL"], &[]);
    let asked = container_context(&mut config);
    asked.run_as_user = Some(Int64Value { value: 0 });
    asked.no_new_privs = true;
    asked.seccomp = profile(ProfileType::RuntimeDefault, "");
    let container = host.pods.launch(&pod, &config, &sandbox).await.unwrap();
    let pid = host.pods.pid(&container).await.unwrap();
    let of_init = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let answer = host
        .pods
        .exec(&container, &["cat", "/proc/self/status"])
        .await
        .unwrap();
    let of_command = String::from_utf8(answer.stdout).unwrap();
    for name in [
        "Uid:",
        "Gid:",
        "Groups:",
        "NoNewPrivs:",
        "Seccomp:",
        "Seccomp_filters:",
    ]
    .iter()
    .chain(&SETS)
    {
        assert_eq!(field(&of_command, name), field(&of_init, name), "{name}");
    }
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_of_six_mebibytes_starts_and_its_input_is_null() {
    let host = Host::new().await;
    let sandbox = host.pods.sandbox("small");
    let pod = host.pods.run(&sandbox).await.unwrap();
    let mut config = host.script("c", "stat -L -c '%t:%T' /proc/self/fd/0; cat; echo end");
    config.linux.as_mut().unwrap().resources =
        Some(crisp_harness::cri::v1::LinuxContainerResources {
            memory_limit_in_bytes: 6 << 20,
            ..Default::default()
        });
    assert_eq!(host.output(&pod, &sandbox, config).await, "1:3\nend\n");
    host.pods.remove_all().await.unwrap();
}
