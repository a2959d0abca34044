//! The `stress` command: vmalloc load of an exact amount, without a kernel module.
//!
//! Owns the arguments, the order of events and the result lines. In: how many processes of each
//! kind and how many ops each of them does, or for how long; out: what was done, on stdout. All
//! that can be refused is refused before any op is done.
//!
//! Invariant: with `--ops`, success means that every process did exactly that many ops, so two
//! kernels did the same work. What is not an op and still reaches vmalloc is little and named: for
//! `kcore` one map and the reads that find it, and the kernel stacks of the processes.

mod crew;
mod kcore;
pub(crate) mod maps;
mod memory;
mod signals;
mod work;

use std::fs::{self, File};
use std::io::{self, Write};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;
use clap::builder::RangedU64ValueParser;
use indicatif::{ProgressBar, ProgressStyle};

use crew::{Amount, Crew, End, Outcome};
use kcore::{Page, Reading, Via};
use signals::Signals;
use work::{Job, Kind, Vmallocinfo};

use crate::diagnostics::unwritten;

/// More processes than this say nothing about locks and much about the scheduler.
const MOST_PROCESSES: u32 = 4096;

const DEFAULT_DURATION: Duration = Duration::from_secs(10);

/// Make vmalloc load of an exact amount, by several processes
#[derive(Args, Clone, Debug, Default)]
pub struct StressArgs {
    /// Processes that create and close BPF array maps; one op is one vmalloc and one vfree
    /// [default: one per online CPU, if no kind of load is given]
    #[arg(long, value_name = "N", value_parser = processes())]
    pub maps: Option<u32>,

    /// Processes that read vmalloc memory through /proc/kcore; one op is one read of 4096 bytes
    #[arg(long, value_name = "N", value_parser = processes())]
    pub kcore: Option<u32>,

    /// Processes that read /proc/vmallocinfo; one op is one read of the whole file
    #[arg(long, value_name = "N", value_parser = processes())]
    pub vmallocinfo: Option<u32>,

    /// Processes that start threads, 16 at a time; one op is one thread
    #[arg(long, value_name = "N", value_parser = processes())]
    pub threads: Option<u32>,

    /// Let --kcore read into memory that was never touched, so that the kernel's copy faults
    #[arg(long, requires = "kcore")]
    pub untouched: bool,

    /// The system call by which --kcore reads
    #[arg(long, value_enum, default_value_t, requires = "kcore")]
    pub via: Via,

    /// Ops that each process does
    #[arg(long, value_name = "N", value_parser = some_ops, conflicts_with = "duration")]
    pub ops: Option<u64>,

    /// How long to work, such as 30s or 5m [default: 10s]
    #[arg(short, long, value_name = "DURATION", value_parser = some_time)]
    pub duration: Option<Duration>,
}

fn processes() -> RangedU64ValueParser<u32> {
    RangedU64ValueParser::new().range(..=u64::from(MOST_PROCESSES))
}

fn some_ops(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(0) => Err("it has to be 1 or more".to_owned()),
        Ok(ops) => Ok(ops),
        Err(error) => Err(error.to_string()),
    }
}

fn some_time(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if duration.is_zero() {
        Err("it has to be longer than 0".to_owned())
    } else {
        Ok(duration)
    }
}

impl StressArgs {
    /// How many processes of each kind.
    fn groups(&self, online_cpus: u32) -> Result<[(Kind, u32); 4]> {
        let maps = match self {
            Self {
                maps: None,
                kcore: None,
                vmallocinfo: None,
                threads: None,
                ..
            } => Some(online_cpus.min(MOST_PROCESSES)),
            _ => self.maps,
        };
        let groups = [
            (Kind::Maps, maps),
            (Kind::Kcore, self.kcore),
            (Kind::Vmallocinfo, self.vmallocinfo),
            (Kind::Threads, self.threads),
        ]
        .map(|(kind, processes)| (kind, processes.unwrap_or(0)));
        let total: u64 = groups
            .iter()
            .map(|(_, processes)| u64::from(*processes))
            .sum();
        ensure!(
            total > 0,
            "there is nothing to do: 0 processes; one of --maps, --kcore, --vmallocinfo and --threads has to be 1 or more"
        );
        ensure!(
            total <= u64::from(MOST_PROCESSES),
            "{total} processes are more than {MOST_PROCESSES}"
        );
        Ok(groups)
    }

    fn amount(&self) -> Amount {
        match self.ops {
            Some(ops) => Amount::Ops(ops),
            None => Amount::Time(self.duration.unwrap_or(DEFAULT_DURATION)),
        }
    }

    fn reading(&self) -> Result<Reading> {
        ensure!(
            !(self.untouched && self.via == Via::Splice),
            "--untouched is about memory that is read into, which --via splice has none of"
        );
        Ok(Reading {
            via: self.via,
            untouched: self.untouched,
        })
    }
}

