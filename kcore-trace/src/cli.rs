//! The command line: flags, dispatch, the error chain and the exit code.
//!
//! Exit codes: 0; 1 for `compare` that found something worse; 2 for an error, with the chain on
//! stderr and the remedy at its end. A closed pipe on stdout is no error.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Parser, Subcommand};

use crate::compare::{self, Comparison, Side};
use crate::diagnostics::{self, unwritten};
use crate::exporter;
use crate::exporter::serve::{self, ServeOptions};
use crate::kernel::Facts;
use crate::loader::LoadError;
use crate::model::Level;
use crate::plan::{Hooks, Plan, Request};
use crate::record::{self, RecordOptions};
use crate::recording::Recording;
use crate::report::{self, Report};
use crate::sampling::{Limit, Measuring};
use crate::stress::{self, StressArgs};
use crate::table::printable_lines;

/// Where `record` writes and `report` reads, unless told otherwise.
const DEFAULT_RECORDING: &str = "kcore-trace.kct";
/// Shortest and longest time between two records.
const INTERVALS: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(10)..=Duration::from_secs(3600);
/// What every command takes comes after what is its own.
const LAST: usize = 900;
/// Longest duration of a recording: a year.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

/// From this duration on a recording is a long one.
const LONG: Duration = Duration::from_secs(600);
/// What a long recording, or an exporter, may take of the time of all CPUs unless told otherwise.
const LONG_MAY_COST: f64 = 0.03;

/// Who waits for and who holds the locks of vmalloc
#[derive(Parser)]
#[command(version, about, max_term_width = 100)]
struct Cli {
    /// Say more: timings, refused hooks, the verifier's log when it refuses a program; twice, also
    /// what the programs in the kernel say
    #[arg(short, long, global = true, action = clap::ArgAction::Count, display_order = LAST)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show what would be attached on this kernel, and what is missing; attaches nothing
    Plan(PlanArgs),
    /// Measure, until Ctrl-C, a duration or the end of a command
    Record(RecordArgs),
    /// Measure for as long as it runs, and show the numbers to Prometheus
    ///
    /// /metrics has them as text, OpenMetrics, or protobuf with native histograms; /healthz and
    /// /readyz are for supervisors. Once it measures, it gives up the capabilities that it needs no
    /// more: all of them where it may cost whatever it does (--max-overhead off).
    Serve(ServeArgs),
    /// Show what was measured; needs no root
    Report(ReportArgs),
    /// Say what differs between two kernels on one machine, and how sure that is; needs no root
    ///
    /// Exits with 1 if anything is worse in CANDIDATE, beyond what chance and the tool itself
    /// explain.
    Compare(CompareArgs),
    /// Make load on the locks of vmalloc, with exact numbers of operations
    Stress(StressArgs),
}

#[derive(Args)]
struct PlanArgs {
    /// How much to measure
    #[arg(long, value_enum, default_value_t)]
    level: Level,
    #[command(flatten)]
    hooks: HookArgs,
    #[command(flatten)]
    more: MoreArgs,
    /// Plan for the kernel of this facts file instead of the running one
    #[arg(long, value_name = "FILE")]
    facts: Option<PathBuf>,
    /// Write the facts of the running kernel to this file (- for stdout) instead of planning
    #[arg(long, value_name = "FILE", conflicts_with = "facts")]
    save_facts: Option<PathBuf>,
    /// What it is written as
    #[arg(long, value_enum, default_value_t)]
    format: PlanFormat,
}

/// What is hooked beyond the level, and how.
#[derive(Args)]
struct HookArgs {
    /// Take this way of attaching instead of the best one
    #[arg(long, value_enum)]
    hooks: Option<Hooks>,
    /// Leave out what level full has beside locks and operations: page faults and time off the CPU
    /// inside holds, who reads /proc/kcore and /proc/vmallocinfo, the longest waits one by one
    #[arg(long)]
    no_inside: bool,
}

