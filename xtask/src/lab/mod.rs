//! The VM lab: emulated machines, the kernels that they boot, and what is run on them.
//!
//! [`kernels`] are Debian's own, [`build`] makes others of one source; [`cases`] runs the tests on
//! them, [`run`] the [`workloads`] of a comparison, and [`report`] shows what it measured;
//! [`selftest`] compares kernels with themselves. [`qemu`], [`initramfs`], [`artefacts`],
//! [`protocol`], [`schedule`] and [`passed`] are the machinery.

pub(crate) mod artefacts;
pub(crate) mod build;
pub(crate) mod cases;
pub(crate) mod initramfs;
pub(crate) mod kernels;
mod passed;
pub(crate) mod protocol;
pub(crate) mod qemu;
pub(crate) mod report;
pub(crate) mod run;
pub(crate) mod schedule;
mod selftest;
mod workloads;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::Subcommand;

use self::build::variants::{self, Variant};
use crate::{places::Places, setup, steps::Steps};

/// What the lab does.
#[derive(Subcommand)]
pub(crate) enum Chore {
    /// Build kernels of one source that differ in the type of a lock
    Build {
        /// The variants; all of them, if none is named
        #[arg(value_name = "VARIANT", value_parser = variant)]
        variants: Vec<&'static Variant>,
        /// Copy the kernels and their modules here too, to boot them elsewhere
        #[arg(long, value_name = "DIR")]
        install_dir: Option<PathBuf>,
    },
    /// Run the same work on several kernels, in turns, recorded
    Run(run::Options),
    /// Show what a run measured, beside what was published
    Report(report::Options),
    /// Deal the repeats of a run to two sides at random, and see whether they differ
    ///
    /// Exits with 1 if fewer than 95 % of the rows say "no difference".
    Selftest(selftest::Options),
}

/// The command `cargo xtask lab`.
pub(crate) fn run(places: &Places, chore: Chore) -> Result<ExitCode> {
    match chore {
        Chore::Build {
            variants,
            install_dir,
        } => {
            let wanted = if variants.is_empty() {
                build::all()
            } else {
                variants
            };
            let _lock = setup::lock(places)?;
            let built =
                build::provide(places, &wanted, &mut Steps::new(build::steps(wanted.len())))?;
            if let Some(folder) = install_dir {
                build::install(&built, &folder)?;
            }
            for kernel in &built {
                println!("{:20} {}", kernel.variant.name, kernel.image().display());
            }
            Ok(ExitCode::SUCCESS)
        }
        Chore::Run(options) => run::command(places, &options),
        Chore::Report(options) => report::command(places, options),
        Chore::Selftest(options) => selftest::command(places, options),
    }
}

fn variant(name: &str) -> Result<&'static Variant, String> {
    variants::named(name).ok_or_else(|| {
        let names: Vec<_> = build::all().iter().map(|variant| variant.name).collect();
        format!("the table has {}", names.join(", "))
    })
}
