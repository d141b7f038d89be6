//! Records written over a socket, with one answer for each request.
//!
//! Requests are queued for writing in the order of their frames; their answers come in the order in
//! which the writes end.

use std::sync::Arc;

use tungstenite::Utf8Bytes;

use crate::api::State;
use crate::api::error::{ApiError, Code};
use crate::api::http::{topic_to_write, within};
use crate::api::json::records_in::{Form, parse_list};
use crate::api::v1::produce::{AcknowledgedWriter, push_error, refused};
use crate::api::ws::jobs::{Done, Job};
use crate::api::ws::replies;
use crate::api::ws::requests::{About, Acks, Produce, Request};
use crate::api::ws::session::Session;
use crate::broker::{AppendError, Outcomes, ProduceRecord, Topic, TopicError};
use crate::types::PartitionId;

impl Session {
    /// Writes records; creates their topic where that is allowed, and is held until then.
    pub(super) fn produce(&mut self, request: &Produce<'_>, text: &Utf8Bytes) {
        match self.state.broker.topic(&self.state.principal, &request.topic) {
            Ok(topic) => self.append(request, &topic),
            Err(TopicError::NotFound(_) | TopicError::Unavailable(_)) => {
                let (state, text) = (Arc::clone(&self.state), text.clone());
                let name = request.topic.to_string();
                self.is_held = true;
                self.jobs.push(Job::new(async move {
                    let found = ready_topic(&state, &name, &text).await;
                    Done::TopicReady { text, found }
                }));
            }
            Err(error) => self.refuse(about(request), &error.into()),
        }
    }

    /// Goes on with a produce whose topic had to be made ready.
    pub(super) fn finish_topic(&mut self, text: &Utf8Bytes, found: Result<Arc<Topic>, ApiError>) {
        let Ok(Request::Produce(request)) = Request::parse(text) else { return };
        match found {
            Ok(topic) => self.append(&request, &topic),
            Err(error) => self.refuse(about(&request), &error),
        }
    }

    fn append(&mut self, request: &Produce<'_>, topic: &Arc<Topic>) {
        let queued = records(&self.state, request).and_then(|(acks, records)| {
            let queued = self.state.broker.produce(&self.state.principal, topic, &records);
            let queued = queued.map_err(|error| refused(error, Form::Records, &records))?;
            Ok((acks, queued))
        });
        match queued {
            Ok((Acks::All, appending)) => {
                self.outstanding += 1;
                let (seq, limit) = (request.seq, self.state.config.request_timeout);
                self.jobs.push(Job::new(async move {
                    let frame = match within(limit, appending).await {
                        Ok(outcomes) => replies::produced(seq, &listed(&outcomes)),
                        Err(_) => unknown(seq),
                    };
                    Done::Produced { frame }
                }));
            }
            Ok((Acks::None, _unobserved)) => {}
            Err(error) => self.refuse(about(request), &error),
        }
    }
}

fn about(request: &Produce<'_>) -> About {
    About { id: None, seq: Some(request.seq) }
}

fn records<'a>(
    state: &State,
    request: &Produce<'a>,
) -> Result<(Acks, Vec<ProduceRecord<'a>>), ApiError> {
    let acks = request.acks()?;
    let records = parse_list(request.records.get(), state.config.max_records)?;
    Ok((acks, records))
}

async fn ready_topic(state: &State, name: &str, text: &str) -> Result<Arc<Topic>, ApiError> {
    let Ok(Request::Produce(request)) = Request::parse(text) else {
        return Err(ApiError::new(Code::Internal, "a request changed its meaning"));
    };
    let (_, records) = records(state, &request)?;
    let highest = records.iter().filter_map(|record| record.partition).max();
    let topic = topic_to_write(state, name, highest.map(PartitionId::get), &records).await;
    topic.map_err(|error| refused(error, Form::Records, &records))
}

fn unknown(seq: u64) -> Vec<u8> {
    let error = ApiError::from(AppendError::OutcomeUnknown);
    replies::error(About { id: None, seq: Some(seq) }, &error, replies::FatalTo::Request)
}

/// Writes the outcome of each record.
fn listed(outcomes: &Outcomes) -> String {
    let mut out = Vec::new();
    let mut writer = AcknowledgedWriter::default();
    for outcome in outcomes.iter() {
        out.push(if out.is_empty() { b'[' } else { b',' });
        match outcome {
            Ok(acknowledged) => writer.push(&mut out, &acknowledged),
            Err(error) => push_error(&mut out, &error.into()),
        }
    }
    out.push(b']');
    String::from_utf8(out).unwrap_or_default()
}
