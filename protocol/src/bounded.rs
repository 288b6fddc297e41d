//! Lists and texts with a length that no peer can exceed: refused while they are decoded.

use std::fmt;
use std::ops::Deref;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::lean;

/// A list of at most `MAX` items.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(transparent)]
pub struct Bounded<T, const MAX: usize>(Vec<T>);

/// A list or text was longer than its type allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{length} is over the limit of {max}")]
pub struct TooLong {
    /// How long it was.
    pub length: usize,
    /// How long it may be.
    pub max: usize,
}

impl<T, const MAX: usize> Bounded<T, MAX> {
    /// The items as a plain list.
    #[must_use]
    pub fn into_vec(self) -> Vec<T> {
        self.0
    }
}

impl<T, const MAX: usize> Deref for Bounded<T, MAX> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T, const MAX: usize> TryFrom<Vec<T>> for Bounded<T, MAX> {
    type Error = TooLong;

    fn try_from(items: Vec<T>) -> Result<Self, TooLong> {
        let length = items.len();
        if length <= MAX { Ok(Self(items)) } else { Err(TooLong { length, max: MAX }) }
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for Bounded<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        lean::list_of(deserializer, MAX).map(Self)
    }
}

/// A text of at most `MAX` bytes.
#[derive(Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct BoundedText<const MAX: usize>(String);

impl<const MAX: usize> BoundedText<MAX> {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<const MAX: usize> TryFrom<String> for BoundedText<MAX> {
    type Error = TooLong;

    fn try_from(text: String) -> Result<Self, TooLong> {
        let length = text.len();
        if length <= MAX { Ok(Self(text)) } else { Err(TooLong { length, max: MAX }) }
    }
}

impl<const MAX: usize> TryFrom<&str> for BoundedText<MAX> {
    type Error = TooLong;

    fn try_from(text: &str) -> Result<Self, TooLong> {
        text.to_owned().try_into()
    }
}

impl<'de, const MAX: usize> Deserialize<'de> for BoundedText<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        lean::text(deserializer)?.try_into().map_err(D::Error::custom)
    }
}

impl<const MAX: usize> fmt::Debug for BoundedText<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl<const MAX: usize> fmt::Display for BoundedText<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    #[test]
    fn what_is_over_its_bound_is_refused_where_it_is_made_and_where_it_is_read() {
        assert!(Bounded::<u8, 3>::try_from(vec![1, 2, 3]).is_ok());
        assert_eq!(Bounded::<u8, 3>::try_from(vec![1; 4]), Err(TooLong { length: 4, max: 3 }));
        assert!(BoundedText::<3>::try_from("äa").is_ok());
        assert!(BoundedText::<3>::try_from("ää").is_err());
        let four = codec::encode(&vec![1u8; 4]).unwrap();
        assert_eq!(codec::decode::<Bounded<u8, 4>>(&four).unwrap().into_vec(), [1; 4]);
        assert!(codec::decode::<Bounded<u8, 3>>(&four).is_err());
        assert!(codec::decode::<BoundedText<3>>(&codec::encode(&"four").unwrap()).is_err());
    }
}
