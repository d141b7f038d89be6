//! Writers and a reader at work, and everything that was promised to them.
//!
//! Promised is: a record that was acknowledged, or that a reader has seen, stays at its offset with
//! its bytes; offsets are dense; a record that was sent once is there once at most; a record that
//! nobody sent, or that was refused, is not there.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use reqwest::Client;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::client::{Record, Report, client, read_partition, records_url};

/// Partitions of every topic that is worked on.
pub(crate) const PARTITIONS: u32 = 4;
const WRITERS: u64 = 6;
/// How long a node may take for anything that is waited for; far more than it needs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// What the test knows.
#[derive(Debug, Default)]
pub(crate) struct Promises {
    /// What must be at each place, for ever.
    fixed: BTreeMap<(u32, u64), String>,
    /// Every value that was sent and not refused, and where it was found.
    sent: HashMap<String, Option<(u32, u64)>>,
}

impl Promises {
    fn sent(&mut self, value: &str) {
        let before = self.sent.insert(value.to_owned(), None);
        assert!(before.is_none(), "the test repeats itself: {value}");
    }

    /// Notes that a value was refused: it must not be anywhere.
    fn refused(&mut self, value: &str) {
        let found = self.sent.remove(value).unwrap();
        assert_eq!(found, None, "refused and there: {value}");
    }

    /// Notes that a value is at a place, and fails the test if that contradicts what is known.
    fn is_at(&mut self, value: &str, place: (u32, u64)) {
        let known = self.sent.get_mut(value);
        let known = known.unwrap_or_else(|| panic!("never sent, or refused: {value}"));
        match known {
            Some(other) => assert_eq!(*other, place, "{value} is there twice"),
            None => *known = Some(place),
        }
        let fixed = self.fixed.entry(place).or_insert_with(|| value.to_owned());
        assert_eq!(fixed, value, "another record at {place:?}");
    }

    /// How many records must be there.
    pub(crate) fn count(&self) -> usize {
        self.fixed.len()
    }
}

/// What is worked on, and what is known of it.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// The topic.
    pub(crate) topic: &'static str,
    /// Longest padding of a value, in bytes.
    pub(crate) padding_max: usize,
    /// Answers that are good besides 200.
    pub(crate) allowed: &'static [u16],
    /// Everything promised so far.
    pub(crate) promises: Arc<Mutex<Promises>>,
}

impl Target {
    /// Small records on a disk with room.
    pub(crate) fn new(topic: &'static str) -> Self {
        let promises = Arc::new(Mutex::new(Promises::default()));
        Self { topic, padding_max: 400, allowed: &[], promises }
    }

    /// Notes what the answer to a request with these values promises.
    fn note(&self, values: &[String], status: u16, text: &str) -> Answered {
        assert!(status == 200 || self.allowed.contains(&status), "{status}: {text}");
        let mut promises = self.promises.lock();
        let mut answered = Answered::default();
        let reports = match status {
            200 | 207 => serde_json::from_str::<Answer>(text).expect(text).records,
            _ => {
                let error = Some(serde_json::from_str(text).expect(text));
                vec![Report { partition: None, offset: None, error }; values.len()]
            }
        };
        assert_eq!(reports.len(), values.len(), "{text}");
        for (value, report) in values.iter().zip(&reports) {
            match &report.error {
                None => {
                    promises.is_at(value, report.place());
                    answered.acked += 1;
                }
                Some(error) if error["may_have_applied"] == false => {
                    assert_ne!(status, 200, "{text}");
                    promises.refused(value);
                    answered.refused += 1;
                }
                // Nobody knows: it may be there once.
                Some(error) => assert_eq!(error["may_have_applied"], true, "{text}"),
            }
        }
        answered
    }

    /// Reads everything and compares it with every promise.
    pub(crate) async fn verify(&self, http: &Client, url: &str) {
        // What is acknowledged from here on may lie behind what is read.
        let fixed: Vec<_> = self.promises.lock().fixed.keys().copied().collect();
        let mut places = HashSet::new();
        for partition in 0..PARTITIONS {
            let records = read_partition(http, url, self.topic, partition).await;
            let mut promises = self.promises.lock();
            for record in records {
                let place = (partition, record.offset);
                promises.is_at(record.value.get(), place);
                places.insert(place);
            }
        }
        let lost: Vec<_> = fixed.iter().filter(|at| !places.contains(at)).collect();
        assert!(lost.is_empty(), "{} records are lost, one is {:?}", lost.len(), lost[0]);
    }
}

