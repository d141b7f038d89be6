//! HTTP as the commands use it: one base URL, and problems turned into sentences.

use std::time::Duration;

use anyhow::{Context, bail};
use reqwest::{ClientBuilder, Method, RequestBuilder, Response, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::types::TopicName;

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of an answer that is not what was asked for that are looked at.
const PROBLEM_BYTES_MAX: usize = 64 * 1024;

/// A server to talk to.
#[derive(Debug, Clone)]
pub(super) struct Client {
    http: reqwest::Client,
    base: Url,
}

/// What a server says when it refuses; only what is shown.
#[derive(Debug, Deserialize)]
pub(super) struct Refusal {
    #[serde(default)]
    pub(super) code: String,
    #[serde(default)]
    pub(super) message: String,
    #[serde(default)]
    retriable: bool,
    /// The first offset of a damaged range, where that is what it refuses.
    #[serde(default)]
    damaged_from: Option<i64>,
}

impl Refusal {
    /// Returns whether the same request may succeed soon. A damaged range may be repaired, but not
    /// while somebody watches.
    pub(super) fn is_passing(&self) -> bool {
        self.retriable && self.damaged_from.is_none()
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.code.as_str() {
            "" => f.write_str(&self.message),
            code => write!(f, "{code}: {}", self.message),
        }
    }
}

impl std::error::Error for Refusal {}

/// Nobody answers where the server should be.
#[derive(Debug, thiserror::Error)]
#[error("no connection to {server}: {cause}")]
pub(super) struct NoConnection {
    server: String,
    cause: String,
}

impl Client {
    /// Makes a client of the server at `url`.
    pub(super) fn new(url: &str) -> anyhow::Result<Self> {
        Self::build(url, |builder| builder)
    }

    /// Makes a client that opens WebSockets, which take a connection of HTTP/1.1 each.
    pub(super) fn for_sockets(url: &str) -> anyhow::Result<Self> {
        Self::build(url, |builder| builder.http1_only().pool_max_idle_per_host(0))
    }

    fn build(url: &str, adapt: fn(ClientBuilder) -> ClientBuilder) -> anyhow::Result<Self> {
        let base: Url = url.parse().with_context(|| format!("'{url}' is not a URL"))?;
        if !matches!(base.scheme(), "http" | "https") {
            bail!("'{url}' is not an http:// or https:// URL");
        }
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .user_agent(concat!("eddyline/", env!("CARGO_PKG_VERSION")));
        let host = base.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let is_local = host == "localhost"
            || host.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback());
        if is_local {
            builder = builder.no_proxy();
        }
        let http = adapt(builder).build().context("making an HTTP client")?;
        Ok(Self { http, base })
    }

    /// Starts a request to `/v1/ws`.
    pub(super) fn socket(&self) -> RequestBuilder {
        let mut url = self.base.clone();
        url.set_path(&format!("{}/v1/ws", self.base.path().trim_end_matches('/')));
        self.http.get(url)
    }

    /// Starts a request to `/v1/topics`, a topic, or what is below one.
    pub(super) fn topics(
        &self,
        method: Method,
        topic: Option<&TopicName>,
        below: &str,
        query: &[(&str, &str)],
    ) -> RequestBuilder {
        let mut url = self.base.clone();
        let mut path = format!("{}/v1/topics", self.base.path().trim_end_matches('/'));
        for part in topic.map(TopicName::as_str).into_iter().chain([below]) {
            if !part.is_empty() {
                path.push('/');
                path.push_str(part);
            }
        }
        url.set_path(&path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        self.http.request(method, url)
    }

    /// Starts a request to `/v1/groups` or what is below it; names may have any characters.
    pub(super) fn groups(
        &self,
        method: Method,
        below: &[&str],
        query: &[(&str, &str)],
    ) -> RequestBuilder {
        let mut url = self.base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(["v1", "groups"]).extend(below);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        self.http.request(method, url)
    }

    /// Returns the server's URL, for messages.
    pub(super) fn url(&self) -> &str {
        self.base.as_str()
    }
}

/// Sends a request and returns the answer if it is a success.
///
/// # Errors
/// A [`Refusal`] when the server answered something else, or why there is no answer.
pub(super) async fn send(request: RequestBuilder) -> anyhow::Result<Response> {
    let response = request.send().await.map_err(without_url)?;
    if response.status().is_success() {
        return Ok(response);
    }
    Err(refusal(response).await.into())
}

/// Sends a request and reads its JSON answer.
///
/// # Errors
/// As [`send`], and when the answer is not what it should be.
pub(super) async fn send_json<T: DeserializeOwned>(request: RequestBuilder) -> anyhow::Result<T> {
    let response = send(request).await?;
    response.json().await.map_err(without_url).context("reading the server's answer")
}

/// Reads what a refusing answer says.
pub(super) async fn refusal(mut response: Response) -> Refusal {
    let status = response.status();
    let mut body = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        body.extend_from_slice(&chunk);
        if body.len() > PROBLEM_BYTES_MAX {
            break;
        }
    }
    match serde_json::from_slice::<Refusal>(&body) {
        Ok(refusal) if !refusal.message.is_empty() => refusal,
        _ => Refusal {
            code: String::new(),
            message: format!("the server answered {status}"),
            retriable: status.is_server_error(),
            damaged_from: None,
        },
    }
}

/// Says what went wrong with a request without repeating its URL.
pub(super) fn without_url(error: reqwest::Error) -> anyhow::Error {
    if !error.is_connect() {
        return error.without_url().into();
    }
    let server = error.url().map_or_else(String::new, |url| url.origin().ascii_serialization());
    let mut cause: &dyn std::error::Error = &error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    NoConnection { server, cause: cause.to_string() }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_go_below_the_servers_url() {
        let topic = TopicName::parse("a.b").unwrap();
        let url = |base: &str| {
            let client = Client::new(base).unwrap();
            let query = [("from", "a b&c")];
            let request = client.topics(Method::GET, Some(&topic), "records", &query);
            request.build().unwrap().url().to_string()
        };
        assert_eq!(url("http://h:1"), "http://h:1/v1/topics/a.b/records?from=a+b%26c");
        assert_eq!(url("http://h:1/x/"), "http://h:1/x/v1/topics/a.b/records?from=a+b%26c");
        let client = Client::new("http://h:1").unwrap();
        let list = client.topics(Method::GET, None, "", &[]).build().unwrap();
        assert_eq!(list.url().as_str(), "http://h:1/v1/topics");
    }

    #[test]
    fn names_of_groups_are_one_segment() {
        let client = Client::new("http://h:1/x/").unwrap();
        let request = client.groups(Method::GET, &["a/b c", "offsets"], &[("limit", "1")]);
        let url = request.build().unwrap().url().to_string();
        assert_eq!(url, "http://h:1/x/v1/groups/a%2Fb%20c/offsets?limit=1");
    }

    #[test]
    fn other_schemes_are_refused() {
        assert!(Client::new("ftp://h").is_err());
        assert!(Client::new("h:8080").is_err());
    }
}
