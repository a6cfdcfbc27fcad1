//! Configuration: what the operator wrote (files, environment, flags) to validated, typed values.
//!
//! Later layers win, key by key: embedded defaults, `/etc/crisp/crisp.toml` (or `--config FILE`),
//! `/etc/crisp/conf.d/*.toml` in the order of their names, `CRISP_...` variables, flags. All keys,
//! their kinds and what they accept stand in one table (`keys`); files, variables and flags are read
//! through it, so a key that one of them knows all of them know. Nothing outside this module reads
//! settings from files or the environment.
//!
//! Unknown keys are refused like bad values: a typing error that is ignored is found in an incident.
//! Every problem is reported at once, each with its place and with what would be right.

mod args;
mod error;
mod keys;
mod layer;
mod load;
pub mod lock;
mod stream;
mod value;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, time::Duration};

pub use self::args::CliArgs;
pub use self::error::{ConfigError, Origin, Problem};
pub use self::load::{DEFAULT_FILE, DROP_IN_DIR, check, load, load_from};

/// The documented default file, as `crisp config default` prints it. Loading it changes nothing.
pub const DEFAULT_TEXT: &str = include_str!("../../config/crisp.toml");

/// All settings of the daemon, validated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// What must survive a reboot: images, layers, containers' writable layers, the store.
    pub root: PathBuf,
    /// What need not: sockets, bundles, generated files.
    pub state: PathBuf,
    /// Path of the CRI socket.
    pub listen: PathBuf,
    /// Least severe messages that are logged.
    pub log_level: LogLevel,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Pod network.
    pub network: NetworkConfig,
    /// Images.
    pub image: ImageConfig,
    /// Streaming server.
    pub stream: StreamConfig,
    /// OCI runtimes.
    pub runtime: RuntimeConfig,
}

/// Severity of log messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// What needs an operator.
    Error,
    /// What might.
    Warn,
    /// What happened, a line or two per request that changes something.
    Info,
    /// Every step.
    Debug,
    /// Everything.
    Trace,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people, with colours on a terminal.
    Text,
    /// One JSON object per line.
    Json,
}

/// Pod network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// Directory of CNI configuration lists.
    pub conf_dir: PathBuf,
    /// Directories searched for CNI plugins, in order.
    pub plugin_dirs: Vec<PathBuf>,
    /// When the daemon does a plugin's work itself.
    pub native: NativeNetwork,
    /// Serve an embedded bridge network where there is no CNI configuration.
    pub default_bridge: bool,
}

/// When the daemon does the work of a CNI plugin itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NativeNetwork {
    /// Plugins are always executed.
    Never,
    /// Where the plugin binary is missing.
    Auto,
    /// For every plugin the daemon knows.
    Prefer,
}

/// Images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageConfig {
    /// Directory with a `hosts.toml` per registry.
    pub hosts_dir: PathBuf,
}

/// The server for exec, attach and port-forward streams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamConfig {
    /// Address it listens on.
    pub address: IpAddr,
    /// Port it listens on; 0 takes a free one.
    pub port: u16,
    /// Certificates, if it speaks TLS.
    pub tls: Option<StreamTls>,
    /// Whether a command ends when its client goes.
    pub kill_on_disconnect: bool,
    /// How long nothing may come or go.
    pub idle_timeout: Duration,
    /// How long a client may take to open its streams.
    pub creation_timeout: Duration,
}

/// Certificates of the streaming server: PEM files, read again when they change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamTls {
    /// Its certificate, with the chain.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Those who sign clients: without a certificate of theirs no client is served.
    pub client_ca: Option<PathBuf>,
}

/// OCI runtimes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeConfig {
    /// Name of the handler for pods that ask for none. Always a key of `handlers`.
    pub default: String,
    /// Handlers by the name that a RuntimeClass uses.
    pub handlers: BTreeMap<String, HandlerConfig>,
    /// Make missing host paths of mounts, as directories, instead of refusing them.
    pub create_mount_sources: bool,
    /// Directories of CDI specs; a later one overrides an earlier one.
    pub cdi_dirs: Vec<PathBuf>,
    /// File with the classes of block I/O; it need not exist.
    pub blockio_config: PathBuf,
}

/// What a handler is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HandlerConfig {
    /// The OCI runtime that is part of crisp.
    Builtin,
    /// Another OCI runtime's binary.
    Oci {
        /// Its absolute path.
        path: PathBuf,
    },
}

impl LogLevel {
    /// The word used in configuration and logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root: "/var/lib/crisp".into(),
            state: "/run/crisp".into(),
            listen: "/run/crisp/crisp.sock".into(),
            log_level: LogLevel::Info,
            log_format: LogFormat::Text,
            network: NetworkConfig {
                conf_dir: "/etc/cni/net.d".into(),
                plugin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
                native: NativeNetwork::Never,
                default_bridge: false,
            },
            image: ImageConfig {
                hosts_dir: "/etc/crisp/certs.d".into(),
            },
            stream: StreamConfig {
                address: IpAddr::from([127, 0, 0, 1]),
                port: 0,
                tls: None,
                kill_on_disconnect: false,
                idle_timeout: Duration::from_secs(4 * 3600),
                creation_timeout: Duration::from_secs(30),
            },
            runtime: RuntimeConfig {
                default: "crisp".to_owned(),
                handlers: BTreeMap::from([("crisp".to_owned(), HandlerConfig::Builtin)]),
                create_mount_sources: false,
                cdi_dirs: vec!["/etc/cdi".into(), "/var/run/cdi".into()],
                blockio_config: "/etc/crisp/blockio.yaml".into(),
            },
        }
    }
}
