//! The plan: what will be attached, which way, and what is missing and why.
//!
//! In: [`Facts`], a level, and perhaps a way of attaching that the user insists on. Out: a [`Plan`],
//! plain data. Pure: the same facts give the same plan, on any machine.
//!
//! Policy: nothing is all-or-nothing. A lock or an op that can't be seen is listed with its
//! reason and the rest goes on; only what the user named and can't have is an error.

mod text;

use std::collections::{BTreeMap, BTreeSet};

use kcore_trace_ebpf::words::{Context, Kind, Lock, Op};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::kernel::{Era, Facts, PARAVIRTUAL, STATIC_LOCKS, TEST_AND_SET, symbols};
use crate::model::{Coverage, HoldCoverage, Level, Missing, WaitCoverage};
use crate::probes::{self, Attach, Ends, LockFunction, Part, program, purpose};

/// The ways of attaching, best first.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Hooks {
    /// Trampolines at entry and exit of functions (fentry, fexit).
    Fentry,
    /// Breakpoints or ftrace at function entry and return (kprobe, kretprobe).
    Kprobe,
    /// BTF tracepoints only (tp_btf): contended waits, told apart by their stack.
    Tracepoint,
}

impl Hooks {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fentry => "fentry",
            Self::Kprobe => "kprobe",
            Self::Tracepoint => "tracepoint",
        }
    }
}

/// What the user wants.
#[derive(Clone, Copy, Debug, Default)]
pub struct Request {
    pub level: Level,
    /// The way of attaching that was asked for; the best one otherwise.
    pub hooks: Option<Hooks>,
    /// Whether not to look at what happens inside holds, and at who reads.
    pub without_inside: bool,
    /// Whether to look at the context of each acquisition; at level full.
    pub audit: bool,
    /// Whether to keep the stacks of the longest waits; where these are seen.
    pub stacks: bool,
}

/// Why nothing can be measured.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PlanError {
    #[error("--hooks {}: {reason}; leave --hooks out to take what works", .hooks.name())]
    Refused { hooks: Hooks, reason: String },
    #[error("--audit: {0}; leave it out to record the rest")]
    Audit(String),
    #[error("--stacks: the longest waits take fentry or kprobe; leave it out to record the rest")]
    Stacks,
    #[error("nothing can be measured on this kernel: {}", .0.join("; "))]
    Nothing(Vec<String>),
    #[error(
        "this is a PREEMPT_RT kernel: its spinlocks are rt-mutexes, which are not measured; boot a kernel without PREEMPT_RT"
    )]
    Realtime,
    #[error(
        "/proc/kallsyms shows no addresses; run as root with `sysctl kernel.kptr_restrict=1`, or grant CAP_SYSLOG"
    )]
    AddressesHidden,
    #[error(
        "no BPF program may read this kernel's memory, without which one lock cannot be told from another; boot with lockdown=integrity or none instead of confidentiality (report, compare and stress work all the same)"
    )]
    MemoryUnreadable,
}

/// A lock that will be seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedLock {
    #[serde(with = "crate::words")]
    pub lock: Lock,
    #[serde(with = "crate::words")]
    pub kind: Kind,
    /// How its address is known.
    pub found_by: FoundBy,
    /// Whether its waits are seen, and not only that it was taken.
    #[serde(default = "yes", skip_serializing_if = "Clone::clone")]
    pub waits: bool,
    /// Whether its holds are seen.
    pub holds: bool,
}

/// What a plan of before there was the question says.
const fn yes() -> bool {
    true
}

/// How the address of a lock is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FoundBy {
    /// The symbol of a variable.
    Symbol,
    /// Base, stride and offset in the array of nodes.
    Node,
    /// The function that takes it, and what stands beside it in memory.
    CallSite,
}

/// A program on a hook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedHook {
    pub attach: Attach,
    /// Function or tracepoint.
    pub target: String,
    pub program: String,
    /// The op or the lock kind that it is for.
    pub purpose: String,
}

