//! JSON at the speed of the log: records in without copies, records out without a tree.
//!
//! Invariants:
//! - a value is stored and sent byte for byte as it came; nothing here parses a number or sorts
//!   a member;
//! - the [`scan`]ner accepts what `serde_json` accepts as a raw value, down to [`NESTING_MAX`]
//!   levels, and nothing else; a property test holds the two side by side;
//! - nothing here recurses, so no body can exhaust the stack.

pub(crate) mod records_in;
pub(crate) mod records_out;
pub(crate) mod scan;
pub(crate) mod text;

pub(crate) use scan::{NESTING_MAX, Scanner, SyntaxError};
