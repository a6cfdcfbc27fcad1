//! Frames as tag-length-value records.
//!
//! Every frame has a [`tag::KIND`] and, unless it is an event, a [`tag::SEQ`]; the other fields
//! follow in any order. A number that is absent is 0, a text or list that is absent is empty.

use super::{
    AttachRequest, CreateRequest, DEFAULT_LINGER_MS, Event, ExecRequest, Frame, LogCounters,
    MAX_FRAME, Phase, Reply, Request, Snapshot,
};
use crate::exit::{EXIT_VERSION, ExitRecord};
use crisp_oci::tlv::{Reader, Record, TlvError, Writer};
use thiserror::Error;

/// Field numbers. A number keeps its meaning for ever; new fields get new numbers.
mod tag {
    pub const KIND: u16 = 1;
    pub const SEQ: u16 = 2;
    pub const ID: u16 = 16;
    pub const LOG_PATH: u16 = 17;
    pub const MAX_LOG_LINE: u16 = 18;
    pub const TERMINAL: u16 = 19;
    pub const STDIN: u16 = 20;
    pub const STDIN_ONCE: u16 = 21;
    pub const LINGER_MS: u16 = 22;
    pub const VERSION: u16 = 23;
    pub const SIGNO: u16 = 24;
    pub const EXEC: u16 = 25;
    pub const GROUP: u16 = 26;
    pub const WIDTH: u16 = 27;
    pub const HEIGHT: u16 = 28;
    pub const PROCESS: u16 = 29;
    pub const PID: u16 = 30;
    pub const START_TIME: u16 = 31;
    pub const STAGE: u16 = 32;
    pub const ERRNO: u16 = 33;
    pub const MESSAGE: u16 = 34;
    pub const PHASE: u16 = 35;
    pub const STARTED_AT_NS: u16 = 36;
    pub const EXIT: u16 = 37;
    pub const LOG: u16 = 38;
    pub const COUNT: u16 = 39;
    pub const CODE: u16 = 40;
    pub const AT_NS: u16 = 41;
    pub const LOST_BYTES: u16 = 42;
    pub const OOM_KILLED: u16 = 43;
    pub const FINISHED_AT_NS: u16 = 44;
    pub const REASON: u16 = 45;
    pub const WRITTEN_BYTES: u16 = 46;
    pub const WRITE_ERRORS: u16 = 47;
    pub const MONITOR_PID: u16 = 48;
    pub const STDOUT: u16 = 49;
    pub const STDERR: u16 = 50;
    pub const DROPPED: u16 = 51;
}

/// Frame numbers: requests below 100, replies below 200, events below 300.
mod kind {
    pub const CREATE: u64 = 1;
    pub const HELLO: u64 = 2;
    pub const START: u64 = 3;
    pub const SIGNAL: u64 = 4;
    pub const KILL_ALL: u64 = 5;
    pub const REOPEN_LOG: u64 = 6;
    pub const EXEC: u64 = 7;
    pub const EXEC_SIGNAL: u64 = 8;
    pub const RESIZE: u64 = 9;
    pub const CLOSE_STDIN: u64 = 10;
    pub const ACK_EXIT: u64 = 11;
    pub const QUIT: u64 = 12;
    pub const ATTACH: u64 = 13;
    pub const REPLIES: u64 = 100;
    pub const OK: u64 = 101;
    pub const CREATED: u64 = 102;
    pub const SNAPSHOT: u64 = 103;
    pub const EXEC_STARTED: u64 = 104;
    pub const ERROR: u64 = 105;
    pub const EVENTS: u64 = 200;
    pub const EXITED: u64 = 201;
    pub const OOM: u64 = 202;
    pub const EXEC_EXITED: u64 = 203;
    pub const LOG_TROUBLE: u64 = 204;
    pub const ATTACH_DROPPED: u64 = 205;
}

/// Why a packet is not a frame.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// More than [`MAX_FRAME`] bytes.
    #[error("frame of {size} bytes")]
    TooLarge {
        /// Its size, in bytes.
        size: usize,
    },
    /// Not a sequence of records.
    #[error("malformed frame: {0}")]
    Malformed(#[from] TlvError),
    /// A field that must be there is not.
    #[error("frame without field {tag}")]
    Missing {
        /// Number of the field.
        tag: u16,
    },
    /// A field has a value that means nothing.
    #[error("field {tag} has the value {value}")]
    Value {
        /// Number of the field.
        tag: u16,
        /// Its value.
        value: u64,
    },
    /// A request, reply or event that this version does not know. A monitor refuses such a request
    /// and keeps the connection; a daemon skips such an event.
    #[error("unknown frame kind {kind}")]
    Unknown {
        /// The number of the request or reply, 0 of an event.
        seq: u64,
        /// Number of the kind.
        kind: u64,
    },
}

