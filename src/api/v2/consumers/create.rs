//! Making and ending instances.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderMap, Uri, header, uri::Authority};
use axum::response::Response;
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::api::State;
use crate::api::error::{ApiError, Code};
use crate::api::v2::consumers::registry::{InUse, Taken};
use crate::api::v2::consumers::{ErrorBody, control, group_of, instance_of, no_content, read};
use crate::api::v2::media::Embedded;
use crate::api::v2::{answer, body};
use crate::broker::{Assignor, GroupError, OffsetReset};
use crate::types::{GroupName, InstanceId};

/// Largest `fetch.min.bytes`, as in Confluent's proxy.
const MIN_BYTES_MAX: i64 = 10_000_000;

/// Longest `consumer.request.timeout.ms` and `consumer.instance.timeout.ms`.
const MILLIS_MAX: i64 = 24 * 60 * 60 * 1000;

/// What an instance was made with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) format: Embedded,
    pub(super) offset_reset: OffsetReset,
    pub(super) auto_commit: bool,
    /// Bytes that a poll waits for.
    pub(super) min_bytes: u64,
    /// How long polls wait, when the client said so.
    pub(super) request_timeout: Option<Duration>,
    /// How long the instance may be idle, when the client said so.
    pub(super) idle_max: Option<Duration>,
    pub(super) session_timeout: Option<Duration>,
    pub(super) instance_id: Option<String>,
    /// How partitions should be shared out.
    pub(super) assignor: Option<Assignor>,
}

/// How an instance shall be; every member may be absent, and unknown ones are ignored.
#[derive(ToSchema)]
#[schema(as = V2CreateConsumer)]
#[expect(dead_code, reason = "describes the body to clients, who mix numbers and strings in it")]
pub(super) struct CreateBody {
    /// The instance's name; made up when absent.
    name: Option<String>,
    /// `binary`, `json` or `text`.
    #[schema(default = "binary")]
    format: Option<String>,
    /// `earliest`, `latest` or `none`.
    #[schema(rename = "auto.offset.reset", default = "latest")]
    auto_offset_reset: Option<String>,
    /// Whether the positions of the poll before the last are committed every 5 s and at the end.
    #[schema(rename = "auto.commit.enable", default = "true")]
    auto_commit_enable: Option<String>,
    /// Bytes that a poll waits for.
    #[schema(rename = "fetch.min.bytes")]
    fetch_min_bytes: Option<i64>,
    /// How long a poll waits for records.
    #[schema(rename = "consumer.request.timeout.ms", default = 1000)]
    consumer_request_timeout_ms: Option<i64>,
    /// How long the instance may be idle.
    #[schema(rename = "consumer.instance.timeout.ms", default = 300_000)]
    consumer_instance_timeout_ms: Option<i64>,
    /// How long the group waits for the member when its node is gone.
    #[schema(rename = "session.timeout.ms", default = 45_000)]
    session_timeout_ms: Option<i64>,
    /// Makes the member static.
    #[schema(rename = "group.instance.id")]
    group_instance_id: Option<String>,
    /// How partitions should be shared out, `uniform` or `range`.
    #[schema(rename = "group.remote.assignor")]
    group_remote_assignor: Option<String>,
    /// `reuse` takes an instance over that has the name already, from what its group committed.
    if_exists: Option<String>,
}

/// A new instance.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = V2Consumer)]
pub(super) struct Created {
    /// Its name.
    instance_id: String,
    /// Where it is found.
    base_uri: String,
}

/// Makes a consumer instance.
#[utoipa::path(post, path = "/consumers/{group}", operation_id = "v2CreateConsumer", tag = "v2",
    params(("group" = String, Path, description = "The group's name")),
    request_body(content = Option<CreateBody>, content_type = "application/vnd.kafka.v2+json"),
    responses(
        (status = 200, description = "It is there", body = Created,
            content_type = "application/vnd.kafka.v2+json"),
        (status = "4XX", description = "400; 406; 408 40801: no schema registry; 409 40902: the \
            name is taken; 415; 422, 40001, 42204, 42206: not acceptable", body = ErrorBody,
            content_type = "application/vnd.kafka.v2+json"),
        (status = 503, description = "50303: too many instances", body = ErrorBody,
            content_type = "application/vnd.kafka.v2+json")))]
