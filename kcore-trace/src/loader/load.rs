//! From the object to maps and programs that can be attached.
//!
//! In: the object, the constants and how many CPUs there are. Out: an [`Ebpf`] whose maps exist, and the slots of
//! tasks, which are none of them.
//! Invariant: of a map that the plan has no use for there is as little as there can be.

use std::os::fd::AsFd as _;
use std::thread;

use anyhow::{Context as _, Result};
use aya::maps::MapData;
use aya::{Ebpf, EbpfLoader};
use aya_obj::generated::{BPF_F_MMAPABLE, bpf_map_type::BPF_MAP_TYPE_ARRAY};
use kcore_trace_ebpf::bucket;
use kcore_trace_ebpf::layout::{
    HISTOGRAMS, HOLDER_STACKS, READERS, Slot, audit, blame, constant, flag, node,
};
use kcore_trace_ebpf::words::{Destination, Source, cell};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::chroot;

use super::constants::{Constants, possible_ids, slots};
use super::object::Object;
use crate::diagnostics;
use crate::kernel::{Addresses, Facts};

/// What programs log goes through it; aya names it.
const LOGS: &str = "AYA_LOGS";

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

/// Creates the maps.
///
/// # Errors
///
/// The kernel refuses one.
pub(super) fn load(
    preparation: Preparation,
    mut object: Object,
    constants: &Constants,
    facts: &Facts,
    addresses: &Addresses,
) -> Result<(Ebpf, MapData)> {
    let cpus = possible_ids(facts);
    let sees_inside = constants.flags[flag::INSIDE] != 0;
    let log_level = diagnostics::kernel_level();
    let of_nodes = cpus * constants.nodes[node::COUNTERS] as u32;
    // How many values an array has; none, if it is not there for this plan.
    let when = |is_used: bool, entries: u32| is_used.then_some(entries);
    let with = |flag: usize, entries| when(constants.flags[flag] != 0, entries);
    let arrays = [
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
    let tasks = tasks(cpus)?;
    object.point_to(constant::TASKS, tasks.fd().as_fd());
    if let Some(variable) = constants.preempt_count {
        object.name_variable(audit::VARIABLE, variable);
    }
    object.replace_constants(|mark| constants.value(mark));
    object.replace_numbers(|mark| constants.number(mark));
    if log_level == 0 {
        object.leave_out_map(LOGS)?;
    }
    let loader = preparation.0.join();
    let loader = loader.map_err(|_| anyhow::anyhow!("failed to prepare for loading"))?;
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
    let object = loader
        .load(object.bytes())
        .context("failed to create the maps")?;
    Ok((object, tasks))
}

/// The slots of tasks in one value, so that programs find them without a look-up.
fn tasks(cpus: u32) -> Result<MapData> {
    let bytes = slots(cpus) * size_of::<Slot>() as u32;
    let (array, index) = (BPF_MAP_TYPE_ARRAY as u32, size_of::<u32>() as u32);
    let map = aya_obj::Map::new_from_params(array, index, bytes, 1, BPF_F_MMAPABLE);
    MapData::create(map, "TASKS", None).context("failed to create the slots of tasks")
}
