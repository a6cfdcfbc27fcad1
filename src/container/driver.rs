//! The task that owns a container.

use std::{sync::Arc, time::Duration};

use conmon_rs::{exit::ExitRecord, protocol};
use tokio::{
    sync::{OnceCell, mpsc, oneshot},
    time::Instant,
};
use tracing::Instrument;

use super::{
    Container,
    output::Output,
    record::{ContainerRecord, Phase},
    state::{Change, Exit, State},
    undo,
};
use crate::{
    clock,
    error::{Chain, Classify, ErrorKind},
    events::EventKind,
    failpoint,
    monitor::{Monitor, MonitorError, Notice},
    node::Node,
    process::Process,
    sandbox::spec::Resources,
    snapshot::layers::Pin as LayerPin,
    undo::{Patience, UndoError},
};

/// How long a SIGKILL may take to be reported.
const KILL_LIMIT: Duration = Duration::from_secs(30);
/// How long a monitor may take to end after it was told that its work is done.
const MONITOR_END_LIMIT: Duration = Duration::from_secs(5);

/// Where a driver tells how a command went.
pub type Answer = oneshot::Sender<Result<(), Arc<ContainerError>>>;

/// What a container can be told to do.
pub enum Command {
    /// Open the start gate.
    Start(Answer),
    /// Signal, wait, SIGKILL.
    Stop {
        /// Between the signal and SIGKILL.
        grace: Duration,
        /// Who asked.
        answer: Answer,
    },
    /// End it, then remove every trace.
    Remove(Answer),
    /// Change its limits.
    Update {
        /// Those that are named.
        limits: Resources,
        /// Who asked.
        answer: Answer,
    },
}

