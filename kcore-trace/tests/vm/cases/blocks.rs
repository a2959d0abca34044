//! What is counted of `vmap_block.lock` and of trylocks, by loads that only a module can make.
//!
//! `vm_map_ram` takes the lock of each block that it tries, and none when it makes a new one, which has
//! room for hundreds of pages; `vm_unmap_ram` takes that of the block. `vm_unmap_aliases` takes those of
//! all blocks with something to flush (`mm/vmalloc.c`, 6.1). `mem_dump_obj` tries the lock of the index.

use anyhow::{Result, ensure};

use super::churn::{equal, fentry_flags, kprobe_flags, may_lack};
use crate::guest::{Guest, Outcome};
use crate::tool::{self, Flags, Report};

const LOOPS: u64 = 500;
const THREADS: u64 = 2;
const PAIRS: u64 = LOOPS * THREADS;
const DUMPS: u64 = 20;

/// Look-ups of areas while a module is loaded: for its memory's protection.
const OTHER_LOOKUPS: u64 = 10;

fn recorded(guest: &Guest, flags: Flags, parameters: &[String]) -> Result<Report> {
    let module = guest.module("vmap_ram")?;
    tool::recorded_module(flags, &module, parameters)
}

fn blocks(guest: &Guest, flags: Flags) -> Result<Outcome> {
    let parameters = [format!("loops={LOOPS}"), format!("threads={THREADS}")];
    let report = recorded(guest, flags, &parameters)?;
    let lack = may_lack(&report);
    for op in ["map_ram", "unmap_ram"] {
        let count = report.op(op);
        ensure!(
            (PAIRS.saturating_sub(lack)..=PAIRS).contains(&count),
            "{op}: {count} of {PAIRS}, {lack} may be lacking"
        );
    }
    let rwsem_era = report.era().starts_with("rwsem");
    let kind = if rwsem_era { "mutex" } else { "spinlock" };
    for row in report.locks("vmap_block.lock") {
        ensure!(row["kind"] == kind, "kind {} is not {kind}", row["kind"]);
        ensure!(row["mode"] == "exclusive", "mode {}", row["mode"]);
        ensure!(row["intent"] == "write", "intent {}", row["intent"]);
    }
    let taken = |op| report.sum("vmap_block.lock", Some(op), None, "acquisitions");
    equal("blocks of unmapped pages", taken("unmap_ram"), PAIRS)?;
    let mapped = taken("map_ram");
    let made = report.sum(
        "vmap_area_lock",
        Some("map_ram"),
        Some("write"),
        "acquisitions",
    );
    ensure!(made > 0, "no block was made");
    equal("blocks of mapped pages", mapped + made, PAIRS)?;
    ensure!(taken("unmap_aliases") > 0, "no block was flushed");
    let sum = |what| report.sum("vmap_block.lock", None, None, what);
    equal("releases of blocks", sum("releases"), sum("acquisitions"))?;
    equal("samples without a histogram", report.loss("map_full"), 0)?;
    Ok(Outcome::Passed)
}

pub(crate) fn fentry_blocks(guest: &mut Guest) -> Result<Outcome> {
    blocks(guest, fentry_flags(guest))
}

pub(crate) fn kprobe_blocks(guest: &mut Guest) -> Result<Outcome> {
    blocks(guest, kprobe_flags(guest))
}

fn trylocks(guest: &Guest, flags: Flags) -> Result<Outcome> {
    let report = recorded(guest, flags, &["loops=0".into(), format!("dumps={DUMPS}")])?;
    let find = |what| report.sum("vmap_area_lock", Some("find"), Some("read"), what);
    // Loading the module looks areas up too, and a trylock may fail.
    let tried = find("acquisitions") + find("try_failed");
    ensure!(
        (DUMPS..=DUMPS + OTHER_LOOKUPS).contains(&tried),
        "{tried} look-ups, of which {DUMPS} by trylock"
    );
    equal("releases", find("releases"), find("acquisitions"))?;
    let shared = report.era().starts_with("rwsem");
    for row in report
        .locks("vmap_area_lock")
        .filter(|row| row["op"] == "find")
    {
        ensure!((row["mode"] == "shared") == shared, "mode {}", row["mode"]);
    }
    Ok(Outcome::Passed)
}

pub(crate) fn fentry_trylocks(guest: &mut Guest) -> Result<Outcome> {
    trylocks(guest, fentry_flags(guest))
}

pub(crate) fn kprobe_trylocks(guest: &mut Guest) -> Result<Outcome> {
    trylocks(guest, kprobe_flags(guest))
}
