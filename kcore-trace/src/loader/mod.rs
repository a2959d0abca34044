//! From a plan to programs that count: sets the constants, loads what the plan names, attaches.
//!
//! In: a [`Plan`] and the [`Addresses`]. Out: a [`Session`], which owns the programs and their
//! links; dropping it detaches everything. A hook that the kernel refuses at the last moment is
//! replaced by a kprobe where that measures the same, else it is added to what is missing.
//!
//! Invariant: only programs of the plan are loaded. Maps are complete before the first attach.

mod capabilities;
mod constants;
mod hooks;
mod load;
mod object;

use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use aya::maps::{Array, MapData};
use aya::programs::Program;
use aya::{Btf, Ebpf, Pod};
use aya_log::EbpfLogger;
use kcore_trace_ebpf::layout::{SITES, SiteRange, SiteTable, flag};
use kcore_trace_ebpf::words::Context;
use log::Log;
use thiserror::Error;

use crate::contexts;
use crate::counters::Counters;
use crate::diagnostics;
use crate::histograms;
use crate::kernel::{Addresses, Facts};
use crate::model::Missing;
use crate::plan::{Hooks, Plan, PlannedHook};
use crate::probes::Attach;
use crate::syscall;
pub use capabilities::check_capabilities;
use constants::{Constants, possible_ids};
use hooks::{information, instead_of, kprobe_links, may_be_attached, remedy};
pub use load::Preparation;
use object::Object;

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

/// The section of the programs with the text ranges of the vmalloc functions.
const SITE_RANGES: &str = ".bss.sites";

/// The table of them, for the map.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Table(SiteTable);

// SAFETY: a struct of integers without padding.
unsafe impl Pod for Table {}

/// The programs while they count.
pub struct Session {
    object: Ebpf,
    /// The slots of tasks.
    tasks: MapData,
    /// Reads what the programs log; nothing where diagnostics are off.
    logger: Option<EbpfLogger<&'static dyn Log>>,
    loaded: Vec<String>,
    /// The links of programs by kprobe, where the kernel counts what they miss.
    kprobes: Vec<(String, OwnedFd)>,
    /// Whether exclusive holds are kept at the places of locks.
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
        let constants = Constants::new(&plan, facts, addresses);
        let object = Object::with(|name| may_be_attached(&plan, name))?;
        let (mut object, tasks) = load::load(preparation, object, &constants, facts, addresses)?;
        let wanted = diagnostics::kernel_level() > 0;
        let logger = wanted.then(|| EbpfLogger::init(&mut object)).transpose();
        let mut session = Self {
            object,
            tasks,
            holds_at_place: constants.flags[flag::HOLDS_AT_PLACE] != 0,
            logger: logger.context("failed to read the log of the programs")?,
            loaded: Vec::new(),
            kprobes: Vec::new(),
            plan,
        };
        session.fill_sites(addresses)?;
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
        Counters::new(&self.object, &self.tasks)
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
        hooks::attach(program, hook, btf, addresses)?;
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
