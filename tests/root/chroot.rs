//! A daemon in a chroot whose root is a plain directory: no mount point, so nothing can be said about
//! "/" as a mount (its propagation, for one).

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crisp_harness::{
    cri::v1::ContainerState,
    crictl::runtime_under_test,
    daemon::{Daemon, Kind},
    pods::Pods,
    suite::{self, BUSYBOX},
};

/// Fills the directory `$1` with this host's directories, in a mount namespace that nobody else
/// sees, and runs the rest of the words in there.
///
/// The tests may themselves run in such a root, where nobody can make "/" private.
const ENTER: &str = r#"
set -e
mount --make-rprivate / 2>/dev/null || :
root=$1
shift
for dir in /*; do
    if [ -L "$dir" ]; then
        cp -a "$dir" "$root$dir"
    elif [ -d "$dir" ]; then
        mkdir "$root$dir"
        mount --rbind "$dir" "$root$dir"
    fi
done
exec chroot "$root" "$@"
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_in_a_chroot_that_is_no_mount_point_runs_pods() {
    if runtime_under_test() != Kind::Crisp {
        return;
    }
    let registry = suite::registry().unwrap();
    let mut daemon = Daemon::new(Kind::Crisp, &registry.url(), None).unwrap();
    let root = daemon.site().dir().join("chroot");
    fs::create_dir(&root).unwrap();
    let unshare = ["unshare", "--mount", "--propagation", "unchanged"];
    let words = unshare.into_iter().chain(["sh", "-c", ENTER, "sh"]);
    daemon.wrap(words.map(Into::into).chain([root.clone().into()]).collect());
    daemon.start().await.unwrap();
    let place = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino()));
    let its_root = PathBuf::from(format!("/proc/{}/root", daemon.pid()));
    assert_eq!(place(&its_root).unwrap(), place(&root).unwrap());
    let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", daemon.pid())).unwrap();
    let points: Vec<&str> = (mounts.lines())
        .filter_map(|line| line.split(' ').nth(4))
        .collect();
    assert!(
        !points.contains(&"/"),
        "its root is no mount point: {points:?}"
    );

    let pods = Pods::connect(&daemon).await.unwrap();
    pods.pull(BUSYBOX).await.unwrap();
    let sandbox = pods.sandbox("inside");
    let pod = pods.run(&sandbox).await.unwrap();
    let config = pods.container("c", &["sleep", "1000"]);
    let container = pods.launch(&pod, &config, &sandbox).await.unwrap();
    let said = pods
        .exec(&container, &["cat", "/proc/1/cmdline"])
        .await
        .unwrap();
    assert_eq!(said.stdout, b"sleep\x001000\x00");
    pods.stop(&container, 0).await.unwrap();
    let status = pods.status(&container).await.unwrap();
    assert_eq!(status.state(), ContainerState::ContainerExited);
    pods.remove_all().await.unwrap();
}
