//! Connections to ports of a pod, each a pair of a client's streams: one for data, one for the reason
//! why there are none.
//!
//! Each direction ends by itself. The error stream is written to only when a port cannot be connected
//! to: for any byte there, clients end all their connections.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, tcp},
    task::JoinSet,
    time::Instant,
};

use super::{
    Terms,
    mux::{CHUNK, Incoming, Lost, Opened, Reader, Streams, Writer},
    spdy::codec::ResetReason,
};
use crate::{error::Chain, id::SandboxId, network::dial::dial, node::Node};

/// How long one direction may be silent after the other has ended.
const HALF_OPEN_LIMIT: Duration = Duration::from_secs(300);
/// How often half a pair is looked at.
const TICK: Duration = Duration::from_secs(1);

/// Half a pair that waits for the other half.
struct Half {
    opened: Opened,
    is_data: bool,
    since: Instant,
}

/// Serves a client until it leaves.
pub async fn serve(node: &Arc<Node>, terms: Terms, mut streams: Streams, sandbox: &SandboxId) {
    let mut halves: HashMap<String, Half> = HashMap::new();
    let mut pairs = JoinSet::new();
    let mut tick = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            opened = streams.opened() => {
                let Some(opened) = opened else { return };
                match sort(opened, &mut halves) {
                    Sorted::Waits => {}
                    Sorted::Pair(pair) => {
                        let (node, sandbox) = (Arc::clone(node), sandbox.clone());
                        pairs.spawn(async move { pair.serve(&node, &sandbox).await });
                    }
                    Sorted::Wrong(opened) => {
                        opened.writer.reset(ResetReason::Protocol).await.ok();
                    }
                }
            }
            _ = tick.tick(), if !halves.is_empty() => {
                refuse_late(&mut halves, terms.creation_timeout).await;
            }
            Some(_) = pairs.join_next() => {}
        }
    }
}

enum Sorted {
    Waits,
    Pair(Pair),
    Wrong(Opened),
}

/// Finds the other half of a stream.
fn sort(opened: Opened, halves: &mut HashMap<String, Half>) -> Sorted {
    let is_data = match opened.headers.get("streamtype") {
        Some(kind) if kind.eq_ignore_ascii_case("data") => true,
        Some(kind) if kind.eq_ignore_ascii_case("error") => false,
        _ => return Sorted::Wrong(opened),
    };
    let port = opened
        .headers
        .get("port")
        .and_then(|port| port.parse::<u16>().ok());
    if port.is_none_or(|port| port == 0) {
        return Sorted::Wrong(opened);
    }
    let key = match opened.headers.get("requestid") {
        Some(id) => id.to_owned(),
        // Clients of old open the error stream first and the data stream next.
        None if is_data => opened.id.saturating_sub(2).to_string(),
        None => opened.id.to_string(),
    };
    match halves.remove(&key) {
        Some(half) if half.is_data == is_data => {
            halves.insert(key, half);
            Sorted::Wrong(opened)
        }
        Some(half) => {
            let (data, error) = if is_data {
                (opened, half.opened)
            } else {
                (half.opened, opened)
            };
            Sorted::Pair(Pair { data, error })
        }
        None => {
            let half = Half {
                opened,
                is_data,
                since: Instant::now(),
            };
            halves.insert(key, half);
            Sorted::Waits
        }
    }
}

async fn refuse_late(halves: &mut HashMap<String, Half>, limit: Duration) {
    let late = |half: &Half| half.since.elapsed() >= limit;
    let keys: Vec<String> = halves
        .iter()
        .filter(|(_, half)| late(half))
        .map(|(key, _)| key.clone())
        .collect();
    for key in keys {
        if let Some(half) = halves.remove(&key) {
            half.opened.writer.reset(ResetReason::Cancel).await.ok();
        }
    }
}

/// Both streams of one connection.
struct Pair {
    data: Opened,
    error: Opened,
}

impl Pair {
    /// The client's leaving cancels this, with everything in it.
    async fn serve(self, node: &Node, sandbox: &SandboxId) -> Result<(), Lost> {
        let text = self.data.headers.get("port").unwrap_or_default().to_owned();
        let connected = match text.parse() {
            Ok(port) => connect(node, sandbox, port).await,
            Err(_) => Err("no port".to_owned()),
        };
        let Self { data, error } = self;
        match connected {
            Ok(stream) => {
                relay(stream, data.reader, &data.writer).await?;
                error.writer.finish().await
            }
            Err(why) => {
                tracing::debug!(port = text, why, "port cannot be forwarded");
                let why = format!("error forwarding port {text} to pod {sandbox}: {why}");
                error.writer.send(why.into()).await?;
                error.writer.finish().await?;
                data.writer.finish().await
            }
        }
    }
}

