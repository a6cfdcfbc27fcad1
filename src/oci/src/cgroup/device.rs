//! The device policy: the devices controller on v1, a BPF program on v2.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use crisp_sys::bpf;

use super::{Cgroup, CgroupError, DeviceKind, DeviceRule, write};

impl DeviceRule {
    /// Everything is allowed: for privileged containers, and for groups that only hold others.
    pub const ALLOW_ALL: Self = Self {
        allow: true,
        kind: DeviceKind::All,
        major: None,
        minor: None,
        access: Self::ALL,
    };

    /// Whether the rule decides for every device and every access.
    fn decides_all(&self) -> bool {
        let every = self.kind == DeviceKind::All && self.major.is_none() && self.minor.is_none();
        every && self.access & Self::ALL == Self::ALL
    }
}

impl Cgroup {
    /// Replaces the device policy. On v2 the new one takes the old one's place at once; on v1
    /// everything is denied for a moment in between (files that are open stay so).
    ///
    /// # Errors
    /// [`CgroupError::NoDevicePolicy`], [`CgroupError::Devices`], [`CgroupError::Set`].
    pub fn set_devices(&self, rules: &[DeviceRule]) -> Result<(), CgroupError> {
        apply(self, rules, false)
    }
}

pub(super) fn apply(group: &Cgroup, rules: &[DeviceRule], fresh: bool) -> Result<(), CgroupError> {
    let (base, rules) = effective(rules);
    if fresh && base && rules.is_empty() {
        // What a new group starts with; nothing to enforce, so a host that cannot is fine.
        return Ok(());
    }
    match (
        group.controller("devices").filter(|_| !group.v2),
        group.unified(),
    ) {
        (Some(dir), _) => apply_v1(dir, base, rules),
        (None, Some(dir)) => apply_v2(dir, base, rules),
        (None, None) => Err(CgroupError::NoDevicePolicy),
    }
}

/// What holds for devices no rule names, and the rules that can still make a difference.
fn effective(rules: &[DeviceRule]) -> (bool, &[DeviceRule]) {
    match rules.iter().rposition(DeviceRule::decides_all) {
        Some(at) => (rules[at].allow, &rules[at + 1..]),
        None => (false, rules),
    }
}

fn apply_v1(dir: &Path, base: bool, rules: &[DeviceRule]) -> Result<(), CgroupError> {
    let set = |allow: bool, value: String| {
        let path = dir.join(if allow {
            "devices.allow"
        } else {
            "devices.deny"
        });
        write(&path, &value).map_err(|source| CgroupError::Set {
            path,
            value,
            source,
        })
    };
    set(base, "a".into())?;
    for rule in rules {
        for value in v1_lines(rule) {
            set(rule.allow, value)?;
        }
    }
    Ok(())
}

fn v1_lines(rule: &DeviceRule) -> Vec<String> {
    let number = |number: Option<u32>| number.map_or("*".to_owned(), |n| n.to_string());
    let mut access = String::new();
    for (bit, letter) in [
        (DeviceRule::READ, 'r'),
        (DeviceRule::WRITE, 'w'),
        (DeviceRule::MKNOD, 'm'),
    ] {
        if rule.access & bit != 0 {
            access.push(letter);
        }
    }
    if access.is_empty() {
        return Vec::new();
    }
    // For v1 `a` means every device whatever else the line says.
    let kinds: &[char] = match rule.kind {
        DeviceKind::All => &['b', 'c'],
        DeviceKind::Block => &['b'],
        DeviceKind::Char => &['c'],
    };
    let line = |kind| {
        format!(
            "{kind} {}:{} {access}",
            number(rule.major),
            number(rule.minor)
        )
    };
    kinds.iter().map(line).collect()
}

fn apply_v2(dir: &Path, base: bool, rules: &[DeviceRule]) -> Result<(), CgroupError> {
    let fail = |source| CgroupError::Devices {
        path: dir.to_path_buf(),
        source,
    };
    let opened = File::open(dir);
    let group = opened.map_err(|source: io::Error| CgroupError::Open {
        path: dir.to_path_buf(),
        source,
    })?;
    let program = bpf::prog_load_cgroup_device(&program(base, rules)).map_err(fail)?;
    let mut old = Vec::new();
    for id in bpf::prog_query(group.as_fd()).map_err(fail)? {
        old.push(bpf::prog_by_id(id).map_err(fail)?);
    }
    // All attached programs must allow: the new one replaces one of the old, the rest go.
    let replaced = old.pop();
    bpf::prog_attach(
        group.as_fd(),
        program.as_fd(),
        replaced.as_ref().map(AsFd::as_fd),
    )
    .map_err(fail)?;
    for other in old {
        bpf::prog_detach(group.as_fd(), other.as_fd()).map_err(fail)?;
    }
    Ok(())
}

