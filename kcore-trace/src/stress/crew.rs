//! The processes that do the work.
//!
//! Owns fork, start, stop and end of them. In: a [`Job`] for each process and how long to work;
//! out: an [`Outcome`] for each. Processes are forked, report through shared memory, and start
//! together: each gets ready and then reads from a pipe that ends when all are ready.
//!
//! Invariant: no process outlives [`Crew`] or its parent, and what a process did is counted even
//! when it died.

use std::io::{self, PipeReader, PipeWriter, Read};
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{ptr, slice};

use anyhow::{Context, Result};

use super::memory::Mapping;
use super::signals::Signals;
use super::work::{Job, Work};

/// How much each process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Amount {
    Ops(u64),
    Time(Duration),
}

impl Amount {
    fn ops(self) -> u64 {
        match self {
            Self::Ops(ops) => ops,
            Self::Time(_) => u64::MAX,
        }
    }

    fn is_over(self, elapsed: Duration) -> bool {
        matches!(self, Self::Time(time) if elapsed >= time)
    }

    /// How long to sleep before anything has to be looked at again, but for signals.
    fn sleep(self, elapsed: Duration) -> Duration {
        const LONGEST: Duration = Duration::from_millis(200);

        match self {
            Self::Ops(_) => LONGEST,
            // Once the time is over, all that is waited for is the end of processes.
            Self::Time(time) if elapsed >= time => LONGEST,
            Self::Time(time) => (time - elapsed).min(LONGEST),
        }
    }
}

/// What became of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It did its work, or was told to stop.
    Finished,
    /// A system call failed before the start.
    NotReady { errno: i32 },
    /// A system call failed in an op.
    Failed { errno: i32 },
    /// It was killed or crashed; a status of wait(2).
    Died { status: i32 },
}

/// What a process did.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outcome {
    pub(super) job: Job,
    pub(super) done: u64,
    /// Start and end of its work, on one clock for all.
    pub(super) start_ns: u64,
    pub(super) end_ns: u64,
    pub(super) end: End,
}

/// What a process shares with its parent; alone in its cache lines, since it is written in every op.
#[derive(Debug)]
#[repr(C, align(128))]
struct Slot {
    state: AtomicU32,
    errno: AtomicI32,
    done: AtomicU64,
    start_ns: AtomicU64,
    end_ns: AtomicU64,
    stop: AtomicBool,
}

/// States of a slot; what the kernel maps is 0.
const STARTING: u32 = 0;
const READY: u32 = 1;
const FINISHED: u32 = 2;

impl Slot {
    fn end(&self, status: Option<i32>) -> End {
        match (
            self.state.load(Ordering::Acquire),
            self.errno.load(Ordering::Relaxed),
        ) {
            (FINISHED, 0) => End::Finished,
            (FINISHED, errno) => End::Failed { errno },
            (STARTING, errno) if errno != 0 => End::NotReady { errno },
            _ => End::Died {
                status: status.unwrap_or_default(),
            },
        }
    }

    fn fail(&self, error: &io::Error) {
        self.errno
            .store(error.raw_os_error().unwrap_or(libc::EIO), Ordering::Relaxed);
    }
}

/// The slots, in memory that is shared over fork.
#[derive(Debug)]
struct Board {
    mapping: Mapping,
    slots: usize,
}

impl Board {
    fn new(slots: usize) -> io::Result<Self> {
        Ok(Self {
            mapping: Mapping::shared(slots * size_of::<Slot>())?,
            slots,
        })
    }

    fn slots(&self) -> &[Slot] {
        // SAFETY: the mapping has room for them and is page-aligned, zeros are valid atomics, and
        // other processes change them by atomic operations only.
        unsafe { slice::from_raw_parts(self.mapping.start().as_ptr().cast(), self.slots) }
    }
}

/// A forked process.
#[derive(Debug)]
struct Worker {
    pid: libc::pid_t,
    /// Whether it was waited for.
    gone: bool,
    /// Its status, where the kernel kept one.
    status: Option<i32>,
}

impl Worker {
    /// Looks whether the process has ended.
    fn reap(&mut self) {
        if self.gone {
            return;
        }
        let mut status = 0;
        // SAFETY: the status is valid for writing.
        match unsafe { libc::waitpid(self.pid, &raw mut status, libc::WNOHANG) } {
            0 => {}
            pid if pid == self.pid => (self.gone, self.status) = (true, Some(status)),
            // Where SIGCHLD was set to be ignored, the kernel keeps no status.
            _ => self.gone = true,
        }
    }

    fn kill(&mut self) {
        if !self.gone {
            // SAFETY: the process was not waited for, so the number is still its own.
            unsafe { libc::kill(self.pid, libc::SIGKILL) };
        }
    }
}

