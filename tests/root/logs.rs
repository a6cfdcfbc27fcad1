//! Logs under fire: floods, rotations, a daemon that is not there, a disk that is full.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use crisp_harness::{
    cri::v1::{ContainerStatusRequest, ReopenContainerLogRequest},
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

/// A script that prints so many numbered lines in parts, each when a file appears.
fn flood(parts: usize, lines: usize) -> String {
    let line = "x".repeat(89);
    let awk =
        format!("BEGIN {{ for (i = first; i <= last; i++) printf \"%9d %s\\n\", i, \"{line}\" }}");
    let each = lines.div_ceil(parts);
    let mut script = String::new();
    for part in 0..parts {
        let (first, last) = (part * each + 1, ((part + 1) * each).min(lines));
        script.push_str(&format!(
            "while [ ! -e /tmp/part{part} ]; do usleep 2000; done; \
             awk -v first={first} -v last={last} '{awk}'; "
        ));
    }
    script
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_loses_no_line_over_rotations_and_without_a_daemon() {
    const ROTATIONS: usize = 10;
    let lines = lines();
    let mut host = Host::new().await;
    let script = flood(ROTATIONS + 1, lines);
    let (_pod, container) = host.running("flood", &["sh", "-c", &script]).await;
    let pid = host.pods.pid(&container).await.unwrap();
    let go = |part: usize| fs::write(format!("/proc/{pid}/root/tmp/part{part}"), "").unwrap();
    let log = host.pods.log_directory("flood").join("c.log");
    // A record has 40 bytes before its line of a hundred.
    let part = lines.div_ceil(ROTATIONS + 1) as u64 * 140;
    let size = |path: &Path| fs::metadata(path).map_or(0, |data| data.len());
    let mut old: Vec<(PathBuf, u64)> = Vec::new();
    let began = Instant::now();
    for rotation in 0..ROTATIONS {
        go(rotation);
        let rotated: u64 = old.iter().map(|(_, size)| size).sum();
        let printed =
            |bytes: u64| until(Duration::from_secs(120), || rotated + size(&log) >= bytes);
        let begins = rotation as u64 * part;
        assert!(
            printed(begins + part / 2),
            "part {rotation} is half printed"
        );
        if rotation == ROTATIONS / 2 {
            host.daemon.kill().unwrap();
            assert!(printed(begins + part), "it goes on without a daemon");
            host.again().await;
        }
        let name = log.with_file_name(format!("c.log.{rotation}"));
        fs::rename(&log, &name).unwrap();
        let request = ReopenContainerLogRequest {
            container_id: container.clone(),
        };
        let mut runtime = host.pods.cri.runtime.clone();
        runtime.reopen_container_log(request).await.unwrap();
        assert!(log.exists(), "the new file is there when the answer is");
        old.push((name.clone(), size(&name)));
    }
    go(ROTATIONS);
    let limit = Duration::from_secs(300);
    let status = host.pods.exited(&container, limit).await.unwrap();
    let took = began.elapsed();
    assert_eq!(status.exit_code, 0);
    let mut next = 1;
    for (name, before) in &old {
        assert_eq!(size(name), *before, "nothing is added to an old file");
        next = count_on(name, next);
    }
    next = count_on(&log, next);
    println!(
        "P1 {} lines in {took:?} over {} rotations, none is lost",
        next - 1,
        old.len()
    );
    assert_eq!(next - 1, lines);
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
    while output["logLostBytes"].as_u64() <= Some(1 << 20) && Instant::now() < deadline {
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
