//! Profiles in numbers: against libseccomp, and against their meaning told the slow way.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use super::super::compile::alternatives;
use super::super::syscalls::{self, SYSCALLS};
use super::super::*;
use super::{
    ALLOW, Call, ERRNO, I386, KILL_PROCESS, X86_64, assert_loadable, call, rule, run, sys_admin,
};

/// libseccomp in a process of its own, built from `oracle.c` where the test runs.
struct Oracle {
    process: std::process::Child,
    _directory: tempfile::TempDir,
}

impl Oracle {
    /// `None`, with a word about it, where the library is not installed; a failure in CI.
    fn start() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let binary = directory.path().join("oracle");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/seccomp/tests/oracle.c");
        let built = Command::new("cc")
            .args(["-O1", "-Wall", "-Werror", "-o"])
            .arg(&binary)
            .args([source, "-lseccomp"])
            .output();
        match built {
            Ok(output) if output.status.success() => {}
            other => {
                assert!(std::env::var_os("CI").is_none(), "no judge: {other:?}");
                eprintln!("NOT COMPARED: cc with libseccomp's headers is needed: {other:?}");
                return None;
            }
        }
        let process = Command::new(binary)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Some(Self {
            process,
            _directory: directory,
        })
    }

    /// The rules as runc hands them over: redundant ones left out, alternatives split.
    fn program(&mut self, profile: &Profile) -> Vec<u8> {
        let mut text = format!("default {:#x}\n", value(profile.default_action));
        for arch in &profile.architectures {
            match arch {
                Arch::X86 => text += "arch x86\n",
                Arch::X32 => text += "arch x32\n",
                Arch::X86_64 | Arch::Other => {}
            }
        }
        for rule in profile
            .rules
            .iter()
            .filter(|rule| rule.action != profile.default_action)
        {
            let mut indices: Vec<u8> = rule.args.iter().map(|arg| arg.index).collect();
            indices.sort_unstable();
            indices.dedup();
            let groups: Vec<&[Arg]> = match rule.args.len() {
                0 => vec![&[]],
                count if indices.len() < count => rule.args.chunks(1).collect(),
                _ => vec![&rule.args],
            };
            for (name, group) in rule
                .names
                .iter()
                .flat_map(|name| groups.iter().map(move |group| (name, group)))
            {
                text += &format!("rule {:#x} {name} {}", value(rule.action), group.len());
                for arg in *group {
                    let op = match arg.op {
                        Op::Ne => "ne",
                        Op::Lt => "lt",
                        Op::Le => "le",
                        Op::Eq => "eq",
                        Op::Ge => "ge",
                        Op::Gt => "gt",
                        Op::MaskedEq => "masked",
                    };
                    text += &format!(" {} {op} {:#x} {:#x}", arg.index, arg.value, arg.value_two);
                }
                text += "\n";
            }
        }
        text += "end\n";
        self.process
            .stdin
            .as_mut()
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
        let out = self.process.stdout.as_mut().unwrap();
        let mut length = [0; 4];
        out.read_exact(&mut length).expect("the judge spoke");
        let mut program = vec![0; u32::from_ne_bytes(length) as usize];
        out.read_exact(&mut program).unwrap();
        program
    }
}

impl Drop for Oracle {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

/// libseccomp's numbers for actions are the kernel's.
fn value(action: Action) -> u32 {
    match action {
        Action::KillProcess => KILL_PROCESS,
        Action::KillThread => 0,
        Action::Trap => 0x0003_0000,
        Action::Errno(errno) => ERRNO | u32::from(errno),
        Action::Trace(message) => 0x7ff0_0000 | u32::from(message),
        Action::Log => 0x7ffc_0000,
        Action::Allow => ALLOW,
        Action::Notify => unreachable!(),
    }
}

/// xorshift: tests must not depend on chance they cannot repeat.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    /// Values around the borders of halves and of each other.
    fn value(&mut self) -> u64 {
        let small = [
            0,
            1,
            2,
            3,
            0x7fff_ffff,
            0x8000_0000,
            0xffff_fffe,
            0xffff_ffff,
        ];
        let low = small[usize::try_from(self.roll(8)).unwrap()];
        let high = small[usize::try_from(self.roll(8)).unwrap()];
        if self.roll(2) == 0 {
            low
        } else {
            high << 32 | low
        }
    }
}

