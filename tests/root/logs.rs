//! Logs under fire: floods, rotations, a daemon that is not there, a disk that is full.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use crisp_harness::{
    cri::v1::{ContainerState, ContainerStatusRequest, ReopenContainerLogRequest},
    process::until,
};

use crate::Host;

/// Lines of a hundred bytes: 64 MiB, or 1 GiB.
fn lines() -> usize {
    let bytes: usize = match std::env::var_os("CRISP_TEST_FULL") {
        Some(_) => 1 << 30,
        None => 64 << 20,
    };
    bytes / 100
}

/// The number in each record of a log, which all must be whole lines; goes on from `next`.
fn count_on(log: &Path, mut next: usize) -> usize {
    let mut reader = BufReader::with_capacity(1 << 20, File::open(log).unwrap());
    let mut record = Vec::new();
    loop {
        record.clear();
        if reader.read_until(b'\n', &mut record).unwrap() == 0 {
            return next;
        }
        let text = std::str::from_utf8(&record).unwrap();
        let content = text
            .get(31..)
            .and_then(|rest| rest.strip_prefix("stdout F "));
        let content = content.unwrap_or_else(|| panic!("{}: {text:?}", log.display()));
        assert_eq!(content.len(), 100, "{text:?}");
        let number: usize = content[..9].trim_start().parse().unwrap();
        assert_eq!(number, next, "in {}", log.display());
        next += 1;
    }
}

async fn verbose(host: &Host, container: &str) -> serde_json::Value {
    let request = ContainerStatusRequest {
        container_id: container.to_owned(),
        verbose: true,
    };
    let answer = host
        .pods
        .cri
        .runtime
        .clone()
        .container_status(request)
        .await;
    serde_json::from_str(&answer.unwrap().into_inner().info["info"]).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_loses_no_line_over_rotations_and_without_a_daemon() {
    const ROTATIONS: usize = 10;
    let lines = lines();
    let mut host = Host::new().await;
    let program = format!(
        "BEGIN {{ for (i = 1; i <= {lines}; i++) printf \"%9d %s\\n\", i, \"{}\" }}",
        "x".repeat(89)
    );
    let began = Instant::now();
    let (_pod, container) = host.running("flood", &["awk", &program]).await;
    let log = host.pods.log_directory("flood").join("c.log");
    let share = lines as u64 * 140 / (ROTATIONS as u64 + 1);
    let grown = |log: &PathBuf, size: u64| {
        let (log, limit) = (log.clone(), Duration::from_secs(120));
        until(limit, || {
            fs::metadata(&log).is_ok_and(|data| data.len() >= size)
        })
    };
    let mut old = Vec::new();
    for rotation in 0..ROTATIONS {
        assert!(grown(&log, share), "rotation {rotation}: it prints");
        if rotation == ROTATIONS / 2 {
            // As much again while nobody is there.
            host.daemon.kill().unwrap();
            let before = fs::metadata(&log).unwrap().len();
            assert!(
                grown(&log, before + share / 2),
                "it goes on without a daemon"
            );
            host.again().await;
        }
        let name = log.with_file_name(format!("c.log.{rotation}"));
        fs::rename(&log, &name).unwrap();
        let request = ReopenContainerLogRequest {
            container_id: container.clone(),
        };
        let reopened = host
            .pods
            .cri
            .runtime
            .clone()
            .reopen_container_log(request)
            .await;
        if let Err(status) = reopened {
            // It ended first: what it wrote is where it was.
            let ended = host.pods.status(&container).await.unwrap();
            assert_eq!(ended.state(), ContainerState::ContainerExited, "{status}");
            fs::rename(&name, &log).unwrap();
            break;
        }
        old.push((name.clone(), fs::metadata(&name).unwrap().len()));
    }
    let status = host
        .pods
        .exited(&container, Duration::from_secs(300))
        .await
        .unwrap();
    let took = began.elapsed();
    assert_eq!(status.exit_code, 0);
    let mut next = 1;
    for (name, size) in &old {
        assert_eq!(
            fs::metadata(name).unwrap().len(),
            *size,
            "nothing is added to an old file"
        );
        next = count_on(name, next);
    }
    next = count_on(&log, next);
    println!(
        "{} lines in {took:?} over {} rotations",
        next - 1,
        old.len()
    );
    assert_eq!(next - 1, lines);
    assert!(old.len() >= ROTATIONS - 1, "{} rotations", old.len());
    host.pods.remove_all().await.unwrap();
}

/// A file system of so many bytes, gone with this.
struct Small(PathBuf);

impl Small {
    fn mount(at: &Path, size: &str) -> Self {
        fs::create_dir_all(at).unwrap();
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(at);
        assert!(mount.status().unwrap().success());
        Self(at.to_owned())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let mut umount = Command::new("umount");
        umount.arg("-l").arg(&self.0);
        assert!(umount.status().is_ok_and(|status| status.success()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_log_disk_is_reported_and_blocks_nobody() {
    let host = Host::new().await;
    let sandbox = host.pods.sandbox("full");
    let logs = host.pods.log_directory("full");
    let _small = Small::mount(&logs, "2m");
    let pod = host.pods.run(&sandbox).await.unwrap();
    let script =
        "seq 1 1000000; : >/tmp/through; while [ ! -e /tmp/go ]; do usleep 10000; done; echo after";
    let config = host.pods.container("c", &["sh", "-c", script]);
    let began = Instant::now();
    let id = host.pods.launch(&pod, &config, &sandbox).await.unwrap();
    // It has printed everything when it makes the file.
    let pid = host.pods.pid(&id).await.unwrap();
    let through = PathBuf::from(format!("/proc/{pid}/root/tmp/through"));
    assert!(
        until(Duration::from_secs(60), || through.exists()),
        "a full disk holds it up"
    );
    println!(
        "7 MB of lines against 2 MiB of disk: through after {:?}",
        began.elapsed()
    );
    let mut output = verbose(&host, &id).await["output"].clone();
    let deadline = Instant::now() + Duration::from_secs(10);
    while output["logError"].is_null() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(20)).await;
        output = verbose(&host, &id).await["output"].clone();
    }
    println!("its status: {output}");
    assert!(output["logLostBytes"].as_u64().unwrap() > 1 << 20);
    assert!(
        output["logError"]
            .as_str()
            .unwrap()
            .contains("No space left")
    );
    // With room again it goes on, in whole records.
    fs::rename(logs.join("c.log"), logs.join("c.log.0")).unwrap();
    fs::remove_file(logs.join("c.log.0")).unwrap();
    let request = ReopenContainerLogRequest {
        container_id: id.clone(),
    };
    let reopened = host
        .pods
        .cri
        .runtime
        .clone()
        .reopen_container_log(request)
        .await;
    reopened.unwrap();
    fs::write(format!("/proc/{pid}/root/tmp/go"), "").unwrap();
    let status = host
        .pods
        .exited(&id, Duration::from_secs(10))
        .await
        .unwrap();
    assert_eq!(status.exit_code, 0);
    let text = fs::read_to_string(logs.join("c.log")).unwrap();
    assert!(
        text.ends_with("stdout F after\n") && text.lines().count() == 1,
        "{text}"
    );
    assert!(verbose(&host, &id).await["output"]["logError"].is_null());
    let log = fs::read_to_string(host.daemon.log()).unwrap();
    for words in ["log cannot be written", "log can be written again"] {
        assert!(log.contains(words), "the daemon's log says so: {words}");
    }
    host.pods.remove_all().await.unwrap();
}
