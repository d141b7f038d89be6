//! `eddyline topic`: create, list, describe and delete.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Context;
use reqwest::{Method, StatusCode};
use serde::{Deserialize, Serialize};

use super::client::{Client, send, send_json};
use super::{TopicArgs, TopicCommand};
use crate::types::TopicName;

#[derive(Debug, Serialize)]
struct CreateBody {
    #[serde(skip_serializing_if = "Option::is_none")]
    partitions: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replication_factor: Option<u32>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    configs: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
struct TopicList {
    topics: Vec<TopicObject>,
    next: Option<String>,
}

#[derive(Debug, Deserialize)]
struct TopicObject {
    topic: String,
    topic_id: String,
    partitions: u32,
    replication_factor: u32,
    #[serde(default)]
    configs: BTreeMap<String, String>,
    #[serde(default)]
    details: Vec<PartitionObject>,
}

#[derive(Debug, Deserialize)]
struct PartitionObject {
    partition: u32,
    leader: Option<u64>,
    log_start_offset: u64,
    log_end_offset: u64,
    size_bytes: u64,
}

/// Runs the command.
pub(super) async fn run(args: TopicArgs) -> anyhow::Result<ExitCode> {
    let client = Client::new(&args.server.url)?;
    match args.command {
        TopicCommand::Create { topic, partitions, replication_factor, configs } => {
            let configs =
                configs.iter().map(|text| name_and_value(text)).collect::<Result<_, _>>()?;
            create(&client, &topic, &CreateBody { partitions, replication_factor, configs })
                .await?;
        }
        TopicCommand::List { prefix } => list(&client, &prefix).await?,
        TopicCommand::Describe { topic } => describe(&client, &topic).await?,
        TopicCommand::Delete { topic } => {
            send(client.topics(Method::DELETE, Some(&topic), "", &[])).await?;
            writeln!(io::stdout(), "deleted {topic}")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn name_and_value(text: &str) -> anyhow::Result<(String, String)> {
    let (name, value) =
        text.split_once('=').with_context(|| format!("--config {text} is not NAME=VALUE"))?;
    Ok((name.to_owned(), value.to_owned()))
}

async fn create(client: &Client, topic: &TopicName, body: &CreateBody) -> anyhow::Result<()> {
    let request = client.topics(Method::PUT, Some(topic), "", &[]).json(body);
    let response = send(request).await?;
    let verb = if response.status() == StatusCode::CREATED { "created" } else { "exists" };
    let answer: TopicObject = response.json().await.context("reading the server's answer")?;
    writeln!(io::stdout(), "{verb} {topic} with {} partitions", answer.partitions)?;
    Ok(())
}

async fn list(client: &Client, prefix: &str) -> anyhow::Result<()> {
    let mut cursor = None::<String>;
    loop {
        let mut query = vec![("limit", "1000")];
        if !prefix.is_empty() {
            query.push(("prefix", prefix));
        }
        query.extend(cursor.iter().map(|cursor| ("cursor", cursor.as_str())));
        let page: TopicList = send_json(client.topics(Method::GET, None, "", &query)).await?;
        let mut out = io::stdout().lock();
        for topic in &page.topics {
            writeln!(out, "{}\t{}\t{}", topic.topic, topic.partitions, topic.replication_factor)?;
        }
        drop(out);
        match page.next {
            Some(next) => cursor = Some(next),
            None => return Ok(()),
        }
    }
}

async fn describe(client: &Client, topic: &TopicName) -> anyhow::Result<()> {
    let answer: TopicObject = send_json(client.topics(Method::GET, Some(topic), "", &[])).await?;
    let mut out = io::stdout().lock();
    writeln!(out, "topic               {}", answer.topic)?;
    writeln!(out, "id                  {}", answer.topic_id)?;
    writeln!(out, "partitions          {}", answer.partitions)?;
    writeln!(out, "replication factor  {}", answer.replication_factor)?;
    for (name, value) in &answer.configs {
        writeln!(out, "config              {name}={value}")?;
    }
    writeln!(out, "\npartition  leader         start           end         bytes")?;
    for part in &answer.details {
        let leader = part.leader.map_or_else(|| String::from("none"), |leader| leader.to_string());
        writeln!(
            out,
            "{:>9}  {leader:>6}  {:>12}  {:>12}  {:>12}",
            part.partition, part.log_start_offset, part.log_end_offset, part.size_bytes
        )?;
    }
    Ok(())
}
