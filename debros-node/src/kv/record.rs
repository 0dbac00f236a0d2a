//! What a replica keeps of a key, and its bytes on disk. Knows no store and no replication.
//!
//! Invariant: these bytes are kept for years; [`Record::FORMAT`] leads them.

use bytes::{BufMut, Bytes, BytesMut};
use debros_proto::v1;

/// A version of a value: the greater one wins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Hybrid logical clock: milliseconds since the Unix epoch times 65536, plus a counter.
    pub clock: u64,
    /// The node that stamped it, which breaks ties.
    pub node: u64,
}

impl From<Version> for v1::Version {
    fn from(version: Version) -> Self {
        Self { clock: version.clock, node: version.node }
    }
}

impl From<v1::Version> for Version {
    fn from(version: v1::Version) -> Self {
        Self { clock: version.clock, node: version.node }
    }
}

/// A key's newest value, or the trace of its deletion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Which of two records wins.
    pub version: Version,
    /// From this time on, in milliseconds since the Unix epoch, it is a tombstone of the same version; 0
    /// for never.
    pub expires_unix_ms: u64,
    /// The key was deleted.
    pub tombstone: bool,
    /// Empty in a tombstone.
    pub value: Bytes,
}

/// The first bytes of a stored record: enough to compare versions without touching the value.
pub(super) const HEADER_BYTES: usize = 26;

impl Record {
    /// The first byte of every stored record.
    const FORMAT: u8 = 1;

    /// A deletion.
    pub fn tombstone(version: Version) -> Self {
        Self { version, expires_unix_ms: 0, tombstone: true, value: Bytes::new() }
    }

    /// Whether there is no value any more at that time.
    pub fn is_gone(&self, unix_ms: u64) -> bool {
        self.tombstone || (self.expires_unix_ms != 0 && self.expires_unix_ms <= unix_ms)
    }

    /// Whether collecting up to this clock drops it: it is gone at that time, and every replica has it.
    pub(super) fn is_collected_by(&self, clock: u64) -> bool {
        self.version.clock <= clock && self.is_gone(super::clock::unix_ms_of(clock))
    }

    /// The stored form.
    pub(super) fn to_bytes(&self) -> BytesMut {
        let mut bytes = BytesMut::with_capacity(HEADER_BYTES + self.value.len());
        bytes.put_u8(Self::FORMAT);
        bytes.put_u64(self.version.clock);
        bytes.put_u64(self.version.node);
        bytes.put_u64(self.expires_unix_ms);
        bytes.put_u8(u8::from(self.tombstone));
        bytes.put_slice(&self.value);
        bytes
    }

    /// Reads the stored form. `None` when it is damaged or of a newer format.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut record = Self::header(bytes)?;
        record.value = Bytes::copy_from_slice(&bytes[HEADER_BYTES..]);
        Some(record)
    }

    /// Reads the stored form; the value shares its memory.
    pub(super) fn shared(bytes: &Bytes) -> Option<Self> {
        let mut record = Self::header(bytes)?;
        record.value = bytes.slice(HEADER_BYTES..);
        Some(record)
    }

    /// The same without the value.
    pub(super) fn header(bytes: &[u8]) -> Option<Self> {
        let number = |at: usize| Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        if *bytes.first()? != Self::FORMAT {
            return None;
        }
        Some(Self {
            version: Version { clock: number(1)?, node: number(9)? },
            expires_unix_ms: number(17)?,
            tombstone: *bytes.get(25)? != 0,
            value: Bytes::new(),
        })
    }

    /// As it is sent.
    pub(super) fn into_wire(self) -> v1::Record {
        let Self { version, expires_unix_ms, tombstone, value } = self;
        v1::Record { version: Some(version.into()), expires_unix_ms, tombstone, value }
    }

    /// As it was sent. `None` without a version.
    pub(super) fn from_wire(record: v1::Record) -> Option<Self> {
        let v1::Record { version, expires_unix_ms, tombstone, value } = record;
        Some(Self { version: version?.into(), expires_unix_ms, tombstone, value })
    }
}

/// The place of a key in the store: partition, namespace, key, so that a namespace's keys of a partition
/// lie together in the order of their bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Place(Bytes);

impl Place {
    /// Where a key lies.
    pub(super) fn new(partition: u16, namespace: &str, key: &str) -> Self {
        Self(place(partition, namespace, key.as_bytes()))
    }

    /// The stored form.
    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The stored form.
    pub(super) fn into_bytes(self) -> Bytes {
        self.0
    }