impl Frame {
    /// The bytes of the packet. They may be more than [`MAX_FRAME`] only if a request holds texts
    /// or a process that large; the sender checks.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        match self {
            Frame::Request { seq, request } => put_request(&mut writer, *seq, request),
            Frame::Reply { seq, reply } => put_reply(&mut writer, *seq, reply),
            Frame::Event(event) => put_event(&mut writer, event),
        }
        writer.into_bytes()
    }

    /// Reads a packet.
    ///
    /// # Errors
    /// If it is no frame or one of an unknown kind. Never panics, whatever the bytes.
    pub fn decode(bytes: &[u8]) -> Result<Frame, DecodeError> {
        if bytes.len() > MAX_FRAME {
            return Err(DecodeError::TooLarge { size: bytes.len() });
        }
        let fields = Fields::new(Reader::new(bytes)?)?;
        let kind = fields.u64(tag::KIND)?;
        if kind == 0 {
            return Err(DecodeError::Missing { tag: tag::KIND });
        }
        let seq = fields.u64(tag::SEQ)?;
        Ok(match kind {
            ..kind::REPLIES => Frame::Request {
                seq,
                request: get_request(&fields, kind, seq)?,
            },
            kind::REPLIES..kind::EVENTS => Frame::Reply {
                seq,
                reply: get_reply(&fields, kind, seq)?,
            },
            _ => Frame::Event(get_event(&fields, kind)?),
        })
    }
}

fn put_request(w: &mut Writer, seq: u64, request: &Request) {
    let kind = match request {
        Request::Create(_) => kind::CREATE,
        Request::Hello { .. } => kind::HELLO,
        Request::Start => kind::START,
        Request::Signal { .. } => kind::SIGNAL,
        Request::KillAll => kind::KILL_ALL,
        Request::ReopenLog => kind::REOPEN_LOG,
        Request::Exec(_) => kind::EXEC,
        Request::ExecSignal { .. } => kind::EXEC_SIGNAL,
        Request::Resize { .. } => kind::RESIZE,
        Request::CloseStdin => kind::CLOSE_STDIN,
        Request::AckExit => kind::ACK_EXIT,
        Request::Quit => kind::QUIT,
        Request::Attach(_) => kind::ATTACH,
    };
    w.put_u64(tag::KIND, kind);
    w.put_u64(tag::SEQ, seq);
    match request {
        Request::Create(create) => put_create(w, create),
        Request::Hello { version } => w.put_u64(tag::VERSION, u64::from(*version)),
        Request::Signal { signo } => put_i32(w, tag::SIGNO, *signo),
        Request::Exec(exec) => {
            if let Some(process) = &exec.process {
                w.put_bytes(tag::PROCESS, process);
            }
            w.put_u64(tag::TERMINAL, u64::from(exec.terminal));
        }
        Request::ExecSignal { exec, signo, group } => {
            w.put_u64(tag::EXEC, *exec);
            put_i32(w, tag::SIGNO, *signo);
            w.put_u64(tag::GROUP, u64::from(*group));
        }
        Request::Resize {
            exec,
            width,
            height,
        } => {
            w.put_u64(tag::EXEC, *exec);
            w.put_u64(tag::WIDTH, u64::from(*width));
            w.put_u64(tag::HEIGHT, u64::from(*height));
        }
        Request::Attach(attach) => {
            w.put_u64(tag::STDIN, u64::from(attach.stdin));
            w.put_u64(tag::STDOUT, u64::from(attach.stdout));
            w.put_u64(tag::STDERR, u64::from(attach.stderr));
        }
        Request::Start
        | Request::KillAll
        | Request::ReopenLog
        | Request::CloseStdin
        | Request::AckExit
        | Request::Quit => {}
    }
}

fn put_create(w: &mut Writer, create: &CreateRequest) {
    w.put_str(tag::ID, &create.id);
    if let Some(path) = &create.log_path {
        w.put_str(tag::LOG_PATH, path);
    }
    w.put_u64(tag::MAX_LOG_LINE, u64::from(create.max_log_line));
    w.put_u64(tag::TERMINAL, u64::from(create.terminal));
    w.put_u64(tag::STDIN, u64::from(create.stdin));
    w.put_u64(tag::STDIN_ONCE, u64::from(create.stdin_once));
    w.put_u64(tag::LINGER_MS, create.linger_ms);
}

