//! What a scrape says, in each of its formats.

use std::time::{Duration, Instant};

use kcore_trace::exporter::Exporter;
use kcore_trace::model::{Level, Measured, Step, StepReason};
use kcore_trace::sampling::Sample;
use kcore_trace_ebpf::words::Lock;
use prometheus_client::encoding::prometheus_protobuf::prometheus_data_model::{
    Histogram, MetricFamily, MetricType,
};
use prost::Message as _;

use crate::client::{OPENMETRICS, PROTOBUF, Samples, ask, scrape};
use crate::invented::{self, SECOND_NS, exporter, waits};

const LABELS: &str =
    r#"lock="vmap_node.busy",kind="spinlock",mode="exclusive",intent="write",op="alloc""#;

fn families(body: &[u8]) -> Vec<MetricFamily> {
    let mut rest = body;
    let mut families = Vec::new();
    while !rest.is_empty() {
        families.push(MetricFamily::decode_length_delimited(&mut rest).unwrap());
    }
    families
}

fn native_waits(families: &[MetricFamily]) -> Histogram {
    let family = families
        .iter()
        .find(|family| family.name == "kcore_trace_wait_seconds")
        .unwrap();
    assert_eq!(
        (family.r#type(), &*family.unit),
        (MetricType::Histogram, "seconds")
    );
    let is_waited = |name: &str, value: &str| LABELS.contains(&format!(r#"{name}="{value}""#));
    let metric = family.metric.iter().find(|metric| {
        let mut labels = metric.label.iter();
        labels.all(|label| is_waited(&label.name, &label.value))
    });
    metric.unwrap().histogram.clone().unwrap()
}

/// A native histogram as Prometheus takes it apart: upper bound and count of each bucket.
fn expanded(histogram: &Histogram) -> Vec<(f64, u64)> {
    let growth = f64::from(1 << histogram.schema).recip().exp2();
    let (mut index, mut count, mut deltas) = (0, 0, histogram.positive_delta.iter());
    let mut buckets = Vec::new();
    for span in &histogram.positive_span {
        index += span.offset;
        for _ in 0..span.length {
            count += deltas.next().unwrap();
            buckets.push((growth.powi(index), u64::try_from(count).unwrap()));
            index += 1;
        }
    }
    buckets
}

#[test]
fn counts_and_sums_are_exact_in_every_format() {
    let exporter = exporter("6.12", Level::Full);
    exporter.add(&waits(0, &[(1_500, 3), (2_000_000, 1)]));
    exporter.add(&waits(1, &[(1_500, 2)]));
    let sum = (5 * 1_500 + 2_000_000) as f64 / SECOND_NS as f64;
    for accept in ["*/*", OPENMETRICS] {
        let answer = ask(exporter.address(), "GET /metrics", accept);
        let text = answer.text();
        let samples = Samples::parse(&text);
        let value = |name: &str| samples.value(&format!("kcore_trace_{name}{{{LABELS}}}"));
        assert_eq!(value("wait_seconds_count"), 6.0);
        assert_eq!(value("wait_seconds_sum"), sum);
        assert_eq!(value("hold_seconds_count"), 6.0);
        assert_eq!(value("contended_acquisitions_total"), 6.0);
        assert_eq!(value("acquisitions_total"), 12.0);
        assert_eq!(samples.value("kcore_trace_measured_seconds_total"), 2.0);
    }
    let body = ask(exporter.address(), "GET /metrics", PROTOBUF).body;
    let histogram = native_waits(&families(&body));
    assert_eq!((histogram.sample_count, histogram.sample_sum), (6, sum));
}

#[test]
fn each_node_has_its_counters_and_acquisitions_only_where_they_are_seen() {
    let measured = |second| {
        let nodes = [(Lock::NodeBusy, invented::nodes(3))].into();
        let measured = Measured {
            nodes,
            ..Measured::default()
        };
        invented::sample(second, measured)
    };
    for level in [Level::Full, Level::Contended] {
        let exporter = exporter("6.12", level);
        exporter.add(&measured(0));
        exporter.add(&measured(1));
        let text = ask(exporter.address(), "GET /metrics", "*/*").text();
        let samples = Samples::parse(&text);
        let value = |name: &str, node: u32| {
            let labels = format!(r#"lock="vmap_node.busy",node="{node}""#);
            samples.value(&format!("kcore_trace_node_{name}{{{labels}}}"))
        };
        assert_eq!(value("contended_acquisitions_total", 2), 6.0);
        assert_eq!(value("wait_seconds_total", 0), 2.0);
        let seen = text.contains("kcore_trace_node_acquisitions_total{");
        assert_eq!(seen, level == Level::Full);
        if seen {
            assert_eq!(value("acquisitions_total", 1), 8.0);
        }
    }
}

#[test]
fn waits_that_are_not_seen_have_no_series_whatever_the_level_is_later() {
    let (facts, mut plan) = invented::plan("6.12", Level::Full);
    while let Some(index) = plan
        .programs
        .iter()
        .position(|hook| hook.target.contains("spin_lock_slowpath"))
    {
        plan.lose(index, "the kernel refused it".into());
    }
    let exporter = Exporter::start(invented::ANY_PORT).unwrap();
    exporter.describe(&invented::header(&facts, &plan), &plan);
    exporter.add(&invented::everything(0));
    let unseen = |name: &str| {
        let scraped = scrape(exporter.address());
        let lock = r#"lock="vmap_node.busy""#;
        let found = scraped
            .of(name)
            .filter(|(series, _)| series.contains(lock))
            .count();
        found == 0
    };
    assert!(!unseen("kcore_trace_hold_seconds_count") && !unseen("kcore_trace_acquisitions_total"));
    let all_unseen = || {
        [
            "wait_seconds_count",
            "contended_acquisitions_total",
            "aborted_waits_total",
            "node_contended_acquisitions_total",
            "node_wait_seconds_total",
        ]
        .iter()
        .all(|name| unseen(&format!("kcore_trace_{name}")))
    };
    assert!(all_unseen());
    let (_, contended) = invented::plan("6.12", Level::Contended);
    exporter.step(&step(Some(Level::Contended)), &contended);
    assert!(all_unseen());
    let samples = scrape(exporter.address());
    let others = samples.of("kcore_trace_contended_acquisitions_total");
    assert!(
        others
            .filter(|(series, _)| series.contains("vmap_purge_lock"))
            .count()
            > 0
    );
    assert_eq!(
        samples
            .of("kcore_trace_reader_inflicted_wait_seconds_total")
            .count(),
        0
    );
}

#[test]
fn a_native_histogram_holds_each_sample_in_a_bucket_of_two_percent() {
    let exporter = exporter("6.12", Level::Contended);
    let samples = [
        (0, 4),
        (37, 1),
        (1_500, 3),
        (2_000_000, 5),
        (40 * SECOND_NS, 2),
    ];
    exporter.add(&waits(0, &samples));
    let body = ask(exporter.address(), "GET /metrics", PROTOBUF).body;
    let histogram = native_waits(&families(&body));
    assert_eq!(histogram.zero_count, 4);
    let filled = expanded(&histogram)
        .into_iter()
        .filter(|(_, count)| *count > 0);
    let filled: Vec<_> = filled.collect();
    assert_eq!(filled.len(), samples.len() - 1);
    for ((bound, count), (ns, samples)) in filled.iter().zip(&samples[1..]) {
        let seconds = *ns as f64 / SECOND_NS as f64;
        // Half a bucket of the kernel to either side, and a native bucket above.
        assert!(
            (0.984..1.04).contains(&(bound / seconds)),
            "{bound} for {seconds}"
        );
        assert_eq!(count, samples);
    }
}

#[test]
fn classic_buckets_grow_to_infinity_and_hold_what_was_counted() {
    let exporter = exporter("6.12", Level::Full);
    exporter.add(&invented::everything(0));
    let text = ask(exporter.address(), "GET /metrics", "*/*").text();
    let samples = Samples::parse(&text);
    let mut last = (String::new(), 0.0, 0.0);
    for line in text.lines().filter(|line| line.contains("_bucket{")) {
        let (series, count) = line.rsplit_once(' ').unwrap();
        let (labels, bound) = series.rsplit_once("le=\"").unwrap();
        let bound: f64 = bound.trim_end_matches("\"}").parse().unwrap();
        let count: f64 = count.parse().unwrap();
        if last.0 == labels {
            assert!(bound > last.1 && count >= last.2, "{line}");
        }
        if bound.is_infinite() {
            let series = labels.replace("_bucket{", "_count{");
            let series = format!("{}}}", series.trim_end_matches(','));
            assert_eq!(samples.value(&series), count, "{line}");
        }
        last = (labels.to_owned(), bound, count);
    }
    assert!(last.1.is_infinite());
}

#[test]
fn every_family_has_help_and_type_once_and_openmetrics_names_units_and_ends() {
    let exporter = exporter("6.12", Level::Full);
    exporter.add(&invented::everything(0));
    let text = ask(exporter.address(), "GET /metrics", OPENMETRICS).text();
    assert!(text.ends_with("# EOF\n"));
    let of = |what: &str| {
        let lines = text.lines().filter_map(|line| line.strip_prefix(what));
        let mut names: Vec<_> = lines.map(|line| line.split(' ').next().unwrap()).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all, "{what} twice");
        names
    };
    assert_eq!(of("# HELP "), of("# TYPE "));
    for name in of("# UNIT ") {
        assert!(
            name.ends_with("_seconds") || name.ends_with("_bytes"),
            "{name}"
        );
    }
    let own = |name: &&str| name.starts_with("kcore_trace_") || name.starts_with("process_");
    assert!(of("# TYPE ").iter().all(own));
}

#[test]
fn nothing_ever_falls_from_one_scrape_to_the_next() {
    let exporter = exporter("6.12", Level::Full);
    let mut before = scrape(exporter.address());
    for second in 0..3 {
        exporter.add(&invented::everything(second));
        let after = scrape(exporter.address());
        for (series, value) in &before.0 {
            let is_gauge = ["in_flight", "timestamp", "process_"];
            if !is_gauge.iter().any(|word| series.contains(word)) {
                assert!(after.0[series] >= *value, "{series}");
            }
        }
        before = after;
    }
}

#[test]
fn what_the_plan_expects_is_there_at_zero_before_it_happens() {
    let exporter = exporter("6.12", Level::Contended);
    let samples = scrape(exporter.address());
    let count = format!("kcore_trace_wait_seconds_count{{{LABELS}}}");
    assert_eq!(samples.value(&count), 0.0);
    let body = ask(exporter.address(), "GET /metrics", PROTOBUF).body;
    assert_eq!(native_waits(&families(&body)).sample_count, 0);
}

#[test]
fn what_is_not_measured_has_no_series() {
    let contended = exporter("6.12", Level::Contended);
    contended.add(&invented::everything(0));
    let samples = scrape(contended.address());
    for name in ["acquisitions_total", "hold_seconds_count"] {
        let name = format!("kcore_trace_{name}");
        assert_eq!(samples.of(&name).count(), 0, "{name}");
    }
    let degraded = exporter("6.18-locked-down", Level::Contended);
    degraded.add(&invented::everything(0));
    let samples = scrape(degraded.address());
    assert_eq!(samples.of("kcore_trace_operation_seconds_count").count(), 0);
    assert!(samples.of("kcore_trace_operations_total").count() > 0);
    let tracepoints = samples
        .of("kcore_trace_coverage_info")
        .any(|(series, _)| series.contains(r#"waits="tracepoint""#));
    assert!(tracepoints);
}

fn step(level: Option<Level>) -> Step {
    Step {
        at_ns: 0,
        level,
        reason: StepReason::Failed("a test".into()),
    }
}

#[test]
fn sums_go_on_at_another_level_and_what_it_does_not_see_has_no_series() {
    let exporter = exporter("6.12", Level::Full);
    exporter.add(&invented::everything(0));
    let before = scrape(exporter.address());
    let (_, plan) = invented::plan("6.12", Level::Contended);
    exporter.step(&step(Some(Level::Contended)), &plan);
    let after = scrape(exporter.address());
    let contended = format!("kcore_trace_contended_acquisitions_total{{{LABELS}}}");
    assert_eq!(after.value(&contended), before.value(&contended));
    assert!(before.of("kcore_trace_acquisitions_total").count() > 0);
    assert_eq!(after.of("kcore_trace_acquisitions_total").count(), 0);
    assert_eq!(after.value("kcore_trace_level_changes_total"), 1.0);
    let hooks = |samples: &Samples| samples.value(r#"kcore_trace_hooks{state="attached"}"#);
    assert!(hooks(&after) < hooks(&before));
}

#[test]
fn the_level_of_now_is_told_also_when_it_is_off() {
    let exporter = exporter("6.12", Level::Contended);
    let levels = || {
        let samples = scrape(exporter.address());
        ["full", "contended", "off"]
            .map(|level| samples.value(&format!(r#"kcore_trace_level{{level="{level}"}}"#)) as u64)
    };
    assert_eq!(levels(), [0, 1, 0]);
    let (_, plan) = invented::plan("6.12", Level::Contended);
    exporter.step(&step(None), &plan);
    assert_eq!(levels(), [0, 0, 1]);
    exporter.add(&Sample {
        level: None,
        ..invented::sample(0, Measured::default())
    });
    let samples = scrape(exporter.address());
    assert_eq!(samples.value(r#"kcore_trace_hooks{state="attached"}"#), 0.0);
    for name in ["measured_seconds_total", "snapshots_total"] {
        assert_eq!(samples.value(&format!("kcore_trace_{name}")), 0.0, "{name}");
    }
}

#[test]
fn what_measuring_costs_is_told_by_part() {
    let exporter = exporter("6.12", Level::Full);
    exporter.add(&invented::everything(0));
    let samples = scrape(exporter.address());
    let part = |part| samples.value(&format!(r#"kcore_trace_overhead_ratio{{part="{part}"}}"#));
    let parts = ["programs", "hooks", "process"].map(part);
    assert!((parts.iter().sum::<f64>() - invented::OVERHEAD.share()).abs() < 1e-9);
}

#[test]
fn every_missing_hook_is_named_with_its_reason_and_every_loss_is_counted() {
    let exporter = exporter("6.18-locked-down", Level::Full);
    exporter.add(&sample_with_losses());
    let samples = scrape(exporter.address());
    let missing = samples.value(r#"kcore_trace_hooks{state="missing"}"#);
    let named = samples.of("kcore_trace_hook_missing_info").count();
    assert_eq!(missing, named as f64);
    assert!(named > 0);
    for (reason, count) in [
        ("recursion-miss", 1.0),
        ("map-full", 2.0),
        ("unmatched-release", 3.0),
        ("unmatched-acquisition", 4.0),
        ("unknown-site", 5.0),
        ("unfinished-op", 6.0),
    ] {
        let series = format!(r#"kcore_trace_lost_total{{reason="{reason}"}}"#);
        assert_eq!(samples.value(&series), count);
    }
    assert_eq!(samples.value("kcore_trace_waits_in_flight"), 7.0);
    assert_eq!(samples.value("kcore_trace_holds_in_flight"), 8.0);
}

fn sample_with_losses() -> kcore_trace::sampling::Sample {
    let measured = invented::everything(0).interval.measured;
    invented::sample(
        0,
        Measured {
            loss: measured.loss,
            ..Measured::default()
        },
    )
}

/// The numbers that the documentation states; they are bounds by construction, not by luck.
#[test]
fn the_number_of_series_is_bounded_by_plan_and_words() {
    let count = |kernel, level, full| {
        let exporter = exporter(kernel, level);
        if full {
            exporter.add(&invented::everything(0));
        }
        let text = scrape(exporter.address()).0.len();
        let body = ask(exporter.address(), "GET /metrics", PROTOBUF).body;
        let native: usize = families(&body)
            .iter()
            .map(|family| family.metric.len())
            .sum();
        (text, native)
    };
    let typical = count("6.12", Level::Contended, false);
    let at_full = count("6.12", Level::Full, false);
    let worst = count("6.12", Level::Full, true);
    println!("series as text and native: {typical:?}, level full {at_full:?}, at most {worst:?}");
    assert!(typical.0 < 1_200 && typical.1 < 250, "{typical:?}");
    assert!(at_full.0 < 2_500 && at_full.1 < 400, "{at_full:?}");
    assert!(worst.0 < 27_000 && worst.1 < 12_000, "{worst:?}");
}

/// The fastest of some, so that a busy machine does not decide.
#[test]
fn a_scrape_of_what_this_kernel_can_have_takes_less_than_20_ms() {
    let exporter = exporter("6.12", Level::Full);
    let (facts, plan) = invented::plan("6.12", Level::Full);
    let everything = invented::everything(0);
    let expected = |key: &kcore_trace::model::CellKey| plan.lock(key.lock).is_some();
    let mut likely = everything.interval.measured.clone();
    likely.cells.retain(|key, _| expected(key));
    drop(facts);
    exporter.add(&invented::sample(0, likely));
    for accept in ["*/*", OPENMETRICS, PROTOBUF] {
        let once = || {
            let begun = Instant::now();
            let size = ask(exporter.address(), "GET /metrics", accept).body.len();
            (begun.elapsed(), size)
        };
        let (fastest, size) = (0..10).map(|_| once()).min().unwrap();
        println!("{accept}: {fastest:.1?}, {size} bytes");
        let bound = Duration::from_millis(if cfg!(debug_assertions) { 200 } else { 20 });
        assert!(fastest < bound, "{accept}: {fastest:?}");
    }
}
