//! Addresses and text ranges of the kernel's symbols.
//!
//! In: what the kernel lists, by a program ([`iterator`]) or in /proc/kallsyms ([`lines`]). Out:
//! [`Symbols`], for the names that are wanted and for the ranges of functions, and the [`Names`] of
//! addresses.
//! Invariant: these addresses stay in the process; facts and recordings get names only.

mod iterator;
mod lines;
mod names;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::ops::ControlFlow;

use anyhow::{Context as _, Result};
use nix::sys::statfs::{PROC_SUPER_MAGIC, statfs};
use rustc_hash::FxHashSet;

use super::btf::Btf;
pub use iterator::TYPES;
use lines::each_line;
pub use names::Names;

/// Where the kernel lists its symbols.
pub const PATH: &str = "/proc/kallsyms";

/// A function's text, `[start, end)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub start: u64,
    pub end: u64,
}

/// The symbols of the core kernel that were asked for.
#[derive(Default)]
pub struct Symbols {
    /// Every address of a name: a static name can stand in several files.
    addresses: HashMap<String, Vec<u64>>,
    /// Addresses, ascending, where one ends the next begins: of all symbols of the core kernel, or at
    /// least of those and of what follows each.
    sorted: Vec<u64>,
}

impl Symbols {
    /// Those of the running kernel, by a program where it allows that.
    ///
    /// # Errors
    ///
    /// /proc/kallsyms cannot be read.
    pub fn read(btf: &Btf, wanted: &HashSet<&str>) -> Result<Self> {
        if is_the_kernels_own(PATH) {
            match Self::by_program(btf, wanted) {
                Ok(symbols) if !symbols.sorted.is_empty() => return Ok(symbols),
                Ok(_) => log::debug!("the kernel hides its addresses from programs"),
                Err(error) => {
                    log::debug!("symbols are read as text, which takes longer: {error:#}")
                }
            }
        }
        // However much is asked for, the kernel gives a page of lines at a time (`fs/seq_file.c`).
        let lines = File::open(PATH).map(BufReader::new);
        lines
            .and_then(|lines| Self::parse(lines, wanted))
            .with_context(|| format!("failed to read {PATH}"))
    }

    /// Those of the running kernel by a program alone, with [`TYPES`] known; none if it hides their addresses.
    ///
    /// # Errors
    ///
    /// The kernel has no iterator over its symbols, or does not let us have it.
    pub fn by_program(btf: &Btf, wanted: &HashSet<&str>) -> Result<Self> {
        let mut symbols = Self::default();
        let wanted = Wanted::new(wanted);
        iterator::each(btf, wanted.names(), |address, name| {
            symbols.add(address, name, &wanted);
        })?;
        Ok(symbols.sorted())
    }

    /// Reads lines of `address type name [module]`. A name that GCC gave a suffix (`.part.0`,
    /// `.isra.0`, `.cold`) is kept under its whole name and counts as text of its plain name.
    ///
    /// # Errors
    ///
    /// Those of `lines`.
    pub fn parse(lines: impl BufRead, wanted: &HashSet<&str>) -> io::Result<Self> {
        let mut symbols = Self::default();
        let wanted = Wanted::new(wanted);
        each_line(lines, |line| {
            if line.module.is_some() {
                // Modules and BPF programs stand behind the core kernel.
                return ControlFlow::Break(());
            }
            symbols.add(line.address, line.name, &wanted);
            ControlFlow::Continue(())
        })?;
        Ok(symbols.sorted())
    }

    fn add(&mut self, address: u64, name: &[u8], wanted: &Wanted<'_>) {
        self.sorted.push(address);
        if wanted.has(name) {
            let name = String::from_utf8_lossy(name).into_owned();
            self.addresses.entry(name).or_default().push(address);
        }
    }

    fn sorted(mut self) -> Self {
        self.sorted.sort_unstable();
        self.sorted.dedup();
        self
    }

    /// Whether the kernel hides all addresses from us: it then shows zeros.
    pub fn are_hidden(&self) -> bool {
        self.sorted.last().is_none_or(|&last| last == 0)
    }

    /// The address of a name that exists once; of a name that exists several times, the one
    /// nearest to `near`, another symbol of the same file.
    pub fn address(&self, name: &str, near: Option<u64>) -> Option<u64> {
        let all = self.addresses.get(name)?;
        let address = match (all.as_slice(), near) {
            ([one], _) => *one,
            (all, Some(near)) => *all.iter().min_by_key(|address| address.abs_diff(near))?,
            (_, None) => return None,
        };
        (address != 0).then_some(address)
    }

    /// How many symbols have exactly that name.
    pub fn count(&self, name: &str) -> usize {
        self.addresses.get(name).map_or(0, Vec::len)
    }

    /// The names of whole copies that the compiler made of a function.
    pub fn clones<'a>(&'a self, of: &'a str) -> impl Iterator<Item = &'a str> {
        let names = self.addresses.keys().map(String::as_str);
        names.filter(move |name| is_clone(name, of))
    }

    /// The text of a function and of the parts that GCC split off it, near `near`.
    pub fn ranges(&self, name: &str, near: Option<u64>) -> Vec<Range> {
        let mut names: Vec<_> = self
            .addresses
            .keys()
            .filter(|key| plain(key.as_bytes()) == name.as_bytes())
            .collect();
        names.sort();
        let addresses = names
            .into_iter()
            .filter_map(|name| self.address(name, near));
        addresses
            .map(|start| Range {
                start,
                end: self.end_of(start),
            })
            .collect()
    }

