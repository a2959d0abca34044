//! The words of the contract in files: a word is written as its name.
//!
//! Owns the serde form of [`Lock`], [`Kind`], [`Mode`], [`Intent`] and [`Op`], so that the
//! contract needs no dependency. Invariant: an unknown name is an error that names it.

use std::collections::BTreeMap;

use kcore_trace_ebpf::words::{Context, Destination, Intent, Kind, Lock, Mode, Op, Source};
use serde::de::Error;
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
    BTreeMap::<String, V>::deserialize(deserializer)?
        .into_iter()
        .map(|(name, value)| Ok((parse(&name)?, value)))
        .collect()
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
        deserialize_map::<Lock, String, D>(deserializer)?
            .into_iter()
            .map(|(lock, kind)| Ok((lock, parse(&kind)?)))
            .collect()
    }
}

/// A word that may be missing, in files.
pub mod maybe {
    use super::*;

    pub use super::optional as serialize;

    pub fn deserialize<'de, W: Word, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<W>, D::Error> {
        let name = Option::<String>::deserialize(deserializer)?;
        name.map(|name| parse(&name)).transpose()
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
        let names = Vec::<String>::deserialize(deserializer)?;
        names.iter().map(|name| parse(name)).collect()
    }
}

/// Cells as a list of pairs: their key is no string.
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
        K: Deserialize<'de> + Ord,
        V: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        Ok(Vec::<(K, V)>::deserialize(deserializer)?
            .into_iter()
            .collect())
    }
}
