//! Addresses and text ranges from /proc/kallsyms.
//!
//! In: its lines. Out: [`Symbols`], for the names that are wanted and for the ranges of functions.
//! Invariant: these addresses stay in the process; facts and recordings get names only.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader};

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
        // The kernel makes the lines as they are read, a buffer at a time.
        const BUFFER: usize = 1 << 18;
        let lines = File::open(PATH).map(|file| BufReader::with_capacity(BUFFER, file));
        lines
            .and_then(|lines| Self::parse(lines, wanted))
            .with_context(|| format!("failed to read {PATH}"))
    }

    /// Reads lines of `address type name [module]`. A name that GCC gave a suffix (`.part.0`,
    /// `.isra.0`, `.cold`) is kept under its whole name and counts as text of its plain name.
    ///
    /// # Errors
    ///
    /// Those of `lines`.
    pub fn parse(mut lines: impl BufRead, wanted: &HashSet<&str>) -> io::Result<Self> {
        let wanted: HashSet<&[u8]> = wanted.iter().map(|name| name.as_bytes()).collect();
        let longest = wanted.iter().map(|name| name.len()).max().unwrap_or(0);
        let mut symbols = Self::default();
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line)? != 0 {
            match Line::parse(&line) {
                // Modules and BPF programs stand behind the core kernel.
                Some(Line { module: true, .. }) => break,
                Some(Line { address, name, .. }) => {
                    symbols.sorted.push(address);
                    let plain = plain(name);
                    if plain.len() <= longest && wanted.contains(plain) {
                        symbols.add(name, address);
                    }
                }
                None => {}
            }
            line.clear();
        }
        symbols.sorted.sort_unstable();
        symbols.sorted.dedup();
        Ok(symbols)
    }

    fn add(&mut self, name: &[u8], address: u64) {
        let name = String::from_utf8_lossy(name).into_owned();
        self.addresses.entry(name).or_default().push(address);
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

/// One line, as far as it is of use.
struct Line<'a> {
    address: u64,
    name: &'a [u8],
    module: bool,
}

impl<'a> Line<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut columns = line.trim_ascii_end().splitn(3, |&byte| byte == b' ');
        let address = hexadecimal(columns.next()?)?;
        let (_letter, rest) = (columns.next()?, columns.next()?);
        let end = memchr::memchr(b'\t', rest);
        Some(Self {
            address,
            name: &rest[..end.unwrap_or(rest.len())],
            module: end.is_some(),
        })
    }
}

fn hexadecimal(digits: &[u8]) -> Option<u64> {
    let digit = |byte: &u8| (*byte as char).to_digit(16);
    digits.iter().try_fold(0u64, |number, byte| {
        Some(number << 4 | u64::from(digit(byte)?))
    })
}

fn plain(name: &[u8]) -> &[u8] {
    memchr::memchr(b'.', name).map_or(name, |end| &name[..end])
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
        let zeros = b"0000000000000000 T vfree\n";
        assert!(
            Symbols::parse(&zeros[..], &HashSet::new())
                .unwrap()
                .are_hidden()
        );
        assert!(!symbols().are_hidden());
    }
}
