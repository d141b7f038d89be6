//! The API document of all faces, OpenAPI 3.1.
//!
//! `openapi/eddyline.json` holds its text. A test compares the two, and the document with the
//! router, so that a route cannot be added, changed or removed silently.

use utoipa::openapi::path::{Operation, ParameterBuilder, ParameterIn};
use utoipa::openapi::{
    ContentBuilder, InfoBuilder, LicenseBuilder, ObjectBuilder, OpenApi, OpenApiBuilder, PathItem,
    Ref, RefOr, ResponseBuilder, Type,
};

use crate::api::{ops, v1, v2, ws};

/// Describes every operation of every face.
pub fn document() -> OpenApi {
    let license = LicenseBuilder::new().name("Apache-2.0").identifier(Some("Apache-2.0")).build();
    let info = InfoBuilder::new()
        .title("Eddyline")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some("An event-streaming server: partitioned, replayable logs over HTTP."))
        .license(Some(license))
        .build();
    let mut document = OpenApiBuilder::new().info(info).build();
    for face in [
        completed(v1::openapi(), &V1),
        completed(v2::openapi(), &V2),
        completed(ws::openapi(), &OPS),
        completed(ops::openapi(), &OPS),
    ] {
        document.merge(face);
    }
    document
}

/// What all operations of a face have in common besides what stands beside each.
struct Common {
    /// Schema and media type of errors.
    error: (&'static str, &'static str),
    /// Statuses of every operation.
    always: &'static [(&'static str, &'static str)],
    /// Statuses of operations whose answers have a body.
    with_answer: &'static [(&'static str, &'static str)],
    /// Statuses of operations that read a body.
    with_body: &'static [(&'static str, &'static str)],
}

const NOT_ACCEPTABLE: (&str, &str) = ("406", "The answer has none of the types of `Accept`");
const INTERNAL: (&str, &str) = ("500", "A bug, or a file that cannot be read");
const WITH_BODY: &[(&str, &str)] = &[
    ("408", "The body came too slowly"),
    ("413", "The body, or something in it, is too large"),
    ("415", "No such `Content-Type`, charset or `Content-Encoding`"),
];

const V1: Common = Common {
    error: ("Problem", "application/problem+json"),
    always: &[("400", "A query parameter, or the body, is not acceptable"), INTERNAL],
    with_answer: &[NOT_ACCEPTABLE],
    with_body: WITH_BODY,
};

const V2: Common = Common {
    error: ("V2Error", "application/vnd.kafka.v2+json"),
    always: &[NOT_ACCEPTABLE, INTERNAL],
    with_answer: &[],
    with_body: WITH_BODY,
};

const OPS: Common = Common {
    error: ("Problem", "application/problem+json"),
    always: &[INTERNAL],
    with_answer: &[],
    with_body: &[],
};

/// Adds what every operation of a face has.
fn completed(mut face: OpenApi, common: &Common) -> OpenApi {
    for item in face.paths.paths.values_mut() {
        let PathItem { get, put, post, delete, patch, .. } = item;
        for operation in [get, put, post, delete, patch].into_iter().flatten() {
            complete(operation, common);
        }
    }
    face
}

fn complete(operation: &mut Operation, common: &Common) {
    let request_id = ParameterBuilder::new()
        .name("X-Request-Id")
        .parameter_in(ParameterIn::Header)
        .description(Some("Names the request in the server's log; comes back with an error"))
        .schema(Some(ObjectBuilder::new().schema_type(Type::String).max_length(Some(128))))
        .build();
    operation.parameters.get_or_insert_default().push(RefOr::T(request_id));
    let responses = &mut operation.responses.responses;
    let (schema, media_type) = common.error;
    let has_answer = !responses.contains_key("204");
    let with_answer = common.with_answer.iter().filter(|_| has_answer);
    let has_body = operation.request_body.is_some();
    let with_body = common.with_body.iter().filter(|_| has_body);
    for (status, description) in common.always.iter().chain(with_answer).chain(with_body) {
        // `4XX` and `5XX` stand for every status of theirs.
        let range = format!("{}XX", status.get(..1).unwrap_or_default());
        if responses.contains_key(*status) || responses.contains_key(&range) {
            continue;
        }
        let content = ContentBuilder::new().schema(Some(Ref::from_schema_name(schema))).build();
        let response =
            ResponseBuilder::new().description(*description).content(media_type, content).build();
        responses.insert((*status).to_owned(), response.into());
    }
}

/// Returns the document's text, as it is committed and served: indented, with a final line feed.
pub fn json() -> String {
    // Writing a tree of strings and numbers to a string cannot fail.
    let mut text = document().to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn faces_that_share_a_schemas_name_share_the_schema() {
        let mut seen = BTreeMap::new();
        for face in [v1::openapi(), v2::openapi(), ws::openapi(), ops::openapi()] {
            for (name, schema) in face.components.unwrap_or_default().schemas {
                let schema = serde_json::to_value(schema).unwrap();
                let first = seen.entry(name.clone()).or_insert_with(|| schema.clone());
                assert_eq!(*first, schema, "two schemas are called {name}");
            }
        }
        assert!(seen.len() > 20, "{:?}", seen.keys());
    }
}
