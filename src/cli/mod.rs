//! The command line: what is asked for and the exit code it ends with.

mod demo;
mod import;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};
use crisp_sys::heap::{self, Tuning};

use crate::{
    config::{self, CliArgs, ConfigError},
    daemon,
    error::Chain,
    observe,
};

/// A bad configuration or command line; nothing was started.
const BAD_CONFIG: u8 = 2;

/// A Kubernetes container runtime.
#[derive(Debug, Parser)]
#[command(name = "crisp", version, about)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the CRI
    Serve(Box<CliArgs>),
    /// Show or check the configuration
    Config(ConfigArgs),
    /// Import an OCI archive into the images of a daemon that is not running
    Import(import::ImportArgs),
    /// Run one pod on a running daemon, step by step, and tell how long each step took
    Demo(demo::DemoArgs),
    /// Show the version
    Version,
    /// Apply a layer from standard input: what the daemon executes, confined, for each layer
    #[command(hide = true)]
    ApplyLayer,
}

#[derive(Debug, Args)]
struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print the documented default configuration
    Default,
    /// Check a configuration and start nothing
    Check(Box<CliArgs>),
}

/// Does what was asked for.
#[must_use]
pub fn run(cli: Cli) -> ExitCode {
    match cli.command {
        Command::Serve(args) => serve(&args),
        Command::Config(ConfigArgs {
            command: ConfigCommand::Default,
        }) => print(config::DEFAULT_TEXT),
        Command::Config(ConfigArgs {
            command: ConfigCommand::Check(args),
        }) => match config::check(&args) {
            Ok(()) => print("the configuration is fine\n"),
            Err(error) => bad_config(&error),
        },
        Command::Import(args) => finish(import::run(args)),
        Command::Demo(args) => finish(demo::run(args)),
        Command::Version => print(concat!("crisp ", env!("CARGO_PKG_VERSION"), "\n")),
        Command::ApplyLayer => crate::snapshot::apply::child_main(),
    }
}

/// The daemon lives for months and has its peaks in the first second of a storm of pods: what is free
/// goes back. The C library's own rule would keep as much as the largest buffer that was ever freed.
const HEAP: Tuning = Tuning {
    mapped_from: 64 << 10,
    grow_by: 64 << 10,
    trim_from: 128 << 10,
    arenas: 2,
};

fn serve(args: &CliArgs) -> ExitCode {
    heap::tune(HEAP);
    let config = match config::load(args) {
        Ok(config) => config,
        Err(error) => return bad_config(&error),
    };
    if let Err(error) = observe::start(config.log_level, config.log_format) {
        return finish(Err::<(), _>(error));
    }
    let threads = std::thread::available_parallelism()
        .map_or(2, usize::from)
        .clamp(2, 8);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .thread_name("crisp")
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return finish(Err::<(), _>(error)),
    };
    let served = runtime.block_on(daemon::serve(config));
    // Blocking work that hangs (a mount, a plugin) must not keep the daemon from ending.
    runtime.shutdown_background();
    finish(served)
}

fn bad_config(error: &ConfigError) -> ExitCode {
    complain(&error.to_string());
    ExitCode::from(BAD_CONFIG)
}

fn finish<T, E: std::error::Error + 'static>(result: Result<T, E>) -> ExitCode {
    match result {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&Chain(&error).to_string());
            ExitCode::FAILURE
        }
    }
}

#[expect(
    clippy::print_stdout,
    reason = "the answer of a command goes to standard output"
)]
fn print(text: &str) -> ExitCode {
    print!("{text}");
    ExitCode::SUCCESS
}

#[expect(
    clippy::print_stderr,
    reason = "the complaint of a command goes to standard error"
)]
fn complain(text: &str) {
    eprintln!("crisp: {text}");
}

/// A `unix://` address or plain path as a path.
fn socket_path(listen: &str) -> PathBuf {
    PathBuf::from(listen.strip_prefix("unix://").unwrap_or(listen))
}
