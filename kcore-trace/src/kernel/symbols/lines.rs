//! Lines of /proc/kallsyms.
//!
//! In: text, however it is read. Out: each [`Line`] of it, read where it lies. What is no line of a symbol
//! is passed over.

use std::io::{self, BufRead};
use std::ops::ControlFlow;

/// Passes lines on, until it is told that they are enough.
pub(super) fn each_line(
    mut lines: impl BufRead,
    mut each: impl FnMut(Line<'_>) -> ControlFlow<()>,
) -> io::Result<()> {
    let mut pass_on = |line: &[u8]| Line::parse(line).map_or(ControlFlow::Continue(()), &mut each);
    // A line of which more is to be read.
    let mut begun = Vec::new();
    loop {
        let buffer = lines.fill_buf()?;
        let length = buffer.len();
        if length == 0 {
            let _enough = pass_on(&begun);
            return Ok(());
        }
        let mut start = 0;
        for end in memchr::memchr_iter(b'\n', buffer) {
            let mut line = &buffer[start..end];
            if !begun.is_empty() {
                begun.extend_from_slice(line);
                line = &begun;
            }
            if pass_on(line).is_break() {
                return Ok(());
            }
            begun.clear();
            start = end + 1;
        }
        begun.extend_from_slice(&buffer[start..]);
        lines.consume(length);
    }
}

/// One line, as far as it is of use.
pub(super) struct Line<'a> {
    pub(super) address: u64,
    pub(super) name: &'a [u8],
    /// The module between brackets; nothing in the core kernel.
    pub(super) module: Option<&'a [u8]>,
}

impl<'a> Line<'a> {
    /// Without its end. The address has as many digits as a word of the kernel can have.
    fn parse(line: &'a [u8]) -> Option<Self> {
        let (digits, rest) = line.split_first_chunk::<16>()?;
        let &[b' ', _letter, b' ', ref rest @ ..] = rest else {
            return None;
        };
        let has_module = rest.ends_with(b"]");
        let end = has_module.then(|| memchr::memchr(b'\t', rest)).flatten();
        Some(Self {
            address: hexadecimal(digits)?,
            name: &rest[..end.unwrap_or(rest.len())],
            module: end.map(|end| rest[end..].trim_ascii()),
        })
    }
}

fn hexadecimal(digits: &[u8; 16]) -> Option<u64> {
    let are_digits = |all, digit: &u8| all & digit.is_ascii_hexdigit();
    digits.iter().fold(true, are_digits).then(|| {
        let both = u128::from_be_bytes(*digits);
        let [high, low] = [both >> 64, both].map(|half| eight_digits(half as u64));
        high << 32 | low
    })
}

/// The number of eight digits, the highest byte first: all at once, since a kernel has them by the million.
fn eight_digits(digits: u64) -> u64 {
    // Letters have bit 6 and count from one, where decimal digits count from zero.
    let digits = (digits & 0x0f0f_0f0f_0f0f_0f0f) + (digits >> 6 & 0x0101_0101_0101_0101) * 9;
    let pairs = (digits | digits >> 4) & 0x00ff_00ff_00ff_00ff;
    let quarters = (pairs | pairs >> 8) & 0x0000_ffff_0000_ffff;
    (quarters | quarters >> 16) & 0xffff_ffff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_make_the_number_that_they_are() {
        for number in [0, 1, 0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210, u64::MAX] {
            for text in [format!("{number:016x}"), format!("{number:016X}")] {
                let digits = text.as_bytes().as_array().unwrap();
                assert_eq!(hexadecimal(digits), Some(number));
            }
        }
        assert_eq!(hexadecimal(b"0123456789abcdeg"), None);
    }
}
