//! What is durable in the journal and not yet in LMDB: the newest records by place, in memory.
//!
//! Writes go into the active layer. When that is large it is frozen and goes into LMDB beside the next one;
//! readers look into the active layer, the frozen one and LMDB, in this order.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError};

use bytes::Bytes;

/// A part of the store in memory.
#[derive(Debug, Default)]
pub(super) struct Layer {
    /// Place -> record.
    pub(super) data: BTreeMap<Bytes, Bytes>,
    /// Key -> value of the table of hints. These are in no journal: nothing relies on them.
    pub(super) hints: BTreeMap<Bytes, Bytes>,
    bytes: usize,
}

impl Layer {
    pub(super) fn put(&mut self, place: Bytes, record: Bytes) {
        let place_bytes = place.len();
        self.bytes += place_bytes + record.len();
        if let Some(before) = self.data.insert(place, record) {
            self.bytes -= place_bytes + before.len();
        }
    }

    pub(super) fn hint(&mut self, key: Bytes, value: Bytes) {
        let key_bytes = key.len();
        self.bytes += key_bytes + value.len();
        if let Some(before) = self.hints.insert(key, value) {
            self.bytes -= key_bytes + before.len();
        }
    }

    /// About what it takes in memory, without the trees' own.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.data.is_empty() && self.hints.is_empty()
    }
}

/// Both layers.
#[derive(Debug, Default)]
pub(super) struct Layers {
    pub(super) active: Layer,
    pub(super) frozen: Option<Arc<Layer>>,
}

impl Layers {
    /// Whether everything is in LMDB.
    pub(super) fn is_empty(&self) -> bool {
        self.active.is_empty() && self.frozen.is_none()
    }

    /// The newest record of a place that is in memory.
    pub(super) fn get(&self, place: &[u8]) -> Option<&Bytes> {
        let frozen = || self.frozen.as_ref().and_then(|frozen| frozen.data.get(place));
        self.active.data.get(place).or_else(frozen)
    }

    /// What is in memory of the places with a prefix, to be kept as it is now.
    pub(super) fn part(&self, prefix: &[u8]) -> Self {
        let range = (Bound::Included(prefix), Bound::Unbounded);
        let records = self.active.data.range::<[u8], _>(range);
        let mut active = Layer::default();
        for (place, record) in records.take_while(|(place, _)| place.starts_with(prefix)) {
            active.put(place.clone(), record.clone());
        }
        Self { active, frozen: self.frozen.clone() }
    }

    /// The records in memory from a place on, in order, the newest of each.
    pub(super) fn range<'l>(
        &'l self,
        first: Bound<&[u8]>,
    ) -> impl Iterator<Item = (&'l [u8], &'l [u8])> + use<'l> {
        let range = (first, Bound::Unbounded);
        let mut active = self.active.data.range::<[u8], _>(range).peekable();
        let mut frozen = self.frozen.as_deref().map(|frozen| frozen.data.range::<[u8], _>(range).peekable());
        std::iter::from_fn(move || {
            let older = frozen.as_mut().and_then(|frozen| frozen.peek().map(|(place, _)| *place));
            let newer = active.peek().map(|(place, _)| *place);
            let next = match (newer, older) {
                (Some(newer), Some(older)) if older < newer => frozen.as_mut()?.next(),
                (Some(newer), Some(older)) => {
                    if newer == older {
                        frozen.as_mut()?.next();
                    }
                    active.next()
                }
                (Some(_), None) => active.next(),
                (None, _) => frozen.as_mut()?.next(),
            };
            next.map(|(place, record)| (&place[..], &record[..]))
        })
    }
}

/// The layers as the writer and readers share them. The writer's turns are short: it only puts in what is
/// durable already.
#[derive(Clone, Debug, Default)]
pub(super) struct SharedLayers(Arc<RwLock<Layers>>);

impl SharedLayers {
    pub(super) fn read(&self) -> RwLockReadGuard<'_, Layers> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` while somebody else changes them, or waits to.
    pub(super) fn try_read(&self) -> Option<RwLockReadGuard<'_, Layers>> {
        match self.0.try_read() {
            Ok(layers) => Some(layers),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, Layers> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Bound;
    use std::sync::Arc;

    use bytes::Bytes;

    use super::{Layer, Layers};

    fn layer(entries: &[(&'static str, &'static str)]) -> Layer {
        let mut layer = Layer::default();
        entries.iter().for_each(|(place, record)| layer.put(Bytes::from(*place), Bytes::from(*record)));
        layer
    }

    #[test]
    fn the_active_layer_hides_the_frozen_one() {
        let frozen = Some(Arc::new(layer(&[("a", "1"), ("b", "1"), ("d", "1")])));
        let layers = Layers { active: layer(&[("b", "2"), ("c", "2")]), frozen };
        assert_eq!(layers.get(b"b"), Some(&Bytes::from("2")));
        assert_eq!(layers.get(b"d"), Some(&Bytes::from("1")));
        assert_eq!(layers.get(b"x"), None);
        let all: Vec<_> = layers.range(Bound::Excluded(b"a")).collect();
        let all: Vec<_> = all.iter().map(|(place, record)| [*place, *record].concat()).collect();
        assert_eq!(all, [b"b2".to_vec(), b"c2".to_vec(), b"d1".to_vec()]);
        assert_eq!(layers.range(Bound::Unbounded).count(), 4);
        let part = layers.part(b"b");
        assert_eq!((part.get(b"b"), part.get(b"c")), (Some(&Bytes::from("2")), None));
    }
}