/// Why a verb on a container failed.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    /// The verb does not fit the state.
    #[error("cannot {verb} a container that {state}")]
    WrongState {
        /// What was asked.
        verb: &'static str,
        /// Where the container is.
        state: &'static str,
    },
    /// The program could not be executed.
    #[error("cannot start the container")]
    Start(#[source] MonitorError),
    /// The log could not be opened anew.
    #[error("cannot reopen the log")]
    ReopenLog(#[source] MonitorError),
    /// A command could not be run in it.
    #[error("cannot run the command")]
    Exec(#[source] MonitorError),
    /// A client could not be connected to its streams, or its terminal not resized.
    #[error("cannot attach")]
    Attach(#[source] MonitorError),
    /// Input was wanted.
    #[error("the container was made without stdin")]
    NoStdin,
    /// A terminal was wanted.
    #[error("the container was made without a terminal")]
    NoTerminal,
    /// Its monitor is gone; it is being ended.
    #[error("the monitor of the container is gone")]
    MonitorGone,
    /// It did not end after SIGKILL.
    #[error("container did not end within {KILL_LIMIT:?} of SIGKILL")]
    DoesNotEnd,
    /// The description of its processes could not be read back.
    #[error("cannot read the bundle of the container")]
    Bundle(#[source] super::exec::BundleReadError),
    /// Its limits were not changed.
    #[error(transparent)]
    Update(super::update::UpdateError),
    /// A step of its removal failed.
    #[error("cannot remove the container, still trying")]
    Undo(#[source] UndoError),
}

impl Classify for ContainerError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::WrongState { .. } => ErrorKind::WrongState,
            Self::Start(error)
            | Self::ReopenLog(error)
            | Self::Exec(error)
            | Self::Attach(error) => error.kind(),
            Self::NoStdin | Self::NoTerminal => ErrorKind::InvalidArgument,
            Self::MonitorGone => ErrorKind::NotReady,
            Self::DoesNotEnd => ErrorKind::Deadline,
            Self::Bundle(_) => ErrorKind::Internal,
            Self::Update(error) => error.kind(),
            Self::Undo(error) => error.kind(),
        }
    }
}

/// A monitor and what it says.
pub struct Attached {
    /// The monitor.
    pub monitor: Monitor,
    /// What it says unasked.
    pub notices: mpsc::UnboundedReceiver<Notice>,
}

/// What a container's driver starts from.
pub struct Start {
    /// The container on disk.
    pub record: ContainerRecord,
    /// Where it is now.
    pub state: State,
    /// Its monitor, while it has one.
    pub attached: Option<Attached>,
    /// Keeps its layers.
    pub pin: Option<LayerPin>,
    /// How its processes are made, if known already.
    pub process: Option<Arc<crisp_oci::plan::ProcessPlan>>,
    /// What has become of its output.
    pub output: Output,
}

/// Under way: the container is to end.
struct Ending {
    /// When SIGKILL follows, or, after that, when patience ends.
    deadline: Instant,
    killed: bool,
    waiting: Vec<Answer>,
}

/// The owner of one container.
pub struct Driver {
    node: Arc<Node>,
    container: Arc<Container>,
    record: ContainerRecord,
    attached: Option<Attached>,
    pin: Option<LayerPin>,
    commands: mpsc::UnboundedReceiver<Command>,
    ending: Option<Ending>,
    removing: Vec<Answer>,
    /// A removal was begun and failed: when it is tried again without being asked.
    unfinished: Option<(Instant, Patience)>,
    /// The monitor's process after its work was done: a removal waits for it.
    parting: Option<Process>,
    /// Whether the caller of a successful start was still there to hear it.
    start_answered: bool,
}

impl Driver {
    /// Makes a container visible and starts the task that owns it.
    pub fn publish(node: &Arc<Node>, start: Start) {
        let Start {
            record,
            state,
            attached,
            pin,
            process,
            output,
        } = start;
        let (sender, commands) = mpsc::unbounded_channel();
        let container = Arc::new(Container {
            id: record.id.clone(),
            sandbox: record.sandbox.clone(),
            spec: Arc::new(record.spec.clone()),
            fixed: record.fixed.clone(),
            state: arc_swap::ArcSwap::from_pointee(state),
            resources: arc_swap::ArcSwap::from_pointee(
                record
                    .resources
                    .clone()
                    .unwrap_or_else(|| record.spec.resources.clone()),
            ),
            usage: crate::stats::container::Memory::default(),
            monitor: arc_swap::ArcSwapOption::new(
                attached
                    .as_ref()
                    .map(|attached| Arc::new(attached.monitor.clone())),
            ),
            process: OnceCell::new_with(process),
            output,
            commands: sender,
        });
        node.containers
            .insert(record.id.as_str(), Arc::clone(&container));
        let driver = Self {
            node: Arc::clone(node),
            container,
            record,
            attached,
            pin,
            commands,
            ending: None,
            removing: Vec::new(),
            unfinished: None,
            parting: None,
            start_answered: false,
        };
        tokio::spawn(driver.drive());
    }

    async fn drive(mut self) {
        loop {
            if !self.removing.is_empty() && self.has_exited() && self.remove().await {
                return;
            }
            let late = at(self.ending.as_ref().map(|ending| ending.deadline));
            let again = at(self.unfinished.as_ref().map(|(next, _)| *next));
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(command) => self.obey(command).await,
                    None => return,
                },
                notice = next_notice(&mut self.attached) => self.heed(notice).await,
                () = late => self.escalate().await,
                () = again => if self.remove().await { return },
            }
        }
    }

    fn has_exited(&self) -> bool {
        matches!(**self.container.state.load(), State::Exited(_))
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Start(answer) => {
                let span = tracing::info_span!("start.gate", id = %self.container.id);
                let started = self.start().instrument(span).await.map_err(Arc::new);
                let fine = started.is_ok();
                self.start_answered |= answer.send(started).is_ok() && fine;
            }
            Command::Stop { grace, answer } => self.stop(grace, answer).await,
            Command::Update { limits, answer } => {
                let span = tracing::info_span!("container.update", id = %self.container.id);
                let updated =
                    super::update::apply(&self.node, &self.container, &mut self.record, &limits)
                        .instrument(span)
                        .await;
                let updated = updated.map_err(|error| Arc::new(ContainerError::Update(error)));
                answer.send(updated).ok();
            }
            Command::Remove(answer) => {
                self.removing.push(answer);
                if !self.has_exited() {
                    self.end(Duration::ZERO).await;
                }
            }
        }
    }

    async fn start(&mut self) -> Result<(), ContainerError> {
        let state = self.container.state();
        match &*state {
            State::Created => {}
            _ if !self.start_answered && started_once(&state) => return Ok(()),
            other => {
                return Err(ContainerError::WrongState {
                    verb: "start",
                    state: other.word(),
                });
            }
        }
        let monitor = self.monitor()?;
        // Taken before, so that no end can come before it.
        let at = clock::now_ns();
        monitor.start().await.map_err(ContainerError::Start)?;
        failpoint::reach(format_args!("start.gate.opened"));
        self.change(Change::Started { at }).await;
        self.node
            .tell_container(EventKind::Started, &self.container);
        Ok(())
    }

    async fn stop(&mut self, grace: Duration, answer: Answer) {
        if self.has_exited() {
            answer.send(Ok(())).ok();
            return;
        }
        self.end(grace).await;
        if let Some(ending) = &mut self.ending {
            ending.waiting.push(answer);
        } else {
            answer.send(Ok(())).ok();
        }
    }

    /// Sends the stop signal (or SIGKILL) and notes when patience ends. A second, more impatient
    /// stop shortens the first one's grace.
    async fn end(&mut self, grace: Duration) {
        // A process at the start gate has nothing to finish.
        let created = matches!(**self.container.state.load(), State::Created);
        let deadline = Instant::now() + grace.min(Duration::from_secs(365 * 86_400));
        if grace.is_zero() || created {
            if !self.ending.as_ref().is_some_and(|ending| ending.killed) {
                self.kill().await;
            }
            return;
        }
        match &mut self.ending {
            Some(ending) if !ending.killed => ending.deadline = ending.deadline.min(deadline),
            Some(_) => {}
            None => {
                let signo = self.container.fixed.stop_signal.number();
                self.ending = Some(Ending {
                    deadline,
                    killed: false,
                    waiting: Vec::new(),
                });
                self.signal(signo).await;
            }
        }
    }

    async fn escalate(&mut self) {
        let Some(ending) = &mut self.ending else {
            return;
        };
        if !ending.killed {
            self.kill().await;
            return;
        }
        // Not even SIGKILL: a process that the kernel cannot end. Say so; an exit may still come.
        tracing::error!(id = %self.container.id, "container does not end after SIGKILL");
        for answer in std::mem::take(&mut ending.waiting) {
            answer.send(Err(Arc::new(ContainerError::DoesNotEnd))).ok();
        }
        for answer in std::mem::take(&mut self.removing) {
            answer.send(Err(Arc::new(ContainerError::DoesNotEnd))).ok();
        }
        self.ending = None;
    }

    async fn kill(&mut self) {
        let waiting = self
            .ending
            .take()
            .map(|ending| ending.waiting)
            .unwrap_or_default();
        self.ending = Some(Ending {
            deadline: Instant::now() + KILL_LIMIT,
            killed: true,
            waiting,
        });
        if let Some(attached) = &self.attached
            && let Err(error) = attached.monitor.kill_all().await
        {
            tracing::debug!(id = %self.container.id, error = %Chain(&error), "kill");
        }
    }

    async fn signal(&self, signo: i32) {
        if let Some(attached) = &self.attached
            && let Err(error) = attached.monitor.signal(signo).await
        {
            // Most likely it has just ended by itself.
            tracing::debug!(id = %self.container.id, error = %Chain(&error), "signal");
        }
    }

    fn monitor(&self) -> Result<Monitor, ContainerError> {
        let attached = self.attached.as_ref().ok_or(ContainerError::MonitorGone)?;
        Ok(attached.monitor.clone())
    }

    async fn heed(&mut self, notice: Notice) {
        match notice {
            Notice::Event(protocol::Event::Exited(exit)) => self.exited(&exit).await,
            Notice::Event(protocol::Event::LogTrouble { lost_bytes, errno }) => {
                self.container.output.log_trouble(lost_bytes, errno);
                let id = &self.container.id;
                if errno == 0 {
                    tracing::warn!(%id, lost_bytes, "log can be written again");
                } else {
                    let error = std::io::Error::from_raw_os_error(errno);
                    tracing::warn!(%id, lost_bytes, %error, "log cannot be written");
                }
            }
            Notice::Event(protocol::Event::Oom { count }) => {
                tracing::info!(id = %self.container.id, count, "out of memory in the container");
            }
            Notice::Event(protocol::Event::AttachDropped { count }) => {
                self.container.output.clients_dropped(count);
                tracing::warn!(id = %self.container.id, count, "attached client did not read and was dropped");
            }
            Notice::Event(protocol::Event::ExecExited { .. }) => {}
            Notice::Closed => self.lose_monitor().await,
        }
    }

    /// The monitor has seen the end: its record is on disk already.
    async fn exited(&mut self, exit: &ExitRecord) {
        self.settle(exit_of(exit)).await;
        if let Some(attached) = self.attached.take() {
            self.container.monitor.store(None);
            attached.monitor.acknowledge_exit().await.ok();
            attached.monitor.disconnect();
            self.parting = Some(attached.monitor.process().clone());
        }
    }

    /// The socket closed before an exit was told: the monitor died, or hung up.
    async fn lose_monitor(&mut self) {
        let Some(attached) = self.attached.take() else {
            return;
        };
        self.container.monitor.store(None);
        if self.has_exited() {
            return;
        }
        attached.monitor.process().kill(MONITOR_END_LIMIT).await;
        let exit = undo::end_orphan(&self.node, &self.record).await;
        tracing::warn!(id = %self.container.id, code = exit.code, "monitor died, container is ended");
        self.settle(exit).await;
    }

    /// Takes note of the end and wakes everybody who waits for it.
    async fn settle(&mut self, exit: Exit) {
        self.change(Change::Ended(exit)).await;
        if let Some(ending) = self.ending.take() {
            for answer in ending.waiting {
                answer.send(Ok(())).ok();
            }
        }
        self.node
            .tell_container(EventKind::Stopped, &self.container);
    }

    async fn change(&mut self, change: Change) {
        let next = match self.container.state().after(change) {
            Ok(next) => next,
            Err(illegal) => {
                tracing::warn!(id = %self.container.id, %illegal, "change is ignored");
                return;
            }
        };
        self.record.phase = Phase::Live(next.clone());
        // Published when it is on disk: what a client has seen survives a kill of the daemon.
        if let Err(error) = self.node.write_container(&mut self.record).await {
            tracing::error!(id = %self.container.id, error = %Chain(&error), "cannot record the state");
        }
        self.container.state.store(Arc::new(next));
    }

    /// Removes every trace. True when it is done and this task may end.
    async fn remove(&mut self) -> bool {
        let span = tracing::info_span!("container.remove", id = %self.container.id);
        if let Some(monitor) = self.parting.take()
            && tokio::time::timeout(MONITOR_END_LIMIT, monitor.ended())
                .await
                .is_err()
        {
            monitor.kill(MONITOR_END_LIMIT).await;
        }
        let removed = undo::erase(&self.node, &mut self.record, &mut self.pin)
            .instrument(span)
            .await;
        let removed = removed.map_err(|error| Arc::new(ContainerError::Undo(error)));
        let done = removed.is_ok();
        if done {
            self.node.forget_container(&self.container);
            self.node
                .tell_container(EventKind::Deleted, &self.container);
        }
        if let Err(error) = &removed {
            tracing::warn!(id = %self.container.id, error = %Chain(error.as_ref()), "removal fails, will retry");
            let mut patience = self
                .unfinished
                .take()
                .map_or_else(Patience::default, |(_, p)| p);
            self.unfinished = Some((Instant::now() + patience.pause(), patience));
        }
        for answer in std::mem::take(&mut self.removing) {
            answer.send(removed.clone()).ok();
        }
        done
    }
}

/// Waits for a moment, if there is one.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

async fn next_notice(attached: &mut Option<Attached>) -> Notice {
    match attached {
        Some(attached) => attached.notices.recv().await.unwrap_or(Notice::Closed),
        None => std::future::pending().await,
    }
}

/// Whether the program was ever executed.
fn started_once(state: &State) -> bool {
    match state {
        State::Created => false,
        State::Running { .. } => true,
        State::Exited(exit) => exit.started_at != 0,
    }
}

/// A monitor's exit record as CRI tells it.
pub(super) fn exit_of(record: &ExitRecord) -> Exit {
    let reason = match (record.oom_killed, record.started_at_ns, record.code) {
        (true, _, _) => "OOMKilled",
        (false, 0, _) => "StartError",
        (false, _, 0) => "Completed",
        (false, _, _) => "Error",
    };
    Exit {
        code: record.code,
        reason: reason.to_owned(),
        message: record.reason.clone(),
        started_at: i64::try_from(record.started_at_ns).unwrap_or(0),
        finished_at: i64::try_from(record.finished_at_ns).unwrap_or_else(|_| clock::now_ns()),
    }
}
