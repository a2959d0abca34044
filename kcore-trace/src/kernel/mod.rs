//! What this kernel is and has: facts, gathered once, from what it says and from trying.
//!
//! Out: [`Facts`], plain data without addresses, which a plan is made from and which can be kept
//! in a file; and [`Addresses`], which stay in the process. No version is ever compared: versions
//! lie where distributions carry changes back.
//!
//! Invariant: gathering leaves nothing attached and never fails because the kernel lacks something;
//! that is a fact like any other.

mod assembly;
pub mod bpf;
pub mod btf;
mod sieve;
pub mod symbols;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;

use anyhow::{Context as _, Result};
use kcore_trace_ebpf::layout::acquire;
use kcore_trace_ebpf::words::{Destination, Kind, Lock};
use serde::{Deserialize, Serialize};

use crate::probes;
use bpf::Target;
use btf::{Btf, tracepoint_typedef};
use symbols::{Range, Symbols};

/// Static locks: their role, and the symbol of the variable.
pub const STATIC_LOCKS: &[(Lock, &str)] = &[
    (Lock::VmapArea, "vmap_area_lock"),
    (Lock::FreeVmapArea, "free_vmap_area_lock"),
    (Lock::PurgeVmapArea, "purge_vmap_area_lock"),
    (Lock::VmapPurge, "vmap_purge_lock"),
    (Lock::Kclist, "kclist_lock"),
];

/// Variables that say where the nodes are (`mm/vmalloc.c`, from 6.9 on).
const NODE_VARIABLES: [&str; 2] = ["vmap_nodes", "nr_vmap_nodes"];
/// The counter that a percpu-rwsem of that name brings along (`include/linux/percpu-rwsem.h`).
const KCLIST_PERCPU: &str = "__percpu_rwsem_rc_kclist_lock";
/// Whether spinlocks are test-and-set (`arch/x86/include/asm/qspinlock.h`).
const TEST_AND_SET_KEY: &str = "virt_spin_lock_key";
/// The slow paths of queued ones, between which a kernel chooses as it boots.
const NATIVE_SLOW_PATH: &str = "native_queued_spin_lock_slowpath";
const PV_SLOW_PATH: &str = "__pv_queued_spin_lock_slowpath";
const PV_OPS: &str = "pv_ops";
/// Where a CPU counts what forbids to preempt it.
const PREEMPT_COUNTS: [&str; 2] = ["__preempt_count", "pcpu_hot"];
/// How far each CPU's memory is from that of the symbols (`mm/percpu.c`).
const PER_CPU_OFFSETS: &str = "__per_cpu_offset";
const TEXT_BOUNDS: [&str; 4] = ["_stext", "_etext", "_text", "_end"];
/// What a copy goes to (`include/linux/uio.h`).
const ITER_TYPE: &str = "iter_type";
/// By which fentry takes functions that begin with what ftrace can patch (`kernel/trace/ftrace.c`,
/// from 5.5 on).
const DIRECT_CALLS: &str = "register_ftrace_direct";
/// The most arguments that every trampoline passes on (six up to 6.5, `arch/x86/net/bpf_jit_comp.c`).
const TRAMPOLINE_ARGUMENTS: usize = 6;

/// What is known of a function.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionFact {
    /// Symbols of that very name in the core kernel; a hook by name needs exactly one.
    pub symbols: usize,
    /// Arguments, where BTF knows the function; fentry needs that.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub args: Option<usize>,
}

/// Offsets in `struct vmap_node`, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeLayout {
    pub size: u64,
    pub busy_lock: u64,
    pub lazy_lock: u64,
    pub pool_lock: u64,
}

/// `struct vmap_block`, offsets in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockLayout {
    #[serde(with = "crate::words")]
    pub kind: Kind,
    pub lock: u64,
    pub free: u64,
}

impl BlockLayout {
    const AREA_BYTES: u64 = size_of::<u64>() as u64;

    /// Of `va`, which stands before `free` (5.10 to 7.3), or nothing is known of blocks.
    pub(crate) fn area(&self) -> u64 {
        self.free.wrapping_sub(Self::AREA_BYTES)
    }
}

/// What reads are told by, offsets in bytes; each absent where the kernel does not tell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReadLayout {
    /// Of `iov_iter.iter_type`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iter_type: Option<u64>,
    /// Values of `enum iter_type`, by [`Destination`].
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub iter_types: BTreeMap<String, u32>,
    /// Of `seq_file.count`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq_count: Option<u64>,
}

