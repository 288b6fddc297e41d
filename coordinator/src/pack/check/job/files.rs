//! What a job keeps, and what it takes from others.

use std::collections::{BTreeSet, HashSet};

use packrun_protocol::job::is_glob;
use packrun_protocol::limit::ARTIFACT_RULES_MAX;
use packrun_protocol::name::Name;

use super::{ARTIFACT_KEYS, INPUT_KEYS, JobReader, Taken};
use crate::pack::check::{KnownNames, template};
use crate::pack::model::{Artifact, Input};
use crate::pack::problem::{Kind, excerpt};
use crate::pack::rules;
use crate::pack::source::{Node, Value};
use crate::pack::template::Template;

impl JobReader<'_, '_, '_> {
    pub(super) fn artifacts(&mut self, node: &Node, scope: KnownNames<'_>) -> Vec<Artifact> {
        let items = self.reader.items(node, "`artifacts`").unwrap_or_default();
        if items.len() > ARTIFACT_RULES_MAX {
            let message = format!("a job takes at most {ARTIFACT_RULES_MAX} artifacts");
            self.reader.report(node.at, Kind::Limit, message);
        }
        let mut names = HashSet::new();
        let mut artifacts = Vec::with_capacity(items.len());
        for item in items {
            let Some(artifact) = self.artifact(item, scope) else { continue };
            if let Some(name) = artifact.name.as_ref().and_then(Template::literal)
                && let Err(message) = rules::distinct_name(&mut names, name)
            {
                self.reader.report(item.at, Kind::Duplicate, message);
            }
            artifacts.push(artifact);
        }
        artifacts
    }

    fn artifact(&mut self, node: &Node, scope: KnownNames<'_>) -> Option<Artifact> {
        if !matches!(node.value, Value::Mapping(_)) {
            let path = self.path(node, "an artifact's path", scope, rules::artifact_path)?;
            return Some(Artifact { path, name: None, optional: false });
        }
        let fields = self.reader.fields(node, "an artifact", &ARTIFACT_KEYS)?;
        let name = fields.get("name").and_then(|node| {
            let name = template(self.reader, node, "an artifact's name", scope)?;
            if let Some(text) = name.literal() {
                self.reader.checked(node.at, text.parse::<Name>());
            }
            Some(name)
        });
        let optional = self.truth(&fields, "optional");
        let Some(path) = fields.get("path") else {
            self.reader.report(fields.at, Kind::Missing, "an artifact needs a `path`");
            return None;
        };
        let path = self.path(path, "an artifact's path", scope, rules::artifact_path)?;
        Some(Artifact { path, name, optional })
    }

    pub(super) fn path<T>(
        &mut self,
        node: &Node,
        what: &str,
        scope: KnownNames<'_>,
        rule: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<Template> {
        let path = template(self.reader, node, what, scope)?;
        if let Some(text) = path.literal() {
            self.reader.checked(node.at, rule(text));
        }
        Some(path)
    }

    pub(super) fn inputs(
        &mut self,
        node: &Node,
        needed: &BTreeSet<&str>,
        scope: KnownNames<'_>,
    ) -> Vec<Input> {
        let items = self.reader.items(node, "`inputs`").unwrap_or_default();
        items.iter().filter_map(|item| self.input(item, needed, scope)).collect()
    }

    fn input(&mut self, node: &Node, needed: &BTreeSet<&str>, scope: KnownNames<'_>) -> Option<Input> {
        let fields = self.reader.fields(node, "an input", &INPUT_KEYS)?;
        for key in ["from", "artifact"] {
            if fields.get(key).is_none() {
                self.reader.report(fields.at, Kind::Missing, format!("an input needs `{key}`"));
            }
        }
        let from = fields.get("from").and_then(|node| self.from(node, needed));
        let mut path = |key: &str| {
            let node = fields.get(key)?;
            Some((node.at, self.path(node, &format!("`{key}`"), scope, rules::input_path)?))
        };
        let artifact = path("artifact");
        let to = path("to").map(|(_, to)| to);
        let optional = self.truth(&fields, "optional");
        let (from, (at, artifact)) = from.zip(artifact)?;
        if let Some(text) = artifact.literal().filter(|text| is_glob(text)) {
            self.taken.push(Taken { at, from: from.clone(), artifact: text.to_owned() });
        }
        Some(Input { from, artifact, to, optional })
    }

    fn from(&mut self, node: &Node, needed: &BTreeSet<&str>) -> Option<Name> {
        let text = self.reader.scalar(node, "`from`")?;
        if !needed.contains(text) {
            let message = format!("`from: {}` is not among the job's `needs`", excerpt(text));
            let needed = needed.iter().copied();
            self.reader.problems.add_unknown(node.at, Kind::UnknownReference, message, text, needed);
            return None;
        }
        self.reader.parsed(node, "`from`")
    }
}
