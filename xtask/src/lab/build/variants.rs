//! The kernels that differ in one thing.
//!
//! Owns the table; a new variant is a new row. All have the same source and, but for what a row
//! adds, the same configuration.

use super::transform::{self, Edit};

/// A kernel of the lab.
#[derive(Debug)]
pub(crate) struct Variant {
    pub(crate) name: &'static str,
    /// The era that the tool has to tell, without looking at a version.
    pub(crate) era: &'static str,
    /// What sets it apart, for users.
    pub(crate) about: &'static str,
    /// Changes of the source, one after another.
    pub(super) edits: &'static [Edit],
    /// Settings beside those of `kernel.config`.
    pub(super) config: &'static str,
}

pub(crate) static VARIANTS: [Variant; 5] = [
    Variant {
        name: "spinlock",
        era: "spinlock",
        about: "as Debian ships it",
        edits: &[],
        config: "",
    },
    Variant {
        name: "rwsem",
        era: "rwsem",
        about: "vmap_area_lock is an rwsem, vmap_block.lock a mutex",
        edits: &[transform::rwsem],
        config: "",
    },
    Variant {
        name: "rwsem-iter",
        era: "rwsem-iter",
        about: "rwsem, and reads of /proc/kcore copy to their destination under it",
        edits: &[transform::rwsem, transform::iterator],
        config: "",
    },
    Variant {
        name: "spinlock-slow-free",
        era: "spinlock",
        about: "spinlock, and every free holds vmap_area_lock longer",
        edits: &[transform::slow_free],
        config: "",
    },
    Variant {
        name: "spinlock-lockstat",
        era: "spinlock",
        about: "spinlock, with the kernel's own lock statistics",
        edits: &[],
        config: "CONFIG_LOCK_STAT=y\n",
    },
];

/// The variants that the tests boot: one of each type that `vmap_area_lock` has had.
pub(crate) const TESTED: [&str; 3] = ["spinlock", "rwsem", "rwsem-iter"];

/// The variant of this name.
pub(crate) fn named(name: &str) -> Option<&'static Variant> {
    VARIANTS.iter().find(|variant| variant.name == name)
}
