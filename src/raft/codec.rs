//! The bytes of a Raft entry's payload and of a membership, encoded by hand.
//!
//! ```text
//! payload    = kind u8, rest        kind 0: blank, no rest; 1: membership; 2: command, its bytes
//! membership = version u8 (1)
//!              config count u16, { member count u16, { replica id u64 } }
//!              node count u16, { replica id u64, node id u64 }
//! ```
//! Numbers are big-endian.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::raft::command::Command;
use crate::raft::type_config::{Membership, Payload};
use crate::types::{LogPosition, NodeId, RaftIndex, Term};

const KIND_BLANK: u8 = 0;
const KIND_MEMBERSHIP: u8 = 1;
const KIND_COMMAND: u8 = 2;
const MEMBERSHIP_VERSION: u8 = 1;

/// Encodes a payload as parts, so that a command's bytes are not copied here.
pub(crate) fn encode_payload(payload: &Payload) -> Vec<Bytes> {
    match payload {
        Payload::Blank => vec![Bytes::from_static(&[KIND_BLANK])],
        Payload::Membership(membership) => {
            vec![Bytes::from_static(&[KIND_MEMBERSHIP]), encode_membership(membership)]
        }
        Payload::Normal(command) => {
            let mut parts = Vec::with_capacity(command.parts().len() + 1);
            parts.push(Bytes::from_static(&[KIND_COMMAND]));
            parts.extend_from_slice(command.parts());
            parts
        }
    }
}

/// Decodes a payload from its bytes.
///
/// # Errors
/// `InvalidData` when the bytes are not a payload.
pub(crate) fn decode_payload(mut bytes: Bytes) -> io::Result<Payload> {
    match bytes.try_get_u8().map_err(invalid)? {
        KIND_BLANK if bytes.is_empty() => Ok(Payload::Blank),
        KIND_MEMBERSHIP => decode_membership(&bytes).map(Payload::Membership),
        KIND_COMMAND => Ok(Payload::Normal(Command::from_encoded(bytes))),
        kind => Err(invalid(format!("entry of unknown kind {kind}"))),
    }
}

/// Returns the command of an entry whose payload is `payload`, if it has one.
pub fn command_of(mut payload: Bytes) -> Option<Bytes> {
    (payload.try_get_u8() == Ok(KIND_COMMAND)).then_some(payload)
}

/// Encodes a membership.
pub(crate) fn encode_membership(membership: &Membership) -> Bytes {
    let mut out = BytesMut::with_capacity(64);
    out.put_u8(MEMBERSHIP_VERSION);
    let configs = membership.get_joint_config();
    out.put_u16(count(configs.len()));
    for config in configs {
        out.put_u16(count(config.len()));
        for replica in config {
            out.put_u64(*replica);
        }
    }
    let nodes: Vec<_> = membership.nodes().collect();
    out.put_u16(count(nodes.len()));
    for (replica, node) in nodes {
        out.put_u64(*replica);
        out.put_u64(node.get());
    }
    out.freeze()
}

/// Decodes a membership.
///
/// # Errors
/// `InvalidData` when the bytes are not a membership.
pub(crate) fn decode_membership(mut bytes: &[u8]) -> io::Result<Membership> {
    let version = bytes.try_get_u8().map_err(invalid)?;
    if version != MEMBERSHIP_VERSION {
        return Err(invalid(format!("membership of unknown version {version}")));
    }
    let mut configs = Vec::new();
    for _ in 0..bytes.try_get_u16().map_err(invalid)? {
        let mut members = BTreeSet::new();
        for _ in 0..bytes.try_get_u16().map_err(invalid)? {
            members.insert(bytes.try_get_u64().map_err(invalid)?);
        }
        configs.push(members);
    }
    let mut nodes = BTreeMap::new();
    for _ in 0..bytes.try_get_u16().map_err(invalid)? {
        let replica = bytes.try_get_u64().map_err(invalid)?;
        nodes.insert(replica, NodeId::new(bytes.try_get_u64().map_err(invalid)?));
    }
    if !bytes.is_empty() {
        return Err(invalid("membership with trailing bytes"));
    }
    Membership::new(configs, nodes).map_err(invalid)
}

/// Encodes a membership together with the entry that brought it, for a checkpoint; nothing when
/// there is none: `term u64, index u64`, then the membership's bytes.
pub fn join_membership(membership: Option<&(LogPosition, Bytes)>) -> Bytes {
    let Some((origin, bytes)) = membership else { return Bytes::new() };
    let mut out = BytesMut::with_capacity(16 + bytes.len());
    out.put_u64(origin.term.get());
    out.put_u64(origin.index.get());
    out.put_slice(bytes);
    out.freeze()
}

/// Takes apart what [`join_membership`] made.
///
/// # Errors
/// `InvalidData` when the bytes are cut.
pub fn split_membership(mut bytes: Bytes) -> io::Result<Option<(LogPosition, Bytes)>> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let term = Term::new(bytes.try_get_u64().map_err(invalid)?);
    let index = RaftIndex::new(bytes.try_get_u64().map_err(invalid)?);
    Ok(Some((LogPosition { term, index }, bytes)))
}

/// Groups have a handful of members; more than 65,535 cannot be configured.
fn count(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(u16::MAX)
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn joined(payload: &Payload) -> Bytes {
        encode_payload(payload).concat().into()
    }

    #[test]
    fn payloads_survive_their_bytes() {
        let nodes = BTreeMap::from([(7, NodeId::new(1)), (9, NodeId::new(2))]);
        let membership =
            Membership::new(vec![BTreeSet::from([7]), BTreeSet::from([7, 9])], nodes).unwrap();
        let decoded = decode_payload(joined(&Payload::Membership(membership.clone()))).unwrap();
        assert!(matches!(decoded, Payload::Membership(again) if again == membership));
        assert!(matches!(decode_payload(joined(&Payload::Blank)).unwrap(), Payload::Blank));
        let command = Command::new(vec![Bytes::from("ab"), Bytes::from("c")], None);
        let Payload::Normal(again) = decode_payload(joined(&Payload::Normal(command))).unwrap()
        else {
            panic!("not a command");
        };
        assert_eq!(again.encoded(), Bytes::from("abc"));
    }

    proptest! {
        #[test]
        fn any_bytes_decode_or_fail_and_never_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let _ = decode_payload(Bytes::from(bytes));
        }
    }
}
