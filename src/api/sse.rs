//! Server-sent events: the framing of the WHATWG specification, and nothing about records.
//!
//! Invariant: data and ids that are given have no line breaks, so an event cannot be split by what
//! a client stored.

/// What a client waits before it connects again, in milliseconds.
pub(crate) const RETRY: &[u8] = b"retry: 2000\n\n";

/// Keeps proxies and clients from taking a quiet stream for a dead one.
pub(crate) const COMMENT: &[u8] = b":\n\n";

/// Appends the head of an event up to its data; the caller appends the data and [`finish`]es.
pub(crate) fn start(out: &mut Vec<u8>, event: &str) {
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(event.as_bytes());
    out.extend_from_slice(b"\ndata: ");
}

/// Appends the end of an event, with the id that a client sends back as `Last-Event-ID`.
pub(crate) fn finish(out: &mut Vec<u8>, id: Option<&str>) {
    if let Some(id) = id {
        out.extend_from_slice(b"\nid: ");
        out.extend_from_slice(id.as_bytes());
    }
    out.extend_from_slice(b"\n\n");
}

/// Appends a whole event.
pub(crate) fn push(out: &mut Vec<u8>, event: &str, data: &[u8], id: Option<&str>) {
    start(out, event);
    out.extend_from_slice(data);
    finish(out, id);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_its_lines_and_an_empty_one() {
        let mut out = Vec::new();
        push(&mut out, "records", b"{}", Some("AQ"));
        push(&mut out, "end", b"{}", None);
        assert_eq!(out, b"event: records\ndata: {}\nid: AQ\n\nevent: end\ndata: {}\n\n");
    }
}
