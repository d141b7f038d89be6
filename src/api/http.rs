//! What all handlers share: the wrapper of a route, bodies, queries, negotiation, answers.

use std::borrow::Cow;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::RequestPartsExt;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Path, Request};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header, request::Parts};
use axum::response::Response;
use axum::routing::{MethodFilter, MethodRouter, on};
use futures_util::future::poll_immediate;
use http_body_util::BodyExt;
use tracing::Instrument;

use crate::api::State;
use crate::api::error::{ApiError, Caller, Code};
use crate::api::memory::{BODY_WEIGHT, FREE_BYTES, Memory, UsedUp};
use crate::api::unread::read_to_its_end;
use crate::broker::{ProduceError, ProduceRecord, Topic, TopicError};
use crate::metrics::RouteMetrics;

/// Media type of answers.
pub(crate) const JSON: &str = "application/json";

/// Media type of one JSON value a line.
pub(crate) const NDJSON: &str = "application/x-ndjson";

/// Media type of server-sent events.
pub(crate) const EVENT_STREAM: &str = "text/event-stream";

/// Media type that `curl -d` sends unasked.
pub(crate) const FORM: &str = "application/x-www-form-urlencoded";

/// The methods that resources have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    /// GET, and HEAD, which the router answers from GET.
    Get,
    /// PUT.
    Put,
    /// POST.
    Post,
    /// DELETE.
    Delete,
}

impl Verb {
    const fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Post => "POST",
            Self::Delete => "DELETE",
        }
    }

    const fn filter(self) -> MethodFilter {
        match self {
            Self::Get => MethodFilter::GET,
            Self::Put => MethodFilter::PUT,
            Self::Post => MethodFilter::POST,
            Self::Delete => MethodFilter::DELETE,
        }
    }
}

/// Makes the route of one method of one path from an async function: renders its error for the
/// caller, counts and times, and has what is left of the request's body read. `caller` says how a
/// request's errors are rendered; `name` is the verb and the path's pattern.
pub(crate) fn route<F, Answer>(
    state: &Arc<State>,
    name: (Verb, &'static str),
    caller: fn(&HeaderMap) -> Caller,
    handler: F,
) -> MethodRouter
where
    F: Fn(Arc<State>, Request) -> Answer + Clone + Send + Sync + 'static,
    Answer: Future<Output = Result<Response, ApiError>> + Send + 'static,
{
    let endpoint = Endpoint::new(state, name, caller, handler);
    on(name.0.filter(), move |request| endpoint.call(request))
}

/// A handler with what surrounds it, see [`route`].
#[derive(Clone)]
pub(crate) struct Endpoint<F> {
    state: Arc<State>,
    metrics: Arc<RouteMetrics>,
    caller: fn(&HeaderMap) -> Caller,
    /// Whether a request changes nothing, so that it can be refused when it is answered.
    only_reads: bool,
    handler: F,
}

impl<F, Answer> Endpoint<F>
where
    F: Fn(Arc<State>, Request) -> Answer,
    Answer: Future<Output = Result<Response, ApiError>> + Send + 'static,
{
    /// Surrounds a handler.
    pub(crate) fn new(
        state: &Arc<State>,
        (verb, pattern): (Verb, &'static str),
        caller: fn(&HeaderMap) -> Caller,
        handler: F,
    ) -> Self {
        let metrics = Arc::new(state.metrics.http.route(verb.name(), pattern));
        let only_reads = verb == Verb::Get;
        Self { state: Arc::clone(state), metrics, caller, only_reads, handler }
    }

    /// Answers a request.
    pub(crate) fn call(
        &self,
        request: Request,
    ) -> impl Future<Output = Response> + Send + 'static + use<F, Answer> {
        let (state, metrics) = (Arc::clone(&self.state), Arc::clone(&self.metrics));
        let started = state.clock.monotonic();
        let (caller, only_reads) = ((self.caller)(request.headers()), self.only_reads);
        metrics.request_bytes.add(request.body().size_hint().exact().unwrap_or(0));
        // One load of an atomic where nobody asks for it, as by default. Without the query, which
        // may hold keys.
        let path = request.uri().path();
        let span = tracing::debug_span!("request", method = %request.method(), path);
        let request = read_to_its_end(&state, request);
        let answer = (self.handler)(Arc::clone(&state), request);
        let answering = async move {
            let answered =
                answer.await.and_then(|answer| match state.memory.charge_answer(&answer) {
                    Ok(Some(charge)) => Ok(charge.hold_answer(answer)),
                    Ok(None) => Ok(answer),
                    Err(used_up) if only_reads => Err(used_up.into()),
                    // What was done is told in any case.
                    Err(_) => Ok(answer),
                });
            let response = answered.unwrap_or_else(|error| error.respond(&caller));
            metrics.response_bytes.add(response.body().size_hint().exact().unwrap_or(0));
            let elapsed = state.clock.monotonic().saturating_sub(started);
            let status = response.status().as_u16();
            metrics.observe(status, elapsed);
            let elapsed_us = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
            tracing::debug!(status, elapsed_us, "answered");
            response
        };
        answering.instrument(span)
    }
}

/// Returns the topic that a path names, which is what follows `topics`, percent-decoded once;
/// `None` when what it decodes to is not text, which no name is. Asks the path and not the router,
/// which has not seen every request (see [`hot`](crate::api::hot)).
pub(crate) fn topic_in_path(uri: &Uri) -> Option<Cow<'_, str>> {
    let mut segments = uri.path().split('/').skip_while(|segment| *segment != "topics");
    decode_escapes(segments.nth(1)?, b'+')
}

