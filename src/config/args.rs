//! The flags of `crisp serve`: the same keys as in a file.

use std::path::PathBuf;

/// Flags that override files and environment. Each is checked like a value of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
pub struct CliArgs {
    /// Read this file instead of /etc/crisp/crisp.toml and /etc/crisp/conf.d
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Directory of what must survive a reboot: images, layers, records
    #[arg(long, value_name = "DIR")]
    pub root: Option<String>,
    /// Directory of what need not: sockets, bundles
    #[arg(long, value_name = "DIR")]
    pub state: Option<String>,
    /// Socket to serve the CRI on
    #[arg(long, value_name = "unix://PATH")]
    pub listen: Option<String>,
    /// Least severe messages to log: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// How log lines look: text or json
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// Directory of CNI configuration lists
    #[arg(long, value_name = "DIR")]
    pub network_conf_dir: Option<String>,
    /// Directories of CNI plugins
    #[arg(long, value_name = "DIR[:DIR]")]
    pub network_plugin_dirs: Option<String>,
    /// When to do the work of CNI plugins natively: never
    #[arg(long, value_name = "WHEN")]
    pub network_native: Option<String>,
    /// Serve an embedded bridge network where there is no CNI configuration: false
    #[arg(long, value_name = "BOOL")]
    pub network_default_bridge: Option<String>,
    /// Directory with a hosts.toml per registry
    #[arg(long, value_name = "DIR")]
    pub image_hosts_dir: Option<String>,
    /// Address of the streaming server
    #[arg(long, value_name = "IP")]
    pub stream_address: Option<String>,
    /// Port of the streaming server, 0 for a free one
    #[arg(long, value_name = "PORT")]
    pub stream_port: Option<String>,
    /// Certificate of the streaming server, PEM; empty: it speaks no TLS
    #[arg(long, value_name = "FILE")]
    pub stream_tls_cert: Option<String>,
    /// Key of the streaming server's certificate, PEM
    #[arg(long, value_name = "FILE")]
    pub stream_tls_key: Option<String>,
    /// Who signs the clients of the streaming server, PEM; empty: clients need no certificate
    #[arg(long, value_name = "FILE")]
    pub stream_tls_client_ca: Option<String>,
    /// End a streamed command when its client goes
    #[arg(long, value_name = "BOOL")]
    pub stream_kill_on_disconnect: Option<String>,
    /// How long nothing may come or go on a stream connection
    #[arg(long, value_name = "TIME")]
    pub stream_idle_timeout: Option<String>,
    /// How long a client may take to open its streams
    #[arg(long, value_name = "TIME")]
    pub stream_creation_timeout: Option<String>,
    /// Handler for pods that ask for none
    #[arg(long, value_name = "NAME")]
    pub runtime_default: Option<String>,
    /// Make missing host paths of mounts instead of refusing them: true or false
    #[arg(long, value_name = "BOOL")]
    pub runtime_create_mount_sources: Option<String>,
    /// Directories of CDI specs
    #[arg(long, value_name = "DIR[:DIR]")]
    pub runtime_cdi_dirs: Option<String>,
    /// File with classes of block I/O
    #[arg(long, value_name = "FILE")]
    pub runtime_blockio_config: Option<String>,
}

impl CliArgs {
    /// Every flag that is a key, by the key's name.
    pub(super) fn flags(&self) -> [(&'static str, Option<&str>); 22] {
        [
            ("root", self.root.as_deref()),
            ("state", self.state.as_deref()),
            ("listen", self.listen.as_deref()),
            ("log_level", self.log_level.as_deref()),
            ("log_format", self.log_format.as_deref()),
            ("network.conf_dir", self.network_conf_dir.as_deref()),
            ("network.plugin_dirs", self.network_plugin_dirs.as_deref()),
            ("network.native", self.network_native.as_deref()),
            (
                "network.default_bridge",
                self.network_default_bridge.as_deref(),
            ),
            ("image.hosts_dir", self.image_hosts_dir.as_deref()),
            ("stream.address", self.stream_address.as_deref()),
            ("stream.port", self.stream_port.as_deref()),
            ("stream.tls_cert", self.stream_tls_cert.as_deref()),
            ("stream.tls_key", self.stream_tls_key.as_deref()),
            ("stream.tls_client_ca", self.stream_tls_client_ca.as_deref()),
            (
                "stream.kill_on_disconnect",
                self.stream_kill_on_disconnect.as_deref(),
            ),
            ("stream.idle_timeout", self.stream_idle_timeout.as_deref()),
            (
                "stream.creation_timeout",
                self.stream_creation_timeout.as_deref(),
            ),
            ("runtime.default", self.runtime_default.as_deref()),
            (
                "runtime.create_mount_sources",
                self.runtime_create_mount_sources.as_deref(),
            ),
            ("runtime.cdi_dirs", self.runtime_cdi_dirs.as_deref()),
            (
                "runtime.blockio_config",
                self.runtime_blockio_config.as_deref(),
            ),
        ]
    }
}
