//! The streams of a container's first process, connected to a client.
//!
//! What is printed from now on is sent, until the container ends or the client leaves. The end of the
//! client's input closes the container's only if that was made for one client and is no terminal;
//! otherwise it means that the client leaves.

use std::{convert::Infallible, sync::Arc, time::Duration};

use tokio::{sync::watch, time::Instant};

use super::{
    Terms,
    grant::StdioSpec,
    handshake::Agreed,
    mux::{Lost, Reader, Streams, Writer},
    pipes::{Descriptor, Fed, PIPE_GRACE, drain, feed},
    remotecommand::{Client, Outcome, Sizes},
};
use crate::{
    container::{
        Container,
        attach::{AttachSession, AttachSpec},
        state::State,
    },
    error::Chain,
    id::ContainerId,
    node::Node,
};

/// How long after the end of the output the end of the container may be unknown.
const EXIT_LIMIT: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(20);

/// Serves a client until the container ends or the client leaves.
pub async fn serve(
    node: &Arc<Node>,
    terms: Terms,
    mut streams: Streams,
    (container, stdio): (ContainerId, StdioSpec),
    agreed: &Agreed,
) {
    let (resizes, report) = (agreed.resizes, agreed.report);
    let limit = terms.creation_timeout;
    let client = Client::collect(&mut streams, stdio, resizes, report, limit).await;
    let mut client = match client {
        Ok(client) => client,
        Err(error) => return tracing::debug!(%error, "attach did not begin"),
    };
    let outcome = match node.containers.find(container.as_str()) {
        Ok(container) => attach(&container, stdio, &mut client).await,
        Err(error) => Outcome::Failed(Chain(&error).to_string()),
    };
    tracing::debug!(?outcome, "attach ended");
    client.tell(&outcome).await.ok();
    streams.close().await;
}

async fn attach(container: &Container, stdio: StdioSpec, client: &mut Client) -> Outcome {
    let spec = AttachSpec {
        stdin: stdio.stdin,
        // Output tells when the container ends, so somebody has to listen.
        stdout: stdio.stdout || !stdio.stderr,
        stderr: stdio.stderr,
    };
    let session = match container.attach(spec).await {
        Ok(session) => session,
        Err(error) => return Outcome::Failed(Chain(&error).to_string()),
    };
    let AttachSession {
        stdin,
        stdout,
        stderr,
    } = session;
    let watched = |end: Option<_>| end.map(Descriptor::new).transpose();
    let (Ok(stdin), Ok(stdout), Ok(stderr)) = (watched(stdin), watched(stdout), watched(stderr))
    else {
        return Outcome::Failed("the streams cannot be watched".to_owned());
    };
    // Attaching has no end of its own: output ends when there is no more.
    let (_tell, ended) = watch::channel(None);
    let output = futures_util::future::join(
        output(stdout, client.stdout.as_ref(), ended.clone()),
        output(stderr, client.stderr.as_ref(), ended),
    );
    let leaves = !container.spec.stdin_once || container.spec.tty;
    tokio::select! {
        _ = output => over(container).await,
        () = input(&mut client.stdin, stdin, leaves) => Outcome::Done,
        never = resize(&mut client.sizes, container) => match never {},
    }
}

/// The output has ended: because of the container, or because the client did not read.
async fn over(container: &Container) -> Outcome {
    let deadline = Instant::now() + EXIT_LIMIT;
    while !matches!(*container.state(), State::Exited(_)) {
        if deadline < Instant::now() {
            let why = "the container printed faster than the client read";
            return Outcome::Failed(why.to_owned());
        }
        tokio::time::sleep(LOOK).await;
    }
    Outcome::Done
}

/// Gives the container its input. Ends when that means that the client leaves.
async fn input(from: &mut Option<Reader>, to: Option<Descriptor>, leaves: bool) {
    if let (Some(reader), Some(to)) = (from.as_mut(), to) {
        let fed = feed(reader, &to).await;
        if fed == Fed::ClientDone && leaves {
            return;
        }
    }
    // Dropping the reader: what still comes is of no use.
    *from = None;
    std::future::pending().await
}

async fn resize(sizes: &mut Option<Sizes>, container: &Container) -> Infallible {
    let Some(sizes) = sizes else {
        return std::future::pending().await;
    };
    loop {
        let (width, height) = sizes.next().await;
        if let Err(error) = container.resize(width, height).await {
            tracing::debug!(error = %Chain(&error), "terminal cannot be resized");
        }
    }
}

async fn output(
    from: Option<Descriptor>,
    to: Option<&Writer>,
    ended: watch::Receiver<Option<Instant>>,
) -> Result<(), Lost> {
    if let Some(from) = from {
        drain(&from, to, PIPE_GRACE, ended).await?;
    }
    match to {
        Some(writer) => writer.finish().await,
        None => Ok(()),
    }
}