/// What tells who takes a lock, and in which context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContextLayout {
    /// Whether it is known where each CPU has its preempt count.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub preempt_count: bool,
    /// Offset of `task_struct.rcu_read_lock_nesting`, in bytes; absent without CONFIG_PREEMPT_RCU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rcu_nesting: Option<u64>,
    /// Offset of `task_struct.pid`, in bytes, if `tgid` follows it; both are 4 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_ids: Option<u64>,
}

/// Why each way of attaching is refused; absent where it is allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusals {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub fentry: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub kprobe: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tracepoint: Option<String>,
}

/// What a kernel is and has, without addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// `uname -r`.
    pub release: String,
    /// `uname -v`.
    pub version: String,
    pub cpus_possible: u32,
    /// PREEMPT_RT: spinlocks are rt-mutexes.
    pub realtime: bool,
    /// `integrity` or `confidentiality` where the kernel is locked down and says so.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub lockdown: Option<String>,
    /// Whether the kernel has BTF.
    pub btf: bool,
    /// Whether /proc/kallsyms shows zeros instead of addresses.
    pub addresses_hidden: bool,
    /// Whether no program may read kernel memory: lockdown=confidentiality.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub memory_unreadable: bool,
    /// `native`, `pv`, `test-and-set` or `unknown`.
    pub spinlocks: String,
    pub refusals: Refusals,
    /// Functions of the tables that exist.
    pub functions: BTreeMap<String, FunctionFact>,
    /// Variables of interest whose address is known.
    pub variables: BTreeSet<String>,
    /// BTF tracepoints of the table that exist.
    pub tracepoints: BTreeSet<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub vmap_node: Option<NodeLayout>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub vmap_block: Option<BlockLayout>,
    #[serde(default)]
    pub reads: ReadLayout,
    #[serde(default)]
    pub contexts: ContextLayout,
}

/// What was found of the running kernel that must not leave the process.
#[derive(Debug, Default)]
pub struct Addresses {
    /// Static locks.
    pub locks: BTreeMap<Lock, u64>,
    /// Base and number of nodes, where they could be read.
    pub nodes: Option<(u64, u64)>,
    /// Text and image bounds.
    pub bounds: BTreeMap<&'static str, u64>,
    /// Text ranges of the sites, by symbol.
    pub sites: Vec<(&'static probes::Site, Range)>,
    /// Text ranges of the functions by which locks are taken.
    pub taken_by: Vec<Range>,
    /// Functions that take a lock, by their index in the contract.
    pub acquire: [u64; acquire::COUNT],
    /// Functions that are hooked by address, since their name is not unique.
    pub by_address: BTreeMap<&'static str, u64>,
    /// Where the preempt counts of CPUs are, and the offsets of the CPUs' memory.
    pub preempt_count: Option<PerCpu>,
    /// What programs are attached by; nothing where there is no BTF.
    pub types: Option<Btf>,
}

impl Facts {
    /// Gathers the facts of the running kernel.
    pub fn gather() -> Result<(Self, Addresses)> {
        let types = read_types()?;
        let has_btf = types.is_some();
        let btf = types.unwrap_or_default();
        let symbols = Symbols::read(&btf, &wanted_symbols())?;
        let facts = Self::from_sources(&btf, has_btf, &symbols)?;
        let spinlocks = spinlocks(&btf, &symbols);
        let addresses = Addresses {
            preempt_count: preempt_count(&btf, &symbols),
            types: has_btf.then_some(btf),
            ..Addresses::find(&facts, &symbols)
        };
        Ok((Self { spinlocks, ..facts }, addresses))
    }

