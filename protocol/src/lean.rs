//! Decoding that takes memory only for what is there. bincode sets aside a `String`'s announced length, and serde
//! up to a megabyte for a list's, before either looks whether the input has so much. Here a text is borrowed from
//! the input first, and a list grows as its items come. Every message type uses these instead of plain `String`
//! and `Vec`; `tests/hostile.rs` finds one that doesn't.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// A text, for `deserialize_with`.
pub(crate) fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    struct Text;

    impl Visitor<'_> for Text {
        type Value = String;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a text")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<String, E> {
            Ok(text.to_owned())
        }

        fn visit_string<E: Error>(self, text: String) -> Result<String, E> {
            Ok(text)
        }
    }

    deserializer.deserialize_str(Text)
}

/// A list of at most `max` items.
pub(crate) fn list_of<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
    max: usize,
) -> Result<Vec<T>, D::Error> {
    struct Items<T>(usize, PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for Items<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {} items", self.0)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
            let mut list = Vec::new();
            while let Some(item) = items.next_element()? {
                if list.len() == self.0 {
                    return Err(A::Error::invalid_length(list.len() + 1, &self));
                }
                list.push(item);
            }
            Ok(list)
        }
    }

    deserializer.deserialize_seq(Items(max, PhantomData))
}

/// A list, for `deserialize_with`.
pub(crate) fn list<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    list_of(deserializer, usize::MAX)
}

/// A list of texts, for `deserialize_with`.
pub(crate) fn texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(list::<D, Text>(deserializer)?.into_iter().map(|Text(text)| text).collect())
}

/// A list of pairs of texts, for `deserialize_with`.
pub(crate) fn pairs<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(String, String)>, D::Error> {
    let pairs = list::<D, (Text, Text)>(deserializer)?;
    Ok(pairs.into_iter().map(|(Text(key), Text(value))| (key, value)).collect())
}

/// A text inside a list or map.
#[derive(Deserialize)]
#[serde(transparent)]
pub(crate) struct Text(#[serde(deserialize_with = "text")] pub(crate) String);