// linux/bpf.h
const TYPE_BLOCK: i32 = 1;
const TYPE_CHAR: i32 = 2;
const ACCESS_MKNOD: i32 = 1;
const ACCESS_READ: i32 = 2;
const ACCESS_WRITE: i32 = 4;

const LOAD_WORD: u8 = 0x61; // BPF_LDX | BPF_MEM | BPF_W
const MOVE: u8 = 0xb7; // BPF_ALU64 | BPF_MOV | BPF_K
const MOVE_REGISTER: u8 = 0xbf; // BPF_ALU64 | BPF_MOV | BPF_X
const AND: u8 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const SHIFT_RIGHT: u8 = 0x74; // BPF_ALU | BPF_RSH | BPF_K
const JUMP_NE: u8 = 0x55; // BPF_JMP | BPF_JNE | BPF_K
const JUMP_SET: u8 = 0x45; // BPF_JMP | BPF_JSET | BPF_K
const JUMP: u8 = 0x05; // BPF_JMP | BPF_JA
const EXIT: u8 = 0x95; // BPF_JMP | BPF_EXIT

const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
/// Accesses asked for that no rule has decided yet.
const WANTED: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// A program that decides as the rules do, later ones first. A rule may speak of some of the
/// accesses asked for (an open for reading and writing asks for both), so what is wanted shrinks
/// until it is granted altogether or a part of it is refused.
fn program(base: bool, rules: &[DeviceRule]) -> Vec<u8> {
    let mut code = Code::default();
    // struct bpf_cgroup_dev_ctx { access << 16 | kind, major, minor }
    code.push(LOAD_WORD, KIND, CONTEXT, 0, 0);
    code.push(LOAD_WORD, MAJOR, CONTEXT, 4, 0);
    code.push(LOAD_WORD, MINOR, CONTEXT, 8, 0);
    code.push(MOVE_REGISTER, WANTED, KIND, 0, 0);
    code.push(AND, KIND, 0, 0, 0xffff);
    code.push(SHIFT_RIGHT, WANTED, 0, 0, 16);
    for rule in rules.iter().rev() {
        code.rule(rule);
    }
    code.answer(base);
    code.0
}

#[derive(Default)]
struct Code(Vec<u8>);

impl Code {
    fn push(&mut self, code: u8, to: u8, from: u8, offset: i16, value: i32) {
        self.0.extend([code, to | from << 4]);
        self.0.extend(offset.to_ne_bytes());
        self.0.extend(value.to_ne_bytes());
    }

    fn answer(&mut self, allow: bool) {
        self.push(MOVE, RESULT, 0, 0, i32::from(allow));
        self.push(EXIT, 0, 0, 0, 0);
    }

    fn rule(&mut self, rule: &DeviceRule) {
        let access = access_bits(rule.access);
        let mut conditions = Vec::new();
        match rule.kind {
            DeviceKind::All => {}
            DeviceKind::Block => conditions.push((KIND, TYPE_BLOCK)),
            DeviceKind::Char => conditions.push((KIND, TYPE_CHAR)),
        }
        for (register, number) in [(MAJOR, rule.major), (MINOR, rule.minor)] {
            match number.map(i32::try_from) {
                None => {}
                Some(Ok(number)) => conditions.push((register, number)),
                // No device has such a number.
                Some(Err(_)) => return,
            }
        }
        // Instructions of either action; a condition that fails skips the others and those.
        const ACTION: i16 = 4;
        let mut rest = i16::try_from(conditions.len()).expect("at most three");
        for (register, number) in conditions {
            rest -= 1;
            self.push(JUMP_NE, register, 0, rest + ACTION, number);
        }
        if rule.allow {
            self.push(AND, WANTED, 0, 0, !access);
            self.push(JUMP_NE, WANTED, 0, 2, 0);
        } else {
            self.push(JUMP_SET, WANTED, 0, 1, access);
            self.push(JUMP, 0, 0, 2, 0);
        }
        self.answer(rule.allow);
    }
}