    fn from_sources(btf: &Btf, has_btf: bool, symbols: &Symbols) -> Result<Self> {
        let text = |path: &str| {
            fs::read_to_string(path)
                .map(|text| text.trim().to_owned())
                .ok()
        };
        let version = text("/proc/sys/kernel/version").unwrap_or_default();
        Ok(Self {
            release: text("/proc/sys/kernel/osrelease").context("/proc is not mounted")?,
            cpus_possible: aya::util::nr_cpus().map_or(1, |cpus| cpus as u32),
            realtime: version.contains("PREEMPT_RT") || text("/sys/kernel/realtime").is_some(),
            version,
            lockdown: text("/sys/kernel/security/lockdown").and_then(|text| lockdown(&text)),
            btf: has_btf,
            addresses_hidden: symbols.are_hidden(),
            spinlocks: crate::host::UNKNOWN.to_owned(),
            memory_unreadable: memory_unreadable(btf, symbols),
            refusals: refusals(btf, symbols),
            functions: functions(btf, symbols),
            variables: variables(symbols),
            tracepoints: tracepoints(btf),
            vmap_node: node_layout(btf),
            vmap_block: block_layout(btf),
            reads: read_layout(btf),
            contexts: ContextLayout {
                preempt_count: symbols.address(PER_CPU_OFFSETS, None).is_some()
                    && PREEMPT_COUNTS.iter().any(|name| symbols.count(name) > 0),
                rcu_nesting: member(btf, "task_struct", "rcu_read_lock_nesting"),
                task_ids: member(btf, "task_struct", "pid")
                    .filter(|pid| member(btf, "task_struct", "tgid") == Some(pid + 4)),
            },
        })
    }

    /// A function, if the kernel has it in any way.
    pub fn function(&self, name: &str) -> FunctionFact {
        self.functions.get(name).copied().unwrap_or_default()
    }

    /// Whether that is the paravirtual slow path of spinlocks on a kernel that chose the native one.
    pub fn is_passed_over(&self, function: &str) -> bool {
        function == PV_SLOW_PATH && self.spinlocks == NATIVE
    }

    /// Whether the segment list of /proc/kcore is a percpu-rwsem, whose readers pass no function.
    pub fn kclist_is_percpu(&self) -> bool {
        self.variables.contains(KCLIST_PERCPU)
    }

    /// The label of the era (`mm/vmalloc.c`): nodes came with 6.9, `vread_iter` with 6.4; in the
    /// series of March 2023 the lock of a block is a mutex and that of the index an rwsem.
    pub fn era(&self) -> Era {
        let has = |name: &str| self.function(name) != FunctionFact::default();
        let sleeping = self
            .vmap_block
            .is_some_and(|block| block.kind == Kind::Mutex);
        match (
            self.vmap_node.is_some(),
            sleeping,
            has("vread_iter"),
            has("vread"),
        ) {
            (true, ..) => Era::PerNode,
            (_, true, true, _) => Era::RwsemIter,
            (_, true, false, true) => Era::Rwsem,
            (_, false, true, _) => Era::SpinlockIter,
            (_, false, false, true) => Era::Spinlock,
            _ => Era::Unknown,
        }
    }
}

/// The types that are wanted, where the kernel shows its types.
fn read_types() -> Result<Option<Btf>> {
    let Some(bytes) = btf::bytes() else {
        return Ok(None);
    };
    let wanted = wanted_types();
    let names = wanted.iter().map(String::as_str).collect();
    let btf = Btf::parse(&bytes, &names)
        .with_context(|| format!("failed to read the kernel's types from {}", btf::PATH))?;
    Ok(Some(btf))
}

/// A named group of kernels; a label for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Era {
    Spinlock,
    SpinlockIter,
    Rwsem,
    RwsemIter,
    PerNode,
    Unknown,
}

impl Era {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Spinlock => "spinlock",
            Self::SpinlockIter => "spinlock-iter",
            Self::Rwsem => "rwsem",
            Self::RwsemIter => "rwsem-iter",
            Self::PerNode => "per-node",
            Self::Unknown => "unknown",
        }
    }
}

impl Addresses {
    fn find(facts: &Facts, symbols: &Symbols) -> Self {
        // Tells which of several equal names is meant: these are functions of `mm/vmalloc.c`.
        let anchor = op_names().find_map(|name| symbols.address(name, None));
        let ranges = probes::SITES.iter().flat_map(|site| {
            let ranges = symbols.ranges(site.symbol, anchor);
            ranges.into_iter().map(move |range| (site, range))
        });
        let mut sites: Vec<_> = ranges.collect();
        sites.sort_by_key(|(_, range)| range.start);
        let taken_by = probes::taken_by().flat_map(|name| symbols.ranges(name, anchor));
        let of = |name: &'static str| Some((name, symbols.address(name, anchor)?));
        Self {
            types: None,
            locks: STATIC_LOCKS
                .iter()
                .filter_map(|&(lock, name)| Some((lock, symbols.address(name, anchor)?)))
                .collect(),
            nodes: facts.vmap_node.and_then(|_| nodes(symbols, anchor)),
            bounds: TEXT_BOUNDS.into_iter().filter_map(of).collect(),
            sites,
            taken_by: taken_by.collect(),
            acquire: acquire::SYMBOLS.map(|name| symbols.address(name, None).unwrap_or(0)),
            by_address: probes::SEQUENCE.into_iter().filter_map(of).collect(),
            preempt_count: None,
        }
    }
}