async fn connect(node: &Node, sandbox: &SandboxId, port: u16) -> Result<TcpStream, String> {
    let netns = namespace(node, sandbox)?;
    let stream = dial(netns.as_deref(), port).await;
    stream.map_err(|error| Chain(&error).to_string())
}

/// Where the pod's network is; none is the host's. The pod is looked up for each connection: it may
/// have been stopped since.
fn namespace(node: &Node, sandbox: &SandboxId) -> Result<Option<PathBuf>, String> {
    let found = node.sandboxes.find(sandbox.as_str());
    let sandbox = found.map_err(|error| Chain(&error).to_string())?;
    let published = sandbox.published();
    if !published.ready {
        return Err("the sandbox is not ready".to_owned());
    }
    Ok(published.netns.clone())
}

/// Why a connection ends before both directions have.
enum Cut {
    /// It is broken, or silent for too long.
    Broken,
    /// The client has given it up.
    Abandoned,
    /// The client is gone.
    Lost,
}

/// When something last moved, and whether one direction has ended.
struct Activity {
    begun: Instant,
    /// Milliseconds since then.
    last: AtomicU64,
    is_half_open: AtomicBool,
}

impl Activity {
    fn new() -> Self {
        Self {
            begun: Instant::now(),
            last: AtomicU64::new(0),
            is_half_open: AtomicBool::new(false),
        }
    }

    fn note(&self) {
        let now = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }

    fn half(&self) {
        self.note();
        self.is_half_open.store(true, Ordering::Relaxed);
    }

    fn is_half_open(&self) -> bool {
        self.is_half_open.load(Ordering::Relaxed)
    }

    /// Ends when a connection that is open on one side only has been silent for too long.
    async fn silent(&self) {
        loop {
            let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
            let deadline = self.begun + last + HALF_OPEN_LIMIT;
            if deadline > Instant::now() {
                tokio::time::sleep_until(deadline).await;
            } else if self.is_half_open() {
                return;
            } else {
                self.note();
            }
        }
    }
}

/// Moves bytes both ways until both directions have ended.
async fn relay(mut stream: TcpStream, mut from: Reader, to: &Writer) -> Result<(), Lost> {
    stream.set_nodelay(true).ok();
    let activity = Activity::new();
    let cut = {
        let (read, write) = stream.split();
        let both = futures_util::future::try_join(
            into_pod(&mut from, write, &activity),
            out_of_pod(read, to, &activity),
        );
        tokio::select! {
            done = both => done.err(),
            () = activity.silent() => Some(Cut::Broken),
        }
    };
    match cut {
        None => Ok(()),
        Some(Cut::Lost) => Err(Lost),
        Some(cut) => {
            // Closing resets the connection, so that the other side learns that this is no end; unless
            // it has said its own last word, and may still take ours.
            if !activity.is_half_open() {
                stream.set_zero_linger().ok();
            }
            match cut {
                Cut::Broken => to.reset(ResetReason::Cancel).await,
                _ => Ok(()),
            }
        }
    }
}

async fn into_pod(
    from: &mut Reader,
    mut to: tcp::WriteHalf<'_>,
    activity: &Activity,
) -> Result<(), Cut> {
    loop {
        match from.next().await {
            Incoming::Data(bytes) => {
                activity.note();
                if to.write_all(&bytes).await.is_err() {
                    // Whoever takes nothing may still have sent something: reading finds out.
                    from.discard();
                    return Ok(());
                }
            }
            Incoming::End => {
                activity.half();
                to.shutdown().await.ok();
                return Ok(());
            }
            Incoming::Reset => return Err(Cut::Abandoned),
            Incoming::Lost => return Err(Cut::Lost),
        }
    }
}

async fn out_of_pod(
    mut from: tcp::ReadHalf<'_>,
    to: &Writer,
    activity: &Activity,
) -> Result<(), Cut> {
    let mut room = vec![0_u8; CHUNK];
    loop {
        match from.read(&mut room).await {
            Ok(count @ 1..) => {
                activity.note();
                let bytes = Bytes::copy_from_slice(&room[..count]);
                to.send(bytes).await.map_err(|Lost| Cut::Lost)?;
            }
            Ok(_) => {
                activity.half();
                return to.finish().await.map_err(|Lost| Cut::Lost);
            }
            Err(_) => return Err(Cut::Broken),
        }
    }
}