    /// Reads the stored form. `None` when it is none.
    pub(super) fn parse(bytes: &[u8]) -> Option<PlaceParts<'_>> {
        let partition = u16::from_be_bytes(bytes.get(..2)?.try_into().ok()?);
        let length = usize::from(*bytes.get(2)?);
        let namespace = std::str::from_utf8(bytes.get(3..3 + length)?).ok()?;
        let key = std::str::from_utf8(bytes.get(3 + length..)?).ok()?;
        Some(PlaceParts { partition, namespace, key })
    }
}

/// What a [`Place`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PlaceParts<'b> {
    /// The partition.
    pub(super) partition: u16,
    /// Whose key.
    pub(super) namespace: &'b str,
    /// The key.
    pub(super) key: &'b str,
}

/// The bytes with which all places of a partition and namespace begin whose keys have this prefix.
pub(super) fn place(partition: u16, namespace: &str, prefix: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(3 + namespace.len() + prefix.len());
    bytes.put_u16(partition);
    bytes.put_u8(u8::try_from(namespace.len()).expect("a namespace has at most 63 bytes"));
    bytes.put_slice(namespace.as_bytes());
    bytes.put_slice(prefix);
    bytes.freeze()
}

/// A key and what is kept of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Which partition it belongs to.
    pub(super) partition: u16,
    /// Whose key.
    pub(super) namespace: String,
    /// The key.
    pub(super) key: String,
    /// What is kept.
    pub(super) record: Record,
}

impl Entry {
    /// Where it lies.
    pub(super) fn place(&self) -> Place {
        Place::new(self.partition, &self.namespace, &self.key)
    }

    /// As it is sent; the partition is said beside it.
    pub(super) fn into_wire(self) -> v1::ReplicaEntry {
        let Self { partition: _, namespace, key, record } = self;
        v1::ReplicaEntry { namespace, key, record: Some(record.into_wire()) }
    }

    /// As it was sent. `None` when a part is missing or the key belongs to another partition.
    pub(super) fn from_wire(partition: u16, entry: v1::ReplicaEntry) -> Option<Self> {
        let v1::ReplicaEntry { namespace, key, record } = entry;
        let record = Record::from_wire(record?)?;
        let belongs = debros_proto::layout::partition_of(&namespace, &key) == partition;
        let fits = key.len() <= debros_proto::limits::STORAGE_KEY_BYTES_MAX
            && namespace.len() <= debros_proto::limits::NAMESPACE_BYTES_MAX;
        (belongs && fits).then_some(Self { partition, namespace, key, record })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::{any, prop_assert_eq, proptest};

    use super::{Place, Record, Version};

    proptest! {
        #[test]
        fn a_record_survives_its_stored_form(
            clock in any::<u64>(), node in any::<u64>(), expires_unix_ms in any::<u64>(),
            tombstone in any::<bool>(), value in any::<Vec<u8>>(),
        ) {
            let version = Version { clock, node };
            let record = Record { version, expires_unix_ms, tombstone, value: Bytes::from(value) };
            let bytes = record.to_bytes();
            prop_assert_eq!(Record::from_bytes(&bytes), Some(record.clone()));
            prop_assert_eq!(Record::header(&bytes), Some(Record { value: Bytes::new(), ..record }));
        }

        #[test]
        fn garbage_is_no_record_and_never_a_panic(bytes in any::<Vec<u8>>()) {
            let _ = (Record::from_bytes(&bytes), Place::parse(&bytes));
        }

        #[test]
        fn places_are_in_the_order_of_their_keys(one in "\\PC{1,20}", other in "\\PC{1,20}") {
            let (a, b) = (Place::new(7, "app", &one), Place::new(7, "app", &other));
            prop_assert_eq!(a.cmp(&b), one.as_bytes().cmp(other.as_bytes()));
            let parts = Place::parse(a.as_bytes()).expect("a place");
            prop_assert_eq!((parts.partition, parts.namespace, parts.key), (7, "app", one.as_str()));
        }
    }

    #[test]
    fn a_value_is_gone_from_its_expiry_on() {
        let version = Version { clock: 10 << 16, node: 1 };
        let record = Record { version, expires_unix_ms: 20, tombstone: false, value: Bytes::new() };
        assert!(!record.is_gone(19) && record.is_gone(20));
        assert!(!record.is_collected_by(19 << 16) && record.is_collected_by(20 << 16));
        assert!(!Record::tombstone(version).is_collected_by((10 << 16) - 1));
    }
}