/// A variable that each CPU has its own of.
#[derive(Clone, Copy, Debug)]
pub struct PerCpu {
    symbol: u64,
    /// The array `__per_cpu_offset`.
    offsets: u64,
    /// Its BTF id, and where in it the wanted member is.
    variable: Option<(u32, u64)>,
    /// A function to try programs against.
    anchor: Option<Target>,
}

impl PerCpu {
    /// The address of the one of a CPU.
    ///
    /// # Errors
    ///
    /// Those of reading kernel memory.
    pub fn of(self, cpu: u32) -> Result<u64> {
        let offset = bpf::peek(self.offsets + 8 * u64::from(cpu))?;
        Ok(self.symbol.wrapping_add(offset))
    }

    /// The id of the variable and the offset in it, if a program may read it by its type.
    pub fn typed(self) -> Option<(u32, u64)> {
        let (id, offset) = self.variable?;
        bpf::try_read_per_cpu(self.anchor?, id, offset as i16)
            .inspect_err(|error| log::debug!("no reading of the preempt count by type: {error}"))
            .ok()?;
        Some((id, offset))
    }
}

/// Where the preempt counts are: a variable of their own, or from 6.2 to 6.14 a member of another
/// (`arch/x86/include/asm/current.h`).
fn preempt_count(btf: &Btf, symbols: &Symbols) -> Option<PerCpu> {
    let [own, hot] = PREEMPT_COUNTS;
    let own = symbols.address(own, None).map(|at| (own, at, 0));
    let of_hot = || {
        let offset = member(btf, hot, "preempt_count")?;
        Some((hot, symbols.address(hot, None)?, offset))
    };
    let (name, at, offset) = own.or_else(of_hot)?;
    Some(PerCpu {
        symbol: at + offset,
        offsets: symbols.address(PER_CPU_OFFSETS, None)?,
        variable: btf.variable(name).map(|id| (id, offset)),
        anchor: trial(btf, symbols),
    })
}

/// The offset of a member, in bytes.
fn member(btf: &Btf, of: &str, member: &str) -> Option<u64> {
    let of = btf.structure(of)?;
    of.members.get(member).map(|(offset, _)| *offset)
}

/// Base and number of the nodes: `vmap_nodes` is a pointer, `nr_vmap_nodes` an int.
fn nodes(symbols: &Symbols, anchor: Option<u64>) -> Option<(u64, u64)> {
    let [base, count] = NODE_VARIABLES.map(|name| peek(symbols.address(name, anchor)?));
    let (base, count) = (base?, count? & 0xffff_ffff);
    (base != 0 && (1..=128).contains(&count)).then_some((base, count))
}

/// A word of kernel memory; why it can't be read is for whoever asked for diagnostics.
fn peek(address: u64) -> Option<u64> {
    bpf::peek(address)
        .inspect_err(|error| log::debug!("{error:#}"))
        .ok()
}

/// What [`Facts::spinlocks`] says of those that queue by the native slow path, by the paravirtual one, and of
/// those that wait without a queue.
const NATIVE: &str = "native";
pub const PARAVIRTUAL: &str = "pv";
pub const TEST_AND_SET: &str = "test-and-set";

/// Which slow path spinlocks have: a static key says test-and-set, `pv_ops` says paravirtual.
fn spinlocks(btf: &Btf, symbols: &Symbols) -> String {
    let member = |name: &str, member: &str| {
        btf.structure(name)
            .and_then(|of| of.members.get(member))
            .map(|(offset, _)| *offset)
    };
    let read = || {
        let pv_ops = symbols.address(PV_OPS, None)?;
        let slow_path = pv_ops
            + member("paravirt_patch_template", "lock")?
            + member("pv_lock_ops", "queued_spin_lock_slowpath")?;
        let key = peek(symbols.address(TEST_AND_SET_KEY, None)?)?;
        Some((key & 0xffff_ffff, peek(slow_path)?))
    };
    let is = |name: &str, address: u64| symbols.address(name, None) == Some(address);
    match read() {
        Some((_, slow_path)) if is(PV_SLOW_PATH, slow_path) => PARAVIRTUAL,
        Some((0, slow_path)) if is(NATIVE_SLOW_PATH, slow_path) => NATIVE,
        Some((1.., _)) => TEST_AND_SET,
        _ => crate::host::UNKNOWN,
    }
    .to_owned()
}

