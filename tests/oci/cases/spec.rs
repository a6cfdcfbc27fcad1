//! From a runtime specification to a running container: what the daemon's bundles hold.

use std::fs;
use std::process::Command;

use crisp_oci::host::HostFacts;
use crisp_oci::plan::{FdIndex, Plan};
use crisp_oci::spec::{self, SpecInput};
use crisp_oci::wire;

use crate::fixture::{GROUP, Machine, machine};

/// A specification as container engines make them for Kubernetes.
fn config(machine: &Machine, script: &str) -> serde_json::Value {
    let dir = machine.dir.path();
    for (name, text) in [
        ("hosts", "10.0.0.1 pod\n"),
        ("resolv.conf", "nameserver 1\n"),
    ] {
        fs::write(dir.join(name), text).expect("write");
    }
    fs::create_dir_all(dir.join("shm")).expect("mkdir");
    let safe = ["nosuid", "noexec", "nodev"];
    let bind = |name: &str, target: &str, access: &str| {
        serde_json::json!({"destination": target, "type": "bind", "source": dir.join(name),
            "options": ["rbind", "rprivate", access]})
    };
    let caps = [
        "CAP_CHOWN",
        "CAP_NET_BIND_SERVICE",
        "CAP_SETUID",
        "CAP_SETGID",
        "CAP_KILL",
    ];
    serde_json::json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs"},
        "hostname": "pod",
        "process": {
            "args": ["sh", "-c", script],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "user": {"uid": 0, "gid": 0},
            "noNewPrivileges": true,
            "oomScoreAdj": 1000,
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": safe},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": safe},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
             "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
             "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
            bind("shm", "/dev/shm", "rw"),
            bind("hosts", "/etc/hosts", "rw"),
            bind("resolv.conf", "/etc/resolv.conf", "ro"),
        ],
        "linux": {
            "cgroupsPath": format!("{GROUP}/{}", machine.name()),
            "namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "ipc"}, {"type": "uts"},
                           {"type": "network"}, {"type": "cgroup"}],
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list",
                            "/sys/firmware", "/sys/devices/virtual/powercap"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"],
            "rootfsPropagation": "rslave",
            "resources": {
                "memory": {"limit": 67_108_864, "swap": 67_108_864},
                "cpu": {"shares": 512, "quota": 50000, "period": 100_000},
                "pids": {"limit": 50},
                "devices": [{"allow": false, "access": "rwm"}],
            },
            "seccomp": {
                "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
                "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
                "syscalls": [{"action": "SCMP_ACT_ALLOW", "names": [
                    "read", "write", "open", "openat", "close", "stat", "fstat", "lstat", "mmap",
                    "munmap", "brk", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "ioctl",
                    "getuid", "geteuid", "getpid", "getppid", "getgid", "getegid", "setuid",
                    "execve", "exit", "exit_group", "wait4", "fork", "vfork", "clone", "dup2",
                    "fcntl", "uname", "getcwd", "arch_prctl", "set_tid_address", "mprotect",
                    "set_robust_list", "prlimit64", "readlink", "getrandom", "sendfile",
                    "getdents64", "newfstatat", "rseq", "prctl", "dup3", "access", "faccessat"]}],
            },
        },
    })
}

fn plan(machine: &Machine, config: serde_json::Value) -> Plan {
    let spec = serde_json::from_value(config).expect("a specification");
    let host = HostFacts::probe().expect("host");
    let plan = spec::plan(&SpecInput {
        spec: &spec,
        id: "spec-test",
        bundle: &machine.dir.path().display().to_string(),
        host: &host,
        rootfs: Some(FdIndex(0)),
        joins: &[],
        idmaps: &[],
        seccomp: None,
        detached: &[],
    })
    .expect("planned");
    // As it reaches the monitor.
    wire::decode(&wire::encode(&plan)).expect("decoded")
}