/// What will be attached, in this order, and what is missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub era: Era,
    pub level: Level,
    pub hooks: Hooks,
    pub locks: Vec<PlannedLock>,
    pub programs: Vec<PlannedHook>,
    /// The contexts that are told from one where a task may sleep; nothing if nobody looks.
    #[serde(
        default,
        with = "crate::words::list",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub contexts: Vec<Context>,
    /// Whether the stacks of the longest waits are kept.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stacks: bool,
    pub coverage: Coverage,
}

impl Plan {
    /// Chooses what to attach on a kernel.
    pub fn choose(facts: &Facts, request: &Request) -> Result<Self, PlanError> {
        if facts.realtime {
            return Err(PlanError::Realtime);
        }
        if facts.addresses_hidden {
            return Err(PlanError::AddressesHidden);
        }
        if facts.memory_unreadable {
            return Err(PlanError::MemoryUnreadable);
        }
        let mut missing = Vec::new();
        let hooks = choose_hooks(facts, request.hooks, &mut missing)?;
        let mut draft = Draft {
            facts,
            hooks,
            level: request.level,
            missing,
            programs: Vec::new(),
        };
        let mut locks = draft.locks();
        draft.keep_acquired(&mut locks);
        draft.lock_functions(&locks);
        keep_seen(&mut locks, &draft.programs, hooks, request.level);
        draft.keep_shown(&mut locks);
        draft.block_scopes(&locks);
        draft.ops();
        draft.tracepoints();
        if !request.without_inside {
            draft.inside();
        }
        let contexts = match request.audit {
            true => draft.audit()?,
            false => Vec::new(),
        };
        // At level full, by what sees every acquisition.
        let sees_owners = request.level == Level::Full && hooks != Hooks::Tracepoint;
        if request.stacks && request.level == Level::Full && !sees_owners {
            return Err(PlanError::Stacks);
        }
        let era = facts.era();
        if era == Era::Unknown {
            draft.miss("era", "neither vread, vread_iter nor struct vmap_node is known to BTF; what is found by symbol is measured all the same");
        }
        if draft.programs.is_empty() || locks.is_empty() {
            let reasons = draft
                .missing
                .iter()
                .map(|m| format!("{}: {}", m.hook, m.reason));
            return Err(PlanError::Nothing(reasons.collect()));
        }
        Ok(Self {
            era,
            level: request.level,
            hooks,
            coverage: draft.coverage(&locks),
            locks,
            stacks: request.stacks && !request.without_inside && sees_owners,
            programs: draft.programs,
            contexts,
        })
    }

    /// Takes out a hook that the kernel refused when it was to be attached, with the other end of
    /// that function if it is still to come, and what is no longer seen without it.
    pub fn lose(&mut self, index: usize, reason: String) {
        let Some(lost) = self.programs.get(index).cloned() else {
            return;
        };
        let hook = lost.target.clone();
        self.coverage.missing.push(Missing { hook, reason });
        let mut left = self.programs.split_off(index);
        left.retain(|hook| (&hook.target, &hook.purpose) != (&lost.target, &lost.purpose));
        self.programs.extend(left);
        keep_seen(&mut self.locks, &self.programs, self.hooks, self.level);
    }

    /// Whether what is measured would be wrong without a hook: acquisitions without their releases,
    /// or the other way round.
    pub fn relies_on(&self, hook: &PlannedHook) -> bool {
        let symbol = hook.target.as_str();
        let functions = probes::LOCK_FUNCTIONS.iter();
        let mut parts = functions
            .filter(|function| function.symbols.contains(&symbol))
            .filter(|function| function.kind.name() == hook.purpose)
            .map(|function| function.part);
        let is_half = |part| matches!(part, Part::Acquire | Part::Release);
        parts.any(is_half) || probes::CONTENTION.contains(&symbol)
    }

    /// The type of each lock that is seen.
    pub fn kinds(&self) -> BTreeMap<Lock, Kind> {
        self.locks
            .iter()
            .map(|planned| (planned.lock, planned.kind))
            .collect()
    }

