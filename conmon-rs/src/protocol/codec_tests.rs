//! Round trips, the frames of past releases, and garbage.

use super::*;
use proptest::prelude::*;

fn text() -> impl Strategy<Value = String> {
    proptest::collection::vec(any::<char>(), 0..12).prop_map(|c| c.into_iter().collect())
}

prop_compose! {
    fn exit_record()(version: u32, pid: i32, start_time: u64, code: i32, signal: i32, oom_killed: bool,
        oom_kill_count: u64, started_at_ns: u64, finished_at_ns: u64, lost_bytes: u64, reason in text())
        -> ExitRecord {
        ExitRecord { version, pid, start_time, code, signal, oom_killed, oom_kill_count, started_at_ns,
            finished_at_ns, lost_bytes, reason }
    }
}

prop_compose! {
    fn snapshot()(version: u32, id in text(), phase in 0..4usize, pid: i32, start_time: u64, started_at_ns: u64,
        exit in proptest::option::of(exit_record()), execs in proptest::collection::vec(any::<u64>(), 0..4),
        counters: (u64, u64, u64, i32), oom_count: u64, monitor_pid: i32, dropped_clients: u64) -> Snapshot {
        let phase = [Phase::Creating, Phase::Created, Phase::Running, Phase::Exited][phase];
        let (written_bytes, lost_bytes, write_errors, errno) = counters;
        Snapshot { version, id, phase, pid, start_time, started_at_ns, exit, execs,
            log: LogCounters { written_bytes, lost_bytes, write_errors, errno }, oom_count, monitor_pid,
            dropped_clients }
    }
}

prop_compose! {
    fn create()(id in text(), log_path in proptest::option::of(text()), max_log_line: u32, terminal: bool,
        stdin: bool, stdin_once: bool, linger_ms: u64) -> CreateRequest {
        CreateRequest { id, log_path, max_log_line, terminal, stdin, stdin_once, linger_ms }
    }
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        create().prop_map(Request::Create),
        any::<u32>().prop_map(|version| Request::Hello { version }),
        Just(Request::Start),
        any::<i32>().prop_map(|signo| Request::Signal { signo }),
        Just(Request::KillAll),
        Just(Request::ReopenLog),
        (
            proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40)),
            any::<bool>()
        )
            .prop_map(|(process, terminal)| Request::Exec(ExecRequest { process, terminal })),
        (any::<u64>(), any::<i32>(), any::<bool>())
            .prop_map(|(exec, signo, group)| Request::ExecSignal { exec, signo, group }),
        (any::<u64>(), any::<u16>(), any::<u16>()).prop_map(|(exec, width, height)| {
            Request::Resize {
                exec,
                width,
                height,
            }
        }),
        Just(Request::CloseStdin),
        Just(Request::AckExit),
        Just(Request::Quit),
        any::<(bool, bool, bool)>().prop_map(|(stdin, stdout, stderr)| {
            Request::Attach(AttachRequest {
                stdin,
                stdout,
                stderr,
            })
        }),
    ]
}

fn reply() -> impl Strategy<Value = Reply> {
    prop_oneof![
        Just(Reply::Ok),
        (any::<i32>(), any::<u64>())
            .prop_map(|(pid, start_time)| Reply::Created { pid, start_time }),
        snapshot().prop_map(Reply::Snapshot),
        (any::<u64>(), any::<i32>()).prop_map(|(exec, pid)| Reply::ExecStarted { exec, pid }),
        (text(), any::<i32>(), text()).prop_map(|(stage, errno, message)| Reply::Error {
            stage,
            errno,
            message
        }),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        exit_record().prop_map(Event::Exited),
        any::<u64>().prop_map(|count| Event::Oom { count }),
        (any::<u64>(), any::<i32>(), any::<i32>(), any::<u64>()).prop_map(
            |(exec, code, signal, at_ns)| Event::ExecExited {
                exec,
                code,
                signal,
                at_ns
            }
        ),
        (any::<u64>(), any::<i32>())
            .prop_map(|(lost_bytes, errno)| Event::LogTrouble { lost_bytes, errno }),
        any::<u64>().prop_map(|count| Event::AttachDropped { count }),
    ]
}

fn frame() -> impl Strategy<Value = Frame> {
    prop_oneof![
        (any::<u64>(), request()).prop_map(|(seq, request)| Frame::Request { seq, request }),
        (any::<u64>(), reply()).prop_map(|(seq, reply)| Frame::Reply { seq, reply }),
        event().prop_map(Frame::Event),
    ]
}

