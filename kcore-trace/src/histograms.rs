//! The histograms of the programs, as differences.
//!
//! In: a series, and how many samples it has by its counters. Out: the samples of each bucket since the
//! last time, over all CPUs. An octave stands in memory for all CPUs together, and nearly all samples of
//! an interval fall where those of the last one fell: there is looked first, then outwards until as many
//! are found as there are.
//!
//! Invariant: no sample is found twice, and one that was missed is found the next time.

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::maps::Array;
use kcore_trace_ebpf::bucket::{self, OCTAVES};
use kcore_trace_ebpf::layout::{ALL_OCTAVES, Histogram, HistogramOf, Octave, no_histogram, series};

use crate::mapped::Groups;
use crate::sums;

/// The section of the programs that says which histogram each series has.
const HIST_OF: &str = ".bss.hist_of";
const SUB: usize = bucket::SUB as usize;

/// A value of the contract, for writing a map.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Octaves(HistogramOf);

// SAFETY: an array of integers.
unsafe impl aya::Pod for Octaves {}

/// The pool of histograms, and what was read of it.
pub(crate) struct Histograms {
    /// By number of the histogram and of the octave.
    octaves: Groups<Octave>,
    /// The first octave of each series, as the kernel's side sees it.
    first: HistogramOf,
    series: BTreeMap<usize, Series>,
}

/// What was read of a series.
struct Series {
    /// As it was, over all CPUs, wrapping.
    buckets: Box<Histogram>,
    /// All samples that were read or given up.
    samples: u64,
    /// Where samples fell the last time, and the time before that.
    recent: [Range<usize>; 2],
}

/// Says to the programs that no series has a histogram yet.
pub(crate) fn prepare(object: &mut Ebpf, cpus: u32) -> Result<()> {
    write(object, none(cpus))
}

fn none(cpus: u32) -> HistogramOf {
    let mut none = [no_histogram(cpus); _];
    none[series::ALWAYS_ZERO..].fill(0);
    none
}

fn write(object: &mut Ebpf, first: HistogramOf) -> Result<()> {
    let map = object.map_mut(HIST_OF);
    let map = map.with_context(|| format!("no map `{HIST_OF}`"))?;
    let mut map: Array<_, Octaves> = Array::try_from(map)?;
    map.set(0, Octaves(first), 0)
        .context("failed to hand out histograms")
}

impl Histograms {
    pub(crate) fn new(object: &Ebpf, cpus: usize) -> Result<Self> {
        Ok(Self {
            octaves: Groups::new(object, "HISTS", cpus)?,
            first: none(cpus as u32),
            series: BTreeMap::new(),
        })
    }

    /// Gives histograms to series, as long as there are some.
    pub(crate) fn hand_out(&mut self, object: &mut Ebpf, wanted: &[usize]) -> Result<()> {
        let handed_out = (0..series::COUNT).filter(|&series| self.has(series));
        let mut next = handed_out.count() as u32 * OCTAVES as u32;
        let before = next;
        for &series in wanted {
            if !self.has(series) && next < ALL_OCTAVES {
                self.first[series] = next;
                next += OCTAVES as u32;
            }
        }
        if next == before {
            return Ok(());
        }
        write(object, self.first)
    }

    /// Whether a series has one.
    pub(crate) fn has(&self, series: usize) -> bool {
        self.first[series] < ALL_OCTAVES
    }

    /// Gives back memory that nothing was read from since the last call.
    pub(crate) fn close_idle(&mut self) {
        self.octaves.close_idle();
    }

    /// The buckets with samples since the last call, and how many, of the first CPUs; none of a series that has
    /// no histogram.
    pub(crate) fn gained(
        &mut self,
        series: usize,
        expected: &Expected,
        cpus: usize,
    ) -> Result<Vec<(u32, u64)>> {
        if !self.has(series) {
            return Ok(Vec::new());
        }
        let first = self.first[series] as usize;
        let before = self.series.entry(series).or_insert_with(|| Series {
            buckets: Box::new([0; bucket::COUNT]),
            samples: 0,
            recent: [0..0, 0..0],
        });
        let wanted = expected.samples.saturating_sub(before.samples);
        let within = octave(expected.shortest_ns)..octave(expected.longest_ns) + 1;
        let mut gained = Vec::new();
        let mut found = 0;
        let recent = hull(&before.recent[0], &before.recent[1]);
        let mut octaves = outwards(&recent, within);
        while (found < wanted || expected.everything)
            && let Some(octave) = octaves.next()
        {
            let group = first + octave;
            self.octaves.map(group)?;
            let cpus = self.octaves.group(group).take(cpus);
            // SAFETY: values of the map, of counters of 32 bits, in whole 32 bytes.
            let after = unsafe { sums::of::<u32, _, 4>(cpus) };
            found += add(octave, &mut before.buckets, after, &mut gained);
        }
        // What was not there was counted before the series had a histogram, or is on its way.
        before.samples = match octaves.next() {
            None => expected.samples.max(before.samples + found),
            Some(_) => before.samples + found,
        };
        if found > 0 {
            let [recent, earlier] = &mut before.recent;
            *earlier = std::mem::replace(recent, fell_into(&gained));
        }
        Ok(gained)
    }
}

