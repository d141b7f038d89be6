//! From an HTTP request to a socket.
//!
//! Everything that is wrong with the request is answered before the upgrade, with a status. A
//! page's origin is checked because browsers send cookies with it; other clients send none.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use hyper_util::rt::TokioIo;
use tungstenite::handshake::derive_accept_key;
use utoipa::OpenApi;

use crate::api::State;
use crate::api::error::{ApiError, Code, Problem};
use crate::api::http::{query, unknown_parameter};
use crate::api::ws::SUBPROTOCOL;
use crate::api::ws::session::Session;
use crate::api::ws::socket::Socket;

/// The one version of WebSocket itself, RFC 6455.
const WEBSOCKET_VERSION: &str = "13";

/// The face's part of the API document.
#[derive(OpenApi)]
#[openapi(paths(open), components(schemas(Problem)))]
struct Document;

/// Returns the face's part of the API document.
pub(crate) fn openapi() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

/// Opens a WebSocket for subscriptions and produce.
///
/// The subprotocol is `eddyline.v1.json`: one JSON object per text frame, first `hello`, answered
/// by `welcome`. A token is never taken from the query, where logs keep it.
#[utoipa::path(
    get,
    path = "/v1/ws",
    operation_id = "openSocket",
    tag = "records",
    params(
        ("Sec-WebSocket-Protocol" = String, Header, description = "`eddyline.v1.json`"),
        ("Origin" = Option<String>, Header, description = "Browsers: this host, or one of \
            `ws.allowed_origins`"),
    ),
    responses(
        (status = 101, description = "The connection is a WebSocket now"),
        (status = 400, description = "No WebSocket handshake, another subprotocol, or a token in \
            the query", body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The page's origin may not connect", body = Problem,
            content_type = "application/problem+json"),
    )
)]
pub(super) async fn open(state: Arc<State>, mut request: Request) -> Result<Response, ApiError> {
    refuse_parameters(&request)?;
    let headers = request.headers();
    check_origin(headers, &state.config.ws.allowed_origins)?;
    let accept = accept_key(headers)?;
    check_subprotocol(headers)?;
    let upgrade = hyper::upgrade::on(&mut request);
    let tasks = state.tasks.clone();
    tasks.spawn(async move {
        match upgrade.await {
            Ok(upgraded) => {
                let socket = Socket::new(TokioIo::new(upgraded), state.config.ws.timers.close);
                Session::new(state, socket).run().await;
            }
            Err(error) => tracing::debug!(%error, "a connection ended before it was a socket"),
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    Ok(response)
}

fn refuse_parameters(request: &Request) -> Result<(), ApiError> {
    match query(request.uri())?.first() {
        None => Ok(()),
        Some((name, _)) if matches!(&**name, "token" | "access_token") => {
            let detail = format!("'{name}' in the query ends up in logs: send it in 'hello'");
            Err(ApiError::invalid_request(detail))
        }
        Some((name, _)) => Err(unknown_parameter(name)),
    }
}

fn check_origin(headers: &HeaderMap, allowed: &[String]) -> Result<(), ApiError> {
    let Some(origin) = headers.get(header::ORIGIN) else { return Ok(()) };
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let may_connect = origin.to_str().is_ok_and(|origin| {
        let listed = |url: &String| same(url.trim_end_matches('/'), origin);
        is_own(origin, host) || allowed.iter().any(listed)
    });
    if may_connect {
        return Ok(());
    }
    let detail = "pages of this origin may not open a socket; see ws.allowed_origins";
    Err(ApiError::new(Code::Forbidden, detail))
}

/// Returns whether an origin is that of the host that was asked.
fn is_own(origin: &str, host: &str) -> bool {
    let (port, authority) = match origin.split_once("://") {
        Some(("http", authority)) => (":80", authority),
        Some(("https", authority)) => (":443", authority),
        _ => return false,
    };
    let bare = |text: &'_ str| text.strip_suffix(port).unwrap_or(text).to_owned();
    !host.is_empty() && same(&bare(authority), &bare(host))
}

fn same(one: &str, other: &str) -> bool {
    one.eq_ignore_ascii_case(other)
}

/// Checks that the request is a WebSocket handshake and answers its key.
fn accept_key(headers: &HeaderMap) -> Result<HeaderValue, ApiError> {
    let upgrades = lists(headers, &header::CONNECTION, "upgrade")
        && lists(headers, &header::UPGRADE, "websocket");
    let version = headers.get(header::SEC_WEBSOCKET_VERSION);
    if !upgrades || version.is_none_or(|version| version != WEBSOCKET_VERSION) {
        let detail = "this path takes WebSocket handshakes of version 13 over HTTP/1.1 only";
        return Err(ApiError::invalid_request(detail));
    }
    let key = headers.get(header::SEC_WEBSOCKET_KEY);
    let accept = key.map(|key| derive_accept_key(key.as_bytes()));
    let accept = accept.and_then(|accept| HeaderValue::try_from(accept).ok());
    accept.ok_or_else(|| ApiError::invalid_request("the header Sec-WebSocket-Key is missing"))
}

fn check_subprotocol(headers: &HeaderMap) -> Result<(), ApiError> {
    if lists(headers, &header::SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL) {
        return Ok(());
    }
    let detail = format!("Sec-WebSocket-Protocol must offer {SUBPROTOCOL}");
    Err(ApiError::invalid_request(detail))
}

/// Returns whether a header is a list with this element.
fn lists(headers: &HeaderMap, name: &header::HeaderName, wanted: &str) -> bool {
    let texts = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    texts.flat_map(|text| text.split(',')).any(|element| same(element.trim(), wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(origin: &str, host: &str, allowed: &[&str]) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::ORIGIN, HeaderValue::from_str(origin).unwrap());
        headers.insert(header::HOST, HeaderValue::from_str(host).unwrap());
        let allowed: Vec<_> = allowed.iter().map(|&url| url.to_owned()).collect();
        check_origin(&headers, &allowed).is_ok()
    }

    #[test]
    fn pages_of_the_server_and_of_listed_origins_may_connect_and_no_others() {
        assert!(check_origin(&HeaderMap::new(), &[]).is_ok(), "no page at all");
        assert!(origin("http://a:8080", "a:8080", &[]));
        assert!(origin("HTTP://A".to_lowercase().as_str(), "A:80", &[]));
        assert!(origin("https://a", "a:443", &[]));
        assert!(origin("https://b", "a", &["https://b/"]));
        for (bad, host) in [
            ("http://b:8080", "a:8080"),
            ("http://a:8081", "a:8080"),
            ("http://a.evil", "a"),
            ("https://a:80", "a"),
            ("null", "a"),
            ("http://", ""),
        ] {
            assert!(!origin(bad, host, &["https://b"]), "{bad}");
        }
    }
}
