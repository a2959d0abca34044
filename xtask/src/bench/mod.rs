//! `cargo xtask bench`: what the tool costs, beside the least that its hooks can cost and beside
//! what people would use instead, in one table from one run.
//!
//! [`rows`] is the table of what is measured; [`guest`] measures a row in a boot of its own, where
//! the clock counts instructions; [`accuracy`] is what tools say of a hold whose length is known,
//! [`scale`] what recording takes for itself where there may be many CPUs; [`host`] measures throughput
//! on the running kernel, [`day`] the reading of long recordings; [`peers`] are the other tools and
//! [`scripts`] what they are told to do; [`ledger`] keeps what was measured, so that a run that was
//! stopped goes on where it ended; [`table`] shows it.
//!
//! Invariant: a row that could not be measured is shown with its reason.

mod accuracy;
mod day;
mod guest;
mod host;
mod ledger;
mod peers;
mod rows;
mod scale;
mod scripts;
mod table;

use std::{fs, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use self::{
    accuracy::Tool,
    guest::{Bench, What},
    ledger::{Ledger, Measured},
    peers::Peers,
    rows::{ROWS, Row},
    scale::{SHAPES, Seen, Shape},
};
use crate::{
    cargo,
    lab::{build::variants, kernels, schedule},
    places::Places,
    setup,
    steps::Steps,
};

/// The kernels of a bench unless others are named.
const KERNELS: [&str; 3] = ["spinlock", "rwsem", "6.12"];
const QUICK_KERNELS: [&str; 1] = ["spinlock"];

/// Below cargo's target folder.
const RUNS: &str = "bench";

#[derive(Args)]
pub(crate) struct Options {
    /// One kernel, and only the rows of the tool and its floor
    #[arg(long)]
    quick: bool,
    /// Only these kernels: variants of `lab build`, or lines of Debian's kernels as in `6.12`
    #[arg(long, value_name = "NAME", value_parser = kernel)]
    kernel: Vec<&'static str>,
    /// Only these rows; `known-hold` is what tools say of a hold of known length, `scale` and
    /// `scale-crowd` what recording takes for itself where there are many CPUs, `host` what is measured on the running kernel, `day`
    /// how long recordings of a day take to read
    #[arg(long, value_name = "NAME", value_parser = wanted)]
    row: Vec<Wanted>,
    /// How often each way of watching the running kernel is tried
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=100))]
    turns: u32,
    /// How long the load on the running kernel lasts each time
    #[arg(long, value_name = "SECONDS", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: u32,
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Where the results go; a new folder in the target folder, unless one is named. What is
    /// there already is not measured again
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Go on with the newest run
    #[arg(long, conflicts_with = "output")]
    resume: bool,
    /// Stop a guest after this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    boot_timeout: u64,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    #[default]
    Text,
    Json,
}

impl Options {
    fn kernels(&self) -> Vec<&'static str> {
        match (self.kernel.as_slice(), self.quick) {
            ([], true) => QUICK_KERNELS.to_vec(),
            ([], false) => KERNELS.to_vec(),
            (named, _) => named.to_vec(),
        }
    }

    fn rows(&self) -> Vec<&'static Row> {
        match (self.row.as_slice(), self.quick) {
            ([], true) => ROWS.iter().filter(|row| row.is_quick()).collect(),
            ([], false) => ROWS.iter().collect(),
            (named, _) => named.iter().filter_map(|wanted| wanted.row()).collect(),
        }
    }

    /// The tools that are asked for a hold of known length.
    fn tools(&self) -> &'static [Tool] {
        let wanted = match (self.row.as_slice(), self.quick) {
            ([], true) => return &Tool::ALL[..2],
            ([], false) => true,
            (named, _) => named
                .iter()
                .any(|wanted| matches!(wanted, Wanted::KnownHold)),
        };
        if wanted { &Tool::ALL } else { &[] }
    }

    /// What is measured in guests.
    fn in_guests(&self) -> Vec<What> {
        let rows = self.rows().into_iter().map(What::Row);
        let tools = self.tools().iter().copied().map(What::Accuracy);
        let scales = SHAPES.iter().filter(|shape| match self.row.as_slice() {
            [] => !self.quick,
            named => named.iter().any(|wanted| wanted.is(shape)),
        });
        rows.chain(tools).chain(scales.map(What::Scale)).collect()
    }

    /// Whether that is measured on the running kernel.
    fn wants(&self, is_it: fn(&Wanted) -> bool) -> bool {
        match self.row.as_slice() {
            [] => !self.quick && self.kernel.is_empty(),
            named => named.iter().any(is_it),
        }
    }

    fn wants_host(&self) -> bool {
        self.wants(|wanted| matches!(wanted, Wanted::Host))
    }

    fn wants_day(&self) -> bool {
        self.wants(|wanted| matches!(wanted, Wanted::Day))
    }
}