proptest! {
    #[test]
    fn every_frame_comes_back(frame in frame()) {
        prop_assert_eq!(Frame::decode(&frame.encode()), Ok(frame));
    }

    #[test]
    fn fields_of_a_later_version_are_skipped(frame in frame(), tag in 1000u16.., value in proptest::collection::vec(any::<u8>(), 0..20)) {
        let mut writer = Writer::new();
        writer.put_bytes(tag, &value);
        let mut bytes = writer.into_bytes();
        bytes.extend_from_slice(&frame.encode());
        prop_assert_eq!(Frame::decode(&bytes), Ok(frame));
    }

    #[test]
    fn garbage_is_refused_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Frame::decode(&bytes);
    }

    #[test]
    fn damaged_frames_are_read_or_refused_without_panic(frame in frame(), at: prop::sample::Index, to: u8, cut: prop::sample::Index) {
        let mut bytes = frame.encode();
        let at = at.index(bytes.len());
        bytes[at] = to;
        let _ = Frame::decode(&bytes);
        bytes.truncate(cut.index(bytes.len()));
        let _ = Frame::decode(&bytes);
    }
}

#[test]
fn a_frame_cut_anywhere_is_not_mistaken_for_another_kind() {
    let frame = Frame::Request {
        seq: 3,
        request: Request::ExecSignal {
            exec: 1,
            signo: 9,
            group: true,
        },
    };
    let bytes = frame.encode();
    for cut in 0..bytes.len() {
        if let Ok(decoded) = Frame::decode(&bytes[..cut]) {
            assert!(
                matches!(
                    decoded,
                    Frame::Request {
                        request: Request::ExecSignal { .. },
                        ..
                    }
                ),
                "{cut}"
            );
        }
    }
    assert_eq!(
        Frame::decode(&[]),
        Err(DecodeError::Missing { tag: tag::KIND })
    );
    assert_eq!(
        Frame::decode(&vec![0; MAX_FRAME + 1]),
        Err(DecodeError::TooLarge {
            size: MAX_FRAME + 1
        })
    );
}

#[test]
fn an_unknown_request_keeps_its_number() {
    let mut writer = Writer::new();
    writer.put_u64(tag::KIND, 99);
    writer.put_u64(tag::SEQ, 12);
    assert_eq!(
        Frame::decode(&writer.into_bytes()),
        Err(DecodeError::Unknown { seq: 12, kind: 99 })
    );
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2)
        .map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap())
        .collect()
}

