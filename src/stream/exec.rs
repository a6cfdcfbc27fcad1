//! A command in a container, connected to a client.
//!
//! It ends with its process: what that printed is sent, then its code. A client's end of input closes
//! the process' input and nothing else. A client that goes hangs up: pipes and terminal are closed,
//! and the process goes on if it does without them, unless the configuration says otherwise.

use std::{convert::Infallible, io, sync::Arc};

use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};
use tracing::Instrument;

use super::{
    Terms,
    grant::StdioSpec,
    handshake::Agreed,
    mux::{Lost, STALL_LIMIT, Streams, Writer},
    pipes::{Descriptor, Drained, PIPE_GRACE, TERMINAL_GRACE, drain, feed},
    remotecommand::{Client, Outcome, Sizes},
};
use crate::{
    container::exec::ExecSpec,
    error::Chain,
    id::ContainerId,
    monitor::{ExecIo, ExecProcess, ExecSession, ExecStreams, leave_open},
    node::Node,
};

/// What is to be run for a client.
pub struct Command {
    /// In which container.
    pub container: ContainerId,
    /// The command line.
    pub command: Vec<String>,
    /// Its streams.
    pub stdio: StdioSpec,
}

/// Runs a command for a client, from its streams to its exit code.
pub async fn serve(
    node: &Arc<Node>,
    terms: Terms,
    mut streams: Streams,
    command: Command,
    agreed: &Agreed,
) {
    let stdio = command.stdio;
    let (resizes, report) = (agreed.resizes, agreed.report);
    let limit = terms.creation_timeout;
    let client = Client::collect(&mut streams, stdio, resizes, report, limit).await;
    let mut client = match client {
        Ok(client) => client,
        Err(error) => return tracing::debug!(%error, "exec did not begin"),
    };
    let outcome = match begin(node, command, terms.kill_on_disconnect).await {
        Ok(running) => until_end(running, stdio, &mut client, &streams).await,
        Err(why) => Outcome::Failed(why),
    };
    tracing::debug!(?outcome, "exec ended");
    client.tell(&outcome).await.ok();
    streams.close().await;
}

/// A command that runs, for a client that may leave.
struct Running {
    streams: ExecStreams,
    process: Unwanted,
}

/// Starts the command beside the client: if that goes meanwhile, somebody has to know what was made.
async fn begin(node: &Arc<Node>, command: Command, kill: bool) -> Result<Running, String> {
    let (tell, told) = oneshot::channel();
    let node = Arc::clone(node);
    let starting = async move {
        let started = start(&node, command).await.map(|session| {
            let (streams, process) = session.split();
            let process = Some(process);
            let process = Unwanted { process, kill };
            Running { streams, process }
        });
        // Nobody there: dropped here, with what that means for the process.
        tell.send(started).ok();
    };
    tokio::spawn(starting.in_current_span());
    told.await
        .unwrap_or_else(|_| Err("the daemon is ending".to_owned()))
}

/// The container is looked up again: since the answer with the address, time has passed.
async fn start(node: &Arc<Node>, command: Command) -> Result<ExecSession, String> {
    let container = node.containers.find(command.container.as_str());
    let container = container.map_err(|error| Chain(&error).to_string())?;
    let io = if command.stdio.tty {
        ExecIo::Terminal
    } else {
        ExecIo::Pipes {
            stdin: command.stdio.stdin,
            stdout: command.stdio.stdout,
            stderr: command.stdio.stderr,
        }
    };
    let spec = ExecSpec {
        command: command.command,
        io,
    };
    let session = container.exec_session(node, spec).await;
    session.map_err(|error| Chain(&error).to_string())
}

async fn until_end(
    running: Running,
    stdio: StdioSpec,
    client: &mut Client,
    connection: &Streams,
) -> Outcome {
    let Running {
        streams,
        mut process,
    } = running;
    let mut ends = match Ends::new(streams) {
        Ok(ends) => ends,
        Err(error) => return Outcome::Failed(error.to_string()),
    };
    let (tell, ended) = watch::channel(None);
    let life = async {
        let exit = process.ended().await;
        tell.send_replace(Some(Instant::now()));
        exit
    };
    let terminal = ends.terminal.clone();
    let input = input(&mut client.stdin, ends.input(stdio));
    let sizes = resize(&mut client.sizes, terminal);
    let writers = [client.stdout.as_ref(), client.stderr.as_ref()];
    let output = output(ends.outputs, writers, ended.clone());
    let exit = tokio::select! {
        (exit, _) = futures_util::future::join(life, output) => exit,
        never = input => match never {},
        never = sizes => match never {},
        () = stalled(connection, ended) => None,
    };
    match exit {
        Some(code) => Outcome::Exited(code),
        None => Outcome::Failed("the container ended".to_owned()),
    }
}

