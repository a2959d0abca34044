//! Giving up what is needed no more.
//!
//! In: a thread with capabilities. Out: the same thread with fewer. Attaching needs CAP_BPF,
//! CAP_PERFMON and CAP_SYSLOG; reading maps whose descriptors are open needs none on kernels that
//! ask only for creation (5.19 and later), and CAP_BPF on older ones where
//! `kernel.unprivileged_bpf_disabled` is set. Which of the two it is is tried, not looked up.
//!
//! Invariant: capabilities belong to a thread, so each thread gives up its own; what is given up
//! cannot be had again, not by starting another program either.

use anyhow::{Context as _, Result};
use caps::{CapSet, Capability, CapsHashSet};

/// What reading maps needs on an old kernel.
const READING: [Capability; 1] = [Capability::CAP_BPF];

/// Gives up everything that `read` can do without, which is called once or twice.
///
/// # Errors
///
/// Those of `read`, where it fails with all that there is.
pub(crate) fn keep_what_reading_needs(mut read: impl FnMut() -> Result<()>) -> Result<CapsHashSet> {
    let held = caps::read(None, CapSet::Permitted).context("failed to read the capabilities")?;
    caps::clear(None, CapSet::Effective).context("failed to give up capabilities")?;
    let mut kept = CapsHashSet::new();
    if read().is_err() {
        kept = held.intersection(&READING.into()).copied().collect();
        caps::set(None, CapSet::Effective, &kept).context("failed to take a capability back")?;
        if read().is_err() {
            // CAP_SYS_ADMIN includes CAP_BPF, for whoever was given the one in place of the other.
            kept = held;
            caps::set(None, CapSet::Effective, &kept)?;
            read()?;
        }
    }
    keep(&kept)?;
    Ok(kept)
}

/// Gives up all capabilities of the calling thread; one that does not go is of no use to it.
pub(crate) fn drop_all_of_this_thread() {
    // A thread that may not even do that had nothing to give up.
    let _ = caps::clear(None, CapSet::Effective);
    let _ = keep(&CapsHashSet::new());
}

fn keep(kept: &CapsHashSet) -> Result<()> {
    // Emptying the bounding set needs CAP_SETPCAP, which a service does not have; no_new_privs
    // has the same effect.
    no_new_privileges();
    caps::clear(None, CapSet::Ambient).or_else(|error| {
        // A kernel without ambient capabilities has none to give up.
        let none = caps::read(None, CapSet::Ambient).is_err();
        none.then_some(()).ok_or(error)
    })?;
    caps::clear(None, CapSet::Inheritable).context("failed to give up capabilities")?;
    caps::set(None, CapSet::Permitted, kept).context("failed to give up capabilities")
}

fn no_new_privileges() {
    // SAFETY: the call takes numbers only. Every kernel since 3.5 has it.
    unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
}

/// The names, or that there are none.
pub(crate) fn shown(kept: &CapsHashSet) -> String {
    let mut names: Vec<_> = kept.iter().map(ToString::to_string).collect();
    names.sort();
    if names.is_empty() {
        "none".into()
    } else {
        names.join(" ")
    }
}
