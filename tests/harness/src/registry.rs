//! Debian's docker-registry on a free loopback port, serving a storage directory.

use std::{
    fs, io,
    net::{TcpListener, TcpStream},
    path::Path,
    process::Command,
    time::Duration,
};

use crate::{
    process::{Process, until},
    site::Site,
    tools,
};

/// A running registry; ends when dropped.
#[derive(Debug)]
pub struct Registry {
    process: Process,
    port: u16,
    // Last: its files go after the process.
    _site: Site,
}

impl Registry {
    /// Starts one over `storage`.
    ///
    /// # Errors
    /// When it does not answer within ten seconds.
    pub fn start(storage: &Path) -> io::Result<Self> {
        let program = tools::program("registry", "docker-registry")?;
        let site = Site::new()?;
        let dir = site.dir();
        let mut last = io::Error::other("the registry was not started");
        // The port is free when asked and may be taken a moment later: then another one.
        for _ in 0..5 {
            let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
            let config = dir.join("registry.yml");
            let text = format!(
                "version: 0.1\nlog:\n  level: warn\nstorage:\n  filesystem:\n    rootdirectory: {}\n\
                 http:\n  addr: 127.0.0.1:{port}\n",
                storage.display()
            );
            fs::write(&config, text)?;
            let mut process = Process::start(
                Command::new(&program).arg("serve").arg(&config),
                &dir.join("registry.log"),
            )?;
            let mut ended = false;
            let answered = until(Duration::from_secs(10), || {
                ended = process.exited().is_ok_and(|status| status.is_some());
                ended || TcpStream::connect(("127.0.0.1", port)).is_ok()
            });
            if answered && !ended {
                return Ok(Self {
                    process,
                    port,
                    _site: site,
                });
            }
            last = io::Error::other(format!(
                "docker-registry did not answer:\n{}",
                process.log_tail()
            ));
        }
        Err(last)
    }

    /// Its process, for tests that stall or kill it.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Its address as `hosts.toml` names it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Its address as an image reference names it.
    #[must_use]
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}
