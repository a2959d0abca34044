//! The exporter of a guest, page by page, for what the running kernel does not let be seen.
//!
//! In: the guest binary and a kernel. A guest runs the real exporter at the level at which there is
//! everything, under load, and sends what it answered to some scrapes. Out: the same pages on
//! loopback, in the same order and as far apart in time. The guest has no network: Debian's kernels
//! have it in modules alone.
//!
//! Invariant: not a byte of a page is changed.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::lab::{
    artefacts, cases, initramfs,
    kernels::Kernel,
    protocol::Report,
    qemu::{self, Ending, Files, Machine},
};

/// The case of the guest that sends pages.
const CASE: &str = "an_exporter_sends_its_pages";
/// The kernel that has everything: fentry, nodes, readers that try again.
pub(super) const KERNEL: &str = "6.12";
/// Seconds between two pages of the guest, by its clock.
const APART: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(600);

/// The forms of a page: how it is named, what a scraper asks for, and what it is told it gets.
const FORMS: [(&str, &str, &str); 2] = [
    (
        "native",
        "protobuf",
        "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited",
    ),
    (
        "classic",
        "openmetrics",
        "application/openmetrics-text; version=1.0.0; charset=utf-8",
    ),
];

/// What a guest's exporter answered, for each form.
pub(super) struct Pages([Vec<Vec<u8>>; FORMS.len()]);

impl Pages {
    /// Boots a guest and takes what it sends.
    pub(super) fn take(kernel: &Kernel, guest: &Path, folder: &Path) -> Result<Self> {
        let folder = folder.join("guest");
        fs::create_dir_all(&folder)?;
        let initramfs = folder.join("initramfs");
        let binary = fs::read(guest)?;
        let kernels = std::slice::from_ref(kernel);
        fs::write(
            &initramfs,
            initramfs::with_modules(&binary, kernels, Vec::new())?,
        )?;
        let machine = Machine {
            kernel: &kernel.image,
            initramfs: &initramfs,
            cpus: 4,
            cpu: qemu::CPU,
            counts_instructions: false,
            words: format!(
                "{} kcore_trace.filter={CASE}",
                cases::words("dashboards", kernel)
            ),
            timeout: PATIENCE,
        };
        let files = Files {
            folder: &folder,
            console: "console",
            artefacts: "artefacts",
        };
        let ending = qemu::boot(&machine, &files)?;
        let console = folder.join("console");
        let report = Report::from_console(&String::from_utf8_lossy(&fs::read(&console)?));
        let passed =
            ending == Ending::Left && report.trouble().is_none() && report.tally().passed == 1;
        ensure!(
            passed,
            "the guest's exporter sent no pages; see {}",
            console.display()
        );
        let stream = fs::read(folder.join("artefacts"))?;
        let (sent, _) = artefacts::parse(&stream);
        let pages = FORMS.map(|(form, ..)| {
            let of_form = sent.iter().filter(|page| page.name.starts_with(form));
            of_form.map(|page| page.data.to_vec()).collect::<Vec<_>>()
        });
        ensure!(
            pages.iter().all(|pages| pages.len() >= 2),
            "a rate needs two pages; see {}",
            console.display()
        );
        Ok(Self(pages))
    }

    /// How long all of them are being shown for the first time.
    pub(super) fn duration(&self) -> Duration {
        APART * self.0[0].len() as u32
    }

    /// Shows them on loopback from now on, the last one for ever.
    pub(super) fn show(self) -> Result<SocketAddr> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let shown = Arc::new((self.0, Mutex::new(None)));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shown = Arc::clone(&shown);
                // Who hangs up early misses his page.
                thread::spawn(move || answer(stream, &shown.0, &shown.1).ok());
            }
        });
        Ok(address)
    }
}

fn answer(
    mut stream: TcpStream,
    pages: &[Vec<Vec<u8>>; FORMS.len()],
    begun: &Mutex<Option<Instant>>,
) -> Result<()> {
    let mut head = String::new();
    let mut reader = BufReader::new(stream.try_clone()?);
    while reader.read_line(&mut head)? > 2 {}
    let head = head.to_lowercase();
    let form = FORMS.iter().position(|(_, asks, _)| head.contains(asks));
    let Some(form) = form else {
        bail!("asked for no form that there is: {head}");
    };
    let begun = *begun
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .get_or_insert_with(Instant::now);
    let page = begun.elapsed().div_duration_f64(APART) as usize;
    let page = pages[form].get(page).or(pages[form].last());
    let page = page.context("there are pages")?;
    let (.., kind) = FORMS[form];
    let length = page.len();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )?;
    Ok(stream.write_all(page)?)
}
