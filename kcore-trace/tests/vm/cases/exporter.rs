//! The exporter on a live kernel: with what privileges it measures, and what it leaves behind.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use aya::programs::ProgramError;
use caps::{CapSet, Capability, CapsHashSet};

use super::endings;
use crate::guest::{Guest, Outcome};
use crate::{session, tool};

const NOBODY: u32 = 65534;
/// What the unit of systemd gives, and nothing else.
const NEEDED: [Capability; 3] = [
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
    Capability::CAP_SYSLOG,
];
/// What is still there while it measures, on kernels that ask for it.
const MOST_KEPT: u64 = 1 << Capability::CAP_BPF as u64;
/// Attaching takes long under emulation.
const PATIENCE: Duration = Duration::from_secs(180);

/// An exporter that is killed when it goes.
struct Exporter {
    child: Child,
    /// What it says on stderr after its address.
    said: BufReader<ChildStderr>,
    address: String,
}

impl Drop for Exporter {
    fn drop(&mut self) {
        // It may have ended on its own.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Exporter {
    fn start(mut command: Command) -> Result<Self> {
        session::end()?;
        raise_loopback()?;
        let mut child = command.stderr(Stdio::piped()).spawn()?;
        let mut said = BufReader::new(child.stderr.take().context("stderr is a pipe")?);
        let mut line = String::new();
        said.read_line(&mut line)?;
        let address = line
            .trim()
            .strip_prefix("metrics at http://")
            .and_then(|rest| rest.strip_suffix("/metrics"));
        let mut exporter = Self {
            address: address.unwrap_or_default().to_owned(),
            child,
            said,
        };
        ensure!(address.is_some(), "it said {line}");
        let begun = Instant::now();
        while exporter.value("kcore_trace_snapshots_total")? < 3.0 {
            ensure!(begun.elapsed() < PATIENCE, "it does not measure");
            // The reader has to leave an emulated CPU to the exporter.
            sleep(Duration::from_secs(1));
        }
        Ok(exporter)
    }

    fn scrape(&self) -> Result<String> {
        let mut stream = TcpStream::connect(&self.address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// The body of a page in the form that is accepted.
    fn page(&self, accept: &str) -> Result<Vec<u8>> {
        let mut stream = TcpStream::connect(&self.address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(
            stream,
            "GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n"
        )?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let mut lines = answer.windows(4);
        let head = lines.position(|window| window == b"\r\n\r\n");
        let body = head.context("an answer has a head")? + 4;
        Ok(answer.split_off(body))
    }

    /// The sum of the series of a metric.
    fn value(&mut self, name: &str) -> Result<f64> {
        let text = match (self.scrape(), self.child.try_wait()?) {
            (Ok(text), _) => text,
            (Err(error), None) => return Err(error),
            (Err(_), Some(status)) => {
                let mut why = String::new();
                self.said.read_to_string(&mut why)?;
                bail!("it ended with {status}: {}", why.trim());
            }
        };
        let of_name = text.lines().filter(|line| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(['{', ' ']))
        });
        let values = of_name.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        Ok(values.sum())
    }

    /// The permitted capabilities of each thread.
    fn capabilities(&self) -> Result<Vec<u64>> {
        let mut of_threads = Vec::new();
        for thread in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let status = fs::read_to_string(thread?.path().join("status"))?;
            let line = status.lines().find_map(|line| line.strip_prefix("CapPrm:"));
            let mask = line.context("a thread has capabilities")?.trim();
            of_threads.push(u64::from_str_radix(mask, 16)?);
        }
        Ok(of_threads)
    }

    /// The numbers of the programs that it has loaded.
    fn programs(&self) -> Result<BTreeSet<u32>> {
        let mut ids = BTreeSet::new();
        for entry in fs::read_dir(format!("/proc/{}/fdinfo", self.child.id()))? {
            let text = fs::read_to_string(entry?.path()).unwrap_or_default();
            let id = text.lines().find_map(|line| line.strip_prefix("prog_id:"));
            ids.extend(id.and_then(|id| id.trim().parse::<u32>().ok()));
        }
        Ok(ids)
    }
}

/// An exporter with the least there is to attach.
fn quick() -> Result<Option<Exporter>> {
    if !endings::has_tracepoints()? {
        return Ok(None);
    }
    // An emulated CPU is slow enough for the guard to switch measuring off.
    let serve = ["serve", "--listen", "127.0.0.1:0", "--max-overhead", "off"].as_slice();
    Exporter::start(tool::command(
        &[serve, &["-i", "100ms"], &endings::QUICK].concat(),
    ))
    .map(Some)
}

/// The exporter as the unit of systemd starts it.
fn as_a_service() -> Command {
    let mut command = tool::command(&["serve", "--listen", "127.0.0.1:0", "-i", "100ms"]);
    // SAFETY: the runner of the cases has one thread, so that no lock is held in the child.
    unsafe { command.pre_exec(give_up_all_but_the_needed) };
    command
}

fn give_up_all_but_the_needed() -> io::Result<()> {
    let needed: CapsHashSet = NEEDED.into();
    let failed = |error: caps::errors::CapsError| io::Error::other(error.to_string());
    for capability in caps::runtime::thread_all_supported() {
        if !needed.contains(&capability) {
            caps::drop(None, CapSet::Bounding, capability).map_err(failed)?;
        }
    }
    // SAFETY: numbers only.
    unsafe {
        libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0);
        // Before 5.11, maps count as locked memory; the unit lifts that limit.
        let unlimited = libc::rlimit {
            rlim_cur: libc::RLIM_INFINITY,
            rlim_max: libc::RLIM_INFINITY,
        };
        libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const unlimited);
        if libc::setresgid(NOBODY, NOBODY, NOBODY) != 0
            || libc::setresuid(NOBODY, NOBODY, NOBODY) != 0
        {
            return Err(io::Error::last_os_error());
        }
    }
    // What is permitted has to hold what is inherited, and that what is ambient.
    for set in [CapSet::Effective, CapSet::Permitted] {
        caps::set(None, set, &needed).map_err(failed)?;
    }
    for set in [CapSet::Inheritable, CapSet::Ambient] {
        caps::set(None, set, &needed).map_err(failed)?;
    }
    Ok(())
}

