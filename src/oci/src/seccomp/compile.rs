//! From a profile to a BPF program.
//!
//! The kernel runs a filter for every system call it cannot answer from its allow bitmap, and once
//! per system call number when the filter is loaded, to make that bitmap. So the shape matters: a
//! chain of comparisons costs a millisecond per load, a binary tree some tens of microseconds. The
//! numbers of each architecture are cut into intervals with the same outcome, the tree searches
//! those, and its leaves return or look at arguments.
//!
//! Meaning (that of runc with libseccomp, so that a profile means the same under every handler):
//! * rules that name the default action are left out; unknown names too;
//! * a rule without conditions beats all rules with conditions for that call; else the first rule
//!   that holds, in profile order, decides;
//! * conditions of one rule must all hold, but if one argument is named twice each stands alone;
//! * 32-bit architectures (x32 among them) compare the lower half of an argument;
//! * on i386 rules for socket and System V IPC calls also cover `socketcall` and `ipc`. Their real
//!   arguments lie behind a pointer no filter can follow: a rule with conditions covers them whole
//!   if it takes away, and not at all if it grants;
//! * where the default denies, calls newer than any the profile names fail with ENOSYS, so that a
//!   C library newer than the profile falls back instead of giving up;
//! * calls of an architecture the profile does not list kill the process.

use std::collections::BTreeMap;

use super::Program;
use super::assemble::{Assembler, Label};
use super::profile::{Action, Arch, Arg, Flag, Op, Profile, Rule};
use super::syscalls::{self, SYSCALLS};

/// Why a profile cannot become a program.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CompileError {
    /// Handing system calls to another process is not supported.
    #[error("seccomp profile asks for SCMP_ACT_NOTIFY ({subject}), which is not supported")]
    Notify {
        /// The default action or the first system call named.
        subject: String,
    },
    /// A condition on an argument that does not exist.
    #[error("seccomp rule for {name} looks at argument {index}, but calls have arguments 0 to 5")]
    ArgumentIndex {
        /// First system call of the rule.
        name: String,
        /// The index.
        index: u8,
    },
    /// The kernel takes at most 4096 instructions.
    #[error("seccomp profile needs {instructions} instructions, the kernel takes 4096")]
    TooLarge {
        /// How many it would need.
        instructions: usize,
    },
}

/// Compiles a profile for processes on x86-64.
///
/// # Errors
/// See [`CompileError`].
pub fn compile(profile: &Profile) -> Result<Program, CompileError> {
    check(profile)?;
    let mut assembler = Assembler::default();
    let strange = assembler.ret(KILL_PROCESS);
    let i386 = match profile.architectures.contains(&Arch::X86) {
        true => {
            let map = Outcomes::of(profile, Abi::I386).intervals(profile, None);
            let tree = map.emit(&mut assembler, true);
            assembler.branch_eq(AUDIT_ARCH_I386, tree, strange)
        }
        false => strange,
    };
    let x32 = profile
        .architectures
        .contains(&Arch::X32)
        .then(|| Outcomes::of(profile, Abi::X32));
    let map = Outcomes::of(profile, Abi::X86_64).intervals(profile, Some(x32));
    let tree = map.emit(&mut assembler, false);
    let entry = assembler.branch_eq(AUDIT_ARCH_X86_64, tree, i386);
    assembler.load(OFFSET_ARCH, entry);
    if assembler.len() > 4096 {
        return Err(CompileError::TooLarge {
            instructions: assembler.len(),
        });
    }
    Ok(Program {
        bytes: assembler.finish().into(),
        flags: flags(profile),
    })
}

const OFFSET_NR: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const OFFSET_ARGS: u32 = 16;
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
const AUDIT_ARCH_I386: u32 = 0x4000_0003;
const X32_BIT: u32 = 0x4000_0000;
const KILL_PROCESS: u32 = 0x8000_0000;
const ERRNO: u32 = 0x0005_0000;
const ENOSYS: u32 = 38;
/// The kernel's MAX_ERRNO.
const MAX_ERRNO: u32 = 4095;

fn check(profile: &Profile) -> Result<(), CompileError> {
    if profile.default_action == Action::Notify {
        return Err(CompileError::Notify {
            subject: "the default action".into(),
        });
    }
    for rule in &profile.rules {
        let name = || rule.names.first().cloned().unwrap_or_default();
        if rule.action == Action::Notify {
            return Err(CompileError::Notify { subject: name() });
        }
        if let Some(arg) = rule.args.iter().find(|arg| arg.index > 5) {
            return Err(CompileError::ArgumentIndex {
                name: name(),
                index: arg.index,
            });
        }
    }
    Ok(())
}

