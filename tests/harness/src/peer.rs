//! The client-go peer (`tests/peer/client`): what kubectl and an API server do to a streaming server.

use std::{
    io::{self, BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use serde::Deserialize;

use crate::{process::run, tools};

/// How the peer speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// SPDY/3.1.
    Spdy,
    /// v5.channel.k8s.io, or SPDY in a tunnel for ports.
    WebSocket,
}

impl Transport {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Spdy, Self::WebSocket];

    /// As the peer names it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Spdy => "spdy",
            Self::WebSocket => "websocket",
        }
    }
}

/// What came of one stream or connection.
#[derive(Debug, Clone, Deserialize)]
pub struct Outcome {
    /// Bytes sent.
    pub sent: u64,
    /// SHA-256 of them.
    pub sent_sha256: String,
    /// Bytes of stdout, or from the port.
    pub stdout: u64,
    /// SHA-256 of them.
    pub stdout_sha256: String,
    /// Their first 4 KiB.
    pub stdout_text: String,
    /// The first 4 KiB of stderr; of the forwarder's complaints for a port.
    pub stderr_text: String,
    /// The exit code.
    pub exit: i32,
    /// What else went wrong; empty if nothing.
    pub error: String,
    /// How long it took, in milliseconds.
    pub ms: u64,
}

/// The built program.
#[derive(Debug, Clone)]
pub struct Peer {
    program: PathBuf,
}

impl Peer {
    /// Builds or finds it.
    ///
    /// # Errors
    /// When it cannot be built.
    pub fn new() -> io::Result<Self> {
        let program = tools::program("peer", "peer")?;
        Ok(Self { program })
    }

    fn command(
        &self,
        verb: &str,
        transport: Transport,
        flags: &[&str],
        urls: &[String],
    ) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg(verb)
            .args(["-transport", transport.name()])
            .args(flags)
            .args(urls);
        command
    }

    /// Runs execs or attaches, all at once; what came of each.
    ///
    /// # Errors
    /// When it fails as a whole; what fails in one stream is in its outcome.
    pub fn stream(
        &self,
        transport: Transport,
        flags: &[&str],
        urls: &[String],
    ) -> io::Result<Vec<Outcome>> {
        outcomes(&run(&mut self.command("stream", transport, flags, urls))?)
    }

    /// Starts execs or attaches and waits until each has had output.
    ///
    /// # Errors
    /// When it ends before that.
    ///
    /// # Panics
    /// Never: its stdout is piped.
    pub fn hold(&self, transport: Transport, flags: &[&str], urls: &[String]) -> io::Result<Held> {
        let mut command = self.command("stream", transport, flags, &[]);
        let mut child = command
            .arg("-announce")
            .args(urls)
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.take().expect("its stdout is piped"));
        output.read_line(&mut line)?;
        let held = Held { child };
        if line.trim() != "running" {
            return Err(io::Error::other(format!("the peer ended: {line}")));
        }
        Ok(held)
    }

    /// Sends bytes through a forwarded port and back.
    ///
    /// # Errors
    /// When no connection comes about.
    pub fn forward(
        &self,
        transport: Transport,
        flags: &[&str],
        url: &str,
    ) -> io::Result<Vec<Outcome>> {
        outcomes(&run(&mut self.command(
            "forward",
            transport,
            flags,
            &[url.to_owned()],
        ))?)
    }

    /// What a URL answers with 200, whatever its certificate.
    ///
    /// # Errors
    /// When it answers something else.
    pub fn fetch(&self, method: &str, url: &str) -> io::Result<String> {
        run(Command::new(&self.program).args(["fetch", "-method", method, url]))
    }
}

fn outcomes(text: &str) -> io::Result<Vec<Outcome>> {
    text.lines()
        .map(|line| serde_json::from_str(line).map_err(io::Error::from))
        .collect()
}

/// Streams that go on. Dropping it ends the peer as abruptly as a power cut would: no stream is
/// closed first.
#[derive(Debug)]
pub struct Held {
    child: Child,
}

impl Drop for Held {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}
