//! An ordered map whose clones share their contents.
//!
//! The image is cloned for every applied command. A `BTreeMap` of 10,000 `Arc`s would copy 10,000
//! entries each time; here a clone copies one pointer per chunk, and a change copies one chunk.
//!
//! Invariants:
//! - keys ascend within a chunk and from chunk to chunk;
//! - no chunk is empty and none has more than [`CHUNK_LEN_MAX`] entries.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

/// Entries of a chunk. Copying one costs about as much as copying the list of 100 chunks.
const CHUNK_LEN_MAX: usize = 128;

/// A sorted map; see the module's description.
#[derive(Clone)]
pub(crate) struct CowMap<K, V> {
    chunks: Vec<Arc<Vec<(K, V)>>>,
    len: usize,
}

impl<K, V> Default for CowMap<K, V> {
    fn default() -> Self {
        Self { chunks: Vec::new(), len: 0 }
    }
}

impl<K: Ord + Clone, V: Clone> CowMap<K, V> {
    /// Counts the entries.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Finds the value of a key.
    pub(crate) fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let chunk = self.chunks.get(self.chunk_of(key))?;
        let at = position(chunk, key).ok()?;
        chunk.get(at).map(|(_, value)| value)
    }

    /// Finds the value of a key, to be changed; copies its chunk if a clone shares it.
    pub(crate) fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        let chunk_at = self.chunk_of(key);
        let shared = self.chunks.get_mut(chunk_at)?;
        let at = position(shared, key).ok()?;
        Arc::make_mut(shared).get_mut(at).map(|(_, value)| value)
    }

    /// Sets the value of a key and returns the former one.
    pub(crate) fn insert(&mut self, key: K, value: V) -> Option<V> {
        let chunk_at = self.chunk_of(&key);
        let Some(shared) = self.chunks.get_mut(chunk_at) else {
            self.chunks.push(Arc::new(vec![(key, value)]));
            self.len += 1;
            return None;
        };
        let found = position(shared, &key);
        let is_full = shared.len() >= CHUNK_LEN_MAX;
        match found {
            Ok(at) => {
                let slot = Arc::make_mut(shared).get_mut(at)?;
                return Some(std::mem::replace(&mut slot.1, value));
            }
            // Keys that ascend (UUIDv7, Raft indexes) fill chunks to the brim instead of half.
            Err(at) if is_full && at == shared.len() => {
                self.chunks.insert(chunk_at + 1, Arc::new(vec![(key, value)]));
            }
            Err(at) => {
                let chunk = Arc::make_mut(shared);
                chunk.insert(at, (key, value));
                if is_full {
                    let upper = chunk.split_off(chunk.len() / 2);
                    self.chunks.insert(chunk_at + 1, Arc::new(upper));
                }
            }
        }
        self.len += 1;
        None
    }

    /// Removes a key and returns its value.
    pub(crate) fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let chunk_at = self.chunk_of(key);
        let shared = self.chunks.get_mut(chunk_at)?;
        let at = position(shared, key).ok()?;
        let chunk = Arc::make_mut(shared);
        let (_, value) = chunk.remove(at);
        self.len -= 1;
        if chunk.is_empty() {
            self.chunks.remove(chunk_at);
        } else {
            self.merge_with_next(chunk_at);
            if let Some(before) = chunk_at.checked_sub(1) {
                self.merge_with_next(before);
            }
        }
        Some(value)
    }

    /// Removes and returns the entry with the lowest key.
    pub(crate) fn pop_first(&mut self) -> Option<(K, V)> {
        let key = self.iter().next()?.0.clone();
        let value = self.remove(&key)?;
        Some((key, value))
    }

    /// Lists the entries by key.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = (&K, &V)> {
        self.chunks.iter().flat_map(|chunk| chunk.iter()).map(|(key, value)| (key, value))
    }

    /// Lists the entries by key, from a first one.
    pub(crate) fn iter_from<Q: Ord + ?Sized>(
        &self,
        start: Bound<&Q>,
    ) -> impl Iterator<Item = (&K, &V)>
    where
        K: Borrow<Q>,
    {
        let (chunk_at, at) = match start {
            Bound::Unbounded => (0, 0),
            Bound::Included(key) | Bound::Excluded(key) => {
                let chunk_at = self.chunk_of(key);
                let found = self.chunks.get(chunk_at).map_or(Ok(0), |chunk| position(chunk, key));
                let skip_found = usize::from(matches!(start, Bound::Excluded(_)));
                (chunk_at, found.map_or_else(|at| at, |at| at + skip_found))
            }
        };
        let chunks = self.chunks.get(chunk_at..).unwrap_or_default();
        chunks.iter().flat_map(|chunk| chunk.iter()).skip(at).map(|(key, value)| (key, value))
    }

    /// Returns the position of the chunk that has the key or would get it.
    fn chunk_of<Q: Ord + ?Sized>(&self, key: &Q) -> usize
    where
        K: Borrow<Q>,
    {
        let starts_at_or_before = |chunk: &Arc<Vec<(K, V)>>| {
            chunk.first().is_some_and(|(first, _)| first.borrow() <= key)
        };
        self.chunks.partition_point(starts_at_or_before).saturating_sub(1)
    }

    /// Joins a chunk with its successor when both are small, so that deletions leave no crumbs.
    fn merge_with_next(&mut self, chunk_at: usize) {
        let (Some(chunk), Some(next)) = (self.chunks.get(chunk_at), self.chunks.get(chunk_at + 1))
        else {
            return;
        };
        if chunk.len() + next.len() <= CHUNK_LEN_MAX / 2 {
            let next = self.chunks.remove(chunk_at + 1);
            if let Some(chunk) = self.chunks.get_mut(chunk_at) {
                Arc::make_mut(chunk).extend(next.iter().cloned());
            }
        }
    }
}

