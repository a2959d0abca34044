//! `cargo xtask`: everything around the tool that is not the tool.
//!
//! Owns the command line of the chores and nothing else: `setup` puts on
//! this machine what a build and the VM lab need, `test` is the one test
//! command, `demo` shows the tool on the running kernel, `dashboards` runs
//! Grafana's against a real Prometheus, `lab` compares kernels, `bench`
//! measures what the tool costs. Each chore is a module
//! with one `run`; errors come up here and are printed once.

mod bench;
mod beside;
mod cargo;
mod command;
mod dashboards;
mod debian;
mod demo;
mod lab;
mod places;
mod privilege;
mod setup;
mod steps;
mod tally;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::places::Places;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Set-up, tests and the demo of kcore-trace"
)]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Put what the build and the VM tests need on this machine
    Setup,
    /// Run every check and test, in order, until one fails
    Test(test::Options),
    /// Build the tool and show it on the running kernel
    Demo,
    /// Run every query of the dashboards and rules against a real Prometheus
    Dashboards(dashboards::Options),
    /// Compare kernels that differ in the type of a lock
    #[command(subcommand)]
    Lab(lab::Chore),
    /// Measure what the tool costs, beside its floor and beside other tools
    Bench(bench::Options),
}

fn main() -> ExitCode {
    let Cli { chore } = Cli::parse();
    let outcome = Places::find().and_then(|places| match chore {
        Chore::Setup => setup::run(&places),
        Chore::Test(options) => test::run(&places, &options),
        Chore::Demo => demo::run(&places),
        Chore::Dashboards(options) => dashboards::run(&places, &options),
        Chore::Lab(chore) => lab::run(&places, chore),
        Chore::Bench(options) => bench::run(&places, &options),
    });
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("\n{}", complaint(&error));
            ExitCode::from(2)
        }
    }
}

/// An error for the user, the cause first: the context around it ends with the
/// command that mends it, and that is what should be read last.
fn complaint(error: &anyhow::Error) -> String {
    let mut lines: Vec<String> = error.chain().map(ToString::to_string).collect();
    lines.reverse();
    format!("error: {}", lines.join("\n"))
}
