//! The object that holds all programs, as bytes that are changed before they are loaded.
//!
//! In: which programs are wanted, and what the constants are that they are compiled against. Out: the
//! bytes of an object that has those programs alone. Who loads an object links every program in it, and
//! a plan names a tenth of them.
//! Invariant: nothing changes but instructions of wanted programs, what sections there are, and the
//! definitions of maps that no instruction comes to use.

use std::collections::HashMap;
use std::mem::offset_of;
use std::ops::Range;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::str;

use anyhow::{Context as _, Result};
use aya_obj::generated::{
    BPF_PSEUDO_BTF_ID, BPF_PSEUDO_MAP_VALUE, bpf_map_type::BPF_MAP_TYPE_ARRAY,
};
use aya_obj::maps::bpf_map_def;
use object::LittleEndian as Little;
use object::elf::{FileHeader64, SHF_EXECINSTR, SHT_NULL, SHT_SYMTAB};
use object::read::elf::{FileHeader as _, SectionHeader as _, Sym as _};

/// What the build made of the programs. Each has a section of its own, named by its kind and itself.
static PROGRAMS: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/probes"));

/// An object with some of the programs.
pub(super) struct Object {
    bytes: Vec<u8>,
    /// Where instructions are.
    code: Vec<Range<usize>>,
    /// Where maps are defined, by their names.
    maps: HashMap<String, usize>,
}

impl Object {
    /// The programs of those names.
    ///
    /// # Errors
    ///
    /// What was built is no object.
    pub(super) fn with(wanted: impl Fn(&str) -> bool) -> Result<Self> {
        Self::of(PROGRAMS, wanted).context("the programs inside this binary are damaged")
    }

    fn of(object: &[u8], wanted: impl Fn(&str) -> bool) -> Result<Self> {
        // What is left out stays as the kernel gives memory: untouched.
        let mut bytes = vec![0; object.len()];
        let mut code = Vec::new();
        let header = FileHeader64::<Little>::parse(object)?;
        let sections = header.sections(Little, object)?;
        let headers = header.e_shoff(Little) as usize;
        // What is kept lies in bytes of the same length.
        let mut keep = |start: usize, kept: &[u8]| {
            bytes[start..start + kept.len()].copy_from_slice(kept);
        };
        keep(0, &object[..size_of_val(header)]);
        for (index, section) in sections.enumerate() {
            let name = str::from_utf8(sections.section_name(Little, section)?)?;
            let mut section_header = *section;
            if program(name).is_some_and(|program| !wanted(program)) {
                // Nobody reads a section of no type.
                section_header.sh_type.set(Little, SHT_NULL);
            } else {
                let data = section.data(Little, object)?;
                let start = section.sh_offset(Little) as usize;
                keep(start, data);
                if section.sh_flags(Little) & u64::from(SHF_EXECINSTR) != 0 {
                    code.push(start..start + data.len());
                }
            }
            let at = headers + index.0 * size_of_val(section);
            keep(at, object::bytes_of(&section_header));
        }
        let mut maps = HashMap::new();
        let symbols = sections.symbols(Little, object, SHT_SYMTAB)?;
        for (index, symbol) in symbols.enumerate() {
            let Some(section) = symbols.symbol_section(Little, symbol, index)? else {
                continue;
            };
            let section = sections.section(section)?;
            if sections.section_name(Little, section)? == MAPS.as_bytes() {
                let name = str::from_utf8(symbol.name(Little, symbols.strings())?)?;
                let at = section.sh_offset(Little) + symbol.st_value(Little);
                maps.insert(name.to_owned(), at as usize);
            }
        }
        Ok(Self { bytes, code, maps })
    }

    /// For who loads it.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Has as little as there can be in the place of a map that programs name in instructions they never
    /// come to: one value, which nobody can map. What can be mapped is an area of vmalloc each, among which
    /// the kernel looks for others.
    ///
    /// # Errors
    ///
    /// There is no such map.
    pub(super) fn leave_out_map(&mut self, name: &str) -> Result<()> {
        let at = self.maps.get(name);
        let at = *at.with_context(|| format!("the programs have no map `{name}`"))?;
        let definition = self.bytes.get_mut(at..at + size_of::<bpf_map_def>());
        let definition = definition.context("the definition of a map is cut off")?;
        let size = offset_of!(bpf_map_def, value_size);
        // An array's is that of its type, for who looks at it.
        let value_size = word(&definition[size..]).max(size_of::<u64>() as u32);
        for (at, value) in [
            (offset_of!(bpf_map_def, map_type), BPF_MAP_TYPE_ARRAY as u32),
            (offset_of!(bpf_map_def, key_size), size_of::<u32>() as u32),
            (size, value_size),
            (offset_of!(bpf_map_def, max_entries), 1),
            (offset_of!(bpf_map_def, map_flags), 0),
        ] {
            definition[at..at + size_of::<u32>()].copy_from_slice(&value.to_le_bytes());
        }
        Ok(())
    }

    /// Has the programs load the address of a CPU's own variable, by its BTF id, where they load a constant
    /// that stands for it.
    pub(super) fn name_variable(&mut self, constant: u64, variable: u32) {
        self.resolve(constant, BPF_PSEUDO_BTF_ID, variable);
    }

