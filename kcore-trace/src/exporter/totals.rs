//! What was measured since the start, in the form that counters and histograms are exported in.
//!
//! In: intervals. Out: sums that never fall, which is what every rate is computed from. Series that
//! the plan expects are there from the start, at zero: a counter that is born with its first sample
//! has no rate of it.
//!
//! Invariant: a histogram has exactly as many samples as its buckets, so that no scraper refuses
//! it. Counters and buckets of the kernel are read one after the other; a sample that is not yet in
//! its bucket is counted with the next interval. One that never found a bucket is counted as of
//! unknown length.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::take;

use kcore_trace_ebpf::bucket;
use kcore_trace_ebpf::words::{Destination, Lock, Op, Source};

use crate::distribution::Distribution;
use crate::model::{
    Blame, BlameKey, Cell, CellKey, Copies, Inside, Interval, Loss, Measured, Nodes, OpCell,
    Process, Reader,
};

/// Names of processes that readers are told apart by; an exporter runs for years.
const READER_NAMES: usize = 50;

/// A histogram since the start.
#[derive(Debug)]
pub(crate) struct Series {
    /// Samples by the kernel's count.
    counted: u64,
    sum_ns: u64,
    buckets: Vec<u64>,
    placed: u64,
    /// Counted samples that were in no bucket when the last interval ended.
    unplaced: u64,
    unknown: u64,
}

impl Default for Series {
    fn default() -> Self {
        Self {
            counted: 0,
            sum_ns: 0,
            buckets: vec![0; bucket::COUNT],
            placed: 0,
            unplaced: 0,
            unknown: 0,
        }
    }
}

impl Series {
    /// Adds the samples of an interval. Whether the kernel ever had no bucket for a sample tells
    /// those that are late from those that are lost.
    fn add(&mut self, later: &Distribution) {
        self.counted += later.count();
        self.sum_ns += later.sum_ns();
        for bucket in later.buckets() {
            // A bucket of a distribution lies within one of the kernel.
            self.buckets[bucket::index(bucket.lower_ns) as usize] += bucket.count;
            self.placed += bucket.count;
        }
    }

    /// Ends an interval: a sample that is late for the second time will not come.
    fn settle(&mut self, without_bucket: u64) {
        let unplaced = self.counted.saturating_sub(self.placed);
        let lost = unplaced.min(self.unplaced).min(without_bucket);
        self.unknown = self.unknown.max(lost);
        self.unplaced = unplaced;
    }

    /// Samples that are in a bucket, or are known never to be.
    pub(crate) fn count(&self) -> u64 {
        self.placed + self.unknown
    }

    pub(crate) fn sum_seconds(&self) -> f64 {
        self.sum_ns as f64 / 1e9
    }

    /// Samples for each bucket of the kernel.
    pub(crate) fn buckets(&self) -> &[u64] {
        &self.buckets
    }

    /// Samples whose length is not known.
    pub(crate) fn unknown(&self) -> u64 {
        self.unknown
    }
}

/// The acquisitions of one cell since the start.
#[derive(Debug, Default)]
pub(crate) struct CellTotal {
    pub(crate) acquisitions: u64,
    pub(crate) contended: u64,
    pub(crate) aborted: u64,
    pub(crate) aborted_wait_ns: u64,
    pub(crate) try_failed: u64,
    pub(crate) wait: Series,
    /// Nothing where holds are not seen.
    pub(crate) hold: Option<Series>,
}

/// The operations of one kind since the start.
#[derive(Debug, Default)]
pub(crate) struct OpTotal {
    pub(crate) count: u64,
    /// Nothing where operations are only counted.
    pub(crate) latency: Option<Series>,
}

/// Which series are there from the start, and what is seen of the others.
#[derive(Clone, Debug, Default)]
pub(crate) struct Expected {
    pub(crate) cells: Vec<CellKey>,
    /// Locks of which acquisitions are seen, and not whether they waited.
    pub(crate) without_waits: Vec<Lock>,
    /// Locks whose holds are seen.
    pub(crate) holds: Vec<Lock>,
    pub(crate) ops: Vec<Op>,
    /// Whether operations are timed.
    pub(crate) timed: bool,
}

