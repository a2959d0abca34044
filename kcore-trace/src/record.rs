//! The `record` command: measure, and write each interval to disk before the next begins.
//!
//! In: [`RecordOptions`]. Out: a recording on disk, a live line and a closing line on stderr, and
//! where that was asked for the same numbers for Prometheus. What ended it is in the trailer: the
//! duration, a signal, the command, or a failure.
//!
//! Invariant: what was measured stays. A failure after the first record still writes the trailer
//! if it can, and the file opens in any case; another recording is replaced only when the command
//! runs.

mod live;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::diagnostics::say;
use crate::exporter::Exporter;
use crate::loader;
use crate::model::{End, Header, Trailer};
use crate::recording::{RecordingError, RecordingWriter, StagedRecording};
use crate::sampling::command::{Child, Command, PATIENCE};
use crate::sampling::{Event, Measuring, Sampler, Signals, Until, event_loop};
use crate::units;
use live::Live;

/// What to record, and where to.
#[derive(Clone, Debug)]
pub struct RecordOptions {
    pub output: PathBuf,
    /// Until a signal, where there is none and no command.
    pub duration: Option<Duration>,
    pub measuring: Measuring,
    /// Whether an existing recording may be replaced.
    pub force: bool,
    /// The command to run, or nothing.
    pub command: Vec<OsString>,
    /// Where Prometheus may read the same numbers meanwhile.
    pub listen: Option<SocketAddr>,
}

/// Records until something ends it.
pub fn run(options: RecordOptions) -> Result<()> {
    loader::check_capabilities()?;
    let command = Command::find(&options.command)?;
    // Before anything is attached.
    StagedRecording::check(&options.output, options.force)?;
    let exporter = options.listen.map(Exporter::start).transpose()?;
    let (mut sampler, facts) = Sampler::start(&options.measuring)?;
    let words = options.command.iter();
    let words = words.map(|word| word.to_string_lossy().into()).collect();
    let header = sampler.header(&facts, words);
    if let Some(exporter) = &exporter {
        exporter.describe(&header, sampler.plan());
    }
    event_loop()?.block_on(async {
        let mut signals = Signals::new()?;
        let staged = StagedRecording::create(&options.output, options.force, &header)?;
        let live = Live::new(&header);
        sampler.begin();
        let child = match command.map(|command| command.spawn()).transpose() {
            Ok(child) => child,
            Err(error) => {
                staged.discard();
                return Err(error);
            }
        };
        let mut recorder = Recorder {
            sampler,
            header,
            writer: staged.place()?,
            exporter,
        };
        let mut until = Until {
            duration: options.duration,
            child,
        };
        let end = recorder.record(&mut until, &mut signals, &live).await;
        recorder
            .finish(&options, end, until.child, &mut signals, &live)
            .await
    })
}

struct Recorder {
    sampler: Sampler,
    header: Header,
    writer: RecordingWriter,
    exporter: Option<Exporter>,
}

impl Recorder {
    async fn record(&mut self, until: &mut Until, signals: &mut Signals, live: &Live) -> End {
        let Self {
            sampler,
            header,
            writer,
            exporter,
        } = self;
        let each = |event: Event| {
            keep(writer, header, exporter.as_ref(), &event)?;
            match &event {
                Event::Sample(sample) => live.show(sample, writer.total()),
                Event::Step(step, _) => live.say(&step.sentence()),
            }
            Ok(())
        };
        sampler.run(until, signals, each).await
    }

    async fn finish(
        mut self,
        options: &RecordOptions,
        end: End,
        child: Option<Child>,
        signals: &mut Signals,
        live: &Live,
    ) -> Result<()> {
        let command_ns = child.as_ref().and_then(|child| child.ran_ns());
        let child = child.filter(Child::is_running);
        let was_to_end = matches!(end, End::Duration);
        let end = self.keep_last(end);
        let duration_ns = self.sampler.measured_ns();
        let trailer = Trailer {
            end: end.clone(),
            duration_ns,
            command_ns,
            total: self.writer.total().clone(),
            reduced: self.writer.reduced().clone(),
        };
        let written = self.writer.finish(&trailer);
        if let Some(child) = &child {
            if was_to_end {
                child.terminate();
            }
            if let End::Failed(reason) = &end {
                live.say(&stopped(reason, duration_ns));
            }
        }
        // All is on disk; the kernel takes its time to let go of a program.
        live.detaching();
        drop((self.sampler, self.exporter));
        if let Some(child) = child {
            see_to_its_end(child, was_to_end, signals, live).await;
        }
        live.clear();
        conclude(options, end, duration_ns, written)
    }

    /// Keeps what is left to measure, which may fail.
    fn keep_last(&mut self, end: End) -> End {
        if matches!(end, End::Failed(_)) {
            return end;
        }
        let last = self.sampler.last_sample();
        let kept = last.and_then(|last| {
            let last = Event::Sample(last.into());
            let exporter = self.exporter.as_ref();
            keep(&mut self.writer, &self.header, exporter, &last)
        });
        match kept {
            Ok(()) => end,
            Err(error) => End::Failed(format!("{error:#}")),
        }
    }
}

/// Waits for a command that outlives measuring; one that was not to end then may go on for as long
/// as it likes.
async fn see_to_its_end(child: Child, was_to_end: bool, signals: &mut Signals, live: &Live) {
    live.waiting();
    let patience = if was_to_end {
        Some(PATIENCE)
    } else {
        live.say("the command goes on; a second signal kills it");
        None
    };
    let next_signal = async || signals.next().await;
    if child.outlive(next_signal, patience).await {
        live.say("the command did not end when it was told to, and was killed");
    }
}

/// Says how it ended.
fn conclude(
    options: &RecordOptions,
    end: End,
    duration_ns: u64,
    written: Result<(), RecordingError>,
) -> Result<()> {
    let path = options.output.display();
    if let End::Failed(reason) = end {
        let stopped = stopped(&reason, duration_ns);
        anyhow::bail!("{stopped}; what was measured until then is in `{path}`");
    }
    written
        .with_context(|| format!("the end of `{path}` could not be written, the rest is there"))?;
    if let End::Command { code } = end
        && code != 0
    {
        say(format_args!("the command ended with exit code {code}"));
    }
    say(format_args!(
        "{} recorded in `{path}`; kcore-trace report shows it",
        units::elapsed(duration_ns)
    ));
    Ok(())
}

fn stopped(reason: &str, duration_ns: u64) -> String {
    let elapsed = units::elapsed(duration_ns);
    format!("measuring stopped after {elapsed}: {reason}")
}

/// What happens goes to disk first.
fn keep(
    writer: &mut RecordingWriter,
    header: &Header,
    exporter: Option<&Exporter>,
    event: &Event,
) -> Result<()> {
    match event {
        Event::Sample(sample) if sample.level == Some(header.level) => {
            writer.append(&sample.interval)?;
        }
        Event::Sample(sample) => writer.append_reduced(&sample.interval)?,
        Event::Step(step, _) => writer.step(step)?,
    }
    match (exporter, event) {
        (Some(exporter), Event::Sample(sample)) => exporter.add(sample),
        (Some(exporter), Event::Step(step, plan)) => exporter.step(step, plan),
        (None, _) => {}
    }
    Ok(())
}