fn flags(profile: &Profile) -> u64 {
    const LOG: u64 = 1 << 1;
    const SPEC_ALLOW: u64 = 1 << 2;
    let Some(flags) = &profile.flags else {
        return SPEC_ALLOW;
    };
    flags.iter().fold(0, |bits, flag| match flag {
        Flag::Log => bits | LOG,
        Flag::SpecAllow => bits | SPEC_ALLOW,
        // The loading process has one thread and no listener.
        Flag::Tsync | Flag::WaitKillableRecv => bits,
    })
}

fn verdict(action: Action) -> u32 {
    match action {
        Action::KillProcess => KILL_PROCESS,
        Action::KillThread => 0,
        Action::Trap => 0x0003_0000,
        Action::Errno(errno) => ERRNO | u32::from(errno).min(MAX_ERRNO),
        Action::Trace(message) => 0x7ff0_0000 | u32::from(message),
        Action::Log => 0x7ffc_0000,
        Action::Allow => 0x7fff_0000,
        Action::Notify => unreachable!("refused before"),
    }
}

/// Whether calls the profile's author could not know of are refused by it, so that ENOSYS is the
/// kinder refusal.
fn denies(action: Action) -> bool {
    match action {
        Action::KillProcess | Action::KillThread | Action::Trap | Action::Errno(_) => true,
        Action::Trace(_) | Action::Log | Action::Allow | Action::Notify => false,
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Abi {
    X86_64,
    I386,
    X32,
}

impl Abi {
    fn number(self, name: &str) -> Option<u32> {
        let at = SYSCALLS.binary_search_by(|row| row.0.cmp(name)).ok()?;
        let (_, x86_64, i386, x32) = SYSCALLS[at];
        let number = match self {
            Abi::X86_64 => x86_64,
            Abi::I386 => i386,
            Abi::X32 => x32,
        };
        u32::try_from(number).ok()
    }
}

/// What one system call comes to.
#[derive(Clone, Debug, PartialEq)]
enum Outcome {
    Always(u32),
    /// The first whose conditions hold, else the default.
    Cases {
        cases: Vec<(Vec<Arg>, u32)>,
        otherwise: u32,
    },
}

/// The outcomes of the calls a profile names for one ABI, and the newest of them.
struct Outcomes {
    calls: BTreeMap<u32, Outcome>,
    /// `None` if the profile names no call of this ABI.
    newest: Option<u32>,
}

impl Outcomes {
    fn of(profile: &Profile, abi: Abi) -> Self {
        let mut outcomes = Self {
            calls: BTreeMap::new(),
            newest: None,
        };
        for rule in &profile.rules {
            for name in &rule.names {
                let direct = abi.number(name);
                outcomes.newest = outcomes.newest.max(direct);
                if rule.action == profile.default_action {
                    continue;
                }
                if let Some(number) = direct {
                    outcomes.add(profile, rule, number, alternatives(&rule.args));
                }
                if abi == Abi::I386
                    && let Some((number, call)) = syscalls::multiplexed(name)
                    && (rule.args.is_empty() || !denies(profile.default_action))
                {
                    let only = Arg {
                        index: 0,
                        value: call.into(),
                        value_two: 0,
                        op: Op::Eq,
                    };
                    outcomes.add(profile, rule, number, vec![vec![only]]);
                }
            }
        }
        outcomes
    }

    fn add(&mut self, profile: &Profile, rule: &Rule, number: u32, conditions: Vec<Vec<Arg>>) {
        let action = verdict(rule.action);
        let otherwise = verdict(profile.default_action);
        let outcome = self.calls.entry(number).or_insert(Outcome::Cases {
            cases: Vec::new(),
            otherwise,
        });
        match outcome {
            Outcome::Always(_) => {}
            Outcome::Cases { .. } if conditions.is_empty() => *outcome = Outcome::Always(action),
            Outcome::Cases { cases, .. } => {
                cases.extend(conditions.into_iter().map(|all| (all, action)));
            }
        }
    }

    /// Lays the numbers out over the whole range. On x86-64 the upper part belongs to x32, be it
    /// served (`Some(Some)`) or not.
    fn intervals(self, profile: &Profile, x32: Option<Option<Outcomes>>) -> Intervals {
        let default = Outcome::Always(verdict(profile.default_action));
        let newer = match denies(profile.default_action) {
            true => Outcome::Always(ERRNO | ENOSYS),
            false => default.clone(),
        };
        let mut map = Intervals(Vec::new());
        map.lay(0, self, &default, &newer);
        match x32 {
            None => {}
            Some(Some(x32)) => map.lay(X32_BIT, x32, &default, &newer),
            Some(None) => map.push(X32_BIT, Outcome::Always(KILL_PROCESS)),
        }
        map
    }
}

/// Conditions of a rule as alternatives of conjunctions; empty when there are none.
pub(super) fn alternatives(args: &[Arg]) -> Vec<Vec<Arg>> {
    let mut seen = [false; 6];
    let twice = args
        .iter()
        .any(|arg| std::mem::replace(&mut seen[usize::from(arg.index)], true));
    match args {
        [] => Vec::new(),
        _ if twice => args.iter().map(|arg| vec![*arg]).collect(),
        _ => vec![args.to_vec()],
    }
}

/// First number of each interval and what comes of the calls in it; starts at 0.
struct Intervals(Vec<(u32, Outcome)>);

impl Intervals {
    fn lay(&mut self, base: u32, outcomes: Outcomes, default: &Outcome, newer: &Outcome) {
        let mut next = 0;
        for (number, outcome) in outcomes.calls {
            if number > next {
                self.push(base + next, default.clone());
            }
            self.push(base + number, outcome);
            next = number + 1;
        }
        let Some(newest) = outcomes.newest else {
            return self.push(base, default.clone());
        };
        if next <= newest {
            self.push(base + next, default.clone());
        }
        self.push(base + next.max(newest + 1), newer.clone());
    }

    fn push(&mut self, start: u32, outcome: Outcome) {
        if self.0.last().is_none_or(|last| last.1 != outcome) {
            self.0.push((start, outcome));
        }
    }

    fn emit(&self, assembler: &mut Assembler, narrow: bool) -> Label {
        let root = tree(&self.0, assembler, narrow);
        assembler.load(OFFSET_NR, root)
    }
}

fn tree(intervals: &[(u32, Outcome)], assembler: &mut Assembler, narrow: bool) -> Label {
    if let [(start, outcome)] = intervals {
        // On x86-64 the halves of an argument matter, for x32 calls only the lower one.
        return leaf(outcome, assembler, narrow || *start >= X32_BIT);
    }
    let (lower, upper) = intervals.split_at(intervals.len() / 2);
    let above = tree(upper, assembler, narrow);
    let below = tree(lower, assembler, narrow);
    assembler.branch_ge(upper[0].0, above, below)
}

fn leaf(outcome: &Outcome, assembler: &mut Assembler, narrow: bool) -> Label {
    let (cases, otherwise) = match outcome {
        Outcome::Always(action) => return assembler.ret(*action),
        Outcome::Cases { cases, otherwise } => (cases, otherwise),
    };
    let mut next = assembler.ret(*otherwise);
    for (conditions, action) in cases.iter().rev() {
        let mut hit = assembler.ret(*action);
        for condition in conditions.iter().rev() {
            hit = compare(condition, assembler, narrow, hit, next);
        }
        next = hit;
    }
    next
}

/// Emits one comparison that goes on at `yes` or `no`.
fn compare(arg: &Arg, assembler: &mut Assembler, narrow: bool, yes: Label, no: Label) -> Label {
    let low_at = OFFSET_ARGS + 8 * u32::from(arg.index);
    let (low_half, high_half) = halves(arg.value);
    // Every operator is one of equal, greater, greater or equal, perhaps turned round.
    let (yes, no) = match arg.op {
        Op::Ne | Op::Lt | Op::Le => (no, yes),
        Op::Eq | Op::Ge | Op::Gt | Op::MaskedEq => (yes, no),
    };
    match arg.op {
        Op::MaskedEq => {
            let (low_want, high_want) = halves(arg.value & arg.value_two);
            let low = masked(assembler, low_at, low_half, low_want, yes, no);
            match narrow {
                true => low,
                false => masked(assembler, low_at + 4, high_half, high_want, low, no),
            }
        }
        Op::Eq | Op::Ne => {
            let test = assembler.branch_eq(low_half, yes, no);
            let low = assembler.load(low_at, test);
            if narrow {
                return low;
            }
            let test = assembler.branch_eq(high_half, low, no);
            assembler.load(low_at + 4, test)
        }
        Op::Ge | Op::Lt | Op::Gt | Op::Le => {
            let test = match arg.op {
                Op::Ge | Op::Lt => assembler.branch_ge(low_half, yes, no),
                _ => assembler.branch_gt(low_half, yes, no),
            };
            let low = assembler.load(low_at, test);
            if narrow {
                return low;
            }
            let equal = assembler.branch_eq(high_half, low, no);
            let test = assembler.branch_gt(high_half, yes, equal);
            assembler.load(low_at + 4, test)
        }
    }
}

fn masked(
    assembler: &mut Assembler,
    offset: u32,
    mask: u32,
    want: u32,
    yes: Label,
    no: Label,
) -> Label {
    if mask == 0 {
        return yes;
    }
    let test = assembler.branch_eq(want, yes, no);
    let test = if mask == u32::MAX {
        test
    } else {
        assembler.and(mask, test)
    };
    assembler.load(offset, test)
}

/// Lower and upper half.
fn halves(value: u64) -> (u32, u32) {
    let bytes = value.to_le_bytes();
    let [a, b, c, d, e, f, g, h] = bytes;
    (
        u32::from_le_bytes([a, b, c, d]),
        u32::from_le_bytes([e, f, g, h]),
    )
}
