//! The values that the programs are compiled against.
//!
//! In: a plan, the facts and the addresses. Out: [`Constants`], by the marks that stand for them in the
//! code (`layout::constant`). Invariant: every mark has a value; what a kernel has not is zero.

use std::fs;

use kcore_trace_ebpf::layout::{SLOTS, Slot, address, block, constant, flag, node, read, text};
use kcore_trace_ebpf::words::{Destination, Intent, Kind, Lock, Op};

use crate::diagnostics;
use crate::host;
use crate::kernel::{Addresses, Facts, PerCpu};
use crate::model::Level;
use crate::plan::{FoundBy, Hooks, Plan};
use crate::probes::{ARGUMENT_HELPER, CGROUP_HELPER, TASK_HELPER};

/// Bytes of a page, and of the alignment that the page allocator gives to a whole order.
const PAGE: u64 = 4096;

/// How many task slots there are. They are one value of an array, of which kernels before 6.1 take no larger
/// ones than their allocator for small memory gives (`array_map_alloc_check` in `kernel/bpf/arraymap.c`).
pub(super) fn slots(cpus: u32) -> u32 {
    cpus.saturating_mul(16)
        .clamp(SLOTS, MOST_SLOTS)
        .next_power_of_two()
}

/// With as many they are smaller than `KMALLOC_MAX_SIZE` of x86-64.
const MOST_SLOTS: u32 = 1 << 13;
const _: () = assert!(MOST_SLOTS as usize * size_of::<Slot>() <= 4 << 20);

/// One more than the highest id of a CPU, which is what counters are indexed by: ids can have gaps,
/// and then there are fewer CPUs than that.
pub(super) fn possible_ids(facts: &Facts) -> u32 {
    let possible = fs::read_to_string("/sys/devices/system/cpu/possible").unwrap_or_default();
    host::cpu_ids(&possible).unwrap_or(facts.cpus_possible)
}

/// The values that the programs are compiled against.
#[derive(Default)]
pub(super) struct Constants {
    pub(super) locks: [u64; address::COUNT],
    pub(super) nodes: [u64; node::COUNT],
    pub(super) blocks: [u64; block::COUNT],
    pub(super) text: [u64; text::COUNT],
    pub(super) flags: [u64; flag::COUNT],
    pub(super) reads: [u64; read::COUNT],
    pub(super) numbers: [u32; constant::NUMBERS],
    /// The BTF id of the variable that has the preempt count, where it may be read by its type.
    pub(super) preempt_count: Option<u32>,
}

impl Constants {
    pub(super) fn new(plan: &Plan, facts: &Facts, addresses: &Addresses) -> Self {
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
        // places tell, and those of many nodes do not.
        let many = constants.nodes[node::SPAN] != 0;
        let asked_by_task = plan.stacks || audited && many;
        let task_ids = facts.contexts.task_ids;
        let kept_at_place = constants.knows_holders() && spinlocks(true) && task_ids.is_some();
        constants.flags[flag::HOLDS_AT_PLACE] = (kept_at_place && !asked_by_task).into();
        constants.flags[flag::TASK_IDS] = task_ids.map_or(0, |at| at + 1);
        constants.flags[flag::RCU_OFFSET] = facts.contexts.rcu_nesting.map_or(0, |at| at + 1);
        let spinlocks = plan.locks.iter();
        let spinlocks = spinlocks.filter(|planned| planned.kind == Kind::Spinlock);
        constants.flags[flag::SPINLOCKS] = spinlocks
            .map(|planned| 1 << planned.lock.index())
            .fold(0, |all, bit| all | bit);
        constants
    }

    /// Whether every acquisition is seen when the lock is owned, as the programs ask too.
    pub(super) fn knows_holders(&self) -> bool {
        self.flags[flag::EVERY_ACQUISITION] != 0 && self.flags[flag::AT_ENTRY] == 0
    }

    /// The constant that a mark in the code stands for, if it is one.
    pub(super) fn value(&self, mark: u64) -> Option<u64> {
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
    pub(super) fn number(&self, mark: u32) -> Option<u32> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loader::object::Object;

    #[test]
    fn tasks_have_more_slots_where_there_are_more_cpus_as_many_as_a_value_has_room_for() {
        assert_eq!([1, 64, 65, 512].map(slots), [SLOTS, SLOTS, 2048, 8192]);
        assert_eq!([513, u32::MAX].map(slots), [MOST_SLOTS; 2]);
    }

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
}
