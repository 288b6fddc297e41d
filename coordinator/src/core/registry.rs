//! Packs and their versions. Only the newest version of each is remembered here; the rest is the store's.

use std::sync::Arc;

use packrun_protocol::id::Digest;
use packrun_protocol::name::Name;

use super::change::{Change, Format, PackVersionRow};
use super::outcome::Reply;
use super::{Core, PackHead};

impl Core {
    /// Adds a version, unless it says the same as the newest one.
    pub(super) fn register_pack(
        &mut self,
        name: Name,
        digest: Digest,
        source: Arc<[u8]>,
        format: Format,
        canonical: Arc<[u8]>,
    ) -> Reply {
        let version = match self.packs.get(&name) {
            Some(head) if head.digest == digest => {
                return Reply::Registered { version: head.version, created: false };
            }
            Some(head) => head.version.saturating_add(1),
            None => 1,
        };
        self.packs.insert(name.clone(), PackHead { version, digest });
        let registered_at = self.now;
        let row = PackVersionRow { name, version, digest, source, format, canonical, registered_at };
        self.out.changes.push(Change::PackVersion(row));
        Reply::Registered { version, created: true }
    }
}
