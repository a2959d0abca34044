//! The kernel's symbols by a program that is called with each of them: the core kernel's whose names
//! are wanted, and what follows each of these.
//!
//! In: the wanted names, and from BTF where a symbol has its name and address. Out: those symbols,
//! ascending. To print a line of /proc/kallsyms takes the kernel five times as long as to find the symbol
//! (`s_show`, `kernel/kallsyms.c`), and of a hundred thousand lines some hundred are of use: here nothing
//! is printed. The iterator `ksym` came with 6.0.
//! Invariant: more may be passed on than what is wanted, never less.

use std::array;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, ensure};
use aya_obj::generated::{
    BPF_PSEUDO_MAP_VALUE, bpf_attach_type::BPF_TRACE_ITER, bpf_cmd,
    bpf_map_type::BPF_MAP_TYPE_ARRAY, bpf_prog_type::BPF_PROG_TYPE_TRACING,
};

use crate::kernel::assembly::code::*;
use crate::kernel::assembly::{EXIT, Instruction, helper, instruction, load, load_constant};
use crate::kernel::btf::Btf;
use crate::kernel::sieve::{MULTIPLIER, PLACE_BITS, PLACES, SUFFIX, Sieve, each_byte};
use crate::syscall;

/// The function whose arguments a program of the iterator has (`kernel/kallsyms.c`).
const ITERATOR: &str = "bpf_iter_ksym";
/// What it is called with.
const SYMBOL: &str = "kallsym_iter";
/// The types that are to be known.
pub const TYPES: [&str; 2] = [ITERATOR, SYMBOL];

/// What the program writes down: the address, eight bytes of the module's name, and the name.
const RECORD: usize = 128;
const NAME: usize = RECORD - 16;
/// How much is asked for at a time. Every symbol of a module is written down, so that not many of them
/// are gone through before it is seen that the core kernel's have ended.
const BUFFER: usize = 16 * RECORD;

/// Where a symbol has what, in bytes.
struct Layout {
    name: i16,
    module: i16,
    address: i16,
    is_shown: i16,
}

impl Layout {
    fn of(btf: &Btf) -> Option<Self> {
        let symbol = btf.structure(SYMBOL)?;
        let member = |name: &str| i16::try_from(symbol.members.get(name)?.0).ok();
        Some(Self {
            name: member("name")?,
            module: member("module_name")?,
            address: member("value")?,
            is_shown: member("show_value")?,
        })
    }
}

/// Passes on symbols as their address and name. Of addresses that the kernel hides it passes on none.
///
/// # Errors
///
/// The kernel has no such iterator, or does not let us have it.
pub(super) fn each<'w>(
    btf: &Btf,
    wanted: impl IntoIterator<Item = &'w [u8]>,
    mut each: impl FnMut(u64, &[u8]),
) -> Result<()> {
    let iterator = btf.function(ITERATOR);
    let (iterator, layout) = iterator
        .zip(Layout::of(btf))
        .context("the kernel has no iterator over its symbols")?;
    let table = table(wanted)?;
    let program = load(
        &program(&layout, &table),
        BPF_PROG_TYPE_TRACING as u32,
        BPF_TRACE_ITER as u32,
        iterator.id,
    );
    let program = program.context("failed to load the program that lists symbols")?;
    let mut symbols = BufReader::with_capacity(BUFFER, open(&program)?);
    let mut record = [0; RECORD];
    while !symbols.fill_buf()?.is_empty() {
        symbols.read_exact(&mut record)?;
        let word = |at: usize| u64::from_le_bytes(array::from_fn(|index| record[at + index]));
        let (address, module) = (word(0), word(8));
        if module as u8 != 0 {
            break;
        }
        let name = &record[RECORD - NAME..];
        // What is wanted is shorter.
        let end = memchr::memchr(0, name).unwrap_or(NAME);
        each(address, &name[..end]);
    }
    Ok(())
}