/// Returns the path's one parameter, percent-decoded; `None` when what it decodes to is not text,
/// which no name is.
pub(crate) async fn path_parameter(parts: &mut Parts) -> Option<String> {
    parts.extract::<Path<String>>().await.ok().map(|Path(text)| text)
}

/// Reads a whole body. It is charged as long as a part of it is held.
///
/// # Errors
/// `too_large`, `request_timeout`, `overloaded` when the requests that are open hold too much, and
/// `invalid_request` when it ends early.
pub(crate) async fn read_body(state: &State, mut body: Body) -> Result<Bytes, ApiError> {
    let limit = state.config.max_body_bytes;
    let announced = body.size_hint().lower();
    if usize::try_from(announced).map_or(true, |bytes| bytes > limit) {
        return Err(body_too_large(announced, limit));
    }
    // Whoever will be refused anyway need not send it all.
    let weight = usize::try_from(announced).unwrap_or(limit).saturating_mul(BODY_WEIGHT);
    if weight > FREE_BYTES * BODY_WEIGHT && !state.memory.has_room(weight) {
        return Err(UsedUp.into());
    }
    let collecting = collect(&mut body, limit, &state.memory);
    match within(state.config.request_timeout, collecting).await {
        Ok(read) => read,
        Err(_) => Err(ApiError::new(
            Code::RequestTimeout,
            format!("the body did not arrive within {:?}", state.config.request_timeout),
        )),
    }
}

/// Waits for a future, at most for `limit`. One that is ready at once, as most bodies are, costs no
/// timer.
///
/// # Errors
/// `Elapsed` when the time is over.
pub(crate) async fn within<F: Future>(
    limit: Duration,
    future: F,
) -> Result<F::Output, tokio::time::error::Elapsed> {
    let mut future = std::pin::pin!(future);
    match poll_immediate(&mut future).await {
        Some(output) => Ok(output),
        None => tokio::time::timeout(limit, future).await,
    }
}

