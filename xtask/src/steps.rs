//! Numbered steps with progress.
//!
//! Owns what the user sees while a step runs: a spinner with the latest news if
//! stderr is a terminal, plain lines if not. A step says in one line how it
//! ended; a failed one hands its error up.

use std::{
    cell::RefCell,
    io::IsTerminal as _,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

use crate::command;

/// A known number of steps, run one after another.
pub(crate) struct Steps {
    total: usize,
    started: usize,
    is_shown: bool,
}

impl Steps {
    pub(crate) fn new(total: usize) -> Self {
        Self {
            total,
            started: 0,
            is_shown: true,
        }
    }

    /// The same where the user has seen them before: nothing is said but by those that fail.
    pub(crate) fn again(self) -> Self {
        Self {
            is_shown: false,
            ..self
        }
    }

    /// Runs the next step; `work` returns its result and how it ended, in a few
    /// words.
    pub(crate) fn run<T>(
        &mut self,
        name: &str,
        work: impl FnOnce(&Step) -> Result<(T, String)>,
    ) -> Result<T> {
        self.started += 1;
        let title = format!("[{}/{}] {name}", self.started, self.total);
        let step = Step::begin(title.clone(), self.is_shown);
        let began = Instant::now();
        let outcome = work(&step);
        step.end();
        let ending = outcome.as_ref().map_or("failed", |(_, ending)| ending);
        if self.is_shown || outcome.is_err() {
            eprintln!("{title}: {ending}{}", took(began.elapsed()));
        }
        Ok(outcome?.0)
    }
}

/// One running step.
pub(crate) struct Step {
    title: String,
    spinner: Option<ProgressBar>,
    is_shown: bool,
    said: RefCell<String>,
}

impl Step {
    fn begin(title: String, is_shown: bool) -> Self {
        let has_spinner = is_shown && std::io::stderr().is_terminal();
        let spinner = has_spinner.then(|| {
            let style = ProgressStyle::with_template("{spinner} {prefix} {wide_msg:.dim}")
                .expect("the template is a constant");
            let spinner = ProgressBar::new_spinner().with_style(style);
            spinner.set_prefix(title.clone());
            spinner.enable_steady_tick(Duration::from_millis(120));
            spinner
        });
        Self {
            title,
            spinner,
            is_shown,
            said: RefCell::default(),
        }
    }

    fn end(&self) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
    }

    /// Says what the step is about to do, once per change.
    pub(crate) fn doing(&self, what: &str) {
        match &self.spinner {
            Some(spinner) => spinner.set_message(what.to_owned()),
            None if *self.said.borrow() == what => (),
            None if self.is_shown => eprintln!("{}: {what} …", self.title),
            None => (),
        }
        *self.said.borrow_mut() = what.to_owned();
    }

    /// Says something that stays on the screen.
    pub(crate) fn note(&self, what: &str) {
        match &self.spinner {
            Some(spinner) => spinner.println(format!("      {what}")),
            None if self.is_shown => eprintln!("      {what}"),
            None => (),
        }
    }

    /// Leaves the terminal to `work`, which may ask the user something.
    pub(crate) fn suspended<T>(&self, work: impl FnOnce() -> T) -> T {
        match &self.spinner {
            Some(spinner) => spinner.suspend(work),
            None => work(),
        }
    }

    /// Runs a command as a part of this step.
    pub(crate) fn watch(&self, command: &mut Command) -> Result<()> {
        let doing = self.said.borrow().clone();
        command::watch(command, |line| {
            if let Some(spinner) = &self.spinner {
                spinner.set_message(format!("{doing}: {}", line.trim()));
            }
        })
    }
}

/// " (12.3 s)", or nothing for what took no time worth telling.
fn took(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        String::new()
    } else {
        format!(" ({:.1} s)", time.as_secs_f64())
    }
}
