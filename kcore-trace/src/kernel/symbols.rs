//! Addresses and text ranges from /proc/kallsyms.
//!
//! In: its lines. Out: [`Symbols`], for the names that are wanted and for the ranges of functions.
//! Invariant: these addresses stay in the process; facts and recordings get names only.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::ops::ControlFlow;

use anyhow::{Context as _, Result};
use rustc_hash::FxHashSet;

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
        // However much is asked for, the kernel gives a page of lines at a time (`fs/seq_file.c`).
        let lines = File::open(PATH).map(BufReader::new);
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
    pub fn parse(lines: impl BufRead, wanted: &HashSet<&str>) -> io::Result<Self> {
        // Asked for every symbol of the kernel.
        let wanted: FxHashSet<&[u8]> = wanted.iter().map(|name| name.as_bytes()).collect();
        let longest = wanted.iter().map(|name| name.len()).max().unwrap_or(0);
        let mut symbols = Self::default();
        each_line(lines, |line| {
            if line.module.is_some() {
                // Modules and BPF programs stand behind the core kernel.
                return ControlFlow::Break(());
            }
            symbols.sorted.push(line.address);
            let plain = plain(line.name);
            if plain.len() <= longest && wanted.contains(plain) {
                symbols.add(line.name, line.address);
            }
            ControlFlow::Continue(())
        })?;
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

/// Passes lines on, until it is told that they are enough.
fn each_line(
    mut lines: impl BufRead,
    mut each: impl FnMut(Line<'_>) -> ControlFlow<()>,
) -> io::Result<()> {
    let mut pass_on = |line: &[u8]| Line::parse(line).map_or(ControlFlow::Continue(()), &mut each);
    // A line of which more is to be read.
    let mut begun = Vec::new();
    loop {
        let buffer = lines.fill_buf()?;
        let length = buffer.len();
        if length == 0 {
            let _enough = pass_on(&begun);
            return Ok(());
        }
        let mut start = 0;
        for end in memchr::memchr_iter(b'\n', buffer) {
            let mut line = &buffer[start..end];
            if !begun.is_empty() {
                begun.extend_from_slice(line);
                line = &begun;
            }
            if pass_on(line).is_break() {
                return Ok(());
            }
            begun.clear();
            start = end + 1;
        }
        begun.extend_from_slice(&buffer[start..]);
        lines.consume(length);
    }
}

/// One line, as far as it is of use.
struct Line<'a> {
    address: u64,
    name: &'a [u8],
    /// The module between brackets; nothing in the core kernel.
    module: Option<&'a [u8]>,
}

impl<'a> Line<'a> {
    /// Without its end. The address has as many digits as a word of the kernel can have.
    fn parse(line: &'a [u8]) -> Option<Self> {
        let (digits, rest) = line.split_first_chunk::<16>()?;
        let &[b' ', _letter, b' ', ref rest @ ..] = rest else {
            return None;
        };
        let has_module = rest.ends_with(b"]");
        let end = has_module.then(|| memchr::memchr(b'\t', rest)).flatten();
        Some(Self {
            address: hexadecimal(digits)?,
            name: &rest[..end.unwrap_or(rest.len())],
            module: end.map(|end| rest[end..].trim_ascii()),
        })
    }
}

fn hexadecimal(digits: &[u8; 16]) -> Option<u64> {
    let are_digits = |all, digit: &u8| all & digit.is_ascii_hexdigit();
    digits.iter().fold(true, are_digits).then(|| {
        let both = u128::from_be_bytes(*digits);
        let [high, low] = [both >> 64, both].map(|half| eight_digits(half as u64));
        high << 32 | low
    })
}

/// The number of eight digits, the highest byte first: all at once, since a kernel has them by the million.
fn eight_digits(digits: u64) -> u64 {
    // Letters have bit 6 and count from one, where decimal digits count from zero.
    let digits = (digits & 0x0f0f_0f0f_0f0f_0f0f) + (digits >> 6 & 0x0101_0101_0101_0101) * 9;
    let pairs = (digits | digits >> 4) & 0x00ff_00ff_00ff_00ff;
    let quarters = (pairs | pairs >> 8) & 0x0000_ffff_0000_ffff;
    (quarters | quarters >> 16) & 0xffff_ffff
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
    fn digits_make_the_number_that_they_are() {
        for number in [0, 1, 0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210, u64::MAX] {
            for text in [format!("{number:016x}"), format!("{number:016X}")] {
                let digits = text.as_bytes().as_array().unwrap();
                assert_eq!(hexadecimal(digits), Some(number));
            }
        }
        assert_eq!(hexadecimal(b"0123456789abcdeg"), None);
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