fn wanted_types() -> HashSet<String> {
    let structs = [
        "vmap_node",
        "rb_list",
        "vmap_block",
        "paravirt_patch_template",
        "pv_lock_ops",
        "iov_iter",
        "seq_file",
        "task_struct",
        PREEMPT_COUNTS[0],
        PREEMPT_COUNTS[1],
    ];
    let functions = function_names();
    let typedefs = tracepoint_names().map(tracepoint_typedef);
    structs
        .into_iter()
        .chain([ITER_TYPE])
        .chain(symbols::TYPES)
        .chain(functions)
        .map(str::to_owned)
        .chain(typedefs)
        .collect()
}

fn wanted_symbols() -> HashSet<&'static str> {
    let statics = STATIC_LOCKS.iter().map(|(_, name)| *name);
    let sites = probes::SITES.iter().map(|site| site.symbol);
    let sites = sites.chain(probes::taken_by());
    let others = [
        KCLIST_PERCPU,
        TEST_AND_SET_KEY,
        PV_OPS,
        PV_SLOW_PATH,
        PER_CPU_OFFSETS,
        DIRECT_CALLS,
    ];
    function_names()
        .map(|name| name.split_once('.').map_or(name, |(plain, _)| plain))
        .chain(statics)
        .chain(sites)
        .chain(NODE_VARIABLES)
        .chain(TEXT_BOUNDS)
        .chain(others)
        .chain(PREEMPT_COUNTS)
        .collect()
}

/// Every BTF tracepoint of the tables.
fn tracepoint_names() -> impl Iterator<Item = &'static str> {
    let names = probes::TRACEPOINTS.iter().map(|(name, _)| *name);
    names.chain([probes::RELEASE_TRACEPOINT, probes::SWITCH.0])
}

/// Every function of the table of ops.
fn op_names() -> impl DoubleEndedIterator<Item = &'static str> {
    probes::OPS.iter().flat_map(|op| op.symbols.iter().copied())
}

/// Every function of the tables that a hook may be put on, or a program ask for.
fn function_names() -> impl Iterator<Item = &'static str> {
    let scopes = probes::BLOCK_SCOPES
        .iter()
        .flat_map(|(symbols, _)| symbols.iter().copied());
    let locks = probes::LOCK_FUNCTIONS
        .iter()
        .flat_map(|function| function.symbols.iter().copied());
    let inside = probes::INSIDE
        .iter()
        .flat_map(|function| function.symbols.iter().copied());
    let audit = probes::AUDIT.iter().map(|(symbol, _)| *symbol);
    op_names()
        .chain(scopes)
        .chain(audit)
        .chain(locks)
        .chain(probes::SEQUENCE)
        .chain(inside)
        .chain([
            probes::NESTED_MUTEX,
            probes::CGROUP_HELPER,
            probes::TASK_HELPER,
            probes::ARGUMENT_HELPER,
        ])
}

fn functions(btf: &Btf, symbols: &Symbols) -> BTreeMap<String, FunctionFact> {
    let fact = |name: &str| FunctionFact {
        symbols: symbols.count(name),
        args: btf.function(name).map(|function| function.args),
    };
    let names = function_names().map(str::to_owned);
    let clones = op_names().flat_map(|name| symbols.clones(name));
    names
        .chain(clones.map(str::to_owned))
        .map(|name| {
            let fact = fact(&name);
            (name, fact)
        })
        .filter(|(_, fact)| *fact != FunctionFact::default())
        .collect()
}

fn variables(symbols: &Symbols) -> BTreeSet<String> {
    let statics = STATIC_LOCKS.iter().map(|(_, name)| *name);
    statics
        .chain(NODE_VARIABLES)
        .chain([KCLIST_PERCPU])
        .filter(|name| symbols.count(name) > 0)
        .map(str::to_owned)
        .collect()
}

fn tracepoints(btf: &Btf) -> BTreeSet<String> {
    tracepoint_names()
        .filter(|name| btf.has_typedef(&tracepoint_typedef(name)))
        .map(str::to_owned)
        .collect()
}

