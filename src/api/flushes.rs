//! What a connection's socket has taken, for streams that must know whether an event left.
//!
//! A connection flushes its socket only when the socket has taken all that was written to it. Who
//! notes the count of flushes with an event, and later finds a larger one, knows that the socket
//! has the event.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts the flushes of one connection's socket. Clones share the count.
#[derive(Debug, Clone, Default)]
pub struct Flushes(Arc<AtomicU64>);

impl Flushes {
    /// Notes that everything written so far was taken by the socket.
    pub fn note(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns how often that was so.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