fn access_bits(access: u8) -> i32 {
    let pairs = [
        (DeviceRule::READ, ACCESS_READ),
        (DeviceRule::WRITE, ACCESS_WRITE),
        (DeviceRule::MKNOD, ACCESS_MKNOD),
    ];
    pairs
        .iter()
        .filter(|(bit, _)| access & bit != 0)
        .map(|(_, bit)| bit)
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(
        allow: bool,
        kind: DeviceKind,
        major: u32,
        minor: Option<u32>,
        access: u8,
    ) -> DeviceRule {
        DeviceRule {
            allow,
            kind,
            major: Some(major),
            minor,
            access,
        }
    }

    /// Runs a program as the kernel would.
    fn run(program: &[u8], kind: i32, major: i32, minor: i32, access: i32) -> bool {
        let context = [access << 16 | kind, major, minor];
        let mut registers = [0i64; 6];
        let mut at = 0;
        loop {
            let insn: [u8; 8] = program[at * 8..][..8].try_into().unwrap();
            let (to, from) = (usize::from(insn[1] & 15), usize::from(insn[1] >> 4));
            let offset = i16::from_ne_bytes([insn[2], insn[3]]);
            let value = i32::from_ne_bytes(insn[4..].try_into().unwrap());
            at += 1;
            let mut jump = |holds: bool| {
                if holds {
                    at = at.checked_add_signed(offset.into()).unwrap();
                }
            };
            match insn[0] {
                LOAD_WORD => registers[to] = context[usize::try_from(offset).unwrap() / 4].into(),
                MOVE => registers[to] = value.into(),
                MOVE_REGISTER => registers[to] = registers[from],
                AND => registers[to] &= i64::from(value.cast_unsigned()),
                SHIFT_RIGHT => registers[to] >>= value,
                JUMP_NE => jump(registers[to] != i64::from(value)),
                JUMP_SET => jump(registers[to] & i64::from(value) != 0),
                JUMP => jump(true),
                EXIT => return registers[0] != 0,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn nothing_is_allowed_without_a_rule() {
        let (base, rest) = effective(&[]);
        assert!(!run(&program(base, rest), TYPE_CHAR, 1, 3, ACCESS_READ));
    }

    #[test]
    fn later_rules_win_for_the_accesses_they_name() {
        let rules = [
            DeviceRule {
                allow: false,
                ..DeviceRule::ALLOW_ALL
            },
            rule(true, DeviceKind::Char, 1, Some(3), DeviceRule::READ),
            rule(true, DeviceKind::Char, 1, Some(3), DeviceRule::WRITE),
            rule(true, DeviceKind::All, 8, None, DeviceRule::ALL),
            rule(false, DeviceKind::Block, 8, Some(1), DeviceRule::WRITE),
        ];
        let (base, rest) = effective(&rules);
        assert!(!base && rest.len() == 4);
        let program = program(base, rest);
        let both = ACCESS_READ | ACCESS_WRITE;
        // Two rules together grant what an open for both asks for.
        assert!(run(&program, TYPE_CHAR, 1, 3, both));
        assert!(!run(&program, TYPE_CHAR, 1, 3, ACCESS_MKNOD));
        assert!(!run(&program, TYPE_BLOCK, 1, 3, ACCESS_READ));
        assert!(!run(&program, TYPE_CHAR, 1, 5, ACCESS_READ));
        assert!(run(&program, TYPE_BLOCK, 8, 0, both));
        assert!(run(&program, TYPE_BLOCK, 8, 1, ACCESS_READ));
        assert!(!run(&program, TYPE_BLOCK, 8, 1, both));
        assert!(run(&program, TYPE_CHAR, 8, 1, both | ACCESS_MKNOD));
    }

    #[test]
    fn rules_before_one_for_everything_do_not_matter() {
        let rules = [
            rule(false, DeviceKind::Char, 1, None, 7),
            DeviceRule::ALLOW_ALL,
        ];
        let (base, rest) = effective(&rules);
        assert!(base && rest.is_empty());
        assert!(run(&program(base, rest), TYPE_CHAR, 1, 3, ACCESS_READ));
    }

    #[test]
    fn v1_lines_name_both_kinds() {
        let lines = v1_lines(&rule(true, DeviceKind::All, 8, None, 5));
        assert_eq!(lines, ["b 8:* rm", "c 8:* rm"]);
        assert!(v1_lines(&rule(true, DeviceKind::All, 8, None, 0)).is_empty());
    }
}