/// Everything since the start.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    expected: Expected,
    /// Locks of which waits were not seen at some time, so that a sum would be wrong.
    without_waits: BTreeSet<Lock>,
    pub(crate) cells: BTreeMap<CellKey, CellTotal>,
    pub(crate) ops: BTreeMap<Op, OpTotal>,
    /// The locks of nodes; the kernel has 128 nodes at most.
    pub(crate) nodes: BTreeMap<Lock, Nodes>,
    /// Who waited for whom.
    pub(crate) blame: BTreeMap<BlameKey, Blame>,
    pub(crate) inside: BTreeMap<CellKey, Inside>,
    pub(crate) copies: BTreeMap<Destination, Copies>,
    /// Readers by file and name of the process; the name is empty for all others.
    pub(crate) readers: BTreeMap<(Source, String), Reader>,
    /// The numbers of the nodes as labels.
    pub(crate) node_names: Vec<String>,
    pub(crate) loss: Loss,
    /// Nanoseconds that were measured.
    pub(crate) measured_ns: u64,
}

impl Totals {
    pub(crate) fn new(expected: Expected) -> Self {
        let mut totals = Self::default();
        totals.expect(expected);
        totals
    }

    /// Expects other series from now on. Those that are there stay.
    pub(crate) fn expect(&mut self, expected: Expected) {
        self.without_waits.extend(&expected.without_waits);
        self.expected = expected;
        for key in self.expected.cells.clone() {
            self.cell(key);
        }
        for op in self.expected.ops.clone() {
            self.op(op);
        }
    }

    /// Whether all waits for a lock are in the sums.
    pub(crate) fn sees_waits(&self, lock: Lock) -> bool {
        !self.without_waits.contains(&lock)
    }

    /// The same of all locks.
    pub(crate) fn sees_waits_of_all(&self) -> bool {
        self.without_waits.is_empty()
    }

    pub(crate) fn add(&mut self, interval: &Interval) {
        let Measured {
            cells,
            ops,
            nodes,
            blame,
            inside,
            copies,
            readers,
            worst: _,
            audit: _,
            loss,
        } = &interval.measured;
        let mut sum = Measured {
            nodes: take(&mut self.nodes),
            blame: take(&mut self.blame),
            inside: take(&mut self.inside),
            copies: take(&mut self.copies),
            loss: self.loss,
            ..Measured::default()
        };
        sum.add(&Measured {
            nodes: nodes.clone(),
            blame: blame.clone(),
            inside: inside.clone(),
            copies: copies.clone(),
            loss: *loss,
            ..Measured::default()
        });
        (self.nodes, self.blame, self.loss) = (sum.nodes, sum.blame, sum.loss);
        (self.inside, self.copies) = (sum.inside, sum.copies);
        for (key, reader) in readers {
            self.reader(key.file, key.process.as_ref()).add(reader);
        }
        let nodes = self.nodes.values().map(Nodes::count).max().unwrap_or(0);
        let names = (self.node_names.len()..nodes).map(|node| node.to_string());
        self.node_names.extend(names);
        for (key, cell) in cells {
            self.cell(*key).add(cell);
        }
        for (op, cell) in ops {
            self.op(*op).add(cell);
        }
        self.settle();
    }

    fn settle(&mut self) {
        let without_bucket = self.loss.map_full;
        let of_cells = self.cells.values_mut().flat_map(|cell| {
            let CellTotal { wait, hold, .. } = cell;
            std::iter::once(wait).chain(hold)
        });
        let of_ops = self.ops.values_mut().flat_map(|op| &mut op.latency);
        for series in of_cells.chain(of_ops) {
            series.settle(without_bucket);
        }
    }

