//! The words of the contract in files: a word is written as its name.
//!
//! Owns the serde form of [`Lock`], [`Kind`], [`Mode`], [`Intent`] and [`Op`], so that the
//! contract needs no dependency, and that of the maps and lists that are long. Invariant: an unknown
//! name is an error that names it; and what is read takes no more memory than what may be there,
//! however often a file repeats it.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use kcore_trace_ebpf::words::{Context, Destination, Intent, Kind, Lock, Mode, Op, Source};
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::model::{Copies, Nodes, OpCell};

/// A word that has a name.
pub trait Word: Copy + Ord {
    fn word(self) -> &'static str;
    fn parse(name: &str) -> Option<Self>;
}

macro_rules! word {
    ($($name:ident),+) => {$(
        impl Word for $name {
            fn word(self) -> &'static str {
                self.name()
            }
            fn parse(name: &str) -> Option<Self> {
                Self::from_name(name)
            }
        }
    )+};
}

word!(Lock, Kind, Mode, Intent, Op, Source, Destination, Context);

pub fn serialize<W: Word, S: Serializer>(word: &W, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(word.word())
}

/// A word that may be missing, which is null then.
pub fn optional<W: Word, S: Serializer>(
    word: &Option<W>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    word.map(W::word).serialize(serializer)
}

pub fn deserialize<'de, W: Word, D: Deserializer<'de>>(deserializer: D) -> Result<W, D::Error> {
    parse(&String::deserialize(deserializer)?)
}

fn parse<W: Word, E: Error>(name: &str) -> Result<W, E> {
    W::parse(name).ok_or_else(|| E::custom(format!("unknown word `{name}`")))
}

/// A word inside something else.
#[derive(Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(bound = "W: Word", transparent)]
struct Named<W: Word>(#[serde(deserialize_with = "deserialize")] W);

/// A map from a word, as a map from its name.
fn serialize_map<W: Word, V: Serialize, S: Serializer>(
    map: &BTreeMap<W, V>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(map.iter().map(|(word, value)| (word.word(), value)))
}

fn deserialize_map<'de, W: Word, V: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<W, V>, D::Error> {
    let map = BTreeMap::<Named<W>, V>::deserialize(deserializer)?;
    Ok(map
        .into_iter()
        .map(|(word, value)| (word.0, value))
        .collect())
}

/// Modules for the maps of the model that go from a word to a value.
macro_rules! maps {
    ($($module:ident: $word:ident => $value:ident,)+) => {$(
        pub mod $module {
            use super::*;

            pub fn serialize<S: Serializer>(
                map: &BTreeMap<$word, $value>,
                serializer: S,
            ) -> Result<S::Ok, S::Error> {
                serialize_map(map, serializer)
            }

            pub fn deserialize<'de, D: Deserializer<'de>>(
                deserializer: D,
            ) -> Result<BTreeMap<$word, $value>, D::Error> {
                deserialize_map(deserializer)
            }
        }
    )+};
}

maps! {
    op_map: Op => OpCell,
    node_map: Lock => Nodes,
    copies_map: Destination => Copies,
}

pub mod kind_map {
    use super::*;

    pub fn serialize<S: Serializer>(
        map: &BTreeMap<Lock, Kind>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_map(map.iter().map(|(lock, kind)| (lock.name(), kind.name())))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<Lock, Kind>, D::Error> {
        let map = deserialize_map::<Lock, Named<Kind>, D>(deserializer)?;
        Ok(map.into_iter().map(|(lock, kind)| (lock, kind.0)).collect())
    }
}

/// A word that may be missing, in files.
pub mod maybe {
    use super::*;

    pub use super::optional as serialize;

    pub fn deserialize<'de, W: Word, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<W>, D::Error> {
        let word = Option::<Named<W>>::deserialize(deserializer)?;
        Ok(word.map(|word| word.0))
    }
}

pub mod list {
    use super::*;

    pub fn serialize<W: Word, S: Serializer>(
        words: &[W],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(words.iter().map(|word| word.word()))
    }

    pub fn deserialize<'de, W: Word, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<W>, D::Error> {
        let words = Vec::<Named<W>>::deserialize(deserializer)?;
        Ok(words.into_iter().map(|word| word.0).collect())
    }
}

/// What cells are kept under.
pub trait Key: Ord {
    /// How many there may be.
    const MOST: usize;
}

/// Cells as a list of pairs: their key is no string. Of a key that comes twice the last is kept.
pub mod pairs {
    use super::*;

    pub fn serialize<K: Serialize, V: Serialize, S: Serializer>(
        map: &BTreeMap<K, V>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map)
    }

    pub fn deserialize<'de, K, V, D>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
    where
        K: Key + Deserialize<'de>,
        V: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        deserializer.deserialize_seq(Pairs(PhantomData))
    }

    struct Pairs<K, V>(PhantomData<(K, V)>);

    impl<'de, K, V> Visitor<'de> for Pairs<K, V>
    where
        K: Key + Deserialize<'de>,
        V: Deserialize<'de>,
    {
        type Value = BTreeMap<K, V>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of pairs")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut map = BTreeMap::new();
            while let Some((key, value)) = list.next_element()? {
                map.insert(key, value);
                if map.len() > K::MOST {
                    return Err(A::Error::custom(format!("more than {} rows", K::MOST)));
                }
            }
            Ok(map)
        }
    }
}

/// A list of at most so many.
pub fn at_most<'de, const MOST: usize, T, D>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    deserializer.deserialize_seq(AtMost::<MOST, T>(PhantomData))
}

struct AtMost<const MOST: usize, T>(PhantomData<T>);

impl<'de, const MOST: usize, T: Deserialize<'de>> Visitor<'de> for AtMost<MOST, T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {MOST}")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            if items.len() == MOST {
                return Err(A::Error::custom(format!("more than {MOST} in a list")));
            }
            items.push(item);
        }
        Ok(items)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        static ALIVE: Cell<usize> = const { Cell::new(0) };
        static MOST_ALIVE: Cell<usize> = const { Cell::new(0) };
    }

    /// A value that knows how many there are.
    struct Counted;

    impl<'de> Deserialize<'de> for Counted {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            u8::deserialize(deserializer)?;
            ALIVE.set(ALIVE.get() + 1);
            MOST_ALIVE.set(MOST_ALIVE.get().max(ALIVE.get()));
            Ok(Self)
        }
    }

    impl Drop for Counted {
        fn drop(&mut self) {
            ALIVE.set(ALIVE.get() - 1);
        }
    }

    impl Key for u8 {
        const MOST: usize = 3;
    }

    #[test]
    fn a_key_that_is_repeated_costs_no_memory() {
        let json = format!("[{}[1, 7]]", "[1, 5], ".repeat(1000));
        let rows: BTreeMap<u8, Counted> =
            pairs::deserialize(&mut serde_json::Deserializer::from_str(&json)).unwrap();
        assert_eq!((rows.len(), ALIVE.get(), MOST_ALIVE.get()), (1, 1, 2));
        let json = format!("{{{}\"vread\": 7}}", "\"vread\": 5, ".repeat(1000));
        let rows: BTreeMap<Op, u8> =
            deserialize_map(&mut serde_json::Deserializer::from_str(&json)).unwrap();
        assert_eq!(rows, BTreeMap::from([(Op::Vread, 7)]));
    }
}
