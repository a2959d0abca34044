//! Questions to the kernel's BTF: does a function exist, with how many arguments, and where in a
//! struct is a member.
//!
//! In: [`bytes`], those of /sys/kernel/btf/vmlinux. Out: an index of the names that were asked for, from one
//! pass over the types, of which a kernel has more than a hundred thousand: only those of a wanted name
//! are looked into.
//! Invariant: bytes that are not BTF are an error, never a panic.
//! The format: `Documentation/bpf/btf.rst`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::{fs, io};

use anyhow::{Context as _, Result, bail, ensure};
use aya::Endianness;
use aya_obj::btf::{BtfType, Func, FuncLinkage};
use rustc_hash::FxHashSet;

use super::sieve::{Sieve, first_word};
use crate::syscall;

/// Where the kernel shows its own types.
pub const PATH: &str = "/sys/kernel/btf/vmlinux";

/// What the kernel shows of its own types: as they lie in its memory, or else by the file. Nothing if it shows
/// none.
pub fn bytes() -> Option<Vec<u8>> {
    let bytes = from_memory().or_else(|error| {
        log::debug!("the kernel's types are read from {PATH}: {error}");
        fs::read(PATH)
    });
    bytes.ok()
}

/// The same as they lie in the kernel's memory, where they are copied once instead of twice.
///
/// # Errors
///
/// They are not to be had like that: before 5.11, without CAP_SYS_ADMIN, or as long as the kernel has not looked
/// into them itself.
pub fn from_memory() -> io::Result<Vec<u8>> {
    syscall::kernel_types()
}

const MAGIC: u16 = 0xeb9f;

mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const FWD: u32 = 7;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const FUNC: u32 = 12;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const ENUM64: u32 = 19;
}

/// One type as it stands in the table.
#[derive(Clone, Copy)]
struct Type {
    /// Offset of its first word.
    at: usize,
    name: u32,
    kind: u32,
    vlen: usize,
    /// Size of a struct in bytes, or the type that a function or typedef refers to.
    size_or_type: u32,
}

/// A function by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    /// BTF id, for attaching.
    pub id: u32,
    pub args: usize,
}

/// A struct by its name.
#[derive(Debug)]
pub struct Struct {
    /// Size in bytes.
    pub size: u64,
    /// Members with their offset in bytes and the name of their type.
    pub members: HashMap<String, (u64, String)>,
}

/// What was asked for, as far as this kernel has it.
#[derive(Debug, Default)]
pub struct Btf {
    functions: HashMap<String, Function>,
    structs: HashMap<String, Struct>,
    /// The values of enums by their names.
    enums: HashMap<String, HashMap<String, u32>>,
    /// With their ids.
    typedefs: HashMap<String, u32>,
    /// With their ids.
    variables: HashMap<String, u32>,
}

impl Btf {
    /// Reads the names that are wanted out of BTF bytes.
    pub fn parse(bytes: &[u8], wanted: &HashSet<&str>) -> Result<Self> {
        let table = Table::parse(bytes)?;
        let mut btf = Self::default();
        let types = table.types(wanted)?;
        for (id, name) in &types.named {
            let (id, ty) = (*id, table.at(types.at[*id as usize - 1])?);
            match ty.kind {
                kind::FUNC => {
                    let proto = table.resolve(&types, ty.size_or_type);
                    let args = proto.map_or(0, |proto| proto.vlen);
                    let function = Function { id, args };
                    btf.functions.entry((*name).to_owned()).or_insert(function);
                }
                kind::STRUCT => {
                    let members = table.members(&types, &ty)?;
                    let size = u64::from(ty.size_or_type);
                    btf.structs
                        .entry((*name).to_owned())
                        .or_insert(Struct { size, members });
                }
                kind::ENUM => {
                    let values = table.values(&ty)?;
                    btf.enums.entry((*name).to_owned()).or_insert(values);
                }
                kind::TYPEDEF => {
                    btf.typedefs.entry((*name).to_owned()).or_insert(id);
                }
                kind::VAR => {
                    btf.variables.entry((*name).to_owned()).or_insert(id);
                }
                _ => {}
            }
        }
        Ok(btf)
    }

    /// A function that was asked for.
    pub fn function(&self, name: &str) -> Option<Function> {
        self.functions.get(name).copied()
    }

