//! Real events through the whole server: every flight is read back once, with its bytes, in order
//! within its key, in the partition that Kafka's hash gives; also when the node is killed in the
//! middle, and for a tailing reader that is cut off again and again.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Once;
use std::time::Duration;

use futures_util::stream;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reqwest::{Body, Client};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::task::JoinSet;

use crate::client::{Lines, Record, Report, client, create, read_all, records_url};
use crate::image::say;
use crate::murmur2;
use crate::node::{Node, Scratch, without_own_settings};

const PARTITIONS: u32 = 12;
const TOPIC: &str = "flights";
pub(crate) const NDJSON: &str = "application/x-ndjson";
/// Lines sent at a time, where a test sends slowly enough to be interrupted.
const CHUNK_LINES: usize = 500;

/// A flight: the line as it is in the file, its key and its value's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Flight {
    pub(crate) line: String,
    key: String,
    value: String,
}

#[derive(Deserialize)]
struct Line<'a> {
    key: String,
    #[serde(borrow)]
    value: &'a RawValue,
}

/// Flights and the file that they are from.
pub(crate) struct Input {
    file: PathBuf,
    pub(crate) flights: Vec<Flight>,
}

/// The excerpt, and the whole file where it is.
pub(crate) fn inputs() -> Vec<Input> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/flights-5000.ndjson");
    let flights = parse(&std::fs::read_to_string(&file).unwrap());
    let mut inputs = vec![Input { file, flights }];
    let shared = std::env::var_os("EDDYLINE_SHARED").unwrap_or_default();
    let file = Path::new(&shared).join("data/flights.ndjson.gz");
    match File::open(&file) {
        Ok(packed) => {
            let mut text = String::new();
            flate2::read::GzDecoder::new(packed).read_to_string(&mut text).unwrap();
            inputs.push(Input { file, flights: parse(&text) });
        }
        Err(_) => {
            static ONCE: Once = Once::new();
            ONCE.call_once(|| say("SKIPPED the whole flights file: EDDYLINE_SHARED has none"));
        }
    }
    inputs
}

fn parse(text: &str) -> Vec<Flight> {
    let flight = |line: &str| {
        let parsed: Line<'_> = serde_json::from_str(line).expect(line);
        let value = parsed.value.get().to_owned();
        Flight { line: line.to_owned(), key: parsed.key, value }
    };
    text.lines().map(flight).collect()
}

/// What each partition must hold, in order.
fn expected(flights: &[Flight]) -> BTreeMap<u32, Vec<(&str, &str)>> {
    let mut expected: BTreeMap<u32, Vec<(&str, &str)>> =
        (0..PARTITIONS).map(|partition| (partition, Vec::new())).collect();
    for flight in flights {
        let partition = murmur2::partition(&flight.key, PARTITIONS);
        expected.get_mut(&partition).unwrap().push((&flight.key, &flight.value));
    }
    expected
}

fn assert_same(seen: &BTreeMap<u32, Vec<Record>>, flights: &[Flight]) {
    for (partition, expected) in expected(flights) {
        let seen = &seen[&partition];
        assert_eq!(seen.len(), expected.len(), "records in partition {partition}");
        for (record, (key, value)) in seen.iter().zip(expected) {
            assert_eq!(record.key.as_deref(), Some(key), "at {partition}:{}", record.offset);
            assert_eq!(record.value.get(), value, "at {partition}:{}", record.offset);
        }
    }
}

pub(crate) fn as_body(flights: &[Flight]) -> String {
    flights.iter().flat_map(|flight| [flight.line.as_str(), "\n"]).collect()
}

