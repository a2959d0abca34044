//! From a plan to programs that count: sets the constants, loads what the plan names, attaches.
//!
//! In: a [`Plan`] and the [`Addresses`]. Out: a [`Session`], which owns the programs and their
//! links; dropping it detaches everything. A hook that the kernel refuses at the last moment is
//! replaced by a kprobe where that measures the same, else it is added to what is missing.
//!
//! Invariant: only programs of the plan are loaded. Maps are complete before the first attach.

use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::thread;

use anyhow::{Context as _, Result};
use aya::maps::{Array, MapData};
use aya::programs::{BtfTracePoint, FEntry, FExit, KProbe, Program, ProgramError};
use aya::{Btf, Ebpf, EbpfLoader, Pod};
use aya_log::EbpfLogger;
use aya_obj::generated::bpf_prog_info;
use kcore_trace_ebpf::bucket;
use kcore_trace_ebpf::layout::{
    HISTOGRAMS, HOLDER_STACKS, Place, READERS, SITES, SLOTS, SiteRange, SiteTable, address, audit,
    blame, block, constant, flag, holder, node, read, text,
};
use kcore_trace_ebpf::words::{Context, Destination, Intent, Kind, Lock, Op, Source, cell};
use log::Log;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::chroot;
use thiserror::Error;

use crate::contexts;
use crate::counters::{self, Counters, Whole};
use crate::diagnostics;
use crate::histograms;
use crate::host;
use crate::kernel::{Addresses, Facts, PerCpu};
use crate::model::{Level, Missing};
use crate::object::Object;
use crate::plan::{FoundBy, Hooks, Plan, PlannedHook};
use crate::probes::{ARGUMENT_HELPER, Attach, CGROUP_HELPER, TASK_HELPER, program};
use crate::syscall;

/// Bytes of a page, and of the alignment that the page allocator gives to a whole order.
const PAGE: u64 = 4096;

/// Why measuring cannot begin.
#[derive(Debug, Error)]
pub enum LoadError {
    #[error(
        "no permission to load BPF programs: {missing} is missing; run it with sudo, or grant the capability"
    )]
    Permission { missing: String },
    #[error("the verifier refused the program `{program}`; -v shows its log")]
    Verifier { program: String, log: String },
    #[error(
        "the hook on `{target}`, without which the others would tell half of it, was refused: {reason}; {remedy}"
    )]
    Hook {
        target: String,
        reason: String,
        remedy: &'static str,
    },
    #[error("no hook on any lock could be attached: {reasons}; {remedy}")]
    Nothing {
        reasons: String,
        remedy: &'static str,
    },
}

/// What a program has cost since it was loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramCost {
    pub name: String,
    pub runs: u64,
    pub run_ns: u64,
    /// Runs that the kernel skipped. Kernels before 5.12 do not count them, by kprobe none before
    /// 6.7.
    pub recursion_misses: u64,
}

/// Has the kernel keep the run time of every BPF program for as long as the result lives.
///
/// # Errors
///
/// It needs CAP_SYS_ADMIN.
pub(crate) fn enable_statistics() -> Result<OwnedFd> {
    aya::sys::enable_stats(aya::sys::Stats::RunTime).context(
        "failed to have the kernel count the run time of programs; run it with CAP_SYS_ADMIN, or use `sysctl kernel.bpf_stats_enabled=1`",
    )
}

/// What programs log goes through it; aya names it.
const LOGS: &str = "AYA_LOGS";
/// The section of the programs with the text ranges of the vmalloc functions.
const SITE_RANGES: &str = ".bss.sites";

/// The table of them, for the map.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Table(SiteTable);

// SAFETY: a struct of integers without padding.
unsafe impl Pod for Table {}