/// Compares our program with libseccomp's for every number, on each architecture, with many
/// arguments. Where ours says ENOSYS for calls newer than the profile, libseccomp has the default.
fn compare_with(oracle: &mut Oracle, profile: &Profile, dice: &mut Dice, rounds: u64) {
    let ours = compile(profile).unwrap().bytes;
    assert_loadable(&ours);
    let theirs = oracle.program(profile);
    let newest = |column: usize| {
        let names = profile.rules.iter().flat_map(|rule| &rule.names);
        let rows = names.filter_map(|name| SYSCALLS.iter().find(|row| row.0 == name));
        rows.map(|row| [row.1, row.2, row.3][column])
            .max()
            .unwrap_or(-1)
    };
    let denying = matches!(
        profile.default_action,
        Action::Errno(_) | Action::KillProcess | Action::KillThread | Action::Trap
    );
    for (column, arch, base) in [(0, X86_64, 0), (1, I386, 0), (2, X86_64, 0x4000_0000)] {
        let newest = newest(column);
        for number in 0..560u32 {
            for _ in 0..rounds {
                let mut call = call(arch, base + number);
                call.args.iter_mut().for_each(|arg| *arg = dice.value());
                let mut expected = run(&theirs, &call);
                let served = match column {
                    0 => true,
                    1 => profile.architectures.contains(&Arch::X86),
                    _ => profile.architectures.contains(&Arch::X32),
                };
                if !served {
                    // libseccomp kills the thread, we kill the process.
                    assert_eq!(expected, 0);
                    expected = KILL_PROCESS;
                } else if denying && newest >= 0 && i64::from(number) > i64::from(newest) {
                    assert_eq!(expected, value(profile.default_action));
                    expected = ERRNO | 38;
                }
                assert_eq!(run(&ours, &call), expected, "{call:x?} under {profile:#?}");
            }
        }
    }
}

/// Whether libseccomp 2.5.4 is right about calls with these conditions besides those they have.
/// Its trees go wrong where alternatives compare by size (upper halves get merged) or are
/// conjunctions (the second is given up when the first holds halfway).
fn judged_well(rules: &[Rule], names: &[&str], args: &[Arg]) -> bool {
    let mine = alternatives(args);
    let others = rules
        .iter()
        .filter(|rule| names.iter().any(|name| rule.names[0] == *name));
    let mut all: Vec<_> = others.flat_map(|rule| alternatives(&rule.args)).collect();
    all.extend(mine);
    let simple = |condition: &Vec<Arg>| condition.len() == 1 && condition[0].op == Op::Eq;
    all.len() <= 1 || all.iter().all(simple)
}

fn random_profile(dice: &mut Dice, judged: bool) -> Profile {
    let actions = [
        Action::Allow,
        Action::Errno(1),
        Action::Errno(22),
        Action::KillProcess,
        Action::KillThread,
        Action::Trap,
        Action::Log,
        Action::Trace(7),
    ];
    let ops = [Op::Ne, Op::Lt, Op::Le, Op::Eq, Op::Ge, Op::Gt, Op::MaskedEq];
    let mut pick = |count: usize| usize::try_from(dice.roll(count as u64)).unwrap();
    let default_action = actions[pick(actions.len())];
    let architectures = [Arch::X86_64, Arch::X86, Arch::X32][..pick(4)].to_vec();
    // What the judge (libseccomp 2.5.4) knows and what is not carried by socketcall or ipc.
    let plain = |name: &str| syscalls::multiplexed(name).is_none();
    let known: Vec<_> = SYSCALLS
        .iter()
        .filter(|row| row.1.max(row.2).max(row.3) <= 450 || (512..548).contains(&row.3))
        .filter(|row| row.1 < 335 || row.1 > 336)
        .collect();
    let mut used = Vec::new();
    let mut rules = Vec::new();
    for _ in 0..pick(40) {
        let names: Vec<_> = (0..1 + pick(8))
            .map(|_| known[pick(known.len())].0)
            .collect();
        // One action for all conditional rules of a call: which of two different ones wins is
        // decided by the shape of libseccomp's tree, and here by the profile's order.
        let names: Vec<_> = names
            .into_iter()
            .filter(|name| plain(name) && !used.contains(name))
            .collect();
        if names.is_empty() {
            continue;
        }
        used.extend(&names);
        let action = actions[pick(actions.len())];
        for _ in 0..pick(4) {
            let count = [0, 1, 1, 2, 3][pick(5)];
            let args: Vec<Arg> = (0..count)
                .map(|_| Arg {
                    index: u8::try_from(pick(6)).unwrap(),
                    value: 0,
                    value_two: 0,
                    op: ops[pick(ops.len())],
                })
                .collect();
            if judged && !judged_well(&rules, &names, &args) {
                continue;
            }
            rules.push(rule(&names, action, &args));
        }
    }
    for arg in rules.iter_mut().flat_map(|rule| &mut rule.args) {
        (arg.value, arg.value_two) = (dice.value(), dice.value());
    }
    Profile {
        default_action,
        architectures,
        flags: None,
        rules,
    }
}

