//! The compiler against an interpreter of classic BPF.

mod judged;

use super::syscalls::SYSCALLS;
use super::*;

const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;
const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
const KILL_PROCESS: u32 = 0x8000_0000;

/// What a filter looks at.
#[derive(Clone, Copy, Debug)]
struct Call {
    arch: u32,
    number: u32,
    args: [u64; 6],
}

fn call(arch: u32, number: u32) -> Call {
    Call {
        arch,
        number,
        args: [0; 6],
    }
}

/// Runs a program as the kernel would; panics where the kernel would refuse to load it.
fn run(program: &[u8], call: &Call) -> u32 {
    let mut data = Vec::new();
    data.extend(call.number.to_ne_bytes());
    data.extend(call.arch.to_ne_bytes());
    data.extend(0u64.to_ne_bytes());
    call.args
        .iter()
        .for_each(|arg| data.extend(arg.to_ne_bytes()));
    let mut at = 0;
    let mut accumulator = 0u32;
    loop {
        let word: [u8; 8] = program[at * 8..][..8].try_into().unwrap();
        let code = u16::from_ne_bytes([word[0], word[1]]);
        let k = u32::from_ne_bytes(word[4..].try_into().unwrap());
        at += 1;
        let mut branch = |holds: bool| at += usize::from(if holds { word[2] } else { word[3] });
        match code {
            0x20 => {
                let k = k as usize;
                assert!(k.is_multiple_of(4) && k < data.len());
                accumulator = u32::from_ne_bytes(data[k..k + 4].try_into().unwrap());
            }
            0x54 => accumulator &= k,
            0x05 => at += k as usize,
            0x15 => branch(accumulator == k),
            0x25 => branch(accumulator > k),
            0x35 => branch(accumulator >= k),
            0x45 => branch(accumulator & k != 0),
            0x06 => return k,
            other => panic!("instruction {other:#x}"),
        }
    }
}

/// Every jump must land inside, as the kernel checks.
fn assert_loadable(program: &[u8]) {
    let count = program.len() / 8;
    assert!(count <= 4096);
    for at in 0..count {
        let word: [u8; 8] = program[at * 8..][..8].try_into().unwrap();
        let code = u16::from_ne_bytes([word[0], word[1]]);
        let k = u32::from_ne_bytes(word[4..].try_into().unwrap()) as usize;
        let far = match code {
            0x05 => k,
            0x15 | 0x25 | 0x35 => usize::from(word[2].max(word[3])),
            _ => 0,
        };
        assert!(
            at + 1 + far < count || code == 0x06,
            "jump out of the program at {at}"
        );
    }
}

fn judge(profile: &Profile, call: &Call) -> u32 {
    let program = compile(profile).unwrap();
    assert_loadable(&program.bytes);
    run(&program.bytes, call)
}

fn rule(names: &[&str], action: Action, args: &[Arg]) -> Rule {
    Rule {
        names: names.iter().map(ToString::to_string).collect(),
        action,
        args: args.to_vec(),
    }
}

fn arg(index: u8, op: Op, value: u64) -> Arg {
    Arg {
        index,
        value,
        value_two: 0,
        op,
    }
}

fn denying(rules: Vec<Rule>) -> Profile {
    Profile {
        default_action: Action::Errno(1),
        architectures: vec![Arch::X86_64, Arch::X86, Arch::X32],
        flags: None,
        rules,
    }
}

#[test]
fn table_is_sorted_and_has_each_number_once() {
    assert!(SYSCALLS.windows(2).all(|pair| pair[0].0 < pair[1].0));
    for column in 0..3 {
        let mut seen = std::collections::BTreeSet::new();
        for row in SYSCALLS {
            let number = [row.1, row.2, row.3][column];
            assert!(
                number == -1 || seen.insert(number),
                "{} has a number twice",
                row.0
            );
        }
    }
}

#[test]
fn named_calls_are_allowed_and_others_denied_on_every_architecture() {
    let profile = denying(vec![rule(
        &["read", "statx", "no_such_call"],
        Action::Allow,
        &[],
    )]);
    assert_eq!(judge(&profile, &call(X86_64, 0)), ALLOW);
    assert_eq!(judge(&profile, &call(X86_64, 1)), ERRNO | 1);
    assert_eq!(judge(&profile, &call(I386, 3)), ALLOW);
    assert_eq!(judge(&profile, &call(I386, 4)), ERRNO | 1);
    assert_eq!(judge(&profile, &call(X86_64, 0x4000_0000)), ALLOW);
    assert_eq!(judge(&profile, &call(X86_64, 0x4000_0001)), ERRNO | 1);
}