/// The map that the program looks into: a byte for each place, and behind them the address of a symbol
/// that was written down, until the next is.
fn table<'w>(wanted: impl IntoIterator<Item = &'w [u8]>) -> Result<OwnedFd> {
    let wanted: Vec<_> = wanted.into_iter().collect();
    ensure!(
        wanted.iter().all(|name| name.len() < NAME),
        "a name is too long"
    );
    let mut value = [0u8; PLACES + 8];
    value[..PLACES].copy_from_slice(Sieve::new(wanted).places());
    let mut attr = syscall::attributes();
    // SAFETY: the variant of BPF_MAP_CREATE is the one that is passed below.
    let args = unsafe { &mut attr.__bindgen_anon_1 };
    args.map_type = BPF_MAP_TYPE_ARRAY as u32;
    args.key_size = 4;
    args.value_size = value.len() as u32;
    args.max_entries = 1;
    // SAFETY: nothing is pointed to.
    let map = unsafe { syscall::open(bpf_cmd::BPF_MAP_CREATE, &mut attr) };
    let map = map.context("failed to create a map")?;
    let mut attr = syscall::attributes();
    let key = 0u32;
    // SAFETY: the variant of BPF_MAP_UPDATE_ELEM is the one that is passed below.
    let args = unsafe { &mut attr.__bindgen_anon_2 };
    args.map_fd = map.as_raw_fd() as u32;
    args.key = &raw const key as u64;
    args.__bindgen_anon_1.value = value.as_ptr() as u64;
    // SAFETY: key and value are as long as the map says and outlive the call.
    unsafe { syscall::bpf(bpf_cmd::BPF_MAP_UPDATE_ELEM, &mut attr) }
        .context("failed to fill a map")?;
    Ok(map)
}

/// A file that calls the program with each symbol and has what it writes.
fn open(program: &OwnedFd) -> Result<File> {
    let mut attr = syscall::attributes();
    attr.link_create.__bindgen_anon_1.prog_fd = program.as_raw_fd() as u32;
    attr.link_create.attach_type = BPF_TRACE_ITER as u32;
    // SAFETY: nothing is pointed to.
    let link = unsafe { syscall::open(bpf_cmd::BPF_LINK_CREATE, &mut attr) };
    let link = link.context("failed to attach the program that lists symbols")?;
    let mut attr = syscall::attributes();
    attr.iter_create.link_fd = link.as_raw_fd() as u32;
    // SAFETY: nothing is pointed to.
    let file = unsafe { syscall::open(bpf_cmd::BPF_ITER_CREATE, &mut attr) };
    Ok(file.context("failed to begin with the symbols")?.into())
}

/// Registers: those that calls leave alone, the frame, and the others as they are needed.
const CONTEXT: u8 = 6;
const THE_SYMBOL: u8 = 7;
const TABLE: u8 = 8;
const ADDRESS: u8 = 9;
const FRAME: u8 = 10;

