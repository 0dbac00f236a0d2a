//! Hash trees of partitions, by which replicas find out where they differ without comparing keys.
//!
//! A tree has one level of [`LEAVES`] leaves. A leaf is the exclusive or of the hashes of its entries, so
//! it follows a change by two hashes and does not depend on the order of changes (an incremental hash:
//! Bellare, Goldreich and Goldwasser 1994). The root is the hash of the leaves. A tree is computed from
//! the store when it is first needed, beside writes that go on meanwhile.

use std::hash::Hasher;

use siphasher::sip128::{Hasher128, SipHasher13};

use super::record::{HEADER_BYTES, Record};

/// Leaves of one tree: a difference of one key names a 256th of its partition.
pub(super) const LEAVES: usize = 256;
/// Bytes of one hash.
pub(super) const HASH_BYTES: usize = 16;

const ENTRY: u64 = 1;
const LEAF: u64 = 2;
const ROOT: u64 = 3;

/// The leaves of one partition's tree, and beside them how many of its entries are deletions: who counts the one
/// has counted the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tree {
    leaves: Box<[u128; LEAVES]>,
    tombstones: i64,
}

impl Default for Tree {
    fn default() -> Self {
        Self { leaves: Box::new([0; LEAVES]), tombstones: 0 }
    }
}

/// The leaf that a place belongs to.
pub(super) fn leaf_of(place: &[u8]) -> usize {
    let mut hasher = SipHasher13::new_with_keys(LEAF, 0);
    hasher.write(place);
    hasher.finish() as usize % LEAVES
}

/// What a stored record is to the tree. Its version stands for its value: no two values have the same one.
pub(super) fn hash_of(place: &[u8], record: &[u8]) -> u128 {
    let mut hasher = SipHasher13::new_with_keys(ENTRY, place.len() as u64);
    hasher.write(place);
    hasher.write(&record[..record.len().min(HEADER_BYTES)]);
    hasher.finish128().as_u128()
}

/// 1 for a deletion.
pub(super) fn tombstones_in(record: &[u8]) -> i64 {
    i64::from(Record::header(record).is_some_and(|header| header.tombstone))
}

impl Tree {
    /// Adds an entry.
    pub(super) fn add(&mut self, place: &[u8], record: &[u8]) {
        self.step(leaf_of(place), hash_of(place, record), tombstones_in(record));
    }

    /// Adds the hashes of entries of a leaf, or takes them out, and so many deletions.
    pub(super) fn step(&mut self, leaf: usize, hashes: u128, tombstones: i64) {
        self.leaves[leaf] ^= hashes;
        self.tombstones += tombstones;
    }

    /// How many of its entries are deletions.
    pub(super) fn tombstones(&self) -> i64 {
        self.tombstones
    }

    /// Adds what another tree has, or takes it out.
    pub(super) fn combine(&mut self, other: &Self) {
        self.leaves.iter_mut().zip(other.leaves.iter()).for_each(|(leaf, other)| *leaf ^= other);
        self.tombstones += other.tombstones;
    }

    /// The hash of everything.
    pub(super) fn root(&self) -> [u8; HASH_BYTES] {
        let mut hasher = SipHasher13::new_with_keys(ROOT, 0);
        self.leaves.iter().for_each(|leaf| hasher.write(&leaf.to_be_bytes()));
        hasher.finish128().as_u128().to_be_bytes()
    }

    /// The leaves as they are sent.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        self.leaves.iter().flat_map(|leaf| leaf.to_be_bytes()).collect()
    }

    /// The leaves in which the tree differs from one that was sent; all of them when that is malformed.
    pub(super) fn differing(&self, sent: &[u8]) -> Vec<usize> {
        if sent.len() != LEAVES * HASH_BYTES {
            return (0..LEAVES).collect();
        }
        let theirs = sent.chunks_exact(HASH_BYTES);
        let differs = |(index, (mine, theirs)): (usize, (&u128, &[u8]))| {
            (mine.to_be_bytes() != theirs).then_some(index)
        };
        self.leaves.iter().zip(theirs).enumerate().filter_map(differs).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{LEAVES, Tree, leaf_of};

    #[test]
    fn equal_contents_have_equal_trees_whatever_the_order() {
        let (mut one, mut other) = (Tree::default(), Tree::default());
        let places: Vec<Vec<u8>> = (0..1000u32).map(|number| number.to_be_bytes().to_vec()).collect();
        places.iter().for_each(|place| one.add(place, b"value"));
        places.iter().rev().for_each(|place| other.add(place, b"value"));
        assert_eq!(one, other);
        // The same step undoes itself.
        other.add(&places[7], b"value");
        other.add(&places[7], b"another");
        assert_ne!(one.root(), other.root());
        assert_eq!(one.differing(&other.to_bytes()), [leaf_of(&places[7])]);
        assert_eq!(one.differing(&[]).len(), LEAVES);
    }

    #[test]
    fn a_tree_computed_beside_writes_is_the_sum_of_both() {
        let (mut scanned, mut meanwhile, mut whole) = (Tree::default(), Tree::default(), Tree::default());
        scanned.add(b"a", b"1");
        meanwhile.add(b"a", b"1");
        meanwhile.add(b"a", b"2");
        scanned.combine(&meanwhile);
        whole.add(b"a", b"2");
        assert_eq!(scanned, whole);
    }
}
