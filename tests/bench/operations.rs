//! What is measured: the calls of a pod's life, one after the other and several at once.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use crisp_harness::{cri::v1::Mount, pods::Pods, tools};
use tokio::{sync::Semaphore, task::JoinSet};
use tonic::Status;

/// Samples by the name of what was measured: milliseconds, or what the name's unit says.
#[derive(Debug, Clone, Default)]
pub struct Samples {
    values: BTreeMap<&'static str, Vec<f64>>,
    /// What is to be said instead of a value.
    notes: BTreeMap<&'static str, String>,
}

impl Samples {
    /// One more of a name.
    pub fn push(&mut self, name: &'static str, value: f64) {
        self.values.entry(name).or_default().push(value);
    }

    /// Why there is no value of a name.
    pub fn note(&mut self, name: &'static str, why: String) {
        self.notes.insert(name, why);
    }

    /// What was said instead of a value.
    pub fn noted(&self, name: &str) -> Option<&str> {
        self.notes.get(name).map(String::as_str)
    }

    /// All of another.
    pub fn add(&mut self, other: Self) {
        for (name, values) in other.values {
            self.values.entry(name).or_default().extend(values);
        }
        self.notes.extend(other.notes);
    }

    /// Median and 95th percentile of a name.
    pub fn median_p95(&self, name: &str) -> Option<(f64, f64)> {
        let mut values = self.values.get(name)?.clone();
        values.sort_by(f64::total_cmp);
        let last = values.len().checked_sub(1)?;
        Some((
            values[last / 2],
            values[(values.len() * 95 / 100).min(last)],
        ))
    }
}

struct Clock<'a> {
    samples: &'a mut Samples,
}

impl Clock<'_> {
    /// Waits for one call and notes how long it took, if it succeeded.
    async fn time<T>(
        &mut self,
        name: &'static str,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        let began = Instant::now();
        let answer = call.await?;
        self.samples.push(name, began.elapsed().as_secs_f64() * 1e3);
        Ok(answer)
    }
}

/// The whole life of one pod.
///
/// # Errors
/// The runtime's.
pub async fn one_pod(pods: &Pods, name: &str) -> Result<Samples, Status> {
    let mut samples = Samples::default();
    let mut clock = Clock {
        samples: &mut samples,
    };
    let sandbox = pods.sandbox(name);
    let began = Instant::now();
    let pod = clock.time("RunPodSandbox", pods.run(&sandbox)).await?;
    // Ends at SIGTERM at once although it is PID 1: a quick exit.
    let config = pods.container(
        "c",
        &[
            "sh",
            "-c",
            "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done",
        ],
    );
    let container = clock
        .time("CreateContainer", pods.create(&pod, &config, &sandbox))
        .await?;
    clock.time("StartContainer", pods.start(&container)).await?;
    clock
        .samples
        .push("Run + Create + Start", began.elapsed().as_secs_f64() * 1e3);
    for _ in 0..3 {
        let _answer = clock
            .time("ExecSync true", pods.exec(&container, &["true"]))
            .await?;
    }
    clock
        .time("StopContainer", pods.stop(&container, 10))
        .await?;
    clock
        .time("RemoveContainer", pods.remove(&container))
        .await?;
    clock.time("StopPodSandbox", pods.stop_pod(&pod)).await?;
    clock
        .time("RemovePodSandbox", pods.remove_pod(&pod))
        .await?;
    Ok(samples)
}

/// ExecSync with eight callers for two seconds: calls per second.
///
/// # Errors
/// The runtime's.
pub async fn busy_exec(pods: &Pods) -> Result<Samples, Status> {
    let sandbox = pods.sandbox("busy");
    let pod = pods.run(&sandbox).await?;
    let container = pods
        .launch(&pod, &pods.container("c", &["sleep", "1000"]), &sandbox)
        .await?;
    let began = Instant::now();
    let end = began + Duration::from_secs(2);
    let mut callers = JoinSet::new();
    for _ in 0..8 {
        let (pods, container) = (pods.clone(), container.clone());
        callers.spawn(async move {
            let mut calls = 0_u32;
            while Instant::now() < end {
                let _answer = pods.exec(&container, &["true"]).await?;
                calls += 1;
            }
            Ok::<_, Status>(calls)
        });
    }
    let mut calls = 0;
    while let Some(caller) = callers.join_next().await {
        calls += caller.map_err(|error| Status::internal(error.to_string()))??;
    }
    let rate = f64::from(calls) / began.elapsed().as_secs_f64();
    pods.stop_pod(&pod).await?;
    pods.remove_pod(&pod).await?;
    let mut samples = Samples::default();
    samples.push("ExecSync 8 at once, per s", rate);
    Ok(samples)
}

