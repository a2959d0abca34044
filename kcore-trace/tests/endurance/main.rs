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
/// Seconds between two scrapes: each format has had its first before that, with its largest buffers.
const SCRAPED_EVERY: u64 = 900;
const MIB: u64 = 1 << 20;

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
    let mut first = (0, 0);
    for second in 1..SECONDS {
        let ns = 100 + (second * 7919) % 10_000_000;
        let waits = [(ns, 3), (ns / 7, 1), (50, second % 5)];
        exporter.add(&invented::waits(second, &waits));
        if second % SCRAPED_EVERY == 0 {
            let format = formats[(second / SCRAPED_EVERY) as usize % formats.len()];
            assert_eq!(client::ask(address, "GET /metrics", format).status(), 200);
        }
        if second == WARM {
            first = (resident(), client::scrape(address).0.len());
        }
    }
    let samples = client::scrape(address);
    let last = (resident(), samples.0.len());
    println!(
        "resident after an hour {} KiB, after a day {} KiB, {} series",
        first.0 >> 10,
        last.0 >> 10,
        last.1
    );
    assert!(
        last.0 <= first.0 + 2 * MIB,
        "{} bytes more",
        last.0 - first.0
    );
    assert_eq!(last.1, first.1, "series");
    assert_eq!(
        samples.value("kcore_trace_measured_seconds_total"),
        SECONDS as f64
    );
    assert!(samples.of("kcore_trace_wait_seconds_count").count() > 300);
}
