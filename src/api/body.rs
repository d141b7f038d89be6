//! Small JSON bodies, read into a type, with errors that point at the place.
//!
//! Not for records, whose values must keep their bytes: those are read by hand.

use serde::de::DeserializeOwned;
use serde_path_to_error::{Path, Segment};

use crate::api::error::{ApiError, Code};

/// Reads a body.
///
/// # Errors
/// `invalid_request` when it is no JSON, `invalid_body` when it is JSON of another shape.
pub(crate) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let parsed = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let pointer = pointer(error.path());
        refusal(&pointer, &error.into_inner())
    })?;
    deserializer.end().map_err(|error| refusal("", &error))?;
    Ok(parsed)
}

fn refusal(pointer: &str, error: &serde_json::Error) -> ApiError {
    if error.is_data() {
        return ApiError::at(Code::InvalidBody, pointer, error.to_string());
    }
    ApiError::invalid_request(format!("malformed JSON: {error}"))
}

/// Writes a path as JSON pointer (RFC 6901). The variant of an enum is the member that names it.
fn pointer(path: &Path) -> String {
    let mut pointer = String::new();
    for segment in path {
        let part = match segment {
            Segment::Seq { index } => index.to_string(),
            Segment::Map { key } => key.replace('~', "~0").replace('/', "~1"),
            Segment::Enum { variant } => variant.clone(),
            Segment::Unknown => continue,
        };
        pointer.push('/');
        pointer.push_str(&part);
    }
    pointer
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Outer {
        #[serde(rename = "inner")]
        _inner: Vec<Inner>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        #[serde(rename = "n")]
        _n: u8,
    }

    #[test]
    fn what_does_not_fit_is_pointed_at() {
        for (body, expected) in [
            (r#"{"inner":[{"n":1},{"n":"x"}]}"#, "/inner/1/n"),
            (r#"{"inner":[{"n":1,"m/~":2}]}"#, "/inner/0/m~1~0"),
            (r#"{"inner":[{}]}"#, "/inner/0"),
            (r#"{"inner":[],"inner":[]}"#, ""),
            ("[]", ""),
        ] {
            let error = parse::<Outer>(body.as_bytes()).unwrap_err();
            assert_eq!(error.code(), Code::InvalidBody, "{body}");
            let problem = serde_json::to_value(error.problem(None)).unwrap();
            assert!(problem["errors"][0]["pointer"].as_str().unwrap().starts_with(expected));
        }
        for body in ["", "{", r#"{"inner":[]} x"#] {
            let error = parse::<Outer>(body.as_bytes()).unwrap_err();
            assert_eq!(error.code(), Code::InvalidRequest, "{body}");
        }
    }
}
