//! Who calls.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The authenticated caller of a request, in Kafka's form `User:<name>`.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Principal(Arc<str>);

impl Principal {
    /// The caller of a listener without authentication, `User:ANONYMOUS`.
    pub fn anonymous() -> Self {
        Self(Arc::from("User:ANONYMOUS"))
    }

    /// The server itself: background work such as retention.
    pub fn server() -> Self {
        Self(Arc::from("User:__server"))
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
