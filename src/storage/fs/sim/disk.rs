//! What a simulated disk holds: the live image (page cache) beside the durable one.
//!
//! Invariants:
//! - a file's durable bytes change only when its pending changes are applied in order, by a sync;
//! - changes dropped by a failed sync are never applied later, although the live bytes keep them;
//! - a directory's durable names change only by a sync of that directory. A rename between two
//!   directories is one change: a sync of either applies all of it, as a journal does.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Component, Path};

use crate::storage::fs::{Entry, EntryKind};

/// Sectors reach a disk whole or not at all.
const SECTOR_BYTES: usize = 512;

pub(super) type NodeId = u64;

const ROOT: NodeId = 0;

#[derive(Debug, Clone)]
pub(super) struct Disk {
    nodes: BTreeMap<NodeId, Node>,
    next_node: NodeId,
    /// Name changes that no directory sync has made durable, in the order they happened.
    names: Vec<NameChange>,
    /// Node count at which unreachable nodes are looked for.
    sweep_at: usize,
}

#[derive(Debug, Clone)]
enum Node {
    File(FileNode),
    Directory(DirectoryNode),
}

#[derive(Debug, Clone, Default)]
pub(super) struct FileNode {
    live: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
    handles: usize,
}

#[derive(Debug, Clone, Default)]
struct DirectoryNode {
    live: BTreeMap<String, NodeId>,
    durable: BTreeMap<String, NodeId>,
}

#[derive(Debug, Clone)]
enum Change {
    Write { position: usize, bytes: Vec<u8> },
    SetLen(usize),
}

/// Takes a name away, gives a name, or both at once (rename).
#[derive(Debug, Clone)]
struct NameChange {
    removed: Option<(NodeId, String)>,
    added: Option<(NodeId, String, NodeId)>,
}

/// A small deterministic generator (splitmix64), so that a seed means the same for ever.
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number in `0..bound`, 0 when there is none.
    fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.next() % bound).unwrap_or(0)
    }
}

impl FileNode {
    pub(super) fn len(&self) -> usize {
        self.live.len()
    }

    pub(super) fn read(&self, buffer: &mut [u8], position: usize) -> usize {
        let rest = self.live.get(position..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..count), rest.get(..count)) {
            to.copy_from_slice(from);
        }
        count
    }

    pub(super) fn write(&mut self, position: usize, bytes: Vec<u8>) {
        self.change(Change::Write { position, bytes });
    }

    pub(super) fn set_len(&mut self, len: usize) {
        self.change(Change::SetLen(len));
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.live);
        self.pending.push(change);
    }

    pub(super) fn sync(&mut self) {
        for change in self.pending.drain(..) {
            change.apply(&mut self.durable);
        }
    }

    /// Forgets what was not synced, as a kernel does that marks pages clean after an error.
    pub(super) fn lose_pending(&mut self) {
        self.pending.clear();
    }

    /// Applies what a disk may have written of the unsynced changes before it lost power.
    fn survive(&mut self, random: &mut Random) {
        let pending = std::mem::take(&mut self.pending);
        match random.below(4) {
            0 => {}
            1 => pending.iter().for_each(|change| change.apply(&mut self.durable)),
            2 => {
                let whole = random.below(pending.len() + 1);
                for change in pending.iter().take(whole) {
                    change.apply(&mut self.durable);
                }
                if let Some(torn) = pending.get(whole) {
                    let mut left = random.below(torn.sectors().len() + 1);
                    torn.apply_sectors(&mut self.durable, || {
                        let lives = left > 0;
                        left = left.saturating_sub(1);
                        lives
                    });
                }
            }
            _ => {
                for change in &pending {
                    change.apply_sectors(&mut self.durable, || random.below(2) == 0);
                }
            }
        }
    }
}

impl Change {
    fn apply(&self, image: &mut Vec<u8>) {
        match self {
            Self::SetLen(len) => image.resize(*len, 0),
            Self::Write { position, bytes } => write_into(image, *position, bytes),
        }
    }

    /// Splits a write at sector borders; a change of length is one piece.
    fn sectors(&self) -> Vec<(usize, &[u8])> {
        let Self::Write { position, bytes } = self else {
            return vec![(0, &[])];
        };
        let mut pieces = Vec::new();
        let (mut at, mut rest) = (*position, bytes.as_slice());
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(rest.len().min(SECTOR_BYTES - at % SECTOR_BYTES));
            pieces.push((at, piece));
            at += piece.len();
            rest = after;
        }
        pieces
    }

    fn apply_sectors(&self, image: &mut Vec<u8>, mut lives: impl FnMut() -> bool) {
        if let Self::SetLen(len) = self {
            if lives() {
                image.resize(*len, 0);
            }
            return;
        }
        for (position, piece) in self.sectors() {
            if lives() {
                write_into(image, position, piece);
            }
        }
    }
}

