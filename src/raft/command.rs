//! What is replicated.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

/// What the proposer attached to its command for the node where it was proposed: those who wait for
/// the outcome. Never encoded. When Raft drops the entry the value is dropped with it, which is how
/// the waiters learn that the outcome is unknown.
pub type Local = Box<dyn Any + Send + Sync>;

/// A command of a state machine: opaque bytes in one or more parts, cheap to clone.
#[derive(Clone)]
pub struct Command(Arc<Inner>);

struct Inner {
    parts: Vec<Bytes>,
    bytes: usize,
    local: Option<Local>,
}

impl Command {
    /// Makes a command to be proposed here. The encoded command is the concatenation of `parts`.
    pub fn new(parts: Vec<Bytes>, local: Option<Local>) -> Self {
        let bytes = parts.iter().map(Bytes::len).sum();
        Self(Arc::new(Inner { parts, bytes, local }))
    }

    /// Makes a command from its encoded bytes, as it comes from the log or from another node.
    pub fn from_encoded(bytes: Bytes) -> Self {
        Self::new(vec![bytes], None)
    }

    /// Returns the parts whose concatenation is the encoded command.
    pub fn parts(&self) -> &[Bytes] {
        &self.0.parts
    }

    /// Returns the encoded length in bytes.
    pub fn len_bytes(&self) -> usize {
        self.0.bytes
    }

    /// Returns the encoded command in one piece; no copy when it has one part.
    pub fn encoded(&self) -> Bytes {
        match self.0.parts.as_slice() {
            [] => Bytes::new(),
            [part] => part.clone(),
            parts => parts.concat().into(),
        }
    }

    /// Returns what the proposer attached, when it was proposed on this node and is a `T`.
    pub fn local<T: 'static>(&self) -> Option<&T> {
        self.0.local.as_ref().and_then(|local| local.downcast_ref())
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Command({} bytes)", self.0.bytes)
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.bytes)
    }
}