/// Makes the load and prints one line for each kind.
///
/// The calling process may have no other threads, since it forks; it waits for SIGINT and SIGTERM
/// itself meanwhile.
///
/// # Errors
///
/// A kind of load that cannot run here, an op that failed, and with `--ops` a signal before the
/// end. What was done is printed also then.
pub fn run(args: &StressArgs) -> Result<()> {
    ensure!(
        threads_of_this_process() <= 1,
        "load cannot be started from a process with threads"
    );
    let amount = args.amount();
    let groups = args.groups(online_cpus())?;
    let reading = args.reading()?;
    // What a recorder's maps take of the limit may leave none for the check.
    maps::lift_memlock_limit();
    check(&groups)?;
    let page = needs(&groups, Kind::Kcore).then(Page::find).transpose()?;
    let jobs = jobs(&groups, page.as_ref(), reading);

    let signals = Signals::block().context("failed to block signals")?;
    let used_before_kib = maps::vmalloc_used_kib();
    let crew = Crew::assemble(jobs, amount, &signals)?;
    let mut progress = Progress::new();
    let (outcomes, stopped_by) = crew.work(&signals, |elapsed, done| progress.show(elapsed, done));
    progress.end();
    if needs(&groups, Kind::Maps) || needs(&groups, Kind::Threads) {
        maps::settle(used_before_kib);
    }
    let reported = report(&mut io::stdout().lock(), &outcomes, page.as_ref());
    conclude(reported, verdict(&outcomes, amount, stopped_by))
}

/// Whether it worked is for the verdict to say, also where nobody reads the report.
fn conclude(reported: io::Result<()>, verdict: Result<()>) -> Result<()> {
    verdict?;
    reported.map_err(unwritten)
}

fn threads_of_this_process() -> usize {
    fs::read_dir("/proc/self/task").map_or(1, Iterator::count)
}

fn online_cpus() -> u32 {
    // Unlike the number that the standard library gives, this one does not depend on the
    // affinity and the cgroup of the caller: load on two machines should be the same.
    // SAFETY: sysconf only reads.
    let cpus = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    u32::try_from(cpus).unwrap_or(1).max(1)
}

fn needs(groups: &[(Kind, u32)], kind: Kind) -> bool {
    groups
        .iter()
        .any(|(each, processes)| *each == kind && *processes > 0)
}

/// Refuses what cannot run here, without an op.
fn check(groups: &[(Kind, u32)]) -> Result<()> {
    for (kind, _) in groups.iter().filter(|(_, processes)| *processes > 0) {
        let result = match kind {
            Kind::Maps => maps::check(),
            Kind::Kcore => File::open(kcore::PATH).and_then(|_| maps::check()),
            Kind::Vmallocinfo => File::open(Vmallocinfo::PATH).map(drop),
            Kind::Threads => Ok(()),
        };
        result.map_err(|error| failure(*kind, error.raw_os_error().unwrap_or(libc::EIO)))?;
    }
    Ok(())
}

fn jobs(groups: &[(Kind, u32)], page: Option<&Page>, reading: Reading) -> Vec<Job> {
    let job = |kind| match kind {
        Kind::Maps => Some(Job::Maps),
        Kind::Kcore => page.map(|page| Job::Kcore {
            position: page.position,
            reading,
        }),
        Kind::Vmallocinfo => Some(Job::Vmallocinfo),
        Kind::Threads => Some(Job::Threads),
    };
    groups
        .iter()
        .flat_map(|(kind, processes)| (0..*processes).filter_map(move |_| job(*kind)))
        .collect()
}

/// An error of a system call, with what can be done about it.
fn failure(kind: Kind, errno: i32) -> anyhow::Error {
    let error = io::Error::from_raw_os_error(errno);
    match kind.remedy(errno) {
        Some(remedy) => anyhow!("failed to {}: {error}: {remedy}", kind.action()),
        None => anyhow!("failed to {}: {error}", kind.action()),
    }
}

/// Set for the command that `record` runs: the live line of the recorder has the terminal.
pub(crate) const RECORDED: &str = "KCORE_TRACE_RECORDED";

/// A line on the terminal, renewed every second; nothing where stderr is no terminal or a recorder
/// has it.
struct Progress {
    bar: ProgressBar,
    shown_s: u64,
}

impl Progress {
    fn new() -> Self {
        let style = ProgressStyle::with_template("{msg}")
            .unwrap_or_else(|_| ProgressStyle::default_spinner());
        let bar = match std::env::var_os(RECORDED) {
            Some(_) => ProgressBar::hidden(),
            None => ProgressBar::new_spinner().with_style(style),
        };
        Self { bar, shown_s: 0 }
    }