/// What can be done before there is a plan. A loader begins by reading all types of the kernel, before
/// it can be told that nobody wants them, which takes longer than everything else of loading: where
/// we may, it finds none, and where not, it reads them while the facts are gathered.
pub struct Preparation(thread::JoinHandle<EbpfLoader<'static>>);

impl Preparation {
    pub fn start() -> Self {
        Self(thread::spawn(|| {
            if let Err(error) = leave_types_behind() {
                log::debug!("the loader reads the kernel's types, which takes longer: {error:#}");
            }
            EbpfLoader::new()
        }))
    }
}

/// Changes the root folder of this thread, and of no other, to one without types of the kernel.
fn leave_types_behind() -> Result<()> {
    unshare(CloneFlags::CLONE_FS).context("failed to leave the folders of the process")?;
    chroot("/proc/self").context("failed to change the root folder (CAP_SYS_CHROOT)")
}

/// The programs while they count.
pub struct Session {
    object: Ebpf,
    /// Reads what the programs log; nothing where diagnostics are off.
    logger: Option<EbpfLogger<&'static dyn Log>>,
    loaded: Vec<String>,
    /// The links of programs by kprobe, where the kernel counts what they miss.
    kprobes: Vec<(String, OwnedFd)>,
    /// Whether holds of spinlocks are kept at their places.
    holds_at_place: bool,
    /// The plan, with what turned out to be missing.
    pub plan: Plan,
}

impl Session {
    /// Loads and attaches.
    pub fn start(
        preparation: Preparation,
        plan: Plan,
        facts: &Facts,
        addresses: &Addresses,
    ) -> Result<Self> {
        check_capabilities()?;
        let loader = preparation.0.join();
        let loader = loader.map_err(|_| anyhow::anyhow!("failed to prepare for loading"))?;
        let constants = Constants::new(&plan, facts, addresses);
        let object = Object::with(|name| may_be_attached(&plan, name))?;
        let mut object = load_object(loader, object, &constants, facts, addresses)?;
        let wanted = diagnostics::kernel_level() > 0;
        let logger = wanted.then(|| EbpfLogger::init(&mut object)).transpose();
        let mut session = Self {
            object,
            holds_at_place: constants.flags[flag::HOLDS_AT_PLACE] != 0,
            logger: logger.context("failed to read the log of the programs")?,
            loaded: Vec::new(),
            kprobes: Vec::new(),
            plan,
        };
        session.fill_sites(addresses)?;
        session.fill_places(&constants)?;
        histograms::prepare(&mut session.object, possible_ids(facts))?;
        let preempt_counts = addresses.preempt_count;
        let audits = !session.plan.contexts.is_empty();
        if let Some(preempt_counts) = preempt_counts
            && audits
            && constants.preempt_count.is_none()
        {
            contexts::prepare(&mut session, preempt_counts)?;
        }
        session.attach_all(addresses)?;
        session.watch_kprobes();
        if audits {
            session.calibrate_contexts();
        }
        Ok(session)
    }

    /// Has the audit begin, or notes what it cannot see and why.
    fn calibrate_contexts(&mut self) {
        let at_entry = self.plan.hooks == Hooks::Kprobe;
        match contexts::calibrate(self, at_entry) {
            Ok(told) => {
                if !told.preemption {
                    let reason = "this kernel does not count it (CONFIG_PREEMPT_COUNT is off)";
                    self.cannot_tell(Context::PreemptionOff, "preemption off", reason);
                }
                if !told.rcu && self.plan.contexts.contains(&Context::Rcu) {
                    let reason =
                        "their depth cannot be read: it is zero where we know that it is not";
                    self.cannot_tell(Context::Rcu, "RCU read sections", reason);
                }
            }
            Err(error) => {
                self.plan.contexts.clear();
                self.miss("audit", format!("{error:#}"));
            }
        }
    }

    fn cannot_tell(&mut self, context: Context, hook: &str, reason: &str) {
        self.plan.contexts.retain(|seen| *seen != context);
        self.miss(hook, reason.to_owned());
    }

    fn miss(&mut self, hook: &str, reason: String) {
        let hook = hook.to_owned();
        let missing = &mut self.plan.coverage.missing;
        missing.push(Missing { hook, reason });
    }

    /// Keeps the links of kprobes at hand, to ask what they missed, or says that nobody knows.
    fn watch_kprobes(&mut self) {
        let id = |name: &String| match self.object.program(name)? {
            program @ Program::KProbe(_) => Some((information(program)?.id, name.clone())),
            _ => None,
        };
        let by_kprobe = self.loaded.iter().filter_map(id).collect();
        match kprobe_links(&by_kprobe) {
            Ok(links) => self.kprobes = links,
            Err(unknown) => {
                let reason = format!(
                    "{unknown}: where a probe is passed in an interrupt of another, or by more \
                     tasks at once than it has instances for their returns, its program does not run"
                );
                self.miss("skipped runs of kprobes", reason);
            }
        }
    }

    /// What the programs count.
    pub(crate) fn counters(&self) -> Result<Counters> {
        Counters::new(&self.object)
    }

    /// Has the counters look for cells that occur.
    pub(crate) fn look_for_cells(&self, counters: &mut Counters) -> Result<()> {
        counters.look_for_cells(&self.object)
    }

    /// Has the counters look at the cells of holds that are going on.
    pub(crate) fn look_at_held(&self, counters: &mut Counters) -> Result<()> {
        counters.look_at_held(self.keeping_holds())
    }

    /// How many waits and holds are going on.
    pub(crate) fn in_flight(&self, counters: &Counters) -> Result<(u64, u64)> {
        let (waits, holds) = counters.in_flight(self.keeping_holds())?;
        Ok((waits, holds.len() as u64))
    }

    /// The object, if holds are kept in it at the places of locks.
    fn keeping_holds(&self) -> Option<&Ebpf> {
        self.holds_at_place.then_some(&self.object)
    }

    /// Gives histograms to series.
    pub(crate) fn hand_out(&mut self, counters: &mut Counters, wanted: &[usize]) -> Result<()> {
        counters.hand_out(&mut self.object, wanted)
    }

    /// An array of the object, to write.
    pub(crate) fn array_mut<T: Pod>(&mut self, name: &str) -> Result<Array<&mut MapData, T>> {
        let map = self
            .object
            .map_mut(name)
            .with_context(|| format!("no map `{name}`"))?;
        Array::try_from(map).with_context(|| format!("map `{name}` has another type"))
    }

    /// What the kernel says of each program. It keeps the run time only while
    /// `kernel.bpf_stats_enabled` is on, or [`enable_statistics`] is in force.
    pub(crate) fn program_costs(&self) -> Vec<ProgramCost> {
        let cost = |name: &String| {
            let info = information(self.object.program(name)?)?;
            let links = self.kprobes.iter().filter(|(program, _)| program == name);
            let missed =
                links.filter_map(|(_, link)| syscall::missed_kprobes(link.as_fd()).ok()?);
            Some(ProgramCost {
                name: name.clone(),
                runs: info.run_cnt,
                run_ns: info.run_time_ns,
                recursion_misses: info.recursion_misses + missed.sum::<u64>(),
            })
        };
        self.loaded.iter().filter_map(cost).collect()
    }

    /// Passes on what the programs logged.
    pub(crate) fn flush_log(&mut self) {
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
    }

    /// How many programs are attached.
    pub fn program_count(&self) -> usize {
        self.loaded.len()
    }

    fn fill_sites(&mut self, addresses: &Addresses) -> Result<()> {
        let beyond = SiteRange {
            start: u64::MAX,
            end: u64::MAX,
            ..SiteRange::default()
        };
        let mut table = SiteTable {
            first: 0,
            ranges: [beyond; SITES],
        };
        let sites = addresses.sites.iter().map(|(site, range)| SiteRange {
            start: range.start,
            end: range.end,
            op: site.op as u32,
            intent: site.intent as u32,
            takes_block_lock: site.takes_block_lock.into(),
            is_lock_function: 0,
        });
        let taken_by = addresses.taken_by.iter().map(|range| SiteRange {
            start: range.start,
            end: range.end,
            is_lock_function: 1,
            ..SiteRange::default()
        });
        let mut found: Vec<_> = sites.chain(taken_by).collect();
        found.sort_by_key(|range| range.start);
        let rows = table.ranges.get_mut(..found.len());
        let rows = rows.with_context(|| {
            format!(
                "{} functions take locks, and {SITES} are expected",
                found.len()
            )
        })?;
        rows.copy_from_slice(&found);
        let mut map = self.array_mut(SITE_RANGES)?;
        map.set(0, Table(table), 0)
            .context("failed to write the table of call sites")
    }

    /// Names the spinlocks at whose places their holds are kept.
    fn fill_places(&mut self, constants: &Constants) -> Result<()> {
        if !self.holds_at_place {
            return Ok(());
        }
        let mut places = Box::new([Place::NEVER; holder::PLACES]);
        for (lock, index) in [
            (Lock::VmapArea, address::SPIN_VMAP_AREA),
            (Lock::FreeVmapArea, address::SPIN_FREE_VMAP_AREA),
            (Lock::PurgeVmapArea, address::SPIN_PURGE_VMAP_AREA),
        ] {
            let place = holder::fixed(lock as u64) as usize;
            places[place].name = blame::name(constants.locks[index]);
        }
        let mut map = self.array_mut(counters::HOLDERS)?;
        map.set(0, Whole(*places), 0)
            .context("failed to name the spinlocks")
    }

    fn attach_all(&mut self, addresses: &Addresses) -> Result<()> {
        let programs = self.plan.programs.iter();
        let (tracepoints, functions): (Vec<_>, Vec<_>) =
            programs.partition(|hook| hook.attach == Attach::Tracepoint);
        let [functions, tracepoints] = [functions, tracepoints]
            .map(|hooks| hooks.iter().map(|hook| &*hook.target).collect::<Vec<_>>());
        let types = addresses.types.as_ref();
        let btf = types
            .map(|types| types.for_attaching(&functions, &tracepoints))
            .transpose()?;
        let mut index = 0;
        while index < self.plan.programs.len() {
            let hook = self.plan.programs[index].clone();
            match self.attach(&hook, btf.as_ref(), addresses) {
                Ok(()) => index += 1,
                Err(error) => self.refused(index, &hook, error)?,
            }
        }
        if self.plan.locks.is_empty() {
            let missing = self.plan.coverage.missing.iter();
            let reasons: Vec<_> = missing
                .map(|m| format!("{}: {}", m.hook, m.reason))
                .collect();
            return Err(LoadError::Nothing {
                reasons: reasons.join("; "),
                remedy: remedy(self.plan.hooks),
            }
            .into());
        }
        Ok(())
    }

    /// Puts a kprobe in place of a refused hook on an op, or notes what is missing.
    fn refused(&mut self, index: usize, hook: &PlannedHook, error: anyhow::Error) -> Result<()> {
        if let Some(LoadError::Verifier { .. } | LoadError::Permission { .. }) =
            error.downcast_ref()
        {
            return Err(error);
        }
        if self.plan.relies_on(hook) {
            return Err(LoadError::Hook {
                target: hook.target.clone(),
                reason: format!("{error:#}"),
                remedy: remedy(self.plan.hooks),
            }
            .into());
        }
        log::debug!("{} on {}: {error:#}", hook.attach.name(), hook.target);
        match instead_of(hook) {
            Some(other) => self.plan.programs[index] = other,
            None => {
                let reason = format!("the kernel refused the {}: {error:#}", hook.attach.name());
                self.plan.lose(index, reason);
            }
        }
        Ok(())
    }

    fn attach(
        &mut self,
        hook: &PlannedHook,
        btf: Option<&Btf>,
        addresses: &Addresses,
    ) -> Result<()> {
        let name = &hook.program;
        let program = self.object.program_mut(name);
        let program = program.with_context(|| format!("the object has no program `{name}`"))?;
        let btf = || btf.context("the kernel has no BTF");
        let result = match program {
            Program::FEntry(program) => attach_fentry(program, &hook.target, btf()?),
            Program::FExit(program) => attach_fexit(program, &hook.target, btf()?),
            Program::KProbe(program) => attach_kprobe(program, &hook.target, addresses),
            Program::BtfTracePoint(program) => attach_tracepoint(program, &hook.target, btf()?),
            _ => anyhow::bail!("program `{name}` is of a type that no plan names"),
        };
        result.map_err(|error| explain(name, error))?;
        if log::log_enabled!(log::Level::Debug)
            && let Some(info) = self.object.program(name).and_then(information)
        {
            let (bytes, verified) = (info.xlated_prog_len, info.verified_insns);
            log::debug!("{name}: {} instructions, {verified} verified", bytes / 8);
        }
        self.loaded.push(name.clone());
        Ok(())
    }
}

/// The kprobe that measures the same as a hook on an op.
fn instead_of(hook: &PlannedHook) -> Option<PlannedHook> {
    Op::from_name(&hook.purpose)?;
    let attach = match hook.attach {
        Attach::Fentry => Attach::Kprobe,
        Attach::Fexit => Attach::Kretprobe,
        _ => return None,
    };
    let (stem, _) = hook.program.rsplit_once('_')?;
    Some(PlannedHook {
        attach,
        program: program(stem, attach),
        ..hook.clone()
    })
}

/// Whether a program is of the plan, or may take the place of one that is.
fn may_be_attached(plan: &Plan, name: &str) -> bool {
    let mut hooks = plan.programs.iter();
    hooks.any(|hook| {
        hook.program == name || instead_of(hook).is_some_and(|other| other.program == name)
    })
}

/// What to do where these hooks cannot be attached.
fn remedy(hooks: Hooks) -> &'static str {
    match hooks {
        Hooks::Fentry => "try --hooks kprobe",
        Hooks::Kprobe => "try --hooks fentry, or tracepoint",
        Hooks::Tracepoint => "try --hooks fentry, or kprobe",
    }
}

