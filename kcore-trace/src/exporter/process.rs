//! What this process uses, under the names that every Prometheus client exports it.
//!
//! In: procfs. Out: `process_*` families. Invariant: what cannot be read has no series.

use std::fmt;

use procfs::process::{self, Stat};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;

use super::exposition::{Base, Family, Value, write};

const CPU: Family = Family {
    name: "process_cpu",
    unit: Some(Base::Seconds),
    kind: MetricType::Counter,
    help: "User and system CPU time of kcore-trace",
};

const RESIDENT: Family = Family {
    name: "process_resident_memory",
    unit: Some(Base::Bytes),
    kind: MetricType::Gauge,
    help: "Resident memory of kcore-trace",
};

const DESCRIPTORS: Family = Family {
    name: "process_open_fds",
    unit: None,
    kind: MetricType::Gauge,
    help: "Open file descriptors of kcore-trace",
};

const STARTED: Family = Family {
    name: "process_start_time",
    unit: Some(Base::Seconds),
    kind: MetricType::Gauge,
    help: "When kcore-trace was started, since 1970",
};

/// Reads the process at each scrape.
#[derive(Debug)]
pub(crate) struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Ok(process) = process::Process::myself() else {
            return Ok(());
        };
        let mut one = |family, value: Option<Value<'_>>| {
            let samples = value.into_iter().map(|value| (vec![], value));
            write(&mut encoder, family, samples.collect())
        };
        let stat = process.stat().ok();
        let stat = stat.as_ref();
        one(&CPU, stat.map(|stat| Value::Real(cpu_seconds(stat))))?;
        let resident = stat.map(|stat| Value::Whole(stat.rss * procfs::page_size()));
        one(&RESIDENT, resident)?;
        let descriptors = process.fd_count().ok();
        one(&DESCRIPTORS, descriptors.map(|n| Value::Whole(n as u64)))?;
        one(&STARTED, stat.and_then(started).map(Value::Real))
    }
}

fn cpu_seconds(stat: &Stat) -> f64 {
    (stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64
}

fn started(stat: &Stat) -> Option<f64> {
    let boot = procfs::boot_time_secs().ok()?;
    Some(boot as f64 + stat.starttime as f64 / procfs::ticks_per_second() as f64)
}
