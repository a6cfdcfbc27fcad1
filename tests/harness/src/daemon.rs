//! A runtime daemon under test: crisp, or a rival with the same images, network and requests.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use crate::{cri::Cri, process::Process, site::Site, suite, tools};

/// Which runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Ours.
    Crisp,
    /// containerd with runc, its default.
    ContainerdRunc,
    /// containerd with crun, its fastest.
    ContainerdCrun,
}

impl Kind {
    /// From its name on a command line.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Crisp, Self::ContainerdRunc, Self::ContainerdCrun]
            .into_iter()
            .find(|kind| kind.name() == name)
    }

    /// Its name on command lines and in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Crisp => "crisp",
            Self::ContainerdRunc => "containerd+runc",
            Self::ContainerdCrun => "containerd+crun",
        }
    }
}

/// A daemon with a site to itself. Dropping it ends it and removes everything of it.
#[derive(Debug)]
pub struct Daemon {
    kind: Kind,
    process: Option<Process>,
    plugins: PathBuf,
    conf_dir: PathBuf,
    hosts: PathBuf,
    /// Directory of crisp's programs.
    programs: PathBuf,
    /// Words before the command that starts it.
    wrapper: Vec<OsString>,
    /// Where it is to stop, in a build that has failpoints.
    failpoint: Option<String>,
    extra_config: String,
    stream_config: String,
    // Last: its files go after the process.
    site: Site,
}

impl Daemon {
    /// Prepares a daemon that pulls the suite's images from `registry` (`http://...`); it is not
    /// started yet. `plugins` is the directory of the CNI plugins, Debian's or built ones if none.
    ///
    /// # Errors
    /// When a tool does not come or a file cannot be written.
    pub fn new(kind: Kind, registry: &str, plugins: Option<&Path>) -> io::Result<Self> {
        let site = Site::new()?;
        let plugins = match plugins {
            Some(dir) => dir.to_owned(),
            None => tools::get("cni")?.join("bin"),
        };
        let conf_dir = site.write_cni()?;
        let hosts = suite::write_hosts(&site.dir().join("hosts"), registry)?;
        // Before any daemon of ours hands the controller down in the second version's tree, where the
        // rivals do not look for it. Once it is there the kernel refuses (EBUSY); a rival that needs
        // it says so itself.
        let _refused = mount_hugetlb();
        Ok(Self {
            kind,
            process: None,
            plugins,
            conf_dir,
            hosts,
            programs: tools::crisp_dir(),
            wrapper: Vec::new(),
            failpoint: None,
            extra_config: String::new(),
            stream_config: String::new(),
            site,
        })
    }

    /// Adds lines to crisp's configuration file (whole tables).
    pub fn configure(&mut self, lines: &str) {
        self.extra_config.push_str(lines);
    }

    /// Runs the programs of another directory from the next start on.
    pub fn use_programs(&mut self, dir: &Path) {
        self.programs = dir.to_owned();
    }

    /// Runs the plugins of another directory from the next start on.
    pub fn use_plugins(&mut self, dir: &Path) {
        self.plugins = dir.to_owned();
    }

    /// Starts it by these words from now on, with its own command line behind them.
    pub fn wrap(&mut self, words: Vec<OsString>) {
        self.wrapper = words;
    }

    /// From the next start on it stops at this place (`NAME=kill`, `NAME=hang`), or nowhere.
    pub fn stop_at(&mut self, failpoint: Option<&str>) {
        self.failpoint = failpoint.map(str::to_owned);
    }

    /// Adds lines to the table `stream` of crisp's configuration file.
    pub fn configure_stream(&mut self, lines: &str) {
        self.stream_config.push_str(lines);
    }