fn node_layout(btf: &Btf) -> Option<NodeLayout> {
    let node = btf.structure("vmap_node")?;
    let list_lock = btf.structure("rb_list")?.members.get("lock")?.0;
    let offset = |name: &str| Some(node.members.get(name)?.0);
    Some(NodeLayout {
        size: node.size,
        busy_lock: offset("busy")? + list_lock,
        lazy_lock: offset("lazy")? + list_lock,
        pool_lock: offset("pool_lock")?,
    })
}

fn block_layout(btf: &Btf) -> Option<BlockLayout> {
    let block = btf.structure("vmap_block")?;
    let (lock, of) = block.members.get("lock")?;
    let kind = if of == "mutex" {
        Kind::Mutex
    } else {
        Kind::Spinlock
    };
    let (area, _) = block.members.get("va")?;
    let (free, _) = block.members.get("free")?;
    (area + BlockLayout::AREA_BYTES == *free).then_some(BlockLayout {
        kind,
        lock: *lock,
        free: *free,
    })
}

fn read_layout(btf: &Btf) -> ReadLayout {
    let values = btf.enumeration(ITER_TYPE);
    let value = |destination: &Destination| {
        let name = destination.name();
        let value = values?.get(&format!("ITER_{}", name.to_uppercase()))?;
        Some((name.to_owned(), *value))
    };
    ReadLayout {
        iter_type: member(btf, "iov_iter", "iter_type"),
        iter_types: Destination::ALL.iter().filter_map(value).collect(),
        seq_count: member(btf, "seq_file", "count"),
    }
}

/// The function that programs are tried on: any that is hooked, but the seldom called of the last
/// rows of the table rather than others.
fn trial(btf: &Btf, symbols: &Symbols) -> Option<Target> {
    let mut names = op_names().rev().chain(function_names());
    names.find_map(|name| {
        let function = btf.function(name)?;
        let fits = symbols.count(name) == 1 && function.args <= TRAMPOLINE_ARGUMENTS;
        fits.then_some(Target::Function(function.id))
    })
}

/// Tries each way of attaching, against something that every kernel has.
fn refusals(btf: &Btf, symbols: &Symbols) -> Refusals {
    let fentry = match trial(btf, symbols) {
        Some(target) => fentry_refusal(target, symbols),
        None => Some("the kernel's BTF has no functions".to_owned()),
    };
    Refusals {
        fentry,
        kprobe: bpf::try_kprobe().err(),
        tracepoint: (!btf.has_typedef(&tracepoint_typedef("contention_begin"))).then(|| {
            "the kernel has no lock:contention_begin (it came with 5.19) or no BTF".to_owned()
        }),
    }
}

/// A kernel loads programs for functions that it cannot attach them to (`register_fentry`,
/// `kernel/bpf/trampoline.c`). To attach takes long, and so is tried only where it may fail.
fn fentry_refusal(target: Target, symbols: &Symbols) -> Option<String> {
    if let Err(error) = bpf::try_load(target) {
        return Some(refused(&error));
    }
    if symbols.count(DIRECT_CALLS) > 0 {
        return None;
    }
    let error = bpf::try_attach(target).err()?;
    Some(format!(
        "no program can be attached to a function ({error}; CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS is off)"
    ))
}

/// Whether programs can be loaded, but none that reads kernel memory
/// (`security_locked_down(LOCKDOWN_BPF_READ_KERNEL)`, `kernel/trace/bpf_trace.c`).
fn memory_unreadable(btf: &Btf, symbols: &Symbols) -> bool {
    let function = trial(btf, symbols);
    let tracepoint = btf.typedef(&tracepoint_typedef("contention_begin"));
    let tracepoint = tracepoint.map(Target::Tracepoint);
    // For a function the kernel goes through its symbols.
    let targets = || tracepoint.into_iter().chain(function);
    let can_read = targets().any(|target| bpf::try_read(target).is_ok());
    !can_read && targets().any(|target| bpf::try_load(target).is_ok())
}

fn refused(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM) => "the kernel refuses it (EPERM: lockdown, or not privileged)".into(),
        _ => format!("the kernel refuses it ({error})"),
    }
}

/// The mode between brackets, unless it is `none`.
fn lockdown(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    let (mode, _) = rest.split_once(']')?;
    (mode != "none").then(|| mode.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lockdown_is_what_stands_between_brackets() {
        assert_eq!(
            lockdown("none [integrity] confidentiality"),
            Some("integrity".into())
        );
        assert_eq!(lockdown("[none] integrity confidentiality"), None);
    }
}