fn attach_fentry(program: &mut FEntry, target: &str, btf: &Btf) -> Result<(), ProgramError> {
    program.load(target, btf)?;
    program.attach().map(drop)
}

fn attach_fexit(program: &mut FExit, target: &str, btf: &Btf) -> Result<(), ProgramError> {
    program.load(target, btf)?;
    program.attach().map(drop)
}

fn attach_tracepoint(
    program: &mut BtfTracePoint,
    target: &str,
    btf: &Btf,
) -> Result<(), ProgramError> {
    program.load(target, btf)?;
    program.attach().map(drop)
}

fn attach_kprobe(
    program: &mut KProbe,
    target: &str,
    addresses: &Addresses,
) -> Result<(), ProgramError> {
    program.load()?;
    let base = "_stext";
    match (addresses.by_address.get(target), addresses.bounds.get(base)) {
        (Some(address), Some(start)) => program.attach(base, address - start),
        _ => program.attach(target, 0),
    }
    .map(drop)
}

/// The links of programs, by the ids of these, that tell what their kprobes missed.
///
/// # Errors
///
/// Why it is not known of all of them, as a phrase for a person.
fn kprobe_links(programs: &HashMap<u32, String>) -> Result<Vec<(String, OwnedFd)>, String> {
    let (mut found, mut failure) = (Vec::new(), None);
    if programs.is_empty() {
        return Ok(found);
    }
    for link in aya::programs::loaded_links() {
        let link = match link {
            Ok(link) => link,
            // Perhaps of others, and gone by now.
            Err(error) => {
                failure = Some(error.to_string());
                continue;
            }
        };
        let Some(name) = programs.get(&link.program_id()) else {
            continue;
        };
        let told = syscall::open_link(link.id())
            .and_then(|link| Ok((syscall::missed_kprobes(link.as_fd())?, link)));
        match told {
            Ok((Some(_), link)) => found.push((name.clone(), link)),
            Ok((None, _)) => return Err("this kernel does not count them (6.7 does)".into()),
            Err(error) => failure = Some(error.to_string()),
        }
    }
    if found.len() == programs.len() {
        return Ok(found);
    }
    let failure = failure.unwrap_or_else(|| "some have none".into());
    Err(format!("the kernel does not show their links ({failure})"))
}

