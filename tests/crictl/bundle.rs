//! The config.json on disk is a real one: runc runs it.

use std::{fs, path::Path, process::Command, time::Duration};

use crisp_harness::{
    crictl::{Crictl, lower_directories, mount_overlay},
    process::{run, until},
    tools,
};
use serde_json::{Value, json};

/// Ends what runc runs and takes its mount away, whether the test passes or not.
struct Running<'a> {
    runc: &'a Path,
    root: &'a Path,
    rootfs: &'a Path,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let _gone = Command::new(self.runc)
            .arg("--root")
            .arg(self.root)
            .args(["delete", "-f", "from-bundle"])
            .status();
        let _gone = Command::new("umount").arg(self.rootfs).status();
    }
}

/// A command that runs runc, which starts nothing where "/" is no mount point, as in a chroot: there it
/// gets a root bound at `place`, in a mount namespace of its own.
fn where_root_is_a_mount(runc: &Path, place: &Path) -> Command {
    const ENTER: &str = r#"set -e; mkdir "$1"; mount --rbind / "$1"; exec chroot "$@""#;
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    if mounts
        .lines()
        .any(|line| line.split(' ').nth(4) == Some("/"))
    {
        return Command::new(runc);
    }
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "unchanged", "sh", "-c", ENTER])
        .arg("sh")
        .arg(place)
        .arg(runc);
    command
}

#[tokio::test]
async fn runc_runs_the_config_json_of_a_running_container() {
    let crictl = Crictl::new().await.unwrap();
    let runc = tools::program("runc", "runc").unwrap();
    let pod = crictl.pod("bundle", 1);
    let id = crictl.launch(&pod, "bundle", "c", &["sleep", "1000"], json!({ "pid": 1 }));
    let inspected = crictl.json(&["inspect", &id]);
    let pid = u32::try_from(inspected["info"]["pid"].as_u64().unwrap()).unwrap();

    let mut spec: Value =
        serde_json::from_slice(&fs::read(crictl.bundle(&id).join("config.json")).unwrap()).unwrap();
    assert_eq!(spec["process"]["args"], json!(["sleep", "1000"]));
    // The same config, with what two containers cannot share: the group, and the rootfs, which the
    // running one has in its own mount namespace only.
    let scratch = crictl.daemon.site().dir().join("runc");
    let bundle = scratch.join("bundle");
    let rootfs = bundle.join("rootfs");
    fs::create_dir_all(&bundle).unwrap();
    spec["root"]["path"] = json!("rootfs");
    spec["linux"]["cgroupsPath"] = json!(format!(
        "{}/from-bundle",
        crictl.daemon.site().cgroup_parent()
    ));
    fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
    mount_overlay(&lower_directories(pid).unwrap(), &scratch, &rootfs).unwrap();
    let root = scratch.join("state");
    let guard = Running {
        runc: &runc,
        root: &root,
        rootfs: &rootfs,
    };

    let log = fs::File::create(scratch.join("log")).unwrap();
    let status = where_root_is_a_mount(&runc, &scratch.join("root"))
        .arg("--root")
        .arg(&root)
        .args(["run", "-d", "-b"])
        .arg(&bundle)
        .arg("from-bundle")
        .stdin(std::process::Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .status()
        .unwrap();
    assert!(
        status.success(),
        "runc run: {}",
        fs::read_to_string(scratch.join("log")).unwrap()
    );
    let state = || {
        run(Command::new(&runc)
            .arg("--root")
            .arg(&root)
            .args(["state", "from-bundle"]))
        .unwrap_or_default()
    };
    assert!(
        until(Duration::from_secs(10), || state().contains("\"running\"")),
        "{}",
        state()
    );
    let hostname =
        run(Command::new(&runc)
            .arg("--root")
            .arg(&root)
            .args(["exec", "from-bundle", "hostname"]))
        .unwrap();
    assert_eq!(hostname.trim(), "bundle", "it joined the pod's namespaces");
    drop(guard);
    assert_eq!(
        crictl.json(&["inspect", &id])["status"]["state"],
        "CONTAINER_RUNNING",
        "the container itself goes on"
    );
}
