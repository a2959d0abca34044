//! Addresses and text ranges from /proc/kallsyms.
//!
//! In: its text. Out: [`Symbols`], for the names that are wanted and for the ranges of functions.
//! Invariant: these addresses stay in the process; facts and recordings get names only.

use std::collections::{HashMap, HashSet};

use anyhow::{Context as _, Result};

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
    /// Addresses of all core kernel symbols, ascending: where one ends the next begins.
    sorted: Vec<u64>,
}

impl Symbols {
    /// Reads the running kernel's.
    pub fn read(wanted: &HashSet<&str>) -> Result<Self> {
        let text =
            std::fs::read_to_string(PATH).with_context(|| format!("failed to read {PATH}"))?;
        Ok(Self::parse(&text, wanted))
    }

    /// Reads lines of `address type name [module]`. A name that GCC gave a suffix (`.part.0`,
    /// `.isra.0`, `.cold`) is kept under its whole name and counts as text of its plain name.
    pub fn parse(text: &str, wanted: &HashSet<&str>) -> Self {
        let mut symbols = Self::default();
        for line in text.lines() {
            // Modules and BPF programs have a fourth column.
            let mut columns = line.split_ascii_whitespace();
            let (Some(address), Some(_), Some(name), None) = (
                columns.next(),
                columns.next(),
                columns.next(),
                columns.next(),
            ) else {
                continue;
            };
            let Ok(address) = u64::from_str_radix(address, 16) else {
                continue;
            };
            symbols.sorted.push(address);
            if wanted.contains(plain(name)) {
                symbols
                    .addresses
                    .entry(name.to_owned())
                    .or_default()
                    .push(address);
            }
        }
        symbols.sorted.sort_unstable();
        symbols.sorted.dedup();
        symbols
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

    /// The text of a function and of the parts that GCC split off it, near `near`.
    pub fn ranges(&self, name: &str, near: Option<u64>) -> Vec<Range> {
        let mut names: Vec<_> = self
            .addresses
            .keys()
            .filter(|key| plain(key) == name)
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

fn plain(name: &str) -> &str {
    name.split_once('.').map_or(name, |(plain, _)| plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
ffffffff81000000 T _stext
ffffffff81001000 t s_start
ffffffff81002000 t s_start
ffffffff81002100 t alloc_vmap_area
ffffffff81002300 t vfree.part.0
ffffffff81002400 T vfree
ffffffff81002500 T after
ffffffffc0000000 t vfree [module]
";

    fn symbols() -> Symbols {
        Symbols::parse(
            TEXT,
            &HashSet::from(["s_start", "alloc_vmap_area", "vfree"]),
        )
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
    fn zeros_mean_that_addresses_are_hidden() {
        assert!(Symbols::parse("0000000000000000 T vfree\n", &HashSet::new()).are_hidden());
        assert!(!symbols().are_hidden());
    }
}