/// Tells a refusal by the verifier from one of the attach point.
fn explain(name: &str, error: ProgramError) -> anyhow::Error {
    match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => {
            let log = verifier_log.to_string();
            match io_error.raw_os_error() {
                Some(libc::EACCES | libc::EINVAL | libc::E2BIG) if !log.trim().is_empty() => {
                    LoadError::Verifier {
                        program: name.to_owned(),
                        log,
                    }
                    .into()
                }
                _ => anyhow::Error::new(io_error).context(format!("failed to load `{name}`")),
            }
        }
        other => anyhow::Error::new(other).context(format!("failed to attach `{name}`")),
    }
}

fn information(program: &Program) -> Option<bpf_prog_info> {
    syscall::program_info(program.fd().ok()?.as_fd()).ok()
}

fn load_object(
    loader: EbpfLoader<'static>,
    mut object: Object,
    constants: &Constants,
    facts: &Facts,
    addresses: &Addresses,
) -> Result<Ebpf> {
    let cpus = possible_ids(facts);
    let sees_inside = constants.flags[flag::INSIDE] != 0;
    let log_level = diagnostics::kernel_level();
    let of_nodes = cpus * constants.nodes[node::COUNTERS] as u32;
    // How many values an array has; none, if it is not there for this plan.
    let when = |is_used: bool, entries: u32| is_used.then_some(entries);
    let with = |flag: usize, entries| when(constants.flags[flag] != 0, entries);
    let arrays = [
        ("TASKS", Some(slots(cpus))),
        ("COUNTERS", Some(cpus)),
        ("CELLS", Some(cpus * cell::COUNT as u32)),
        ("RARE", Some(cpus * cell::COUNT as u32)),
        ("HISTS", Some(cpus * HISTOGRAMS * bucket::OCTAVES as u32)),
        ("NODE_COUNTERS", when(of_nodes > 0, of_nodes)),
        (
            "BLAME",
            when(constants.knows_holders(), cpus * blame::ROWS as u32),
        ),
        ("INSIDE", when(sees_inside, cell::COUNT as u32)),
        ("COPIES", when(sees_inside, Destination::COUNT as u32)),
        ("READERS", when(sees_inside, READERS + Source::COUNT as u32)),
        ("WORST", when(sees_inside, cpus)),
        ("WORST_STACKS", with(flag::STACKS, cpus)),
        ("HOLDER_STACKS", with(flag::STACKS, HOLDER_STACKS as u32)),
        ("AUDIT", with(flag::AUDIT, cpus)),
    ];
    if let Some(variable) = constants.preempt_count {
        object.name_variable(audit::VARIABLE, variable);
    }
    object.replace_constants(|mark| constants.value(mark));
    object.replace_numbers(|mark| constants.number(mark));
    if log_level == 0 {
        object.leave_out_map(LOGS)?;
    }
    // From here on it borrows the constants.
    let mut loader: EbpfLoader<'_> = loader;
    loader
        // The object carries no types of its own that the kernel would have to be told.
        .btf(None)
        .override_global("ACQUIRE", &addresses.acquire, true)
        .override_global("READS", &constants.reads, true)
        .override_global("AYA_LOG_LEVEL", &log_level, true);
    for (name, entries) in arrays {
        match entries {
            Some(entries) => _ = loader.map_max_entries(name, entries),
            None => object.leave_out_map(name)?,
        }
    }
    loader
        .load(object.bytes())
        .context("failed to create the maps")
}