/// Processes that wait at the gate or work.
#[derive(Debug)]
pub(super) struct Crew {
    jobs: Vec<Job>,
    workers: Vec<Worker>,
    board: Board,
    amount: Amount,
    /// Open until the work starts.
    gate: Option<PipeWriter>,
    /// The signal that ended it early.
    stopped_by: Option<libc::c_int>,
}

impl Crew {
    /// Forks a process for each job and returns when all are ready, or some cannot be.
    ///
    /// The calling process may have no other thread: of a process with threads, a fork may do
    /// hardly anything.
    ///
    /// # Errors
    ///
    /// No memory, descriptors or processes left.
    pub(super) fn assemble(jobs: Vec<Job>, amount: Amount, signals: &Signals) -> Result<Self> {
        let board = Board::new(jobs.len()).context("failed to map shared memory")?;
        let (reader, writer) = io::pipe().context("failed to create a pipe")?;
        let workers = Vec::with_capacity(jobs.len());
        let mut crew = Self {
            jobs,
            workers,
            board,
            amount,
            gate: Some(writer),
            stopped_by: None,
        };
        let epoch = Instant::now();
        for index in 0..crew.jobs.len() {
            let pid = crew.fork(index, &reader, epoch).with_context(|| {
                format!(
                    "failed to start process {} of {}: raise ulimit -u or pids.max",
                    index + 1,
                    crew.jobs.len()
                )
            })?;
            crew.workers.push(Worker {
                pid,
                gone: false,
                status: None,
            });
        }
        crew.wait_until_ready(signals);
        Ok(crew)
    }

    /// Starts one process; returns in the parent only.
    fn fork(&mut self, index: usize, gate: &PipeReader, epoch: Instant) -> io::Result<libc::pid_t> {
        let parent = std::process::id();
        // SAFETY: this process has one thread, so the child may do whatever its parent may.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                let result = panic::catch_unwind(AssertUnwindSafe(|| {
                    self.gate = None;
                    end_with_parent(parent);
                    let slot = &self.board.slots()[index];
                    labour(self.jobs[index], slot, self.amount.ops(), gate, epoch);
                }));
                // SAFETY: ends the child without running what its parent has registered.
                unsafe { libc::_exit(if result.is_ok() { 0 } else { 101 }) }
            }
            pid => Ok(pid),
        }
    }

    fn wait_until_ready(&mut self, signals: &Signals) {
        const POLL: Duration = Duration::from_millis(1);

        let is_ready = |slot: &Slot| slot.state.load(Ordering::Acquire) == READY;
        while !self.board.slots().iter().all(is_ready) {
            self.reap();
            self.stopped_by = signals.wait(POLL).filter(|signal| *signal != libc::SIGCHLD);
            if self.stopped_by.is_some() || self.workers.iter().any(|worker| worker.gone) {
                return self.stop();
            }
        }
    }

    /// Opens the gate and returns when all processes have ended; `watch` is called about every
    /// fifth of a second with the ops done so far.
    ///
    /// Ends early when an op fails or a signal comes, which is returned; a second signal kills.
    pub(super) fn work(
        mut self,
        signals: &Signals,
        mut watch: impl FnMut(Duration, u64),
    ) -> (Vec<Outcome>, Option<libc::c_int>) {
        /// An op that was begun has this long to end.
        const GRACE: Duration = Duration::from_secs(10);

        let start = Instant::now();
        let mut stopped_at = None;
        self.gate = None;
        loop {
            self.reap();
            if self.workers.iter().all(|worker| worker.gone) {
                return (self.outcomes(), self.stopped_by);
            }
            if stopped_at.is_none() && self.has_to_stop(start.elapsed()) {
                self.stop();
                stopped_at = Some(Instant::now());
            }
            if stopped_at.is_some_and(|stopped| stopped.elapsed() > GRACE) {
                self.kill();
            }
            match signals.wait(self.amount.sleep(start.elapsed())) {
                None => watch(start.elapsed(), self.done()),
                Some(libc::SIGCHLD) => {}
                Some(_) if self.stopped_by.is_some() => self.kill(),
                Some(signal) => self.stopped_by = Some(signal),
            }
        }
    }

    fn has_to_stop(&self, elapsed: Duration) -> bool {
        let slots = self.board.slots().iter();
        let failed = |(worker, slot): (&Worker, &Slot)| {
            worker.gone && slot.end(worker.status) != End::Finished
        };
        self.stopped_by.is_some()
            || self.amount.is_over(elapsed)
            || self.workers.iter().zip(slots).any(failed)
    }

    fn reap(&mut self) {
        self.workers.iter_mut().for_each(Worker::reap);
    }

    fn kill(&mut self) {
        self.workers.iter_mut().for_each(Worker::kill);
    }

    fn stop(&self) {
        for slot in self.board.slots() {
            slot.stop.store(true, Ordering::Relaxed);
        }
    }

    fn done(&self) -> u64 {
        self.board
            .slots()
            .iter()
            .map(|slot| slot.done.load(Ordering::Relaxed))
            .sum()
    }

    fn outcomes(&self) -> Vec<Outcome> {
        let workers = self.jobs.iter().zip(&self.workers).zip(self.board.slots());
        workers
            .map(|((job, worker), slot)| Outcome {
                job: *job,
                done: slot.done.load(Ordering::Relaxed),
                start_ns: slot.start_ns.load(Ordering::Relaxed),
                end_ns: slot.end_ns.load(Ordering::Relaxed),
                end: slot.end(worker.status),
            })
            .collect()
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.kill();
        for worker in self.workers.iter().filter(|worker| !worker.gone) {
            // SAFETY: no status is asked for.
            unsafe { libc::waitpid(worker.pid, ptr::null_mut(), 0) };
        }
    }
}

