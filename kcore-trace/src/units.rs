//! Numbers as a person reads them: durations, counts, shares and rates.
//!
//! Owns the one way in which each is written. A duration has three significant digits and is at
//! most [`DURATION_WIDTH`] characters wide, so that columns stay straight. Nothing here is for a
//! machine: JSON and CSV carry plain nanoseconds.

/// The most characters that [`duration`] writes below a thousand seconds.
pub const DURATION_WIDTH: usize = 7;

/// Units of time, each a thousand of the one before.
const UNITS: [&str; 4] = ["ns", "µs", "ms", "s"];

/// A duration in nanoseconds: `417 ns`, `1.83 µs`, `12.4 ms`, `2.10 s`, `1,234 s`.
pub fn duration(ns: u64) -> String {
    if ns < 1000 {
        return format!("{ns} ns");
    }
    let mut value = ns as f64;
    for unit in UNITS {
        // From here up, three digits round to the next unit.
        if value < 999.5 {
            return format!("{} {unit}", three_digits(value));
        }
        value /= 1000.0;
    }
    format!("{} s", count((ns as f64 / 1e9).round() as u64))
}

/// How long something took that a person waited for: `9.87 s`, `12 min 05 s`, `24 h 00 min`.
pub fn elapsed(ns: u64) -> String {
    let seconds = (ns as f64 / 1e9).round() as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, _) => duration(ns),
        (0, minutes, seconds) => format!("{minutes} min {seconds:02} s"),
        (hours, minutes, _) => format!("{hours} h {minutes:02} min"),
    }
}

/// A number with a comma between thousands: `1,234,567`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number of bytes: `512 B`, `4.00 KiB`, `1.25 GiB`.
pub fn bytes(bytes: u64) -> String {
    const STEP: f64 = 1024.0;
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / STEP;
    for unit in ["KiB", "MiB", "GiB"] {
        if value < 999.5 {
            return format!("{} {unit}", three_digits(value));
        }
        value /= STEP;
    }
    format!("{} TiB", number(value))
}

/// A number and its noun, which gets an `s` unless there is one: `1 wait`, `2,000 waits`.
pub fn counted(number: u64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", count(number))
}

/// A part of a whole: `12.3 %`, `0.05 %`, `<0.01 %`; `0 %` and `100 %` only where that is exact.
pub fn share(part: u64, whole: u64) -> String {
    if part == 0 || whole == 0 {
        return "0 %".into();
    }
    if part >= whole {
        return format!(
            "{} %",
            count((100.0 * part as f64 / whole as f64).round() as u64)
        );
    }
    match 100.0 * part as f64 / whole as f64 {
        percent if percent < 0.01 => "<0.01 %".into(),
        percent if percent >= 99.95 => ">99.9 %".into(),
        percent if percent < 1.0 => format!("{percent:.2} %"),
        percent => format!("{percent:.1} %"),
    }
}

/// A part of one, written as [`share`] writes it.
pub fn fraction(part: f64) -> String {
    const WHOLE: u64 = 1_000_000_000;
    share((part * WHOLE as f64).round() as u64, WHOLE)
}

/// A number that need not be whole: `3.00`, `0.25`, `1,234`, `<0.01`.
pub fn number(value: f64) -> String {
    if value >= 999.5 {
        count(value.round() as u64)
    } else if value > 0.0 && value < 0.005 {
        "<0.01".into()
    } else {
        three_digits(value)
    }
}

/// A change of a part of what was: `+50 %`, `−3.1 %`, and from ten times as much on `×12.5`.
pub fn change(relative: f64) -> String {
    if relative >= 9.0 {
        return format!("×{}", number(1.0 + relative));
    }
    format!("{} %", percents(relative))
}

/// A number of percents with its sign, two digits of it: `+50`, `−3.1`, `+0.0`.
pub fn percents(relative: f64) -> String {
    let sign = if relative < 0.0 { '−' } else { '+' };
    match (100.0 * relative).abs() {
        percent if percent < 9.95 => format!("{sign}{percent:.1}"),
        percent => format!("{sign}{}", count(percent.round() as u64)),
    }
}

/// How often something happened: `3.20/s`, `415/s`, `1,234,567/s`.
pub fn rate(number: u64, ns: u64) -> Option<String> {
    if ns == 0 {
        return None;
    }
    let each_second = number as f64 * 1e9 / ns as f64;
    Some(if each_second < 999.5 {
        format!("{}/s", three_digits(each_second))
    } else {
        format!("{}/s", count(each_second.round() as u64))
    })
}

