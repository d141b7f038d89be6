//! The API document is what is committed, and what the router does.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use reqwest::Method;
use serde_json::Value;

use crate::support::{Reply, Server};

const METHODS: [&str; 5] = ["get", "put", "post", "delete", "patch"];

fn document() -> Value {
    serde_json::from_str(&eddyline::api::openapi::json()).unwrap()
}

/// The methods of each path, in upper case.
fn operations() -> BTreeMap<String, BTreeSet<String>> {
    let document = document();
    let paths = document["paths"].as_object().unwrap().iter();
    paths
        .map(|(path, item)| {
            let methods = METHODS.iter().filter(|method| item.get(**method).is_some());
            (path.clone(), methods.map(|method| method.to_uppercase()).collect())
        })
        .collect()
}

#[test]
fn the_committed_document_is_the_generated_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi/eddyline.json");
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    // Not `assert_eq`, which would print both documents.
    assert!(
        committed == eddyline::api::openapi::json(),
        "the committed document is old; run: eddyline openapi > openapi/eddyline.json"
    );
}

#[test]
fn every_operation_has_a_name_of_its_own_and_every_reference_leads_somewhere() {
    let document = document();
    let mut names = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for method in METHODS {
            let Some(operation) = item.get(method) else { continue };
            let name = operation["operationId"].as_str().unwrap_or_default().to_owned();
            assert!(!name.is_empty() && names.insert(name.clone()), "{method} {path}: {name}");
            assert!(operation["tags"].as_array().is_some_and(|tags| !tags.is_empty()), "{path}");
        }
    }
    let text = document.to_string();
    for reference in text.split(r##""$ref":"#"##).skip(1) {
        let pointer = reference.split('"').next().unwrap();
        assert!(document.pointer(pointer).is_some(), "{pointer} leads nowhere");
    }
}

/// Every path constant of the API layer: what the router's paths are made of.
fn path_constants(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path: PathBuf = entry.unwrap().path();
        if path.is_dir() {
            path_constants(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            // A long one has its value on a line of its own.
            let text = text.replace(" =\n        \"", " = \"");
            let constants = text.lines().filter_map(|line| {
                let (name, value) = line.split_once(": &str = \"/")?;
                name.contains("const ").then(|| format!("/{}", value.trim_end_matches("\";")))
            });
            found.extend(constants);
        }
    }
}

/// Returns an operation by its id.
fn operation(document: &Value, id: &str) -> Value {
    let items = document["paths"].as_object().unwrap().values();
    let mut operations = items.flat_map(|item| item.as_object().unwrap().values());
    operations.find(|operation| operation["operationId"] == id).unwrap().clone()
}

#[test]
fn operations_tell_the_statuses_and_headers_that_their_callers_meet() {
    let document = document();
    for (id, statuses) in [
        ("produceRecords", "200 202 207 400 404 406 408 413 415 422 500 503 504 507"),
        ("readRecords", "200 400 404 406 410 416 500 503"),
        ("putTopic", "200 201 400 406 408 409 413 415 422 500 503 504 507"),
        ("getTopic", "200 400 404 406 500"),
        ("deleteTopic", "204 400 404 500 503 504"),
        ("listTopics", "200 400 406 500"),
        ("v2Produce", "200 207 4XX 5XX"),
        ("v2Topics", "200 406 500"),
        ("v2Topic", "200 404 406 500"),
        ("v2Brokers", "200 406 500"),
        ("v2Offsets", "200 404 406 500"),
    ] {
        let operation = operation(&document, id);
        let described = operation["responses"].as_object().unwrap();
        for status in statuses.split(' ') {
            assert!(described.contains_key(status), "{id} does not tell of {status}");
        }
    }
    let headers = |id: &str| {
        let operation = operation(&document, id);
        let parameters = operation["parameters"].as_array().unwrap().clone();
        let headers = parameters.into_iter().filter(|parameter| parameter["in"] == "header");
        headers.map(|header| header["name"].as_str().unwrap().to_owned()).collect::<BTreeSet<_>>()
    };
    let of = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(headers("produceRecords"), of(&["Eddyline-Header", "X-Request-Id"]));
    assert_eq!(headers("readRecords"), of(&["Last-Event-ID", "X-Request-Id"]));
    assert_eq!(headers("v2Produce"), of(&["X-Request-Id", "prefer"]));
}

#[test]
fn every_path_of_the_router_is_described() {
    let mut constants = BTreeSet::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/api");
    path_constants(&folder, &mut constants);
    let described: BTreeSet<String> = operations().into_keys().collect();
    assert!(constants.len() > 10, "{constants:?}");
    assert_eq!(constants, described);
}

#[tokio::test]
async fn every_described_path_has_exactly_the_described_methods() {
    let server = Server::start().await;
    for (path, methods) in operations() {
        let concrete =
            path.replace("{partition}", "0").replace("{topic}", "t").replace("{file}", "f");
        let concrete = concrete.replace("{group}", "g").replace("{instance}", "i");
        let reply = Reply::of(server.request(Method::OPTIONS, &concrete)).await;
        let allow = reply.header("allow").unwrap_or_default();
        let mut allowed: BTreeSet<String> =
            allow.split(',').map(|method| method.trim().to_owned()).collect();
        allowed.remove("HEAD");
        assert_eq!(allowed, methods, "{path}");
    }
    server.stop().await;
}