/// The program. It writes down a symbol that the table has, one of a module, and the next with a higher
/// address than the last that it wrote for these reasons.
fn program(layout: &Layout, table: &OwnedFd) -> Vec<Instruction> {
    /// Stands for the end of the program until it is known.
    const END: i16 = i16::MAX;
    let last = PLACES as i16;
    let at = |field: i16, word: usize| field + 8 * word as i16;
    let mut program = vec![
        instruction(MOVE_X, CONTEXT, 1, 0),
        // The symbol; none behind the last one. Its address is not for everybody.
        instruction(LOAD_8, THE_SYMBOL, CONTEXT, 0).at(8),
        instruction(JUMP_IF_EQUAL, THE_SYMBOL, 0, 0).at(END),
        instruction(LOAD_1, 2, THE_SYMBOL, 0).at(layout.is_shown),
        instruction(JUMP_IF_EQUAL, 2, 0, 0).at(END),
        instruction(LOAD_8, ADDRESS, THE_SYMBOL, 0).at(layout.address),
        instruction(LOAD_8, 1, THE_SYMBOL, 0).at(layout.name),
    ];
    // As `Sieve::passes` looks it up.
    program.extend(load_constant(3, 0, each_byte(1)));
    program.extend(load_constant(5, 0, each_byte(SUFFIX)));
    program.extend([
        instruction(MOVE_X, 2, 1, 0),
        instruction(SUBTRACT_X, 2, 3, 0),
        instruction(MOVE_X, 4, 1, 0),
        instruction(XOR, 4, 0, -1),
        instruction(AND_X, 2, 4, 0),
        instruction(XOR_X, 5, 1, 0),
        instruction(MOVE_X, 4, 5, 0),
        instruction(SUBTRACT_X, 4, 3, 0),
        instruction(XOR, 5, 0, -1),
        instruction(AND_X, 4, 5, 0),
        instruction(OR_X, 2, 4, 0),
        instruction(SHIFT_LEFT, 3, 0, 7),
        instruction(AND_X, 2, 3, 0),
        instruction(MOVE_X, 3, 2, 0),
        instruction(NEGATE, 3, 0, 0),
        instruction(AND_X, 2, 3, 0),
        instruction(SHIFT_RIGHT, 2, 0, 7),
        instruction(ADD, 2, 0, -1),
        instruction(AND_X, 1, 2, 0),
    ]);
    program.extend(load_constant(2, 0, MULTIPLIER));
    program.extend([
        instruction(MULTIPLY_X, 1, 2, 0),
        instruction(SHIFT_RIGHT, 1, 0, 64 - PLACE_BITS as i32),
    ]);
    program.extend(load_constant(
        TABLE,
        BPF_PSEUDO_MAP_VALUE as u8,
        table.as_raw_fd() as u64,
    ));
    program.extend([
        instruction(ADD_X, 1, TABLE, 0),
        instruction(LOAD_1, 1, 1, 0),
        instruction(LOAD_8, 2, THE_SYMBOL, 0).at(layout.module),
        instruction(STORE_8_X, FRAME, 2, 0).at(8 - RECORD as i16),
        instruction(LOAD_1, 2, FRAME, 0).at(8 - RECORD as i16),
        instruction(OR_X, 1, 2, 0),
        // Where it is wanted, its address is kept until another is behind it. Where it is not, it is of use
        // only as that other, which one with the same address is not yet.
        instruction(LOAD_8, 2, TABLE, 0).at(last),
        instruction(JUMP_UNLESS_EQUAL, 1, 0, 0).at(4),
        instruction(JUMP_IF_EQUAL, 2, 0, 0).at(END),
        instruction(JUMP_IF_EQUAL_X, 2, ADDRESS, 0).at(3),
        instruction(STORE_8, TABLE, 0, 0).at(last),
        instruction(JUMP, 0, 0, 0).at(1),
        instruction(STORE_8_X, TABLE, ADDRESS, 0).at(last),
        instruction(STORE_8_X, FRAME, ADDRESS, 0).at(-(RECORD as i16)),
    ]);
    for word in 0..NAME / 8 {
        program.extend([
            instruction(LOAD_8, 1, THE_SYMBOL, 0).at(at(layout.name, word)),
            instruction(STORE_8_X, FRAME, 1, 0).at(at(-(NAME as i16), word)),
        ]);
    }
    program.extend([
        instruction(LOAD_8, 1, CONTEXT, 0),
        instruction(LOAD_8, 1, 1, 0),
        instruction(MOVE_X, 2, FRAME, 0),
        instruction(ADD, 2, 0, -(RECORD as i32)),
        instruction(MOVE, 3, 0, RECORD as i32),
        instruction(CALL, 0, 0, helper::SEQ_WRITE),
    ]);
    let end = program.len();
    for (index, instruction) in program.iter_mut().enumerate() {
        instruction.resolve(END, (end - index - 1) as i16);
    }
    program.extend([instruction(MOVE, 0, 0, 0), EXIT]);
    program
}