/// What is recorded only if it is asked for, since it costs.
#[derive(Args)]
struct MoreArgs {
    /// Also count in which context each lock is taken, for `report --audit`: whether every site could
    /// sleep. Needs level full, by fentry or kprobe
    #[arg(long)]
    audit: bool,
    /// Also keep the kernel stacks of the longest waits: the waiters' and, by fentry, the holders'.
    /// Needs level full, by fentry or kprobe
    #[arg(long, conflicts_with = "no_inside")]
    stacks: bool,
}

impl MoreArgs {
    fn request(&self, request: Request) -> Result<Request> {
        let Self { audit, stacks } = *self;
        ensure!(
            !audit || request.level == Level::Full,
            "--audit asks at every acquisition, which level contended does not see; leave out --level or --audit"
        );
        ensure!(
            !stacks || request.level == Level::Full,
            "--stacks are those of the longest waits, which level contended does not list; leave out --level or --stacks"
        );
        Ok(Request {
            audit,
            stacks,
            ..request
        })
    }
}

impl HookArgs {
    fn request(&self, level: Level) -> Request {
        Request {
            level,
            hooks: self.hooks,
            without_inside: self.no_inside,
            audit: false,
            stacks: false,
        }
    }
}

#[derive(Clone, Copy, Default, clap::ValueEnum)]
enum PlanFormat {
    #[default]
    Text,
    Json,
}

#[derive(Args)]
struct RecordArgs {
    /// The recording to write
    #[arg(short, long, value_name = "FILE", default_value = DEFAULT_RECORDING)]
    output: PathBuf,
    /// Stop after this time, such as 30s or 5m; a command that still runs is then sent SIGTERM, and
    /// killed if it takes longer than 30s to end
    #[arg(short, long, value_name = "DURATION", value_parser = duration)]
    duration: Option<Duration>,
    /// Time between two records, from 10ms to 1h
    #[arg(short, long, value_name = "DURATION", value_parser = interval, default_value = "1s")]
    interval: Duration,
    /// How much to measure
    #[arg(long, value_enum, default_value_t)]
    level: Level,
    #[command(flatten)]
    hooks: HookArgs,
    #[command(flatten)]
    more: MoreArgs,
    /// What measuring may take of the time of all CPUs, such as 1%, or `off`: above that the level
    /// is reduced, to contended and then to nothing, and tried again later [default: 3% without a
    /// command and for longer than 10 minutes, else off]
    #[arg(long, value_name = "SHARE", value_parser = limit)]
    max_overhead: Option<MayCost>,
    /// Replace the recording if there is one
    #[arg(long)]
    force: bool,
    /// Show the same numbers to Prometheus meanwhile, at this address such as 127.0.0.1:9464
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    listen: Option<SocketAddr>,
    /// Run this command and measure until it ends
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

#[derive(Args)]
struct ServeArgs {
    /// Where to listen; anyone who reaches an address that is not loopback can read the numbers
    #[arg(long, value_name = "ADDRESS", value_parser = address, default_value_t = exporter::LISTEN)]
    listen: SocketAddr,
    /// Time between two readings of the counters, from 10ms to 1h
    #[arg(short, long, value_name = "DURATION", value_parser = interval, default_value = "1s")]
    interval: Duration,
    /// How much to measure
    #[arg(long, value_enum, default_value_t = Level::Contended)]
    level: Level,
    #[command(flatten)]
    hooks: HookArgs,
    /// What measuring may take of the time of all CPUs, such as 1%, or `off`: above that the level is
    /// reduced, to contended and then to nothing, and tried again later. The capabilities are kept
    /// for that [default: 3% with CAP_SYS_ADMIN, without which it cannot be watched, else off]
    #[arg(long, value_name = "SHARE", value_parser = limit)]
    max_overhead: Option<MayCost>,
    /// Have the kernel keep the run time of BPF programs, of all of them, which costs each run some
    /// ten nanoseconds; needs CAP_SYS_ADMIN
    #[arg(long)]
    program_statistics: bool,
}

#[derive(Args)]
struct ReportArgs {
    /// The recording to read
    #[arg(value_name = "FILE", default_value = DEFAULT_RECORDING)]
    file: PathBuf,
    /// What the locks are divided by; JSON has all of it
    #[arg(long, value_enum, default_value_t)]
    by: report::By,
    /// Say of each lock whether it could be one that sleeps, and where not: the same as --by site, of
    /// a recording made with --audit
    #[arg(long, conflicts_with = "by")]
    audit: bool,
    #[command(flatten)]
    time: TimeArgs,
    /// What it is written as
    #[arg(long, value_enum, default_value_t)]
    format: report::Format,
}

/// Which part of a recording is read.
#[derive(Args)]
struct TimeArgs {
    /// Only the intervals that begin this long after the start of measuring or later, such as 10m30s
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    from: Option<Duration>,
    /// Only those that begin before this time
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    to: Option<Duration>,
}

impl TimeArgs {
    /// Nanoseconds from the start of measuring; nothing if all of a recording is read.
    fn range(&self) -> Result<Option<Range<u64>>> {
        if (self.from, self.to) == (None, None) {
            return Ok(None);
        }
        let from_ns = self.from.map_or(0, nanoseconds);
        let to_ns = self.to.map_or(u64::MAX, nanoseconds);
        ensure!(from_ns < to_ns, "--to has to be later than --from");
        Ok(Some(from_ns..to_ns))
    }
}

#[derive(Args)]
struct CompareArgs {
    /// A recording, or a folder whose *.kct files are repeats of it
    #[arg(value_name = "BASELINE")]
    baseline: PathBuf,
    /// A recording, or a folder of repeats, of the kernel in question
    #[arg(value_name = "CANDIDATE")]
    candidate: PathBuf,
    /// Compare other hardware, workloads or ways of measuring too; what differs is shown
    #[arg(long)]
    anyway: bool,
    #[command(flatten)]
    time: TimeArgs,
    /// What it is written as
    #[arg(long, value_enum, default_value_t)]
    format: compare::Format,
}

fn duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match duration {
        Duration::ZERO => Err("it has to be longer than 0".into()),
        duration if duration > LONGEST => Err("it can be a year at most".into()),
        duration => Ok(duration),
    }
}