/// Finds the topic that a request writes to, creating it for `records` (none if they are not known
/// yet) where that is allowed, in the time that a request may take. A creation that is cut off is
/// finished by the next request, or at the next start.
///
/// # Errors
/// Those of [`Broker::topic_for_records`]; "outcome unknown" when the time is over.
///
/// [`Broker::topic_for_records`]: crate::broker::Broker::topic_for_records
pub(crate) async fn topic_to_write(
    state: &State,
    name: &str,
    partition: Option<u32>,
    records: &[ProduceRecord<'_>],
) -> Result<Arc<Topic>, ProduceError> {
    let found = state.broker.topic_for_records(&state.principal, name, partition, records);
    within(state.config.request_timeout, found).await.unwrap_or_else(|_| {
        let detail = "creating the topic took too long".to_owned();
        Err(TopicError::OutcomeUnknown(detail).into())
    })
}

fn body_too_large(bytes: u64, limit: usize) -> ApiError {
    let detail = format!("the body has {bytes} bytes or more, http.max_body_bytes is {limit}");
    ApiError::new(Code::TooLarge, detail)
}

async fn collect(body: &mut Body, limit: usize, memory: &Memory) -> Result<Bytes, ApiError> {
    let Some(first) = next_data(body).await? else {
        return Ok(Bytes::new());
    };
    // A small body arrives at once and is not copied.
    let is_whole = body.is_end_stream() && first.len() <= limit;
    if is_whole && first.len() <= FREE_BYTES {
        return Ok(first);
    }
    let mut charge = memory.charge();
    if is_whole {
        charge.cover(first.len() * BODY_WEIGHT)?;
        return Ok(charge.hold(first));
    }
    let rest = usize::try_from(body.size_hint().lower()).unwrap_or(0);
    let mut whole = Vec::with_capacity(first.len().saturating_add(rest).min(limit));
    let mut next = Some(first);
    while let Some(data) = next {
        if whole.len() + data.len() > limit {
            return Err(body_too_large((whole.len() + data.len()) as u64, limit));
        }
        // For what has arrived: room that is not written to yet holds no memory.
        charge.cover((whole.len() + data.len()) * BODY_WEIGHT)?;
        if whole.capacity() - whole.len() < data.len() {
            // Twice as much, as a vector does, but never past what a body may have.
            let room = limit - whole.len();
            whole.reserve_exact(whole.len().max(data.len()).min(room));
        }
        whole.extend_from_slice(&data);
        next = next_data(body).await?;
    }
    Ok(charge.hold(whole))
}

/// Checks that a body's bytes are what its type says, and not compressed.
///
/// # Errors
/// `unsupported_media_type`.
pub(crate) fn expect_identity(headers: &HeaderMap) -> Result<(), ApiError> {
    for given in headers.get_all(header::CONTENT_ENCODING) {
        let given = given.to_str().unwrap_or("?");
        let other = given
            .split(',')
            .map(str::trim)
            .find(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case("identity"));
        if let Some(coding) = other {
            let detail = format!("a body cannot have the Content-Encoding '{coding}'");
            return Err(ApiError::new(Code::UnsupportedMediaType, detail));
        }
    }
    Ok(())
}

/// Waits for the next bytes of a body, `None` at its end.
///
/// # Errors
/// `invalid_request` when the body breaks off.
///
/// # Cancel safety
/// No bytes are lost when the future is dropped.
pub(crate) async fn next_data(body: &mut Body) -> Result<Option<Bytes>, ApiError> {
    while let Some(frame) = body.frame().await {
        let frame = frame
            .map_err(|error| ApiError::invalid_request(format!("the body breaks off: {error}")))?;
        if let Ok(data) = frame.into_data()
            && !data.is_empty()
        {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

/// A parameter's name and value.
pub(crate) type Pair<'a> = (Cow<'a, str>, Cow<'a, str>);

/// Splits and decodes a query string, in order.
///
/// # Errors
/// `invalid_request` for escapes that are none, and for what is not UTF-8.
pub(crate) fn query(uri: &Uri) -> Result<Vec<Pair<'_>>, ApiError> {
    let Some(query) = uri.query() else {
        return Ok(Vec::new());
    };
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Ok((percent_decode(name)?, percent_decode(value)?))
        })
        .collect()
}

fn percent_decode(text: &str) -> Result<Cow<'_, str>, ApiError> {
    let refuse = || ApiError::invalid_request(format!("the query has a bad escape in '{text}'"));
    decode_escapes(text, b' ').ok_or_else(refuse)
}