    /// Has the programs load the address of the only value of an array, where they load a constant that stands
    /// for it. The array is to be open until they are loaded.
    pub(super) fn point_to(&mut self, constant: u64, array: BorrowedFd<'_>) {
        self.resolve(constant, BPF_PSEUDO_MAP_VALUE, array.as_raw_fd() as u32);
    }

    /// Has the kernel put something in the place of a constant, which is named in its way.
    fn resolve(&mut self, constant: u64, way: u32, name: u32) {
        self.each_constant(|loaded, instruction| {
            if loaded == constant {
                instruction[1] |= (way as u8) << 4;
                set_immediate(instruction, name.into());
            }
        });
    }

    /// Has the programs load other constants, where there is another.
    pub(super) fn replace_constants(&mut self, mut other: impl FnMut(u64) -> Option<u64>) {
        self.each_constant(|loaded, instruction| {
            if let Some(other) = other(loaded) {
                set_immediate(instruction, other);
            }
        });
    }

    /// Has the programs calculate with other numbers, where there is another.
    pub(super) fn replace_numbers(&mut self, mut other: impl FnMut(u32) -> Option<u32>) {
        for code in &self.code {
            for instruction in self.bytes[code.clone()].chunks_exact_mut(INSTRUCTION_BYTES) {
                let (head, immediate) = instruction.split_at_mut(4);
                let calculates = CALCULATES.contains(&head[0]) && head[1] >> 4 == 0;
                if calculates
                    && head[2..] == [0, 0]
                    && let Some(other) = other(word(immediate))
                {
                    immediate.copy_from_slice(&other.to_le_bytes());
                }
            }
        }
    }

    /// Every instruction that loads a constant.
    fn each_constant(&mut self, mut each: impl FnMut(u64, &mut [u8])) {
        for code in &self.code {
            let code = &mut self.bytes[code.clone()];
            let ends = code.len().saturating_sub(LOAD_BYTES - 1);
            for at in (0..ends).step_by(INSTRUCTION_BYTES) {
                if code[at] == LOADS_CONSTANT && code[at + 1] >> 4 == 0 {
                    let instruction = &mut code[at..at + LOAD_BYTES];
                    let (low, high) = (word(&instruction[4..]), word(&instruction[12..]));
                    each(u64::from(high) << 32 | u64::from(low), instruction);
                }
            }
        }
    }
}

/// The section with the definitions of maps.
const MAPS: &str = "maps";

/// The program whose instructions a section has, or how they are to be linked.
fn program(section: &str) -> Option<&str> {
    section.split_once('/').map(|(_kind, program)| program)
}

/// Bytes of an instruction: code and registers, offset, immediate.
const INSTRUCTION_BYTES: usize = 8;
/// Bytes of an instruction that loads a constant, which takes the room of two: the immediate of the
/// second is the upper half.
const LOAD_BYTES: usize = 16;
/// BPF_LD of a 64-bit constant (`include/uapi/linux/bpf.h`).
const LOADS_CONSTANT: u8 = 0x18;
/// BPF_ALU64 with BPF_MUL or BPF_AND, of a constant.
const CALCULATES: [u8; 2] = [0x27, 0x57];

fn word(bytes: &[u8]) -> u32 {
    let bytes = bytes[..4].iter().rev();
    bytes.fold(0, |word, byte| word << 8 | u32::from(*byte))
}

