//! What the scripts under `tests/` start: the critest ring, a daemon to play with, the images.
#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command line tool"
)]

use std::{
    io,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crisp_harness::{
    critest::{self, Options},
    daemon::{Daemon, Kind},
    registry::Registry,
    suite, tools,
};

const USAGE: &str = "usage: crisp-ring critest [--runtime crisp|containerd+runc|containerd+crun] [--endpoint unix://PATH]
           [--focus REGEX] [--parallel N] [--seed N] [--skip-list FILE] [-- FLAG...]
       crisp-ring serve [--runtime NAME]     a daemon with the suite's images until stdin ends
       crisp-ring images DIR                 the suite's images as a registry's storage";

struct Arguments {
    kind: Kind,
    endpoint: Option<String>,
    focus: Option<String>,
    parallel: usize,
    seed: u64,
    skip_list: PathBuf,
    more: Vec<String>,
    words: Vec<String>,
}

fn arguments() -> Result<Arguments, String> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(1, |time| time.as_secs());
    let mut all = Arguments {
        kind: Kind::Crisp,
        endpoint: None,
        focus: None,
        parallel: 1,
        seed: now % 100_000,
        skip_list: tools::top().join("tests/critest/skip.txt"),
        more: Vec::new(),
        words: Vec::new(),
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} wants a value"));
        match word.as_str() {
            "--runtime" => {
                let name = value()?;
                all.kind = Kind::parse(&name).ok_or_else(|| format!("unknown runtime {name}"))?;
            }
            "--endpoint" => all.endpoint = Some(value()?),
            "--focus" => all.focus = Some(value()?),
            "--parallel" => {
                all.parallel = value()?
                    .parse()
                    .map_err(|_| "--parallel wants a number".to_owned())?
            }
            "--seed" => {
                all.seed = value()?
                    .parse()
                    .map_err(|_| "--seed wants a number".to_owned())?
            }
            "--skip-list" => all.skip_list = value()?.into(),
            "--" => all.more = words.by_ref().collect(),
            other if other.starts_with('-') => return Err(format!("unknown option {other}")),
            _ => all.words.push(word),
        }
    }
    Ok(all)
}

#[tokio::main]
async fn main() -> ExitCode {
    let all = match arguments() {
        Ok(all) => all,
        Err(error) => {
            eprintln!("error: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let words: Vec<&str> = all.words.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["critest"] => ring(&all).await,
        ["serve"] => serve(&all).await.map(|()| true),
        ["images", dir] => images(dir.as_ref()).map(|()| true),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn images(storage: &std::path::Path) -> io::Result<()> {
    for (reference, digest) in suite::prepare(storage)? {
        println!("{digest} {reference}");
    }
    Ok(())
}

/// A registry and a daemon over it.
async fn start(kind: Kind) -> io::Result<(Registry, Daemon)> {
    let registry = suite::registry()?;
    let mut daemon = Daemon::new(kind, &registry.url(), None)?;
    daemon.start().await?;
    Ok((registry, daemon))
}

async fn serve(all: &Arguments) -> io::Result<()> {
    let (_registry, daemon) = start(all.kind).await?;
    println!("{}", daemon.endpoint());
    tokio::task::spawn_blocking(|| io::copy(&mut io::stdin(), &mut io::sink()))
        .await
        .map_err(io::Error::other)??;
    Ok(())
}

async fn ring(all: &Arguments) -> io::Result<bool> {
    let list = critest::skip_list(&all.skip_list)?;
    let running = if all.endpoint.is_none() {
        Some(start(all.kind).await?)
    } else {
        None
    };
    let endpoint = match (&all.endpoint, &running) {
        (Some(endpoint), _) => endpoint.clone(),
        (None, Some((_, daemon))) => daemon.endpoint(),
        (None, None) => return Err(io::Error::other("no endpoint")),
    };
    let out = tools::top().join("target/critest").join(all.kind.name());
    let options = Options {
        endpoint,
        focus: all.focus.clone(),
        parallel: all.parallel,
        seed: all.seed,
        more: all.more.clone(),
        out: out.clone(),
    };
    println!(
        "critest: {} at {} with seed {}",
        all.kind.name(),
        options.endpoint,
        all.seed
    );
    let (specs, wall) = critest::run(&options)?;
    if let Some((_, mut daemon)) = running {
        std::fs::copy(daemon.log(), out.join("daemon.log"))?;
        let _ended = daemon.stop(Duration::from_secs(10))?;
    }
    let verdict = critest::judge(&specs, &list, all.focus.is_none());
    for failure in &verdict.failed {
        println!("FAILED {failure}");
    }
    println!(
        "{} specs ran, {:.1} s wall, seed {}, reports in {}",
        verdict.ran,
        wall.as_secs_f64(),
        all.seed,
        out.display()
    );
    println!(
        "{} passed, {} failed, {} skipped",
        verdict.passed,
        verdict.failed.len(),
        verdict.skipped
    );
    Ok(verdict.failed.is_empty())
}