#[test]
fn random_profiles_mean_what_libseccomp_makes_of_them() {
    let Some(mut oracle) = Oracle::start() else {
        return;
    };
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    for _ in 0..60 {
        let profile = random_profile(&mut dice, true);
        compare_with(&mut oracle, &profile, &mut dice, 6);
    }
}

/// The meaning of a profile, told the slow way.
fn meaning(profile: &Profile, call: &Call) -> u32 {
    let (column, number) = match call.arch {
        I386 => (1, call.number),
        _ if call.number >= 0x4000_0000 => (2, call.number - 0x4000_0000),
        _ => (0, call.number),
    };
    let arch = [Arch::X86_64, Arch::X86, Arch::X32][column];
    if column > 0 && !profile.architectures.contains(&arch) {
        return KILL_PROCESS;
    }
    let number_of = |name: &String| {
        let row = SYSCALLS[SYSCALLS.binary_search_by(|row| row.0.cmp(name)).ok()?];
        u32::try_from([row.1, row.2, row.3][column]).ok()
    };
    let width = if column == 0 {
        u64::MAX
    } else {
        u64::from(u32::MAX)
    };
    let holds = |arg: &Arg| {
        let (actual, value) = (call.args[usize::from(arg.index)] & width, arg.value & width);
        match arg.op {
            Op::Ne => actual != value,
            Op::Lt => actual < value,
            Op::Le => actual <= value,
            Op::Eq => actual == value,
            Op::Ge => actual >= value,
            Op::Gt => actual > value,
            Op::MaskedEq => actual & value == arg.value_two & value,
        }
    };
    let named = |rule: &&Rule| {
        rule.names
            .iter()
            .any(|name| number_of(name) == Some(number))
    };
    let mine = profile.rules.iter().filter(named);
    let mine: Vec<_> = mine
        .filter(|rule| rule.action != profile.default_action)
        .collect();
    let plain = mine.iter().find(|rule| rule.args.is_empty());
    let fits = |rule: &&&Rule| {
        alternatives(&rule.args)
            .iter()
            .any(|conditions| conditions.iter().all(holds))
    };
    if let Some(rule) = plain.or_else(|| mine.iter().find(fits)) {
        return value(rule.action);
    }
    let newest = profile
        .rules
        .iter()
        .flat_map(|rule| &rule.names)
        .filter_map(number_of)
        .max();
    let denies = !matches!(
        profile.default_action,
        Action::Allow | Action::Log | Action::Trace(_)
    );
    match newest {
        Some(newest) if number > newest && denies => ERRNO | 38,
        _ => value(profile.default_action),
    }
}

#[test]
fn random_profiles_mean_what_they_say() {
    let mut dice = Dice(0x2545_f491_4f6c_dd1d);
    for _ in 0..12 {
        let profile = random_profile(&mut dice, false);
        let program = compile(&profile).unwrap().bytes;
        assert_loadable(&program);
        for (arch, base) in [(X86_64, 0), (I386, 0), (X86_64, 0x4000_0000)] {
            for number in (0..560).flat_map(|number| [number; 2]) {
                let mut call = call(arch, base + number);
                call.args.iter_mut().for_each(|arg| *arg = dice.value());
                let expected = meaning(&profile, &call);
                assert_eq!(
                    run(&program, &call),
                    expected,
                    "{call:x?} under {profile:#?}"
                );
            }
        }
    }
}

#[test]
fn the_default_profile_means_what_libseccomp_makes_of_it() {
    let Some(mut oracle) = Oracle::start() else {
        return;
    };
    let mut dice = Dice(0x1234_5678_9abc_def1);
    for caps in [0, sys_admin(), u64::MAX] {
        let mut profile = default_profile(caps);
        // What the judge knows, and can judge: alternatives by size are beyond it, and it lets
        // socketcall pass where its arguments would have to be seen.
        for rule in &mut profile.rules {
            rule.names.retain(|name| {
                SYSCALLS
                    .iter()
                    .any(|row| row.0 == name && row.1.max(row.2) <= 450)
                    && !name.starts_with("uprobe")
                    && !name.starts_with("uretprobe")
                    && name != "socketcall"
                    && name != "ipc"
                    && (rule.args.is_empty() || name != "socket")
            });
        }
        profile.rules.retain(|rule| !rule.names.is_empty());
        compare_with(&mut oracle, &profile, &mut dice, 8);
    }
}
