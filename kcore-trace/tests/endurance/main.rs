//! A day of measuring, simulated, in a process of its own: what it may grow is memory.

#[cfg(test)]
#[path = "../exporter/client.rs"]
mod client;
#[cfg(test)]
#[path = "../exporter/invented.rs"]
mod invented;

use kcore_trace::model::Level;
use procfs::process::Process;

const SECONDS: u64 = 24 * 3600;
/// Until whatever grows once has grown.
const WARM: u64 = 3600;
/// How long memory is looked at, after that and at the end: it goes up and down by what threads and
/// scrapes need for a moment.
const LOOKED_AT: u64 = 2 * 3600;
/// Seconds between two scrapes: each format has had its first before that, with its largest buffers.
const SCRAPED_EVERY: u64 = 900;
/// Less than the smallest allocation in every interval; the allocator itself may take or keep a step
/// of two MiB at any time.
const MAY_GROW: u64 = 48 * SECONDS;
const EARLY: u64 = WARM + LOOKED_AT;
const LATE: u64 = SECONDS - LOOKED_AT;

fn resident() -> u64 {
    let stat = Process::myself().and_then(|process| process.stat());
    stat.expect("a process can read its own state").rss * procfs::page_size()
}

#[test]
fn a_day_of_intervals_and_scrapes_needs_no_more_memory_than_its_first_hour() {
    let exporter = invented::exporter("6.12", Level::Contended);
    let address = exporter.address();
    let formats = [client::TEXT, client::OPENMETRICS, client::PROTOBUF];
    // Every series that there can be.
    exporter.add(&invented::everything(0));
    let (mut early, mut late) = (Vec::new(), Vec::new());
    let mut series = 0;
    for second in 1..SECONDS {
        let ns = 100 + (second * 7919) % 10_000_000;
        let waits = [(ns, 3), (ns / 7, 1), (50, second % 5)];
        exporter.add(&invented::waits(second, &waits));
        if second % SCRAPED_EVERY == 0 {
            let format = formats[(second / SCRAPED_EVERY) as usize % formats.len()];
            assert_eq!(client::ask(address, "GET /metrics", format).status(), 200);
            match second {
                WARM..=EARLY => early.push(resident()),
                LATE.. => late.push(resident()),
                _ => {}
            }
        }
        if second == WARM {
            series = client::scrape(address).0.len();
        }
    }
    let samples = client::scrape(address);
    assert_eq!(samples.0.len(), series, "series");
    // What grows without end is above all it was before.
    let before = early.into_iter().max().expect("it was scraped early");
    let after = late.into_iter().min().expect("it was scraped late");
    println!(
        "resident after an hour at most {} KiB, after a day at least {} KiB, {series} series",
        before >> 10,
        after >> 10,
    );
    assert!(after <= before + MAY_GROW, "{} bytes more", after - before);
    assert_eq!(
        samples.value("kcore_trace_measured_seconds_total"),
        SECONDS as f64
    );
    assert!(samples.of("kcore_trace_wait_seconds_count").count() > 300);
}