/// A guest's loopback is down at first.
fn raise_loopback() -> Result<()> {
    // SAFETY: the descriptor is closed below; the request is a local variable.
    let failed = unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
            *to = *from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        let failed = libc::ioctl(socket, libc::SIOCSIFFLAGS, &raw const request) != 0;
        libc::close(socket);
        failed
    };
    ensure!(!failed, "no loopback: {}", io::Error::last_os_error());
    Ok(())
}

pub(crate) fn gives_up_capabilities(guest: &mut Guest) -> Result<Outcome> {
    let mut exporter = Exporter::start(as_a_service())?;
    for kept in exporter.capabilities()? {
        ensure!(kept & !MOST_KEPT == 0, "a thread keeps {kept:#x}");
    }
    println!("kept: {:x?}", exporter.capabilities()?);
    let contended = "kcore_trace_contended_acquisitions_total";
    let before = exporter.value(contended)?;
    let load = tool::run(&[&["stress"], &tool::load::arguments()[..]].concat())?;
    ensure!(load.status.success(), "{}", tool::complaint(&load));
    let snapshots = exporter.value("kcore_trace_snapshots_total")?;
    let begun = Instant::now();
    while exporter.value("kcore_trace_snapshots_total")? < snapshots + 2.0 {
        ensure!(begun.elapsed() < PATIENCE, "it does not measure any more");
        sleep(Duration::from_millis(100));
    }
    let after = exporter.value(contended)?;
    if guest.cpus() > 1 {
        ensure!(after > before, "nobody waited: {before} and {after}");
    }
    Ok(Outcome::Passed)
}

/// What is asked for each form of a page.
const FORMS: [(&str, &str); 2] = [
    (
        "native",
        "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited",
    ),
    ("classic", "application/openmetrics-text; version=1.0.0"),
];
const PAGES: usize = 4;
const APART: Duration = Duration::from_secs(2);

/// Pages at level full under load, for the dashboards.
pub(crate) fn sends_pages(guest: &mut Guest) -> Result<Outcome> {
    let serve = ["serve", "--listen", "127.0.0.1:0", "--level", "full"];
    let exporter = Exporter::start(tool::command(
        &[&serve[..], &["--max-overhead", "100%"]].concat(),
    ))?;
    let load = [
        "stress",
        "--maps",
        "2",
        "--vmallocinfo",
        "2",
        "--kcore",
        "1",
        "--untouched",
    ];
    let mut load = tool::command(&load).args(["-d", "10m"]).spawn()?;
    for number in 0..PAGES {
        sleep(APART);
        for (form, accept) in FORMS {
            guest.artefact(&format!("{form}-{number}"), &exporter.page(accept)?)?;
        }
    }
    load.kill()?;
    load.wait()?;
    Ok(Outcome::Passed)
}

pub(crate) fn leaves_nothing_behind(_: &mut Guest) -> Result<Outcome> {
    let Some(mut exporter) = quick()? else {
        return endings::no_tracepoints();
    };
    let programs = exporter.programs()?;
    ensure!(!programs.is_empty(), "it has no programs");
    exporter.child.kill()?;
    exporter.child.wait()?;
    let begun = Instant::now();
    // The kernel takes a program apart some time after its last user is gone.
    loop {
        let left = match loaded_programs() {
            Ok(loaded) => loaded.intersection(&programs).copied().collect(),
            // One of any recorder's went away between being listed and being asked for.
            Err(ProgramError::SyscallError(error))
                if error.io_error.kind() == io::ErrorKind::NotFound =>
            {
                programs.clone()
            }
            Err(error) => return Err(error.into()),
        };
        if left.is_empty() {
            return Ok(Outcome::Passed);
        }
        if begun.elapsed() > PATIENCE {
            bail!("programs {left:?} are still loaded");
        }
        sleep(Duration::from_millis(100));
    }
}

/// The numbers of all programs in the kernel.
fn loaded_programs() -> Result<BTreeSet<u32>, ProgramError> {
    aya::programs::loaded_programs()
        .map(|program| Ok(program?.id()))
        .collect()
}

pub(crate) fn ends_in_order(_: &mut Guest) -> Result<Outcome> {
    let Some(mut exporter) = quick()? else {
        return endings::no_tracepoints();
    };
    // SAFETY: the child has not been waited for, so that the id is still its own.
    unsafe { libc::kill(exporter.child.id() as i32, libc::SIGTERM) };
    let status = exporter.child.wait()?;
    ensure!(status.success(), "{status}");
    let address = exporter.address.clone();
    ensure!(TcpStream::connect(address).is_err(), "it still listens");
    Ok(Outcome::Passed)
}
