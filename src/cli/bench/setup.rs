//! What a load needs before it begins: a topic, descriptors, durations that people write.

use std::time::Duration;

use anyhow::{Context, bail};
use reqwest::Method;
use rustix::process::Resource;
use serde::Deserialize;
use serde_json::json;

use crate::cli::client::{Client, Refusal, send_json};
use crate::types::TopicName;

/// Descriptors that a process needs beside its connections.
const DESCRIPTORS_BESIDE: u64 = 64;

#[derive(Debug, Deserialize)]
struct Topic {
    partitions: u32,
}

/// Reads a duration like `500ms`, `30s` or `1h 30m`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let parsed: jiff::SignedDuration =
        text.parse().map_err(|error: jiff::Error| error.to_string())?;
    parsed.try_into().map_err(|error: jiff::Error| error.to_string())
}

/// Returns the partitions of a topic, making it when it is missing: with as many as were asked for,
/// else with `default`.
///
/// # Errors
/// When the topic has other partitions than asked for, and the server's.
pub(super) async fn topic(
    client: &Client,
    topic: &TopicName,
    (asked, default): (Option<u32>, u32),
) -> anyhow::Result<u32> {
    let found: anyhow::Result<Topic> =
        send_json(client.topics(Method::GET, Some(topic), "", &[])).await;
    match (found, asked) {
        (Ok(found), Some(asked)) if found.partitions != asked => {
            bail!("{topic} has {} partitions and not {asked}", found.partitions)
        }
        (Ok(found), _) => Ok(found.partitions),
        (Err(error), _) if is_missing(&error) => {
            let partitions = asked.unwrap_or(default);
            let request = client.topics(Method::PUT, Some(topic), "", &[]);
            let made = send_json::<Topic>(request.json(&json!({"partitions": partitions}))).await;
            Ok(made.with_context(|| format!("making the topic {topic}"))?.partitions)
        }
        (Err(error), _) => Err(error),
    }
}

fn is_missing(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Refusal>().is_some_and(|refusal| refusal.code == "topic_not_found")
}

/// Checks that the process may open so many connections.
///
/// # Errors
/// What the limit is and what is needed.
pub(super) fn check_descriptors(connections: u64) -> anyhow::Result<()> {
    let limit = rustix::process::getrlimit(Resource::Nofile).current;
    let needed = connections.saturating_add(DESCRIPTORS_BESIDE);
    match limit {
        Some(limit) if limit < needed => bail!(
            "{connections} connections need {needed} descriptors and this process may have {limit} \
             (ulimit -n): use several processes"
        ),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, millis) in [("500ms", 500), ("30s", 30_000), ("1m", 60_000), ("0s", 0)] {
            assert_eq!(duration(text).unwrap(), Duration::from_millis(millis), "{text}");
        }
        for text in ["", "x", "10", "-1s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn more_connections_than_descriptors_are_refused_with_both_numbers() {
        assert!(check_descriptors(1).is_ok());
        let error = check_descriptors(1 << 40).unwrap_err().to_string();
        assert!(error.contains("1099511627776 connections"), "{error}");
        assert!(error.contains("ulimit -n"), "{error}");
    }
}
