//! The `serve` command: measure for years, for whoever scrapes.
//!
//! In: [`ServeOptions`]. Out: an endpoint, until a signal. Once the hooks are attached, what the
//! process may do is cut down to what reading them needs, but where a guard may have to attach them
//! anew.
//!
//! Invariant: a failure ends the process with its reason, which every supervisor knows what to do
//! with; there is no state in which it runs and does not measure.

use std::net::SocketAddr;

use anyhow::{Result, bail};

use super::Exporter;
use crate::diagnostics::say;
use crate::loader;
use crate::model::End;
use crate::privilege;
use crate::sampling::{Event, Measuring, Sampler, Signals, Until, event_loop};

/// What to measure, and where to show it.
#[derive(Clone, Copy, Debug)]
pub struct ServeOptions {
    pub listen: SocketAddr,
    pub measuring: Measuring,
    /// Have the kernel keep the run time of every BPF program meanwhile.
    pub program_statistics: bool,
}

/// Serves until a signal.
pub fn run(options: ServeOptions) -> Result<()> {
    loader::check_capabilities()?;
    let exporter = Exporter::start(options.listen)?;
    let _statistics = options
        .program_statistics
        .then(loader::enable_statistics)
        .transpose()?;
    let (mut sampler, facts) = Sampler::start(&options.measuring)?;
    exporter.describe(&sampler.header(&facts, Vec::new()), sampler.plan());
    drop(facts);
    let each = |event: Event| {
        match &event {
            Event::Sample(sample) => exporter.add(sample),
            Event::Step(step, plan) => {
                say(step.sentence());
                exporter.step(step, plan);
            }
        }
        Ok(())
    };
    if sampler.is_guarded() {
        log::debug!("capabilities kept: all, to attach again at another level");
    } else {
        let kept = privilege::keep_what_reading_needs(|| sampler.try_reading())?;
        log::debug!("capabilities kept: {}", privilege::shown(&kept));
    }
    let end = event_loop()?.block_on(async {
        let mut signals = Signals::new()?;
        let mut until = Until {
            duration: None,
            child: None,
        };
        anyhow::Ok(sampler.run(&mut until, &mut signals, each).await)
    })?;
    match end {
        End::Failed(reason) => bail!("measuring stopped: {reason}"),
        _ => Ok(()),
    }
}