/// Ends when the process is over and the client takes nothing of what is left.
async fn stalled(connection: &Streams, mut ended: watch::Receiver<Option<Instant>>) {
    ended.wait_for(Option::is_some).await.ok();
    loop {
        let before = connection.progress();
        tokio::time::sleep(STALL_LIMIT).await;
        if connection.progress() == before {
            return;
        }
    }
}

/// A process that its client may leave.
struct Unwanted {
    process: Option<ExecProcess>,
    kill: bool,
}

impl Unwanted {
    /// Its code; none when the container, and its monitor, ended before.
    async fn ended(&mut self) -> Option<i32> {
        let exit = match &mut self.process {
            Some(process) => process.ended().await.ok(),
            None => None,
        };
        self.process = None;
        exit.map(|exit| exit.code)
    }
}

impl Drop for Unwanted {
    fn drop(&mut self) {
        if let Some(process) = self.process.take().filter(|_| self.kill) {
            tokio::spawn(process.hang_up());
        }
    }
}

/// Our ends of a process' streams, watched.
struct Ends {
    stdin: Option<Descriptor>,
    terminal: Option<Arc<Descriptor>>,
    outputs: Outputs,
}

enum Outputs {
    Terminal(Arc<Descriptor>),
    Pipes([Option<Descriptor>; 2]),
}

/// Where a client's input goes.
enum Input {
    Pipe(Descriptor),
    Terminal(Arc<Descriptor>),
}

impl Ends {
    fn new(streams: ExecStreams) -> io::Result<Self> {
        let watch = |end: Option<_>| end.map(Descriptor::new).transpose();
        let terminal = watch(streams.terminal)?.map(Arc::new);
        let outputs = match &terminal {
            Some(terminal) => Outputs::Terminal(Arc::clone(terminal)),
            None => Outputs::Pipes([watch(streams.stdout)?, watch(streams.stderr)?]),
        };
        Ok(Self {
            stdin: watch(streams.stdin)?,
            terminal,
            outputs,
        })
    }

    fn input(&mut self, stdio: StdioSpec) -> Option<Input> {
        match (&self.terminal, self.stdin.take()) {
            (Some(terminal), _) if stdio.stdin => Some(Input::Terminal(Arc::clone(terminal))),
            (_, pipe) => pipe.map(Input::Pipe),
        }
    }
}

/// Gives the process its input. Nothing that happens to it ends the session.
async fn input(from: &mut Option<super::mux::Reader>, to: Option<Input>) -> Infallible {
    if let (Some(reader), Some(to)) = (from.as_mut(), to) {
        match to {
            Input::Pipe(pipe) => {
                feed(reader, &pipe).await;
            }
            // A terminal has no end of input of its own.
            Input::Terminal(terminal) => {
                feed(reader, &terminal).await;
            }
        }
    }
    // Dropping the reader: what still comes is of no use.
    *from = None;
    std::future::pending().await
}

async fn resize(sizes: &mut Option<Sizes>, terminal: Option<Arc<Descriptor>>) -> Infallible {
    if let (Some(sizes), Some(terminal)) = (sizes, terminal) {
        loop {
            let (width, height) = sizes.next().await;
            if let Err(error) = terminal.resize(width, height) {
                tracing::debug!(%error, "terminal cannot be resized");
            }
        }
    }
    std::future::pending().await
}

/// Sends the client what the process prints, each stream to its end.
async fn output(
    from: Outputs,
    to: [Option<&Writer>; 2],
    ended: watch::Receiver<Option<Instant>>,
) -> Result<(), Lost> {
    match from {
        Outputs::Terminal(terminal) => {
            drain(&terminal, to[0], TERMINAL_GRACE, ended).await?;
            finish(to[0]).await
        }
        Outputs::Pipes([stdout, stderr]) => {
            let both = futures_util::future::join(
                pipe(stdout, to[0], ended.clone()),
                pipe(stderr, to[1], ended),
            );
            let (stdout, stderr) = both.await;
            stdout.and(stderr)
        }
    }
}

async fn pipe(
    from: Option<Descriptor>,
    to: Option<&Writer>,
    ended: watch::Receiver<Option<Instant>>,
) -> Result<(), Lost> {
    let Some(from) = from else {
        return Ok(());
    };
    if drain(&from, to, PIPE_GRACE, ended).await? == Drained::LeftOpen {
        leave_open(from.into_inner());
    }
    finish(to).await
}

async fn finish(writer: Option<&Writer>) -> Result<(), Lost> {
    match writer {
        Some(writer) => writer.finish().await,
        None => Ok(()),
    }
}
