//! What the texts in bodies, paths and queries look like, for the OpenAPI document. The types that hold them say the
//! same when they are read; here it is said to clients.

use packrun_protocol::limit::{
    JOB_KEY_BYTES_MAX, LABEL_VALUE_BYTES_MAX, LABELS_MAX, NAME_BYTES_MAX, PATH_BYTES_MAX,
};
use packrun_protocol::state;
use serde_json::json;
use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, OneOfBuilder, SchemaFormat, SchemaType, Type};
use utoipa::openapi::{Ref, RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::PackContent;
use crate::api::problem::ProblemKind;
use crate::core::change::Role as ApiRole;

macro_rules! shapes {
    ($($(#[doc = $doc:literal])+ $name:ident = $object:expr;)+) => {
        $(
            $(#[doc = $doc])+
            #[derive(Debug, Clone, Copy)]
            pub enum $name {}

            impl PartialSchema for $name {
                fn schema() -> RefOr<Schema> {
                    let text: Vec<&str> = vec![$($doc.trim_ascii(),)+];
                    $object.description(Some(text.join(" "))).into()
                }
            }

            impl ToSchema for $name {}
        )+

        /// All of them, by name.
        pub(in crate::api) fn all() -> Vec<(String, RefOr<Schema>)> {
            vec![$(($name::name().into_owned(), $name::schema()),)+]
        }
    };
}

shapes! {
    /// The state of an agent: it gets work, it finishes what it holds and gets no more, it is shut out for good.
    AgentState = one_of(["active", "drained", "revoked"]);
    /// The state of an attempt.
    AttemptState = one_of(state::AttemptState::ALL.iter().map(|state| state.as_str()));
    /// The sha256 of some content.
    Digest = matching("^sha256:[0-9a-f]{64}$").examples([json!(format!("sha256:{}", "5e".repeat(32)))]);
    /// A UUID; those that packrun makes are of version 7, and sort by time.
    Id = text()
        .format(Some(SchemaFormat::Custom("uuid".to_owned())))
        .examples([json!("01980a4e-5b7c-7d21-9c1e-3f5a7b9d1e2f")]);
    /// A job run's key: the job's name, for a matrix job with its values in declared order.
    JobKey = matching(
        "^[a-z0-9][a-z0-9-]{0,62}(\\[[a-z0-9][a-z0-9-]{0,62}=[^,=\\[\\]\\x00-\\x1f\\x7f-\\x9f]{1,128}(,[a-z0-9][a-z0-9-]{0,62}=[^,=\\[\\]\\x00-\\x1f\\x7f-\\x9f]{1,128})*\\])?$",
    )
    .max_length(Some(JOB_KEY_BYTES_MAX))
    .examples([json!("test[shard=1,os=linux]")]);
    /// The state of a job run.
    JobRunState = one_of(state::JobRunState::ALL.iter().map(|state| state.as_str()));
    /// Labels of an agent: at most 64; a value has at most 255 bytes.
    Labels = ObjectBuilder::new()
        .property_names(Some(matching("^[A-Za-z0-9._/-]{1,63}$").build()))
        .additional_properties(Some(matching("^[^\\x00-\\x1f\\x7f-\\x9f]*$").max_length(Some(LABEL_VALUE_BYTES_MAX))))
        .max_properties(Some(LABELS_MAX))
        .examples([json!({ "os": "linux", "gpu": "none" })]);
    /// What an entry was written to; `system` are remarks of packrun's own.
    LogStream = one_of(["stdout", "stderr", "system"]);
    /// The name of a pack, a job, an agent or an artifact.
    Name = matching("^[a-z0-9][a-z0-9-]{0,62}$")
        .min_length(Some(1))
        .max_length(Some(NAME_BYTES_MAX))
        .examples([json!("build-and-test")]);
    /// A pack: what a pack file says.
    Pack = ObjectBuilder::new();
    /// A pack version: with its content, or for `format=source` the file, when it is JSON.
    PackForm = OneOfBuilder::new()
        .item(Ref::from_schema_name(PackContent::name()))
        .item(Ref::from_schema_name(Pack::name()));
    /// The state of a pack run.
    PackRunState = one_of(state::PackRunState::ALL.iter().map(|state| state.as_str()));
    /// A value of a pack's parameter, as a client gives it.
    ParameterValue = ObjectBuilder::new().schema_type(SchemaType::from_iter([Type::String, Type::Number, Type::Boolean]));
    /// A file's path inside a workspace: relative, `/` between its components, none of them `.` or `..`.
    Path = matching("^[^/\\\\\\x00-\\x1f\\x7f-\\x9f][^\\\\\\x00-\\x1f\\x7f-\\x9f]*$")
        .max_length(Some(PATH_BYTES_MAX))
        .examples([json!("target/release/app")]);
    /// What kind of problem something is.
    ProblemType = text().enum_values(Some(ProblemKind::ALL.iter().map(|kind| kind.urn())));
    /// What the bearer of a token may do; each role may do what those before it may.
    Role = one_of(ApiRole::ALL.map(ApiRole::as_str));
    /// A time: RFC 3339, UTC, with microseconds.
    Time = text()
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
        .examples([json!("2026-11-24T09:30:00.123456Z")]);
    /// Whether a token holds, or why not.
    TokenState = one_of(["active", "expired", "revoked", "used"]);
    /// What a token is for: a role at this API, or `join` for one that lets an agent join.
    TokenUse = one_of(ApiRole::ALL.map(ApiRole::as_str).into_iter().chain(["join"]));
}

fn text() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String)
}

fn matching(pattern: &str) -> ObjectBuilder {
    text().pattern(Some(pattern))
}

fn one_of<'a>(texts: impl IntoIterator<Item = &'a str>) -> ObjectBuilder {
    text().enum_values(Some(texts))
}
