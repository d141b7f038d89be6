//! The metadata shard's state machine: applies commands to the image and publishes it.

use std::io;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use crate::metadata::checkpoint::Checkpoint;
use crate::metadata::view::ViewFeed;
use crate::metadata::{self, Command, Image, Response};
use crate::raft::{self, Recovered, StateMachine};
use crate::types::LogPosition;

/// Who waits for a command: learns its place in the log and what became of it.
pub(in crate::metadata) type Applying = Mutex<Option<oneshot::Sender<(LogPosition, Response)>>>;

/// The state machine of shard 0.
pub(in crate::metadata) struct Machine {
    image: Image,
    published: Arc<ArcSwap<Image>>,
    feed: ViewFeed,
    /// Counts the commands that may change who reads what.
    members_changed: watch::Sender<u64>,
    applied: Option<LogPosition>,
    membership: Option<(LogPosition, Bytes)>,
    checkpointed: Recovered,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine").field("applied", &self.applied).finish_non_exhaustive()
    }
}

impl Machine {
    /// Rebuilds the machine from its newest good checkpoint.
    ///
    /// # Errors
    /// `InvalidData` when the checkpoint's membership does not decode.
    pub(in crate::metadata) fn open(
        checkpoint: Option<Checkpoint>,
        published: Arc<ArcSwap<Image>>,
        feed: ViewFeed,
    ) -> io::Result<Self> {
        let mut machine = Self {
            image: Image::default(),
            published,
            feed,
            members_changed: watch::Sender::new(0),
            applied: None,
            membership: None,
            checkpointed: Recovered::default(),
        };
        if let Some(checkpoint) = checkpoint {
            machine.image = checkpoint.image;
            machine.applied = Some(checkpoint.applied);
            machine.membership = raft::split_membership(checkpoint.membership)?;
            machine.checkpointed = machine.recovered();
        }
        Ok(machine)
    }

    /// Returns what is told of every command that may change who reads what, after its image is
    /// published.
    pub(in crate::metadata) fn members_changed(&self) -> watch::Receiver<u64> {
        self.members_changed.subscribe()
    }

    /// Returns whether anything changed since the newest checkpoint.
    pub(in crate::metadata) fn is_checkpoint_due(&self) -> bool {
        self.applied != self.checkpointed.applied
    }

    /// Returns what a checkpoint of now would hold, `None` when nothing was ever applied.
    pub(in crate::metadata) fn picture(&self) -> Option<(Checkpoint, Recovered)> {
        let applied = self.applied?;
        let membership = raft::join_membership(self.membership.as_ref());
        let checkpoint = Checkpoint { applied, membership, image: self.image.clone() };
        Some((checkpoint, self.recovered()))
    }

    /// Notes that a picture is durable.
    pub(in crate::metadata) fn picture_durable(&mut self, covers: Recovered) {
        self.checkpointed = covers;
    }

    /// Counts the entries since the newest checkpoint.
    pub(in crate::metadata) fn entries_since_checkpoint(&self) -> u64 {
        let index = |at: Option<LogPosition>| at.map_or(0, |at| at.index.get() + 1);
        index(self.applied).saturating_sub(index(self.checkpointed.applied))
    }
}

impl StateMachine for Machine {
    fn recovered(&self) -> Recovered {
        Recovered { applied: self.applied, membership: self.membership.clone() }
    }

    fn apply(&mut self, position: LogPosition, command: &raft::Command) -> io::Result<()> {
        let decoded = Command::decode(&command.encoded())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let (response, rows) = metadata::apply(&mut self.image, position, &decoded);
        self.applied = Some(position);
        self.published.store(Arc::new(self.image.clone()));
        self.feed.submit(position, rows);
        if decoded.concerns_members() {
            self.members_changed.send_modify(|count| *count += 1);
        }
        if let Some(applying) = command.local::<Applying>()
            && let Some(applied) = applying.lock().take()
        {
            // The caller may have given up waiting; the command is applied all the same.
            let _ = applied.send((position, response));
        }
        Ok(())
    }

    fn advance(&mut self, position: LogPosition, membership: Option<Bytes>) {
        self.applied = Some(position);
        if let Some(membership) = membership {
            self.membership = Some((position, membership));
        }
    }

    fn end_of_run(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn checkpointed(&self) -> Recovered {
        self.checkpointed.clone()
    }
}

/// A machine that the group and the checkpoint task share.
#[derive(Debug, Clone)]
pub(in crate::metadata) struct SharedMachine(pub(in crate::metadata) Arc<Mutex<Machine>>);

impl StateMachine for SharedMachine {
    fn recovered(&self) -> Recovered {
        self.0.lock().recovered()
    }

    fn apply(&mut self, position: LogPosition, command: &raft::Command) -> io::Result<()> {
        self.0.lock().apply(position, command)
    }

    fn advance(&mut self, position: LogPosition, membership: Option<Bytes>) {
        self.0.lock().advance(position, membership);
    }

    fn end_of_run(&mut self) -> io::Result<()> {
        self.0.lock().end_of_run()
    }

    fn checkpointed(&self) -> Recovered {
        self.0.lock().checkpointed()
    }
}