    /// The locks of which it is not seen whether they were waited for.
    pub fn without_waits(&self) -> Vec<Lock> {
        self.locks
            .iter()
            .filter(|planned| !planned.waits)
            .map(|planned| planned.lock)
            .collect()
    }

    /// The locks whose holds are not seen.
    pub fn without_holds(&self) -> Vec<Lock> {
        self.locks
            .iter()
            .filter(|planned| !planned.holds)
            .map(|planned| planned.lock)
            .collect()
    }

    /// Whether it is seen what happens inside holds, and who reads.
    pub fn sees_inside(&self) -> bool {
        self.hooks_for(purpose::INSIDE)
            .chain(self.hooks_for(purpose::READS))
            .next()
            .is_some()
    }

    /// The function that copies out of vmalloc memory, where its passes are seen.
    pub fn pass(&self) -> Option<&str> {
        let mut targets = self
            .hooks_for(purpose::READS)
            .map(|hook| hook.target.as_str());
        targets.find(|target| probes::PASSES.contains(target))
    }

    fn hooks_for<'a>(&'a self, purpose: &'a str) -> impl Iterator<Item = &'a PlannedHook> {
        self.programs
            .iter()
            .filter(move |hook| hook.purpose == purpose)
    }

    /// A planned lock, if it is one.
    pub fn lock(&self, lock: Lock) -> Option<&PlannedLock> {
        self.locks.iter().find(|planned| planned.lock == lock)
    }
}

/// The best way of attaching that the kernel allows, or the one that was asked for.
fn choose_hooks(
    facts: &Facts,
    wanted: Option<Hooks>,
    missing: &mut Vec<Missing>,
) -> Result<Hooks, PlanError> {
    let mut reasons = Vec::new();
    for hooks in [Hooks::Fentry, Hooks::Kprobe, Hooks::Tracepoint] {
        match (refusal(facts, hooks), wanted) {
            (None, None) => {
                missing.extend(reasons);
                return Ok(hooks);
            }
            (None, Some(wanted)) if wanted == hooks => return Ok(hooks),
            (Some(reason), Some(wanted)) if wanted == hooks => {
                return Err(PlanError::Refused { hooks, reason });
            }
            (Some(reason), _) => reasons.push(Missing {
                hook: hooks.name().into(),
                reason,
            }),
            (None, Some(_)) => {}
        }
    }
    let reasons = reasons
        .iter()
        .map(|missing| format!("{}: {}", missing.hook, missing.reason));
    Err(PlanError::Nothing(reasons.collect()))
}

/// Why a way of attaching is not to be had, or nothing.
fn refusal(facts: &Facts, hooks: Hooks) -> Option<String> {
    const NO_BTF: &str = "this kernel has no BTF (CONFIG_DEBUG_INFO_BTF is off)";
    match hooks {
        Hooks::Fentry | Hooks::Tracepoint if !facts.btf => Some(NO_BTF.into()),
        Hooks::Fentry => facts.refusals.fentry.clone(),
        Hooks::Kprobe => facts.refusals.kprobe.clone(),
        Hooks::Tracepoint => facts.refusals.tracepoint.clone(),
    }
}

struct Draft<'a> {
    facts: &'a Facts,
    hooks: Hooks,
    level: Level,
    missing: Vec<Missing>,
    programs: Vec<PlannedHook>,
}

