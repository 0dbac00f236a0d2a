//! What this node's clients are interested in, as it tells the other nodes, and what another node has told.
//!
//! A node's interest has one version, which grows with every change; others are told the changes since the
//! version that they have, or all of it. A digest, the sum of the entries' hashes, shows whether the two agree.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::Hasher;
use std::sync::{Arc, LazyLock};

use debros_proto::{limits, v1};
use debros_topics::Pattern;
use prost::Message;
use siphasher::sip::SipHasher13;
use v1::interest_change::About;

/// Changes that are remembered for nodes that lag; past it they are told everything.
const CHANGES_KEPT_MAX: usize = 16_384;
/// Changes of one frame, which is not larger than one of messages either.
const CHANGES_PER_FRAME: usize = 512;

/// A pattern of a namespace, for subscriptions of their own or for a queue group.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) namespace: Arc<str>,
    pub(super) pattern: Pattern,
    pub(super) group: Option<Arc<str>>,
}

/// The least of all patterns.
static FIRST_PATTERN: LazyLock<Pattern> =
    LazyLock::new(|| Pattern::new("\0").expect("one character is a pattern"));

impl Key {
    /// The least of a namespace.
    fn first(namespace: &str) -> Self {
        Self { namespace: namespace.into(), pattern: FIRST_PATTERN.clone(), group: None }
    }

    fn change(&self, members: u32) -> v1::InterestChange {
        let group = self.group.as_deref().unwrap_or_default().to_owned();
        let pattern = self.pattern.as_str().to_owned();
        let about = About::Subscription(v1::SubscriptionInterest { pattern, group, members });
        v1::InterestChange { namespace: self.namespace.to_string(), about: Some(about) }
    }
}

/// Somebody who is present, and in which namespace.
pub(super) type Member = (Arc<str>, Arc<v1::PresentMember>);

/// Everything that one node is interested in.
#[derive(Default)]
pub(super) struct Interest {
    /// How many subscriptions; for those without a group others see at most one.
    pub(super) entries: BTreeMap<Key, u32>,
    pub(super) publishes: BTreeSet<Arc<str>>,
    /// Who is present, by the node's number.
    pub(super) present: BTreeMap<u64, Member>,
    /// These numbers, by namespace.
    present_in: BTreeMap<Arc<str>, BTreeSet<u64>>,
    digest: u64,
}

/// What others see of so many members.
fn seen(key: &Key, members: u32) -> u32 {
    if key.group.is_some() { members } else { members.min(1) }
}

impl Interest {
    /// See the module.
    pub(super) fn digest(&self) -> u64 {
        self.digest
    }

    /// Whether there is any subscription in a namespace.
    pub(super) fn is_in(&self, namespace: &str) -> bool {
        self.entries_in(namespace).next().is_some()
    }

    /// The subscriptions in a namespace.
    pub(super) fn entries_in(&self, namespace: &str) -> impl Iterator<Item = (&Key, &u32)> {
        let from = self.entries.range(Key::first(namespace)..);
        from.take_while(move |(key, _)| *key.namespace == *namespace)
    }

    /// Sets how many subscriptions there are; says whether others see a difference.
    pub(super) fn set(&mut self, key: &Key, members: u32) -> bool {
        let before = match members {
            0 => self.entries.remove(key),
            _ => self.entries.insert(key.clone(), members),
        };
        let (before, after) = (seen(key, before.unwrap_or(0)), seen(key, members));
        self.digest = self.digest.wrapping_sub(hash_of(key, before)).wrapping_add(hash_of(key, after));
        before != after
    }

    /// Notes whether clients publish in a namespace; says whether that is new.
    pub(super) fn set_publishes(&mut self, namespace: &Arc<str>, publishes: bool) -> bool {
        let hash = hash(&[b"publishes", namespace.as_bytes()], 0);
        let new = match publishes {
            true => self.publishes.insert(namespace.clone()),
            false => self.publishes.remove(namespace),
        };
        if new {
            let sum = if publishes { u64::wrapping_add } else { u64::wrapping_sub };
            self.digest = sum(self.digest, hash);
        }
        new
    }

    /// Notes who is present; `None` for nobody any more. Gives who was.
    pub(super) fn set_present(&mut self, entry: u64, member: Option<Member>) -> Option<Member> {
        let before = match &member {
            Some(member) => self.present.insert(entry, member.clone()),
            None => self.present.remove(&entry),
        };
        if let Some((namespace, member)) = &before {
            self.digest = self.digest.wrapping_sub(present_hash(entry, namespace, member));
            if let Some(entries) = self.present_in.get_mut(namespace) {
                entries.remove(&entry);
                if entries.is_empty() {
                    self.present_in.remove(namespace);
                }
            }
        }
        if let Some((namespace, member)) = &member {
            self.digest = self.digest.wrapping_add(present_hash(entry, namespace, member));
            self.present_in.entry(namespace.clone()).or_default().insert(entry);
        }
        before
    }

    /// How many are present in a namespace.
    pub(super) fn present_count(&self, namespace: &str) -> usize {
        self.present_in.get(namespace).map_or(0, BTreeSet::len)
    }

    /// Who is present in a namespace.
    pub(super) fn present_in(&self, namespace: &str) -> impl Iterator<Item = &Arc<v1::PresentMember>> {
        let entries = self.present_in.get(namespace).into_iter().flatten();
        entries.filter_map(|entry| self.present.get(entry)).map(|(_, member)| member)
    }

