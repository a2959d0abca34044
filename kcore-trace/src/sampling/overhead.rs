//! What measuring costs, as a share of the time of all CPUs.
//!
//! In: the programs and, for a moment, the kernel's own statistics of them. Out: an [`Overhead`].
//! The statistics read a clock twice for each run of every BPF program, so they are on in short
//! windows only: a fiftieth of the time. Invariant: what a window says of the programs is true of
//! that window, and what it says of this process of all the time since the window before.

use std::mem::{MaybeUninit, replace};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::loader::{self, ProgramCost, Session};

/// How long the kernel is asked to keep statistics.
pub(crate) const WINDOW: Duration = Duration::from_millis(100);
/// Time between two windows, and between two that should come soon.
pub(crate) const PERIOD: Duration = Duration::from_secs(5);
pub(crate) const SOON: Duration = Duration::from_millis(500);

/// Nanoseconds that a hook takes beside the program in it, which is what the kernel's statistics
/// contain: the call into the trampoline and out of it, about 200 instructions
/// (`cargo xtask bench`, the floor).
const HOOK_NS: u64 = 60;

/// What measuring costs, in shares of the time of all CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Overhead {
    /// The programs, by the kernel's statistics.
    pub programs: f64,
    /// The hooks that lead to them, by the number of runs.
    pub hooks: f64,
    /// This process.
    pub process: f64,
}

impl Overhead {
    pub fn share(self) -> f64 {
        let Self {
            programs,
            hooks,
            process,
        } = self;
        programs + hooks + process
    }
}

/// Watches what measuring costs.
#[derive(Debug)]
pub(super) struct Meter {
    cpus: f64,
    window: Option<Window>,
    /// When this process was last looked at, and the CPU time that it had taken.
    process: (Instant, Duration),
}

/// While the kernel keeps statistics.
#[derive(Debug)]
struct Window {
    _statistics: OwnedFd,
    begun: Instant,
    programs: Vec<ProgramCost>,
}

impl Meter {
    pub(super) fn new() -> Self {
        // SAFETY: the call takes a number only.
        let cpus = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
        Self {
            cpus: cpus.max(1) as f64,
            window: None,
            process: (Instant::now(), cpu_time()),
        }
    }

    /// Begins a window.
    ///
    /// # Errors
    ///
    /// The kernel keeps no statistics for this process.
    pub(super) fn open(&mut self, session: Option<&Session>) -> Result<()> {
        let statistics = loader::enable_statistics()?;
        self.window = Some(Window {
            _statistics: statistics,
            begun: Instant::now(),
            programs: session.map(Session::program_costs).unwrap_or_default(),
        });
        Ok(())
    }

    /// A window that was begun for other programs says nothing.
    pub(super) fn forget(&mut self) {
        self.window = None;
        self.process = (Instant::now(), cpu_time());
    }

    /// Ends the window, if there is one.
    pub(super) fn close(&mut self, session: Option<&Session>) -> Option<Overhead> {
        let window = self.window.take()?;
        let after = session.map(Session::program_costs).unwrap_or_default();
        let lasted = window.begun.elapsed();
        let mut cost = (0, 0);
        for (before, after) in window.programs.iter().zip(&after) {
            cost.0 += after.run_ns.saturating_sub(before.run_ns);
            cost.1 += after.runs.saturating_sub(before.runs);
        }
        let now = (Instant::now(), cpu_time());
        let (then, taken) = replace(&mut self.process, now);
        let share = |ns: f64, of: Duration| ns / (of.as_nanos().max(1) as f64 * self.cpus);
        let process = now.1.saturating_sub(taken);
        Some(Overhead {
            programs: share(cost.0 as f64, lasted),
            hooks: share((cost.1 * HOOK_NS) as f64, lasted),
            process: share(process.as_nanos() as f64, now.0 - then),
        })
    }
}

/// CPU time that this process has taken.
fn cpu_time() -> Duration {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the struct is plain data that the kernel fills in; zero is a valid value of it.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr());
        usage.assume_init()
    };
    let time = |time: libc::timeval| {
        Duration::from_secs(time.tv_sec as u64) + Duration::from_micros(time.tv_usec as u64)
    };
    time(usage.ru_utime) + time(usage.ru_stime)
}