impl Draft<'_> {
    fn miss(&mut self, hook: &str, reason: &str) {
        self.missing.push(Missing {
            hook: hook.to_owned(),
            reason: reason.to_owned(),
        });
    }

    fn add(&mut self, attach: Attach, target: &str, stem: &str, purpose: &str) {
        self.programs.push(PlannedHook {
            attach,
            target: target.to_owned(),
            program: program(stem, attach),
            purpose: purpose.to_owned(),
        });
    }

    /// Whether a function can be hooked in the chosen way, or why not.
    fn hookable(&self, symbol: &str) -> Result<(), String> {
        let fact = self.facts.function(symbol);
        match (self.hooks, fact.symbols) {
            (_, 0) => Err(self.absence(symbol)),
            (Hooks::Fentry, 1) if fact.args.is_none() => Err("BTF does not know it".into()),
            (_, 1) => Ok(()),
            (_, copies) => Err(format!("{copies} functions have that name")),
        }
    }

    fn absence(&self, symbol: &str) -> String {
        let nested = probes::NESTED_MUTEX;
        if symbol.contains("mutex_lock") && self.facts.function(nested).symbols > 0 {
            return format!(
                "mutexes are taken by {nested} here (CONFIG_DEBUG_LOCK_ALLOC), which is not hooked"
            );
        }
        "this kernel has no such function, or it is inlined everywhere".into()
    }

    /// The locks that this kernel has and whose address can be known.
    fn locks(&mut self) -> Vec<PlannedLock> {
        let mut locks = self.static_locks();
        locks.extend(self.node_locks());
        locks.extend(self.block_lock());
        let releases = |kind| match kind {
            Kind::Spinlock => self.hookable("_raw_spin_unlock").is_ok(),
            Kind::Rwsem | Kind::Mutex => true,
        };
        let seen = self.level == Level::Full && self.hooks != Hooks::Tracepoint;
        for planned in &mut locks {
            planned.holds = seen && releases(planned.kind);
        }
        locks
    }

    fn static_locks(&mut self) -> Vec<PlannedLock> {
        let mut locks = Vec::new();
        let data_symbols = STATIC_LOCKS
            .iter()
            .any(|(_, name)| self.facts.variables.contains(*name));
        for &(lock, name) in STATIC_LOCKS {
            // Nodes took the place of these two.
            let replaced = matches!(lock, Lock::VmapArea | Lock::PurgeVmapArea);
            if replaced && self.facts.vmap_node.is_some() {
                continue;
            }
            let found_by = match self.facts.variables.contains(name) {
                true => FoundBy::Symbol,
                false if data_symbols => continue,
                false if self.by_place(lock) => FoundBy::CallSite,
                false => {
                    self.miss(name, "kallsyms has no variables (CONFIG_KALLSYMS_ALL is off), so its address is not known");
                    continue;
                }
            };
            if lock == Lock::Kclist && self.facts.kclist_is_percpu() {
                self.miss(
                    name,
                    "it is a percpu-rwsem here, whose read side is inlined into its users",
                );
                continue;
            }
            locks.push(PlannedLock {
                lock,
                kind: self.kind(lock),
                found_by,
                waits: true,
                holds: false,
            });
        }
        locks
    }

    /// Whether a static lock can be told without its address: by tracepoint, from the type of the
    /// lock, the function and the place. With nodes one spinlock and one mutex are static.
    fn by_place(&self, lock: Lock) -> bool {
        self.hooks == Hooks::Tracepoint
            && self.facts.vmap_node.is_some()
            && matches!(lock, Lock::FreeVmapArea | Lock::VmapPurge)
    }

    fn kind(&self, lock: Lock) -> Kind {
        match lock {
            Lock::VmapPurge => Kind::Mutex,
            Lock::Kclist => Kind::Rwsem,
            Lock::VmapArea if matches!(self.facts.era(), Era::Rwsem | Era::RwsemIter) => {
                Kind::Rwsem
            }
            _ => Kind::Spinlock,
        }
    }

    fn node_locks(&mut self) -> Vec<PlannedLock> {
        if self.facts.vmap_node.is_none() {
            return Vec::new();
        }
        let found_by = if self.facts.variables.contains("vmap_nodes") {
            FoundBy::Node
        } else if self.hooks == Hooks::Tracepoint && self.facts.cpus_possible > 1 {
            FoundBy::CallSite
        } else {
            self.miss("vmap_node", "kallsyms has no variables (CONFIG_KALLSYMS_ALL is off), so the nodes are not known");
            return Vec::new();
        };
        [Lock::NodeBusy, Lock::NodeLazy, Lock::NodePool]
            .map(|lock| PlannedLock {
                lock,
                kind: Kind::Spinlock,
                found_by,
                waits: true,
                holds: false,
            })
            .into()
    }

    fn block_lock(&mut self) -> Option<PlannedLock> {
        let Some(block) = self.facts.vmap_block else {
            self.miss("vmap_block.lock", "BTF does not know struct vmap_block");
            return None;
        };
        let lock = Lock::VmapBlock;
        Some(PlannedLock {
            lock,
            kind: block.kind,
            found_by: FoundBy::CallSite,
            waits: true,
            holds: false,
        })
    }

    /// At level full leaves out the kinds whose acquisitions cannot be hooked: their releases alone
    /// tell nothing.
    fn keep_acquired(&mut self, locks: &mut Vec<PlannedLock>) {
        if self.level != Level::Full || self.hooks == Hooks::Tracepoint {
            return;
        }
        let kinds: BTreeSet<_> = locks.iter().map(|planned| planned.kind).collect();
        for function in kinds.into_iter().flat_map(LockFunction::acquires) {
            for symbol in function.symbols {
                if let Err(reason) = self.hookable(symbol) {
                    let kind = function.kind;
                    self.miss(symbol, &format!("{reason}, so no {kind} is seen"));
                    locks.retain(|planned| planned.kind != kind);
                }
            }
        }
    }

    /// By tracepoint leaves out spinlocks that show no wait.
    fn keep_shown(&self, locks: &mut Vec<PlannedLock>) {
        if self.hooks == Hooks::Tracepoint && self.facts.spinlocks == TEST_AND_SET {
            locks.retain(|planned| planned.kind != Kind::Spinlock);
        }
    }

    /// Hooks on the lock primitives of the kinds that are needed.
    fn lock_functions(&mut self, locks: &[PlannedLock]) {
        if self.hooks == Hooks::Tracepoint {
            return;
        }
        for function in probes::LOCK_FUNCTIONS {
            let needed = locks.iter().any(|planned| planned.kind == function.kind);
            let stem = match self.level {
                Level::Full => Some(function.stem),
                Level::Contended => function.alone,
            };
            let Some(stem) = stem.filter(|_| needed) else {
                continue;
            };
            let found = self.existing(function.symbols);
            let symbol = found.unwrap_or(function.symbols[0]);
            if self.facts.is_passed_over(symbol) {
                continue;
            }
            let args = self.facts.function(symbol).args;
            if let (Some(wanted), Some(args), Level::Contended) = (function.args, args, self.level)
                && wanted != args
            {
                continue;
            }
            // Without types it may be any of several rows: a probe does not ask for the arguments.
            let hooked = |hook: &PlannedHook| hook.target == symbol;
            let missed = |missing: &Missing| missing.hook == symbol;
            if self.programs.iter().any(hooked) || self.missing.iter().any(missed) {
                continue;
            }
            match self.hookable(symbol) {
                Ok(()) => self.lock_function(function, stem, symbol),
                Err(reason) => self.lock_function_missing(function, symbol, &reason),
            }
        }
    }

    fn lock_function(&mut self, function: &LockFunction, stem: &str, symbol: &str) {
        for attach in attaches(self.hooks, self.level, function.part) {
            self.add(*attach, symbol, stem, function.kind.name());
        }
    }

    fn lock_function_missing(&mut self, function: &LockFunction, symbol: &str, reason: &str) {
        let kind = function.kind;
        // A variant that a kernel never had is no gap.
        if function.essential {
            let reason = format!("{reason}, so {kind} waits that pass it are not seen");
            self.miss(symbol, &reason);
        } else if symbol == "_raw_spin_unlock" {
            self.miss(symbol, "it is inlined (CONFIG_UNINLINE_SPIN_UNLOCK is off), so holds of spinlocks are not seen");
        }
    }

    fn block_scopes(&mut self, locks: &[PlannedLock]) {
        let wanted = locks.iter().any(|planned| planned.lock == Lock::VmapBlock);
        if !wanted || self.level != Level::Full || self.hooks == Hooks::Tracepoint {
            return;
        }
        for (symbols, stem) in probes::BLOCK_SCOPES {
            self.hook(symbols, stem, Lock::VmapBlock.name(), Ends::Both);
        }
    }

    /// The first of some functions that exists.
    fn existing<'s>(&self, symbols: &[&'s str]) -> Option<&'s str> {
        let exists = |symbol: &&&str| self.facts.function(symbol).symbols == 1;
        symbols.iter().find(exists).copied()
    }

    /// Hooks the ends of the first of some functions that exists, by kprobe where fentry can't have
    /// it (a part that GCC split off has no BTF). False if there is none.
    fn hook(&mut self, symbols: &[&str], stem: &str, purpose: &str, ends: Ends) -> bool {
        let Some(symbol) = self.existing(symbols) else {
            return false;
        };
        let (by_trampoline, by_probe) = ends.attaches();
        let attaches = match (self.hooks, self.hookable(symbol)) {
            (Hooks::Fentry, Ok(())) => by_trampoline,
            (Hooks::Kprobe, Ok(())) => by_probe,
            (_, Err(_)) if self.facts.refusals.kprobe.is_none() => by_probe,
            (_, Err(reason)) => {
                self.miss(symbol, &reason);
                return true;
            }
            (Hooks::Tracepoint, _) => return false,
        };
        for attach in attaches {
            self.add(*attach, symbol, stem, purpose);
        }
        true
    }

    fn ops(&mut self) {
        if self.level != Level::Full || self.hooks == Hooks::Tracepoint {
            return;
        }
        for op in probes::OPS {
            let passed = |symbol: &str| self.hookable(symbol).is_ok();
            if op.unless.is_some_and(passed) {
                continue;
            }
            let plain = self.hook(op.symbols, op.stem, op.op.name(), Ends::Both);
            if !plain && let Some(clone) = self.clone_of(op.symbols) {
                self.hook(&[&clone], op.stem, op.op.name(), Ends::Both);
            }
        }
        if !self.has_op(Op::Vmallocinfo) {
            self.sequence();
        }
        self.ops_missing();
    }

    /// The only whole copy that the compiler made of some functions in their place.
    fn clone_of(&self, symbols: &[&str]) -> Option<String> {
        let functions = self.facts.functions.iter();
        let copies = functions.filter(|(name, fact)| {
            fact.symbols == 1 && symbols.iter().any(|of| symbols::is_clone(name, of))
        });
        let copies: Vec<_> = copies.collect();
        match copies.as_slice() {
            [(name, _)] => Some((*name).clone()),
            _ => None,
        }
    }

    /// Every kernel has every op, whatever functions it has for it.
    fn ops_missing(&mut self) {
        let ops: BTreeSet<_> = probes::OPS.iter().map(|function| function.op).collect();
        for op in ops {
            let told = self.missing.iter().any(|missing| missing.hook == op.name());
            if self.has_op(op) || told {
                continue;
            }
            let functions = probes::OPS.iter().filter(|function| function.op == op);
            let symbols: Vec<_> = functions.flat_map(|function| function.symbols).collect();
            let reasons = symbols.iter().filter_map(|symbol| {
                let reason = self.hookable(symbol).err()?;
                Some(format!("{symbol}: {reason}"))
            });
            let reason = reasons.collect::<Vec<_>>().join("; ");
            self.miss(op.name(), &reason);
        }
    }

    /// Up to 6.8: entry of `s_start` to return of `s_stop`, by address.
    fn sequence(&mut self) {
        let purpose = Op::Vmallocinfo.name();
        match &self.facts.refusals.kprobe {
            None => self.hook_sequence(["seqstart", "seqstop"], purpose),
            Some(reason) => {
                let reason = format!("its functions can only be hooked by kprobe, and {reason}");
                self.miss(purpose, &reason);
            }
        }
    }

    fn hook_sequence(&mut self, [start, stop]: [&str; 2], purpose: &str) {
        let [first, last] = probes::SEQUENCE;
        let exists = |symbol| self.facts.function(symbol).symbols > 0;
        if exists(first) && exists(last) {
            self.add(Attach::Kretprobe, last, stop, purpose);
            self.add(Attach::Kprobe, first, start, purpose);
        }
    }

    fn has_op(&self, op: Op) -> bool {
        self.programs
            .iter()
            .any(|planned| planned.purpose == op.name())
    }

    /// Hooks on what happens inside holds, and on who reads.
    fn inside(&mut self) {
        if self.level != Level::Full || self.hooks == Hooks::Tracepoint {
            return;
        }
        for function in probes::INSIDE {
            let found = self.existing(function.symbols);
            let args = found.and_then(|symbol| self.facts.function(symbol).args);
            match (found, args) {
                (Some(symbol), Some(args)) if args != function.args => {
                    let wanted = function.args;
                    let reason = format!("it has {args} arguments here instead of {wanted}");
                    self.miss(symbol, &reason);
                }
                _ => {
                    self.hook(
                        function.symbols,
                        function.stem,
                        function.purpose,
                        function.ends,
                    );
                }
            }
        }
        if self.existing(&["vmalloc_info_show"]).is_none() && self.facts.refusals.kprobe.is_none() {
            self.hook_sequence(probes::READ_SEQUENCE, purpose::READS);
        }
        let (switch, stem) = probes::SWITCH;
        if self.facts.tracepoints.contains(switch) {
            self.add(Attach::Tracepoint, switch, stem, purpose::INSIDE);
        } else {
            self.miss(switch, "this kernel has no such BTF tracepoint, so time off the CPU inside holds is not seen");
        }
        self.inside_missing();
    }

    fn inside_missing(&mut self) {
        let hooked = |draft: &Self, symbols: &[&str]| {
            let ours = |hook: &&PlannedHook| {
                [purpose::READS, purpose::INSIDE].contains(&hook.purpose.as_str())
            };
            let mut hooks = draft.programs.iter().filter(ours);
            hooks.any(|hook| symbols.contains(&hook.target.as_str()))
        };
        let absent = "no function that does it can be hooked on this kernel";
        let kcore = ["read_kcore_iter", "read_kcore"];
        for (symbols, what) in [
            (&kcore[..], "reads of /proc/kcore"),
            (probes::PASSES, "passes of reads over vmalloc memory"),
            (&["handle_mm_fault"], "page faults inside holds"),
        ] {
            if !hooked(self, symbols) {
                self.miss(what, absent);
            }
        }
    }

    /// Hooks on what is counted by context, and the contexts that can be told.
    fn audit(&mut self) -> Result<Vec<Context>, PlanError> {
        if self.level != Level::Full {
            return Ok(Vec::new());
        }
        if self.hooks == Hooks::Tracepoint {
            let reason = "it takes fentry or kprobe, since it asks at every acquisition";
            return Err(PlanError::Audit(reason.into()));
        }
        if !self.facts.contexts.preempt_count {
            let reason = "it is not known where this kernel has its preempt counts";
            return Err(PlanError::Audit(reason.into()));
        }
        for (symbol, stem) in probes::AUDIT {
            self.hook(&[symbol], stem, purpose::AUDIT, Ends::Entry);
        }
        let seen = |context: &Context| match context {
            Context::InterruptsOff => self.hooks == Hooks::Kprobe,
            Context::Rcu => self.facts.contexts.rcu_nesting.is_some(),
            _ => true,
        };
        let contexts: Vec<_> = Context::ALL.iter().copied().filter(seen).collect();
        for (context, hook, reason) in [
            (
                Context::InterruptsOff,
                "interrupts off",
                "only a kprobe has the processor's flags (--hooks kprobe)",
            ),
            (
                Context::Rcu,
                "RCU read sections",
                "this kernel does not count them (CONFIG_PREEMPT_RCU is off)",
            ),
        ] {
            if !contexts.contains(&context) {
                self.miss(hook, reason);
            }
        }
        Ok(contexts)
    }

    fn tracepoints(&mut self) {
        if self.hooks != Hooks::Tracepoint {
            return;
        }
        for &(name, stem) in probes::TRACEPOINTS {
            if self.facts.tracepoints.contains(name) {
                self.add(Attach::Tracepoint, name, stem, name);
            } else {
                self.miss(name, "this kernel has no such tracepoint");
            }
        }
        self.blind_spots();
    }

    /// What the contention tracepoints do not show (`kernel/locking/`, 5.19 to 7.3).
    fn blind_spots(&mut self) {
        self.miss("uncontended acquisitions", "no tracepoint tells of them");
        self.miss("holds", "no tracepoint tells of them");
        self.miss("op latencies", "the vmalloc tracepoints fire once per op");
        self.miss(
            "insides of holds, readers, longest waits",
            "they take fentry or kprobe",
        );
        match self.facts.spinlocks.as_str() {
            TEST_AND_SET => self.miss("all spinlock waits", "test-and-set spinlocks, as a hypervisor without PV spinlocks gets them, fire no tracepoint"),
            PARAVIRTUAL => {}
            _ => self.miss("waits of a first waiter", "a native spinlock's first waiter spins on the pending bit, before the tracepoint; paravirtual spinlocks show all"),
        }
        self.miss(
            "optimistic spinning of rwsems",
            "the tracepoint comes after it; a waiter that wins by spinning is not seen",
        );
    }

    fn coverage(&mut self, locks: &[PlannedLock]) -> Coverage {
        let held = locks.iter().filter(|planned| planned.holds).count();
        let waits = match (self.hooks, self.level) {
            (Hooks::Tracepoint, _) => WaitCoverage::Tracepoint,
            (_, Level::Contended) => WaitCoverage::SlowPath,
            (_, Level::Full) => WaitCoverage::All,
        };
        let holds = match held {
            0 => HoldCoverage::None,
            all if all == locks.len() => HoldCoverage::All,
            _ => HoldCoverage::Partial,
        };
        Coverage {
            waits,
            holds,
            missing: std::mem::take(&mut self.missing),
        }
    }
}

