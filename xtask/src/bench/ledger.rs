//! What was measured so far, in a file.
//!
//! In: measurements by their id, as they come. Out: the same, also to a later run: `bench.json` is
//! written anew after each. Invariant: all of a ledger is of one build of the tool; another build
//! cannot go on with it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use statrs::statistics::Statistics as _;

use super::{accuracy::Reported, day::Day, host::Turn, scale::Seen};

/// What came of measuring a row on a kernel.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// Instructions for each op, in each round.
    pub(crate) rounds: Vec<f64>,
    /// Seconds of the guest from the start of what watches to that of the load.
    pub(crate) ready_s: Option<f64>,
    /// What a tool said of holds of a known length.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) reported: Option<Reported>,
    /// What recording took for itself.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) seen: Option<Seen>,
    /// Why there is none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) reason: Option<String>,
    /// How long measuring took.
    pub(crate) seconds: f64,
}

impl Measured {
    /// Nothing, for that reason.
    pub(crate) fn not(reason: String) -> Self {
        Self {
            reason: Some(reason),
            ..Self::default()
        }
    }

    /// What a recorder takes, or why that was not seen.
    pub(crate) fn seen(seen: Result<Seen>) -> Self {
        match seen {
            Ok(seen) => Self {
                seen: Some(seen),
                ..Self::default()
            },
            Err(error) => Self::not(format!("{error:#}")),
        }
    }

    /// Whether there is a number.
    fn is_number(&self) -> bool {
        !self.rounds.is_empty() || self.reported.is_some() || self.seen.is_some()
    }

    /// The same, after so many seconds of measuring.
    pub(crate) fn after(self, seconds: f64) -> Self {
        Self { seconds, ..self }
    }

    pub(crate) fn per_op(&self) -> Option<f64> {
        (!self.rounds.is_empty()).then(|| (&self.rounds).mean())
    }
}

#[derive(Serialize, Deserialize)]
struct File {
    /// Checksum of the tool's binary.
    tool: u32,
    started_at: String,
    measured: BTreeMap<String, Measured>,
    #[serde(default)]
    host: Vec<Turn>,
    #[serde(default)]
    day: Option<Result<Day, String>>,
}

pub(crate) struct Ledger {
    folder: PathBuf,
    file: File,
}

impl Ledger {
    pub(crate) const FILE: &str = "bench.json";

    /// Opens the ledger in that folder, or begins one.
    pub(crate) fn open(folder: PathBuf, binary: &[u8]) -> Result<Self> {
        let path = folder.join(Self::FILE);
        let tool = crc32fast::hash(binary);
        let file = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .with_context(|| format!("{0} is damaged; `rm {0}`", path.display()))?,
            Err(_) => File {
                tool,
                started_at: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
                measured: BTreeMap::new(),
                host: Vec::new(),
                day: None,
            },
        };
        if file.tool != tool {
            bail!(
                "{} was measured with another build of the tool; begin a new run without --resume \
                 and --output",
                folder.display()
            );
        }
        Ok(Self { folder, file })
    }

    pub(crate) fn folder(&self) -> PathBuf {
        self.folder.clone()
    }

    /// The turns on the running kernel.
    pub(crate) fn turns(&self) -> &[Turn] {
        &self.file.host
    }

    /// Adds a turn and writes the file.
    pub(crate) fn keep_turn(&mut self, turn: Turn) -> Result<()> {
        self.file.host.push(turn);
        write(&self.folder.join(Self::FILE), &self.file)
    }

    /// What was measured of recordings of a day.
    pub(crate) fn day(&self) -> Result<Day, String> {
        let none = || Err("not measured yet".to_owned());
        self.file.day.clone().unwrap_or_else(none)
    }

    /// Sets it and writes the file.
    pub(crate) fn keep_day(&mut self, day: Result<Day, String>) -> Result<()> {
        self.file.day = Some(day);
        write(&self.folder.join(Self::FILE), &self.file)
    }

    pub(crate) fn started_at(&self) -> &str {
        &self.file.started_at
    }

    pub(crate) fn get(&self, id: &str) -> Option<&Measured> {
        self.file.measured.get(id)
    }

    /// Whether that is measured; what failed may be tried again.
    pub(crate) fn has(&self, id: &str) -> bool {
        self.get(id).is_some_and(Measured::is_number)
    }

    /// Adds a measurement and writes the file.
    pub(crate) fn keep(&mut self, id: String, measured: Measured) -> Result<()> {
        self.file.measured.insert(id, measured);
        write(&self.folder.join(Self::FILE), &self.file)
    }
}

fn write(path: &Path, file: &File) -> Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, serde_json::to_vec_pretty(file)?)
        .and_then(|()| fs::rename(&new, path))
        .with_context(|| format!("failed to write {}; `df .`", path.display()))
}

/// Says how far a run is.
pub(crate) struct Progress {
    total: usize,
    done: std::cell::Cell<usize>,
    began: Instant,
}

impl Progress {
    pub(crate) fn new(total: usize) -> Self {
        Self {
            total,
            done: std::cell::Cell::new(0),
            began: Instant::now(),
        }
    }

    pub(crate) fn show(&self, id: &str, measured: &Measured) {
        let done = self.done.get() + 1;
        self.done.set(done);
        let each = self.began.elapsed().as_secs_f64() / done as f64;
        let left = Duration::from_secs((each * (self.total - done) as f64) as u64);
        let hold = measured.reported.and_then(|reported| reported.hold);
        let said = match (measured.per_op().or(hold), &measured.reason) {
            (Some(number), _) => format!("{number:.1} instructions"),
            (None, Some(reason)) => reason.clone(),
            (None, None) => "ok".to_owned(),
        };
        eprintln!(
            "  [{done}/{}] {id}: {said} ({:.0} s), {} left",
            self.total,
            measured.seconds,
            humantime::format_duration(left)
        );
    }
}
