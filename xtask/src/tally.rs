//! Counting tests.
//!
//! Owns the three numbers that a test run ends with, and how they are read from
//! what libtest prints. Pure.

use std::{fmt, ops::AddAssign};

/// How many tests passed, failed and were skipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Tally {
    /// Reads libtest's `test result:` line; any other line is `None`. Its
    /// ignored tests are skipped ones here.
    pub(crate) fn from_libtest(line: &str) -> Option<Self> {
        let (_verdict, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let mut tally = Self::default();
        for count in counts.split("; ") {
            let Some((number, what)) = count.split_once(' ') else {
                continue;
            };
            let field = match what {
                "passed" => &mut tally.passed,
                "failed" => &mut tally.failed,
                "ignored" => &mut tally.skipped,
                _ => continue,
            };
            *field = number.parse().ok()?;
        }
        Some(tally)
    }

    /// Reads what a chore of ours ends with: what [`Tally`] is shown as.
    pub(crate) fn from_own(line: &str) -> Option<Self> {
        let mut numbers = line.split(", ").zip(["passed", "failed", "skipped"]);
        let mut next = || {
            let (count, what) = numbers.next()?;
            count.strip_suffix(what)?.trim_end().parse().ok()
        };
        Some(Self {
            passed: next()?,
            failed: next()?,
            skipped: next()?,
        })
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        let Self {
            passed,
            failed,
            skipped,
        } = other;
        self.passed += passed;
        self.failed += failed;
        self.skipped += skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            passed,
            failed,
            skipped,
        } = self;
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtest_result_line_is_counted() {
        let line = "test result: FAILED. 3 passed; 1 failed; 2 ignored; 0 measured; \
                    4 filtered out; finished in 0.00s";
        let expected = Tally {
            passed: 3,
            failed: 1,
            skipped: 2,
        };
        assert_eq!(Tally::from_libtest(line), Some(expected));
    }

    #[test]
    fn what_is_shown_can_be_read() {
        let tally = Tally {
            passed: 3,
            failed: 1,
            skipped: 2,
        };
        assert_eq!(Tally::from_own(&tally.to_string()), Some(tally));
        for other in ["", "3 passed", "3 failed, 1 passed, 2 skipped", "ok"] {
            assert_eq!(Tally::from_own(other), None);
        }
    }

    #[test]
    fn other_lines_are_not_counted() {
        assert_eq!(Tally::from_libtest("test plan::tests::empty ... ok"), None);
        assert_eq!(Tally::from_libtest("running 3 tests"), None);
    }
}