impl<K: Ord + Clone + PartialEq, V: Clone + PartialEq> PartialEq for CowMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().eq(other.iter())
    }
}

impl<K: Ord + Clone + fmt::Debug, V: Clone + fmt::Debug> fmt::Debug for CowMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

fn position<K: Borrow<Q>, V, Q: Ord + ?Sized>(chunk: &[(K, V)], key: &Q) -> Result<usize, usize> {
    chunk.binary_search_by(|(other, _)| other.borrow().cmp(key))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn check_shape(map: &CowMap<u16, u32>) {
        let lens: Vec<usize> = map.chunks.iter().map(|chunk| chunk.len()).collect();
        assert!(lens.iter().all(|len| (1..=CHUNK_LEN_MAX).contains(len)), "{lens:?}");
        assert_eq!(lens.iter().sum::<usize>(), map.len());
    }

    proptest! {
        #[test]
        fn behaves_like_a_btree_map(
            steps in prop::collection::vec((0u8..6, 0u16..600, any::<u32>()), 0..2_000),
            from in 0u16..700,
        ) {
            let (mut map, mut model) = (CowMap::default(), BTreeMap::new());
            for (what, key, value) in steps {
                match what {
                    0 => prop_assert_eq!(map.remove(&key), model.remove(&key)),
                    1 => prop_assert_eq!(map.pop_first(), model.pop_first()),
                    2 => {
                        prop_assert_eq!(map.get_mut(&key).copied(), model.get(&key).copied());
                        map.get_mut(&key).into_iter().for_each(|old| *old = value);
                        model.get_mut(&key).into_iter().for_each(|old| *old = value);
                    }
                    _ => prop_assert_eq!(map.insert(key, value), model.insert(key, value)),
                }
                prop_assert_eq!(map.get(&key), model.get(&key));
            }
            check_shape(&map);
            prop_assert!(map.iter().eq(model.iter()));
            for bound in [Bound::Included(&from), Bound::Excluded(&from), Bound::Unbounded] {
                let expected = model.range::<u16, _>((bound, Bound::Unbounded));
                prop_assert!(map.iter_from::<u16>(bound).eq(expected));
            }
        }
    }

    #[test]
    fn a_change_copies_one_chunk_and_leaves_clones_alone() {
        let mut map = CowMap::default();
        for key in 0u16..10_000 {
            map.insert(key, u32::from(key));
        }
        let before = map.clone();
        map.insert(5_000, 1);
        let copied = map.chunks.iter().zip(&before.chunks).filter(|(a, b)| !Arc::ptr_eq(a, b));
        assert_eq!(copied.count(), 1);
        assert_eq!(before.get(&5_000), Some(&5_000));
        // Ascending keys fill their chunks.
        assert_eq!(map.chunks.len(), 10_000usize.div_ceil(CHUNK_LEN_MAX));
    }

    #[test]
    fn deletions_leave_no_crumbs() {
        let mut map = CowMap::default();
        for key in 0u16..10_000 {
            map.insert(key, 0u32);
        }
        for key in (0u16..10_000).filter(|key| key % 100 != 0) {
            map.remove(&key);
        }
        check_shape(&map);
        assert!(map.chunks.len() < 20, "{} chunks for 100 entries", map.chunks.len());
    }
}