fn write_into(image: &mut Vec<u8>, position: usize, bytes: &[u8]) {
    let end = position.saturating_add(bytes.len());
    if image.len() < end {
        image.resize(end, 0);
    }
    if let Some(target) = image.get_mut(position..end) {
        target.copy_from_slice(bytes);
    }
}

impl Disk {
    pub(super) fn new() -> Self {
        let nodes = BTreeMap::from([(ROOT, Node::Directory(DirectoryNode::default()))]);
        Self { nodes, next_node: ROOT + 1, names: Vec::new(), sweep_at: 1024 }
    }

    pub(super) fn file(&mut self, id: NodeId) -> io::Result<&mut FileNode> {
        match self.nodes.get_mut(&id) {
            Some(Node::File(file)) => Ok(file),
            Some(Node::Directory(_)) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn directory(&mut self, id: NodeId) -> io::Result<&mut DirectoryNode> {
        match self.nodes.get_mut(&id) {
            Some(Node::Directory(directory)) => Ok(directory),
            Some(Node::File(_)) => Err(io::ErrorKind::NotADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn look_up(&mut self, path: &Path) -> io::Result<NodeId> {
        let mut at = ROOT;
        for name in names_of(path) {
            let next = self.directory(at)?.live.get(&name).copied();
            at = next.ok_or(io::ErrorKind::NotFound)?;
        }
        Ok(at)
    }

    fn parent_of(&mut self, path: &Path) -> io::Result<(NodeId, String)> {
        let mut names = names_of(path);
        let last = names.pop().ok_or(io::ErrorKind::InvalidInput)?;
        let mut at = ROOT;
        for name in names {
            let next = self.directory(at)?.live.get(&name).copied();
            at = next.ok_or(io::ErrorKind::NotFound)?;
        }
        Ok((at, last))
    }

    fn add_node(&mut self, parent: NodeId, name: String, node: Node) -> io::Result<NodeId> {
        let id = self.next_node;
        self.next_node += 1;
        self.directory(parent)?.live.insert(name.clone(), id);
        self.nodes.insert(id, node);
        self.names.push(NameChange { removed: None, added: Some((parent, name, id)) });
        Ok(id)
    }

    /// Finds a file and counts a handle on it.
    pub(super) fn open(&mut self, path: &Path) -> io::Result<NodeId> {
        let id = self.look_up(path)?;
        self.file(id)?.handles += 1;
        Ok(id)
    }

    /// Makes an empty file under a new name and counts a handle on it.
    pub(super) fn create(&mut self, path: &Path) -> io::Result<NodeId> {
        let (parent, name) = self.parent_of(path)?;
        if self.directory(parent)?.live.contains_key(&name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.add_node(parent, name, Node::File(FileNode { handles: 1, ..FileNode::default() }))
    }

    pub(super) fn close(&mut self, id: NodeId) {
        if let Ok(file) = self.file(id) {
            file.handles = file.handles.saturating_sub(1);
        }
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let (from_parent, from_name) = self.parent_of(from)?;
        let (to_parent, to_name) = self.parent_of(to)?;
        let id = self.look_up(from)?;
        self.file(id)?;
        if let Some(old) = self.directory(to_parent)?.live.get(&to_name).copied() {
            self.file(old)?;
        }
        self.directory(from_parent)?.live.remove(&from_name);
        self.directory(to_parent)?.live.insert(to_name.clone(), id);
        self.names.push(NameChange {
            removed: Some((from_parent, from_name)),
            added: Some((to_parent, to_name, id)),
        });
        Ok(())
    }

    pub(super) fn remove_file(&mut self, path: &Path) -> io::Result<()> {
        let (parent, name) = self.parent_of(path)?;
        let id = self.look_up(path)?;
        self.file(id)?;
        self.remove_name(parent, name)
    }

    pub(super) fn remove_dir(&mut self, path: &Path) -> io::Result<()> {
        let (parent, name) = self.parent_of(path)?;
        let id = self.look_up(path)?;
        if !self.directory(id)?.live.is_empty() {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        self.remove_name(parent, name)
    }

    fn remove_name(&mut self, parent: NodeId, name: String) -> io::Result<()> {
        self.directory(parent)?.live.remove(&name);
        self.names.push(NameChange { removed: Some((parent, name)), added: None });
        Ok(())
    }

    pub(super) fn create_dir_all(&mut self, path: &Path) -> io::Result<()> {
        let mut at = ROOT;
        for name in names_of(path) {
            let next = self.directory(at)?.live.get(&name).copied();
            at = match next {
                Some(id) => id,
                None => self.add_node(at, name, Node::Directory(DirectoryNode::default()))?,
            };
        }
        self.directory(at).map(|_| ())
    }

    pub(super) fn sync_dir(&mut self, path: &Path) -> io::Result<()> {
        let id = self.look_up(path)?;
        self.directory(id)?;
        let (concerned, others) =
            std::mem::take(&mut self.names).into_iter().partition(|change| change.concerns(id));
        self.names = others;
        self.make_names_durable(concerned);
        self.sweep();
        Ok(())
    }

    fn make_names_durable(&mut self, changes: Vec<NameChange>) {
        for change in changes {
            if let Some((parent, name)) = change.removed
                && let Ok(directory) = self.directory(parent)
            {
                directory.durable.remove(&name);
            }
            if let Some((parent, name, id)) = change.added
                && let Ok(directory) = self.directory(parent)
            {
                directory.durable.insert(name, id);
            }
        }
    }

    pub(super) fn list(&mut self, path: &Path) -> io::Result<Vec<Entry>> {
        let id = self.look_up(path)?;
        let names = self.directory(id)?.live.clone();
        let entry = |(name, id)| match self.nodes.get(&id) {
            Some(Node::File(file)) => {
                let len = u64::try_from(file.len()).unwrap_or(u64::MAX);
                Some(Entry { name, kind: EntryKind::File, len })
            }
            Some(Node::Directory(_)) => Some(Entry { name, kind: EntryKind::Directory, len: 0 }),
            None => None,
        };
        Ok(names.into_iter().filter_map(entry).collect())
    }

    /// Returns the bytes of all files that have a name; holes count like data.
    pub(super) fn used_bytes(&self) -> usize {
        let named = self.reachable(|directory| &directory.live);
        let len = |id: &NodeId| match self.nodes.get(id) {
            Some(Node::File(file)) => file.len(),
            _ => 0,
        };
        named.iter().map(len).sum()
    }

    /// Returns what is left after power was cut; `luck` decides what survives of the unsynced.
    pub(super) fn after_cut(&self, luck: Option<&mut Random>) -> Self {
        let mut disk = self.clone();
        let mut names = std::mem::take(&mut disk.names);
        match luck {
            None => {}
            Some(random) => {
                names.truncate(random.below(names.len() + 1));
                disk.make_names_durable(names);
                for node in disk.nodes.values_mut() {
                    if let Node::File(file) = node {
                        file.survive(random);
                    }
                }
            }
        }
        for node in disk.nodes.values_mut() {
            match node {
                Node::File(file) => {
                    file.pending.clear();
                    file.live.clone_from(&file.durable);
                    file.handles = 0;
                }
                Node::Directory(directory) => directory.live.clone_from(&directory.durable),
            }
        }
        disk.sweep_at = 0;
        disk.sweep();
        disk
    }

    /// Returns what a new process finds after the old one died: all of it, and no handle.
    pub(super) fn after_crash(&self) -> Self {
        let mut disk = self.clone();
        for node in disk.nodes.values_mut() {
            if let Node::File(file) = node {
                file.handles = 0;
            }
        }
        disk
    }

    fn reachable(
        &self,
        names: impl Fn(&DirectoryNode) -> &BTreeMap<String, NodeId>,
    ) -> BTreeSet<NodeId> {
        let mut found = BTreeSet::from([ROOT]);
        let mut open = vec![ROOT];
        while let Some(id) = open.pop() {
            if let Some(Node::Directory(directory)) = self.nodes.get(&id) {
                for child in names(directory).values() {
                    if found.insert(*child) {
                        open.push(*child);
                    }
                }
            }
        }
        found
    }

    /// Drops nodes that nothing can reach any more, when there are many nodes.
    fn sweep(&mut self) {
        if self.nodes.len() < self.sweep_at {
            return;
        }
        let mut keep = self.reachable(|directory| &directory.live);
        keep.extend(self.reachable(|directory| &directory.durable));
        for change in &self.names {
            keep.extend(change.removed.iter().map(|(parent, _)| *parent));
            keep.extend(change.added.iter().flat_map(|(parent, _, id)| [*parent, *id]));
        }
        self.nodes.retain(|id, node| {
            keep.contains(id) || matches!(node, Node::File(file) if file.handles > 0)
        });
        self.sweep_at = (self.nodes.len() * 2).max(1024);
    }
}

impl NameChange {
    fn concerns(&self, directory: NodeId) -> bool {
        let removed = self.removed.as_ref().map(|(parent, _)| *parent);
        let added = self.added.as_ref().map(|(parent, _, _)| *parent);
        removed == Some(directory) || added == Some(directory)
    }
}

fn names_of(path: &Path) -> Vec<String> {
    let normal = |component| match component {
        Component::Normal(name) => Some(std::ffi::OsStr::to_string_lossy(name).into_owned()),
        _ => None,
    };
    path.components().filter_map(normal).collect()
}
