//! Programs of a few instructions, written out: for what is to be known before there is a plan.
//!
//! In: [`Instruction`]s. Out: a loaded program. Codes are those of `include/uapi/linux/bpf.h`, of the
//! classes BPF_ALU64, BPF_LD, BPF_LDX, BPF_ST, BPF_STX and BPF_JMP.

use std::io;
use std::mem::zeroed;
use std::os::fd::OwnedFd;

use aya_obj::generated::{bpf_cmd, bpf_insn};

use crate::syscall;

/// What an instruction does. `X` takes a second register where there would be a constant.
pub(super) mod code {
    pub(in crate::kernel) const MOVE: u8 = 0xb7;
    pub(in crate::kernel) const MOVE_X: u8 = 0xbf;
    pub(in crate::kernel) const ADD: u8 = 0x07;
    pub(in crate::kernel) const ADD_X: u8 = 0x0f;
    pub(in crate::kernel) const SUBTRACT_X: u8 = 0x1f;
    pub(in crate::kernel) const MULTIPLY_X: u8 = 0x2f;
    pub(in crate::kernel) const NEGATE: u8 = 0x87;
    pub(in crate::kernel) const OR_X: u8 = 0x4f;
    pub(in crate::kernel) const AND_X: u8 = 0x5f;
    pub(in crate::kernel) const XOR: u8 = 0xa7;
    pub(in crate::kernel) const XOR_X: u8 = 0xaf;
    pub(in crate::kernel) const SHIFT_LEFT: u8 = 0x67;
    pub(in crate::kernel) const SHIFT_RIGHT: u8 = 0x77;
    /// Of 64 bits, in two instructions: see [`load_constant`](super::load_constant).
    pub(in crate::kernel) const LOAD_CONSTANT: u8 = 0x18;
    /// From memory, by its bytes.
    pub(in crate::kernel) const LOAD_1: u8 = 0x71;
    pub(in crate::kernel) const LOAD_4: u8 = 0x61;
    pub(in crate::kernel) const LOAD_8: u8 = 0x79;
    /// To memory.
    pub(in crate::kernel) const STORE_8: u8 = 0x7a;
    pub(in crate::kernel) const STORE_8_X: u8 = 0x7b;
    pub(in crate::kernel) const JUMP: u8 = 0x05;
    pub(in crate::kernel) const JUMP_IF_EQUAL: u8 = 0x15;
    pub(in crate::kernel) const JUMP_IF_EQUAL_X: u8 = 0x1d;
    pub(in crate::kernel) const JUMP_UNLESS_EQUAL: u8 = 0x55;
    pub(in crate::kernel) const CALL: u8 = 0x85;
    pub(in crate::kernel) const EXIT: u8 = 0x95;
}

/// Helpers by their number.
pub(super) mod helper {
    pub(in crate::kernel) const GET_CURRENT_TASK: i32 = 35;
    pub(in crate::kernel) const PROBE_READ_KERNEL: i32 = 113;
    pub(in crate::kernel) const SEQ_WRITE: i32 = 127;
    pub(in crate::kernel) const THIS_CPU_PTR: i32 = 154;
}

/// An instruction: code, destination and source register, offset, constant.
#[derive(Clone, Copy)]
pub(super) struct Instruction {
    code: u8,
    destination: u8,
    source: u8,
    offset: i16,
    constant: i32,
}

pub(super) const EXIT: Instruction = instruction(code::EXIT, 0, 0, 0);

pub(super) const fn instruction(
    code: u8,
    destination: u8,
    source: u8,
    constant: i32,
) -> Instruction {
    Instruction {
        code,
        destination,
        source,
        offset: 0,
        constant,
    }
}

/// Loads a constant of 64 bits; with a source that is not zero, what the halves stand for
/// (BPF_PSEUDO_…).
pub(super) const fn load_constant(destination: u8, source: u8, constant: u64) -> [Instruction; 2] {
    let (low, high) = (constant as i32, (constant >> 32) as i32);
    [
        instruction(code::LOAD_CONSTANT, destination, source, low),
        instruction(0, 0, 0, high),
    ]
}

impl Instruction {
    /// The same with an offset: in bytes from the register that is an address, in instructions of a
    /// jump.
    pub(super) const fn at(self, offset: i16) -> Self {
        Self { offset, ..self }
    }

    /// Gives an offset that stands for another the one that it stands for.
    pub(super) fn resolve(&mut self, label: i16, offset: i16) {
        if self.offset == label {
            self.offset = offset;
        }
    }
}

/// Loads a program; `btf_id` is that of what it is for, if its type asks for one.
pub(super) fn load(
    program: &[Instruction],
    prog_type: u32,
    attach_type: u32,
    btf_id: u32,
) -> io::Result<OwnedFd> {
    let code: Vec<bpf_insn> = program
        .iter()
        .map(|instruction| {
            // SAFETY: plain data, for which zero is a valid value.
            let mut insn: bpf_insn = unsafe { zeroed() };
            insn.code = instruction.code;
            insn.set_dst_reg(instruction.destination);
            insn.set_src_reg(instruction.source);
            insn.off = instruction.offset;
            insn.imm = instruction.constant;
            insn
        })
        .collect();
    let mut attr = syscall::attributes();
    // SAFETY: the variant of BPF_PROG_LOAD is the one that is passed below.
    let args = unsafe { &mut attr.__bindgen_anon_3 };
    args.prog_type = prog_type;
    args.insn_cnt = code.len() as u32;
    args.insns = code.as_ptr() as u64;
    args.license = c"GPL".as_ptr() as u64;
    args.expected_attach_type = attach_type;
    args.attach_btf_id = btf_id;
    // SAFETY: instructions and licence outlive the call, which opens a program.
    unsafe { syscall::open(bpf_cmd::BPF_PROG_LOAD, &mut attr) }
}