/// What `--row` names.
#[derive(Clone, Copy, Debug)]
enum Wanted {
    Row(&'static Row),
    KnownHold,
    Scale(&'static Shape),
    Host,
    Day,
}

impl Wanted {
    fn row(&self) -> Option<&'static Row> {
        match self {
            Self::Row(row) => Some(row),
            Self::KnownHold | Self::Scale(_) | Self::Host | Self::Day => None,
        }
    }

    fn is(&self, shape: &Shape) -> bool {
        matches!(self, Self::Scale(named) if named.name == shape.name)
    }
}

fn kernel(name: &str) -> Result<&'static str, String> {
    let names = variants::VARIANTS.iter().map(|variant| variant.name);
    let names = names.chain(kernels::LINES.iter().map(|line| line.name));
    let known: Vec<_> = names.collect();
    let found = known.iter().find(|known| **known == name);
    found
        .copied()
        .ok_or_else(|| format!("the tables have {}", known.join(", ")))
}

fn wanted(name: &str) -> Result<Wanted, String> {
    match name {
        KNOWN_HOLD => return Ok(Wanted::KnownHold),
        HOST => return Ok(Wanted::Host),
        DAY => return Ok(Wanted::Day),
        _ => (),
    }
    if let Some(shape) = SHAPES.iter().find(|shape| shape.name == name) {
        return Ok(Wanted::Scale(shape));
    }
    let row = ROWS.iter().find(|row| row.name == name);
    row.map(Wanted::Row).ok_or_else(|| {
        let rows = ROWS.iter().map(|row| row.name);
        let names: Vec<_> = rows.chain(SHAPES.iter().map(|shape| shape.name)).collect();
        format!(
            "there are {}, {KNOWN_HOLD}, {HOST}, {DAY}",
            names.join(", ")
        )
    })
}

/// What `--row` calls what has no row of its own.
const KNOWN_HOLD: &str = "known-hold";
const HOST: &str = "host";
const DAY: &str = "day";

/// The command `cargo xtask bench`.
pub(crate) fn run(places: &Places, options: &Options) -> Result<ExitCode> {
    let folder = folder(places, options)?;
    fs::create_dir_all(&folder)
        .with_context(|| format!("failed to create {0}; `ls -ld {0}`", folder.display()))?;
    let (names, rows) = (options.kernels(), options.rows());
    let others = names
        .iter()
        .flat_map(|name| rows.iter().filter_map(|row| row.kernel(name)));
    let mut booted: Vec<_> = names.iter().copied().chain(others).collect();
    booted.sort_unstable();
    booted.dedup();
    let (tools, kernels) = setup::for_lab(places, &booted)?;
    let binary = cargo::release_guest_binary(places, &tools)?;
    let mut ledger = Ledger::open(folder, &fs::read(&binary)?)?;

    let bench = Bench {
        names,
        kernels: &kernels,
        peers: peers(places, options, &rows),
        binary: &binary,
        folder: ledger.folder(),
        timeout: Duration::from_secs(options.boot_timeout),
    };
    measure_in_guests(options, &bench, &mut ledger)?;
    if options.wants_host() {
        watch_host(options, &bench, &mut ledger)?;
        let crowd = guest::id(scale::HOST, What::Scale(&SHAPES[1]));
        if !ledger.has(&crowd) {
            ledger.keep(crowd, Measured::seen(Seen::on_host(&binary)))?;
        }
    }
    if options.wants_day() && ledger.day().is_err() {
        let day = day::measure(&binary, &ledger.folder());
        ledger.keep_day(day.map_err(|error| format!("{error:#}")))?;
    }
    let tables = Tables {
        rows: table::Table::of(&ledger, &options.kernels(), &rows),
        holds: table::Holds::of(&ledger, &options.kernels(), options.tools()),
        scales: table::Scales::of(&ledger, &options.kernels(), options.wants_host()),
        host: options.wants_host().then(|| table::Host::of(&ledger)),
        days: options.wants_day().then(|| table::Days::of(&ledger)),
    };
    match options.format {
        Format::Text => {
            println!("{}", heading(&ledger, &bench));
            tables.print();
        }
        Format::Json => println!("{}", serde_json::to_string_pretty(&tables.rows()?)?),
    }
    Ok(ExitCode::SUCCESS)
}