pub(super) async fn create(state: Arc<State>, request: Request) -> Result<Response, ApiError> {
    let (mut parts, content) = request.into_parts();
    let media_type = control(&parts.headers)?;
    let group = group_of(&mut parts).await?;
    let content = read(&state, content).await?;
    let Asked { name, settings, reuse } = asked(&content)?;
    let invalid = |what, name: &str, source| {
        ApiError::from(GroupError::InvalidName { name: name.to_owned(), what, source })
    };
    GroupName::parse_for_write(&group).map_err(|error| invalid("group name", &group, error))?;
    let name = name.unwrap_or_else(|| format!("rest-consumer-{}", Uuid::new_v4()));
    InstanceId::parse(&name).map_err(|error| invalid("instance name", &name, error))?;
    match state.consumers.insert(&state, (&group, &name), settings.clone()) {
        Ok(_new) => {}
        Err(Taken::By(there)) if reuse => take_over(&state, &there, settings).await?,
        Err(Taken::By(_)) => {
            let detail = "Consumer with specified consumer ID already exists in the specified \
                consumer group.";
            return Err(ApiError::new(Code::InstanceExists, detail));
        }
        Err(Taken::Full(error)) => return Err(error),
    }
    let base = base_uri(&state, &parts.headers, &parts.uri);
    let (group, instance) = (escape(&group), escape(&name));
    let base_uri = format!("{base}/consumers/{group}/instances/{instance}");
    answer(media_type, &Created { instance_id: name, base_uri })
}

/// Gives an instance to the process that asks for its name: with its partitions, so that nothing
/// moves, from what is committed, since nobody knows what the former process did.
async fn take_over(state: &State, there: &InUse, settings: Settings) -> Result<(), ApiError> {
    // Ends the poll that the former process may have left waiting.
    drop(there.begin_poll());
    let mut consumer = there.consumer.lock().await;
    there.set_idle_max(settings.idle_max);
    consumer.settings = settings;
    consumer.sync(state).await?;
    consumer.rewind(state).await
}

/// Ends a consumer instance.
#[utoipa::path(delete, path = "/consumers/{group}/instances/{instance}",
    operation_id = "v2DeleteConsumer", tag = "v2",
    params(
        ("group" = String, Path, description = "The group's name"),
        ("instance" = String, Path, description = "The instance's name")),
    responses(
        (status = 204, description = "It is gone and has left the group"),
        (status = 404, description = "40403: no such instance", body = ErrorBody,
            content_type = "application/vnd.kafka.v2+json")))]
pub(super) async fn delete(state: Arc<State>, request: Request) -> Result<Response, ApiError> {
    let (mut parts, _) = request.into_parts();
    control(&parts.headers)?;
    let instance = instance_of(&state, &mut parts).await?;
    state.consumers.remove(&instance);
    instance.close(&state).await;
    Ok(no_content())
}

/// A create body, read.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    name: Option<String>,
    settings: Settings,
    reuse: bool,
}

