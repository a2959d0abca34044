//! What the kernel calls the addresses of a stack.
//!
//! In: addresses. Out: their names, for people. Invariant: an address that nothing is listed for has no
//! name, rather than that of the nearest function.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::ops::ControlFlow;

use anyhow::{Context as _, Result};

use super::PATH;
use super::lines::each_line;

/// The names of return addresses, as `function+0xoffset`, with the module behind where it is one.
/// What was asked for once is remembered.
#[derive(Debug, Default)]
pub struct Names(HashMap<u64, Option<String>>);

impl Names {
    /// Asks for the names of addresses; zero is none.
    ///
    /// # Errors
    ///
    /// The kernel's symbols cannot be read.
    pub fn learn(&mut self, addresses: impl IntoIterator<Item = u64>) -> Result<()> {
        let unknown = |address: &u64| *address != 0 && !self.0.contains_key(address);
        let unknown: BTreeSet<_> = addresses.into_iter().filter(unknown).collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let lines = File::open(PATH).map(BufReader::new);
        let mut names = lines
            .and_then(|lines| resolve(lines, &unknown))
            .with_context(|| format!("failed to read {PATH}"))?;
        let named = unknown.into_iter();
        self.0
            .extend(named.map(|address| (address, names.remove(&address))));
        Ok(())
    }

    /// The name of an address that was asked for; nothing if it is in no function that the kernel
    /// lists.
    pub fn of(&self, address: u64) -> Option<&str> {
        self.0.get(&address)?.as_deref()
    }

    /// The functions of a stack, without the tracer's own.
    pub fn frames(&self, stack: &[u64]) -> Vec<String> {
        let frames = stack.iter().take_while(|address| **address != 0);
        without_tracers(frames.map(|address| self.of(*address).unwrap_or(UNNAMED)))
    }
}

/// Stands in a stack for an address that the kernel does not list, such as one in a module that is
/// gone.
const UNNAMED: &str = "?";
/// The farthest from its beginning that an address is taken for one of a function, and of what the
/// kernel compiled for a program.
const LONGEST_FUNCTION: u64 = 1 << 16;
const LONGEST_PROGRAM: u64 = 1 << 12;
/// Where the kernel lists what it compiled.
const PROGRAMS: &str = "[bpf]";

/// A stack, the innermost function first, without programs and trampolines: below one stands a second
/// frame of the function that it is on.
fn without_tracers<'a>(frames: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let function = |frame: &str| frame.split('+').next().map(str::to_owned);
    let mut kept: Vec<String> = Vec::new();
    let mut below_tracer = false;
    for frame in frames {
        let is_tracer = frame.ends_with(PROGRAMS) || (frame == UNNAMED && kept.is_empty());
        let again = below_tracer
            && kept
                .last()
                .is_some_and(|last| function(last) == function(frame));
        if !is_tracer && !again {
            kept.push(frame.to_owned());
        }
        below_tracer = is_tracer;
    }
    kept
}

fn resolve(lines: impl BufRead, addresses: &BTreeSet<u64>) -> io::Result<BTreeMap<u64, String>> {
    let wanted: Vec<u64> = addresses.iter().copied().collect();
    // For each address the nearest symbol below, as far as none of a lower address has it.
    let mut nearest: Vec<Option<(u64, String)>> = vec![None; wanted.len()];
    each_line(lines, |line| {
        let address = line.address;
        // A call may be the last instruction of its function.
        let index = wanted.partition_point(|&wanted| wanted <= address);
        if let Some(best) = nearest.get_mut(index)
            && best.as_ref().is_none_or(|(best, _)| *best < address)
        {
            let name = String::from_utf8_lossy(line.name);
            let of = line.module.map(|module| String::from_utf8_lossy(module));
            let name = of.map_or_else(|| name.to_string(), |of| format!("{name} {of}"));
            *best = Some((address, name));
        }
        ControlFlow::Continue(())
    })?;
    let mut names = BTreeMap::new();
    let mut below: Option<(u64, String)> = None;
    for (wanted, nearest) in wanted.into_iter().zip(nearest) {
        below = nearest.or(below);
        if let Some((start, name)) = &below
            && *start != 0
            && let (name, module) = name.split_once(' ').map_or((&**name, ""), |both| both)
            && wanted - start <= longest(module)
        {
            let space = if module.is_empty() { "" } else { " " };
            let offset = wanted - start;
            names.insert(wanted, format!("{name}+{offset:#x}{space}{module}"));
        }
    }
    Ok(names)
}

fn longest(module: &str) -> u64 {
    match module {
        PROGRAMS => LONGEST_PROGRAM,
        _ => LONGEST_FUNCTION,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::symbols::tests::TEXT;

    #[test]
    fn a_return_address_has_the_name_of_the_function_that_called() {
        let addresses = [
            0xffff_ffff_8100_2150,
            // Behind the last instruction of the function.
            0xffff_ffff_8100_2300,
            0xffff_ffff_8100_2304,
            0xffff_ffff_c000_0010,
            // Farther than any function is long, and below all of them.
            0xffff_ffff_b000_0000,
            0x1000,
        ];
        let names = resolve(TEXT.as_bytes(), &addresses.into()).unwrap();
        let wanted = [
            (addresses[0], "alloc_vmap_area+0x50"),
            (addresses[1], "alloc_vmap_area+0x200"),
            (addresses[2], "vfree.part.0+0x4"),
            (addresses[3], "vfree+0x10 [module]"),
        ];
        assert_eq!(names, wanted.map(|(at, name)| (at, name.into())).into());
    }

    #[test]
    fn a_stack_is_that_of_the_kernel_without_tracers() {
        let frames = [
            "bpf_prog_1234_spinlock_fx+0x9c [bpf]",
            "bpf_trampoline_6442+0x6e [bpf]",
            "_raw_spin_lock+0x5",
            "find_vmap_area+0x16",
            "bpf_trampoline_6443+0x6e [bpf]",
            "find_vmap_area+0x5",
            "find_vm_area+0xa",
            "?",
            "do_one_initcall+0x8c",
        ];
        let kept = [2, 3, 6, 7, 8].map(|index| frames[index]);
        assert_eq!(without_tracers(frames), kept);
    }
}