/// The share of the time of all CPUs that measuring may take; nothing if it may take all of it.
#[derive(Clone, Copy, Debug)]
struct MayCost(Option<f64>);

impl MayCost {
    fn limit(self) -> Option<Limit> {
        let required = true;
        self.0.map(|share| Limit { share, required })
    }
}

fn limit(text: &str) -> Result<MayCost, String> {
    if text == "off" {
        return Ok(MayCost(None));
    }
    let number = text
        .strip_suffix('%')
        .map(|number| number.trim().parse::<f64>());
    match number {
        Some(Ok(percent)) if percent > 0.0 && percent <= 100.0 => {
            Ok(MayCost(Some(percent / 100.0)))
        }
        Some(Ok(_)) => Err("it has to be above 0% and at most 100%".into()),
        _ => Err("it has to be a percentage such as 1%, or `off`".into()),
    }
}

fn interval(text: &str) -> Result<Duration, String> {
    let interval = duration(text)?;
    if INTERVALS.contains(&interval) {
        Ok(interval)
    } else {
        Err("it has to be between 10ms and 1h".into())
    }
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let explained = |_| {
        format!(
            "it has to be an address and a port, such as {}",
            exporter::LISTEN
        )
    };
    text.parse().map_err(explained)
}

/// Runs the tool with these arguments, the first of which is its name.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors to clap; a closed pipe is none to us.
            let lost = error
                .print()
                .map_err(unwritten)
                .is_err_and(|e| !is_closed_pipe(&e));
            return ExitCode::from(if lost || error.use_stderr() { 2 } else { 0 });
        }
    };
    match run(&cli) {
        Ok(code) => code,
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error, cli.verbose > 0);
            ExitCode::from(2)
        }
    }
}

