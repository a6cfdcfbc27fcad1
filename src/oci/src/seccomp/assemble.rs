//! Classic BPF, written from the end: jumps go forward only, so whoever emits a jump already knows
//! where it leads.

use std::collections::HashMap;

/// Where control can go: an emitted instruction, counted from the end of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Label(usize);

/// A program under construction.
#[derive(Default)]
pub(super) struct Assembler {
    /// Last instruction first.
    instructions: Vec<Instruction>,
    /// The latest `ret` of each value, to be shared by jumps that reach it.
    returns: HashMap<u32, Label>,
}

#[derive(Clone, Copy)]
struct Instruction {
    code: u16,
    jump_true: u8,
    jump_false: u8,
    k: u32,
}

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const JUMP_EQ: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_GT: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
const JUMP_GE: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

/// A shared `ret` is used again while it is this near; conditional jumps reach 255 instructions,
/// and what is emitted between asking for it and jumping there must fit as well.
const SHARED_WITHIN: usize = 128;

impl Assembler {
    /// Number of instructions so far.
    pub(super) fn len(&self) -> usize {
        self.instructions.len()
    }

    /// `return value`.
    pub(super) fn ret(&mut self, value: u32) -> Label {
        match self.returns.get(&value) {
            Some(label) if self.len() - label.0 < SHARED_WITHIN => *label,
            _ => {
                let label = self.push(RETURN, 0, 0, value);
                self.returns.insert(value, label);
                label
            }
        }
    }

    /// Loads the word at `offset` of the call's data and goes on at `next`.
    pub(super) fn load(&mut self, offset: u32, next: Label) -> Label {
        self.fall_to(next);
        self.push(LOAD, 0, 0, offset)
    }

    /// Masks the loaded word and goes on at `next`.
    pub(super) fn and(&mut self, mask: u32, next: Label) -> Label {
        self.fall_to(next);
        self.push(AND, 0, 0, mask)
    }

    /// Branches on `word == k`.
    pub(super) fn branch_eq(&mut self, k: u32, yes: Label, no: Label) -> Label {
        self.branch(JUMP_EQ, k, yes, no)
    }

    /// Branches on `word > k`.
    pub(super) fn branch_gt(&mut self, k: u32, yes: Label, no: Label) -> Label {
        self.branch(JUMP_GT, k, yes, no)
    }

    /// Branches on `word >= k`.
    pub(super) fn branch_ge(&mut self, k: u32, yes: Label, no: Label) -> Label {
        self.branch(JUMP_GE, k, yes, no)
    }

    /// The program as an array of `struct sock_filter`.
    pub(super) fn finish(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.len() * 8);
        for instruction in self.instructions.iter().rev() {
            bytes.extend(instruction.code.to_ne_bytes());
            bytes.extend([instruction.jump_true, instruction.jump_false]);
            bytes.extend(instruction.k.to_ne_bytes());
        }
        bytes
    }

    fn push(&mut self, code: u16, jump_true: u8, jump_false: u8, k: u32) -> Label {
        self.instructions.push(Instruction {
            code,
            jump_true,
            jump_false,
            k,
        });
        Label(self.len() - 1)
    }

    /// Instructions to skip from the next one to be emitted.
    fn distance(&self, to: Label) -> usize {
        self.len() - to.0 - 1
    }

    fn fall_to(&mut self, next: Label) {
        if self.distance(next) > 0 {
            self.jump(next);
        }
    }

    fn jump(&mut self, to: Label) -> Label {
        let k = u32::try_from(self.distance(to)).expect("programs are far shorter than 2^32");
        self.push(JUMP, 0, 0, k)
    }

    fn branch(&mut self, code: u16, k: u32, mut yes: Label, mut no: Label) -> Label {
        loop {
            // A conditional jump skips at most 255 instructions; farther ones go by way of a
            // plain jump. Each makes the other target one farther, hence the loop.
            match (
                u8::try_from(self.distance(yes)),
                u8::try_from(self.distance(no)),
            ) {
                (Ok(jump_true), Ok(jump_false)) => {
                    return self.push(code, jump_true, jump_false, k);
                }
                (Err(_), _) => yes = self.jump(yes),
                (_, Err(_)) => no = self.jump(no),
            }
        }
    }
}
