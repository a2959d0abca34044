//! A real Prometheus on loopback, and its API.
//!
//! In: the address of an exporter. Out: answers to queries. The exporter is scraped twice a second
//! as two hosts, `native` and `classic`, which differ in the form of histograms that is asked for;
//! so every query is tried on both. It ends when this is dropped.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::packages::Programs;

/// The hosts that it believes to see.
pub(crate) const HOSTS: [&str; 2] = ["native", "classic"];

/// Until it answers; it takes a second.
const PATIENCE: Duration = Duration::from_secs(30);

/// A Prometheus that runs.
pub(crate) struct Prometheus {
    child: Child,
    address: SocketAddr,
}

impl Prometheus {
    /// Starts it with the rules of this project, its data in `folder`.
    pub(crate) fn start(
        programs: &Programs,
        exporter: SocketAddr,
        rules: &Path,
        folder: &Path,
    ) -> Result<Self> {
        let config = folder.join("prometheus.yaml");
        fs::write(&config, configuration(exporter, rules))?;
        // Free a moment ago; nobody else on this machine asks for a certain port in this range.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let log = fs::File::create(folder.join("prometheus.log"))?;
        let mut command = Command::new(programs.prometheus());
        command
            .arg("--enable-feature=native-histograms")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.join("data").display()
            ))
            .arg(format!("--web.listen-address={address}"))
            .arg("--web.cors.origin=.*")
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let child = command.spawn().context("failed to start Prometheus")?;
        let mut prometheus = Self { child, address };
        prometheus.wait_until_ready(folder)?;
        Ok(prometheus)
    }

    fn wait_until_ready(&mut self, folder: &Path) -> Result<()> {
        let begun = Instant::now();
        while self.get("/-/ready", &[]).is_err() {
            let ended = self.child.try_wait()?;
            if ended.is_some() || begun.elapsed() > PATIENCE {
                let log = fs::read_to_string(folder.join("prometheus.log")).unwrap_or_default();
                bail!("Prometheus does not start:\n{}", log.trim_end());
            }
            thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    fn get(&self, path: &str, parameters: &[(&str, &str)]) -> Result<String> {
        get(&format!("http://{}{path}", self.address), parameters)
    }

    /// The `data` of an answer of the API.
    pub(crate) fn api(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Value> {
        let text = self.get(&format!("/api/v1/{path}"), parameters)?;
        let mut answer: Value = serde_json::from_str(&text)?;
        ensure!(
            answer["status"] == "success",
            "{}",
            answer["error"]
                .as_str()
                .unwrap_or("an error without a text")
        );
        Ok(answer["data"].take())
    }

    /// The series of an instant query, now or at a time.
    pub(crate) fn query(&self, query: &str, time: Option<f64>) -> Result<Vec<Value>> {
        let time = time.map(|time| format!("{time:.3}"));
        let mut parameters = vec![("query", query)];
        parameters.extend(time.as_deref().map(|time| ("time", time)));
        let mut data = self
            .api("query", &parameters)
            .with_context(|| format!("`{query}`"))?;
        match data["result"].take() {
            Value::Array(series) => Ok(series),
            other => bail!("`{query}`: not a list: {other}"),
        }
    }

    /// The number of a query that has one series.
    pub(crate) fn number(&self, query: &str) -> Result<Option<f64>> {
        Ok(self.query(query, None)?.first().and_then(number))
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It may have ended on its own.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The number of a series of an instant query.
pub(crate) fn number(series: &Value) -> Option<f64> {
    series["value"][1].as_str()?.parse().ok()
}

/// The body of a page, whatever its status.
pub(crate) fn get(url: &str, parameters: &[(&str, &str)]) -> Result<String> {
    let agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(PATIENCE))
        .proxy(None)
        .build()
        .new_agent();
    let request = agent.get(url).query_pairs(parameters.iter().copied());
    let mut response = request
        .call()
        .with_context(|| format!("failed to read {url}"))?;
    let text = response.body_mut().read_to_string()?;
    ensure!(response.status() != 503, "{url} is not ready: {text}");
    Ok(text)
}

fn configuration(exporter: SocketAddr, rules: &Path) -> String {
    let job = |host: &str, protocol: &str| {
        format!(
            r#"  - job_name: {host}
    scrape_protocols: [{protocol}]
    static_configs:
      - targets: ["{exporter}"]
    relabel_configs:
      - {{ target_label: job, replacement: kcore-trace }}
      - {{ target_label: instance, replacement: {host} }}
"#
        )
    };
    let [native, classic] = HOSTS;
    format!(
        "global: {{ scrape_interval: 500ms, evaluation_interval: 2s }}\nrule_files: [{}]\nscrape_configs:\n{}{}",
        rules.display(),
        job(native, "PrometheusProto"),
        job(classic, "OpenMetricsText1.0.0"),
    )
}
