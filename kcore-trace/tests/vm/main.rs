//! The tests on live kernels: in the lab's guests and, where it makes sense, on the running one.
//!
//! One static binary is everything: PID 1 of the guest, the cases, and the tool that they run.
//! A case states what must hold on kernels that can do a thing, and that the others say so.
//! Guests are emulated, so counts and orders are asserted, never durations.

mod cases;
mod guest;
mod tool;

use std::process::ExitCode;

use cases::{churn, endings, plan, refusals};
use guest::{Case, Needs};

/// A case for guests of any shape.
const fn case(name: &'static str, run: guest::Run) -> Case {
    Case {
        name,
        needs: Needs {
            cpus: 1,
            most_cpus: usize::MAX,
            native: false,
        },
        run,
    }
}

impl Case {
    /// Needs several CPUs.
    const fn parallel(mut self) -> Self {
        self.needs.cpus = 2;
        self
    }

    /// Does not depend on the number of CPUs.
    const fn alone(mut self) -> Self {
        self.needs.most_cpus = 1;
        self
    }

    /// Holds on the running kernel too.
    const fn anywhere(mut self) -> Self {
        self.needs.native = true;
        self
    }
}

/// Those that attach least come first: a kernel goes on taking hooks apart after a recorder has
/// ended, and what is attached meanwhile has to wait.
const CASES: &[Case] = &[
    case("plan_names_the_era_by_what_btf_says", plan::era).anywhere(),
    case("plan_gives_a_reason_for_everything_missing", plan::reasons).anywhere(),
    case(
        "plan_at_level_contended_hooks_slow_paths_only",
        plan::slow_paths_only,
    )
    .alone(),
    case(
        "a_user_without_capabilities_is_told_which_is_missing",
        refusals::no_capability,
    )
    .alone()
    .anywhere(),
    case(
        "a_command_that_does_not_exist_leaves_no_recording",
        refusals::no_command,
    )
    .alone()
    .anywhere(),
    case(
        "a_recording_is_not_replaced_without_force",
        refusals::no_force,
    )
    .alone()
    .anywhere(),
    case(
        "contended_by_fentry_sees_waits_and_nothing_else",
        churn::contended_fentry,
    )
    .parallel(),
    case(
        "contended_by_kprobe_sees_waits_and_nothing_else",
        churn::contended_kprobe,
    )
    .parallel(),
    case(
        "tracepoint_sees_waits_with_their_op",
        churn::tracepoint_waits,
    )
    .parallel(),
    case(
        "tracepoint_says_what_it_cannot_see",
        churn::tracepoint_coverage,
    )
    .anywhere(),
    case(
        "a_recorder_that_is_killed_leaves_what_it_measured",
        endings::killed,
    )
    .alone()
    .anywhere(),
    case("ctrl_c_ends_a_recording_in_order", endings::interrupted)
        .alone()
        .anywhere(),
    case(
        "a_full_disk_ends_measuring_and_the_file_stays_readable",
        endings::full_disk,
    )
    .alone()
    .anywhere(),
    case(
        "a_command_gets_the_signals_and_ends_the_recording",
        endings::forwarded,
    )
    .alone()
    .anywhere(),
    case("kprobe_counts_every_operation", churn::kprobe_operations).alone(),
    case(
        "kprobe_counts_the_locks_of_every_operation",
        churn::kprobe_locks,
    )
    .alone(),
    case("kprobe_matches_every_hold", churn::kprobe_holds).alone(),
    case("kprobe_sees_no_wait_on_one_cpu", churn::kprobe_waits).alone(),
    case("fentry_counts_every_operation", churn::fentry_operations),
    case(
        "fentry_counts_the_locks_of_every_operation",
        churn::fentry_locks,
    ),
    case("fentry_matches_every_hold", churn::fentry_holds),
    case(
        "fentry_counts_the_locks_of_every_page_of_kcore",
        churn::fentry_kcore,
    ),
    case("fentry_sees_waits_where_cpus_compete", churn::fentry_waits),
];

fn main() -> ExitCode {
    guest::main(CASES, kcore_trace::cli::main)
}