pub fn an_engines_bundle_runs() {
    let machine = machine();
    let script = "busybox hostname; cat /etc/hosts /etc/resolv.conf; echo x > /dev/shm/f && echo shm; \
                  echo x > /etc/resolv.conf || echo kept; cat /proc/self/oom_score_adj; \
                  busybox mkdir /tmp/d || echo filtered; ls /dev/stdin";
    let ended = machine.run(&plan(&machine, config(&machine, script)));
    let lines: Vec<_> = ended
        .text
        .lines()
        .filter(|line| !line.contains(": "))
        .collect();
    let want = [
        "pod",
        "10.0.0.1 pod",
        "nameserver 1",
        "shm",
        "kept",
        "1000",
        "filtered",
        "/dev/stdin",
    ];
    assert_eq!(lines, want, "{}", ended.text);
    assert!(machine.dir.path().join("shm/f").exists());
}

pub fn its_cgroups_are_visible_and_read_only() {
    let machine = machine();
    let script = "cat /proc/self/cgroup; ls /sys/fs/cgroup; \
                  for d in /sys/fs/cgroup/*/ /sys/fs/cgroup/; do echo $$ > $d/cgroup.procs; done; \
                  cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/pids/pids.max \
                  /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max";
    let mut config = config(&machine, script);
    config["linux"]["seccomp"] = serde_json::Value::Null;
    let text = machine.run(&plan(&machine, config)).text;
    let limits = text
        .lines()
        .filter(|line| *line == "67108864" || *line == "50")
        .count();
    assert_eq!(limits, 2, "{text}");
    let tried = text.matches("can't create").count();
    assert!(
        tried >= 1 && tried == text.matches("Read-only file system").count(),
        "{text}"
    );
}

pub fn the_command_line_runs_a_bundle() {
    let machine = machine();
    let mut config = config(&machine, "echo out; echo err >&2; exit 5");
    config["linux"]["cgroupsPath"] = format!("{GROUP}/{}-cli", machine.name()).into();
    let run = |config: &serde_json::Value, args: &[&str]| {
        fs::write(machine.dir.path().join("config.json"), config.to_string()).expect("write");
        let program = env!("CARGO_BIN_EXE_crisp-oci");
        Command::new(program)
            .args(args)
            .arg("--bundle")
            .arg(machine.dir.path())
            .output()
            .expect("runs")
    };
    let done = run(&config, &["run", "cli-test"]);
    let shown = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(
        (done.status.code(), done.stdout),
        (Some(5), b"out\n".to_vec()),
        "{shown}"
    );
    assert_eq!(shown, "err\n");
    let planned = run(&config, &["plan"]);
    let text = String::from_utf8_lossy(&planned.stdout).into_owned();
    assert!(
        text.contains("fstype: \"devpts\"") && text.contains("namespace "),
        "{text}"
    );
    config["process"]["args"] = serde_json::json!(["nosuch"]);
    let failed = run(&config, &["run", "cli-test"]);
    let text = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert_eq!(failed.status.code(), Some(1));
    assert!(
        text.contains("exec: \"nosuch\": executable file not found in $PATH"),
        "{text}"
    );
    config["process"]["args"] = serde_json::json!(["true"]);
    let mark = machine.dir.path().join("stopped");
    let args = ["busybox", "touch", &mark.display().to_string()];
    config["hooks"] = serde_json::json!({"poststop": [{"path": "/bin/busybox", "args": args}]});
    let done = run(&config, &["run", "cli-test"]);
    let text = String::from_utf8_lossy(&done.stderr).into_owned();
    assert_eq!(
        (done.status.code(), mark.exists()),
        (Some(0), true),
        "{text}"
    );
    config["hooks"] = serde_json::json!({"poststop": [{"path": "true"}]});
    let text = String::from_utf8_lossy(&run(&config, &["plan"]).stderr).into_owned();
    assert!(
        text.contains("hooks.poststop[0].path: \"true\" is not"),
        "{text}"
    );
    let features = Command::new(env!("CARGO_BIN_EXE_crisp-oci"))
        .arg("features")
        .output();
    let features: serde_json::Value =
        serde_json::from_slice(&features.expect("runs").stdout).expect("JSON");
    assert_eq!(features["linux"]["cgroup"]["v2"], true);
}
