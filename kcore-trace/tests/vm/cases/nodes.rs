//! What is counted by node is what is counted of the lock.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::churn::{by_fentry, by_kprobe, by_tracepoint, contended_by_fentry};
use crate::guest::{Guest, Outcome};
use crate::tool::Report;

/// Acquisitions by others between the two reads of cells and nodes.
const WHILE_READING: u64 = 8;

const BUSY: &str = "vmap_node.busy";

pub(crate) fn fentry_nodes(guest: &mut Guest) -> Result<Outcome> {
    every_acquisition(&by_fentry(guest)?, guest)
}

pub(crate) fn kprobe_nodes(guest: &mut Guest) -> Result<Outcome> {
    every_acquisition(&by_kprobe(guest)?, guest)
}

pub(crate) fn contended_nodes(_: &mut Guest) -> Result<Outcome> {
    only_waits(&contended_by_fentry()?)
}

pub(crate) fn tracepoint_nodes(_: &mut Guest) -> Result<Outcome> {
    match by_tracepoint()? {
        Ok(report) => only_waits(&report),
        Err(complaint) => Ok(Outcome::Skipped(complaint)),
    }
}

/// The numbers of one lock's nodes, by node.
fn numbers(report: &Report, lock: &str, what: &str) -> Vec<u64> {
    let rows = report.rows("nodes").filter(|row| row["lock"] == lock);
    rows.filter_map(|row| row[what].as_u64()).collect()
}

fn same(report: &Report, lock: &str, what: &str) -> Result<u64> {
    let nodes: u64 = numbers(report, lock, what).iter().sum();
    let total = report.sum(lock, None, None, what);
    ensure!(
        nodes.abs_diff(total) <= WHILE_READING,
        "{what} of {lock}: its nodes have {nodes}, all together {total}"
    );
    Ok(nodes)
}

fn waits_add_up(report: &Report, lock: &str) -> Result<()> {
    same(report, lock, "contended")?;
    let nodes: u64 = numbers(report, lock, "wait_sum_ns").iter().sum();
    let waits = report.locks(lock).map(|row| &row["wait"]["sum_ns"]);
    let total: u64 = waits.filter_map(Value::as_u64).sum();
    // A wait that ended between the two reads is in one of them only.
    ensure!(
        nodes.abs_diff(total) * 50 <= total,
        "waits for {lock}: of its nodes {nodes} ns, all together {total} ns"
    );
    Ok(())
}

/// The locks of nodes that were seen; on a kernel without nodes nothing is counted by node.
fn node_locks(report: &Report) -> Result<Vec<String>> {
    let mut locks: Vec<_> = report
        .rows("locks")
        .filter_map(|row| row["lock"].as_str())
        .filter(|lock| lock.starts_with("vmap_node."))
        .map(ToOwned::to_owned)
        .collect();
    locks.sort();
    locks.dedup();
    let counted = report.rows("nodes").count() > 0;
    ensure!(
        counted != locks.is_empty(),
        "locks of nodes: {locks:?}, counted by node: {counted}"
    );
    ensure!(report.era() == "per-node" || !counted, "{}", report.era());
    Ok(locks)
}

fn every_acquisition(report: &Report, guest: &Guest) -> Result<Outcome> {
    let locks = node_locks(report)?;
    for lock in &locks {
        same(report, lock, "acquisitions")?;
        waits_add_up(report, lock)?;
    }
    if report.era() != "per-node" {
        return Ok(Outcome::Passed);
    }
    let busy = numbers(report, BUSY, "acquisitions");
    let nodes = guest.possible_cpus()?;
    ensure!(busy.len() == nodes, "{} of {nodes} nodes", busy.len());
    // A search of /proc/kcore takes every node's lock once, and the found one's once more.
    let searches = report.acquisitions(BUSY, "vread", "read") / (nodes as u64 + 1);
    let least = busy.iter().min().context("no node")?;
    ensure!(
        searches > 0 && *least >= searches,
        "{searches} searches of all nodes: {busy:?}"
    );
    Ok(Outcome::Passed)
}

fn only_waits(report: &Report) -> Result<Outcome> {
    for lock in &node_locks(report)? {
        waits_add_up(report, lock)?;
    }
    let unseen = report
        .rows("nodes")
        .all(|row| row["acquisitions"].is_null());
    ensure!(
        unseen,
        "acquisitions that are not seen were counted by node"
    );
    Ok(Outcome::Passed)
}