fn run(cli: &Cli) -> Result<ExitCode> {
    diagnostics::enable(cli.verbose);
    match &cli.command {
        Command::Plan(args) => plan(args)?,
        Command::Record(args) => record(args)?,
        Command::Serve(args) => serve(args)?,
        Command::Report(args) => report(args)?,
        Command::Compare(args) => return compare(args),
        Command::Stress(args) => stress::run(args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let io_errors = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>());
    io_errors
        .into_iter()
        .any(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn complain(error: &anyhow::Error, verbose: bool) {
    // With nowhere left to complain to, the exit code has to do.
    let message = printable_lines(&format!("{error:#}"));
    diagnostics::say(format_args!("kcore-trace: {message}"));
    if verbose && let Some(LoadError::Verifier { log, .. }) = error.downcast_ref() {
        diagnostics::say(log);
    }
}

fn plan(args: &PlanArgs) -> Result<()> {
    let mut out = io::stdout().lock();
    let facts = match &args.facts {
        Some(path) => {
            let text = fs::read_to_string(path)
                .with_context(|| format!("failed to read facts from `{}`", path.display()))?;
            serde_json::from_str(&text)
                .with_context(|| format!("`{}` is no facts file", path.display()))?
        }
        None => Facts::gather()?.0,
    };
    if let Some(path) = &args.save_facts {
        let text = serde_json::to_string_pretty(&facts)? + "\n";
        return match path.to_str() {
            Some("-") => out.write_all(text.as_bytes()).map_err(unwritten),
            _ => fs::write(path, text)
                .with_context(|| format!("failed to write facts to `{}`", path.display())),
        };
    }
    let request = args.more.request(args.hooks.request(args.level))?;
    let plan = Plan::choose(&facts, &request)?;
    let written = match args.format {
        PlanFormat::Text => plan.write_text(&facts, &mut out),
        PlanFormat::Json => writeln!(out, "{}", serde_json::to_string_pretty(&plan)?),
    };
    written.map_err(unwritten)
}

fn record(args: &RecordArgs) -> Result<()> {
    record::run(RecordOptions {
        output: args.output.clone(),
        duration: args.duration,
        measuring: Measuring {
            request: args.more.request(args.hooks.request(args.level))?,
            interval: args.interval,
            limit: match args.max_overhead {
                None if !is_long(args) => None,
                max_overhead => limit_or_watched(max_overhead),
            },
        },
        force: args.force,
        command: args.command.clone(),
        listen: args.listen,
    })
}

/// The limit that was asked for, or that of what goes on for long, if it can be watched.
fn limit_or_watched(max_overhead: Option<MayCost>) -> Option<Limit> {
    match max_overhead {
        Some(may_cost) => may_cost.limit(),
        None => Some(Limit {
            share: LONG_MAY_COST,
            required: false,
        }),
    }
}

fn is_long(args: &RecordArgs) -> bool {
    args.command.is_empty() && args.duration.is_none_or(|duration| duration > LONG)
}

fn serve(args: &ServeArgs) -> Result<()> {
    serve::run(ServeOptions {
        listen: args.listen,
        measuring: Measuring {
            request: args.hooks.request(args.level),
            interval: args.interval,
            limit: limit_or_watched(args.max_overhead),
        },
        program_statistics: args.program_statistics,
    })
}

/// Width of the terminal on stdout, if it is one.
fn terminal_columns() -> Option<u16> {
    let (_, columns) = console::Term::stdout().size_checked()?;
    Some(columns)
}

fn report(args: &ReportArgs) -> Result<()> {
    let time = args.time.range()?;
    let recording = Recording::open(&args.file)?;
    let report = match time {
        None => Report::new(&recording),
        Some(time) => Report::of_excerpt(&recording, &recording.between(time.start, time.end)?),
    };
    let by = match args.audit {
        true => report::By::Site,
        false => args.by,
    };
    let mut out = io::BufWriter::new(io::stdout().lock());
    report::render(&report, args.format, by, terminal_columns(), &mut out).map_err(unwritten)
}

/// As many as there are in half a millennium.
fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn compare(args: &CompareArgs) -> Result<ExitCode> {
    let time = args.time.range()?;
    let baseline = Side::open(&args.baseline, time.clone())?;
    let candidate = Side::open(&args.candidate, time)?;
    let comparison = Comparison::new(&baseline, &candidate, args.anyway)?;
    let mut out = io::stdout().lock();
    match compare::render(&comparison, args.format, terminal_columns(), &mut out) {
        // Who reads only the first lines still gets the exit code.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(unwritten(error)),
        Ok(()) | Err(_) => {}
    }
    Ok(ExitCode::from(u8::from(comparison.is_regression())))
}