    fn all(&self) -> Vec<v1::InterestChange> {
        let entries = self.entries.iter().map(|(key, members)| key.change(seen(key, *members)));
        let publishes = self.publishes.iter().map(|namespace| publishes_change(namespace, true));
        let present =
            self.present.values().map(|(namespace, member)| present_change(namespace, member, false));
        entries.chain(publishes).chain(present).collect()
    }
}

fn hash_of(key: &Key, members: u32) -> u64 {
    if members == 0 {
        return 0;
    }
    let group = key.group.as_deref().unwrap_or_default();
    hash(&[key.namespace.as_bytes(), key.pattern.as_str().as_bytes(), group.as_bytes()], members.into())
}

fn present_hash(entry: u64, namespace: &str, member: &v1::PresentMember) -> u64 {
    let v1::PresentMember { topic, member, data, node_id: _, entry: _ } = member;
    hash(&[b"present", namespace.as_bytes(), topic.as_bytes(), member.as_bytes(), data], entry)
}

fn hash(parts: &[&[u8]], number: u64) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(0, number);
    for part in parts {
        hasher.write(&(part.len() as u64).to_le_bytes());
        hasher.write(part);
    }
    hasher.finish()
}

pub(super) fn publishes_change(namespace: &str, publishes: bool) -> v1::InterestChange {
    v1::InterestChange { namespace: namespace.to_owned(), about: Some(About::Publishes(publishes)) }
}

pub(super) fn present_change(namespace: &str, member: &v1::PresentMember, left: bool) -> v1::InterestChange {
    let v1::PresentMember { topic, member, data, node_id: _, entry } = member.clone();
    let about = About::Presence(v1::PresenceInterest { entry, topic, member, data, left });
    v1::InterestChange { namespace: namespace.to_owned(), about: Some(about) }
}

fn in_frames(changes: Vec<v1::InterestChange>) -> VecDeque<v1::InterestChanges> {
    let mut frames: VecDeque<v1::InterestChanges> = VecDeque::new();
    let mut bytes = 0;
    for change in changes {
        let length = change.encoded_len();
        match frames.back_mut() {
            Some(frame)
                if frame.changes.len() < CHANGES_PER_FRAME
                    && bytes + length <= limits::PUBSUB_FRAME_BYTES =>
            {
                frame.changes.push(change);
                bytes += length;
            }
            _ => {
                frames.push_back(v1::InterestChanges { reset: false, changes: vec![change], version: 0 });
                bytes = length;
            }
        }
    }
    frames
}

/// This node's interest, and what changed of late.
pub(super) struct Own {
    pub(super) interest: Interest,
    version: u64,
    changes: VecDeque<v1::InterestChange>,
    /// The version since which an entry is what it is.
    since: BTreeMap<Key, u64>,
}

impl Own {
    /// Nothing yet, which is the first version.
    pub(super) fn new() -> Self {
        Self { interest: Interest::default(), version: 1, changes: VecDeque::new(), since: BTreeMap::new() }
    }

    /// The version; never 0.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// One subscription more. Gives the version from which on others know that there is one.
    pub(super) fn add(&mut self, key: &Key) -> u64 {
        let members = self.interest.entries.get(key).copied().unwrap_or(0) + 1;
        if self.interest.set(key, members) {
            self.note(key.change(seen(key, members)));
            if members == 1 {
                self.since.insert(key.clone(), self.version);
            }
        }
        self.since.get(key).copied().unwrap_or(self.version)
    }

    /// One subscription less.
    pub(super) fn remove(&mut self, key: &Key) {
        let members = self.interest.entries.get(key).copied().unwrap_or(0).saturating_sub(1);
        if self.interest.set(key, members) {
            self.note(key.change(seen(key, members)));
        }
        if members == 0 {
            self.since.remove(key);
        }
    }

    /// Clients publish in a namespace, or not any more. Gives the version from which on others know it.
    pub(super) fn set_publishes(&mut self, namespace: &Arc<str>, publishes: bool) -> u64 {
        if self.interest.set_publishes(namespace, publishes) {
            self.note(publishes_change(namespace, publishes));
        }
        self.version
    }

    /// Somebody is present, or not any more.
    pub(super) fn set_present(&mut self, namespace: &Arc<str>, member: &Arc<v1::PresentMember>, left: bool) {
        self.interest.set_present(member.entry, (!left).then(|| (namespace.clone(), member.clone())));
        self.note(present_change(namespace, member, left));
    }

    fn note(&mut self, change: v1::InterestChange) {
        self.version += 1;
        self.changes.push_back(change);
        if self.changes.len() > CHANGES_KEPT_MAX {
            self.changes.pop_front();
        }
    }

    /// What to tell a node that has `version`; `None` for one that has nothing yet. In frames.
    pub(super) fn changes_since(&self, version: Option<u64>) -> VecDeque<v1::InterestChanges> {
        let kept = self.changes.len() as u64;
        let known = version.filter(|version| self.version - version <= kept);
        let changes: Vec<v1::InterestChange> = match known {
            Some(version) => {
                self.changes.range((kept - (self.version - version)) as usize..).cloned().collect()
            }
            None => self.interest.all(),
        };
        let mut frames = in_frames(changes);
        if known.is_none() {
            if frames.is_empty() {
                frames.push_back(v1::InterestChanges::default());
            }
            frames[0].reset = true;
        }
        if let Some(last) = frames.back_mut() {
            last.version = self.version;
        }
        frames
    }
}