/// How many task slots there are.
fn slots(cpus: u32) -> u32 {
    cpus.saturating_mul(16).next_power_of_two().max(SLOTS)
}

/// One more than the highest id of a CPU, which is what counters are indexed by: ids can have gaps,
/// and then there are fewer CPUs than that.
fn possible_ids(facts: &Facts) -> u32 {
    let possible = fs::read_to_string("/sys/devices/system/cpu/possible").unwrap_or_default();
    host::cpu_ids(&possible).unwrap_or(facts.cpus_possible)
}

/// The values that the programs are compiled against.
#[derive(Default)]
struct Constants {
    locks: [u64; address::COUNT],
    nodes: [u64; node::COUNT],
    blocks: [u64; block::COUNT],
    text: [u64; text::COUNT],
    flags: [u64; flag::COUNT],
    reads: [u64; read::COUNT],
    numbers: [u32; constant::NUMBERS],
    /// The BTF id of the variable that has the preempt count, where it may be read by its type.
    preempt_count: Option<u32>,
}

impl Constants {
    fn new(plan: &Plan, facts: &Facts, addresses: &Addresses) -> Self {
        let mut constants = Self::default();
        let cpus = possible_ids(facts);
        constants.numbers[constant::CPUS as usize] = cpus;
        constants.numbers[constant::SLOT_MASK as usize] = slots(cpus) - 1;
        constants.set_locks(plan, addresses);
        constants.set_nodes(plan, facts, addresses);
        constants.set_blocks(plan, facts);
        constants.set_text(addresses);
        constants.set_reads(facts);
        let full = plan.level == Level::Full && plan.hooks != Hooks::Tracepoint;
        let spinlocks = |held: bool| {
            plan.locks
                .iter()
                .any(|planned| planned.kind == Kind::Spinlock && planned.holds == held)
        };
        constants.flags[flag::EVERY_ACQUISITION] = full.into();
        constants.flags[flag::AT_ENTRY] = (full && plan.hooks == Hooks::Kprobe).into();
        constants.flags[flag::SPIN_RELEASES] = (full && spinlocks(true)).into();
        constants.flags[flag::INSIDE] = plan.sees_inside().into();
        let audited = !plan.contexts.is_empty();
        constants.flags[flag::AUDIT] = audited.into();
        constants.flags[flag::TYPED_TASK] = facts.function(TASK_HELPER).symbols as u64;
        constants.flags[flag::ARGUMENT_HELPER] = facts.function(ARGUMENT_HELPER).symbols as u64;
        let mut sites = addresses.sites.iter();
        let reads = sites.any(|(site, _)| site.op == Op::Free && site.intent == Intent::Read);
        constants.flags[flag::FREES_READ] = reads.into();
        let counts = addresses.preempt_count.filter(|_| audited);
        if let Some((variable, offset)) = counts.and_then(PerCpu::typed) {
            constants.preempt_count = Some(variable);
            constants.flags[flag::COUNT_OFFSET] = offset + 1;
        }
        constants.flags[flag::STACKS] = plan.stacks.into();
        constants.flags[flag::LOGS] = (diagnostics::kernel_level() > 0).into();
        // A stack belongs to a hold of a task. An audit asks how many spinlocks a task holds, which few
        // places tell if they know tasks, and those of many nodes do not.
        let few = constants.nodes[node::SPAN] == 0 && facts.contexts.task_ids.is_some();
        let asked_by_task = plan.stacks || audited && !few;
        let kept_at_place = constants.knows_holders() && spinlocks(true) && !asked_by_task;
        constants.flags[flag::HOLDS_AT_PLACE] = kept_at_place.into();
        constants.flags[flag::TASK_IDS] = facts.contexts.task_ids.map_or(0, |at| at + 1);
        constants.flags[flag::RCU_OFFSET] = facts.contexts.rcu_nesting.map_or(0, |at| at + 1);
        let spinlocks = plan.locks.iter();
        let spinlocks = spinlocks.filter(|planned| planned.kind == Kind::Spinlock);
        constants.flags[flag::SPINLOCKS] = spinlocks
            .map(|planned| 1 << planned.lock.index())
            .fold(0, |all, bit| all | bit);
        constants
    }

