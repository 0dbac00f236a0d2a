//! Hash trees of partitions, by which replicas find out where they differ without comparing keys.
//!
//! A tree has one level of [`LEAVES`] leaves. A leaf is the exclusive or of the hashes of its entries, so
//! it follows a change by two hashes and does not depend on the order of changes (an incremental hash:
//! Bellare, Goldreich and Goldwasser 1994). The root is the hash of the leaves. A tree is computed from
//! the store when it is first needed, beside writes that go on meanwhile.

use std::hash::Hasher;

use siphasher::sip128::{Hasher128, SipHasher13};

use super::record::HEADER_BYTES;

/// Leaves of one tree: a difference of one key names a 256th of its partition.
pub(super) const LEAVES: usize = 256;
/// Bytes of one hash.
pub(super) const HASH_BYTES: usize = 16;

const ENTRY: u64 = 1;
const LEAF: u64 = 2;
const ROOT: u64 = 3;

/// The leaves of one partition's tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tree(Box<[u128; LEAVES]>);

impl Default for Tree {
    fn default() -> Self {
        Self(Box::new([0; LEAVES]))
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

impl Tree {
    /// Adds an entry, or takes it out: the same step undoes itself.
    pub(super) fn toggle(&mut self, place: &[u8], record: &[u8]) {
        self.step(leaf_of(place), hash_of(place, record));
    }

    /// Adds the hashes of entries of a leaf, or takes them out.
    pub(super) fn step(&mut self, leaf: usize, hashes: u128) {
        self.0[leaf] ^= hashes;
    }

    /// Adds what another tree has, or takes it out.
    pub(super) fn combine(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0.iter()).for_each(|(leaf, other)| *leaf ^= other);
    }

    /// The hash of everything.
    pub(super) fn root(&self) -> [u8; HASH_BYTES] {
        let mut hasher = SipHasher13::new_with_keys(ROOT, 0);
        self.0.iter().for_each(|leaf| hasher.write(&leaf.to_be_bytes()));
        hasher.finish128().as_u128().to_be_bytes()
    }

    /// The leaves as they are sent.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|leaf| leaf.to_be_bytes()).collect()
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
        self.0.iter().zip(theirs).enumerate().filter_map(differs).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{LEAVES, Tree, leaf_of};

    #[test]
    fn equal_contents_have_equal_trees_whatever_the_order() {
        let (mut one, mut other) = (Tree::default(), Tree::default());
        let places: Vec<Vec<u8>> = (0..1000u32).map(|number| number.to_be_bytes().to_vec()).collect();
        places.iter().for_each(|place| one.toggle(place, b"value"));
        places.iter().rev().for_each(|place| other.toggle(place, b"value"));
        assert_eq!(one, other);
        other.toggle(&places[7], b"value");
        other.toggle(&places[7], b"another");
        assert_ne!(one.root(), other.root());
        assert_eq!(one.differing(&other.to_bytes()), [leaf_of(&places[7])]);
        assert_eq!(one.differing(&[]).len(), LEAVES);
    }

    #[test]
    fn a_tree_computed_beside_writes_is_the_sum_of_both() {
        let (mut scanned, mut meanwhile, mut whole) = (Tree::default(), Tree::default(), Tree::default());
        scanned.toggle(b"a", b"1");
        meanwhile.toggle(b"a", b"1");
        meanwhile.toggle(b"a", b"2");
        scanned.combine(&meanwhile);
        whole.toggle(b"a", b"2");
        assert_eq!(scanned, whole);
    }
}
