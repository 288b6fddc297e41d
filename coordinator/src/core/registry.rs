//! Packs and their versions. Only the newest version of each is remembered here, and which of them are archived; the
//! rest is the store's.

use std::sync::Arc;

use packrun_protocol::id::Digest;
use packrun_protocol::name::Name;
use serde::{Deserialize, Serialize};

use super::change::{Change, Format, PackArchiveRow, PackVersionRow};
use super::outcome::{Refusal, Reply};
use super::{Core, PackHead};

/// The versions of a pack that are archived: they are kept, and can't be run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Archived(
    /// Their numbers from the first to the last of each row of them, ascending and apart: mostly there is one row,
    /// however many versions a pack has.
    Vec<(u32, u32)>,
);

impl Archived {
    /// Whether this version is archived.
    #[must_use]
    pub fn contains(&self, version: u32) -> bool {
        self.0.iter().any(|(first, last)| (*first..=*last).contains(&version))
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The newest version that is not archived, of a pack whose newest version is `head`.
    #[must_use]
    pub fn newest_other(&self, head: u32) -> Option<u32> {
        let below = |newest: u32, (first, last): &(u32, u32)| {
            if (*first..=*last).contains(&newest) { first.saturating_sub(1) } else { newest }
        };
        Some(self.0.iter().rev().fold(head, below)).filter(|version| *version > 0)
    }

    /// The set with all versions from `first` to `last` in it, or without them.
    fn with(&self, first: u32, last: u32, archived: bool) -> Self {
        let mut rows = Vec::new();
        let mut new = (first, last);
        for (from, to) in &self.0 {
            let apart = *to < first.saturating_sub(1) || *from > last.saturating_add(1);
            if archived && !apart {
                new = (new.0.min(*from), new.1.max(*to));
                continue;
            }
            if !archived && *from <= last && *to >= first {
                rows.extend((*from < first).then(|| (*from, first - 1)));
                rows.extend((*to > last).then(|| (last + 1, *to)));
                continue;
            }
            rows.push((*from, *to));
        }
        rows.extend(archived.then_some(new));
        rows.sort_unstable();
        Self(rows)
    }
}

impl Core {
    /// Adds a version, unless it says the same as the newest one and that one can be run.
    pub(super) fn register_pack(
        &mut self,
        name: Name,
        digest: Digest,
        source: Arc<[u8]>,
        format: Format,
        canonical: Arc<[u8]>,
    ) -> Reply {
        let (version, archived) = match self.packs.get(&name) {
            Some(head) if head.digest == digest && !head.archived.contains(head.version) => {
                return Reply::Registered { version: head.version, created: false };
            }
            Some(head) => (head.version.saturating_add(1), head.archived.clone()),
            None => (1, Archived::default()),
        };
        self.packs.insert(name.clone(), PackHead { version, digest, archived });
        let registered_at = self.now;
        let row = PackVersionRow { name, version, digest, source, format, canonical, registered_at };
        self.out.changes.push(Change::PackVersion(row));
        Reply::Registered { version, created: true }
    }

    /// Archives a version, or all that there are, or makes them runnable again.
    pub(super) fn archive_pack(
        &mut self,
        name: Name,
        version: Option<u32>,
        archived: bool,
    ) -> Result<Reply, Refusal> {
        let (first, last) = match (self.packs.get(&name), version) {
            (Some(head), None) => (1, head.version),
            (Some(head), Some(version)) if (1..=head.version).contains(&version) => (version, version),
            _ => return Err(Refusal::NoPack(name, version.unwrap_or(1))),
        };
        if let Some(head) = self.packs.get_mut(&name) {
            let new = head.archived.with(first, last, archived);
            if new != head.archived {
                head.archived = new.clone();
                self.out.changes.push(Change::PackArchive(PackArchiveRow { name, archived: new }));
            }
        }
        Ok(Reply::Done)
    }

    /// Refuses to run a version that there is not, or that is archived.
    pub(super) fn check_runnable(&self, pack: &Name, version: u32) -> Result<(), Refusal> {
        match self.packs.get(pack).filter(|head| (1..=head.version).contains(&version)) {
            None => Err(Refusal::NoPack(pack.clone(), version)),
            Some(head) if head.archived.contains(version) => Err(Refusal::Archived(pack.clone(), version)),
            Some(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_archived_are_a_set_in_as_few_rows_as_can_be(
            steps in vec((1..12_u32, 0..6_u32, any::<bool>()), 0..20)
        ) {
            let (mut archived, mut model) = (Archived::default(), BTreeSet::new());
            for (first, more, add) in steps {
                archived = archived.with(first, first + more, add);
                for version in first..=first + more {
                    if add { model.insert(version) } else { model.remove(&version) };
                }
                prop_assert!((0..20).all(|version| archived.contains(version) == model.contains(&version)));
                prop_assert!(archived.0.is_sorted_by(|a, b| a.1 + 1 < b.0), "{archived:?}");
                for head in 0..20 {
                    let other = (1..=head).rev().find(|version| !model.contains(version));
                    prop_assert_eq!(archived.newest_other(head), other);
                }
            }
        }
    }
}
