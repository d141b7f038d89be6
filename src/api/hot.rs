//! The shortest way to the one handler that has to be fast: producing.
//!
//! Routing costs 2 us, as much as parsing, placing and encoding a record together. Two paths are
//! recognised by hand and their requests go straight to the handler; whatever looks the least
//! unusual, and everything else, goes to the router, which has the same routes.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use hyper::body::Incoming;
use tower::Service as _;

use crate::api::error::{ApiError, Caller};
use crate::api::flushes::Flushes;
use crate::api::http::{Endpoint, Verb};
use crate::api::memory::UsedUp;
use crate::api::{State, cursor, refuse, router, v1, v2};

/// Bytes of a request's head, each field counted with what it takes beside its name and value.
pub const HEAD_BYTES_MAX: u32 = 160 * 1024;

/// What a head has room for beside the longest cursor.
const OTHER_HEAD_BYTES: usize = 16 * 1024;

// The cursor of the largest topic has to fit, or nobody could read on in it.
const _: () = assert!(cursor::TEXT_BYTES_MAX + OTHER_HEAD_BYTES <= HEAD_BYTES_MAX as usize);

/// What a field of a head takes in memory (RFC 9113, 6.5.2).
const FIELD_BYTES: usize = 32;

/// An answer on its way.
type Answering = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

/// A handler that is not asked for through the router.
pub(crate) type Handler = Box<dyn Fn(Request) -> Answering + Send + Sync>;

/// All faces, as a connection serves them.
#[derive(Clone)]
pub struct Service {
    router: Router,
    hot: Arc<Hot>,
    /// Those of the connection, for streams that ask.
    flushes: Flushes,
}

struct Hot {
    v1: Handler,
    v2: Handler,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").finish_non_exhaustive()
    }
}

impl Service {
    /// Makes the service of all faces.
    pub fn new(state: &Arc<State>) -> Self {
        let hot = Hot { v1: v1::produce_handler(state), v2: v2::produce_handler(state) };
        Self { router: router(state), hot: Arc::new(hot), flushes: Flushes::default() }
    }

    /// Makes the service of one connection, whose socket notes its flushes there.
    pub fn of_connection(&self, flushes: Flushes) -> Self {
        Self { router: self.router.clone(), hot: Arc::clone(&self.hot), flushes }
    }

    /// Answers a request for which there is no memory left.
    pub fn overloaded(request: hyper::Request<Incoming>) -> Response {
        let error = ApiError::from(UsedUp);
        let texts = (error.detail().to_owned(), "HTTP 503 Service Unavailable");
        refuse(&request.map(Body::new), error.code(), texts)
    }
}

/// Makes a handler of what a route would call; the arguments are those of
/// [`route`](crate::api::http::route).
pub(crate) fn handler<F, Answer>(
    state: &Arc<State>,
    name: (Verb, &'static str),
    caller: fn(&HeaderMap) -> Caller,
    handler: F,
) -> Handler
where
    F: Fn(Arc<State>, Request) -> Answer + Send + Sync + 'static,
    Answer: Future<Output = Result<Response, ApiError>> + Send + 'static,
{
    let endpoint = Endpoint::new(state, name, caller, handler);
    Box::new(move |request| {
        let answer = endpoint.call(request);
        Box::pin(async { Ok(answer.await) })
    })
}

impl Hot {
    /// Returns the handler of a request that needs no router.
    fn find(&self, method: &Method, uri: &Uri) -> Option<&Handler> {
        if method != Method::POST {
            return None;
        }
        let path = uri.path();
        if let Some(topic) = path.strip_prefix("/topics/") {
            return is_segment(topic).then_some(&self.v2);
        }
        let topic = path.strip_prefix("/v1/topics/")?.strip_suffix("/records")?;
        is_segment(topic).then_some(&self.v1)
    }
}

fn head_bytes(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD_BYTES).sum()
}

fn is_segment(text: &str) -> bool {
    !text.is_empty() && memchr::memchr(b'/', text.as_bytes()).is_none()
}

impl hyper::service::Service<hyper::Request<Incoming>> for Service {
    type Response = Response;
    type Error = Infallible;
    type Future = Answering;

    fn call(&self, mut request: hyper::Request<Incoming>) -> Answering {
        // HTTP/2 refuses such a head by itself.
        if head_bytes(request.headers()) > HEAD_BYTES_MAX as usize {
            let refusal = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE.into_response();
            return Box::pin(std::future::ready(Ok(refusal)));
        }
        match self.hot.find(request.method(), request.uri()) {
            Some(handler) => handler(request.map(Body::new)),
            None => {
                if request.method() == Method::GET {
                    request.extensions_mut().insert(self.flushes.clone());
                }
                Box::pin(self.router.clone().call(request))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_paths_of_produce_pass_the_router_by() {
        let handler = |name: &'static str| -> Handler {
            Box::new(move |_| Box::pin(async move { Ok(Response::new(Body::from(name))) }))
        };
        let hot = Hot { v1: handler("v1"), v2: handler("v2") };
        let found = |method: Method, path: &'static str| {
            let handler = hot.find(&method, &Uri::from_static(path))?;
            Some(std::ptr::eq(handler, &raw const hot.v1))
        };
        assert_eq!(found(Method::POST, "/v1/topics/a/records"), Some(true));
        assert_eq!(found(Method::POST, "/v1/topics/a%2Fb/records?acks=0"), Some(true));
        assert_eq!(found(Method::POST, "/topics/a"), Some(false));
        for other in [
            "/",
            "/topics",
            "/topics/",
            "/topics/a/",
            "/topics/a/partitions/0",
            "/v1/topics/a",
            "/v1/topics//records",
            "/v1/topics/records",
            "/v1/topics/a/b/records",
            "/v1/topics/a/records/",
            "/v2/topics/a/records",
        ] {
            assert_eq!(found(Method::POST, other), None, "{other}");
        }
        assert_eq!(found(Method::GET, "/v1/topics/a/records"), None);
    }
}