    fn show(&mut self, elapsed: Duration, done: u64) {
        let elapsed_s = elapsed.as_secs();
        if elapsed_s > self.shown_s {
            self.shown_s = elapsed_s;
            self.bar.set_message(format!("{elapsed_s} s {done} ops"));
        }
    }

    fn end(self) {
        self.bar.finish_and_clear();
    }
}

/// Writes a line for each kind that had processes.
fn report(out: &mut impl Write, outcomes: &[Outcome], page: Option<&Page>) -> io::Result<()> {
    for kind in Kind::ALL {
        let of_kind: Vec<_> = outcomes
            .iter()
            .filter(|outcome| outcome.job.kind() == kind)
            .collect();
        if !of_kind.is_empty() {
            write_line(out, kind, &of_kind)?;
        }
    }
    if let Some(page) = page {
        writeln!(
            out,
            "before the ops, {} reads of {} found the page",
            page.reads,
            kcore::PATH
        )?;
    }
    out.flush()
}

fn write_line(out: &mut impl Write, kind: Kind, outcomes: &[&Outcome]) -> io::Result<()> {
    let processes = outcomes.len();
    let done: u64 = outcomes.iter().map(|outcome| outcome.done).sum();
    let started = outcomes
        .iter()
        .map(|outcome| outcome.start_ns)
        .min()
        .unwrap_or(0);
    let ended = outcomes
        .iter()
        .map(|outcome| outcome.end_ns)
        .max()
        .unwrap_or(0);
    let seconds = Duration::from_nanos(ended.saturating_sub(started)).as_secs_f64();
    let rate = if seconds > 0.0 {
        done as f64 / seconds
    } else {
        0.0
    };
    writeln!(
        out,
        "{:<12} {processes:>5} processes {done:>12} ops {seconds:>10.3} s {rate:>12.0} ops/s",
        kind.name()
    )
}

/// Whether what was asked for was done.
fn verdict(outcomes: &[Outcome], amount: Amount, stopped_by: Option<libc::c_int>) -> Result<()> {
    for outcome in outcomes {
        let kind = outcome.job.kind();
        match outcome.end {
            End::Finished => {}
            End::NotReady { errno } | End::Failed { errno } => return Err(failure(kind, errno)),
            End::Died { status } => {
                bail!("a process of --{} {}", kind.name(), cause_of_death(status))
            }
        }
    }
    let is_short = |outcome: &Outcome| matches!(amount, Amount::Ops(ops) if outcome.done != ops);
    let short = outcomes.iter().filter(|outcome| is_short(outcome)).count();
    match stopped_by {
        _ if short == 0 => Ok(()),
        Some(signal) => Err(anyhow!(
            "stopped by signal {signal} before {short} of the processes had done all ops"
        )),
        None => Err(anyhow!("{short} of the processes did not do all ops")),
    }
}