/// Three significant digits of a number below 999.5; the rounded one decides how many stand before
/// the point.
fn three_digits(value: f64) -> String {
    if value < 9.995 {
        format!("{value:.2}")
    } else if value < 99.95 {
        format!("{value:.1}")
    } else {
        format!("{value:.0}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bytes_have_three_digits_and_the_unit_that_fits() {
        for (number, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (4096, "4.00 KiB"),
            (1_572_864, "1.50 MiB"),
            (5 << 40, "5.00 TiB"),
        ] {
            assert_eq!(bytes(number), text);
        }
    }

    #[test]
    fn a_duration_has_three_digits_and_the_unit_that_fits() {
        for (ns, text) in [
            (0, "0 ns"),
            (7, "7 ns"),
            (417, "417 ns"),
            (999, "999 ns"),
            (1_000, "1.00 µs"),
            (1_834, "1.83 µs"),
            (9_994, "9.99 µs"),
            (9_995, "10.0 µs"),
            (12_449_000, "12.4 ms"),
            (99_950, "100 µs"),
            (999_499, "999 µs"),
            (999_500, "1.00 ms"),
            (2_100_000_000, "2.10 s"),
            (68_000_000_000, "68.0 s"),
            (999_500_000_000, "1,000 s"),
            (1_234_000_000_000, "1,234 s"),
        ] {
            assert_eq!(duration(ns), text);
        }
    }

    #[test]
    fn a_long_measurement_is_told_in_minutes_and_hours() {
        for (ns, text) in [
            (10_000_000_000, "10.0 s"),
            (59_400_000_000, "59.4 s"),
            (59_600_000_000, "1 min 00 s"),
            (725_000_000_000, "12 min 05 s"),
            (86_400_000_000_000, "24 h 00 min"),
        ] {
            assert_eq!(elapsed(ns), text);
        }
    }

    #[test]
    fn a_change_has_a_sign_and_becomes_a_factor_when_it_is_large() {
        for (relative, text) in [
            (0.0, "+0.0 %"),
            (0.5, "+50 %"),
            (-0.031, "−3.1 %"),
            (-0.999, "−100 %"),
            (8.99, "+899 %"),
            (9.0, "×10.0"),
            (11.5, "×12.5"),
            (2_000.0, "×2,001"),
        ] {
            assert_eq!(change(relative), text);
        }
    }

    #[test]
    fn a_number_that_is_not_whole_has_three_digits() {
        let texts = [0.0, 0.001, 0.25, 3.0, 41.27, 1_234.5].map(number);
        assert_eq!(texts, ["0.00", "<0.01", "0.25", "3.00", "41.3", "1,235"]);
    }

    #[test]
    fn thousands_are_set_apart() {
        let texts = [0, 12, 999, 1_000, 1_234_567].map(count);
        assert_eq!(texts, ["0", "12", "999", "1,000", "1,234,567"]);
        assert_eq!(
            [1, 2].map(|number| counted(number, "wait")),
            ["1 wait", "2 waits"]
        );
    }

    #[test]
    fn a_share_is_nothing_or_all_only_where_that_is_exact() {
        for (part, whole, text) in [
            (0, 10, "0 %"),
            (0, 0, "0 %"),
            (10, 10, "100 %"),
            (1, 1_000_000, "<0.01 %"),
            (999_999, 1_000_000, ">99.9 %"),
            (5, 1_000, "0.50 %"),
            (123, 1_000, "12.3 %"),
        ] {
            assert_eq!(share(part, whole), text);
        }
    }

    #[test]
    fn a_rate_needs_a_time() {
        assert_eq!(rate(5, 0), None);
        assert_eq!(rate(32, 10_000_000_000).unwrap(), "3.20/s");
        assert_eq!(rate(9_996, 10_000_000_000).unwrap(), "1,000/s");
    }

    proptest! {
        #[test]
        fn no_duration_breaks_its_column(ns in 0u64..999_500_000_000) {
            prop_assert!(duration(ns).chars().count() <= DURATION_WIDTH);
        }

        #[test]
        fn no_share_breaks_its_column(part in 0u64..=1_000_000) {
            prop_assert!(share(part, 1_000_000).len() <= ">99.9 %".len());
        }
    }
}