/// Sees to it that this process does not outlive its parent.
fn end_with_parent(parent: u32) {
    // SAFETY: none of these touches memory.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        // A parent that ended before the call sends no signal.
        if libc::getppid().cast_unsigned() != parent {
            libc::_exit(1);
        }
    }
}

/// The life of a child: get ready, wait at the gate, work, report.
fn labour(job: Job, slot: &Slot, ops: u64, gate: &PipeReader, epoch: Instant) {
    let mut work = match job.open() {
        Ok(work) => work,
        Err(error) => return slot.fail(&error),
    };
    slot.state.store(READY, Ordering::Release);
    // Nothing is ever written: the end of the pipe is the signal.
    let mut gate = gate;
    let _ = gate.read(&mut [0]);

    let now = || u64::try_from(epoch.elapsed().as_nanos()).unwrap_or(u64::MAX);
    slot.start_ns.store(now(), Ordering::Relaxed);
    if let Err(error) = repeat(work.as_mut(), slot, ops) {
        slot.fail(&error);
    }
    slot.end_ns.store(now(), Ordering::Relaxed);
    slot.state.store(FINISHED, Ordering::Release);
}

/// Does exactly `ops` ops, unless told to stop.
fn repeat(work: &mut dyn Work, slot: &Slot, ops: u64) -> io::Result<()> {
    let mut done = 0;
    while done < ops && !slot.stop.load(Ordering::Relaxed) {
        done += work.step(ops - done)?;
        slot.done.store(done, Ordering::Relaxed);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Does three ops a step, and fails when it has done `limit`.
    struct Threes {
        limit: u64,
        done: u64,
    }

    impl Work for Threes {
        fn step(&mut self, left: u64) -> io::Result<u64> {
            if self.done >= self.limit {
                return Err(io::Error::from_raw_os_error(libc::ENOMEM));
            }
            let step = left.min(3);
            self.done += step;
            Ok(step)
        }
    }

    fn slots(board: &Board) -> &Slot {
        board.slots().first().unwrap()
    }

    #[test]
    fn exactly_the_ops_asked_for_are_done() {
        let board = Board::new(1).unwrap();
        repeat(
            &mut Threes {
                limit: u64::MAX,
                done: 0,
            },
            slots(&board),
            10,
        )
        .unwrap();
        assert_eq!(slots(&board).done.load(Ordering::Relaxed), 10);
    }

    #[test]
    fn ops_before_a_failed_one_are_counted() {
        let board = Board::new(1).unwrap();
        let error = repeat(&mut Threes { limit: 6, done: 0 }, slots(&board), 10).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOMEM));
        assert_eq!(slots(&board).done.load(Ordering::Relaxed), 6);
    }

    #[test]
    fn a_process_that_was_told_to_stop_does_nothing_more() {
        let board = Board::new(1).unwrap();
        slots(&board).stop.store(true, Ordering::Relaxed);
        repeat(
            &mut Threes {
                limit: u64::MAX,
                done: 0,
            },
            slots(&board),
            10,
        )
        .unwrap();
        assert_eq!(slots(&board).done.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn the_end_of_a_process_is_told_by_its_state_and_error() {
        let board = Board::new(1).unwrap();
        let slot = slots(&board);
        assert_eq!(slot.end(Some(9)), End::Died { status: 9 });
        slot.errno.store(libc::EPERM, Ordering::Relaxed);
        assert_eq!(slot.end(Some(0)), End::NotReady { errno: libc::EPERM });
        slot.state.store(FINISHED, Ordering::Relaxed);
        assert_eq!(slot.end(Some(0)), End::Failed { errno: libc::EPERM });
        slot.errno.store(0, Ordering::Relaxed);
        assert_eq!(slot.end(None), End::Finished);
    }

    #[test]
    fn a_time_is_over_when_it_has_passed_and_ops_never_are() {
        let time = Amount::Time(Duration::from_secs(1));
        assert!(!time.is_over(Duration::from_millis(999)));
        assert!(time.is_over(Duration::from_secs(1)));
        assert_eq!(
            time.sleep(Duration::from_millis(950)),
            Duration::from_millis(50)
        );
        assert!(!Amount::Ops(1).is_over(Duration::MAX));
    }
}