    /// A struct that was asked for.
    pub fn structure(&self, name: &str) -> Option<&Struct> {
        self.structs.get(name)
    }

    /// The values of an enum that was asked for.
    pub fn enumeration(&self, name: &str) -> Option<&HashMap<String, u32>> {
        self.enums.get(name)
    }

    /// The id of a typedef that was asked for.
    pub fn typedef(&self, name: &str) -> Option<u32> {
        self.typedefs.get(name).copied()
    }

    /// The id of a variable that was asked for: of those that each CPU has its own of.
    pub fn variable(&self, name: &str) -> Option<u32> {
        self.variables.get(name).copied()
    }

    /// Whether a typedef that was asked for exists.
    pub fn has_typedef(&self, name: &str) -> bool {
        self.typedefs.contains_key(name)
    }

    /// Functions and tracepoints that were asked for, as types of aya's, with the ids that the kernel knows
    /// them by; others than those are not looked for.
    ///
    /// Attaching a program looks for its target by going through all types and their names. There
    /// are more than a hundred thousand; here those that nobody looks for are nameless.
    ///
    /// # Errors
    ///
    /// aya does not take them.
    pub fn for_attaching(&self, functions: &[&str], tracepoints: &[&str]) -> Result<aya::Btf> {
        let functions = functions.iter().filter_map(|&name| {
            let id = self.function(name)?.id;
            Some((id, (kind::FUNC, name.to_owned())))
        });
        let typedefs = tracepoints.iter().filter_map(|tracepoint| {
            let name = tracepoint_typedef(tracepoint);
            Some((self.typedef(&name)?, (kind::TYPEDEF, name)))
        });
        let mut named: BTreeMap<u32, (u32, String)> = functions.collect();
        let typedefs: BTreeMap<u32, (u32, String)> = typedefs.collect();
        // A function can be added one by one, which takes less; a typedef comes with all before it.
        let together = typedefs.keys().next_back().copied().unwrap_or(0);
        named.extend(typedefs);
        let later = named.split_off(&(together + 1));
        let bytes = bytes_of(together, &named);
        let mut types = aya::Btf::parse(&bytes, Endianness::default())
            .context("failed to take types that programs are attached by")?;
        let mut next = together + 1;
        for (id, (_, name)) in later {
            (next..id).for_each(|_| _ = types.add_type(BtfType::Unknown));
            let name = types.add_string(&name);
            types.add_type(BtfType::Func(Func::new(name, 0, FuncLinkage::Static)));
            next = id + 1;
        }
        Ok(types)
    }
}

/// The typedef that stands for a BTF tracepoint.
pub(super) fn tracepoint_typedef(tracepoint: &str) -> String {
    format!("btf_trace_{tracepoint}")
}

/// So many types, of which some have a kind and a name.
fn bytes_of(count: u32, named: &BTreeMap<u32, (u32, String)>) -> Vec<u8> {
    let mut strings = vec![0u8];
    let mut types = vec![entry(0, kind::FWD); count as usize];
    for (id, (kind, name)) in named {
        types[*id as usize - 1] = entry(strings.len() as u32, *kind);
        strings.extend(name.bytes().chain([0]));
    }
    let types = types.as_flattened();
    let (types_length, strings_length) = (types.len() as u32, strings.len() as u32);
    let mut bytes = MAGIC.to_le_bytes().to_vec();
    bytes.extend([1, 0]);
    for word in [24, 0, types_length, types_length, strings_length] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(types);
    bytes.extend(strings);
    bytes
}

/// A type of which no more is told than its name and kind: what it refers to may be any.
fn entry(name: u32, kind: u32) -> [u8; 12] {
    let mut entry = [0; 12];
    entry[..4].copy_from_slice(&name.to_le_bytes());
    entry[4..8].copy_from_slice(&(kind << 24).to_le_bytes());
    entry
}

/// Where every type is, and which have a wanted name.
struct Types<'a> {
    /// Offset of each type's first word. Type ids begin at one; id zero is void.
    at: Vec<u32>,
    /// Ids and names.
    named: Vec<(u32, &'a str)>,
}

struct Table<'a> {
    types: &'a [u8],
    strings: &'a [u8],
}

