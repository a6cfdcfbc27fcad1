//! Connections of daemons: the one that started the monitor and those that come later.

use crate::report;
use conmon_rs::protocol::{Event, Frame, MAX_FDS, MAX_FRAME, Reply};
use crisp_sys::event::{EPOLLIN, EPOLLOUT, Epoll};
use crisp_sys::{Errno, fd, socket};
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::Instant;

/// Connections at one time. A further one is closed at once.
const MAX_CONNECTIONS: usize = 32;
/// Bytes that wait for one connection to read them. One that falls further behind is closed; when
/// it comes back, `Hello` tells it everything.
const MAX_QUEUED: usize = 64 * 1024;
/// Added to a connection's number in its epoll token.
const TOKEN: u64 = 1 << 32;

/// A connection that says something wrong or nothing more.
#[derive(Debug)]
pub struct Gone;

struct Connection {
    id: u64,
    socket: OwnedFd,
    subscribed: bool,
    queue: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    queued: usize,
    /// Whether epoll tells when the socket takes more.
    awaits_room: bool,
}

/// All connections.
pub struct Connections {
    list: Vec<Connection>,
    next: u64,
    /// When the last one went, or the monitor began.
    empty_since: Instant,
}

impl Connections {
    /// None yet.
    pub fn new() -> Connections {
        Connections {
            list: Vec::new(),
            next: 0,
            empty_since: Instant::now(),
        }
    }

    /// Takes a connected socket if its peer is root of the host. `subscribed`: it gets events.
    pub fn add(&mut self, epoll: &Epoll, socket: OwnedFd, subscribed: bool) -> Option<u64> {
        let peer = socket::peer_cred(socket.as_fd()).ok()?;
        if peer.uid != 0 {
            report::say(&format!(
                "conmon-rs: refused a connection of uid {}",
                peer.uid
            ));
            return None;
        }
        if is_elsewhere(peer.pid) {
            report::say(&format!(
                "conmon-rs: refused a connection of process {}, which is in a container",
                peer.pid
            ));
            return None;
        }
        if self.list.len() >= MAX_CONNECTIONS {
            report::say("conmon-rs: refused a connection: too many");
            return None;
        }
        fd::set_nonblocking(socket.as_fd(), true).ok()?;
        let id = self.next;
        epoll.add(socket.as_fd(), EPOLLIN, TOKEN + id).ok()?;
        self.next += 1;
        self.list.push(Connection {
            id,
            socket,
            subscribed,
            queue: VecDeque::new(),
            queued: 0,
            awaits_room: false,
        });
        Some(id)
    }

    /// The connection of an epoll token.
    pub fn of_token(token: u64) -> Option<u64> {
        token.checked_sub(TOKEN)
    }

    /// Whether nobody is connected, and since when.
    pub fn empty_since(&self) -> Option<Instant> {
        self.list.is_empty().then_some(self.empty_since)
    }

    /// Whether everything that was said has been handed to the kernel.
    pub fn is_flushed(&self) -> bool {
        self.list.iter().all(|c| c.queue.is_empty())
    }

    /// The next packet of a connection and its descriptors. None if there is none now.
    pub fn receive(
        &mut self,
        id: u64,
        buffer: &mut [u8],
    ) -> Result<Option<(usize, Vec<OwnedFd>)>, Gone> {
        let Some(connection) = self.list.iter().find(|c| c.id == id) else {
            return Ok(None);
        };
        match socket::recv_with_fds(connection.socket.as_fd(), buffer, MAX_FDS) {
            Ok((0, _)) => Err(Gone),
            Ok(packet) => Ok(Some(packet)),
            Err(error) if error.errno() == Errno::EAGAIN => Ok(None),
            Err(_) => Err(Gone),
        }
    }

    /// Closes a connection.
    pub fn close(&mut self, id: u64) {
        // Closing takes the socket out of epoll: nobody else has a copy of it.
        self.list.retain(|c| c.id != id);
        if self.list.is_empty() {
            self.empty_since = Instant::now();
        }
    }

    /// From now on the connection gets events.
    pub fn subscribe(&mut self, id: u64) {
        if let Some(connection) = self.list.iter_mut().find(|c| c.id == id) {
            connection.subscribed = true;
        }
    }

    /// Answers a request. The connection may have gone meanwhile.
    pub fn reply(&mut self, epoll: &Epoll, id: u64, seq: u64, reply: Reply, fds: Vec<OwnedFd>) {
        let bytes = Frame::Reply { seq, reply }.encode();
        if let Some(connection) = self.list.iter_mut().find(|c| c.id == id)
            && connection.send(epoll, bytes, fds).is_err()
        {
            self.close(id);
        }
    }

    /// Tells everyone who listens.
    pub fn broadcast(&mut self, epoll: &Epoll, event: &Event) {
        let bytes = Frame::Event(event.clone()).encode();
        let failed =
            |c: &mut Connection| c.subscribed && c.send(epoll, bytes.clone(), Vec::new()).is_err();
        let gone: Vec<u64> = self
            .list
            .iter_mut()
            .filter_map(|c| failed(c).then_some(c.id))
            .collect();
        for id in gone {
            self.close(id);
        }
    }

    /// Sends what waits, when the socket takes more.
    pub fn flush(&mut self, epoll: &Epoll, id: u64) {
        if let Some(connection) = self.list.iter_mut().find(|c| c.id == id)
            && connection.flush(epoll).is_err()
        {
            self.close(id);
        }
    }
}

/// Whether a process is in another PID namespace than we are: root of a container that was given our
/// directory as a volume is root as well. One that is gone has nothing to ask.
fn is_elsewhere(pid: i32) -> bool {
    let namespace = |of: &str| {
        let data = std::fs::metadata(format!("/proc/{of}/ns/pid"))?;
        Ok::<_, std::io::Error>((data.dev(), data.ino()))
    };
    match (namespace("self"), namespace(&pid.to_string())) {
        (Ok(own), Ok(theirs)) => own != theirs,
        (Ok(_), Err(error)) => error.kind() == std::io::ErrorKind::NotFound,
        // Without a /proc nothing can be told.
        (Err(_), _) => false,
    }
}

impl Connection {
    fn send(&mut self, epoll: &Epoll, bytes: Vec<u8>, fds: Vec<OwnedFd>) -> Result<(), Gone> {
        if bytes.len() > MAX_FRAME || self.queued + bytes.len() > MAX_QUEUED {
            report::say("conmon-rs: closed a connection that does not read");
            return Err(Gone);
        }
        let was_empty = self.queue.is_empty();
        self.queued += bytes.len();
        self.queue.push_back((bytes, fds));
        if was_empty { self.flush(epoll) } else { Ok(()) }
    }

    fn flush(&mut self, epoll: &Epoll) -> Result<(), Gone> {
        while let Some((bytes, fds)) = self.queue.front() {
            let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            match socket::send_with_fds(self.socket.as_fd(), bytes, &borrowed) {
                Ok(_) => {
                    self.queued -= bytes.len();
                    self.queue.pop_front();
                }
                Err(error) if error.errno() == Errno::EAGAIN => break,
                Err(_) => return Err(Gone),
            }
        }
        let awaits_room = !self.queue.is_empty();
        if std::mem::replace(&mut self.awaits_room, awaits_room) == awaits_room {
            return Ok(());
        }
        let events = match awaits_room {
            false => EPOLLIN,
            true => EPOLLIN | EPOLLOUT,
        };
        epoll
            .modify(self.socket.as_fd(), events, TOKEN + self.id)
            .map_err(|_| Gone)
    }
}