#[test]
fn calls_newer_than_the_profile_fail_with_enosys() {
    let profile = denying(vec![rule(&["read", "statx"], Action::Allow, &[])]);
    assert_eq!(judge(&profile, &call(X86_64, 331)), ERRNO | 1);
    assert_eq!(judge(&profile, &call(X86_64, 333)), ERRNO | 38);
    assert_eq!(
        judge(&profile, &call(X86_64, 0x4000_0000 + 333)),
        ERRNO | 38
    );
    assert_eq!(judge(&profile, &call(I386, 384)), ERRNO | 38);
    let profile = Profile {
        default_action: Action::Allow,
        ..profile
    };
    assert_eq!(judge(&profile, &call(X86_64, 333)), ALLOW);
}

#[test]
fn a_profile_that_names_nothing_is_its_default_action() {
    assert_eq!(judge(&denying(vec![]), &call(X86_64, 400)), ERRNO | 1);
    assert_eq!(judge(&Profile::default(), &call(X86_64, 400)), ALLOW);
}

#[test]
fn unlisted_architectures_are_killed() {
    let profile = Profile {
        architectures: vec![],
        ..denying(vec![])
    };
    assert_eq!(judge(&profile, &call(X86_64, 0)), ERRNO | 1);
    assert_eq!(judge(&profile, &call(I386, 0)), KILL_PROCESS);
    assert_eq!(judge(&profile, &call(X86_64, 0x4000_0000)), KILL_PROCESS);
    assert_eq!(judge(&denying(vec![]), &call(0xc000_00b7, 0)), KILL_PROCESS);
}

#[test]
fn a_rule_without_conditions_beats_those_with() {
    let conditional = rule(&["socket"], Action::Errno(97), &[arg(0, Op::Eq, 16)]);
    let plain = rule(&["socket"], Action::Allow, &[]);
    for rules in [[conditional.clone(), plain.clone()], [plain, conditional]] {
        let mut socket = call(X86_64, 41);
        socket.args[0] = 16;
        assert_eq!(judge(&denying(rules.to_vec()), &socket), ALLOW);
    }
}

#[test]
fn an_argument_named_twice_makes_alternatives() {
    let both = [arg(0, Op::Eq, 1), arg(0, Op::Eq, 5), arg(1, Op::Eq, 9)];
    let profile = denying(vec![rule(&["personality"], Action::Allow, &both)]);
    let answer = |first, second| {
        let mut personality = call(X86_64, 135);
        personality.args[..2].copy_from_slice(&[first, second]);
        judge(&profile, &personality)
    };
    assert_eq!(answer(1, 0), ALLOW);
    assert_eq!(answer(5, 0), ALLOW);
    assert_eq!(answer(0, 9), ALLOW);
    assert_eq!(answer(2, 2), ERRNO | 1);
}

#[test]
fn socketcall_follows_its_calls_but_never_grants_on_unseen_arguments() {
    let mut socketcall = call(I386, 102);
    socketcall.args[0] = 1;
    let plain = rule(&["socket"], Action::Allow, &[]);
    assert_eq!(judge(&denying(vec![plain]), &socketcall), ALLOW);
    let conditional = rule(&["socket"], Action::Allow, &[arg(0, Op::Ne, 40)]);
    assert_eq!(
        judge(&denying(vec![conditional.clone()]), &socketcall),
        ERRNO | 1
    );
    let taking = Profile {
        default_action: Action::Allow,
        rules: vec![Rule {
            action: Action::Errno(1),
            ..conditional
        }],
        ..denying(vec![])
    };
    assert_eq!(judge(&taking, &socketcall), ERRNO | 1);
}

#[test]
fn notify_and_wrong_arguments_are_refused() {
    let profile = denying(vec![rule(&["mount"], Action::Notify, &[])]);
    let error = compile(&profile).unwrap_err();
    assert_eq!(
        error,
        CompileError::Notify {
            subject: "mount".into()
        }
    );
    let profile = Profile {
        default_action: Action::Notify,
        ..denying(vec![])
    };
    assert!(matches!(
        compile(&profile),
        Err(CompileError::Notify { .. })
    ));
    let profile = denying(vec![rule(&["mount"], Action::Allow, &[arg(6, Op::Eq, 0)])]);
    let expected = CompileError::ArgumentIndex {
        name: "mount".into(),
        index: 6,
    };
    assert_eq!(compile(&profile).unwrap_err(), expected);
}

#[test]
fn a_profile_beyond_the_kernels_limit_is_refused() {
    let args = |n: u64| [arg(0, Op::Eq, n << 33 | n), arg(1, Op::Gt, n << 33 | n)];
    let rules = (1..1000)
        .map(|n| rule(&["read"], Action::Allow, &args(n)))
        .collect();
    assert!(matches!(
        compile(&denying(rules)),
        Err(CompileError::TooLarge { .. })
    ));
}

