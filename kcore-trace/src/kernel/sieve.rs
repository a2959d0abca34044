//! Telling at a glance that a name is none of those that are wanted: of a hundred thousand names of a
//! kernel some hundred are.
//!
//! In: the wanted names. Out: a table in which the beginning of a name is looked up by its hash, here or by a
//! program. Invariant: more may pass than what is wanted, never less.

/// Places of the table: some hundred names leave nearly all of them empty.
pub(super) const PLACES: usize = 1 << PLACE_BITS;
pub(super) const PLACE_BITS: u32 = 12;
/// An odd number without pattern: the golden ratio's part, as is usual for hashes by multiplication.
pub(super) const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
/// Where the part of a name begins that a compiler added.
pub(super) const SUFFIX: u8 = b'.';

/// The table: a place is 1 if a wanted name has it.
pub(super) struct Sieve([u8; PLACES]);

impl Sieve {
    pub(super) fn new<'w>(wanted: impl IntoIterator<Item = &'w [u8]>) -> Self {
        let mut places = [0; PLACES];
        for name in wanted {
            places[place(first_word(name))] = 1;
        }
        Self(places)
    }

    pub(super) fn places(&self) -> &[u8; PLACES] {
        &self.0
    }

    /// Whether a name may be wanted, by its first eight bytes and whatever follows a shorter one and the
    /// zero behind it.
    pub(super) fn passes(&self, first: u64) -> bool {
        self.0[place(first)] != 0
    }
}

/// The first eight bytes of a name as they lie in memory, the first of them lowest; zeros behind a shorter
/// one.
pub(super) fn first_word(name: &[u8]) -> u64 {
    name.first_chunk().map_or_else(
        || {
            let bytes = name.iter().rev();
            bytes.fold(0, |word, byte| word << 8 | u64::from(*byte))
        },
        |whole| u64::from_le_bytes(*whole),
    )
}

fn place(first: u64) -> usize {
    (plain(first).wrapping_mul(MULTIPLIER) >> (64 - PLACE_BITS)) as usize
}

/// The same byte in each of the eight of a word.
pub(super) const fn each_byte(byte: u8) -> u64 {
    u64::from_ne_bytes([byte; 8])
}

/// Those bytes that stand before a zero or a suffix. Of a word less one in each byte, the lowest byte that
/// borrowed was zero.
fn plain(first: u64) -> u64 {
    let borrowed = |word: u64| word.wrapping_sub(each_byte(1)) & !word;
    let ends = borrowed(first) | borrowed(first ^ each_byte(SUFFIX));
    let ends = ends & each_byte(1 << 7);
    // Only the lowest bit, which is the highest of its byte; and all bits below that byte.
    let lowest = ends & ends.wrapping_neg();
    first & (lowest >> 7).wrapping_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_ends_before_a_zero_and_before_a_suffix() {
        for (bytes, name) in [
            (b"vfree\0\x01.", &b"vfree"[..]),
            (b"vfree.pa", b"vfree"),
            (b"vread_it", b"vread_it"),
            (b"a\0\xff\x2f\x2e\x01\0\0", b"a"),
            (b"\0\0\0\0\0\0\0\0", b""),
            (b"\x01\x2d\x2f\x80\xff.\0\0", b"\x01\x2d\x2f\x80\xff"),
        ] {
            assert_eq!(plain(u64::from_le_bytes(*bytes)), first_word(name));
        }
    }

    #[test]
    fn what_is_wanted_passes_whatever_stands_behind_it() {
        let wanted = [&b"vread"[..], b"vmap_area_lock", b"_end"];
        let sieve = Sieve::new(wanted);
        for name in [
            &b"vread\0zz"[..],
            b"vread.isra.0",
            b"vmap_area_lock",
            b"_end\0xyz",
        ] {
            assert!(sieve.passes(first_word(name)));
        }
        let others = (0..4096u64).filter(|&word| sieve.passes(word << 16 | 0x7a7a));
        assert!(others.count() < 40);
    }
}
