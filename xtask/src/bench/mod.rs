//! `cargo xtask bench`: what the tool costs, beside the least that its hooks can cost and beside
//! what people would use instead, in one table from one run.
//!
//! [`rows`] is the table of what is measured; [`guest`] measures a row in a boot of its own, where
//! the clock counts instructions; [`ledger`] keeps what was measured, so that a run that was
//! stopped goes on where it ended; [`table`] shows it.
//!
//! Invariant: a row that could not be measured is shown with its reason.

mod guest;
mod ledger;
mod rows;
mod table;

use std::{fs, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use self::{
    guest::Bench,
    ledger::Ledger,
    rows::{ROWS, Row},
};
use crate::{
    cargo,
    lab::{build::variants, kernels, schedule},
    places::Places,
    setup,
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
    /// Only these rows
    #[arg(long, value_name = "NAME", value_parser = row)]
    row: Vec<&'static Row>,
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
            ([], true) => ROWS.iter().filter(|row| row.quick).collect(),
            ([], false) => ROWS.iter().collect(),
            (named, _) => named.to_vec(),
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

fn row(name: &str) -> Result<&'static Row, String> {
    ROWS.iter().find(|row| row.name == name).ok_or_else(|| {
        let names: Vec<_> = ROWS.iter().map(|row| row.name).collect();
        format!("the table has {}", names.join(", "))
    })
}

/// The command `cargo xtask bench`.
pub(crate) fn run(places: &Places, options: &Options) -> Result<ExitCode> {
    let folder = folder(places, options)?;
    fs::create_dir_all(&folder)
        .with_context(|| format!("failed to create {0}; `ls -ld {0}`", folder.display()))?;
    let (tools, kernels) = setup::for_lab(places, &options.kernels())?;
    let binary = cargo::release_guest_binary(places, &tools)?;
    let mut ledger = Ledger::open(folder, &fs::read(&binary)?)?;

    let rows = options.rows();
    let bench = Bench {
        kernels: &kernels,
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
    let table = table::Table::of(&ledger, &options.kernels(), &rows);
    match options.format {
        Format::Text => print!("{table}"),
        Format::Json => println!("{}", serde_json::to_string_pretty(&table.rows)?),
    }
    Ok(ExitCode::SUCCESS)
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