    /// Which runtime it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Its site.
    #[must_use]
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.site.dir().join("cri.sock")
    }

    /// Its socket as an endpoint.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// Its root directory.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.site.dir().join("root")
    }

    /// Its state directory.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.site.dir().join("state")
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.site.dir().join("daemon.log")
    }

    /// Its process id.
    ///
    /// # Panics
    /// When it is not running.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("the daemon runs").pid()
    }

    /// Starts it and waits until it serves; returns how long that took.
    ///
    /// # Errors
    /// With the end of its log, when it does not serve within 30 seconds.
    pub async fn start(&mut self) -> io::Result<Duration> {
        let began = Instant::now();
        self.spawn()?;
        let socket = self.socket();
        let served = tokio::select! {
            served = Cri::connect_until_served(&socket, Duration::from_secs(30)) => served.map(drop),
            ended = self.death() => Err(ended),
        };
        match served {
            Ok(()) => Ok(began.elapsed()),
            Err(error) => {
                let log = self
                    .process
                    .as_ref()
                    .map(Process::log_tail)
                    .unwrap_or_default();
                Err(io::Error::other(format!(
                    "{} does not serve: {error}\n{log}",
                    self.kind.name()
                )))
            }
        }
    }

    /// Starts it without waiting for anything.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&mut self) -> io::Result<()> {
        let mut command = self.command()?;
        self.process = Some(Process::start(&mut command, &self.log())?);
        Ok(())
    }

    /// Returns when it has ended by itself, with what is to be said about that.
    async fn death(&mut self) -> io::Error {
        loop {
            match self.process.as_mut().map(Process::exited) {
                Some(Ok(None)) => tokio::time::sleep(Duration::from_millis(20)).await,
                Some(Ok(Some(status))) => return io::Error::other(format!("it ended: {status}")),
                Some(Err(error)) => return error,
                None => return io::Error::other("it was not started"),
            }
        }
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// When it still runs after `limit`.
    pub fn ended(&mut self, limit: Duration) -> io::Result<()> {
        if let Some(mut process) = self.process.take()
            && let Err(error) = process.wait(limit)
        {
            self.process = Some(process);
            return Err(error);
        }
        Ok(())
    }

    /// A client.
    ///
    /// # Errors
    /// When it does not serve.
    pub async fn connect(&self) -> io::Result<Cri> {
        Cri::connect_until_served(&self.socket(), Duration::from_secs(10)).await
    }

    /// SIGTERM; how long the end took, or nothing if it had to be killed.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn stop(&mut self, grace: Duration) -> io::Result<Option<Duration>> {
        self.process
            .take()
            .map_or(Ok(None), |mut process| process.stop(grace))
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn kill(&mut self) -> io::Result<()> {
        self.process
            .take()
            .map_or(Ok(()), |mut process| process.kill())
    }

    /// A signal to it.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        self.process
            .as_ref()
            .map_or(Ok(()), |process| process.signal(signal))
    }

    /// The command line that starts it; for a second one on the same directories too.
    ///
    /// # Errors
    /// When its configuration cannot be written.
    pub fn command(&self) -> io::Result<Command> {
        match self.kind {
            Kind::Crisp => self.crisp(),
            Kind::ContainerdRunc => self.containerd("runc"),
            Kind::ContainerdCrun => self.containerd("crun"),
        }
    }

    fn crisp(&self) -> io::Result<Command> {
        let config = self.site.dir().join("crisp.toml");
        let text = format!(
            "[network]\nconf_dir = {:?}\nplugin_dirs = [{:?}]\n\n[image]\nhosts_dir = {:?}\n\n\
             [stream]\naddress = \"127.0.0.1\"\nport = 0\n{}\n\n{}",
            self.conf_dir, self.plugins, self.hosts, self.stream_config, self.extra_config
        );
        fs::write(&config, text)?;
        let program = self.programs.join("crisp");
        if !program.exists() {
            return Err(io::Error::other(format!(
                "{} is missing: run deploy/build first",
                program.display()
            )));
        }
        let mut words = self.wrapper.iter().cloned().chain([program.into()]);
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words).arg("serve");
        if let Some(failpoint) = &self.failpoint {
            command.env("CRISP_TEST_FAILPOINT", failpoint);
        }
        command
            .arg("--config")
            .arg(config)
            .arg("--root")
            .arg(self.root());
        command
            .arg("--state")
            .arg(self.state())
            .arg("--listen")
            .arg(self.endpoint());
        command.args([
            "--log-level",
            &std::env::var("CRISP_TEST_LOG_LEVEL").unwrap_or_else(|_| "info".to_owned()),
        ]);
        Ok(command)
    }

    fn containerd(&self, runtime: &str) -> io::Result<Command> {
        let bin = tools::get("containerd")?.join("bin");
        let runtime = tools::program(runtime, runtime)?;
        let config = self.site.dir().join("containerd.toml");
        fs::write(&config, self.containerd_config(&runtime))?;
        let mut path: OsString = bin.clone().into();
        if let Some(rest) = std::env::var_os("PATH") {
            path.push(":");
            path.push(rest);
        }
        let mut command = Command::new(bin.join("containerd"));
        command.arg("--config").arg(config).env("PATH", path);
        Ok(command)
    }

    /// What differs from the rival's own defaults: directories (its network namespaces too, so that
    /// they go with the site), network, images, and the one setting that a host without
    /// CAP_SYS_RESOURCE needs.
    fn containerd_config(&self, runtime: &Path) -> String {
        format!(
            "version = 3\nroot = {root:?}\nstate = {state:?}\n\n[grpc]\naddress = {socket:?}\n\n\
             [ttrpc]\naddress = {ttrpc:?}\n\n\
             [plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = {hosts:?}\n\n\
             [plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = '{pause}'\n\n\
             [plugins.'io.containerd.cri.v1.runtime']\nrestrict_oom_score_adj = true\n\
             netns_mounts_under_state_dir = true\n\n\
             [plugins.'io.containerd.cri.v1.runtime'.cni]\nbin_dirs = [{plugins:?}]\nconf_dir = {conf:?}\n\n\
             [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\nruntime_type = 'io.containerd.runc.v2'\n\n\
             [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]\nBinaryName = {runtime:?}\n\n\
             [plugins.'io.containerd.grpc.v1.cri']\nstream_server_address = '127.0.0.1'\nstream_server_port = '0'\n",
            root = self.root(),
            state = self.state(),
            socket = self.socket(),
            ttrpc = self.site.dir().join("ttrpc.sock"),
            hosts = self.hosts,
            pause = suite::PAUSE,
            plugins = self.plugins,
            conf = self.conf_dir,
        )
    }
}

/// runc and crun need the v1 hugetlb hierarchy where cgroup v1 is in use. It stays mounted: other
/// programs may have begun to use it.
fn mount_hugetlb() -> io::Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let wanted = Path::new("/sys/fs/cgroup/hugetlb");
    let v1 = mounts
        .lines()
        .any(|line| line.contains(" cgroup rw") && line.contains("memory"));
    if !v1 || mounts.contains("/sys/fs/cgroup/hugetlb ") {
        return Ok(());
    }
    fs::create_dir_all(wanted)?;
    nix::mount::mount(
        Some("cgroup"),
        wanted,
        Some("cgroup"),
        nix::mount::MsFlags::empty(),
        Some("hugetlb"),
    )?;
    Ok(())
}
