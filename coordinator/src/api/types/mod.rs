//! The bodies of the REST API, for the server, its OpenAPI document and the CLI. They are shapes of their own: what
//! the core or the store renames or restructures doesn't change them. Fields are added, never changed.

mod admin;
mod logs;
mod runs;
pub mod schema;

pub use admin::{Agent, JoinTokenMade, NewJoinToken, NewToken, Status, Token, TokenMade};
pub use logs::{Artifact, ArtifactEvent, AttemptLog, EndEvent, LogEntry, StateEvent};
pub use runs::{Attempt, JobRun, NewPackRun, PackContent, PackRun, PackVersion, Retry};

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

pub use crate::core::change::{AgentState, Role};

/// A page of a list.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// The items, in the list's order.
    pub items: Vec<T>,
    /// What to ask for the next page with; `null` when there is none.
    pub next_cursor: Option<String>,
}

/// What went wrong (RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// What kind of problem it is; the same for ever.
    #[serde(rename = "type")]
    #[schema(value_type = schema::ProblemType)]
    pub kind: String,
    /// The kind in words.
    pub title: String,
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    pub status: u16,
    /// What failed, on what, and what to do.
    pub detail: String,
    /// The faults of a pack file, where they lie.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<Fault>,
}

/// One fault of a pack file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Fault {
    /// The line, from 1.
    pub line: Option<u32>,
    /// The column, from 1.
    pub column: Option<u32>,
    /// The class of the fault.
    pub kind: String,
    /// What is wrong.
    pub message: String,
    /// What was probably meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suggestion: Option<String>,
}

/// A map whose keys differ. JSON lets one come twice, and whoever sent it would not know which was taken.
fn unique<'de, D, V>(deserializer: D) -> Result<BTreeMap<String, V>, D::Error>
where
    D: Deserializer<'de>,
    V: Deserialize<'de>,
{
    struct Unique<V>(PhantomData<V>);

    impl<'de, V: Deserialize<'de>> Visitor<'de> for Unique<V> {
        type Value = BTreeMap<String, V>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Self::Value, A::Error> {
            let mut map = BTreeMap::new();
            while let Some((key, value)) = access.next_entry::<String, V>()? {
                if map.insert(key, value).is_some() {
                    return Err(A::Error::custom("a key comes twice"));
                }
            }
            Ok(map)
        }
    }

    deserializer.deserialize_map(Unique(PhantomData))
}

/// A whole number, or none. JSON has one kind of numbers: `3.0` is 3.
fn whole<'de, D: Deserializer<'de>, T: TryFrom<u64>>(deserializer: D) -> Result<Option<T>, D::Error> {
    let Some(number) = Option::<serde_json::Number>::deserialize(deserializer)? else { return Ok(None) };
    // Above 2^53 a float no longer says which number it is.
    let is_whole = |float: &f64| (0.0..=9_007_199_254_740_992.0).contains(float) && float.fract() == 0.0;
    let whole = number.as_u64().or_else(|| number.as_f64().filter(is_whole).map(|float| float as u64));
    let fits = whole.and_then(|whole| T::try_from(whole).ok());
    fits.map(Some).ok_or_else(|| D::Error::custom(format!("{number} is no whole number that is taken here")))
}