    fn cell(&mut self, key: CellKey) -> &mut CellTotal {
        let holds = self.expected.holds.contains(&key.lock);
        self.cells.entry(key).or_insert_with(|| CellTotal {
            hold: holds.then(Series::default),
            ..CellTotal::default()
        })
    }

    fn reader(&mut self, file: Source, process: Option<&Process>) -> &mut Reader {
        let name = process.map_or("", |process| &process.comm);
        let key = (file, name.to_owned());
        let known = self.readers.len() < READER_NAMES || self.readers.contains_key(&key);
        let key = if known { key } else { (file, String::new()) };
        self.readers.entry(key).or_default()
    }

    fn op(&mut self, op: Op) -> &mut OpTotal {
        let timed = self.expected.timed;
        self.ops.entry(op).or_insert_with(|| OpTotal {
            latency: timed.then(Series::default),
            ..OpTotal::default()
        })
    }
}

impl CellTotal {
    fn add(&mut self, later: &Cell) {
        let Cell {
            acquisitions,
            contended,
            aborted,
            aborted_wait_ns,
            try_failed,
            releases: _,
            wait,
            hold,
        } = later;
        self.acquisitions += acquisitions;
        self.contended += contended;
        self.aborted += aborted;
        self.aborted_wait_ns += aborted_wait_ns;
        self.try_failed += try_failed;
        self.wait.add(wait);
        if let Some(series) = &mut self.hold {
            series.add(hold);
        }
    }
}

impl OpTotal {
    fn add(&mut self, later: &OpCell) {
        let OpCell { count, latency } = later;
        self.count += count;
        if let Some(series) = &mut self.latency {
            series.add(latency);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distribution::Exact;
    use crate::model::ReaderKey;

    const FIVE_NS: u64 = 5;

    /// Samples of five nanoseconds, of which only some found a bucket.
    fn waits(counted: u64, placed: u64) -> Distribution {
        let exact = Exact {
            count: counted,
            sum_ns: counted * FIVE_NS,
            min_ns: FIVE_NS,
            max_ns: FIVE_NS,
        };
        Distribution::from_buckets(exact, [(bucket::index(FIVE_NS), placed)])
    }

    #[test]
    fn a_sample_that_is_late_is_counted_with_its_bucket() {
        let mut series = Series::default();
        series.add(&waits(10, 8));
        series.settle(0);
        assert_eq!(series.count(), 8);
        series.add(&waits(5, 7));
        series.settle(0);
        assert_eq!((series.count(), series.unknown()), (15, 0));
        assert_eq!(series.buckets()[FIVE_NS as usize], 15);
    }

    #[test]
    fn a_sample_that_found_no_bucket_is_of_unknown_length() {
        let mut series = Series::default();
        series.add(&waits(10, 7));
        series.settle(3);
        assert_eq!((series.count(), series.unknown()), (7, 0));
        series.settle(3);
        assert_eq!((series.count(), series.unknown()), (10, 3));
    }

    #[test]
    fn however_many_readers_there_are_few_have_a_series_and_no_read_is_lost() {
        let mut totals = Totals::default();
        for pid in 0..1000 {
            let process = Process {
                pid,
                comm: format!("reader-{}", pid % 200),
                cgroup: None,
            };
            let key = ReaderKey {
                file: Source::Kcore,
                process: Some(process),
            };
            let read = Reader {
                reads: 1,
                ..Reader::default()
            };
            totals.add(&Interval {
                start_ns: 0,
                end_ns: 1,
                measured: Measured {
                    readers: [(key, read)].into(),
                    ..Measured::default()
                },
            });
        }
        assert_eq!(totals.readers.len(), READER_NAMES + 1);
        let reads: u64 = totals.readers.values().map(|reader| reader.reads).sum();
        assert_eq!(reads, 1000);
    }

    #[test]
    fn no_more_samples_are_of_unknown_length_than_the_kernel_says() {
        let mut series = Series::default();
        series.add(&waits(10, 0));
        series.settle(1);
        series.settle(1);
        assert_eq!((series.count(), series.unknown()), (1, 1));
    }
}
