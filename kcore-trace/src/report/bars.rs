//! Drawing a distribution with block characters.
//!
//! One line for each power of two, its bar as long as its share of the largest, which is as long as the
//! terminal has room for. Invariant: a line with samples shows at least the thinnest bar.

use crate::distribution::Bucket;
use crate::units;

/// Cells of the longest bar, and of one on a narrow terminal.
const WIDTH: usize = 50;
const NARROWEST: usize = 5;
/// Cells of everything before a bar, but for its count.
const BEFORE: usize = 2 + (2 * units::DURATION_WIDTH + 3) + 2 + 2;
/// Blocks that fill a cell from the left, by eighths.
const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];

/// The buckets as lines, from short to long.
pub(super) fn draw(buckets: &[Bucket], columns: Option<u16>) -> String {
    let most = buckets.iter().map(|bucket| bucket.count).max().unwrap_or(0);
    let counts: Vec<_> = buckets
        .iter()
        .map(|bucket| units::count(bucket.count))
        .collect();
    let count_width = counts.iter().map(String::len).max().unwrap_or(0);
    let width = columns.map_or(WIDTH, |columns| {
        let room = usize::from(columns).saturating_sub(BEFORE + count_width);
        room.clamp(NARROWEST, WIDTH)
    });
    let lines: Vec<_> = buckets
        .iter()
        .zip(counts)
        .map(|(bucket, count)| {
            let (range, bar) = (range(bucket), bar(bucket.count, most, width));
            format!("  {range}  {count:>count_width$}  {bar}")
                .trim_end()
                .to_owned()
        })
        .collect();
    lines.join("\n")
}

fn range(bucket: &Bucket) -> String {
    let lower = units::duration(bucket.lower_ns);
    let upper = units::duration(bucket.upper_ns + 1);
    let width = units::DURATION_WIDTH;
    format!("{lower:>width$} – {upper:>width$}")
}

fn bar(count: u64, most: u64, width: usize) -> String {
    if count == 0 {
        return String::new();
    }
    let eighths = (u128::from(count) * (width as u128 * 8)).div_ceil(u128::from(most)) as usize;
    "█".repeat(eighths / 8) + EIGHTHS[eighths % 8]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_their_share_and_never_vanish() {
        assert_eq!(bar(0, 1000, WIDTH), "");
        assert_eq!(bar(1, 1_000_000, WIDTH), "▏");
        assert_eq!(bar(500, 1000, WIDTH).chars().count(), WIDTH / 2);
        assert_eq!(bar(1000, 1000, WIDTH), "█".repeat(WIDTH));
        assert_eq!(bar(u64::MAX, u64::MAX, WIDTH), "█".repeat(WIDTH));
    }

    #[test]
    fn ranges_and_counts_stand_in_columns() {
        let bucket = |lower_ns: u64, count| Bucket {
            lower_ns,
            upper_ns: 2 * lower_ns - 1,
            count,
        };
        let drawn = draw(
            &[bucket(512, 3), bucket(1024, 0), bucket(2048, 1_200)],
            None,
        );
        let expected = format!(
            "   512 ns – 1.02 µs      3  ▏\n  1.02 µs – 2.05 µs      0\n  2.05 µs – 4.10 µs  1,200  {}",
            "█".repeat(WIDTH)
        );
        assert_eq!(drawn, expected);
    }
}
