//! The loop: waits for one thing after the other and hands it on.

use crate::container::Container;
use crate::exec::Execs;
use crate::serve::Connections;
use crate::setup::Start;
use crate::stdio::{Found, READ_SIZE};
use conmon_rs::log::Stream;
use conmon_rs::protocol::{Event as Told, MAX_FRAME};
use crisp_sys::clone::SingleThreaded;
use crisp_sys::event::{EPOLLIN, EPOLLOUT, Epoll, Event, SignalFd};
use crisp_sys::{Errno, socket};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

/// What a report of epoll belongs to. Attached clients and connections have numbers of their own
/// above these.
pub mod token {
    /// The signal descriptor.
    pub const SIGNALS: u64 = 0;
    /// The control socket.
    pub const LISTENER: u64 = 1;
    /// Init.
    pub const INIT: u64 = 2;
    /// Standard output, or the terminal.
    pub const STDOUT: u64 = 3;
    /// Standard error.
    pub const STDERR: u64 = 4;
    /// Memory ran out.
    pub const OOM: u64 = 5;
    /// The container's stdin takes input again.
    pub const STDIN: u64 = 6;
}

/// How long the last answers may take to be read when the monitor ends.
const PARTING: std::time::Duration = std::time::Duration::from_secs(5);
/// One byte more than the largest frame, so that a larger one is noticed.
const BUFFER: usize = if MAX_FRAME + 1 > READ_SIZE {
    MAX_FRAME + 1
} else {
    READ_SIZE
};

/// Everything the monitor has.
pub struct Monitor {
    /// Proof that cloning is safe.
    pub token: SingleThreaded,
    /// What is waited for.
    pub epoll: Epoll,
    /// Who is told.
    pub connections: Connections,
    /// The control socket, once there is a container.
    pub listener: Option<OwnedFd>,
    /// The container, once it is made.
    pub container: Option<Container>,
    /// Packets and output pass through here.
    pub buffer: Vec<u8>,
    /// The score for containers that ask for none.
    pub oom_score_adj: Option<i32>,
    /// Who asked to undo everything, until init was reaped: connection and request.
    pub quitting: Option<(u64, u64)>,
    /// Nothing is left to do.
    pub finished: bool,
    signals: SignalFd,
}

impl Monitor {
    /// A monitor without a container, connected to the daemon that started it.
    pub fn new(start: Start) -> crisp_sys::Result<Monitor> {
        let epoll = Epoll::new()?;
        epoll.add(start.signals.as_fd(), EPOLLIN, token::SIGNALS)?;
        let mut connections = Connections::new();
        let first = connections.add(&epoll, start.control, true);
        first.ok_or_else(|| {
            let what = "descriptor 0 is no control socket of root's: crisp starts this program";
            crisp_sys::Error::new("start", what, Errno::ENOTSOCK)
        })?;
        Ok(Monitor {
            token: start.token,
            epoll,
            connections,
            listener: None,
            container: None,
            buffer: vec![0; BUFFER],
            oom_score_adj: start.oom_score_adj,
            quitting: None,
            finished: false,
            signals: start.signals,
        })
    }

    /// Runs until there is nothing left to do.
    pub fn run(&mut self) -> crisp_sys::Result<()> {
        let mut events = [Event {
            token: 0,
            events: 0,
        }; 16];
        while !self.finished {
            let now = Instant::now();
            let limit = self.deadline().map(|at| at.saturating_duration_since(now));
            let count = self.epoll.wait(&mut events, limit)?;
            for event in &events[..count] {
                self.handle(*event);
            }
            self.on_time(Instant::now());
        }
        self.leave();
        self.part(&mut events)
    }