fn put_reply(w: &mut Writer, seq: u64, reply: &Reply) {
    let kind = match reply {
        Reply::Ok => kind::OK,
        Reply::Created { .. } => kind::CREATED,
        Reply::Snapshot(_) => kind::SNAPSHOT,
        Reply::ExecStarted { .. } => kind::EXEC_STARTED,
        Reply::Error { .. } => kind::ERROR,
    };
    w.put_u64(tag::KIND, kind);
    w.put_u64(tag::SEQ, seq);
    match reply {
        Reply::Ok => {}
        Reply::Created { pid, start_time } => {
            put_i32(w, tag::PID, *pid);
            w.put_u64(tag::START_TIME, *start_time);
        }
        Reply::Snapshot(snapshot) => put_snapshot(w, snapshot),
        Reply::ExecStarted { exec, pid } => {
            w.put_u64(tag::EXEC, *exec);
            put_i32(w, tag::PID, *pid);
        }
        Reply::Error {
            stage,
            errno,
            message,
        } => {
            w.put_str(tag::STAGE, stage);
            put_i32(w, tag::ERRNO, *errno);
            w.put_str(tag::MESSAGE, message);
        }
    }
}

fn put_snapshot(w: &mut Writer, snapshot: &Snapshot) {
    w.put_u64(tag::VERSION, u64::from(snapshot.version));
    w.put_str(tag::ID, &snapshot.id);
    let phase = match snapshot.phase {
        Phase::Creating => 1,
        Phase::Created => 2,
        Phase::Running => 3,
        Phase::Exited => 4,
    };
    w.put_u64(tag::PHASE, phase);
    put_i32(w, tag::PID, snapshot.pid);
    w.put_u64(tag::START_TIME, snapshot.start_time);
    w.put_u64(tag::STARTED_AT_NS, snapshot.started_at_ns);
    if let Some(exit) = &snapshot.exit {
        w.put_group(tag::EXIT, |w| put_exit(w, exit));
    }
    for exec in &snapshot.execs {
        w.put_u64(tag::EXEC, *exec);
    }
    let log = snapshot.log;
    w.put_group(tag::LOG, |w| {
        w.put_u64(tag::WRITTEN_BYTES, log.written_bytes);
        w.put_u64(tag::LOST_BYTES, log.lost_bytes);
        w.put_u64(tag::WRITE_ERRORS, log.write_errors);
        put_i32(w, tag::ERRNO, log.errno);
    });
    w.put_u64(tag::COUNT, snapshot.oom_count);
    put_i32(w, tag::MONITOR_PID, snapshot.monitor_pid);
    if snapshot.dropped_clients > 0 {
        w.put_u64(tag::DROPPED, snapshot.dropped_clients);
    }
}

fn put_event(w: &mut Writer, event: &Event) {
    match event {
        Event::Exited(record) => {
            w.put_u64(tag::KIND, kind::EXITED);
            w.put_group(tag::EXIT, |w| put_exit(w, record));
        }
        Event::Oom { count } => {
            w.put_u64(tag::KIND, kind::OOM);
            w.put_u64(tag::COUNT, *count);
        }
        Event::ExecExited {
            exec,
            code,
            signal,
            at_ns,
        } => {
            w.put_u64(tag::KIND, kind::EXEC_EXITED);
            w.put_u64(tag::EXEC, *exec);
            put_i32(w, tag::CODE, *code);
            put_i32(w, tag::SIGNO, *signal);
            w.put_u64(tag::AT_NS, *at_ns);
        }
        Event::LogTrouble { lost_bytes, errno } => {
            w.put_u64(tag::KIND, kind::LOG_TROUBLE);
            w.put_u64(tag::LOST_BYTES, *lost_bytes);
            put_i32(w, tag::ERRNO, *errno);
        }
        Event::AttachDropped { count } => {
            w.put_u64(tag::KIND, kind::ATTACH_DROPPED);
            w.put_u64(tag::COUNT, *count);
        }
    }
}

fn put_exit(w: &mut Writer, record: &ExitRecord) {
    w.put_u64(tag::VERSION, u64::from(record.version));
    put_i32(w, tag::PID, record.pid);
    w.put_u64(tag::START_TIME, record.start_time);
    put_i32(w, tag::CODE, record.code);
    put_i32(w, tag::SIGNO, record.signal);
    w.put_u64(tag::OOM_KILLED, u64::from(record.oom_killed));
    w.put_u64(tag::COUNT, record.oom_kill_count);
    w.put_u64(tag::STARTED_AT_NS, record.started_at_ns);
    w.put_u64(tag::FINISHED_AT_NS, record.finished_at_ns);
    w.put_u64(tag::LOST_BYTES, record.lost_bytes);
    w.put_str(tag::REASON, &record.reason);
}

