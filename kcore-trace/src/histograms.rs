//! The histograms of the programs, as differences.
//!
//! In: a series, and how many samples it has by its counters. Out: the samples of each bucket since the
//! last time, over all CPUs. An octave stands in memory for all CPUs together, and nearly all samples of
//! an interval fall where those of the last one fell: there is looked first, then outwards until as many
//! are found as there are.
//!
//! Invariant: no sample is found twice, and one that was missed is found the next time.

use std::arch::x86_64::{__m128i, _mm_add_epi32, _mm_setzero_si128};
use std::collections::BTreeMap;
use std::mem::transmute;
use std::ops::Range;
use std::ptr::read_volatile;

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::maps::Array;
use kcore_trace_ebpf::bucket::{self, OCTAVES};
use kcore_trace_ebpf::layout::{ALL_OCTAVES, Histogram, HistogramOf, Octave, no_histogram, series};

use crate::mapped::{Groups, Plain};

/// The section of the programs that says which histogram each series has.
const HIST_OF: &str = ".bss.hist_of";
const SUB: usize = bucket::SUB as usize;

/// A value of the contract, for writing a map.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Octaves(HistogramOf);

// SAFETY: an array of integers.
unsafe impl aya::Pod for Octaves {}

// SAFETY: integers only.
unsafe impl Plain for Octave {}

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

    /// The samples of each bucket since the last call, of the first CPUs; none of a series that has no
    /// histogram.
    pub(crate) fn gained(
        &mut self,
        series: usize,
        expected: &Expected,
        cpus: usize,
    ) -> Result<Vec<u64>> {
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
        let mut gained = vec![0; bucket::COUNT];
        let mut found = 0;
        let recent = hull(&before.recent[0], &before.recent[1]);
        let mut octaves = outwards(&recent, within);
        while (found < wanted || expected.everything)
            && let Some(octave) = octaves.next()
        {
            let group = first + octave;
            self.octaves.map(group)?;
            let buckets = octave * SUB..(octave + 1) * SUB;
            let before = &mut before.buckets[buckets.clone()];
            let sum = sum(self.octaves.group(group).take(cpus));
            found += add(sum, before, &mut gained[buckets]);
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
fn fell_into(change: &[u64]) -> Range<usize> {
    let has_samples = |octave: &[u64]| octave.iter().any(|&samples| samples > 0);
    let mut octaves = change.chunks(SUB);
    let first = octaves.position(has_samples).unwrap_or(0);
    let behind = octaves
        .rposition(has_samples)
        .map_or(first, |last| first + 1 + last);
    first..behind + 1
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

/// An octave over some CPUs.
///
/// Four buckets at a time: with hundreds of CPUs it is what a snapshot does most.
fn sum(cpus: impl Iterator<Item = *mut Octave>) -> Octave {
    const FOURS: usize = SUB / 4;
    // SAFETY: every x86-64 has SSE2; each is a value of the map, plain integers, aligned to its size; and
    // a sum is as many integers as an octave.
    unsafe {
        let mut sum = [_mm_setzero_si128(); FOURS];
        for cpu in cpus {
            let fours = cpu.cast::<__m128i>();
            for (index, sum) in sum.iter_mut().enumerate() {
                *sum = _mm_add_epi32(*sum, read_volatile(fours.add(index)));
            }
        }
        transmute::<[__m128i; FOURS], Octave>(sum)
    }
}

/// Puts what an octave has gained into `gained`, and says how many samples that is.
fn add(after: Octave, before: &mut [u32], gained: &mut [u64]) -> u64 {
    let mut found = 0;
    for ((gained, before), after) in gained.iter_mut().zip(before).zip(after) {
        *gained = u64::from(after.wrapping_sub(*before));
        *before = after;
        found += *gained;
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
        let mut change = vec![0; bucket::COUNT];
        change[3 * SUB] = 1;
        assert_eq!(fell_into(&change), 3..4);
        change[9 * SUB + 31] = 1;
        change[5 * SUB] = 1;
        assert_eq!(fell_into(&change), 3..10);
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
        fn a_sum_is_that_of_each_bucket(
            mut cpus in prop::collection::vec(prop::array::uniform32(any::<u32>()), 0..5),
        ) {
            let mut expected = [0u32; SUB];
            for (bucket, sum) in expected.iter_mut().enumerate() {
                *sum = cpus.iter().fold(0, |sum, cpu| sum.wrapping_add(cpu[bucket]));
            }
            // Aligned as the kernel's.
            let mut aligned: Vec<Aligned> = cpus.drain(..).map(Aligned).collect();
            let sum = sum(aligned.iter_mut().map(|cpu| &raw mut cpu.0));
            prop_assert_eq!(sum, expected);
        }

        #[test]
        fn what_is_gained_is_what_was_added(
            mut buckets in prop::array::uniform32(any::<u32>()),
            added in prop::collection::vec((0..SUB, 1..1000u32), 0..20),
        ) {
            let mut before = buckets;
            let (mut gained, mut expected) = ([0; SUB], [0; SUB]);
            for (bucket, samples) in added {
                buckets[bucket] = buckets[bucket].wrapping_add(samples);
                expected[bucket] += u64::from(samples);
            }
            let found = add(buckets, &mut before, &mut gained);
            prop_assert_eq!(gained, expected);
            prop_assert_eq!(found, expected.iter().sum::<u64>());
        }
    }

    #[repr(align(128))]
    struct Aligned(Octave);
}