    /// Whether every acquisition is seen when the lock is owned, as the programs ask too.
    fn knows_holders(&self) -> bool {
        self.flags[flag::EVERY_ACQUISITION] != 0 && self.flags[flag::AT_ENTRY] == 0
    }

    /// The constant that a mark in the code stands for, if it is one.
    fn value(&self, mark: u64) -> Option<u64> {
        // In the order of their numbers.
        let arrays: [&[u64]; constant::ARRAYS] = [
            &self.locks,
            &self.nodes,
            &self.blocks,
            &self.text,
            &self.flags,
        ];
        let (array, index) = constant::marked(mark)?;
        arrays[array].get(index).copied()
    }

    /// The number that a mark in a calculation stands for, if it is one.
    fn number(&self, mark: u32) -> Option<u32> {
        constant::short_marked(mark).map(|index| self.numbers[index])
    }

    fn set_locks(&mut self, plan: &Plan, addresses: &Addresses) {
        for planned in &plan.locks {
            let index = match (planned.lock, planned.kind) {
                (Lock::VmapArea, Kind::Spinlock) => address::SPIN_VMAP_AREA,
                (Lock::VmapArea, Kind::Rwsem) => address::RWSEM_VMAP_AREA,
                (Lock::FreeVmapArea, _) => address::SPIN_FREE_VMAP_AREA,
                (Lock::PurgeVmapArea, _) => address::SPIN_PURGE_VMAP_AREA,
                (Lock::VmapPurge, _) => address::MUTEX_VMAP_PURGE,
                (Lock::Kclist, _) => address::RWSEM_KCLIST,
                _ => continue,
            };
            self.locks[index] = addresses.locks.get(&planned.lock).copied().unwrap_or(0);
        }
    }