impl<'a> Table<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self> {
        let magic = bytes.get(..2).context("BTF is empty")?;
        ensure!(
            magic == MAGIC.to_le_bytes(),
            "BTF of another byte order, or no BTF"
        );
        let header = word(bytes, 4)? as usize;
        let section = |offset: usize, length: usize| {
            let start = header + word(bytes, offset)? as usize;
            bytes
                .get(start..start + word(bytes, length)? as usize)
                .context("BTF is cut off")
        };
        Ok(Self {
            types: section(8, 12)?,
            strings: section(16, 20)?,
        })
    }

    fn types<'w>(&self, wanted: &HashSet<&'w str>) -> Result<Types<'w>> {
        let sieve = Sieve::new(wanted.iter().map(|name| name.as_bytes()));
        // A thousand names begin like those of the tracepoints.
        let wanted: FxHashSet<&str> = wanted.iter().copied().collect();
        let mut types = Types {
            at: Vec::with_capacity(self.types.len() / 24),
            named: Vec::new(),
        };
        let mut at = 0;
        while at < self.types.len() {
            let ty = self.at(at as u32)?;
            types.at.push(at as u32);
            if ty.name != 0
                && sieve.passes(self.beginning_of(ty.name))
                && let Some(&name) = self.name(ty.name).and_then(|name| wanted.get(name))
            {
                types.named.push((types.at.len() as u32, name));
            }
            at += 12 + extra_bytes(&ty)?;
        }
        Ok(types)
    }

    /// The first eight bytes of a name, and what follows a shorter one; zeros behind the last one.
    fn beginning_of(&self, name: u32) -> u64 {
        first_word(self.strings.get(name as usize..).unwrap_or_default())
    }

    /// The type whose first word is there.
    fn at(&self, at: u32) -> Result<Type> {
        let at = at as usize;
        let info = word(self.types, at + 4)?;
        Ok(Type {
            at,
            name: word(self.types, at)?,
            kind: info >> 24 & 0x1f,
            vlen: (info & 0xffff) as usize,
            size_or_type: word(self.types, at + 8)?,
        })
    }

    fn resolve(&self, types: &Types<'_>, id: u32) -> Option<Type> {
        let at = types.at.get((id as usize).checked_sub(1)?)?;
        self.at(*at).ok()
    }

    fn name(&self, offset: u32) -> Option<&'a str> {
        let rest = self.strings.get(offset as usize..)?;
        let end = rest.iter().position(|&byte| byte == 0)?;
        std::str::from_utf8(&rest[..end]).ok()
    }

    /// The values of an enum of 32 bits.
    fn values(&self, of: &Type) -> Result<HashMap<String, u32>> {
        (0..of.vlen)
            .map(|index| {
                let at = of.at + 12 + 8 * index;
                let name = self.name(word(self.types, at)?).unwrap_or_default();
                Ok((name.to_owned(), word(self.types, at + 4)?))
            })
            .collect()
    }

    /// The members of a struct; those of anonymous members count as its own.
    fn members(&self, types: &Types<'_>, of: &Type) -> Result<HashMap<String, (u64, String)>> {
        let mut members = HashMap::new();
        // With a bitfield the offset's upper byte is its width.
        let flagged = word(self.types, of.at + 4)? >> 31 != 0;
        for index in 0..of.vlen {
            let at = of.at + 12 + 12 * index;
            let name = self.name(word(self.types, at)?).unwrap_or_default();
            let bits = word(self.types, at + 8)?;
            let offset = u64::from(if flagged { bits & 0xff_ffff } else { bits }) / 8;
            let ty = self.resolve(types, word(self.types, at + 4)?);
            match ty {
                Some(inner)
                    if name.is_empty() && matches!(inner.kind, kind::STRUCT | kind::UNION) =>
                {
                    for (name, (inside, of)) in self.members(types, &inner)? {
                        members.insert(name, (offset + inside, of));
                    }
                }
                _ => {
                    let of = ty.and_then(|ty| self.name(ty.name)).unwrap_or_default();
                    members.insert(name.to_owned(), (offset, of.to_owned()));
                }
            }
        }
        Ok(members)
    }
}

/// Bytes that follow the three words of a type.
fn extra_bytes(ty: &Type) -> Result<usize> {
    Ok(match ty.kind {
        kind::INT | kind::VAR | kind::DECL_TAG => 4,
        kind::ARRAY => 12,
        kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12 * ty.vlen,
        kind::ENUM | kind::FUNC_PROTO => 8 * ty.vlen,
        // Pointers, forwards, qualifiers, floats and tags carry nothing more.
        2 | kind::FWD..=12 | 16 | 18 => 0,
        other => bail!("BTF has a type of unknown kind {other}"),
    })
}

