//! Consumer groups: who may read which partition, as a pure state machine.

mod model;

pub use model::{
    Assignor, Departure, GroupStatus, MemberKind, MemberStatus, Rebalance, RebalanceReason,
};