#[test]
fn long_jumps_reach_their_target() {
    let args = |n: u64| [arg(0, Op::Eq, n), arg(1, Op::Ne, n)];
    let rules = (1..150)
        .map(|n| rule(&["read"], Action::Allow, &args(n)))
        .collect();
    let profile = denying(rules);
    for value in [1, 70, 149, 150] {
        let mut read = call(X86_64, 0);
        read.args[..2].copy_from_slice(&[value, 0]);
        assert_eq!(
            judge(&profile, &read),
            if value < 150 { ALLOW } else { ERRNO | 1 }
        );
        read.args[1] = value;
        assert_eq!(judge(&profile, &read), ERRNO | 1);
    }
}

#[test]
fn flags_default_to_spec_allow() {
    let flags = |flags| {
        compile(&Profile {
            flags,
            ..Profile::default()
        })
        .unwrap()
        .flags
    };
    assert_eq!(flags(None), 4);
    assert_eq!(flags(Some(vec![])), 0);
    assert_eq!(
        flags(Some(vec![Flag::Log, Flag::SpecAllow, Flag::Tsync])),
        6
    );
}

fn sys_admin() -> u64 {
    1 << 21
}

#[test]
fn the_default_profile_decides_as_its_table_says() {
    let number = |name: &str| u32::try_from(SYSCALLS.iter().find(|row| row.0 == name).unwrap().1);
    let answer = |caps: u64, name: &str, first: u64| {
        let mut call = call(X86_64, number(name).unwrap());
        call.args[0] = first;
        judge(&default_profile(caps), &call)
    };
    const DENIED: u32 = ERRNO | 1;
    let table = [
        ("read", 0, ALLOW),
        ("ptrace", 0, ALLOW),
        ("mount", 0, DENIED),
        ("unshare", 0, DENIED),
        ("io_uring_setup", 0, DENIED),
        ("keyctl", 0, DENIED),
        ("userfaultfd", 0, DENIED),
        ("bpf", 0, DENIED),
        ("clone", 0x11, ALLOW),
        ("clone", 0x1000_0011, DENIED),
        ("clone", 0xffff_ffff_1000_0011, DENIED),
        ("clone3", 0, ERRNO | 38),
        ("socket", 2, ALLOW),
        ("socket", 16, ALLOW),
        ("socket", 40, DENIED),
        // The kernel takes the lower half of this: AF_VSOCK by the back door.
        ("socket", 0x1_0000_0028, DENIED),
        ("personality", 0xffff_ffff, ALLOW),
        ("personality", 0x40000, DENIED),
    ];
    for (name, first, expected) in table {
        assert_eq!(answer(0, name, first), expected, "{name}({first:#x})");
    }
    for name in ["mount", "unshare", "clone3", "bpf", "setns"] {
        assert_eq!(answer(sys_admin(), name, 0), ALLOW, "{name}");
    }
    assert_eq!(answer(u64::MAX, "keyctl", 0), DENIED);
    assert_eq!(judge(&default_profile(0), &call(X86_64, 500)), ERRNO | 38);
    assert_eq!(
        judge(&default_profile(u64::MAX), &call(X86_64, 500)),
        ERRNO | 38
    );
}

#[test]
fn keys_tell_programs_apart() {
    let one = compile(&default_profile(0)).unwrap();
    let two = compile(&default_profile(sys_admin())).unwrap();
    assert_eq!(one.key(), one.clone().key());
    assert_ne!(one.key(), two.key());
    assert_ne!(
        one.key(),
        Program {
            flags: 0,
            ..one.clone()
        }
        .key()
    );
}

/// Prints what README and reports quote; the bound is the kernel's cost of loading.
#[test]
fn the_default_program_is_small() {
    let start = std::time::Instant::now();
    let profile = default_profile(0);
    let parsed = start.elapsed();
    let program = compile(&profile).unwrap();
    let compiled = start.elapsed() - parsed;
    println!(
        "{} instructions, table read in {parsed:?}, compiled in {compiled:?}",
        program.instructions()
    );
    assert!(program.instructions() < 400);
}

/// In a thread of its own, which is all the filter binds.
#[test]
fn the_kernel_takes_and_enforces_the_default_program() {
    const CLONE_NEWUTS: i32 = 0x0400_0000;
    let program = compile(&default_profile(0)).unwrap();
    let filtered = std::thread::spawn(move || {
        crisp_sys::cred::set_no_new_privs().unwrap();
        let start = std::time::Instant::now();
        crisp_sys::seccomp::load(&program.bytes, program.flags).unwrap();
        println!("loaded in {:?}", start.elapsed());
        let denied = crisp_sys::ns::unshare(CLONE_NEWUTS).unwrap_err().errno;
        let allowed = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        (denied, allowed.lines().any(|line| line == "Seccomp:\t2"))
    });
    assert_eq!(filtered.join().unwrap(), (crisp_sys::Errno::EPERM, true));
}