/// Notes of which locks not all waits are seen, and leaves out those that are not seen at all.
fn keep_seen(locks: &mut Vec<PlannedLock>, programs: &[PlannedHook], hooks: Hooks, level: Level) {
    if hooks == Hooks::Tracepoint {
        return;
    }
    for planned in &mut *locks {
        planned.waits = sees_waits(programs, planned.kind);
    }
    if level == Level::Contended {
        locks.retain(|planned| is_hooked(programs, planned.kind));
    }
}

/// Whether every function that only waiters for locks of a kind enter is hooked.
fn sees_waits(programs: &[PlannedHook], kind: Kind) -> bool {
    LockFunction::slow_paths(kind).all(|function| {
        programs
            .iter()
            .any(|hook| function.symbols.contains(&hook.target.as_str()) && is_entry(hook))
    })
}

/// Whether any function of a kind of locks is hooked.
fn is_hooked(programs: &[PlannedHook], kind: Kind) -> bool {
    programs
        .iter()
        .any(|hook| hook.purpose == kind.name() && is_entry(hook))
}

/// What is hooked at its exit alone tells nothing: the exit is attached first.
fn is_entry(hook: &PlannedHook) -> bool {
    matches!(hook.attach, Attach::Fentry | Attach::Kprobe)
}

/// How a function of the lock primitives is hooked.
fn attaches(hooks: Hooks, level: Level, part: Part) -> &'static [Attach] {
    use Attach::{Fentry, Fexit, Kprobe, Kretprobe};
    match (hooks, part) {
        (Hooks::Tracepoint, _) => &[],
        (Hooks::Fentry, Part::Acquire | Part::TryAcquire) => &[Fexit],
        (Hooks::Fentry, Part::Release) => &[Fentry],
        // At level full the exit of the acquire function ends the wait.
        (Hooks::Fentry, Part::SlowPath) if level == Level::Full => &[Fentry],
        (Hooks::Fentry, Part::SlowPath) => &[Fexit, Fentry],
        (Hooks::Kprobe, Part::Acquire | Part::Release) => &[Kprobe],
        (Hooks::Kprobe, Part::TryAcquire | Part::SlowPath) => &[Kretprobe, Kprobe],
    }
}
