//! The values of the tables: a byte for the version of the shape, then the shape in the protocol's codec. The
//! core's rows are their own shapes; where a row is split over tables, its parts stand here. When one changes,
//! the old shape moves here under its version and is converted on reading.

use std::collections::BTreeMap;
use std::sync::Arc;

use packrun_protocol::codec;
use packrun_protocol::id::{Digest, PackRunId};
use packrun_protocol::name::Name;
use packrun_protocol::time::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::StoreError;
use crate::core::change::Format;
use crate::core::event::Idempotency;

const VERSION: u8 = 1;

/// The value's bytes.
pub(super) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, StoreError> {
    let mut bytes = codec::encode_record(value)?;
    bytes.insert(0, VERSION);
    Ok(bytes)
}

/// The value of these bytes, which lay in `table`.
pub(super) fn decode<T: DeserializeOwned>(table: &'static str, bytes: &[u8]) -> Result<T, StoreError> {
    match bytes.split_first() {
        Some((&VERSION, body)) => {
            codec::decode_record(body).map_err(|source| StoreError::Damaged { table, source: Some(source) })
        }
        Some((&version, _)) => Err(StoreError::Newer { table, version: u64::from(version) }),
        None => Err(StoreError::Damaged { table, source: None }),
    }
}

/// A pack version without its texts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionInfo {
    /// The sha256 of the canonical form.
    pub digest: Digest,
    /// What its file is written in.
    pub format: Format,
    /// When it was registered.
    pub registered_at: Timestamp,
}

/// What of a pack run never changes, without its plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunInfo {
    /// Its id.
    pub id: PackRunId,
    /// The pack.
    pub pack: Name,
    /// The version.
    pub version: u32,
    /// The parameters as given.
    pub params: Arc<BTreeMap<String, String>>,
    /// The key it was created under.
    pub idempotency: Option<Idempotency>,
    /// The pack run it repeats.
    pub retry_of: Option<PackRunId>,
    /// When it was created.
    pub created_at: Timestamp,
}