/// What is known of the samples of a series, which is where they are looked for.
pub(crate) struct Expected {
    /// How many it has had so far.
    pub(crate) samples: u64,
    pub(crate) shortest_ns: u64,
    pub(crate) longest_ns: u64,
    /// Whether to look everywhere, however many were found.
    pub(crate) everything: bool,
}

fn octave(ns: u64) -> usize {
    bucket::index(ns) as usize / SUB
}

/// The octaves that have samples.
fn fell_into(gained: &[(u32, u64)]) -> Range<usize> {
    let octaves = gained.iter().map(|(bucket, _)| *bucket as usize / SUB);
    match (octaves.clone().min(), octaves.max()) {
        (Some(first), Some(last)) => first..last + 1,
        _ => 0..0,
    }
}

/// The octaves from the first of both to the last of both.
fn hull(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    match (a.is_empty(), b.is_empty()) {
        (true, _) => b.clone(),
        (_, true) => a.clone(),
        _ => a.start.min(b.start)..a.end.max(b.end),
    }
}

/// All octaves within bounds once: those, then the next longer durations, then the next shorter ones, and
/// so on.
fn outwards(first: &Range<usize>, within: Range<usize>) -> impl Iterator<Item = usize> {
    let first = first.start.max(within.start)..first.end.min(within.end);
    let first = if first.is_empty() {
        within.clone()
    } else {
        first
    };
    let (below, above) = (within.start..first.start, first.end..within.end);
    let steps = 0..below.len().max(above.len());
    let (mut below, mut above) = (below.rev(), above);
    first.chain(steps.flat_map(move |_| [above.next(), below.next()].into_iter().flatten()))
}

/// Notes the buckets that have gained samples, and says how many samples that is.
fn add(octave: usize, before: &mut Histogram, after: Octave, gained: &mut Vec<(u32, u64)>) -> u64 {
    let mut found = 0;
    let buckets = octave * SUB..(octave + 1) * SUB;
    for (bucket, after) in buckets.zip(after) {
        let samples = u64::from(after.wrapping_sub(before[bucket]));
        if samples != 0 {
            gained.push((bucket as u32, samples));
            before[bucket] = after;
            found += samples;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn looking_goes_outwards_from_where_samples_fell() {
        let octaves: Vec<_> = outwards(&(5..7), 3..9).collect();
        assert_eq!(octaves, [5, 6, 7, 4, 8, 3]);
        assert!(outwards(&(0..0), 3..9).eq(3..9));
        assert!(outwards(&(1..3), 3..5).eq(3..5));
    }

    #[test]
    fn octaves_with_samples_are_told() {
        let first = |octave: usize| (octave * SUB) as u32;
        assert!(fell_into(&[]).is_empty());
        assert_eq!(fell_into(&[(first(3), 1)]), 3..4);
        let gained = [(first(3), 1), (first(10) - 1, 1), (first(5), 1)];
        assert_eq!(fell_into(&gained), 3..10);
    }

    proptest! {
        #[test]
        fn each_octave_is_looked_at_once(first in 0..OCTAVES, len in 0..OCTAVES, from in 0..OCTAVES) {
            let first = first..(first + len).min(OCTAVES);
            let mut seen: Vec<usize> = outwards(&first, from..OCTAVES).collect();
            seen.sort_unstable();
            prop_assert!(seen.into_iter().eq(from..OCTAVES));
        }

        #[test]
        fn what_is_gained_is_what_was_added(
            begun in prop::array::uniform32(any::<u32>()),
            octave in 0..OCTAVES,
            added in prop::collection::btree_map(0..SUB, 1..1000u32, 0..20),
        ) {
            let mut before = [7; bucket::COUNT];
            before.as_chunks_mut().0[octave] = begun;
            let mut after = begun;
            for (&bucket, samples) in &added {
                after[bucket] = after[bucket].wrapping_add(*samples);
            }
            let mut expected = before;
            expected.as_chunks_mut().0[octave] = after;
            let mut gained = Vec::new();
            let found = add(octave, &mut before, after, &mut gained);
            prop_assert_eq!(before, expected);
            prop_assert_eq!(found, added.values().map(|samples| u64::from(*samples)).sum::<u64>());
            let bucket = |bucket: usize| (octave * SUB + bucket) as u32;
            let added = added.into_iter().map(|(index, samples)| (bucket(index), samples.into()));
            prop_assert!(gained.into_iter().eq(added));
        }
    }
}
