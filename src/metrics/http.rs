//! Requests by route, method and status class.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::{Registry, Unit};

use crate::metrics::{Counter, Gauge, Histogram};

/// The status classes that are counted, from 200 on.
const STATUS_CLASSES: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];

/// The metrics of all routes.
#[derive(Debug, Clone)]
pub struct HttpMetrics {
    requests: Family<RequestLabels, Counter>,
    duration: Family<RouteLabels, Histogram, fn() -> Histogram>,
    request_bytes: Family<RouteLabels, Counter>,
    response_bytes: Family<RouteLabels, Counter>,
    /// Bytes that requests hold together and are charged for.
    pub memory_bytes: Gauge,
}

impl Default for HttpMetrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            duration: Family::new_with_constructor(Histogram::seconds),
            request_bytes: Family::default(),
            response_bytes: Family::default(),
            memory_bytes: Gauge::default(),
        }
    }
}

impl HttpMetrics {
    /// Makes the handle of one route, for the router to keep. `route` is the path's pattern,
    /// never a request's path: label values come from a closed set.
    pub fn route(&self, method: &'static str, route: &'static str) -> RouteMetrics {
        let labels = RouteLabels { route, method };
        RouteMetrics {
            by_status_class: STATUS_CLASSES.map(|status| {
                self.requests.get_or_create_owned(&RequestLabels { route, method, status })
            }),
            duration: self.duration.get_or_create_owned(&labels),
            request_bytes: self.request_bytes.get_or_create_owned(&labels),
            response_bytes: self.response_bytes.get_or_create_owned(&labels),
        }
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        let r = registry.sub_registry_with_prefix("http");
        r.register("requests", "Requests answered", self.requests.clone());
        let duration = "Time from a request's head to its response's head";
        r.register_with_unit("request_duration", duration, Unit::Seconds, self.duration.clone());
        let bytes = "Bytes of request bodies of announced length";
        r.register_with_unit("request_body", bytes, Unit::Bytes, self.request_bytes.clone());
        let bytes = "Bytes of response bodies of known length";
        r.register_with_unit("response_body", bytes, Unit::Bytes, self.response_bytes.clone());
        let bytes = "Bytes of bodies, answers and reports that open requests hold";
        r.register_with_unit("memory", bytes, Unit::Bytes, self.memory_bytes.clone());
    }
}

/// The metrics of one route.
#[derive(Debug, Clone)]
pub struct RouteMetrics {
    by_status_class: [Counter; STATUS_CLASSES.len()],
    duration: Histogram,
    /// Bytes of request bodies of announced length; what streams carry is counted by topic.
    pub request_bytes: Counter,
    /// Bytes of response bodies of known length; what streams carry is counted by topic.
    pub response_bytes: Counter,
}

impl RouteMetrics {
    /// Counts one answer; `elapsed` runs from the request's head to the response's head.
    pub fn observe(&self, status: u16, elapsed: Duration) {
        let class = usize::from(status / 100).saturating_sub(2).min(STATUS_CLASSES.len() - 1);
        if let Some(requests) = self.by_status_class.get(class) {
            requests.inc();
        }
        self.duration.observe_duration(elapsed);
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: &'static str,
    method: &'static str,
    status: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    route: &'static str,
    method: &'static str,
}
