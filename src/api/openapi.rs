//! The API document of all faces, OpenAPI 3.1.
//!
//! `openapi/eddyline.json` holds its text. A test compares the two, and the document with the
//! router, so that a route cannot be added, changed or removed silently.

use utoipa::openapi::{InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder};

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
    for face in [v1::openapi(), v2::openapi(), ws::openapi(), ops::openapi()] {
        document.merge(face);
    }
    document
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