    fn end_of(&self, start: u64) -> u64 {
        let next = self.sorted.partition_point(|&address| address <= start);
        self.sorted.get(next).copied().unwrap_or(start + 1)
    }
}

/// Whether the kernel itself answers there, and nobody has put something else in its place.
fn is_the_kernels_own(path: &str) -> bool {
    statfs(path).is_ok_and(|filesystem| filesystem.filesystem_type() == PROC_SUPER_MAGIC)
}

/// Plain names that are asked for.
struct Wanted<'a> {
    /// A kernel has a hundred thousand that are not.
    names: FxHashSet<&'a [u8]>,
    longest: usize,
}

impl<'a> Wanted<'a> {
    fn new(names: &HashSet<&'a str>) -> Self {
        let names: FxHashSet<_> = names.iter().map(|name| name.as_bytes()).collect();
        let longest = names.iter().map(|name| name.len()).max().unwrap_or(0);
        Self { names, longest }
    }

    fn names(&self) -> impl Iterator<Item = &'a [u8]> {
        self.names.iter().copied()
    }

    /// Whether a name is one of them, whatever suffix it has.
    fn has(&self, name: &[u8]) -> bool {
        let plain = plain(name);
        plain.len() <= self.longest && self.names.contains(plain)
    }
}

/// Whether a name is that of a whole copy that the compiler made of a function, such as
/// `name.isra.0`, and not of a part that it split off.
pub fn is_clone(name: &str, of: &str) -> bool {
    let suffixes = name
        .strip_prefix(of)
        .and_then(|rest| rest.strip_prefix('.'));
    suffixes.is_some_and(|suffixes| {
        let part = |suffix| ["part", "cold"].contains(&suffix);
        !suffixes.split('.').any(part)
    })
}

fn plain(name: &[u8]) -> &[u8] {
    memchr::memchr(b'.', name).map_or(name, |end| &name[..end])
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(super) const TEXT: &str = "\
ffffffff81000000 T _stext
ffffffff81001000 t s_start
ffffffff81002000 t s_start
ffffffff81002100 t alloc_vmap_area
ffffffff81002300 t vfree.part.0
ffffffff81002400 T vfree
ffffffff81002500 T after
ffffffffc0000000 t vfree	[module]
";

    fn symbols() -> Symbols {
        let wanted = HashSet::from(["s_start", "alloc_vmap_area", "vfree"]);
        Symbols::parse(TEXT.as_bytes(), &wanted).unwrap()
    }

    #[test]
    fn a_function_ends_where_the_next_symbol_begins() {
        let range = Range {
            start: 0xffff_ffff_8100_2100,
            end: 0xffff_ffff_8100_2300,
        };
        assert_eq!(symbols().ranges("alloc_vmap_area", None), [range]);
    }

    #[test]
    fn split_off_parts_belong_to_the_function_and_modules_do_not() {
        let starts: Vec<_> = symbols()
            .ranges("vfree", None)
            .iter()
            .map(|r| r.start)
            .collect();
        assert_eq!(starts, [0xffff_ffff_8100_2400, 0xffff_ffff_8100_2300]);
    }

    #[test]
    fn a_whole_copy_of_a_function_is_told_from_a_part_of_it() {
        for (name, is) in [
            ("purge.isra.0", true),
            ("purge.constprop.0.isra.1", true),
            ("purge.llvm.1234", true),
            ("purge", false),
            ("purge.cold", false),
            ("purge.isra.0.cold", false),
            ("purge.part.0", false),
            ("purge_all.isra.0", false),
        ] {
            assert_eq!(is_clone(name, "purge"), is, "{name}");
        }
        assert_eq!(symbols().clones("vfree").count(), 0);
    }

    #[test]
    fn of_equal_names_the_one_in_the_same_file_is_taken() {
        let symbols = symbols();
        let near = symbols.address("alloc_vmap_area", None);
        assert_eq!(
            symbols.address("s_start", near),
            Some(0xffff_ffff_8100_2000)
        );
        assert_eq!(symbols.address("s_start", None), None);
        assert_eq!(symbols.count("s_start"), 2);
    }

    #[test]
    fn lines_are_whole_however_they_are_read() {
        let whole = symbols();
        let noise = format!("\nno symbol\n00 T short\nfffffffg81000000 T digit\n{TEXT}");
        let wanted = HashSet::from(["s_start", "alloc_vmap_area", "vfree"]);
        for text in [&noise, TEXT, TEXT.trim_end()] {
            for at_once in 1..text.len() {
                let lines = BufReader::with_capacity(at_once, text.as_bytes());
                let symbols = Symbols::parse(lines, &wanted).unwrap();
                assert_eq!(symbols.addresses, whole.addresses);
                assert_eq!(symbols.sorted, whole.sorted);
            }
        }
    }

    #[test]
    fn zeros_mean_that_addresses_are_hidden() {
        let zeros = b"0000000000000000 T vfree\n";
        assert!(
            Symbols::parse(&zeros[..], &HashSet::new())
                .unwrap()
                .are_hidden()
        );
        assert!(!symbols().are_hidden());
    }
}
