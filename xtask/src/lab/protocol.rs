//! What a guest says on its console.
//!
//! In: console lines, kernel messages among them. Out: the verdict of each case
//! and whether the guest reached its end. Pure. The guest's half is
//! `kcore-trace/tests/vm/guest.rs`; the lines are:
//!
//! ```text
//! KCT case NAME ok
//! KCT case NAME FAILED MESSAGE
//! KCT case NAME skipped REASON
//! KCT case NAME unfit REASON      (never runs in this configuration)
//! KCT | DETAIL                    (belongs to the case before it)
//! KCT done N                      (N case lines were printed)
//! ```

use crate::tally::Tally;

const PREFIX: &str = "KCT ";

/// How a case ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Passed,
    Failed(String),
    Skipped(String),
    /// The case is not for this configuration, which is no news.
    Unfit(String),
}

/// A case that the guest reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) verdict: Verdict,
    pub(crate) details: Vec<String>,
}

/// What is known about a guest from the lines so far.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) cases: Vec<Case>,
    done: Option<usize>,
    broken: Option<String>,
}

impl Report {
    /// Reads everything that a guest printed.
    pub(crate) fn from_console(console: &str) -> Self {
        let mut report = Self::default();
        for line in console.lines() {
            report.line(line);
        }
        report
    }

    fn line(&mut self, line: &str) {
        // A kernel message without its newline may stand before the prefix; the
        // guest's own line is written by one call and stays whole.
        let Some(start) = line.find(PREFIX) else {
            return;
        };
        let words = line[start + PREFIX.len()..].trim_end();
        if let Some(detail) = words.strip_prefix('|') {
            if let Some(case) = self.cases.last_mut() {
                case.details
                    .push(detail.strip_prefix(' ').unwrap_or(detail).to_owned());
            }
        } else if let Some(count) = words.strip_prefix("done ") {
            self.done = count.parse().ok();
        } else if let Some(case) = words.strip_prefix("case ").and_then(parse_case) {
            self.cases.push(case);
        } else {
            self.broken.get_or_insert_with(|| line.to_owned());
        }
    }

    /// Why the report cannot be trusted, if it cannot.
    pub(crate) fn trouble(&self) -> Option<String> {
        if let Some(line) = &self.broken {
            return Some(format!("it printed a line that makes no sense: {line}"));
        }
        match self.done {
            Some(count) if count == self.cases.len() => None,
            Some(count) => Some(format!(
                "it ran {count} cases, but {} were read",
                self.cases.len()
            )),
            None => Some("it did not reach its end".to_owned()),
        }
    }

    /// The cases that failed, each with its reason.
    pub(crate) fn failed(&self) -> impl Iterator<Item = (&str, &str)> {
        self.cases.iter().filter_map(|case| match &case.verdict {
            Verdict::Failed(why) => Some((case.name.as_str(), why.as_str())),
            _ => None,
        })
    }

    pub(crate) fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for case in &self.cases {
            match case.verdict {
                Verdict::Passed => tally.passed += 1,
                Verdict::Failed(_) => tally.failed += 1,
                Verdict::Skipped(_) => tally.skipped += 1,
                Verdict::Unfit(_) => (),
            }
        }
        tally
    }
}

fn parse_case(words: &str) -> Option<Case> {
    let (name, rest) = words.split_once(' ')?;
    let (word, message) = rest.split_once(' ').unwrap_or((rest, ""));
    let verdict = match word {
        "ok" => Verdict::Passed,
        "FAILED" => Verdict::Failed(message.to_owned()),
        "skipped" => Verdict::Skipped(message.to_owned()),
        "unfit" => Verdict::Unfit(message.to_owned()),
        _ => return None,
    };
    Some(Case {
        name: name.to_owned(),
        verdict,
        details: Vec::new(),
    })
}

/// The cases that ran in none of the guests, each with one of the reasons.
pub(crate) fn never_run<'a>(
    reports: impl IntoIterator<Item = &'a Report>,
) -> Vec<(&'a str, &'a str)> {
    let cases: Vec<&Case> = reports
        .into_iter()
        .flat_map(|report| &report.cases)
        .collect();
    let ran = |name: &str| {
        let ran = |case: &&&Case| matches!(case.verdict, Verdict::Passed | Verdict::Failed(_));
        cases.iter().filter(ran).any(|case| case.name == name)
    };
    let mut never: Vec<(&str, &str)> = Vec::new();
    for case in &cases {
        let (Verdict::Skipped(reason) | Verdict::Unfit(reason)) = &case.verdict else {
            continue;
        };
        if !ran(&case.name) && never.iter().all(|(name, _)| *name != case.name) {
            never.push((&case.name, reason));
        }
    }
    never
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str, verdict: Verdict) -> Case {
        Case {
            name: name.to_owned(),
            verdict,
            details: Vec::new(),
        }
    }

    #[test]
    fn verdicts_are_read_from_among_kernel_messages() {
        let report = Report::from_console(
            "[    0.0] Linux version\r\nKCT case plan ok\r\n\
             [    1.2] random: crng init doneKCT case hold skipped no symbol\r\n\
             KCT case wait FAILED 3 is not 4\r\nKCT | left: 3\r\nKCT |   right: 4\r\nKCT done 3\r\n",
        );
        let mut wait = named("wait", Verdict::Failed("3 is not 4".to_owned()));
        wait.details = vec!["left: 3".to_owned(), "  right: 4".to_owned()];
        let hold = named("hold", Verdict::Skipped("no symbol".to_owned()));
        assert_eq!(report.cases, [named("plan", Verdict::Passed), hold, wait]);
        assert_eq!(report.trouble(), None);
        assert!(report.failed().eq([("wait", "3 is not 4")]));
        assert_eq!(
            report.tally(),
            Tally {
                passed: 1,
                failed: 1,
                skipped: 1
            }
        );
    }

    #[test]
    fn guest_that_dies_is_in_trouble() {
        let report = Report::from_console("KCT case plan ok\n[ 2.0] Kernel panic - not syncing\n");
        assert!(report.trouble().unwrap().contains("end"));
    }

    #[test]
    fn lost_case_line_is_noticed() {
        let report = Report::from_console("KCT case plan ok\nKCT done 2\n");
        assert!(report.trouble().unwrap().contains("2 cases, but 1"));
    }

    #[test]
    fn unknown_verdict_is_noticed() {
        assert!(
            Report::from_console("KCT case plan maybe\nKCT done 0\n")
                .trouble()
                .is_some()
        );
    }

    #[test]
    fn case_that_ran_somewhere_is_not_reported() {
        let reports = [
            Report::from_console("KCT case a skipped old\nKCT case b skipped no lock\nKCT done 2"),
            Report::from_console("KCT case a ok\nKCT case b unfit needs 4 CPUs\nKCT done 2"),
        ];
        assert_eq!(never_run(&reports), [("b", "no lock")]);
    }
}
