//! How much may be measured, by what it costs.
//!
//! In: what measuring costs, as a share of the time of all CPUs, every few seconds. Out: the level
//! to go on with. Over the limit twice in a row steps down a ladder, such as full → contended → off.
//! A lower level is left again after a while, for a trial that has to stay well below the limit; each
//! trial that fails doubles the while. Invariant: no level above the one that was asked for, one step
//! at a time, and no clock in here.

use std::time::Duration;

use crate::model::{Level, StepReason};

/// Measurements over the limit before a step: one may have met a burst.
const CONFIRMED: u32 = 2;
/// What a trial may cost, of the limit.
const TRIAL: f64 = 0.7;
/// How long a lower level is kept at first, and at most.
const SHORTEST: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(3600);

/// What measuring may cost, and what follows if it costs more.
#[derive(Clone, Debug)]
pub(crate) struct Guard {
    /// Share of the time of all CPUs.
    limit: f64,
    /// Levels that differ in what they cost, the one that was asked for first.
    ladder: &'static [Level],
    /// Where on the ladder it is; below its end it is off.
    rung: usize,
    /// Measurements in a row over the limit.
    over: u32,
    /// Whether the next measurement decides about a return.
    trial: bool,
    /// How long a lower level is kept.
    patience: Duration,
    stepped: Duration,
    /// When it last returned to a higher level.
    returned: Option<Duration>,
}

impl Guard {
    pub(crate) fn new(limit: f64, ladder: &'static [Level]) -> Self {
        Self {
            limit,
            ladder,
            rung: 0,
            over: 0,
            trial: false,
            patience: SHORTEST,
            stepped: Duration::ZERO,
            returned: None,
        }
    }

    /// The level from now on, if it changes.
    pub(crate) fn judge(
        &mut self,
        now: Duration,
        share: f64,
    ) -> Option<(Option<Level>, StepReason)> {
        let trial = std::mem::take(&mut self.trial);
        let limit = if trial {
            self.limit * TRIAL
        } else {
            self.limit
        };
        // While it is off, what is left is this process, and nothing but a trial can tell more.
        let over = share > limit && self.level().is_some();
        self.over = if over { self.over + 1 } else { 0 };
        if over && (self.over >= CONFIRMED || trial) {
            self.step_down(now);
            let limit = self.limit;
            let reason = StepReason::Overhead { share, limit };
            return Some((self.level(), reason));
        }
        let waited = now.saturating_sub(self.stepped);
        if self.over > 0 || self.rung == 0 || waited < self.patience {
            return None;
        }
        let after_ns = waited.as_nanos() as u64;
        self.rung -= 1;
        (self.stepped, self.returned, self.trial) = (now, Some(now), true);
        Some((self.level(), StepReason::Retry { after_ns }))
    }

    /// Nothing while it is off.
    fn level(&self) -> Option<Level> {
        self.ladder.get(self.rung).copied()
    }

    /// The level could not be had.
    pub(crate) fn failed(&mut self, now: Duration) {
        self.rung = self.ladder.len();
        self.trial = false;
        self.stepped = now;
        self.lose_patience();
    }

    /// Whether the next measurement should come soon.
    pub(crate) fn is_in_doubt(&self) -> bool {
        self.trial || self.over > 0
    }

    fn step_down(&mut self, now: Duration) {
        let returned = self.returned.take();
        if returned.is_some_and(|returned| now.saturating_sub(returned) < self.patience) {
            self.lose_patience();
        } else {
            self.patience = SHORTEST;
        }
        self.rung += 1;
        self.over = 0;
        self.stepped = now;
    }

    fn lose_patience(&mut self) {
        self.patience = (self.patience * 2).min(LONGEST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: f64 = 0.01;
    const CHEAP: f64 = 0.001;
    const DEAR: f64 = 0.05;

    /// The levels of so many measurements, one each five seconds, where the cost depends on the level.
    fn levels(count: u64, cost: impl Fn(u64, Option<Level>) -> f64) -> Vec<Option<Level>> {
        let mut guard = Guard::new(LIMIT, &[Level::Full, Level::Contended]);
        let judged = (1..=count).map(|index| {
            let share = cost(index, guard.level());
            guard.judge(Duration::from_secs(5 * index), share);
            guard.level()
        });
        judged.collect()
    }

    fn changes(levels: &[Option<Level>]) -> Vec<Option<Level>> {
        let mut changes = levels.to_vec();
        changes.dedup();
        changes
    }

    #[test]
    fn cheap_measuring_goes_on() {
        let levels = levels(1000, |_, _| CHEAP);
        assert_eq!(changes(&levels), [Some(Level::Full)]);
    }

    #[test]
    fn one_burst_changes_nothing() {
        let levels = levels(1000, |index, _| if index % 2 == 0 { DEAR } else { CHEAP });
        assert_eq!(changes(&levels), [Some(Level::Full)]);
    }

    #[test]
    fn what_is_too_dear_steps_down_until_it_is_off() {
        let levels = levels(4, |_, _| DEAR);
        let (full, contended) = (Some(Level::Full), Some(Level::Contended));
        assert_eq!(levels, [full, contended, contended, None]);
    }

    #[test]
    fn a_lower_level_that_is_cheap_enough_stays() {
        let levels = levels(3, |_, level| {
            if level == Some(Level::Full) {
                DEAR
            } else {
                CHEAP
            }
        });
        assert_eq!(levels.last(), Some(&Some(Level::Contended)));
    }

    #[test]
    fn it_returns_when_the_load_is_gone() {
        let levels = levels(20, |index, _| if index <= 4 { DEAR } else { CHEAP });
        let (full, contended) = (Some(Level::Full), Some(Level::Contended));
        assert_eq!(changes(&levels), [full, contended, None, contended, full]);
    }

    #[test]
    fn trials_that_fail_become_rare() {
        let day = 24 * 3600 / 5;
        let levels = levels(day, |_, level| {
            if level == Some(Level::Full) {
                DEAR
            } else {
                CHEAP
            }
        });
        let trials = levels.iter().filter(|level| **level == Some(Level::Full));
        assert!((20..40).contains(&trials.count()));
    }

    #[test]
    fn a_trial_must_stay_well_below_the_limit() {
        let almost = LIMIT * 0.9;
        let levels = levels(10, |index, level| match level {
            Some(Level::Full) if index <= 2 => DEAR,
            Some(Level::Full) => almost,
            _ => CHEAP,
        });
        let (full, contended) = (Some(Level::Full), Some(Level::Contended));
        assert_eq!(
            changes(&levels),
            [full, contended, full, contended, full, contended]
        );
    }

    #[test]
    fn what_is_off_is_tried_again_whatever_the_process_takes() {
        let levels = levels(20, |_, _| DEAR);
        let (full, contended) = (Some(Level::Full), Some(Level::Contended));
        let tried = [full, contended, None, contended, None];
        assert_eq!(changes(&levels)[..5], tried);
    }

    #[test]
    fn a_level_that_cannot_be_had_is_tried_again_later() {
        let mut guard = Guard::new(LIMIT, &[Level::Contended]);
        guard.failed(Duration::from_secs(1));
        assert_eq!(guard.judge(Duration::from_secs(15), CHEAP), None);
        let (level, _) = guard.judge(Duration::from_secs(22), CHEAP).unwrap();
        assert_eq!(level, Some(Level::Contended));
    }
}