/// What a status of wait(2) says.
fn cause_of_death(status: i32) -> String {
    if libc::WIFSIGNALED(status) {
        format!("was killed by signal {}", libc::WTERMSIG(status))
    } else {
        format!(
            "ended with status {} before its work was done",
            libc::WEXITSTATUS(status)
        )
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        stress: StressArgs,
    }

    fn parse(line: &str) -> Result<StressArgs, clap::Error> {
        let words = std::iter::once("stress").chain(line.split_whitespace());
        Cli::try_parse_from(words).map(|cli| cli.stress)
    }

    fn groups(line: &str) -> Result<Vec<(&'static str, u32)>> {
        let groups = parse(line)?.groups(8)?;
        let asked = groups.into_iter().filter(|(_, processes)| *processes > 0);
        Ok(asked
            .map(|(kind, processes)| (kind.name(), processes))
            .collect())
    }

    fn outcome(done: u64, start_ns: u64, end_ns: u64, end: End) -> Outcome {
        Outcome {
            job: Job::Maps,
            done,
            start_ns,
            end_ns,
            end,
        }
    }

    #[test]
    fn without_a_kind_there_is_a_process_of_maps_for_each_cpu() {
        assert_eq!(groups("").unwrap(), [("maps", 8)]);
        assert_eq!(groups("--ops 5").unwrap(), [("maps", 8)]);
    }

    #[test]
    fn with_a_kind_there_is_what_was_asked_for_and_no_more() {
        assert_eq!(groups("--kcore 2").unwrap(), [("kcore", 2)]);
        let all = "--maps 1 --kcore 2 --vmallocinfo 3 --threads 4";
        assert_eq!(
            groups(all).unwrap(),
            [
                ("maps", 1),
                ("kcore", 2),
                ("vmallocinfo", 3),
                ("threads", 4)
            ]
        );
        assert_eq!(groups("--maps 3 --kcore 0").unwrap(), [("maps", 3)]);
    }

    #[test]
    fn absurd_numbers_of_processes_are_refused() {
        for line in [
            "--maps 0",
            "--kcore 0 --threads 0",
            "--maps 4097",
            "--maps -1",
            "--maps 4096 --threads 1",
        ] {
            assert!(groups(line).is_err(), "{line}");
        }
        assert!(groups("--maps 4096").is_ok());
    }

    #[test]
    fn the_amount_is_ten_seconds_unless_ops_or_a_duration_are_given() {
        let amount = |line| parse(line).unwrap().amount();
        assert_eq!(amount(""), Amount::Time(Duration::from_secs(10)));
        assert_eq!(
            amount("-d 1500ms"),
            Amount::Time(Duration::from_millis(1500))
        );
        assert_eq!(amount("--ops 7"), Amount::Ops(7));
    }

    #[test]
    fn amounts_that_are_none_or_two_are_refused() {
        for line in [
            "--ops 0",
            "-d 0",
            "-d 0s",
            "-d 10",
            "-d -1s",
            "--ops 1 -d 1s",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn how_to_read_is_for_kcore_alone() {
        assert!(parse("--maps 1 --untouched").is_err());
        assert!(parse("--maps 1 --via readv").is_err());
        let reading = |line| parse(line).unwrap().reading();
        assert!(reading("--kcore 1 --untouched").unwrap().untouched);
        assert_eq!(reading("--kcore 1").unwrap(), Reading::default());
        assert_eq!(reading("--kcore 1 --via splice").unwrap().via, Via::Splice);
        assert!(reading("--kcore 1 --via splice --untouched").is_err());
    }

    #[test]
    fn a_kind_is_reported_from_its_first_start_to_its_last_end() {
        let outcomes = [
            outcome(30, 1_000_000_000, 2_000_000_000, End::Finished),
            outcome(10, 500_000_000, 2_500_000_000, End::Finished),
        ];
        let mut out = Vec::new();
        report(&mut out, &outcomes, None).unwrap();
        let line = String::from_utf8(out).unwrap();
        let words: Vec<_> = line.split_whitespace().collect();
        assert_eq!(
            words,
            [
                "maps",
                "2",
                "processes",
                "40",
                "ops",
                "2.000",
                "s",
                "20",
                "ops/s"
            ]
        );
    }

    #[test]
    fn nothing_done_is_reported_as_zeros() {
        let mut out = Vec::new();
        report(
            &mut out,
            &[outcome(
                0,
                0,
                0,
                End::NotReady {
                    errno: libc::ENOMEM,
                },
            )],
            None,
        )
        .unwrap();
        assert!(String::from_utf8(out).unwrap().contains(" 0 ops/s"));
    }

    #[test]
    fn success_with_ops_means_that_all_were_done() {
        let finished = |done| outcome(done, 0, 1, End::Finished);
        assert!(verdict(&[finished(5), finished(5)], Amount::Ops(5), None).is_ok());
        assert!(verdict(&[finished(5), finished(4)], Amount::Ops(5), None).is_err());
        assert!(
            verdict(
                &[finished(5), finished(4)],
                Amount::Ops(5),
                Some(libc::SIGINT)
            )
            .is_err()
        );
    }

    #[test]
    fn a_closed_pipe_does_not_hide_that_ops_were_not_done() {
        let closed = || Err(io::ErrorKind::BrokenPipe.into());
        let verdict = |done| {
            let outcomes = [outcome(done, 0, 1, End::Finished)];
            verdict(&outcomes, Amount::Ops(5), None)
        };
        let error = conclude(closed(), verdict(4)).unwrap_err().to_string();
        assert!(error.contains("did not do all ops"), "{error}");
        // Which is no error to the command line.
        let error = conclude(closed(), verdict(5)).unwrap_err();
        let error = error.downcast::<io::Error>().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_signal_ends_a_run_for_some_time_without_an_error() {
        let amount = Amount::Time(Duration::from_secs(1));
        assert!(
            verdict(
                &[outcome(4, 0, 1, End::Finished)],
                amount,
                Some(libc::SIGTERM)
            )
            .is_ok()
        );
    }

    #[test]
    fn a_failed_op_is_an_error_with_its_cause_and_a_remedy() {
        let failed = outcome(4, 0, 1, End::Failed { errno: libc::EPERM });
        let error = verdict(&[failed], Amount::Time(Duration::from_secs(1)), None)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("Operation not permitted") && error.contains("CAP_BPF"),
            "{error}"
        );
    }

    #[test]
    fn a_killed_process_is_an_error_that_names_the_signal() {
        let died = outcome(
            4,
            0,
            1,
            End::Died {
                status: libc::SIGKILL,
            },
        );
        let error = verdict(&[died], Amount::Ops(5), None)
            .unwrap_err()
            .to_string();
        assert_eq!(error, "a process of --maps was killed by signal 9");
    }
}
