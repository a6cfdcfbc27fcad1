//! Logs and streams through kubelet's own server.

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use crisp_harness::peer::Transport;
use serde_json::{Value, json};

use crate::{
    host::{Failure, Host, LIMIT, Seen, expect, fail},
    manifest::{STAY, pod, shell, with},
};

/// Lines of about 100 bytes with a number each, some hundred a second.
pub fn log_pods(_: &Host) -> Vec<Value> {
    let script = "i=0; while :; do echo \"line $i ..............................................................................\"; i=$((i+1)); [ $((i % 100)) = 0 ] && sleep 0.2; done";
    vec![pod("chatty", &[shell("c", script)])]
}

/// The files of a container's log, oldest first; the current one last.
fn log_files(host: &Host, name: &str) -> Result<Vec<PathBuf>, Failure> {
    let uid = host.pod(name)?["metadata"]["uid"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let dir = host
        .kubelet
        .logs()
        .join(format!("default_{}_{uid}", host.kubelet.pod_name(name)))
        .join("c");
    let mut files: Vec<PathBuf> = fs::read_dir(dir)?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    files.sort();
    // `0.log` sorts before its rotated ones.
    if let Some(at) = files
        .iter()
        .position(|file| file.to_string_lossy().ends_with("/0.log"))
    {
        let current = files.remove(at);
        files.push(current);
    }
    Ok(files)
}

fn read_log(file: &std::path::Path) -> Result<String, Failure> {
    if file.extension().is_some_and(|extension| extension == "gz") {
        return Ok(crisp_harness::process::run(
            Command::new("gzip").arg("-dc").arg(file),
        )?);
    }
    Ok(fs::read_to_string(file)?)
}

/// Several rotations; every number from the oldest kept file to the current one is there once.
pub fn rotation(host: &mut Host) -> Seen {
    host.ready("chatty")?;
    let mut rotated = BTreeSet::new();
    let began = Instant::now();
    while rotated.len() < 5 {
        let files = log_files(host, "chatty")?;
        let stamp = |file: &PathBuf| {
            file.to_string_lossy()
                .trim_end_matches(".gz")
                .rsplit_once("0.log.")
                .map(|(_, stamp)| stamp.to_owned())
        };
        rotated.extend(
            files
                .iter()
                .filter_map(stamp)
                .filter(|stamp| !stamp.ends_with(".tmp")),
        );
        if began.elapsed() > LIMIT {
            return fail(format!(
                "rotated {} times in {LIMIT:?}: {files:?}",
                rotated.len()
            ));
        }
        thread::sleep(Duration::from_millis(200));
    }
    // A rotation while the files are read would move them: read until none came between.
    let lines = loop {
        let files = log_files(host, "chatty")?;
        let text: Result<Vec<String>, Failure> = files.iter().map(|file| read_log(file)).collect();
        match text {
            Ok(text) if log_files(host, "chatty")? == files => break text.concat(),
            _ if began.elapsed() > LIMIT * 2 => return fail("the files never stood still"),
            _ => {}
        }
    };
    let numbers: Vec<u64> = lines
        .lines()
        .filter_map(|line| line.split(' ').nth(4)?.parse().ok())
        .collect();
    let kept = log_files(host, "chatty")?;
    expect(
        kept.len() <= 5,
        format!("more than containerLogMaxFiles: {kept:?}"),
    )?;
    let broken = numbers.windows(2).find(|pair| pair[1] != pair[0] + 1);
    if let Some(pair) = broken {
        return fail(format!("line {} follows line {}", pair[1], pair[0]));
    }
    let compressed = kept
        .iter()
        .filter(|file| file.extension().is_some_and(|extension| extension == "gz"))
        .count();
    host.kubelet.withdraw("chatty")?;
    Ok(format!(
        "{} rotations, {} files kept, {compressed} compressed; {} lines over them without a gap",
        rotated.len(),
        kept.len(),
        numbers.len()
    ))
}

pub fn talk_pods(_: &Host) -> Vec<Value> {
    vec![pod(
        "talk",
        &[shell(
            "c",
            &format!("echo one; echo two >&2; echo three; {STAY}"),
        )],
    )]
}

pub fn logs(host: &mut Host) -> Seen {
    host.ready("talk")?;
    let base = format!(
        "{}/containerLogs/default/{}/c",
        host.kubelet.server(),
        host.kubelet.pod_name("talk")
    );
    let all = host.peer.fetch("GET", &base)?;
    // Two streams have no order between them.
    let (mut lines, mut wanted) = (all.lines().collect::<Vec<_>>(), ["one", "two", "three"]);
    lines.sort_unstable();
    wanted.sort_unstable();
    expect(lines == wanted, format!("{all:?}"))?;
    let tail = host
        .peer
        .fetch("GET", &format!("{base}?tailLines=1&timestamps=true"))?;
    expect(
        (tail.ends_with(" three\n") || tail.ends_with(" two\n")) && tail.starts_with("20"),
        format!("{tail:?}"),
    )?;
    Ok(format!(
        "all three lines of both streams; the last with its time: {}",
        tail.trim()
    ))
}

/// Everything but letters and digits as %XX.
fn escaped(text: &str) -> String {
    let byte = |byte: u8| {
        if byte.is_ascii_alphanumeric() {
            char::from(byte).to_string()
        } else {
            format!("%{byte:02X}")
        }
    };
    text.bytes().map(byte).collect()
}

fn exec_url(host: &Host, command: &[&str], flags: &str) -> String {
    let words: String = command
        .iter()
        .map(|word| format!("command={}&", escaped(word)))
        .collect();
    format!(
        "{}/exec/default/{}/c?{words}{flags}",
        host.kubelet.server(),
        host.kubelet.pod_name("talk")
    )
}

pub fn exec(host: &mut Host) -> Seen {
    host.ready("talk")?;
    let ran = host.peer.fetch(
        "POST",
        &format!(
            "{}/run/default/{}/c?cmd=hostname",
            host.kubelet.server(),
            host.kubelet.pod_name("talk")
        ),
    )?;
    expect(
        ran.trim() == host.kubelet.pod_name("talk"),
        format!("/run: {ran}"),
    )?;
    let mut seen = Vec::new();
    for transport in Transport::ALL {
        let url = exec_url(host, &["cat"], "input=1&output=1&error=1");
        let out = host
            .peer
            .stream(transport, &["-stdin", "-send", "4194304"], &[url])?
            .remove(0);
        expect(
            out.stdout_sha256 == out.sent_sha256 && out.sent == 4 << 20 && out.error.is_empty(),
            format!("{}: cat: {out:?}", transport.name()),
        )?;
        let url = exec_url(
            host,
            &["sh", "-c", "echo out; echo err >&2; exit 7"],
            "output=1&error=1",
        );
        let out = host.peer.stream(transport, &[], &[url])?.remove(0);
        expect(
            out.stdout_text == "out\n" && out.stderr_text == "err\n" && out.exit == 7,
            format!("{}: exit: {out:?}", transport.name()),
        )?;
        let url = exec_url(
            host,
            &[
                "sh",
                "-c",
                "for i in $(seq 100); do stty size 2>/dev/null | grep '31 93' && break; sleep 0.1; done",
            ],
            "input=1&output=1&tty=1",
        );
        let out = host
            .peer
            .stream(
                transport,
                &["-stdin", "-tty", "-hold", "-sizes", "93x31"],
                &[url],
            )?
            .remove(0);
        expect(
            out.stdout_text.contains("31 93"),
            format!("{}: terminal: {out:?}", transport.name()),
        )?;
        seen.push(transport.name());
    }
    Ok(format!(
        "/run; over {}: 4 MiB through cat whole, both streams and exit code 7, a terminal of 93x31",
        seen.join(" and ")
    ))
}

pub fn attach_pods(_: &Host) -> Vec<Value> {
    let container = with(
        shell(
            "c",
            "while read line; do echo got $line; [ $line = end ] && exit 0; done",
        ),
        json!({ "stdin": true }),
    );
    vec![pod("attached", &[container])]
}

pub fn attach(host: &mut Host) -> Seen {
    let mut seen = Vec::new();
    for transport in Transport::ALL {
        host.ready("attached")?;
        let restarts = crate::host::restarts(&host.pod("attached")?, "c");
        let url = format!(
            "{}/attach/default/{}/c?input=1&output=1&error=1",
            host.kubelet.server(),
            host.kubelet.pod_name("attached")
        );
        let out = host
            .peer
            .stream(
                transport,
                &["-stdin", "-hold", "-text", "hello\nend\n"],
                &[url],
            )?
            .remove(0);
        expect(
            out.stdout_text == "got hello\ngot end\n",
            format!("{}: {out:?}", transport.name()),
        )?;
        host.wait("attached", "run again", |pod| {
            crate::host::restarts(pod, "c") > restarts
        })?;
        seen.push(transport.name());
    }
    Ok(format!(
        "over {}: lines in, answers out, ended with the container",
        seen.join(" and ")
    ))
}

/// An echo server.
pub fn forward_pods(_: &Host) -> Vec<Value> {
    vec![pod("echo", &[shell("c", "exec nc -lk -p 7007 -e cat")])]
}

pub fn forward(host: &mut Host) -> Seen {
    host.ready("echo")?;
    let mut seen = Vec::new();
    for transport in Transport::ALL {
        let url = format!(
            "{}/portForward/default/{}?port=7007",
            host.kubelet.server(),
            host.kubelet.pod_name("echo")
        );
        let all = host.peer.forward(
            transport,
            &["-port", "7007", "-send", "4194304", "-connections", "3"],
            &url,
        )?;
        for out in &all {
            expect(
                out.sent == 4 << 20 && out.stdout_sha256 == out.sent_sha256,
                format!("{}: {out:?}", transport.name()),
            )?;
        }
        seen.push(format!("{}: {} connections", transport.name(), all.len()));
    }
    Ok(format!(
        "4 MiB both ways, whole by hash; {}",
        seen.join(", ")
    ))
}