/// Pods started several at once: pods per second until all run.
///
/// # Errors
/// The runtime's.
pub async fn pods_at_once(pods: &Pods, count: u32, at_once: usize) -> Result<Samples, Status> {
    let turns = Arc::new(Semaphore::new(at_once));
    let mut makers = JoinSet::new();
    let began = Instant::now();
    for number in 0..count {
        let (pods, turns) = (pods.clone(), Arc::clone(&turns));
        makers.spawn(async move {
            let _turn = turns.acquire_owned().await;
            let sandbox = pods.sandbox(&format!("many{number}"));
            let pod = pods.run(&sandbox).await?;
            pods.launch(&pod, &pods.container("c", &["sleep", "1000"]), &sandbox)
                .await
        });
    }
    while let Some(maker) = makers.join_next().await {
        let _container = maker.map_err(|error| Status::internal(error.to_string()))??;
    }
    let mut samples = Samples::default();
    samples.push(
        "40 pods 4 at once, pods/s",
        f64::from(count) / began.elapsed().as_secs_f64(),
    );
    pods.remove_all().await?;
    Ok(samples)
}

/// A container that prints lines of 100 bytes as fast as it can: megabytes a second, by the runtime's
/// own times of its start and end.
///
/// # Errors
/// The runtime's.
pub async fn log_flood(pods: &Pods, scratch: &Path) -> Result<Samples, Status> {
    const LINES: usize = 83_886;
    const TIMES: usize = 16;
    let file = scratch.join("lines");
    let line = format!("{}\n", "x".repeat(99));
    fs::write(&file, line.repeat(LINES)).map_err(|error| Status::internal(error.to_string()))?;
    let sandbox = pods.sandbox("flood");
    let pod = pods.run(&sandbox).await?;
    let script = format!("i=0; while [ $i -lt {TIMES} ]; do cat /lines; i=$((i+1)); done");
    let mut config = pods.container("c", &["sh", "-c", &script]);
    config.mounts.push(Mount {
        container_path: "/lines".to_owned(),
        host_path: file.to_string_lossy().into_owned(),
        readonly: true,
        ..Mount::default()
    });
    let container = pods.launch(&pod, &config, &sandbox).await?;
    let status = pods.exited(&container, Duration::from_secs(120)).await?;
    #[expect(clippy::cast_precision_loss, reason = "megabytes and nanoseconds fit")]
    let (bytes, nanoseconds) = (
        (LINES * TIMES * 100) as f64,
        (status.finished_at - status.started_at) as f64,
    );
    let mut samples = Samples::default();
    samples.push("log, 100-byte lines, MB/s", bytes / nanoseconds * 1e3);
    pods.stop_pod(&pod).await?;
    pods.remove_pod(&pod).await?;
    fs::remove_dir_all(pods.log_directory("flood")).ok();
    Ok(samples)
}

/// A plugin directory whose programs run the real ones and note in `log` what each took.
///
/// # Errors
/// When the clock does not compile.
pub fn clocked_plugins(dir: &Path, log: &Path) -> io::Result<PathBuf> {
    let real = tools::get("cni")?.join("bin");
    let plugins = dir.join("plugins");
    fs::create_dir_all(&plugins)?;
    let clock = plugins.join("clock");
    let define = |name: &str, path: &Path| format!("-D{name}=\"{}\"", path.display());
    crisp_harness::process::run(
        Command::new("gcc")
            .args(["-O1", "-static", "-Wall", "-Werror", "-o"])
            .arg(&clock)
            .arg(define("REAL", &real))
            .arg(define("LOG", log))
            .arg(tools::top().join("tests/harness/programs/cni-clock.c")),
    )?;
    for plugin in fs::read_dir(&real)? {
        let name = plugin?.file_name();
        // host-local is run by bridge, within bridge's own time.
        if name == "host-local" {
            std::os::unix::fs::symlink(real.join(&name), plugins.join(&name))?;
        } else {
            fs::hard_link(&clock, plugins.join(&name))?;
        }
    }
    Ok(plugins)
}

/// What the plugins took, per pod: the lines of ADD are summed up pod by pod, so are those of DEL.
///
/// # Errors
/// When the log is no log of the clock.
pub fn plugin_times(log: &Path) -> io::Result<Samples> {
    let mut by_pod: BTreeMap<(String, String), f64> = BTreeMap::new();
    for line in fs::read_to_string(log).unwrap_or_default().lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [command, container, nanoseconds] = words.as_slice() else {
            return Err(io::Error::other(format!(
                "{}: no line of the clock: {line}",
                log.display()
            )));
        };
        let took: f64 = nanoseconds.parse().map_err(io::Error::other)?;
        *by_pod
            .entry(((*command).to_owned(), (*container).to_owned()))
            .or_default() += took / 1e6;
    }
    let mut samples = Samples::default();
    for ((command, _), took) in by_pod {
        match command.as_str() {
            "ADD" => samples.push("  of it CNI ADD", took),
            "DEL" => samples.push("  of it CNI DEL", took),
            _ => {}
        }
    }
    Ok(samples)
}
