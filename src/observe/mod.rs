//! Explaining itself: log lines, and how long each step took.
//!
//! A step of an operation is a span with the step's name (`sandbox.network`); the names are those of
//! ARCHITECTURE.md. [`start`] installs two layers: one prints, from the configured level on; one
//! times steps at any level, so that the timings are there when somebody asks for them later.

pub mod notify;
pub mod steps;

use std::io::IsTerminal;

use tracing_subscriber::{
    Layer, Registry,
    filter::{LevelFilter, Targets},
    fmt,
    layer::SubscriberExt,
};

use crate::config::{LogFormat, LogLevel};

/// A log was installed before.
#[derive(Debug, thiserror::Error)]
#[error("logging is already set up in this process")]
pub struct AlreadyStarted(#[source] tracing::subscriber::SetGlobalDefaultError);

/// Installs logging on standard error and the timing of steps, once per process.
///
/// # Errors
/// It was installed already.
pub fn start(level: LogLevel, format: LogFormat) -> Result<(), AlreadyStarted> {
    let subscriber = Registry::default()
        .with(printer(level, format))
        .with(steps::layer());
    tracing::subscriber::set_global_default(subscriber).map_err(AlreadyStarted)
}

fn printer(level: LogLevel, format: LogFormat) -> Box<dyn Layer<Registry> + Send + Sync> {
    let lines = fmt::layer().with_writer(std::io::stderr).with_target(true);
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match format {
        LogFormat::Text => Box::new(lines.with_ansi(std::io::stderr().is_terminal())),
        LogFormat::Json => Box::new(lines.json().flatten_event(true)),
    };
    Box::new(lines.with_filter(targets(level)))
}

/// Our own messages from `level` on. Those of libraries are one step less welcome: their debug lines
/// are about themselves.
fn targets(level: LogLevel) -> Targets {
    let (ours, theirs) = match level {
        LogLevel::Error => (LevelFilter::ERROR, LevelFilter::ERROR),
        LogLevel::Warn => (LevelFilter::WARN, LevelFilter::ERROR),
        LogLevel::Info => (LevelFilter::INFO, LevelFilter::WARN),
        LogLevel::Debug => (LevelFilter::DEBUG, LevelFilter::INFO),
        LogLevel::Trace => (LevelFilter::TRACE, LevelFilter::DEBUG),
    };
    // A target matches by its beginning: "crisp" is crisp_oci and crisp_sys as well.
    Targets::new()
        .with_default(theirs)
        .with_target("crisp", ours)
        .with_target("conmon_rs", ours)
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn libraries_are_one_step_quieter_than_we_are() {
        let info = targets(LogLevel::Info);
        assert!(info.would_enable("crisp::sandbox::run", &Level::INFO));
        assert!(info.would_enable("crisp_oci::apply", &Level::INFO));
        assert!(!info.would_enable("crisp::sandbox::run", &Level::DEBUG));
        assert!(!info.would_enable("h2::proto", &Level::INFO));
        assert!(info.would_enable("h2::proto", &Level::WARN));
        assert!(targets(LogLevel::Trace).would_enable("crisp::store", &Level::TRACE));
        assert!(!targets(LogLevel::Error).would_enable("crisp::store", &Level::WARN));
    }
}