fn word(bytes: &[u8], at: usize) -> Result<u32> {
    let bytes = bytes.get(at..at + 4).context("BTF is cut off")?;
    Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

#[cfg(test)]
mod tests {
    use aya_obj::btf::BtfKind;

    use super::*;

    /// `struct inner { int a; int b; }; struct outer { int x; struct { int y; }; struct inner in; };`
    /// and `long vread(char *, char *, unsigned long)` and `enum kind { A = 3, B = 0 }` and the typedef
    /// of a tracepoint, written by hand.
    fn sample() -> Vec<u8> {
        let strings = b"\0int\0inner\0a\0b\0outer\0x\0y\0in\0vread\0kind\0A\0B\0btf_trace_end\0";
        let name = |wanted: &str| {
            let wanted = format!("\0{wanted}\0");
            let at = strings
                .windows(wanted.len())
                .position(|part| part == wanted.as_bytes());
            at.unwrap() as u32 + 1
        };
        let info = |kind: u32, vlen: u32| kind << 24 | vlen;
        let words = [
            [name("int"), info(1, 0), 4, 0x20].as_slice(),
            &[
                name("inner"),
                info(4, 2),
                8,
                name("a"),
                1,
                0,
                name("b"),
                1,
                32,
            ],
            &[0, info(4, 1), 4, name("y"), 1, 0],
            &[name("outer"), info(4, 3), 16],
            &[name("x"), 1, 0, 0, 3, 32, name("in"), 2, 64],
            &[0, info(13, 3), 1, 0, 1, 0, 1, 0, 1],
            &[name("vread"), info(12, 0), 5],
            &[name("kind"), info(6, 2), 4, name("A"), 3, name("B"), 0],
            &[name("btf_trace_end"), info(8, 0), 5],
        ]
        .concat();
        let types: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        for word in [
            24,
            0,
            types.len() as u32,
            types.len() as u32,
            strings.len() as u32,
        ] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(types);
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn finds_functions_with_their_arguments_and_members_of_anonymous_structs() {
        let wanted = HashSet::from(["vread", "outer", "inner", "kind"]);
        let btf = Btf::parse(&sample(), &wanted).unwrap();
        let kind = btf.enumeration("kind").unwrap();
        assert_eq!((kind["A"], kind["B"], kind.len()), (3, 0, 2));
        assert_eq!(btf.function("vread"), Some(Function { id: 6, args: 3 }));
        assert_eq!(btf.function("vread_iter"), None);
        let outer = btf.structure("outer").unwrap();
        assert_eq!(outer.size, 16);
        assert_eq!(outer.members["y"], (4, "int".to_owned()));
        assert_eq!(outer.members["in"], (8, "inner".to_owned()));
    }

    #[test]
    fn what_programs_are_attached_by_has_the_ids_of_the_kernel() {
        let wanted = HashSet::from(["vread", "outer", "kind", "btf_trace_end"]);
        let btf = Btf::parse(&sample(), &wanted).unwrap();
        let id = |types: &aya::Btf, name: &str, kind| types.id_by_type_name_kind(name, kind).ok();
        for (functions, tracepoints, ids) in [
            (&["vread", "kind"][..], &["end"][..], [Some(6), Some(8)]),
            (&["vread"], &[], [Some(6), None]),
            (&[], &["end", "begin"], [None, Some(8)]),
            (&[], &[], [None, None]),
        ] {
            let types = btf.for_attaching(functions, tracepoints).unwrap();
            let found = [
                id(&types, "vread", BtfKind::Func),
                id(&types, "btf_trace_end", BtfKind::Typedef),
            ];
            assert_eq!(found, ids);
            assert_eq!(id(&types, "kind", BtfKind::Func), None);
        }
    }

    #[test]
    fn cut_off_bytes_are_an_error_and_never_a_panic() {
        let sample = sample();
        for length in 0..sample.len() {
            let _ = Btf::parse(&sample[..length], &HashSet::new());
        }
        assert!(Btf::parse(b"", &HashSet::new()).is_err());
        assert!(Btf::parse(b"not BTF at all, but long enough", &HashSet::new()).is_err());
    }
}
