//! The exporter on the running kernel, as Prometheus sees it.
//!
//! In: the tool and Prometheus. Out: how many queries have data. Three questions: does every query
//! of every dashboard and rule return something, for either form of histograms? Does promtool find
//! fault with the metrics? Does Prometheus say what `report` says of the same recording, which was
//! cut off by a kill right after a scrape?

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::BufRead as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::{
    boards,
    packages::Programs,
    prometheus::{HOSTS, Prometheus, get, number},
    replay::Pages,
};
use crate::{
    command::shown,
    lab::kernels::Kernel,
    places::{Places, wait_for_turn},
    privilege::Privilege,
    tally::Tally,
};

/// The name by which the binary of the tests is the tool.
const TOOL: &str = "kcore-trace";
/// Time between two readings of the counters: long, so that a kill comes before the next.
const INTERVAL: Duration = Duration::from_secs(3);
/// For what takes some intervals.
const PATIENCE: Duration = Duration::from_secs(60);
/// Some intervals of load, which rates are computed over.
const LOAD: Duration = Duration::from_secs(16);
/// What Grafana would fill in.
const RATE_INTERVAL: &str = "12s";
const RANGE: &str = "1m";
/// A quantile by Prometheus and one by `report` are in one bucket of 2.2 %, but for the extremes,
/// which report knows exactly: half a bucket of the kernel, 1.6 %, more.
const NEAR: std::ops::RangeInclusive<f64> = 1.0 / 1.04..=1.04;

/// What cannot have data on this kernel or in this set-up, and why.
struct Excuse {
    /// Parts of queries.
    queries: &'static [&'static str],
    reason: &'static str,
    holds: fn(&Seen) -> bool,
}

impl Excuse {
    fn fits(&self, query: &str) -> bool {
        self.queries.iter().any(|part| query.contains(part))
    }
}