    fn set_nodes(&mut self, plan: &Plan, facts: &Facts, addresses: &Addresses) {
        let (Some(layout), Some(planned)) = (facts.vmap_node, plan.lock(Lock::NodeBusy)) else {
            return;
        };
        let count = match (planned.found_by, addresses.nodes) {
            (FoundBy::Node, Some((base, count))) => {
                self.nodes[node::BASE] = base;
                count
            }
            // One per possible CPU, in one allocation that the page allocator aligns to its size
            // rounded up to a power of two (`vmap_init_nodes`, 6.9 to 7.3).
            _ => {
                let count = u64::from(facts.cpus_possible.clamp(1, 128));
                self.nodes[node::ALIGN] = (count * layout.size).max(PAGE).next_power_of_two();
                count
            }
        };
        self.nodes[node::SPAN] = count * layout.size;
        self.nodes[node::STRIDE] = layout.size;
        self.nodes[node::RECIPROCAL] = node::reciprocal(layout.size);
        self.nodes[node::COUNTERS] = count * node::LOCKS.len() as u64;
        self.nodes[node::BUSY_OFFSET] = layout.busy_lock;
        self.nodes[node::LAZY_OFFSET] = layout.lazy_lock;
        self.nodes[node::POOL_OFFSET] = layout.pool_lock;
    }

    fn set_blocks(&mut self, plan: &Plan, facts: &Facts) {
        let (Some(layout), Some(planned)) = (facts.vmap_block, plan.lock(Lock::VmapBlock)) else {
            return;
        };
        self.blocks[block::KIND] = match planned.kind {
            Kind::Mutex => block::MUTEX,
            _ => block::SPINLOCK,
        };
        self.blocks[block::WORDS_DISTANCE] = layout.area().wrapping_sub(layout.lock);
    }

    fn set_reads(&mut self, facts: &Facts) {
        let known = |number: Option<u64>| number.map_or(0, |number| number + 1);
        let layout = &facts.reads;
        self.reads[read::TYPE_OFFSET] = known(layout.iter_type);
        self.reads[read::COUNT_OFFSET] = known(layout.seq_count);
        self.reads[read::CGROUPS] = facts.function(CGROUP_HELPER).symbols as u64;
        for destination in Destination::ALL {
            let value = layout.iter_types.get(destination.name());
            self.reads[read::TYPES + destination.index()] = known(value.map(|&value| value.into()));
        }
    }