/// Decodes `%xx`, and `+` to `plus`; `None` when an escape is none or the bytes are not UTF-8.
fn decode_escapes(text: &str, plus: u8) -> Option<Cow<'_, str>> {
    if memchr::memchr2(b'%', b'+', text.as_bytes()).is_none() {
        return Some(Cow::Borrowed(text));
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'+' => plus,
            b'%' => {
                let mut digit = || bytes.next().and_then(|byte| char::from(byte).to_digit(16));
                u8::try_from(digit()? * 16 + digit()?).unwrap_or_default()
            }
            other => other,
        });
    }
    String::from_utf8(decoded).ok().map(Cow::Owned)
}

/// The error about a query parameter that a resource does not have.
pub(crate) fn unknown_parameter(name: &str) -> ApiError {
    ApiError::invalid_request(format!("unknown query parameter '{name}'"))
}

/// The error about a query parameter that can be there once and is there twice.
pub(crate) fn repeated_parameter(name: &str) -> ApiError {
    ApiError::invalid_request(format!("query parameter '{name}' is given twice"))
}

/// The error about a query parameter whose value is not acceptable.
pub(crate) fn bad_parameter(name: &str, value: &str, expected: &str) -> ApiError {
    ApiError::invalid_request(format!("query parameter '{name}' must be {expected}, not '{value}'"))
}

/// A `Content-Type` or a range of `Accept`, split up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct MediaType<'a> {
    /// `type/subtype`, in the sender's case.
    pub(crate) essence: &'a str,
    parameters: &'a str,
}

impl<'a> MediaType<'a> {
    /// Splits a header's value.
    pub(crate) fn parse(text: &'a str) -> Self {
        let (essence, parameters) = text.split_once(';').unwrap_or((text, ""));
        Self { essence: essence.trim(), parameters }
    }

    /// Returns whether it is `essence`, whatever the parameters.
    pub(crate) fn is(&self, essence: &str) -> bool {
        self.essence.eq_ignore_ascii_case(essence)
    }

    /// Returns a parameter, without quotes.
    pub(crate) fn parameter(&self, name: &str) -> Option<&'a str> {
        self.parameters.split(';').find_map(|parameter| {
            let (found, value) = parameter.split_once('=')?;
            found.trim().eq_ignore_ascii_case(name).then(|| value.trim().trim_matches('"'))
        })
    }

    /// Checks that text of this type is UTF-8.
    ///
    /// # Errors
    /// `unsupported_media_type` when it names another charset.
    pub(crate) fn expect_utf8(&self) -> Result<(), ApiError> {
        match self.parameter("charset") {
            Some(charset)
                if !charset.eq_ignore_ascii_case("utf-8")
                    && !charset.eq_ignore_ascii_case("utf8") =>
            {
                let detail = format!("JSON is UTF-8, the request says charset '{charset}'");
                Err(ApiError::new(Code::UnsupportedMediaType, detail))
            }
            _ => Ok(()),
        }
    }
}

/// Chooses the media type of an answer: the one that `Accept` likes best, of equals the one that it
/// names most precisely, of those the first offer. Without `Accept` it is the first offer.
///
/// # Errors
/// `not_acceptable`.
pub(crate) fn negotiate(
    headers: &HeaderMap,
    offers: &'static [&'static str],
) -> Result<&'static str, ApiError> {
    let mut ranges = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|range| !range.is_empty())
        .peekable();
    let first = offers.first().copied().unwrap_or(JSON);
    if ranges.peek().is_none_or(|range| *range == "*/*" || *range == first) {
        return Ok(first);
    }
    let ranges: Vec<_> = ranges.map(MediaType::parse).collect();
    let mut best = None;
    for offer in offers {
        let matching = ranges.iter().filter_map(|range| {
            let precision = precision(range.essence, offer)?;
            Some((precision, quality(range)))
        });
        // The most precise range that matches decides, as RFC 9110 has it.
        let Some((precision, quality)) = matching.max_by_key(|(precision, _)| *precision) else {
            continue;
        };
        if quality > 0 && best.is_none_or(|(rank, _)| (quality, precision) > rank) {
            best = Some(((quality, precision), *offer));
        }
    }
    best.map(|(_, offer)| offer).ok_or_else(|| {
        let detail = format!("the answer can be {}", offers.join(", "));
        ApiError::new(Code::NotAcceptable, detail)
    })
}