fn set_immediate(instruction: &mut [u8], immediate: u64) {
    instruction[4..8].copy_from_slice(&(immediate as u32).to_le_bytes());
    instruction[12..16].copy_from_slice(&((immediate >> 32) as u32).to_le_bytes());
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::os::fd::AsFd as _;

    use kcore_trace_ebpf::layout::AuditTable;

    use super::*;
    use crate::probes::{Attach, program as name_of};

    fn programs(object: &Object) -> Vec<String> {
        let object = aya_obj::Object::parse(object.bytes()).unwrap();
        object.programs.keys().cloned().collect()
    }

    #[test]
    fn an_object_has_the_programs_that_are_wanted_alone() {
        let of_one_function = ["spinlock_fx", "spinlock_kp"];
        let object = Object::with(|name| of_one_function.contains(&name)).unwrap();
        let mut found = programs(&object);
        found.sort();
        assert_eq!(found, of_one_function);
        assert!(programs(&Object::with(|_| false).unwrap()).is_empty());
        assert!(programs(&Object::with(|_| true).unwrap()).len() > 200);
    }

    #[test]
    fn a_map_that_is_left_out_is_one_value_that_cannot_be_mapped() {
        let mut object = Object::with(|_| false).unwrap();
        let flags = |object: &Object, name: &str| {
            let object = aya_obj::Object::parse(object.bytes()).unwrap();
            let map = &object.maps[name];
            let (entries, flags) = (map.max_entries(), map.map_flags());
            (map.map_type(), map.value_size(), entries, flags)
        };
        let before = flags(&object, "CELLS");
        assert_ne!(before.3, 0);
        let table = size_of::<AuditTable>() as u32;
        for (name, value_size) in [("AUDIT", table), ("AYA_LOGS", 8)] {
            object.leave_out_map(name).unwrap();
            let array = BPF_MAP_TYPE_ARRAY as u32;
            assert_eq!(flags(&object, name), (array, value_size, 1, 0));
        }
        assert_eq!(flags(&object, "CELLS"), before);
        assert!(object.leave_out_map("NO_MAP").is_err());
    }

    #[test]
    fn bytes_that_are_no_object_are_an_error() {
        for damaged in [&PROGRAMS[..0], &PROGRAMS[..100], &[7; 4096]] {
            assert!(Object::of(damaged, |_| true).is_err());
        }
    }

    #[test]
    fn constants_that_stand_for_a_variable_and_an_array_give_way_to_their_numbers() {
        const CONSTANT: u64 = 0x1122_3344_5566_7788;
        let load = |register: u8, constant: u64| {
            let [low, high] = [constant as u32, (constant >> 32) as u32].map(u32::to_le_bytes);
            [&[LOADS_CONSTANT, register, 0, 0], &low[..], &[0; 4], &high].concat()
        };
        let other = vec![7; INSTRUCTION_BYTES];
        let bytes = |loads: [Vec<u8>; 3]| [other.clone(), loads.concat()].concat();
        let code = bytes([
            load(1, CONSTANT),
            load(2, CONSTANT + 1),
            load(3, CONSTANT + 2),
        ]);
        let mut object = Object {
            code: std::iter::once(0..code.len()).collect(),
            bytes: code,
            maps: HashMap::new(),
        };
        object.name_variable(CONSTANT, 42);
        object.point_to(CONSTANT + 2, io::stderr().as_fd());
        // As in `include/uapi/linux/bpf.h`.
        let (variable, value) = (load(1 | 3 << 4, 42), load(3 | 2 << 4, 2));
        let second = load(2, CONSTANT + 1);
        assert_eq!(
            object.bytes(),
            bytes([variable.clone(), second, value.clone()])
        );
        object.replace_constants(|constant| (constant == CONSTANT + 1).then_some(u64::MAX));
        let second = load(2, u64::MAX);
        assert_eq!(object.bytes(), bytes([variable, second, value]));
    }

    /// Every program of the tables is in the object, and every program of the object in a table.
    #[test]
    fn tables_and_object_name_the_same_programs() {
        use std::collections::BTreeSet;

        use crate::probes::{self, Ends, Part};

        let all = [
            Attach::Fentry,
            Attach::Fexit,
            Attach::Kprobe,
            Attach::Kretprobe,
        ];
        let of_part = |part| match part {
            Part::Acquire => &[Attach::Fexit, Attach::Kprobe][..],
            Part::TryAcquire => &[Attach::Fexit, Attach::Kprobe, Attach::Kretprobe],
            Part::Release => &[Attach::Fentry, Attach::Kprobe],
            Part::SlowPath => &[Attach::Fentry, Attach::Kprobe, Attach::Kretprobe],
        };
        let named = |stem: &str, attaches: &[Attach]| -> Vec<String> {
            attaches
                .iter()
                .map(|attach| name_of(stem, *attach))
                .collect()
        };
        let ops = probes::OPS.iter().flat_map(|op| named(op.stem, &all));
        let scopes = probes::BLOCK_SCOPES
            .iter()
            .flat_map(|(_, stem)| named(stem, &all));
        let locks = probes::LOCK_FUNCTIONS.iter();
        let locks = locks.flat_map(|function| {
            let alone = function.alone.map(|stem| named(stem, &all));
            let named = named(function.stem, of_part(function.part));
            named.into_iter().chain(alone.into_iter().flatten())
        });
        let points = probes::TRACEPOINTS.iter();
        let points = points.flat_map(|(_, stem)| named(stem, &[Attach::Tracepoint]));
        let sequence = ["seqstart_kp", "seqstop_kr", "vstart_kp", "vstop_kr"].map(String::from);
        let inside = probes::INSIDE.iter().flat_map(|function| {
            let (by_trampoline, by_probe) = function.ends.attaches();
            named(function.stem, &[by_trampoline, by_probe].concat())
        });
        let audit = probes::AUDIT.iter().flat_map(|(_, stem)| {
            let (by_trampoline, by_probe) = Ends::Entry.attaches();
            named(stem, &[by_trampoline, by_probe].concat())
        });
        let switch = [name_of(probes::SWITCH.1, Attach::Tracepoint)];
        let tables: BTreeSet<String> = ops
            .chain(scopes)
            .chain(locks)
            .chain(points)
            .chain(sequence)
            .chain(inside)
            .chain(audit)
            .chain(switch)
            .collect();
        let object = Object::with(|_| true).unwrap();
        let object = aya_obj::Object::parse(object.bytes()).unwrap();
        let object: BTreeSet<String> = object.programs.keys().cloned().collect();
        assert_eq!(tables, object);
        // The kernel keeps fifteen bytes of a name.
        assert!(tables.iter().all(|name| name.len() <= 15));
    }
}
