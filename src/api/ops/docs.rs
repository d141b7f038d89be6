//! The API document and a page that shows it. Everything is in the binary: no network is needed.

use std::sync::{Arc, OnceLock};

use axum::body::Bytes;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Redirect, Response};

use crate::api::error::{ApiError, Code, Problem};
use crate::api::http::{JSON, path_parameter};
use crate::api::{State, openapi, ops};

/// The page may load what this server sends, and nothing else.
const CONTENT_SECURITY_POLICY: &str = "default-src 'self'; style-src 'self' 'unsafe-inline'; \
    img-src 'self' data:; frame-ancestors 'none'";

/// The API document's text. It is the same for every server of this build, and made when first
/// asked for.
static DOCUMENT: OnceLock<Bytes> = OnceLock::new();

/// Shows the API document.
#[utoipa::path(get, path = "/openapi.json", operation_id = "openapi", tag = "operations",
    responses((status = 200, description = "OpenAPI 3.1", body = Object)))]
pub(super) async fn document(_: Arc<State>, _: Request) -> Result<Response, ApiError> {
    let text = DOCUMENT.get_or_init(|| Bytes::from(openapi::json()));
    Ok(ops::content(JSON, text.clone()))
}

/// Leads to the page that shows the API document.
#[utoipa::path(get, path = "/docs", operation_id = "docs", tag = "operations",
    responses((status = 303, description = "The page is `/docs/index.html`")))]
pub(super) async fn page(_: Arc<State>, _: Request) -> Result<Response, ApiError> {
    // The page names its files relative to itself, and this path has no trailing slash.
    Ok(Redirect::to("/docs/index.html").into_response())
}

/// Sends a file of the page.
#[utoipa::path(get, path = "/docs/{file}", operation_id = "docsFile", tag = "operations",
    params(("file" = String, Path, description = "The file's name")),
    responses(
        (status = 200, description = "The file", body = String, content_type = "text/html"),
        (status = 404, description = "`not_found`", body = Problem,
            content_type = "application/problem+json")))]
pub(super) async fn file(_: Arc<State>, request: Request) -> Result<Response, ApiError> {
    let (mut parts, _) = request.into_parts();
    let found = path_parameter(&mut parts).await.and_then(|name| page_file(&name));
    let Some((media_type, bytes)) = found else {
        return Err(ApiError::new(Code::NotFound, "the page has no such file"));
    };
    let mut response = ops::content("application/octet-stream", bytes);
    let headers: [(HeaderName, &'static str); 2] = [
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    for (name, value) in headers {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    if let Ok(media_type) = HeaderValue::from_str(&media_type) {
        response.headers_mut().insert(header::CONTENT_TYPE, media_type);
    }
    Ok(response)
}

#[cfg(feature = "docs")]
fn page_file(name: &str) -> Option<(String, Bytes)> {
    // Without this setting the page sends the document to a validator on the Internet.
    let config = utoipa_swagger_ui::Config::from("/openapi.json").validator_url("none");
    let file = utoipa_swagger_ui::serve(name, Arc::new(config)).ok()??;
    let bytes = match file.bytes {
        std::borrow::Cow::Borrowed(bytes) => Bytes::from_static(bytes),
        std::borrow::Cow::Owned(bytes) => Bytes::from(bytes),
    };
    Some((file.content_type, bytes))
}

#[cfg(not(feature = "docs"))]
fn page_file(name: &str) -> Option<(String, Bytes)> {
    const PAGE: &str = "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
        <title>Eddyline API</title></head><body><h1>Eddyline API</h1>\
        <p>This build has no API browser. The API is described by \
        <a href=\"/openapi.json\">openapi.json</a> (OpenAPI 3.1).</p></body></html>\n";
    (name == "index.html").then(|| ("text/html; charset=utf-8".to_owned(), Bytes::from(PAGE)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(name: &str) -> String {
        let (_, bytes) = page_file(name).unwrap_or_else(|| panic!("{name} is missing"));
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[test]
    fn the_page_loads_nothing_from_elsewhere() {
        let index = text("index.html");
        assert!(!index.contains("://"), "{index}");
        for link in index.split('"').filter(|text| text.ends_with(".js") || text.ends_with(".css"))
        {
            text(link.trim_start_matches("./"));
        }
        assert!(page_file("nothing.js").is_none());
    }

    #[cfg(feature = "docs")]
    #[test]
    fn the_page_shows_this_servers_document_and_asks_no_validator() {
        let script = text("swagger-initializer.js");
        assert!(script.contains("/openapi.json"), "{script}");
        assert!(script.contains(r#""validatorUrl": "none""#), "{script}");
        assert!(!script.contains("://"), "{script}");
    }
}