    /// Hands the last answers over, if somebody takes them.
    fn part(&mut self, events: &mut [Event]) -> crisp_sys::Result<()> {
        let until = Instant::now() + PARTING;
        while !self.connections.is_flushed() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let count = self.epoll.wait(events, Some(left))?;
            for event in &events[..count] {
                if let Some(id) = Connections::of_token(event.token) {
                    self.connections.flush(&self.epoll, id);
                }
            }
        }
        Ok(())
    }

    fn handle(&mut self, event: Event) {
        match event.token {
            token::SIGNALS => {
                while let Ok(Some(_)) = self.signals.read() {}
                self.reap();
            }
            token::LISTENER => self.accept(),
            token::INIT => self.reap(),
            token::STDOUT => {
                // Only a terminal is asked for both.
                if event.events & EPOLLOUT != 0 {
                    self.input_wanted();
                }
                self.read(Stream::Stdout);
            }
            token::STDERR => self.read(Stream::Stderr),
            token::STDIN => self.input_wanted(),
            other if Execs::is_token(other) => self.exec_ready(other),
            token::OOM => self.memory_ran_out(),
            other => {
                if let Some(id) = Connections::of_token(other) {
                    if event.events & EPOLLOUT != 0 {
                        self.connections.flush(&self.epoll, id);
                    }
                    if event.events & !EPOLLOUT != 0 {
                        self.serve(id);
                    }
                } else if let Some(container) = &mut self.container {
                    container
                        .streams
                        .client_ready(&self.epoll, other, &mut self.buffer);
                }
            }
        }
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else {
            return;
        };
        while let Ok(socket) = socket::accept(listener.as_fd()) {
            // A refused one is closed by being dropped.
            self.connections.add(&self.epoll, socket, false);
        }
    }

    fn read(&mut self, stream: Stream) {
        let Some(container) = &mut self.container else {
            return;
        };
        let found = container
            .streams
            .read(stream, &mut self.buffer, container.log.as_mut());
        if found == Found::End
            && let Some(log) = &mut container.log
        {
            log.flush_partial(stream);
        }
        self.tell_log_trouble();
        self.tell_dropped_clients();
    }

    fn input_wanted(&mut self) {
        if let Some(container) = &mut self.container {
            container.streams.input_wanted(&self.epoll);
        }
    }

    /// Tells that attached clients were dropped since this was told last.
    pub fn tell_dropped_clients(&mut self) {
        let streams = self.container.as_mut().map(|c| &mut c.streams);
        if let Some(count) = streams.and_then(|streams| streams.newly_dropped_clients()) {
            self.connections
                .broadcast(&self.epoll, &Told::AttachDropped { count });
        }
    }

    fn tell_log_trouble(&mut self) {
        let log = self
            .container
            .as_mut()
            .and_then(|container| container.log.as_mut());
        if let Some(trouble) = log.and_then(|log| log.trouble(Instant::now())) {
            let event = Told::LogTrouble {
                lost_bytes: trouble.lost_bytes,
                errno: trouble.errno,
            };
            self.connections.broadcast(&self.epoll, &event);
        }
    }

    fn memory_ran_out(&mut self) {
        let Some(container) = &mut self.container else {
            return;
        };
        let grown = container.oom.reported(&container.cgroup, Instant::now());
        self.tell_oom(grown);
    }

    fn tell_oom(&mut self, grown: Option<u64>) {
        if let Some(count) = grown {
            self.connections
                .broadcast(&self.epoll, &Told::Oom { count });
        }
    }

    /// When something is due that nobody will wake us for. None lets us sleep for ever.
    fn deadline(&self) -> Option<Instant> {
        let container = self.container.as_ref()?;
        let log = container.log.as_ref().and_then(|log| log.deadline());
        let all = [
            log,
            container.oom.deadline(),
            container.execs.deadline(),
            self.ending_deadline(),
        ];
        all.into_iter().flatten().min()
    }

    fn on_time(&mut self, now: Instant) {
        let Some(container) = &mut self.container else {
            return;
        };
        if let Some(log) = &mut container.log {
            log.flush_idle(now);
        }
        let grown = container.oom.recheck(&container.cgroup, now);
        self.tell_oom(grown);
        self.tell_log_trouble();
        self.give_up_execs(now);
        if self
            .container
            .as_ref()
            .is_some_and(|container| !container.is_alive())
        {
            self.go_on(now);
        }
    }
}