const EXCUSES: &[Excuse] = &[
    Excuse {
        queries: &["kcore_trace_hold_"],
        reason: "holds are not seen at this level, or by tracepoints",
        holds: |seen| !seen.holds,
    },
    Excuse {
        queries: &["kcore_trace_wait_sleep"],
        reason: "nobody waited asleep",
        holds: |seen| seen.asleep == 0.0,
    },
    Excuse {
        queries: &["kcore_trace_blamed_"],
        reason: "holders are not known at this level, or by tracepoints",
        holds: |seen| !seen.holds,
    },
    Excuse {
        queries: &["kcore_trace_reader_", "kcore_trace_kcore_"],
        reason: "readers are not seen at this level, or by tracepoints",
        holds: |seen| !seen.holds,
    },
    Excuse {
        queries: &["kcore_trace_node_"],
        reason: "the kernel has no nodes",
        holds: |seen| !seen.nodes,
    },
    Excuse {
        queries: &["kcore_trace_program_run_seconds_total"],
        reason: "kernel.bpf_stats_enabled is off",
        holds: |seen| !seen.program_statistics,
    },
    Excuse {
        queries: &[r#"reason!="recursion-miss""#],
        reason: "nothing was lost",
        holds: |seen| seen.lost == 0.0,
    },
    Excuse {
        queries: &["kcore_trace_hook_missing_info"],
        reason: "nothing is missing",
        holds: |seen| !seen.missing,
    },
    Excuse {
        queries: &["offset 1h"],
        reason: "nothing is an hour old",
        holds: |_| true,
    },
];

/// What this kernel lets be seen, by the metrics themselves.
struct Seen {
    holds: bool,
    nodes: bool,
    program_statistics: bool,
    lost: f64,
    missing: bool,
    asleep: f64,
}

/// The same queries on the pages of a guest's exporter, at level full.
pub(super) fn check_guest(
    places: &Places,
    programs: &Programs,
    kernel: &Kernel,
    tool: &Path,
    stay: bool,
) -> Result<Tally> {
    let (_turn, folder) = own_folder(places, "dashboards-guest")?;
    let pages = Pages::take(kernel, tool, &folder)?;
    let duration = pages.duration();
    let rules = places.root.join("dashboards/rules.yaml");
    let prometheus = Prometheus::start(programs, pages.show()?, &rules, &folder)?;
    thread::sleep(duration);
    if stay {
        println!(
            "Prometheus at http://{}, with the pages of a guest; Return ends it",
            prometheus.address()
        );
        std::io::stdin().lock().read_line(&mut String::new())?;
        return Ok(Tally::default());
    }
    println!("  on {}, in a guest:", kernel.line);
    queries(&prometheus)
}

/// A new folder for a check, and the turn to use it.
fn own_folder(places: &Places, name: &str) -> Result<(File, PathBuf)> {
    let turn = wait_for_turn(&places.target, "another check of the dashboards is running")?;
    let folder = places.target.join(name);
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    Ok((turn, folder))
}

pub(super) fn check(
    places: &Places,
    programs: &Programs,
    tool: &Path,
    privilege: Privilege,
    stay: bool,
) -> Result<Tally> {
    let (_turn, folder) = own_folder(places, "dashboards")?;
    let mut exporter = Recorder::start(tool, privilege, &folder)?;
    let rules = places.root.join("dashboards/rules.yaml");
    let prometheus = Prometheus::start(programs, exporter.address, &rules, &folder)?;
    let mut tally = Tally::default();
    metrics_are_well_formed(programs, exporter.address)?;
    tally.passed += 1;
    let mut load = load(tool, privilege, if stay { None } else { Some(LOAD) })?;
    if stay {
        println!(
            "Prometheus at http://{}, the exporter at http://{}/metrics; Return ends them",
            prometheus.address(),
            exporter.address
        );
        std::io::stdin().lock().read_line(&mut String::new())?;
        signal(privilege, "TERM", load.id())?;
        load.wait()?;
        return Ok(tally);
    }
    load.wait()?;
    tally += queries(&prometheus)?;
    tally += agreement(&prometheus, &mut exporter, tool)?;
    Ok(tally)
}

/// The recorder while it shows what it records.
struct Recorder {
    child: Child,
    privilege: Privilege,
    address: SocketAddr,
    recording: PathBuf,
}

impl Recorder {
    fn start(tool: &Path, privilege: Privilege, folder: &Path) -> Result<Self> {
        let recording = folder.join("recording.kct");
        let log = folder.join("record.log");
        let mut record = privilege.command(tool).context("measuring needs root")?;
        record
            .args([
                TOOL,
                "record",
                "--listen",
                "127.0.0.1:0",
                "--max-overhead",
                "100%",
                "-i",
            ])
            .arg(format!("{}s", INTERVAL.as_secs()))
            .arg("-o")
            .arg(&recording);
        let child = record
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()
            .with_context(|| format!("failed to start `{}`", shown(&record)))?;
        let mut recorder = Self {
            child,
            privilege,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            recording,
        };
        recorder.address = recorder.wait_until_it_measures(&log)?;
        Ok(recorder)
    }

    fn wait_until_it_measures(&mut self, log: &Path) -> Result<SocketAddr> {
        let begun = Instant::now();
        loop {
            let said = fs::read_to_string(log)?;
            let url = said
                .split_whitespace()
                .find_map(|word| word.strip_prefix("http://")?.strip_suffix("/metrics"));
            if let Some(address) = url
                && get(&format!("http://{address}/readyz"), &[]).is_ok()
            {
                return Ok(address.parse()?);
            }
            if self.child.try_wait()?.is_some() || begun.elapsed() > PATIENCE {
                bail!("the exporter does not measure: {}", said.trim_end());
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Ends the tool at once; sudo, where it is in between, cannot pass that on.
    fn kill(&mut self) -> Result<()> {
        let mut process = self.child.id();
        while let Some(child) = first_child(process) {
            process = child;
        }
        signal(self.privilege, "KILL", process)?;
        self.child.wait()?;
        Ok(())
    }
}

fn first_child(process: u32) -> Option<u32> {
    let children = fs::read_to_string(format!("/proc/{process}/task/{process}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

impl Drop for Recorder {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // What is left is a process of this machine's owner, who sees it.
            let _ = self.kill();
        }
    }
}

/// Sends a signal to a process of root's.
fn signal(privilege: Privilege, name: &str, process: u32) -> Result<()> {
    let mut kill = privilege.command("kill").context("it is root's")?;
    crate::command::run(kill.args(["-s", name]).arg(process.to_string()))
}

fn load(tool: &Path, privilege: Privilege, duration: Option<Duration>) -> Result<Child> {
    let mut stress = privilege.command(tool).context("the load needs root")?;
    stress.args([TOOL, "stress", "--maps", "2", "--vmallocinfo", "2", "-d"]);
    let duration = duration.unwrap_or(Duration::from_secs(3600));
    stress.arg(format!("{}s", duration.as_secs()));
    stress.stdin(Stdio::null()).stdout(Stdio::null());
    stress.stderr(Stdio::null());
    let child = stress.spawn();
    child.with_context(|| format!("failed to start `{}`", shown(&stress)))
}

fn metrics_are_well_formed(programs: &Programs, exporter: SocketAddr) -> Result<()> {
    let text = get(&format!("http://{exporter}/metrics"), &[])?;
    let mut promtool = Command::new(programs.promtool());
    promtool.args(["check", "metrics"]).stdin(Stdio::piped());
    let mut child = promtool.stderr(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("stdin was asked to be a pipe")?;
    std::io::Write::write_all(&mut stdin, text.as_bytes())?;
    drop(stdin);
    let output = child.wait_with_output()?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success() && complaint.trim().is_empty(),
        "promtool check metrics: {}",
        complaint.trim()
    );
    println!(
        "  promtool finds no fault with {} bytes of metrics",
        text.len()
    );
    Ok(())
}

/// Every query of every dashboard and rule, for each form of histograms.
fn queries(prometheus: &Prometheus) -> Result<Tally> {
    let seen = seen(prometheus)?;
    let mut tally = Tally::default();
    let mut problems = Vec::new();
    let mut excused: BTreeMap<&str, u64> = BTreeMap::new();
    for (origin, queries) in all_queries(prometheus)? {
        for host in HOSTS {
            let mut found = false;
            let mut excuse = None;
            for query in &queries {
                let query = filled_in(query, host, prometheus)?;
                found |= !prometheus.query(&query, None)?.is_empty();
                let reason = EXCUSES
                    .iter()
                    .find(|excuse| excuse.fits(&query) && (excuse.holds)(&seen));
                excuse = excuse.or(reason);
            }
            match (found, excuse) {
                (true, _) => tally.passed += 1,
                (false, Some(excuse)) => {
                    *excused.entry(excuse.reason).or_default() += 1;
                    tally.skipped += 1;
                }
                (false, None) => problems.push(format!("{origin}, host {host}: no data")),
            }
        }
    }
    println!("  {} panels, columns and rules have data", tally.passed);
    for (reason, count) in excused {
        println!("  {count} have none: {reason}");
    }
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(tally)
}

fn seen(prometheus: &Prometheus) -> Result<Seen> {
    let has = |query: &str| Ok::<_, anyhow::Error>(!prometheus.query(query, None)?.is_empty());
    let lost = r#"sum(kcore_trace_lost_total{reason!="recursion-miss"})"#;
    Ok(Seen {
        holds: has(r#"kcore_trace_coverage_info{holds!="none"}"#)?,
        nodes: has(r#"kcore_trace_kernel_info{era="per-node"}"#)?,
        program_statistics: has("kcore_trace_program_runs_total")?,
        lost: prometheus.number(lost)?.unwrap_or(0.0),
        missing: has(r#"kcore_trace_hooks{state="missing"} > 0"#)?,
        asleep: prometheus
            .number("sum(kcore_trace_wait_sleep_seconds_total)")?
            .unwrap_or(0.0),
    })
}

/// Queries with where they are from: of a panel, any one has to have data, since which one does
/// depends on the form of histograms; of a table and of rules, each.
fn all_queries(prometheus: &Prometheus) -> Result<Vec<(String, Vec<String>)>> {
    let mut all = Vec::new();
    for board in boards::all() {
        for panel in board.rows.iter().flat_map(|row| &row.panels) {
            let name = format!("{}, {}", board.title, panel.title);
            let queries = panel.queries.iter();
            if panel.shape == super::grafana::Shape::Heatmap {
                all.push((name, queries.map(|query| query.expr.clone()).collect()));
            } else {
                let each = queries.map(|query| {
                    (
                        format!("{name}, {}", query.legend),
                        vec![query.expr.clone()],
                    )
                });
                all.extend(each);
            }
        }
        for variable in &board.variables {
            let query = variable.query.trim_start_matches("label_values(");
            let (series, label) = query.rsplit_once(", ").context("a query of label values")?;
            let label = label.trim_end_matches(')');
            let name = format!("{}, variable {}", board.title, variable.name);
            all.push((name, vec![format!("group by ({label}) ({series})")]));
        }
    }
    let rules = prometheus.api("rules", &[])?;
    let groups = rules["groups"].as_array().into_iter().flatten();
    for rule in groups.flat_map(|group| group["rules"].as_array().into_iter().flatten()) {
        let name = rule["name"].as_str().unwrap_or_default();
        ensure!(
            rule["health"] != "err",
            "rule {name}: {}",
            rule["lastError"]
        );
        let query = rule["query"].as_str().context("a rule has a query")?;
        all.push((format!("rule {name}"), vec![without_comparison(query)]));
    }
    Ok(all)
}

/// What an alert looks at, whether there is reason for an alarm or not: a comparison becomes a
/// number with `bool`.
fn without_comparison(query: &str) -> String {
    [" > ", " == ", " < "]
        .iter()
        .fold(query.to_owned(), |query, sign| {
            query.replace(sign, &format!("{sign}bool "))
        })
}

/// A query as Grafana would send it.
fn filled_in(query: &str, host: &str, prometheus: &Prometheus) -> Result<String> {
    let kernels = prometheus.query("kcore_trace_kernel_info", None)?;
    let release = kernels.first().map(|kernel| &kernel["metric"]["release"]);
    let release = release
        .and_then(Value::as_str)
        .context("a kernel has a release")?;
    Ok(query
        .replace("$__rate_interval", RATE_INTERVAL)
        .replace("[5m]", &format!("[{RANGE}]"))
        .replace("$__range", RANGE)
        .replace("$host", host)
        .replace("$baseline", release)
        .replace("$candidate", &escaped(release))
        .replace("$era", ".*")
        .replace("$kernel", ".*")
        .replace("$lock", ".*"))
}

/// A value of a variable that can have several, as Grafana puts it between the quotes of PromQL.
fn escaped(value: &str) -> String {
    let special = |c: char| r"\^$*+?.()|[]{}".contains(c);
    let escape = |c: char| {
        if special(c) {
            format!(r"\\{c}")
        } else {
            c.into()
        }
    };
    value.chars().map(escape).collect()
}

/// What Prometheus says, and what `report` says of the recording that the kill left.
fn agreement(prometheus: &Prometheus, exporter: &mut Recorder, tool: &Path) -> Result<Tally> {
    let begun = Instant::now();
    let before = prometheus.number("max(kcore_trace_measured_seconds_total)")?;
    let both = "min(kcore_trace_measured_seconds_total) == max(kcore_trace_measured_seconds_total)";
    let measured = loop {
        let now = prometheus.number(both)?;
        if now.is_some() && now != before {
            break now.context("it is some")?;
        }
        ensure!(begun.elapsed() < PATIENCE, "the counters do not move on");
        thread::sleep(Duration::from_millis(50));
    };
    let clock =
        prometheus.number("timestamp(kcore_trace_measured_seconds_total{instance=\"native\"})")?;
    let other =
        prometheus.number("timestamp(kcore_trace_measured_seconds_total{instance=\"classic\"})")?;
    let time = clock.into_iter().chain(other).fold(0.0, f64::max);
    exporter.kill()?;
    let mut report = exporter.privilege.command(tool).context("root")?;
    report.args([TOOL, "report", "--format", "json"]);
    report.arg(&exporter.recording);
    let report: Value = serde_json::from_str(&crate::command::output(&mut report)?)?;
    let recorded = report["recording"]["duration_ns"].as_u64().unwrap_or(0) as f64 / 1e9;
    ensure!(
        (recorded - measured).abs() < 1e-6,
        "the recording ends at {recorded} s, the last scrape at {measured} s"
    );
    let lost = report["loss"]["map_full"].as_u64().unwrap_or(0) as f64;
    let rows = report["locks"].as_array().into_iter().flatten();
    let mut tally = Tally::default();
    let mut farthest = 1.0f64;
    for row in rows.filter(|row| row["wait"]["count"].as_u64() > Some(0)) {
        let count = row["wait"]["count"].as_u64().context("a count")? as f64;
        let ask = |query: String| -> Result<f64> {
            let series = prometheus.query(&query, Some(time))?;
            series
                .first()
                .and_then(number)
                .with_context(|| format!("`{query}` has no data"))
        };
        let labels = ["lock", "mode", "intent", "op"]
            .map(|label| format!("{label}={}", row[label]))
            .join(",");
        for query in [
            format!(r#"histogram_count(kcore_trace_wait_seconds{{instance="native",{labels}}})"#),
            format!(r#"kcore_trace_wait_seconds_count{{instance="classic",{labels}}}"#),
            format!(r#"kcore_trace_contended_acquisitions_total{{instance="native",{labels}}}"#),
        ] {
            let seen = ask(query.clone())?;
            ensure!(seen == count, "`{query}` is {seen}, the report has {count}");
            tally.passed += 1;
        }
        let sum = row["wait"]["sum_ns"].as_u64().context("a sum")? as f64 / 1e9;
        let query =
            format!(r#"histogram_sum(kcore_trace_wait_seconds{{instance="native",{labels}}})"#);
        let seen = ask(query.clone())?;
        ensure!(
            (seen / sum - 1.0).abs() < 1e-9,
            "`{query}` is {seen}, the report has {sum}"
        );
        tally.passed += 1;
        for (q, field) in [(0.5, "p50_ns"), (0.9, "p90_ns"), (0.99, "p99_ns")] {
            // Asked for by the middle of the sample that the report shows: on the border between two
            // samples either is right. Of a lost sample only Prometheus knows that it was, so that the
            // report may show one that is as many further.
            let rank = (q * count).ceil();
            let ranks = [rank - lost, rank + lost];
            let queries = ranks.map(|rank| {
                let q = (rank.clamp(1.0, count) - 0.5) / count;
                format!(
                    r#"histogram_quantile({q}, kcore_trace_wait_seconds{{instance="native",{labels}}})"#
                )
            });
            let Some(ours) = row["wait"][field].as_u64() else {
                // All of its samples came before it had a histogram, and were counted as lost.
                ensure!(
                    lost >= count,
                    "{labels}: {count} waits, no {field}, and {lost} lost"
                );
                tally.skipped += 1;
                continue;
            };
            let ours = ours as f64 / 1e9;
            let [least, most] = &queries;
            let (least, most) = (ask(least.clone())? / ours, ask(most.clone())? / ours);
            ensure!(
                least <= *NEAR.end() && most >= *NEAR.start(),
                "{queries:?} are {least} and {most} times the report's {ours}"
            );
            // Of the nearest of those that it may be.
            let ratio = 1f64.clamp(least.min(most), most);
            farthest = farthest.max(ratio).max(1.0 / ratio);
            tally.passed += 1;
        }
    }
    ensure!(tally.passed > 0, "nobody waited; is the machine alive?");
    println!(
        "  Prometheus and report agree on {} numbers: counts exactly, percentiles within {:.1} %",
        tally.passed,
        (farthest - 1.0) * 100.0
    );
    if tally.skipped > 0 {
        let missing = tally.skipped;
        println!("  {missing} percentiles are missing: their samples came before a histogram");
    }
    Ok(tally)
}
