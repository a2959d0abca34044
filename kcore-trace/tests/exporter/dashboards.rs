//! The dashboards and rules name only metrics that there are, and leave none of them out.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use kcore_trace::model::Level;

use crate::client::scrape;
use crate::invented::{everything, exporter};

/// What no panel or rule shows, and why.
const UNSHOWN: &[&str] = &[
    // A sum for a rate; the panels count contended ones, which every level sees.
    "kcore_trace_node_acquisitions_total",
    "kcore_trace_blamed_waits_total",
    // Of operations and trylocks, which no dashboard is about.
    "kcore_trace_operations_total",
    "kcore_trace_operation_seconds",
    "kcore_trace_failed_trylocks_total",
    "kcore_trace_aborted_waits_total",
    "kcore_trace_aborted_wait_seconds_total",
    "kcore_trace_hold_page_fault_seconds_total",
    "kcore_trace_hold_preemptions_total",
    "kcore_trace_kcore_reads_total",
    "kcore_trace_kcore_read_bytes_total",
    "kcore_trace_kcore_page_faults_total",
    "kcore_trace_reader_bytes_total",
    "kcore_trace_waits_in_flight",
    "kcore_trace_holds_in_flight",
    // Labels for whoever looks closer; the panels count them.
    "kcore_trace_hook_info",
    // Of the endpoint itself.
    "kcore_trace_measured_seconds_total",
    "kcore_trace_snapshots_total",
    "kcore_trace_program_runs_total",
    "kcore_trace_scrapes_total",
    "kcore_trace_scrape_encoding_seconds_total",
    "kcore_trace_connections_total",
    "kcore_trace_connection_errors_total",
    "process_open_fds",
    "process_start_time_seconds",
];

fn files() -> Vec<(PathBuf, String)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../dashboards");
    let paths = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let shown = paths.filter(|path| {
        path.extension().is_some_and(|kind| kind == "json") || path.ends_with("rules.yaml")
    });
    shown
        .map(|path| (path.clone(), fs::read_to_string(path).unwrap()))
        .collect()
}

/// The words of a text that are names of metrics; those with a colon are recorded by rules.
fn names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || "_:".contains(c)));
    words
        .filter(|word| word.contains("kcore_trace_") || word.starts_with("process_"))
        .collect()
}

fn without_suffix(name: &str) -> &str {
    ["_bucket", "_sum", "_count"]
        .iter()
        .find_map(|suffix| name.strip_suffix(suffix))
        .filter(|name| name.ends_with("_seconds"))
        .unwrap_or(name)
}

/// The families of every kernel, a histogram by its name without a suffix.
fn exported() -> BTreeSet<String> {
    let mut exported = BTreeSet::new();
    for kernel in ["6.12", "6.18-locked-down"] {
        let exporter = exporter(kernel, Level::Full);
        exporter.add(&everything(0));
        let scrape = scrape(exporter.address());
        let series = scrape
            .0
            .keys()
            .map(|series| series.split('{').next().unwrap());
        exported.extend(series.map(|name| without_suffix(name).to_owned()));
    }
    exported
}

#[test]
fn every_metric_that_a_dashboard_or_rule_names_is_exported_or_recorded() {
    let exported = exported();
    let files = files();
    assert!(files.len() >= 4, "{files:?}");
    for (path, text) in &files {
        for name in names(text) {
            let recorded = files
                .iter()
                .any(|(_, rules)| rules.contains(&format!("record: {name}")));
            assert!(
                recorded || exported.contains(without_suffix(name)),
                "{}: there is no {name}",
                path.display()
            );
        }
    }
}

#[test]
fn every_exported_metric_is_shown_or_has_a_reason_not_to_be() {
    let files = files();
    let shown: BTreeSet<_> = files
        .iter()
        .flat_map(|(_, text)| names(text))
        .map(without_suffix)
        .collect();
    for name in exported() {
        let unshown = UNSHOWN.contains(&name.as_str());
        assert_ne!(shown.contains(name.as_str()), unshown, "{name}");
    }
}