    fn set_text(&mut self, addresses: &Addresses) {
        let bound = |name: &str| addresses.bounds.get(name).copied().unwrap_or(0);
        let takers = || {
            addresses
                .sites
                .iter()
                .filter(|(site, _)| site.takes_block_lock)
        };
        self.text[text::START] = bound("_stext");
        self.text[text::END] = bound("_etext");
        self.text[text::IMAGE_START] = bound("_text");
        // No function, so that not every kernel shows it.
        self.text[text::IMAGE_END] = match bound("_end") {
            0 => text::IMAGE_ROOM_END,
            end => end,
        };
        self.text[text::BLOCK_TAKERS_START] =
            takers().map(|(_, range)| range.start).min().unwrap_or(0);
        self.text[text::BLOCK_TAKERS_END] = takers().map(|(_, range)| range.end).max().unwrap_or(0);
    }
}

/// Capabilities by their number (`include/uapi/linux/capability.h`).
const CAPABILITIES: [(&str, u32); 3] = [("CAP_BPF", 39), ("CAP_PERFMON", 38), ("CAP_SYSLOG", 34)];
const CAP_SYS_ADMIN: u32 = 21;

/// Names the capability that is missing before anything is tried.
pub fn check_capabilities() -> Result<(), LoadError> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    match effective_capabilities(&status).and_then(missing_capability) {
        Some(missing) => Err(LoadError::Permission {
            missing: missing.to_owned(),
        }),
        None => Ok(()),
    }
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// CAP_SYS_ADMIN includes the other two of BPF, as before 5.8; kallsyms asks for CAP_SYSLOG.
fn missing_capability(effective: u64) -> Option<&'static str> {
    let has = |number: u32| effective >> number & 1 != 0;
    let missing = CAPABILITIES
        .iter()
        .find(|(name, number)| !has(*number) && (*name == "CAP_SYSLOG" || !has(CAP_SYS_ADMIN)));
    missing.map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_constant_in_the_programs_has_a_value() {
        let constants = Constants::default();
        let mut seen = [0; constant::ARRAYS];
        let mut object = Object::with(|_| true).unwrap();
        object.replace_constants(|mark| {
            let (array, index) = constant::marked(mark)?;
            seen[array] += 1;
            let value = constants.value(mark);
            assert!(value.is_some(), "constant {index} of array {array}");
            value
        });
        assert!(seen.iter().all(|&seen| seen > 0), "{seen:?}");
        let mut seen = [0; constant::NUMBERS];
        object.replace_numbers(|mark| {
            seen[constant::short_marked(mark)?] += 1;
            constants.number(mark)
        });
        assert!(seen.iter().all(|&seen| seen > 0), "{seen:?}");
    }

    #[test]
    fn an_image_whose_end_has_no_symbol_ends_where_modules_begin() {
        let end_of = |bounds: &[(&'static str, u64)]| {
            let mut constants = Constants::default();
            constants.set_text(&Addresses {
                bounds: bounds.iter().copied().collect(),
                ..Addresses::default()
            });
            constants.text[text::IMAGE_END]
        };
        let start = 0xffff_ffff_8100_0000;
        assert_eq!(end_of(&[("_text", start), ("_end", start + 1)]), start + 1);
        assert_eq!(end_of(&[("_text", start)]), text::IMAGE_ROOM_END);
    }

    #[test]
    fn the_missing_capability_is_named() {
        let caps = |numbers: &[u32]| numbers.iter().fold(0u64, |mask, number| mask | 1 << number);
        assert_eq!(missing_capability(0), Some("CAP_BPF"));
        assert_eq!(missing_capability(caps(&[39])), Some("CAP_PERFMON"));
        assert_eq!(missing_capability(caps(&[39, 38])), Some("CAP_SYSLOG"));
        assert_eq!(missing_capability(caps(&[21, 34])), None);
        assert_eq!(
            missing_capability(effective_capabilities("CapEff:\t000001ffffffffff").unwrap()),
            None
        );
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
            Part::SlowPath => &all,
        };
        let named = |stem: &str, attaches: &[Attach]| -> Vec<String> {
            attaches
                .iter()
                .map(|attach| program(stem, *attach))
                .collect()
        };
        let ops = probes::OPS.iter().flat_map(|op| named(op.stem, &all));
        let scopes = probes::BLOCK_SCOPES
            .iter()
            .flat_map(|(_, stem)| named(stem, &all));
        let locks = probes::LOCK_FUNCTIONS.iter();
        let locks = locks.flat_map(|function| named(function.stem, of_part(function.part)));
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
        let switch = [program(probes::SWITCH.1, Attach::Tracepoint)];
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