fn asked(content: &[u8]) -> Result<Asked, ApiError> {
    let members = match content.trim_ascii() {
        b"" => Map::new(),
        text => match serde_json::from_slice(text) {
            Ok(Value::Object(members)) => members,
            Ok(_) => return Err(ApiError::new(Code::InvalidBody, "expected an object")),
            Err(error) => {
                let detail = format!("Bad Request: {error}");
                return Err(ApiError::invalid_request(detail));
            }
        },
    };
    let get = |names: &[&str]| {
        names.iter().find_map(|name| members.get(*name).filter(|value| !value.is_null()))
    };
    let text = |names: &[&str]| match get(names) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => {
            let name = names.first().copied().unwrap_or_default();
            let detail = format!("'{name}' must be a string, not {other}");
            Err(ApiError::new(Code::InvalidBody, detail))
        }
    };
    let millis = |names: &[&str]| match get(names) {
        None => Ok(None),
        Some(value) => match integer(value) {
            // The REST Proxy's -1 stands for its default.
            Some(-1) => Ok(None),
            Some(millis @ 0..=MILLIS_MAX) => Ok(Some(Duration::from_millis(millis.unsigned_abs()))),
            _ => Err(invalid(names.first().copied().unwrap_or_default(), value)),
        },
    };
    let settings = Settings {
        format: format(text(&["format"])?.as_deref())?,
        offset_reset: offset_reset(get(&["auto.offset.reset"]))?,
        auto_commit: boolean(
            "auto.commit.enable",
            get(&["auto.commit.enable", "enable.auto.commit"]),
        )?,
        min_bytes: min_bytes(get(&["fetch.min.bytes", "responseMinBytes"]))?,
        request_timeout: millis(&["consumer.request.timeout.ms", "requestWaitMs"])?,
        idle_max: millis(&["consumer.instance.timeout.ms"])?
            .map(|idle| idle.max(Duration::from_secs(1))),
        session_timeout: millis(&["session.timeout.ms"])?,
        instance_id: text(&["group.instance.id"])?,
        assignor: assignor(get(&["group.remote.assignor"]))?,
    };
    let reuse = match get(&["if_exists"]) {
        None => false,
        Some(Value::String(text)) if text == "reuse" => true,
        Some(Value::String(text)) if text == "fail" => false,
        Some(other) => {
            let detail = format!("'if_exists' must be \"reuse\" or \"fail\", not {other}");
            return Err(ApiError::new(Code::InvalidBody, detail));
        }
    };
    Ok(Asked { name: text(&["id", "name"])?, settings, reuse })
}

fn invalid(name: &str, value: &Value) -> ApiError {
    let detail = format!("Invalid consumer configuration: {name} cannot be {value}");
    ApiError::new(Code::InvalidConsumer, detail)
}

/// Reads an integer; clients also send it as a string.
fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::Number(number) => number.as_i64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

fn format(text: Option<&str>) -> Result<Embedded, ApiError> {
    match text {
        None | Some("binary") => Ok(Embedded::Binary),
        Some("json") => Ok(Embedded::Json),
        Some("text") => Ok(Embedded::Text),
        Some("avro" | "jsonschema" | "protobuf") => {
            let message = "No schema registry is configured.".to_owned();
            let (kind, pointer) = (body::FaultKind::NoRegistry, "/format".to_owned());
            Err(body::Fault { kind, message, pointer }.into())
        }
        Some(_) => Err(ApiError::new(Code::InvalidBody, "Invalid format type.")),
    }
}

fn offset_reset(value: Option<&Value>) -> Result<OffsetReset, ApiError> {
    match value.map(|value| (value, value.as_str().unwrap_or_default())) {
        None | Some((_, "latest")) => Ok(OffsetReset::Latest),
        Some((_, "earliest")) => Ok(OffsetReset::Earliest),
        Some((_, "none")) => Ok(OffsetReset::None),
        Some((value, _)) => Err(invalid("auto.offset.reset", value)),
    }
}

/// Reads the assignor by the name of Kafka's own setting.
fn assignor(value: Option<&Value>) -> Result<Option<Assignor>, ApiError> {
    let parse = |value: &Value| {
        let found = value.as_str().and_then(Assignor::parse);
        found.ok_or_else(|| invalid("group.remote.assignor", value))
    };
    value.map(parse).transpose()
}

fn boolean(name: &str, value: Option<&Value>) -> Result<bool, ApiError> {
    match value {
        None => Ok(true),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(other) => Err(invalid(name, other)),
    }
}

