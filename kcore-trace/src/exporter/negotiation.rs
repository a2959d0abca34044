//! Which format a scraper prefers, by its Accept header (RFC 9110, 12.5.1).
//!
//! Pure. Of equal preference is the format that says most; whoever asks for none of them gets the
//! text that a person can read.

use super::exposition::Format;

/// The format for a list of media ranges.
pub(crate) fn choose(accept: &str) -> Format {
    let offers = [Format::Protobuf, Format::OpenMetrics, Format::Text];
    let mut best = (0.0, Format::Text);
    for format in offers {
        let quality = accept
            .split(',')
            .filter(|range| asks_for(range, format))
            .map(quality)
            .fold(0.0, f64::max);
        if quality > best.0 {
            best = (quality, format);
        }
    }
    best.1
}

fn asks_for(range: &str, format: Format) -> bool {
    let mut parts = range.split(';').map(str::trim);
    let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
    match format {
        Format::Protobuf => {
            let has = |wanted: &str| {
                let compact = |part: &str| part.replace([' ', '"'], "");
                range.split(';').any(|part| compact(part) == wanted)
            };
            kind == "application/vnd.google.protobuf"
                && has("proto=io.prometheus.client.MetricFamily")
                && has("encoding=delimited")
        }
        Format::OpenMetrics => kind == "application/openmetrics-text",
        Format::Text => ["text/plain", "text/*", "*/*"].contains(&kind.as_str()),
    }
}

/// The weight of a range, which is one where none is written.
fn quality(range: &str) -> f64 {
    let parts = range.split(';').map(str::trim);
    let weight = parts.filter_map(|part| part.strip_prefix("q=")).next_back();
    let weight = weight.map_or(Ok(1.0), |weight| weight.parse::<f64>());
    weight
        .ok()
        .filter(|weight| (0.0..=1.0).contains(weight))
        .unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Prometheus 2.53 sends.
    const PLAIN: &str = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
    /// What it sends where native histograms are on.
    const NATIVE: &str = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";

    #[test]
    fn prometheus_gets_openmetrics_and_native_histograms_where_it_asks_for_them() {
        assert_eq!(choose(PLAIN), Format::OpenMetrics);
        assert_eq!(choose(NATIVE), Format::Protobuf);
    }

    #[test]
    fn a_browser_and_a_scraper_that_says_nothing_get_text() {
        for accept in ["", "*/*", "text/html,*/*;q=0.8", "image/png"] {
            assert_eq!(choose(accept), Format::Text, "{accept}");
        }
    }

    #[test]
    fn another_protobuf_and_a_weight_of_zero_are_not_asked_for() {
        for accept in [
            "application/vnd.google.protobuf",
            "application/vnd.google.protobuf;proto=other.Message;encoding=delimited",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;q=a",
        ] {
            assert_eq!(choose(accept), Format::Text, "{accept}");
        }
    }
}