/// Boots a guest for everything that is not yet in the ledger.
fn measure_in_guests(options: &Options, bench: &Bench<'_>, ledger: &mut Ledger) -> Result<()> {
    let boots = bench.boots(&options.in_guests(), ledger);
    if boots.is_empty() {
        return Ok(());
    }
    let progress = ledger::Progress::new(boots.len());
    let initramfs = bench.initramfs()?;
    let mut broken = None;
    schedule::run(
        boots,
        |boot| (boot.id(), bench.boot(&boot, &initramfs)),
        |(id, outcome)| match outcome {
            Ok(measured) => {
                progress.show(&id, &measured);
                broken = broken.take().or(ledger.keep(id, measured).err());
            }
            Err(error) => broken = broken.take().or(Some(error)),
        },
    );
    broken.map_or(Ok(()), Err)
}

/// What a run ends with.
struct Tables {
    rows: table::Table,
    holds: table::Holds,
    scales: table::Scales,
    host: Option<table::Host>,
    days: Option<table::Days>,
}

impl Tables {
    fn print(&self) {
        print!("{}{}{}", self.rows, self.holds, self.scales);
        self.host.iter().for_each(|host| print!("{host}"));
        self.days.iter().for_each(|days| print!("{days}"));
    }

    /// All lines, as one list.
    fn rows(&self) -> serde_json::Result<Vec<serde_json::Value>> {
        let host = self.host.iter().flat_map(|host| &host.rows);
        let days = self.days.iter().flat_map(|days| &days.rows);
        let rows = self.rows.rows.iter().map(serde_json::to_value);
        rows.chain(self.holds.rows.iter().map(serde_json::to_value))
            .chain(self.scales.rows.iter().map(serde_json::to_value))
            .chain(host.map(serde_json::to_value))
            .chain(days.map(serde_json::to_value))
            .collect()
    }
}

/// Takes turns on the running kernel.
fn watch_host(options: &Options, bench: &Bench<'_>, ledger: &mut Ledger) -> Result<()> {
    let host = host::Host {
        tool: bench.binary,
        peers: &bench.peers,
        folder: bench.folder.clone(),
        seconds: options.seconds,
    };
    for turn in ledger.turns().len() as u32..options.turns {
        // Each begins a turn as often as the others do.
        let mut order = host::Watch::ALL;
        let first = turn as usize % order.len();
        order.rotate_left(first);
        let mut runs = host::Turn::new();
        for watch in order {
            let run = host.run(watch).map_err(|error| format!("{error:#}"));
            let said = match &run {
                Ok(run) => format!("{:.0} ops/s", run.ops_per_s),
                Err(reason) => reason.lines().next().unwrap_or_default().to_owned(),
            };
            let (name, turns) = (watch.name(), options.turns);
            eprintln!("  host, turn {}/{turns}: {name}: {said}", turn + 1);
            runs.insert(name.to_owned(), run);
        }
        ledger.keep_turn(runs)?;
    }
    Ok(())
}

/// What the numbers below it are of, and how to have them again.
fn heading(ledger: &Ledger, bench: &Bench<'_>) -> String {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let peers = match &bench.peers {
        Ok(peers) => peers.versions.clone(),
        Err(reason) => reason.clone(),
    };
    format!(
        "\n{}; {}; other tools: {peers}\nresults in {}; again: cargo xtask {}",
        ledger.started_at(),
        host::machine(),
        bench.folder.display(),
        arguments.join(" ")
    )
}

/// The other tools, or why there are none.
fn peers(places: &Places, options: &Options, rows: &[&Row]) -> Result<Peers, String> {
    let tools = options.tools().iter().any(|tool| tool.needs_peers());
    if !options.wants_host() && !tools && !rows.iter().any(|row| row.needs_peers()) {
        return Err("no row needs them".to_owned());
    }
    let provide = || {
        let _lock = setup::lock(places)?;
        Steps::new(1).run("other tools", |step| peers::provide(places, step))
    };
    provide().map_err(|error| format!("{error:#}"))
}

/// Where the results go.
fn folder(places: &Places, options: &Options) -> Result<PathBuf> {
    let runs = places.target.join(RUNS);
    if let Some(folder) = &options.output {
        // QEMU is started in the folder of each row.
        return Ok(std::path::absolute(folder)?);
    }
    if !options.resume {
        return Ok(runs.join(crate::lab::run::now()));
    }
    let entries = fs::read_dir(&runs).into_iter().flatten();
    let newest = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|folder| folder.join(Ledger::FILE).is_file())
        .max();
    match newest {
        Some(folder) => Ok(folder),
        None => bail!("no run in {} to go on with", runs.display()),
    }
}