fn put_i32(w: &mut Writer, tag: u16, value: i32) {
    w.put_i64(tag, i64::from(value));
}

fn get_request(fields: &Fields<'_>, kind: u64, seq: u64) -> Result<Request, DecodeError> {
    Ok(match kind {
        kind::CREATE => Request::Create(CreateRequest {
            id: fields.text(tag::ID)?,
            log_path: fields.find(tag::LOG_PATH).map(owned_text).transpose()?,
            max_log_line: fields.number(tag::MAX_LOG_LINE)?,
            terminal: fields.flag(tag::TERMINAL)?,
            stdin: fields.flag(tag::STDIN)?,
            stdin_once: fields.flag(tag::STDIN_ONCE)?,
            linger_ms: match fields.find(tag::LINGER_MS) {
                Some(record) => record.u64()?,
                None => DEFAULT_LINGER_MS,
            },
        }),
        kind::HELLO => Request::Hello {
            version: fields.number(tag::VERSION)?,
        },
        kind::START => Request::Start,
        kind::SIGNAL => Request::Signal {
            signo: fields.signed(tag::SIGNO)?,
        },
        kind::KILL_ALL => Request::KillAll,
        kind::REOPEN_LOG => Request::ReopenLog,
        kind::EXEC => Request::Exec(ExecRequest {
            process: fields
                .find(tag::PROCESS)
                .map(|record| record.value.to_vec()),
            terminal: fields.flag(tag::TERMINAL)?,
        }),
        kind::EXEC_SIGNAL => Request::ExecSignal {
            exec: fields.u64(tag::EXEC)?,
            signo: fields.signed(tag::SIGNO)?,
            group: fields.flag(tag::GROUP)?,
        },
        kind::RESIZE => Request::Resize {
            exec: fields.u64(tag::EXEC)?,
            width: fields.number(tag::WIDTH)?,
            height: fields.number(tag::HEIGHT)?,
        },
        kind::CLOSE_STDIN => Request::CloseStdin,
        kind::ACK_EXIT => Request::AckExit,
        kind::QUIT => Request::Quit,
        kind::ATTACH => Request::Attach(AttachRequest {
            stdin: fields.flag(tag::STDIN)?,
            stdout: fields.flag(tag::STDOUT)?,
            stderr: fields.flag(tag::STDERR)?,
        }),
        _ => return Err(DecodeError::Unknown { seq, kind }),
    })
}

fn get_reply(fields: &Fields<'_>, kind: u64, seq: u64) -> Result<Reply, DecodeError> {
    Ok(match kind {
        kind::OK => Reply::Ok,
        kind::CREATED => Reply::Created {
            pid: fields.signed(tag::PID)?,
            start_time: fields.u64(tag::START_TIME)?,
        },
        kind::SNAPSHOT => Reply::Snapshot(get_snapshot(fields)?),
        kind::EXEC_STARTED => Reply::ExecStarted {
            exec: fields.u64(tag::EXEC)?,
            pid: fields.signed(tag::PID)?,
        },
        kind::ERROR => Reply::Error {
            stage: fields.text(tag::STAGE)?,
            errno: fields.signed(tag::ERRNO)?,
            message: fields.text(tag::MESSAGE)?,
        },
        _ => return Err(DecodeError::Unknown { seq, kind }),
    })
}

fn get_snapshot(fields: &Fields<'_>) -> Result<Snapshot, DecodeError> {
    let phase = match fields.u64(tag::PHASE)? {
        1 => Phase::Creating,
        2 => Phase::Created,
        3 => Phase::Running,
        4 => Phase::Exited,
        value => {
            return Err(DecodeError::Value {
                tag: tag::PHASE,
                value,
            });
        }
    };
    let log = match fields.group(tag::LOG)? {
        Some(fields) => LogCounters {
            written_bytes: fields.u64(tag::WRITTEN_BYTES)?,
            lost_bytes: fields.u64(tag::LOST_BYTES)?,
            write_errors: fields.u64(tag::WRITE_ERRORS)?,
            errno: fields.signed(tag::ERRNO)?,
        },
        None => LogCounters::default(),
    };
    let execs = fields
        .all(tag::EXEC)
        .map(|record| record.u64())
        .collect::<Result<Vec<u64>, TlvError>>()?;
    Ok(Snapshot {
        version: fields.number(tag::VERSION)?,
        id: fields.text(tag::ID)?,
        phase,
        pid: fields.signed(tag::PID)?,
        start_time: fields.u64(tag::START_TIME)?,
        started_at_ns: fields.u64(tag::STARTED_AT_NS)?,
        exit: fields.group(tag::EXIT)?.map(|f| get_exit(&f)).transpose()?,
        execs,
        log,
        oom_count: fields.u64(tag::COUNT)?,
        monitor_pid: fields.signed(tag::MONITOR_PID)?,
        dropped_clients: fields.u64(tag::DROPPED)?,
    })
}

