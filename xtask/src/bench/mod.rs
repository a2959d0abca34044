//! `cargo xtask bench`: what the tool costs, beside the least that its hooks can cost and beside
//! what people would use instead, in one table from one run.
//!
//! [`rows`] is the table of what is measured; [`guest`] measures a row in a boot of its own, where
//! the clock counts instructions; [`host`] measures throughput on the running kernel; [`peers`] are
//! the other tools and [`scripts`] what they are told to do; [`ledger`] keeps what was measured, so that a run that was
//! stopped goes on where it ended; [`table`] shows it.
//!
//! Invariant: a row that could not be measured is shown with its reason.

mod guest;
mod host;
mod ledger;
mod peers;
mod rows;
mod scripts;
mod table;

use std::{fs, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use self::{
    guest::Bench,
    ledger::Ledger,
    peers::Peers,
    rows::{ROWS, Row},
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
    /// Only these rows; `host` is all that is measured on the running kernel
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

    fn wants_host(&self) -> bool {
        match self.row.as_slice() {
            [] => !self.quick && self.kernel.is_empty(),
            named => named.iter().any(|wanted| wanted.row().is_none()),
        }
    }
}

/// What `--row` names.
#[derive(Clone, Copy, Debug)]
enum Wanted {
    Row(&'static Row),
    Host,
}

impl Wanted {
    fn row(&self) -> Option<&'static Row> {
        match self {
            Self::Row(row) => Some(row),
            Self::Host => None,
        }
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
    if name == HOST {
        return Ok(Wanted::Host);
    }
    let row = ROWS.iter().find(|row| row.name == name);
    row.map(Wanted::Row).ok_or_else(|| {
        let names: Vec<_> = ROWS.iter().map(|row| row.name).collect();
        format!("the table has {}, {HOST}", names.join(", "))
    })
}

/// What `--row` calls the running kernel.
const HOST: &str = "host";

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
    let boots = bench.boots(&rows, &ledger);
    let progress = ledger::Progress::new(boots.len());
    if !boots.is_empty() {
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
        if let Some(error) = broken {
            return Err(error);
        }
    }
    if options.wants_host() {
        watch_host(options, &bench, &mut ledger)?;
    }
    let table = table::Table::of(&ledger, &options.kernels(), &rows);
    let host = options.wants_host().then(|| table::Host::of(&ledger));
    match options.format {
        Format::Text => {
            println!("{}", heading(&ledger, &bench));
            print!("{table}");
            host.iter().for_each(|host| print!("{host}"));
        }
        Format::Json => {
            let rows = table.rows.iter().map(serde_json::to_value);
            let host = host
                .iter()
                .flat_map(|host| &host.rows)
                .map(serde_json::to_value);
            let all = rows.chain(host).collect::<Result<Vec<_>, _>>()?;
            println!("{}", serde_json::to_string_pretty(&all)?);
        }
    }
    Ok(ExitCode::SUCCESS)
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
    if !options.wants_host() && !rows.iter().any(|row| row.needs_peers()) {
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
