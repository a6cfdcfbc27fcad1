//! The `crisp` binary: arguments to configuration to daemon to exit code.
#![forbid(unsafe_code)]

use clap::Parser;

fn main() -> std::process::ExitCode {
    crisp::cli::run(crisp::cli::Cli::parse())
}
