//! How unevenly the nodes of a lock are used.
//!
//! In: the counts of each node. Out: for acquisitions, contended ones and the time waited, the node
//! that has most of it, its share, and that share against an even one, which is also the maximum
//! over the mean. Invariant: of nothing there is no share.

use kcore_trace_ebpf::words::Lock;
use serde::Serialize;

use crate::model::Nodes;
use crate::units;

/// How one number is spread over the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Imbalance {
    /// The number of the node that has most.
    pub busiest: usize,
    /// Its part of all, 0 to 1.
    pub share: f64,
    /// Its part over that of an even spread: 1 if all nodes have the same.
    pub max_over_mean: f64,
    /// Nodes that have any.
    pub used: usize,
}

/// How the nodes of one lock are used.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    #[serde(with = "crate::words")]
    pub lock: Lock,
    /// How many nodes there are.
    pub nodes: usize,
    /// Null where an uncontended acquisition is not seen.
    pub acquisitions: Option<Imbalance>,
    /// Null if none was contended, or where waits are not seen.
    pub contended: Option<Imbalance>,
    /// The time waited; null if nobody waited, or where that is not seen.
    pub wait: Option<Imbalance>,
}

impl Imbalance {
    fn of(column: &[u64], nodes: usize) -> Option<Self> {
        let all: u128 = column.iter().copied().map(u128::from).sum();
        if all == 0 {
            return None;
        }
        // The first of equals.
        let most = column.iter().max()?;
        let busiest = column.iter().position(|number| number == most)?;
        let share = *most as f64 / all as f64;
        Some(Self {
            busiest,
            share,
            max_over_mean: share * nodes as f64,
            used: column.iter().filter(|&&number| number != 0).count(),
        })
    }
}

impl Spread {
    pub fn of(lock: Lock, nodes: &Nodes, sees_waits: bool) -> Self {
        let count = nodes.count();
        let of = |column: &[u64]| Imbalance::of(column, count);
        let of_waits = |column: &[u64]| of(column).filter(|_| sees_waits);
        Self {
            lock,
            nodes: count,
            acquisitions: of(&nodes.acquisitions),
            contended: of_waits(&nodes.contended),
            wait: of_waits(&nodes.wait_sum_ns),
        }
    }

    /// What an even spread gives to each node.
    pub fn even_share(&self) -> f64 {
        1.0 / self.nodes.max(1) as f64
    }

    /// The busiest nodes in a phrase; nothing where there is but one node.
    pub(crate) fn phrase(&self) -> Option<String> {
        if self.nodes < 2 {
            return None;
        }
        let often = match self.acquisitions {
            Some(acquisitions) => Some((acquisitions, "acquisitions")),
            None => self
                .contended
                .map(|contended| (contended, "contended acquisitions")),
        };
        let waited = self.wait.map(|wait| (wait, "the time waited"));
        let part = |(number, what): (Imbalance, &str)| {
            format!("{} of {what}", units::fraction(number.share))
        };
        let busiest = match (often, waited) {
            (Some(often), Some(waited)) if often.0.busiest == waited.0.busiest => {
                format!(
                    "node {} has {} and {}",
                    often.0.busiest,
                    part(often),
                    part(waited)
                )
            }
            (often, waited) => {
                let each = [often, waited].into_iter().flatten();
                let each = each.map(|it| format!("node {} has {}", it.0.busiest, part(it)));
                each.collect::<Vec<_>>().join(", ")
            }
        };
        let even = units::fraction(self.even_share());
        let nodes = self.nodes;
        (!busiest.is_empty()).then(|| format!("{nodes} nodes, {even} each if even: {busiest}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(acquisitions: &[u64], wait_sum_ns: &[u64]) -> Spread {
        let nodes = Nodes {
            acquisitions: acquisitions.to_vec(),
            contended: vec![0; acquisitions.len()],
            wait_sum_ns: wait_sum_ns.to_vec(),
        };
        Spread::of(Lock::NodeBusy, &nodes, true)
    }

    #[test]
    fn even_use_is_a_share_of_one_part_and_a_ratio_of_one() {
        let even = spread(&[10, 10, 10, 10], &[0; 4]);
        let acquisitions = even.acquisitions.unwrap();
        assert_eq!(acquisitions.share, even.even_share());
        assert_eq!((acquisitions.max_over_mean, acquisitions.used), (1.0, 4));
        assert_eq!((even.contended, even.wait), (None, None));
    }

    #[test]
    fn one_node_that_does_all_is_named() {
        let uneven = spread(&[1, 1, 6], &[0, 0, 9]);
        assert_eq!(uneven.wait.unwrap().max_over_mean, 3.0);
        assert_eq!(
            uneven.phrase().unwrap(),
            "3 nodes, 33.3 % each if even: node 2 has 75.0 % of acquisitions and 100 % of the time \
             waited"
        );
        assert!(
            spread(&[1, 1, 6], &[9, 0, 0]).phrase().unwrap().ends_with(
                "node 2 has 75.0 % of acquisitions, node 0 has 100 % of the time waited"
            )
        );
    }

    #[test]
    fn one_node_alone_is_neither_even_nor_uneven() {
        assert_eq!(spread(&[7], &[1]).phrase(), None);
    }
}