async fn create_flights(http: &Client, node: &Node) {
    create(http, node.url(), TOPIC, serde_json::json!({"partitions": PARTITIONS})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_flight_is_read_back_once_in_order_from_the_partition_of_its_key() {
    for Input { flights, .. } in inputs() {
        let dir = Scratch::new();
        let node = Node::start(dir.path(), &[]);
        let http = client();
        create_flights(&http, &node).await;
        // Like most libraries: nothing of the answer is read before everything is sent.
        let request = http.post(records_url(node.url(), TOPIC)).header("content-type", NDJSON);
        let response = request.body(as_body(&flights)).send().await.unwrap();
        assert_eq!(response.status(), 200);
        let reports = response.text().await.unwrap();
        let mut next = BTreeMap::new();
        for (line, flight) in reports.lines().zip(&flights) {
            let report: Report = serde_json::from_str(line).expect(line);
            let partition = murmur2::partition(&flight.key, PARTITIONS);
            let offset = next.entry(partition).or_insert(0);
            assert_eq!(report.place(), (partition, *offset));
            *offset += 1;
        }
        assert_eq!(reports.lines().count(), flights.len());
        assert_same(&read_all(&http, node.url(), TOPIC, PARTITIONS).await, &flights);
        node.stop();
        let node = Node::start(dir.path(), &[]);
        assert_same(&read_all(&http, node.url(), TOPIC, PARTITIONS).await, &flights);
    }
}

/// Runs a command with some input, and returns what it printed; it must succeed.
fn run(command: &mut Command, input: Vec<u8>) -> String {
    without_own_settings(command);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // Beside the reading, or both would wait for the other's pipe.
    let writer = std::thread::spawn(move || stdin.write_all(&input).unwrap());
    let output = child.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}: {told}", output.status);
    writer.join().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Loads flights as a person does from a shell.
fn load(program: &str, url: &str, input: &Input) {
    let body = || as_body(&input.flights).into_bytes();
    let mut eddyline = Command::new(env!("CARGO_BIN_EXE_eddyline"));
    eddyline.args(["produce", "--url", url, TOPIC]);
    match program {
        "eddyline" => assert_eq!(run(eddyline.arg(&input.file), Vec::new()), ""),
        "eddyline from a pipe" => assert_eq!(run(&mut eddyline, body()), ""),
        _ => {
            let mut curl = Command::new("curl");
            curl.args(["--silent", "--show-error", "--fail", "--noproxy", "*"]);
            curl.args(["--data-binary", "@-", "--header"]).arg(format!("content-type: {NDJSON}"));
            let reports = run(curl.arg(records_url(url, TOPIC)), body());
            assert_eq!(reports.lines().count(), input.flights.len());
            assert!(!reports.contains("\"error\""), "{reports:.1000}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_flight_arrives_from_the_command_line_and_from_curl() {
    for input in inputs() {
        for program in ["eddyline", "eddyline from a pipe", "curl"] {
            let dir = Scratch::new();
            let node = Node::start(dir.path(), &[]);
            let http = client();
            create_flights(&http, &node).await;
            tokio::task::block_in_place(|| load(program, node.url(), &input));
            let seen = read_all(&http, node.url(), TOPIC, PARTITIONS).await;
            assert_same(&seen, &input.flights);
            node.stop();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn flights_acknowledged_before_kill_9_are_there_and_the_rest_can_follow() {
    let seed: u64 = rand::rng().random();
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for Input { flights, .. } in inputs() {
        let dir = Scratch::new();
        let http = client();
        let node = Node::start(dir.path(), &[]);
        create_flights(&http, &node).await;
        let enough = random.random_range(flights.len() / 10..flights.len() / 2);
        let acked = stream_until_killed(&http, node, &flights, enough).await;
        assert!(acked.len() >= enough);
        let node = Node::start(dir.path(), &[]);
        let seen = read_all(&http, node.url(), TOPIC, PARTITIONS).await;
        for (flight, (partition, offset)) in flights.iter().zip(&acked) {
            let record = usize::try_from(*offset).ok().and_then(|at| seen[partition].get(at));
            let record = record.unwrap_or_else(|| panic!("{partition}:{offset} is lost"));
            assert_eq!(record.value.get(), flight.value);
        }
        // One stream in order: what is there is the start of what each partition is to hold.
        let mut left: BTreeMap<u32, usize> =
            seen.iter().map(|(partition, records)| (*partition, records.len())).collect();
        let missing: Vec<Flight> = flights
            .iter()
            .filter(|flight| {
                let left = left.get_mut(&murmur2::partition(&flight.key, PARTITIONS)).unwrap();
                let is_there = *left > 0;
                *left -= usize::from(is_there);
                !is_there
            })
            .cloned()
            .collect();
        let request = http.post(records_url(node.url(), TOPIC)).header("content-type", NDJSON);
        let response = request.body(as_body(&missing)).send().await.unwrap();
        assert_eq!(response.text().await.unwrap().lines().count(), missing.len());
        assert_same(&read_all(&http, node.url(), TOPIC, PARTITIONS).await, &flights);
    }
}

/// Streams flights, reading reports meanwhile, and kills the node after `enough` of them. Returns
/// where the acknowledged flights are, in the order in which they were sent.
async fn stream_until_killed(
    http: &Client,
    node: Node,
    flights: &[Flight],
    enough: usize,
) -> Vec<(u32, u64)> {
    let chunks: Vec<String> = flights.chunks(CHUNK_LINES).map(as_body).collect();
    let body = stream::iter(chunks.into_iter().map(Ok::<_, std::io::Error>));
    let request = http.post(records_url(node.url(), TOPIC)).header("content-type", NDJSON);
    let response = request.body(Body::wrap_stream(body)).send().await.unwrap();
    assert_eq!(response.status(), 200);
    let mut lines = Lines::new(response);
    let mut node = Some(node);
    let mut acked = Vec::new();
    while let Some(line) = lines.next().await {
        let report: Report = serde_json::from_str(&line).expect(&line);
        acked.push(report.place());
        if acked.len() >= enough
            && let Some(node) = node.take()
        {
            tokio::task::spawn_blocking(move || node.kill()).await.unwrap();
        }
    }
    assert!(node.is_none(), "the answer ended after {} reports", acked.len());
    acked
}

/// The data of an SSE event `records`.
#[derive(Deserialize)]
struct Batch {
    records: Vec<Record>,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tailing_reader_that_is_cut_off_and_resumes_sees_every_flight_once() {
    let seed: u64 = rand::rng().random();
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for Input { flights, .. } in inputs() {
        let dir = Scratch::new();
        let http = client();
        let node = Node::start(dir.path(), &[]);
        create_flights(&http, &node).await;
        let mut producer = JoinSet::new();
        let body = as_body(&flights);
        let request = http.post(records_url(node.url(), TOPIC)).header("content-type", NDJSON);
        producer.spawn(async move {
            let response = request.body(body).send().await.unwrap();
            response.text().await.unwrap().lines().count()
        });
        let mut reader = TailingReader::new(records_url(node.url(), TOPIC));
        let all = reader.read(flights.len(), &mut random);
        tokio::time::timeout(Duration::from_secs(300), all).await.expect("the tail stopped");
        assert_same(&reader.seen, &flights);
        assert!(reader.connections > 3, "it was cut off in the first event, again and again");
        assert_eq!(producer.join_next().await.unwrap().unwrap(), flights.len());
    }
}

/// Follows the topic over SSE and remembers the last event's id.
struct TailingReader {
    http: Client,
    url: String,
    last_id: Option<String>,
    seen: BTreeMap<u32, Vec<Record>>,
    count: usize,
    connections: usize,
}

impl TailingReader {
    fn new(url: String) -> Self {
        let seen = (0..PARTITIONS).map(|partition| (partition, Vec::new())).collect();
        Self { http: client(), url, last_id: None, seen, count: 0, connections: 0 }
    }

    /// Reads until `total` records were seen, dropping the connection at random.
    async fn read(&mut self, total: usize, random: &mut StdRng) {
        while self.count < total {
            self.connections += 1;
            let mut request = self
                .http
                .get(format!("{}?from=earliest", self.url))
                .header("accept", "text/event-stream");
            if let Some(id) = &self.last_id {
                request = request.header("last-event-id", id);
            }
            let response = request.send().await.unwrap();
            assert_eq!(response.status(), 200);
            // In the middle of an event or between two. The first three end within the first event,
            // so however much a server puts into one, the reader is cut off.
            let lines_max = match self.connections {
                early @ ..=3 => early,
                _ => random.random_range(3..12 * (total / 20_000 + 1)),
            };
            self.read_connection(Lines::new(response), lines_max, total).await;
        }
    }

    async fn read_connection(&mut self, mut lines: Lines, lines_max: usize, total: usize) {
        let (mut event, mut id, mut data) = (String::new(), None, String::new());
        for _ in 0..lines_max {
            let Some(line) = lines.next().await else { return };
            let line = line.trim_end_matches('\r');
            if line.is_empty() {
                self.dispatch(&event, id.take(), &data);
                event.clear();
                data.clear();
                if self.count >= total {
                    return;
                }
                continue;
            }
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => value.clone_into(&mut event),
                "id" => id = Some(value.to_owned()),
                "data" => data.push_str(value),
                _ => {}
            }
        }
    }

    fn dispatch(&mut self, event: &str, id: Option<String>, data: &str) {
        assert!(!matches!(event, "gap" | "error"), "{event}: {data}");
        if event == "records" {
            let batch: Batch = serde_json::from_str(data).expect(data);
            assert!(id.is_some(), "records without an id cannot be resumed after");
            for record in batch.records {
                let seen = self.seen.get_mut(&record.partition).unwrap();
                assert_eq!(record.offset, seen.len() as u64, "a gap or a repetition");
                seen.push(record);
                self.count += 1;
            }
        }
        if id.is_some() {
            self.last_id = id;
        }
    }
}