/// How many records the writers have had answered.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Answered {
    /// Acknowledged.
    pub(crate) acked: u64,
    /// Refused, and surely not written.
    pub(crate) refused: u64,
}

/// Writers and a reader that work until their node is gone.
pub(crate) struct Load {
    tasks: JoinSet<()>,
    answered: watch::Receiver<Answered>,
}

impl Load {
    /// Starts them. `name` tells this load's records from every other's.
    pub(crate) fn start(url: &str, name: &str, target: &Target, random: &mut StdRng) -> Self {
        let (count, answered) = watch::channel(Answered::default());
        let mut tasks = JoinSet::new();
        let url = records_url(url, target.topic);
        for writer in 0..WRITERS {
            let random = StdRng::seed_from_u64(random.random());
            let name = format!("{name}-{writer}");
            tasks.spawn(write(url.clone(), name, random, target.clone(), count.clone()));
        }
        tasks.spawn(tail(url, Arc::clone(&target.promises)));
        Self { tasks, answered }
    }

    /// Waits until the answers are as asked for.
    pub(crate) async fn wait_until(&mut self, enough: impl FnMut(&Answered) -> bool) {
        let waited = tokio::time::timeout(PATIENCE, self.answered.wait_for(enough)).await;
        match waited.map(|answered| answered.is_ok()) {
            Ok(true) => {}
            Ok(false) => {
                self.join().await;
                panic!("the node is gone");
            }
            Err(_) => panic!("the node does not answer as it should: {:?}", self.answered()),
        }
    }

    /// How many records have been answered.
    pub(crate) fn answered(&self) -> Answered {
        *self.answered.borrow()
    }

    /// Waits for their end after the node's, and fails the test if they found something wrong.
    pub(crate) async fn finish(mut self) {
        self.join().await;
    }

    async fn join(&mut self) {
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("a writer or the reader found something wrong");
        }
    }
}

#[derive(Deserialize)]
struct Answer {
    records: Vec<Report>,
}

/// Sends one request after the other until the node is gone.
async fn write(
    url: String,
    name: String,
    mut random: StdRng,
    target: Target,
    count: watch::Sender<Answered>,
) {
    let http = client();
    for request in 0u64.. {
        let values: Vec<String> = (0..random.random_range(1..20))
            .map(|at| {
                let padding = "x".repeat(random.random_range(0..target.padding_max));
                format!(r#"{{"id": "{name}-{request}-{at}", "padding": "{padding}"}}"#)
            })
            .collect();
        let lines: Vec<String> = values
            .iter()
            .map(|value| format!(r#"{{"key":"{}","value":{value}}}"#, random.random_range(0..50)))
            .collect();
        values.iter().for_each(|value| target.promises.lock().sent(value));
        let body = format!("[{}]", lines.join(","));
        let request = http.post(&url).header("content-type", "application/json").body(body);
        let Ok(response) = request.send().await else { return };
        let status = response.status().as_u16();
        let Ok(text) = response.text().await else { return };
        let answered = target.note(&values, status, &text);
        count.send_modify(|count| {
            count.acked += answered.acked;
            count.refused += answered.refused;
        });
        if answered.refused > 0 {
            // A client that is refused comes back later.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Reads the newest records until the node is gone: what was seen must stay.
async fn tail(url: String, promises: Arc<Mutex<Promises>>) {
    let http = client();
    let mut from = String::from("latest");
    loop {
        let url = format!("{url}?from={from}&wait=10000&limit=1000");
        let request = http.get(url).header("accept", "application/x-ndjson");
        let Ok(response) = request.send().await else { return };
        assert_eq!(response.status(), 200);
        let next = response.headers()["eddyline-next"].to_str().unwrap().to_owned();
        let Ok(text) = response.text().await else { return };
        let mut promises = promises.lock();
        for line in text.lines() {
            let record: Record = serde_json::from_str(line).expect(line);
            promises.is_at(record.value.get(), (record.partition, record.offset));
        }
        from = next;
    }
}

/// Reads a number from the environment.
pub(crate) fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// Chooses the run's seed and prints it with what repeats the run.
pub(crate) fn seeded() -> StdRng {
    let seed = from_environment("EDDYLINE_CRASH_SEED").unwrap_or_else(|| rand::rng().random());
    eprintln!("EDDYLINE_CRASH_SEED={seed}");
    StdRng::seed_from_u64(seed)
}
