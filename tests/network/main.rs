//! Pod networks on a real kernel: fake plugins that misbehave in every way the attack list names,
//! the plugins of Debian, pins of namespaces, the watch of the configuration.
#![forbid(unsafe_code)]
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot read its answer has failed"
)]

mod attach;
mod attacks;
mod pins;
mod plugins;
mod ready;

use std::{
    fs,
    io::Write,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crisp::{
    id::SandboxId,
    network::{AttachRequest, Network, NetworkConfig, PodIdentity},
};

/// How long anything is waited for before a test fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// A directory of fake plugins that log their calls, a configuration directory and records.
struct Fakes {
    dir: tempfile::TempDir,
}

impl Fakes {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for sub in ["bin", "conf"] {
            fs::create_dir(dir.path().join(sub)).unwrap();
        }
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Installs a plugin: a script that notes its call and input, then runs `body`. The script is
    /// written by another process: if this one had it open, a fork of a neighbouring test could
    /// keep it busy.
    fn plugin(&self, name: &str, body: &str) {
        let dir = self.dir.path().display();
        let script = format!(
            r#"#!/bin/sh
dir={dir}
if [ "$CNI_COMMAND" = VERSION ]; then
    echo '{{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0","1.1.0"]}}'
    exit 0
fi
echo "{name} $CNI_COMMAND netns=$CNI_NETNS" >> "$dir/log"
{body}
"#
        );
        let mut writer = Command::new("sh")
            .args([
                "-c",
                r#"cat > "$1.new" && chmod 755 "$1.new" && mv "$1.new" "$1""#,
                "sh",
            ])
            .arg(self.path("bin").join(name))
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        writer
            .stdin
            .take()
            .unwrap()
            .write_all(script.as_bytes())
            .unwrap();
        assert!(writer.wait().unwrap().success());
    }

    /// A plugin that answers ADD with `result` and keeps its input.
    fn well_behaved(&self, name: &str, result: &str) {
        self.plugin(
            name,
            &format!(
                r#"cat > "$dir/{name}.$CNI_COMMAND"
[ "$CNI_COMMAND" = ADD ] && cat <<'END'
{result}
END
exit 0"#
            ),
        );
    }

    fn conf(&self, version: &str, plugins: &[&str]) {
        let plugins: Vec<String> = plugins
            .iter()
            .map(|kind| {
                format!(
                    r#"{{"type":"{kind}","capabilities":{{"portMappings":true,"ipRanges":true}}}}"#
                )
            })
            .collect();
        let text = format!(
            r#"{{"cniVersion":"{version}","name":"fakes","plugins":[{}]}}"#,
            plugins.join(",")
        );
        fs::write(self.path("conf/10-fakes.conflist"), text).unwrap();
    }

    /// A network over the fakes, with deadlines of two seconds.
    fn network(&self) -> Network {
        let config = NetworkConfig {
            conf_dir: self.path("conf"),
            plugin_dirs: vec![self.path("bin")],
            add_deadline: Duration::from_secs(2),
            del_deadline: Duration::from_secs(2),
        };
        Network::start(config, &self.path("results")).unwrap()
    }

    /// Calls so far, without the probes.
    fn log(&self) -> Vec<String> {
        let log = fs::read_to_string(self.path("log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    /// Calls so far as `plugin VERB`.
    fn calls(&self) -> Vec<String> {
        let short = |line: String| line.rsplit_once(' ').unwrap().0.to_owned();
        self.log().into_iter().map(short).collect()
    }

    fn input(&self, plugin: &str, verb: &str) -> serde_json::Value {
        let text = fs::read(self.path(&format!("{plugin}.{verb}"))).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    fn records(&self) -> usize {
        fs::read_dir(self.path("results")).unwrap().count()
    }
}

/// A result with one address on `eth0`.
const RESULT: &str = r#"{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/x"}],
"ips":[{"address":"10.1.2.3/24","interface":0}],"dns":{}}"#;

fn request(netns: &Path) -> AttachRequest {
    AttachRequest {
        sandbox: SandboxId::random(),
        netns: netns.to_path_buf(),
        ifname: "eth0".to_owned(),
        pod: PodIdentity {
            namespace: "ns".into(),
            name: "pod".into(),
            uid: "uid".into(),
        },
        port_mappings: Vec::new(),
        annotations: std::collections::BTreeMap::new(),
        dns: None,
        cgroup_path: None,
        mac: None,
        ips: Vec::new(),
    }
}

/// The namespace of this process: enough for plugins that touch nothing.
fn own_namespace() -> PathBuf {
    PathBuf::from("/proc/self/ns/net")
}

/// A new network namespace. Made on a thread that ends: no other may find itself in it.
fn new_namespace() -> OwnedFd {
    std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        fs::File::open("/proc/thread-self/ns/net").unwrap().into()
    })
    .join()
    .unwrap()
}

/// Polls until `done` or fails.
async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < until, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Whether a process of this number runs (zombies do not).
fn runs(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{}/stat", pid.trim()))
        .is_ok_and(|stat| !stat.rsplit_once(')').unwrap().1.starts_with(" Z"))
}
