//! Records and bytes by topic.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::{Registry, Unit};

use crate::metrics::Counter;
use crate::types::TopicName;

/// The metrics of all topics.
#[derive(Debug, Clone, Default)]
pub struct TopicsMetrics {
    records_in: Family<TopicLabels, Counter>,
    bytes_in: Family<TopicLabels, Counter>,
    records_out: Family<TopicLabels, Counter>,
    bytes_out: Family<TopicLabels, Counter>,
}

impl TopicsMetrics {
    /// Makes the handle of one topic, to be kept with the topic.
    pub fn topic(&self, name: &TopicName) -> TopicMetrics {
        let labels = TopicLabels { topic: name.as_str().to_owned() };
        TopicMetrics {
            records_in: self.records_in.get_or_create_owned(&labels),
            bytes_in: self.bytes_in.get_or_create_owned(&labels),
            records_out: self.records_out.get_or_create_owned(&labels),
            bytes_out: self.bytes_out.get_or_create_owned(&labels),
        }
    }

    /// Forgets a deleted topic. Its handles go on counting and are not printed any more.
    pub fn remove(&self, name: &TopicName) {
        let labels = TopicLabels { topic: name.as_str().to_owned() };
        for family in [&self.records_in, &self.bytes_in, &self.records_out, &self.bytes_out] {
            family.remove(&labels);
        }
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        let r = registry.sub_registry_with_prefix("topic");
        r.register("records_in", "Records taken in for writing", self.records_in.clone());
        let bytes = "Bytes of keys, values and headers taken in";
        r.register_with_unit("in", bytes, Unit::Bytes, self.bytes_in.clone());
        r.register("records_out", "Records sent to readers", self.records_out.clone());
        let bytes = "Bytes of keys, values and headers sent to readers";
        r.register_with_unit("out", bytes, Unit::Bytes, self.bytes_out.clone());
    }
}

/// The metrics of one topic.
#[derive(Debug, Clone, Default)]
pub struct TopicMetrics {
    /// Records that were taken in for writing.
    pub records_in: Counter,
    /// Bytes of their keys, values and headers.
    pub bytes_in: Counter,
    /// Records that were sent to readers.
    pub records_out: Counter,
    /// Bytes of their keys, values and headers.
    pub bytes_out: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TopicLabels {
    topic: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_topic_is_not_printed_and_its_successor_starts_at_zero() {
        let topics = TopicsMetrics::default();
        let mut registry = Registry::default();
        topics.register(&mut registry);
        let print = |registry: &Registry| {
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
            text
        };
        let name = TopicName::parse("a").unwrap();
        let old = topics.topic(&name);
        old.records_in.add(3);
        assert!(print(&registry).contains(r#"topic_records_in_total{topic="a"} 3"#));
        topics.remove(&name);
        old.records_in.add(3);
        assert!(!print(&registry).contains(r#"topic="a""#));
        topics.topic(&name).records_in.inc();
        assert!(print(&registry).contains(r#"topic_records_in_total{topic="a"} 1"#));
    }
}