fn min_bytes(value: Option<&Value>) -> Result<u64, ApiError> {
    let Some(value) = value else {
        return Ok(1);
    };
    match integer(value) {
        Some(-1) => Ok(1),
        Some(bytes @ 0..=MIN_BYTES_MAX) => Ok(bytes.unsigned_abs()),
        _ => {
            let detail = format!(
                "Invalid consumer configuration. It does not abide by the constraints: \
                 fetch.min.bytes must be from -1 to {MIN_BYTES_MAX}, not {value}"
            );
            Err(ApiError::new(Code::InvalidConsumer, detail).with_error_code(40001))
        }
    }
}

/// Finds the URL by which the client reaches this server: what proxies say before us, the request
/// itself, or the node's own.
fn base_uri(state: &State, headers: &HeaderMap, uri: &Uri) -> String {
    let own = || {
        let cluster = (state.sources.cluster)(&state.principal);
        let node = cluster.nodes.into_iter().find(|node| node.node == state.sources.node);
        node.map(|node| node.url).unwrap_or_default()
    };
    forwarded(headers, uri).unwrap_or_else(own)
}

fn forwarded(headers: &HeaderMap, uri: &Uri) -> Option<String> {
    let first = |name: &str| {
        let value = headers.get(name)?.to_str().ok()?;
        Some(value.split(',').next()?.trim()).filter(|value| !value.is_empty())
    };
    let host =
        |text: &str| text.parse::<Authority>().ok().filter(|host| !host.as_str().contains('@'));
    let rfc = |part: &str| {
        first("forwarded")?.split(';').find_map(|pair| {
            let (name, value) = pair.split_once('=')?;
            let is_it = name.trim().eq_ignore_ascii_case(part);
            is_it.then(|| value.trim().trim_matches('"').to_owned())
        })
    };
    let by_proxy = rfc("host")
        .or_else(|| first("x-forwarded-host").map(str::to_owned))
        .and_then(|text| host(&text));
    let direct = || {
        let named = headers.get(header::HOST).and_then(|value| value.to_str().ok()).and_then(host);
        named.or_else(|| uri.authority().cloned())
    };
    let authority = by_proxy.or_else(direct)?;
    let scheme = rfc("proto").or_else(|| first("x-forwarded-proto").map(str::to_owned));
    let scheme = scheme.map(|text| text.to_ascii_lowercase());
    let scheme = scheme.filter(|scheme| scheme == "https").map_or("http", |_| "https");
    let port = first("x-forwarded-port").and_then(|port| port.parse::<u16>().ok());
    let usual = if scheme == "https" { 443 } else { 80 };
    let port = port.filter(|port| authority.port().is_none() && *port != usual);
    let port = port.map(|port| format!(":{port}")).unwrap_or_default();
    // Strimzi's clients know the prefix as the path.
    let prefix = first("x-forwarded-prefix").or_else(|| first("x-forwarded-path"));
    let prefix = prefix.map(|prefix| prefix.trim_matches('/')).filter(|prefix| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/%".contains(&byte);
        !prefix.is_empty() && prefix.bytes().all(plain)
    });
    let prefix = prefix.map(|prefix| format!("/{prefix}")).unwrap_or_default();
    Some(format!("{scheme}://{authority}{port}{prefix}"))
}

