//! `eddyline group`: list, describe, reset and delete consumer groups.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Context, bail};
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use super::client::{Client, send, send_json};
use super::{GroupArgs, GroupCommand, ResetArgs};

#[derive(Debug, Deserialize)]
struct GroupList {
    groups: Vec<Summary>,
    next: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Summary {
    group: String,
    state: String,
    members: u64,
    lag: u64,
}

#[derive(Debug, Deserialize)]
struct Group {
    group: String,
    state: String,
    epoch: u32,
    assignor: String,
    coordinator: Option<u64>,
    members: Vec<Member>,
    offsets: Vec<Committed>,
    lag: u64,
    rebalances: Vec<Rebalance>,
}

#[derive(Debug, Deserialize)]
struct Member {
    member_id: String,
    instance_id: Option<String>,
    kind: String,
    state: String,
    assignment: Vec<Assignment>,
}

#[derive(Debug, Deserialize)]
struct Assignment {
    topic: String,
    partition: u32,
}

#[derive(Debug, Deserialize)]
struct Committed {
    topic: String,
    partition: u32,
    offset: i64,
    log_end_offset: i64,
    lag: u64,
}

#[derive(Debug, Deserialize)]
struct Rebalance {
    epoch: u32,
    reason: String,
    detail: String,
    took_ms: Option<u64>,
}

#[derive(Debug, Deserialize)]
struct Moved {
    offsets: Vec<Step>,
}

#[derive(Debug, Deserialize)]
struct Step {
    topic: String,
    partition: u32,
    from: Option<i64>,
    to: i64,
}

/// Runs the command.
pub(super) async fn run(args: GroupArgs) -> anyhow::Result<ExitCode> {
    let client = Client::new(&args.server.url)?;
    match args.command {
        GroupCommand::List => list(&client).await?,
        GroupCommand::Describe { group } => describe(&client, &group).await?,
        GroupCommand::Reset(reset) => move_offsets(&client, &reset).await?,
        GroupCommand::Delete { group } => {
            send(client.groups(Method::DELETE, &[&group], &[])).await?;
            writeln!(io::stdout(), "deleted {group}")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(client: &Client) -> anyhow::Result<()> {
    let mut cursor = None::<String>;
    loop {
        let mut query = vec![("limit", "1000")];
        query.extend(cursor.iter().map(|cursor| ("cursor", cursor.as_str())));
        let page: GroupList = send_json(client.groups(Method::GET, &[], &query)).await?;
        let mut out = io::stdout().lock();
        for group in &page.groups {
            writeln!(out, "{}\t{}\t{}\t{}", group.group, group.state, group.members, group.lag)?;
        }
        drop(out);
        match page.next {
            Some(next) => cursor = Some(next),
            None => return Ok(()),
        }
    }
}

async fn describe(client: &Client, name: &str) -> anyhow::Result<()> {
    let group: Group = send_json(client.groups(Method::GET, &[name], &[])).await?;
    let mut out = io::stdout().lock();
    let coordinator = group.coordinator.map_or_else(|| "none".to_owned(), |node| node.to_string());
    writeln!(out, "group        {}", group.group)?;
    writeln!(out, "state        {}", group.state)?;
    writeln!(out, "epoch        {}", group.epoch)?;
    writeln!(out, "assignor     {}", group.assignor)?;
    writeln!(out, "coordinator  {coordinator}")?;
    writeln!(out, "lag          {}", group.lag)?;
    for member in &group.members {
        let id = member.instance_id.as_deref().unwrap_or(&member.member_id);
        let parts: Vec<String> =
            member.assignment.iter().map(|a| format!("{}-{}", a.topic, a.partition)).collect();
        let parts = parts.join(" ");
        writeln!(out, "member       {id}  {}  {}  {parts}", member.kind, member.state)?;
    }
    for rebalance in &group.rebalances {
        let took = rebalance.took_ms.map_or_else(|| "open".to_owned(), |ms| format!("{ms} ms"));
        let Rebalance { epoch, reason, detail, .. } = rebalance;
        writeln!(out, "rebalance    {epoch}  {reason}  {detail}  {took}")?;
    }
    if !group.offsets.is_empty() {
        writeln!(out, "\npartition      committed           end           lag  topic")?;
    }
    for of in &group.offsets {
        let Committed { topic, partition, offset, log_end_offset, lag } = of;
        writeln!(out, "{partition:>9}  {offset:>13}  {log_end_offset:>12}  {lag:>12}  {topic}")?;
    }
    Ok(())
}

async fn move_offsets(client: &Client, args: &ResetArgs) -> anyhow::Result<()> {
    let mut body = json!({"topic": args.topic, "to": place(args)?, "dry_run": args.dry_run});
    if !args.partitions.is_empty()
        && let Some(members) = body.as_object_mut()
    {
        members.insert("partitions".to_owned(), json!(args.partitions));
    }
    let path = [args.group.as_str(), "offsets", "reset"];
    let moved: Moved = send_json(client.groups(Method::POST, &path, &[]).json(&body)).await?;
    let mut out = io::stdout().lock();
    for Step { topic, partition, from, to } in &moved.offsets {
        let from = from.map_or_else(|| "none".to_owned(), |from| from.to_string());
        writeln!(out, "{topic}\t{partition}\t{from}\t{to}")?;
    }
    if args.dry_run {
        writeln!(io::stderr(), "nothing was changed (--dry-run)")?;
    }
    Ok(())
}

/// Reads `--to` and its kin, of which there is one.
fn place(args: &ResetArgs) -> anyhow::Result<Value> {
    if let Some(offset) = args.to_offset {
        return Ok(json!({"offset": offset}));
    }
    if let Some(by) = args.shift {
        return Ok(json!({"shift": by}));
    }
    let to = args.to.as_deref().context("say where to: --to, --to-offset or --shift")?;
    match to {
        "earliest" | "latest" => Ok(json!(to)),
        time => {
            let parsed: Result<jiff::Timestamp, _> = time.parse();
            if parsed.is_err() {
                bail!("--to {time} is neither earliest, latest nor a time (RFC 3339)");
            }
            Ok(json!({"timestamp": time}))
        }
    }
}