/// A frame in hexadecimal, and what it says.
type Golden = (&'static str, fn() -> Frame);

/// The frames of version 1. They must be decodable for ever: add lines, never change one.
const GOLDEN_1: &[Golden] = &[
    (
        "0100080000000100000000000000020008000000010000000000000010000200000063311100150000002f7661722f6c6f672f706f64732f782f302e6c6f67120008000000004000000000000013000800000000000000000000001400080000000100000000000000150008000000000000000000000016000800000060ea000000000000",
        || Frame::Request {
            seq: 1,
            request: Request::Create(CreateRequest {
                id: "c1".into(),
                log_path: Some("/var/log/pods/x/0.log".into()),
                max_log_line: 16384,
                terminal: false,
                stdin: true,
                stdin_once: false,
                linger_ms: 60_000,
            }),
        },
    ),
    (
        "010008000000020000000000000002000800000002000000000000001700080000000100000000000000",
        || Frame::Request {
            seq: 2,
            request: Request::Hello { version: 1 },
        },
    ),
    (
        "01000800000003000000000000000200080000000300000000000000",
        || Frame::Request {
            seq: 3,
            request: Request::Start,
        },
    ),
    (
        "010008000000040000000000000002000800000004000000000000001800080000000f00000000000000",
        || Frame::Request {
            seq: 4,
            request: Request::Signal { signo: 15 },
        },
    ),
    (
        "01000800000005000000000000000200080000000500000000000000",
        || Frame::Request {
            seq: 5,
            request: Request::KillAll,
        },
    ),
    (
        "01000800000006000000000000000200080000000600000000000000",
        || Frame::Request {
            seq: 6,
            request: Request::ReopenLog,
        },
    ),
    (
        "010008000000070000000000000002000800000007000000000000001d00030000000102031300080000000100000000000000",
        || Frame::Request {
            seq: 7,
            request: Request::Exec(ExecRequest {
                process: Some(vec![1, 2, 3]),
                terminal: true,
            }),
        },
    ),
    (
        "01000800000008000000000000000200080000000800000000000000190008000000050000000000000018000800000009000000000000001a00080000000100000000000000",
        || Frame::Request {
            seq: 8,
            request: Request::ExecSignal {
                exec: 5,
                signo: 9,
                group: true,
            },
        },
    ),
    (
        "0100080000000900000000000000020008000000090000000000000019000800000000000000000000001b000800000050000000000000001c00080000001800000000000000",
        || Frame::Request {
            seq: 9,
            request: Request::Resize {
                exec: 0,
                width: 80,
                height: 24,
            },
        },
    ),
    (
        "0100080000000a000000000000000200080000000a00000000000000",
        || Frame::Request {
            seq: 10,
            request: Request::CloseStdin,
        },
    ),
    (
        "0100080000000b000000000000000200080000000b00000000000000",
        || Frame::Request {
            seq: 11,
            request: Request::AckExit,
        },
    ),
    (
        "0100080000000c000000000000000200080000000c00000000000000",
        || Frame::Request {
            seq: 12,
            request: Request::Quit,
        },
    ),
    (
        "01000800000065000000000000000200080000000100000000000000",
        || Frame::Reply {
            seq: 1,
            reply: Reply::Ok,
        },
    ),
    (
        "010008000000660000000000000002000800000002000000000000001e000800000067120000000000001f00080000006300000000000000",
        || Frame::Reply {
            seq: 2,
            reply: Reply::Created {
                pid: 4711,
                start_time: 99,
            },
        },
    ),
    (
        "010008000000670000000000000002000800000003000000000000001700080000000100000000000000100002000000633123000800000004000000000000001e000800000067120000000000001f00080000006300000000000000240008000000070000000000000025009b00000017000800000001000000000000001e000800000067120000000000001f00080000006300000000000000280008000000890000000000000018000800000009000000000000002b0008000000010000000000000027000800000002000000000000002400080000000000ca67a7fc7a182c0008000000001a3b80a9fc7a182a000800000003000000000000002d00090000004f4f4d4b696c6c6564190008000000050000000000000019000800000006000000000000002600380000002e00080000000a000000000000002a000800000014000000000000002f00080000001e000000000000002100080000001c000000000000002700080000000200000000000000300008000000a00f000000000000",
        || Frame::Reply {
            seq: 3,
            reply: Reply::Snapshot(Snapshot {
                version: 1,
                id: "c1".into(),
                phase: Phase::Exited,
                pid: 4711,
                start_time: 99,
                started_at_ns: 7,
                exit: Some(golden_exit()),
                execs: vec![5, 6],
                log: LogCounters {
                    written_bytes: 10,
                    lost_bytes: 20,
                    write_errors: 30,
                    errno: 28,
                },
                oom_count: 2,
                monitor_pid: 4000,
                dropped_clients: 0,
            }),
        },
    ),
    (
        "0100080000006800000000000000020008000000040000000000000019000800000005000000000000001e00080000006812000000000000",
        || Frame::Reply {
            seq: 4,
            reply: Reply::ExecStarted { exec: 5, pid: 4712 },
        },
    ),
    (
        "0100080000006900000000000000020008000000050000000000000020000400000065786563210008000000020000000000000022000c0000006e6f20737563682066696c65",
        || Frame::Reply {
            seq: 5,
            reply: Reply::Error {
                stage: "exec".into(),
                errno: 2,
                message: "no such file".into(),
            },
        },
    ),
    (
        "010008000000c90000000000000025009b00000017000800000001000000000000001e000800000067120000000000001f00080000006300000000000000280008000000890000000000000018000800000009000000000000002b0008000000010000000000000027000800000002000000000000002400080000000000ca67a7fc7a182c0008000000001a3b80a9fc7a182a000800000003000000000000002d00090000004f4f4d4b696c6c6564",
        || Frame::Event(Event::Exited(golden_exit())),
    ),
    (
        "010008000000ca000000000000002700080000000100000000000000",
        || Frame::Event(Event::Oom { count: 1 }),
    ),
    (
        "010008000000cb000000000000001900080000000500000000000000280008000000010000000000000018000800000000000000000000002900080000000800000000000000",
        || {
            Frame::Event(Event::ExecExited {
                exec: 5,
                code: 1,
                signal: 0,
                at_ns: 8,
            })
        },
    ),
    (
        "010008000000cc000000000000002a000800000014000000000000002100080000001c00000000000000",
        || {
            Frame::Event(Event::LogTrouble {
                lost_bytes: 20,
                errno: 28,
            })
        },
    ),
];

/// What version 2 added.
const GOLDEN_2: &[Golden] = &[
    (
        "0100080000000d000000000000000200080000000e00000000000000140008000000010000000000000031000800000001000000000000003200080000000000000000000000",
        || Frame::Request {
            seq: 14,
            request: Request::Attach(AttachRequest {
                stdin: true,
                stdout: true,
                stderr: false,
            }),
        },
    ),
    (
        "010008000000cd000000000000002700080000000300000000000000",
        || Frame::Event(Event::AttachDropped { count: 3 }),
    ),
];

#[test]
fn golden_frames_of_every_version() {
    for (bytes, frame) in GOLDEN_1.iter().chain(GOLDEN_2) {
        assert_eq!(Frame::decode(&unhex(bytes)).as_ref(), Ok(&frame()));
        assert_eq!(hex(&frame().encode()), *bytes, "{:?}", frame());
    }
}

fn golden_exit() -> ExitRecord {
    ExitRecord {
        version: 1,
        pid: 4711,
        start_time: 99,
        code: 137,
        signal: 9,
        oom_killed: true,
        oom_kill_count: 2,
        started_at_ns: 1_764_000_000_000_000_000,
        finished_at_ns: 1_764_000_009_000_000_000,
        lost_bytes: 3,
        reason: "OOMKilled".to_string(),
    }
}
