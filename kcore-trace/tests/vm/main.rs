//! The tests on live kernels: in the lab's guests and, where it makes sense, on the running one.
//!
//! One static binary is everything: PID 1 of the guest, the cases, and the tool that they run.
//! A case states what must hold on kernels that can do a thing, and that the others say so.
//! Guests are emulated, so counts and orders are asserted, never durations.

mod bench;
mod cases;
mod guest;
mod hidden;
mod load;
mod reference;
mod script;
mod session;
mod stuck;
mod tool;

use std::process::ExitCode;

use cases::{audit, blame, blocks, churn, endings, exporter, guard, inside, nodes, plan, refusals};
use guest::{Case, Needs};

/// A case for guests of any shape.
const fn case(name: &'static str, run: guest::Run) -> Case {
    Case {
        name,
        needs: Needs {
            cpus: 1,
            most_cpus: usize::MAX,
            native: false,
            variants: false,
            module: false,
            naming: false,
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

    /// Holds whatever the type of the locks: also runs on the lab's own builds.
    const fn for_every_type(mut self) -> Self {
        self.needs.variants = true;
        self
    }

    /// Runs only where it is asked for by its name.
    const fn on_request(mut self) -> Self {
        self.needs.naming = true;
        self
    }

    /// Needs a load that only the lab's own builds have.
    const fn with_module(mut self) -> Self {
        self.needs.variants = true;
        self.needs.module = true;
        self
    }
}

/// Those that attach least come first: a kernel goes on taking hooks apart after a recorder has
/// ended, and what is attached meanwhile has to wait. Those that a recorder with the same flags serves
/// stand together, and the shared load is its first.
const CASES: &[Case] = &[
    case("plan_names_the_era_by_what_btf_says", plan::era)
        .anywhere()
        .for_every_type(),
    case("plan_gives_a_reason_for_everything_missing", plan::reasons).anywhere(),
    case(
        "plan_has_the_same_symbols_and_types_both_ways",
        plan::symbols,
    )
    .anywhere(),
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
        "a_command_that_cannot_be_started_replaces_no_recording",
        refusals::no_interpreter,
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
        "contended_counts_waits_by_node_and_the_nodes_add_up",
        nodes::contended_nodes,
    )
    .parallel(),
    case(
        "tracepoint_tells_locks_by_their_place_as_by_their_address",
        churn::tracepoint_places,
    )
    .parallel(),
    case(
        "tracepoint_counts_waits_by_node_and_the_nodes_add_up",
        nodes::tracepoint_nodes,
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
        "a_hangup_that_is_ignored_ends_no_recording",
        endings::hung_up,
    )
    .alone()
    .anywhere(),
    case(
        "a_recorder_ends_in_order_where_nobody_reads_its_messages",
        endings::unheard,
    )
    .alone()
    .anywhere(),
    case(
        "a_full_disk_ends_measuring_and_the_file_stays_readable",
        endings::full_disk,
    )
    .alone()
    .anywhere(),
    case(
        "a_full_disk_is_told_of_at_once_and_the_command_still_gets_the_signals",
        endings::full_disk_with_command,
    )
    .alone()
    .anywhere(),
    case(
        "a_command_gets_the_signals_and_ends_the_recording",
        endings::forwarded,
    )
    .alone()
    .anywhere(),
    case(
        "an_interrupt_from_elsewhere_reaches_a_command_in_the_foreground",
        endings::forwarded_in_terminal,
    )
    .alone()
    .anywhere(),
    case(
        "an_exporter_gives_up_its_capabilities_and_goes_on_measuring",
        exporter::gives_up_capabilities,
    )
    .parallel()
    .anywhere(),
    case(
        "an_exporter_that_is_killed_leaves_no_program_behind",
        exporter::leaves_nothing_behind,
    )
    .alone()
    .anywhere(),
    case("an_exporter_sends_its_pages", exporter::sends_pages).on_request(),
    case("an_exporter_ends_in_order", exporter::ends_in_order)
        .alone()
        .anywhere(),
    case(
        "a_guard_with_a_high_limit_changes_nothing",
        guard::leaves_alone,
    )
    .alone()
    .anywhere(),
    case(
        "a_guard_tries_again_what_it_switched_off",
        guard::tries_again,
    )
    .alone()
    .anywhere(),
    case("an_audit_needs_every_acquisition", audit::refused)
        .alone()
        .anywhere(),
    case("kprobe_counts_every_operation", churn::kprobe_operations)
        .alone()
        .for_every_type(),
    case(
        "kprobe_counts_the_locks_of_every_operation",
        churn::kprobe_locks,
    )
    .alone()
    .for_every_type(),
    case("kprobe_matches_every_hold", churn::kprobe_holds)
        .alone()
        .for_every_type(),
    case("kprobe_sees_no_wait_on_one_cpu", churn::kprobe_waits)
        .alone()
        .for_every_type(),
    case(
        "kprobe_counts_locks_by_node_and_the_nodes_add_up",
        nodes::kprobe_nodes,
    )
    .alone()
    .for_every_type(),
    case(
        "holders_are_known_only_where_acquisitions_are_seen_when_owned",
        blame::needs_ownership,
    ),
    case("kprobe_tells_who_reads", inside::kprobe_readers)
        .alone()
        .for_every_type(),
    case(
        "kprobe_keeps_the_stacks_of_the_longest_waits",
        inside::kprobe_stacks,
    )
    .parallel(),
    case("kprobe_flags_nothing_that_tasks_do", audit::kprobe_tasks)
        .alone()
        .for_every_type(),
    case(
        "kprobe_counts_the_faults_of_untouched_pages_by_era",
        inside::kprobe_faults,
    )
    .alone(),
    case(
        "kprobe_says_what_the_kernel_skipped_or_that_nobody_knows",
        inside::kprobe_skips,
    )
    .alone(),
    case(
        "kprobe_counts_the_locks_of_every_block",
        blocks::kprobe_blocks,
    )
    .alone()
    .with_module(),
    case("kprobe_counts_trylocks_as_taken", blocks::kprobe_trylocks)
        .alone()
        .with_module(),
    case("kprobe_tells_the_context_of_a_lock", audit::kprobe_contexts)
        .alone()
        .with_module(),
    case("kprobe_sees_a_holder_leave_its_cpu", inside::kprobe_naps)
        .alone()
        .with_module(),
    case("fentry_counts_every_operation", churn::fentry_operations).for_every_type(),
    case(
        "fentry_counts_the_locks_of_every_operation",
        churn::fentry_locks,
    )
    .for_every_type(),
    case("fentry_matches_every_hold", churn::fentry_holds).for_every_type(),
    case(
        "fentry_counts_the_locks_of_every_page_of_kcore",
        churn::fentry_kcore,
    )
    .for_every_type(),
    case("fentry_sees_waits_where_cpus_compete", churn::fentry_waits).for_every_type(),
    case(
        "fentry_counts_locks_by_node_and_the_nodes_add_up",
        nodes::fentry_nodes,
    )
    .for_every_type(),
    case(
        "the_waits_for_all_holders_are_those_of_the_lock",
        blame::adds_up,
    )
    .for_every_type(),
    case(
        "fentry_tells_who_reads_and_what_others_waited_for_that",
        inside::fentry_readers,
    )
    .for_every_type(),
    case(
        "the_longest_waits_are_listed_with_who_waited_for_whom",
        inside::longest,
    )
    .for_every_type(),
    case("nobody_sleeps_with_a_spinlock", inside::sleeps).for_every_type(),
    case("fentry_sees_a_holder_leave_its_cpu", inside::fentry_naps).with_module(),
    case("readers_alone_wait_for_readers", blame::readers)
        .parallel()
        .for_every_type(),
    case("readers_are_blamed_where_there_are_some", blame::writers)
        .parallel()
        .for_every_type(),
    case(
        "a_reader_among_allocators_is_named_for_what_they_waited",
        blame::inflictor,
    )
    .parallel()
    .for_every_type(),
    case(
        "readers_share_the_index_where_it_is_an_rwsem",
        blame::shared,
    )
    .parallel()
    .for_every_type(),
    case(
        "the_shares_of_readers_and_writers_are_those_of_a_reference",
        blame::as_the_reference,
    )
    .parallel()
    .for_every_type(),
    case(
        "fentry_counts_the_faults_of_untouched_pages_by_era",
        inside::fentry_faults,
    )
    .alone()
    .for_every_type(),
    case(
        "reads_into_buffers_and_pipes_are_told_apart",
        inside::destinations,
    )
    .alone()
    .for_every_type(),
    case("fentry_skips_no_read", inside::fentry_skips).alone(),
    case(
        "a_read_is_counted_however_many_readers_there_are",
        inside::many_readers,
    )
    .alone(),
    case(
        "fentry_counts_the_locks_of_every_block",
        blocks::fentry_blocks,
    )
    .with_module(),
    case("fentry_counts_trylocks_as_taken", blocks::fentry_trylocks).with_module(),
    case(
        "fentry_keeps_the_stacks_of_the_longest_waits",
        inside::fentry_stacks,
    )
    .parallel()
    .for_every_type(),
    case("fentry_flags_nothing_that_tasks_do", audit::fentry_tasks).for_every_type(),
    case("fentry_tells_the_context_of_a_lock", audit::fentry_contexts).with_module(),
    case(
        "a_free_in_an_interrupt_is_seen_and_put_off",
        audit::deferred_frees,
    )
    .alone()
    .with_module(),
    case(
        "a_block_is_taken_in_an_rcu_read_section",
        audit::blocks_under_rcu,
    )
    .with_module(),
    case("what_happens_inside_can_be_left_out", inside::left_out).alone(),
    case("a_guard_reduces_the_level_step_by_step", guard::reduces).parallel(),
];

fn main() -> ExitCode {
    guest::main(CASES, kcore_trace::cli::main)
}
