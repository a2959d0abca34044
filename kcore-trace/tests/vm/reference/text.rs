//! The text of `mm/vmalloc.c`: who takes the lock of the index, and what for.
//!
//! In: /proc/kallsyms. Out: the function of a return address. Written down from the sources and not
//! taken from the tool's table of sites, which it is to be compared with.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context as _, Result};

/// Functions between the first and the last of `mm/vmalloc.c` that take the index lock, 5.10 to
/// 7.3, and whether they only look.
pub(super) const TAKERS: [(&str, bool); 19] = [
    ("alloc_vmap_area", false),
    ("__get_vm_area_node", false),
    ("setup_vmalloc_vm", false),
    ("free_unmap_vmap_area", false),
    ("free_vmap_area_noflush", false),
    ("find_unlink_vmap_area", false),
    ("remove_vm_area", false),
    ("pcpu_get_vm_areas", false),
    ("free_vmap_block", false),
    ("find_vmap_area", true),
    ("find_vm_area", true),
    // Finds the area before it removes it.
    ("__vunmap", true),
    ("vm_unmap_ram", true),
    ("vread", true),
    ("vread_iter", true),
    ("find_vmap_area_exceed_addr_lock", true),
    ("s_start", true),
    ("s_stop", true),
    ("vmalloc_info_show", true),
];

/// Functions that take no other spinlock than that of a node's busy tree, from 6.9 on.
pub(super) const BUSY_ONLY: [&str; 4] = [
    "find_unlink_vmap_area",
    "remove_vm_area",
    "find_vmap_area",
    "find_vmap_area_exceed_addr_lock",
];

/// The text of `mm/vmalloc.c`, by function.
pub(super) struct Text {
    /// Name by first address, up to the first function behind it.
    functions: BTreeMap<u64, String>,
    /// The address of the index lock, where it is one and has a name.
    pub(super) index: Option<u64>,
}

impl Text {
    pub(super) fn read() -> Result<Self> {
        let kallsyms = fs::read_to_string("/proc/kallsyms")?;
        let (mut symbols, mut index) = (BTreeMap::new(), None);
        for line in kallsyms.lines() {
            let mut words = line.split_ascii_whitespace();
            let (Some(address), Some(kind), Some(name), None) =
                (words.next(), words.next(), words.next(), words.next())
            else {
                continue;
            };
            let address = u64::from_str_radix(address, 16)?;
            if name == "vmap_area_lock" {
                index = Some(address);
            }
            if matches!(kind, "t" | "T") {
                symbols.insert(address, name.to_owned());
            }
        }
        let first = symbols.iter().find(|(_, name)| *name == "alloc_vmap_area");
        let middle = *first.context("no alloc_vmap_area")?.0;
        let mut bounds = (middle, middle);
        for (taker, _) in TAKERS {
            // Some names exist in other files too.
            let places = symbols.iter().filter(|(_, name)| *name == taker);
            if let Some((&place, _)) = places.min_by_key(|(at, _)| at.abs_diff(middle)) {
                bounds = (bounds.0.min(place), bounds.1.max(place));
            }
        }
        let behind = symbols.range(bounds.1 + 1..).next();
        let behind = *behind.context("vmalloc is the kernel's last function")?.0;
        Ok(Self {
            functions: symbols
                .range(bounds.0..=behind)
                .map(|(at, name)| (*at, name.clone()))
                .collect(),
            index,
        })
    }

    /// What events are wanted: those with a caller in this text.
    pub(super) fn filter(&self) -> String {
        let (first, last) = (self.functions.keys().next(), self.functions.keys().last());
        format!(
            "caller >= {:#x} && caller < {:#x}",
            first.unwrap_or(&0),
            last.unwrap_or(&0)
        )
    }

    /// The function of a return address.
    pub(super) fn function(&self, address: u64) -> &str {
        let before = self.functions.range(..address).next_back();
        let name = before.map_or("", |(_, name)| name.as_str());
        // What the compiler made of it (`.isra.0`) is the same function.
        name.split('.').next().unwrap_or(name)
    }
}
