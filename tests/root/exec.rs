//! ExecSync: what a command may print, leave behind and be, and how it ends.

use std::time::{Duration, Instant};

use crisp_harness::{
    cri::v1::{ExecSyncRequest, ExecSyncResponse, Int64Value, KeyValue, StatusRequest},
    pods::words,
    process::until,
    site::pids,
};
use tonic::{Code, Status};

use crate::Host;

/// What one answer may hold of both streams together.
const CAP: usize = (16 << 20) - (64 << 10);

async fn exec(
    host: &Host,
    container: &str,
    command: &[&str],
    timeout: i64,
) -> Result<ExecSyncResponse, Status> {
    let request = ExecSyncRequest {
        container_id: container.to_owned(),
        cmd: words(command),
        timeout,
    };
    let answer = host.pods.cri.runtime.clone().exec_sync(request).await?;
    Ok(answer.into_inner())
}

/// An object of the daemon's verbose status.
async fn info(host: &Host, key: &str) -> serde_json::Value {
    let request = StatusRequest { verbose: true };
    let answer = host.pods.cri.runtime.clone().status(request).await.unwrap();
    let info = answer.into_inner().info;
    serde_json::from_str(&info[key]).unwrap()
}

/// Processes whose command line is this.
fn processes(command: &[&str]) -> usize {
    let wanted: Vec<u8> = command
        .iter()
        .flat_map(|word| word.bytes().chain([0]))
        .collect();
    let is_it =
        |pid: &u32| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == wanted);
    pids().iter().filter(|pid| is_it(pid)).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_beyond_the_cap_is_cut_logged_and_counted() {
    let host = Host::new().await;
    let (_pod, container) = host.running("cut", &["sleep", "1000"]).await;
    assert_eq!(info(&host, "exec").await["outputsCut"], 0);
    let began = Instant::now();
    let answer = exec(
        &host,
        &container,
        &["head", "-c", "17825792", "/dev/zero"],
        60,
    )
    .await
    .unwrap();
    let kept = answer.stdout.len() + answer.stderr.len();
    println!(
        "17 MiB to stdout: {kept} bytes kept, code {}, {:?}",
        answer.exit_code,
        began.elapsed()
    );
    assert_eq!((kept, answer.exit_code), (CAP, 0));
    let both = "head -c 9437184 /dev/zero; head -c 9437184 /dev/zero >&2; exit 7";
    let answer = exec(&host, &container, &["sh", "-c", both], 60)
        .await
        .unwrap();
    let kept = (answer.stdout.len(), answer.stderr.len());
    println!(
        "9 MiB to each: {kept:?} bytes kept, code {}",
        answer.exit_code
    );
    assert_eq!((kept.0 + kept.1, answer.exit_code), (CAP, 7));
    assert_eq!(kept.0, 9 << 20, "first come, first kept");
    let counted = info(&host, "exec").await;
    println!("counted: {counted}");
    assert_eq!(counted["outputsCut"], 2);
    let printed = (17 << 20) + (18 << 20);
    assert_eq!(counted["bytesCut"], printed - 2 * CAP);
    let log = std::fs::read_to_string(host.daemon.log()).unwrap();
    assert_eq!(log.matches("output of a command was cut").count(), 2);
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_left_behind_with_the_output_does_not_hold_the_answer_up() {
    let host = Host::new().await;
    let (_pod, container) = host.running("left", &["sleep", "1000"]).await;
    let child = ["sleep", "97531"];
    let began = Instant::now();
    let script = format!("{} & echo done", child.join(" "));
    let answer = exec(&host, &container, &["sh", "-c", &script], 0)
        .await
        .unwrap();
    let took = began.elapsed();
    println!("answered after {took:?}");
    assert!(took < Duration::from_secs(30), "{took:?}");
    assert_eq!(
        (answer.stdout.as_slice(), answer.exit_code),
        (&b"done\n"[..], 0)
    );
    let lives = || processes(&child) == 1;
    assert!(until(Duration::from_secs(10), lives), "the child lives on");
    // One that keeps on writing neither hangs the call nor dies of a broken pipe.
    let script = "while :; do echo still here || exit 1; usleep 10000; done & echo done";
    let answer = exec(&host, &container, &["sh", "-c", script], 0)
        .await
        .unwrap();
    assert_eq!(answer.exit_code, 0);
    assert!(answer.stdout.ends_with(b"still here\n") || answer.stdout.ends_with(b"done\n"));
    host.pods.remove_all().await.unwrap();
    assert!(until(Duration::from_secs(10), || processes(&child) == 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_timeout_kills_the_whole_tree() {
    let host = Host::new().await;
    let (_pod, container) = host.running("late", &["sleep", "1000"]).await;
    let numbers = ["86421", "86422", "86423", "86424"];
    let script = format!(
        "sleep {} & setsid sleep {} & sh -c 'sleep {} & wait' & exec sleep {}",
        numbers[0], numbers[1], numbers[2], numbers[3]
    );
    let began = Instant::now();
    let status = exec(&host, &container, &["sh", "-c", &script], 1)
        .await
        .unwrap_err();
    let took = began.elapsed();
    println!("after {took:?}: {:?} {}", status.code(), status.message());
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(
        took >= Duration::from_secs(1),
        "not before its time: {took:?}"
    );
    let left = |numbers: [&str; 4]| {
        let all = numbers.map(|number| processes(&["sleep", number]));
        all.iter().sum::<usize>()
    };
    // Killed when the answer came; what is a zombie has no command line.
    assert_eq!(left(numbers), 0);
    let answer = exec(&host, &container, &["echo", "unharmed"], 10)
        .await
        .unwrap();
    assert_eq!(answer.stdout, b"unharmed\n");
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exit_codes_are_those_of_the_command() {
    let host = Host::new().await;
    let (_pod, container) = host.running("codes", &["sleep", "1000"]).await;
    for (script, code) in [
        ("exit 0", 0),
        ("exit 1", 1),
        ("no-such-program", 127),
        ("kill -9 $$", 137),
        ("kill -15 $$", 143),
        ("exit 255", 255),
    ] {
        let answer = exec(&host, &container, &["sh", "-c", script], 10)
            .await
            .unwrap();
        println!("{script:?}: {}", answer.exit_code);
        assert_eq!(answer.exit_code, code, "{script}");
    }
    let status = exec(&host, &container, &["/no/such/program"], 10)
        .await
        .unwrap_err();
    println!(
        "a program that is not there: {:?} {}",
        status.code(),
        status.message()
    );
    assert!(status.message().contains("/no/such/program"), "{status}");
    host.pods.remove_all().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_is_what_the_container_is_also_after_a_restart() {
    let mut host = Host::new().await;
    let sandbox = host.pods.sandbox("same");
    let pod = host.pods.run(&sandbox).await.unwrap();
    let look = "grep -E '^(Uid|Gid|Groups|Cap...|NoNewPrivs|Seccomp)' /proc/self/status; \
        cat /proc/self/oom_score_adj; umask; pwd; printf %s \"$BYTES\"";
    let script = format!("{look}; exec sleep 1000");
    let mut config = host.pods.container("c", &["sh", "-c", &script]);
    // JSON could not hold this value.
    let bytes = b"\xff\x01 \xc3\x28=\n\"'\\".to_vec();
    config.envs.push(KeyValue {
        key: "BYTES".into(),
        value: bytes.clone(),
    });
    let context = config
        .linux
        .as_mut()
        .unwrap()
        .security_context
        .as_mut()
        .unwrap();
    context.run_as_user = Some(Int64Value { value: 1234 });
    context.run_as_group = Some(Int64Value { value: 5678 });
    context.supplemental_groups = vec![4321, 8765];
    context.no_new_privs = true;
    context.seccomp = Some(crisp_harness::cri::v1::SecurityProfile::default());
    context.capabilities = Some(crisp_harness::cri::v1::Capability {
        drop_capabilities: vec!["CHOWN".into()],
        ..Default::default()
    });
    let container = host.pods.launch(&pod, &config, &sandbox).await.unwrap();
    let first = exec(&host, &container, &["sh", "-c", look], 10)
        .await
        .unwrap()
        .stdout;
    println!("{}", String::from_utf8_lossy(&first));
    assert!(first.ends_with(&bytes));
    let log = host.pods.log_directory("same").join("c.log");
    let printed = until(Duration::from_secs(10), || {
        // Each record has its content from byte 41 on. The last piece waits for its newline.
        let text = std::fs::read(&log).unwrap_or_default();
        let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
        let content: Vec<u8> = lines.iter().flat_map(|line| line[40..].to_vec()).collect();
        content
            .strip_suffix(b"\n")
            .is_some_and(|content| content == first)
    });
    assert!(
        printed,
        "the container itself is another: {:?}",
        std::fs::read(&log)
    );
    host.daemon.kill().unwrap();
    host.again().await;
    let again = exec(&host, &container, &["sh", "-c", look], 10)
        .await
        .unwrap()
        .stdout;
    assert_eq!(again, first, "{}", String::from_utf8_lossy(&again));
    host.pods.remove_all().await.unwrap();
}
