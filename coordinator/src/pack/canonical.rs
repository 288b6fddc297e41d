//! The canonical form of a pack: the checked pack with its defaults filled in, as JSON by RFC 8785. Comments,
//! layout, the order of keys that have none, and the format of the file don't show in it; its sha256 is the
//! digest of a pack version.
//!
//! This form is a contract: a change to it gives every pack another digest. What keeps its order (jobs, axes,
//! parameters, variables) is a list, as JSON's objects have none. Numbers are whole and below 2^53, so RFC 8785's
//! way to write them is the usual one. Durations are in milliseconds, memory is in bytes.

use packrun_protocol::id::Digest;
use serde_json::{Value, json};

use super::model::{Action, Job, Pack, Variable};
use super::template::Template;

impl Pack {
    /// The canonical form.
    #[must_use]
    pub fn canonical(&self) -> String {
        let params = self.params.iter().map(|param| {
            json!({
                "name": param.name.as_str(),
                "description": param.description,
                "default": param.default,
                "choices": param.choices,
            })
        });
        let pack = json!({
            "name": self.name.as_str(),
            "description": self.description,
            "params": params.collect::<Value>(),
            "env": variables(&self.env),
            "jobs": self.jobs.iter().map(|job| self.job(job)).collect::<Value>(),
        });
        let mut text = String::new();
        write(&pack, &mut text);
        text
    }

    /// The digest of the canonical form, which a pack version is known by.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(self.canonical().as_bytes())
    }

    fn job(&self, job: &Job) -> Value {
        let needs = job.needs.iter().filter_map(|need| self.jobs.get(*need)).map(|need| need.name.as_str());
        let matrix = job.matrix.iter().map(|axis| {
            let values = axis.values.iter().map(|value| value.as_str());
            json!({ "axis": axis.name.as_str(), "values": values.collect::<Value>() })
        });
        let artifacts = job.artifacts.iter().map(|artifact| {
            json!({
                "path": text(&artifact.path),
                "name": artifact.name.as_ref().map(text),
                "optional": artifact.optional,
            })
        });
        let inputs = job.inputs.iter().map(|input| {
            json!({
                "from": input.from.as_str(),
                "artifact": text(&input.artifact),
                "to": input.to.as_ref().map(text),
                "optional": input.optional,
            })
        });
        let (run, command) = match &job.action {
            Action::Script(script) => (text(script), Value::Null),
            Action::Command(words) => (Value::Null, words.iter().map(text).collect()),
        };
        let labels = job.labels.iter().map(|(key, value)| (key.clone(), text(value)));
        let mut value = json!({
            "name": job.name.as_str(),
            "description": job.description,
            "run": run,
            "command": command,
            "needs": needs.collect::<Value>(),
            "when": job.when.as_str(),
            "env": variables(&job.env),
            "matrix": matrix.collect::<Value>(),
            "labels": labels.collect::<Value>(),
            "resources": { "cpu_millis": job.cpu_millis, "memory_bytes": job.memory_bytes },
            "timeout_ms": job.timeout.map(millis),
            "retry": { "attempts": job.retry.attempts, "backoff_ms": millis(job.retry.backoff) },
            "artifacts": artifacts.collect::<Value>(),
            "inputs": inputs.collect::<Value>(),
            "allow_failure": job.allow_failure,
            "workdir": job.workdir.as_ref().map(text),
        });
        // Younger than the form: a job without it has the form that it always had.
        if let (Some(bytes), Some(members)) = (job.log_limit, value.as_object_mut()) {
            members.insert("log_limit_bytes".to_owned(), bytes.into());
        }
        value
    }
}

fn variables(variables: &[Variable]) -> Value {
    variables
        .iter()
        .map(|variable| json!({ "name": variable.name, "value": text(&variable.value) }))
        .collect()
}

fn text(template: &Template) -> Value {
    Value::String(template.to_string())
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Writes `value` by RFC 8785: no space, keys by their UTF-16 units (§3.2.3).
fn write(value: &Value, out: &mut String) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(truth) => out.push_str(if *truth { "true" } else { "false" }),
        Value::Number(number) => out.push_str(&number.to_string()),
        Value::String(text) => write_text(text, out),
        Value::Array(items) => {
            out.push('[');
            for (position, item) in items.iter().enumerate() {
                if position > 0 {
                    out.push(',');
                }
                write(item, out);
            }
            out.push(']');
        }
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by(|(a, _), (b, _)| a.encode_utf16().cmp(b.encode_utf16()));
            out.push('{');
            for (position, (key, value)) in members.into_iter().enumerate() {
                if position > 0 {
                    out.push(',');
                }
                write_text(key, out);
                out.push(':');
                write(value, out);
            }
            out.push('}');
        }
    }
}

/// A text by RFC 8785 §3.2.2.2: only quotes, backslashes and control characters are escaped, the short way where
/// there is one.
fn write_text(text: &str, out: &mut String) {
    out.push('"');
    for char in text.chars() {
        match char {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\t' => out.push_str("\\t"),
            '\n' => out.push_str("\\n"),
            '\u{c}' => out.push_str("\\f"),
            '\r' => out.push_str("\\r"),
            '\0'..='\u{1f}' => out.push_str(&format!("\\u{:04x}", u32::from(char))),
            _ => out.push(char),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_keys_and_order_are_written_as_rfc_8785_shows_them() {
        let value = json!({
            "\u{20ac}": "Euro Sign",
            "\r": "Carriage Return",
            "\u{fb33}": "Hebrew Letter Dalet With Dagesh",
            "1": "One",
            "\u{1f600}": "Emoji: Grinning Face",
            "\u{80}": "Control",
            "\u{f6}": "Latin Small Letter O With Diaeresis",
            "list": [56, null, true, false, "\u{20ac}$\u{f}\nA'B\"\\\\\"/\u{7f}"],
        });
        let mut text = String::new();
        write(&value, &mut text);
        let expected = concat!(
            "{\"\\r\":\"Carriage Return\",\"1\":\"One\",",
            "\"list\":[56,null,true,false,\"\u{20ac}$\\u000f\\nA'B\\\"\\\\\\\\\\\"/\u{7f}\"],",
            "\"\u{80}\":\"Control\",\"\u{f6}\":\"Latin Small Letter O With Diaeresis\",",
            "\"\u{20ac}\":\"Euro Sign\",\"\u{1f600}\":\"Emoji: Grinning Face\",",
            "\"\u{fb33}\":\"Hebrew Letter Dalet With Dagesh\"}",
        );
        assert_eq!(text, expected, "the order of RFC 8785 §3.2.3");
    }
}