fn precision(range: &str, offer: &str) -> Option<u8> {
    if range.eq_ignore_ascii_case(offer) {
        return Some(2);
    }
    if range == "*/*" {
        return Some(0);
    }
    let kind = range.strip_suffix("/*")?;
    offer.split_once('/').filter(|(offered, _)| offered.eq_ignore_ascii_case(kind)).map(|_| 1)
}

/// Returns `q` in thousandths; what cannot be read counts as 1, as if it were not there.
pub(crate) fn quality(range: &MediaType<'_>) -> u16 {
    let Some(text) = range.parameter("q") else {
        return 1000;
    };
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = fraction.bytes().chain(std::iter::repeat(b'0')).take(3);
    let thousandths =
        digits.fold(0_u16, |sum, digit| sum * 10 + u16::from(digit.wrapping_sub(b'0').min(9)));
    if whole == "0" { thousandths } else { 1000 }
}

/// Makes a JSON answer.
pub(crate) fn json(status: StatusCode, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(JSON));
    response
}

/// Makes a JSON answer of a DTO.
///
/// # Errors
/// `internal` when it cannot be written, which no DTO here causes.
pub(crate) fn json_of(
    status: StatusCode,
    body: &impl serde::Serialize,
) -> Result<Response, ApiError> {
    serde_json::to_vec(body)
        .map(|body| json(status, body))
        .map_err(|error| ApiError::new(Code::Internal, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFERS: &[&str] = &[JSON, NDJSON, EVENT_STREAM];

    fn accepted(accept: &[&'static str]) -> Option<&'static str> {
        let mut headers = HeaderMap::new();
        for value in accept {
            headers.append(header::ACCEPT, HeaderValue::from_static(value));
        }
        negotiate(&headers, OFFERS).ok()
    }

    #[test]
    fn accept_picks_the_answer() {
        for (accept, expected) in [
            (&[][..], Some(JSON)),
            (&["*/*"], Some(JSON)),
            (&["Application/JSON"], Some(JSON)),
            (&["application/*"], Some(JSON)),
            (&["text/event-stream"], Some(EVENT_STREAM)),
            (&["text/*"], Some(EVENT_STREAM)),
            (&["application/x-ndjson, */*"], Some(NDJSON)),
            (&["application/x-ndjson;q=0.5, application/json;q=0.4"], Some(NDJSON)),
            (&["application/x-ndjson; q=0.5", "application/json"], Some(JSON)),
            (&["text/html, application/xhtml+xml, */*;q=0.8"], Some(JSON)),
            (&["application/json;q=0, */*"], Some(NDJSON)),
            (&["text/html"], None),
            (&["application/json;q=0"], None),
            (&["application/json;q=0.000"], None),
        ] {
            assert_eq!(accepted(accept), expected, "{accept:?}");
        }
    }

    #[test]
    fn queries_are_decoded_once() {
        let uri: Uri = "/x?a=1&b=%2B+%C3%A9&c&d=a%3D%26b&&=e".parse().unwrap();
        let pairs = query(&uri).unwrap();
        let pairs: Vec<_> = pairs.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!(pairs, [("a", "1"), ("b", "+ \u{e9}"), ("c", ""), ("d", "a=&b"), ("", "e")]);
        for bad in ["/x?a=%", "/x?a=%2", "/x?a=%zz", "/x?%ff=1"] {
            let uri: Uri = bad.parse().unwrap();
            assert_eq!(query(&uri).unwrap_err().code(), Code::InvalidRequest, "{bad}");
        }
    }

    #[test]
    fn json_in_another_charset_is_not_taken() {
        let charset = |text| MediaType::parse(text).expect_utf8().is_ok();
        assert!(charset("application/json"));
        assert!(charset("application/json; charset=UTF-8"));
        assert!(charset("application/json;a=b;Charset=\"utf-8\""));
        assert!(!charset("application/json; charset=latin1"));
        assert!(MediaType::parse(" Application/JSON ;x").is(JSON));
    }
}