fn get_event(fields: &Fields<'_>, kind: u64) -> Result<Event, DecodeError> {
    Ok(match kind {
        kind::EXITED => {
            let group = fields
                .group(tag::EXIT)?
                .ok_or(DecodeError::Missing { tag: tag::EXIT })?;
            Event::Exited(get_exit(&group)?)
        }
        kind::OOM => Event::Oom {
            count: fields.u64(tag::COUNT)?,
        },
        kind::EXEC_EXITED => Event::ExecExited {
            exec: fields.u64(tag::EXEC)?,
            code: fields.signed(tag::CODE)?,
            signal: fields.signed(tag::SIGNO)?,
            at_ns: fields.u64(tag::AT_NS)?,
        },
        kind::LOG_TROUBLE => Event::LogTrouble {
            lost_bytes: fields.u64(tag::LOST_BYTES)?,
            errno: fields.signed(tag::ERRNO)?,
        },
        kind::ATTACH_DROPPED => Event::AttachDropped {
            count: fields.u64(tag::COUNT)?,
        },
        _ => return Err(DecodeError::Unknown { seq: 0, kind }),
    })
}

fn get_exit(fields: &Fields<'_>) -> Result<ExitRecord, DecodeError> {
    Ok(ExitRecord {
        version: match fields.find(tag::VERSION) {
            Some(record) => record.unsigned()?,
            None => EXIT_VERSION,
        },
        pid: fields.signed(tag::PID)?,
        start_time: fields.u64(tag::START_TIME)?,
        code: fields.signed(tag::CODE)?,
        signal: fields.signed(tag::SIGNO)?,
        oom_killed: fields.flag(tag::OOM_KILLED)?,
        oom_kill_count: fields.u64(tag::COUNT)?,
        started_at_ns: fields.u64(tag::STARTED_AT_NS)?,
        finished_at_ns: fields.u64(tag::FINISHED_AT_NS)?,
        lost_bytes: fields.u64(tag::LOST_BYTES)?,
        reason: fields.text(tag::REASON)?,
    })
}

fn owned_text(record: Record<'_>) -> Result<String, DecodeError> {
    Ok(record.str()?.to_string())
}

/// The records of a frame or group, looked up by number. The first of a number counts.
struct Fields<'a> {
    reader: Reader<'a>,
}

impl<'a> Fields<'a> {
    /// Checks once that every record is whole, so that later walks cannot fail.
    fn new(reader: Reader<'a>) -> Result<Fields<'a>, TlvError> {
        for record in reader.clone() {
            record?;
        }
        Ok(Fields { reader })
    }

    fn all(&self, wanted: u16) -> impl Iterator<Item = Record<'a>> {
        self.reader
            .clone()
            .flatten()
            .filter(move |record| record.tag == wanted)
    }

    fn find(&self, tag: u16) -> Option<Record<'a>> {
        self.all(tag).next()
    }

    fn u64(&self, tag: u16) -> Result<u64, DecodeError> {
        Ok(self.find(tag).map_or(Ok(0), |record| record.u64())?)
    }

    fn number<T: TryFrom<u64> + Default>(&self, tag: u16) -> Result<T, DecodeError> {
        Ok(self
            .find(tag)
            .map_or(Ok(T::default()), |record| record.unsigned())?)
    }

    fn signed(&self, tag: u16) -> Result<i32, DecodeError> {
        Ok(self.find(tag).map_or(Ok(0), |record| record.signed())?)
    }

    fn flag(&self, tag: u16) -> Result<bool, DecodeError> {
        Ok(self.u64(tag)? != 0)
    }

    fn text(&self, tag: u16) -> Result<String, DecodeError> {
        self.find(tag).map_or(Ok(String::new()), owned_text)
    }

    fn group(&self, tag: u16) -> Result<Option<Fields<'a>>, DecodeError> {
        let Some(record) = self.find(tag) else {
            return Ok(None);
        };
        Ok(Some(Fields::new(record.group()?)?))
    }
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