/// Percent-encodes one segment of a path.
fn escape(text: &str) -> String {
    use std::fmt::Write as _;
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    fn base(headers: &[(&str, &str)]) -> Option<String> {
        let pair = |(name, value): &(&str, &str)| {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            (name, HeaderValue::from_str(value).unwrap())
        };
        let headers: HeaderMap = headers.iter().map(pair).collect();
        forwarded(&headers, &Uri::from_static("/consumers/g"))
    }

    #[test]
    fn the_base_uri_is_what_the_client_can_reach() {
        for (headers, expected) in [
            (&[("host", "h:8080")][..], "http://h:8080"),
            (&[("host", "h"), ("x-forwarded-proto", "https")], "https://h"),
            (&[("host", "h:1"), ("x-forwarded-host", "pub.example, h:1")], "http://pub.example"),
            (
                &[
                    ("host", "h:1"),
                    ("x-forwarded-host", "p"),
                    ("x-forwarded-port", "8443"),
                    ("x-forwarded-proto", "https"),
                    ("x-forwarded-prefix", "/kafka/"),
                ],
                "https://p:8443/kafka",
            ),
            (&[("host", "h"), ("x-forwarded-port", "80")], "http://h"),
            (&[("host", "h"), ("x-forwarded-path", "/bridge")], "http://h/bridge"),
            (
                &[("host", "h:1"), ("forwarded", "for=1.2.3.4;host=\"f:2\";proto=https, for=x")],
                "https://f:2",
            ),
            (&[("host", "h"), ("x-forwarded-host", "a b")], "http://h"),
            (&[("host", "h"), ("x-forwarded-proto", "javascript")], "http://h"),
            (&[("host", "h"), ("x-forwarded-prefix", "/a\"b")], "http://h"),
            (&[("host", "[::1]:8080")], "http://[::1]:8080"),
        ] {
            assert_eq!(base(headers).as_deref(), Some(expected), "{headers:?}");
        }
        assert_eq!(base(&[]), None);
    }

    #[test]
    fn names_are_one_segment() {
        assert_eq!(escape("a/b c\u{e9}-._~"), "a%2Fb%20c%C3%A9-._~");
    }

    #[test]
    fn settings_are_read_as_clients_of_all_proxies_send_them() {
        let defaults = asked(b"").unwrap();
        assert_eq!(defaults, asked(b"{}").unwrap());
        assert_eq!(defaults.settings.format, Embedded::Binary);
        assert_eq!(defaults.settings.offset_reset, OffsetReset::Latest);
        assert!(defaults.settings.auto_commit && !defaults.reuse);
        let asked = asked(
            br#"{"id":"i","name":"n","format":"json","auto.offset.reset":"earliest","x":[1],
            "auto.commit.enable":"False","fetch.min.bytes":"7","consumer.request.timeout.ms":200,
            "if_exists":"reuse","session.timeout.ms":null}"#,
        )
        .unwrap();
        assert_eq!(asked.name.as_deref(), Some("i"));
        assert!(asked.reuse && !asked.settings.auto_commit);
        assert_eq!(asked.settings.min_bytes, 7);
        assert_eq!(asked.settings.request_timeout, Some(Duration::from_millis(200)));
        assert_eq!(asked.settings.session_timeout, None);
    }

    #[test]
    fn what_no_instance_can_be_has_its_number() {
        for (body, status, error_code) in [
            ("[]", 422, 422),
            ("{", 400, 400),
            (r#"{"format":"xml"}"#, 422, 422),
            (r#"{"format":1}"#, 422, 422),
            (r#"{"name":1}"#, 422, 422),
            (r#"{"format":"avro"}"#, 408, 40801),
            (r#"{"auto.offset.reset":"bar"}"#, 422, 42204),
            (r#"{"auto.commit.enable":"perhaps"}"#, 422, 42204),
            (r#"{"consumer.request.timeout.ms":"soon"}"#, 422, 42204),
            (r#"{"fetch.min.bytes":-2}"#, 422, 40001),
            (r#"{"fetch.min.bytes":10000001}"#, 422, 40001),
            (r#"{"if_exists":"other"}"#, 422, 422),
            (r#"{"group.remote.assignor":"fair"}"#, 422, 42204),
        ] {
            let error = asked(body.as_bytes()).unwrap_err();
            let found = (error.code().row().status.as_u16(), error.error_code());
            assert_eq!(found, (status, error_code), "{body}");
        }
    }
}
