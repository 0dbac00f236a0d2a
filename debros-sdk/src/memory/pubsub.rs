//! Pub/sub in this process's memory: a trie of mailboxes. All clones are one client at one node, so what goes to
//! anybody goes to one node, and nobody's connection breaks.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use debros_proto::packed::{MessageRef, RunHead};
use debros_proto::{Failure, Namespace, limits};
use debros_topics::{Pattern, TopicTrie};

use super::MEMORY_NODE_ID;
use crate::error::Error;
use crate::pubsub::batch::{MessageBatch, Outgoing};
use crate::pubsub::message::Message;
use crate::pubsub::presence::{Board, Lobby, Member, Presence, PresenceWatch};
use crate::pubsub::replies::{Inbox, Replies};
use crate::pubsub::session::BUFFER_BYTES_DEFAULT;
use crate::pubsub::settling::Settling;
use crate::pubsub::subscription::{Mailbox, Source, Subscription};
use crate::pubsub::{self, Acknowledge, Overflow, PubSub, SubscribeOptions, TopicInfo};

/// Pub/sub in memory; clones share it. With its last clone subscriptions end.
#[derive(Clone)]
pub struct MemoryPubSub {
    inner: Arc<Inner>,
}

struct Inner {
    namespace: Namespace,
    publisher: u64,
    state: Mutex<State>,
    replies: Replies,
}

#[derive(Default)]
struct State {
    last_number: u64,
    last_published: u64,
    receivers: TopicTrie<Arc<Receiver>>,
    subscriptions: BTreeMap<u64, (Pattern, Arc<Receiver>)>,
    present: BTreeMap<u64, Member>,
    watches: BTreeMap<u64, (Pattern, Arc<Board>)>,
}

struct Receiver {
    number: u64,
    group: Option<String>,
    overflow: Overflow,
    /// Bytes that may wait.
    room: u64,
    mailbox: Arc<Mailbox>,
}

impl Default for MemoryPubSub {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryPubSub {
    /// Nobody is subscribed yet.
    pub fn new() -> Self {
        Self::of_namespace(Namespace::new("memory").expect("the name satisfies the grammar"))
    }

    /// The same, said to be of this namespace.
    ///
    /// # Errors
    /// `InvalidArgument` when the name breaks the grammar.
    pub fn named(namespace: &str) -> Result<Self, Error> {
        Ok(Self::of_namespace(Namespace::new(namespace)?))
    }

    fn of_namespace(namespace: Namespace) -> Self {
        let publisher = rand::random_range(1..=u64::MAX);
        let (state, replies) = (Mutex::default(), Replies::default());
        Self { inner: Arc::new(Inner { namespace, publisher, state, replies }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state()
    }

    fn lobby(&self) -> Arc<Door> {
        Arc::new(Door(Arc::downgrade(&self.inner)))
    }

    fn add(&self, pattern: &str, options: SubscribeOptions) -> Result<Subscription, Error> {
        pubsub::pattern(pattern)?;
        pubsub::group(options.group.as_deref())?;
        let buffer = buffer_of(&options);
        self.add_into(pattern, options, Mailbox::new(buffer))
    }

    fn add_into(
        &self,
        pattern: &str,
        options: SubscribeOptions,
        mailbox: Arc<Mailbox>,
    ) -> Result<Subscription, Error> {
        let buffer = buffer_of(&options);
        let SubscribeOptions { group, overflow, buffer_bytes: _ } = options;
        let parsed = parse(pattern);
        let mut state = self.state();
        let number = state.number();
        let room = buffer + limits::SUBSCRIPTION_QUEUE_BYTES as u64;
        let receiver = Arc::new(Receiver { number, group, overflow, room, mailbox: mailbox.clone() });
        state.receivers.insert(&parsed, receiver.clone());
        state.subscriptions.insert(number, (parsed, receiver));
        Ok(Subscription::new(number, pattern, mailbox, self.lobby(), None))
    }
}

fn buffer_of(options: &SubscribeOptions) -> u64 {
    options.buffer_bytes.unwrap_or(BUFFER_BYTES_DEFAULT).clamp(1, limits::SUBSCRIPTION_CREDIT_BYTES_MAX)
}

/// The text was checked.
fn parse(pattern: &str) -> Pattern {
    Pattern::new(pattern).expect("a checked pattern")
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        state.subscriptions.values().for_each(|(_, receiver)| receiver.mailbox.end(None));
        state.watches.values().for_each(|(_, board)| board.end(None));
    }
}

impl State {
    fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    fn remove(&mut self, number: u64) -> Option<Arc<Receiver>> {
        let (pattern, receiver) = self.subscriptions.remove(&number)?;
        self.receivers.remove(&pattern, |known| known.number == number);
        Some(receiver)
    }

    /// Hands a packed message to its receivers; says whether there were any.
    fn deliver(&mut self, head: &RunHead, topic: &str, packed: &Bytes) -> bool {
        let mut receivers: Vec<&Arc<Receiver>> = Vec::new();
        let mut groups: BTreeMap<&str, Vec<&Arc<Receiver>>> = BTreeMap::new();
        self.receivers.for_each_match(topic, |receiver| match &receiver.group {
            None => receivers.push(receiver),
            Some(group) => groups.entry(group).or_default().push(receiver),
        });
        receivers.extend(groups.into_values().map(|members| members[rand::random_range(0..members.len())]));
        let some = !receivers.is_empty();
        let mut overflown = Vec::new();
        for receiver in receivers {
            receiver.mailbox.push(head, packed.clone());
            if receiver.mailbox.waiting() > receiver.room {
                match receiver.overflow {
                    Overflow::DropOldest => receiver.mailbox.drop_beyond(receiver.room),
                    Overflow::Disconnect => overflown.push(receiver.number),
                }
            }
        }
        for receiver in overflown.into_iter().filter_map(|number| self.remove(number)) {
            let max = limits::SUBSCRIPTION_QUEUE_BYTES;
            let failure = Failure::limit("SUBSCRIPTION_QUEUE_BYTES", max, "more waiting");
            receiver.mailbox.end(Some(failure.into()));
        }
        some
    }

    fn boards<'s>(&'s self, topic: &'s str) -> impl Iterator<Item = &'s Arc<Board>> {
        let matching = self.watches.values().filter(move |(pattern, _)| pattern.matches_text(topic));
        matching.map(|(_, board)| board)
    }

    fn present(&self, pattern: &Pattern) -> Vec<Member> {
        let here = self.present.values().filter(|member| pattern.matches_text(&member.topic));
        let mut here: Vec<Member> = here.cloned().collect();
        let order = |member: &Member| (member.topic.clone(), member.member.clone(), member.entry);
        here.sort_by_key(order);
        here
    }
}

/// How subscriptions find what they belong to: they do not keep it.
struct Door(Weak<Inner>);

impl Source for Door {
    fn consumed(&self, _: u64, _: u64) {}

    fn unsubscribe(&self, subscription: u64) {
        if let Some(inner) = self.0.upgrade() {
            let mut state = inner.state();
            state.remove(subscription);
            state.watches.remove(&subscription);
        }
    }
}

impl Lobby for Door {
    fn leave(&self, presence: u64) {
        if let Some(inner) = self.0.upgrade() {
            let mut state = inner.state();
            if let Some(member) = state.present.remove(&presence) {
                state.boards(&member.topic).for_each(|board| board.leave(member.clone()));
            }
        }
    }
}

#[async_trait]
impl PubSub for MemoryPubSub {
    fn namespace(&self) -> &str {
        self.inner.namespace.as_str()
    }

    async fn publish_batch_with(
        &self,
        batch: MessageBatch,
        acknowledge: Acknowledge,
    ) -> Result<Vec<Option<u32>>, Error> {
        let mut counts = Vec::new();
        let mut state = self.state();
        for part in batch.into_parts() {
            let mut packed = part.packed.freeze();
            while !packed.is_empty() {
                let message = MessageRef::first(&packed).expect("it was packed here");
                let topic =
                    std::str::from_utf8(message.topic).expect("it was text when it was packed").to_owned();
                let length = message.encoded_len;
                state.last_published += 1;
                let number = state.last_published;
                let head = RunHead {
                    count: 1,
                    origin: MEMORY_NODE_ID,
                    incarnation: 1,
                    sequence: number,
                    publisher: self.inner.publisher,
                    base: 1,
                    first: number,
                    rerouted: false,
                };
                let some = state.deliver(&head, &topic, &packed.split_to(length));
                if acknowledge != Acknowledge::Accepted {
                    counts.push(Some(u32::from(some)));
                }
            }
        }
        Ok(counts)
    }

    async fn subscribe_with(&self, pattern: &str, options: SubscribeOptions) -> Result<Subscription, Error> {
        self.add(pattern, options)
    }

    async fn unsubscribe(&self, pattern: &str) -> Result<usize, Error> {
        let mut state = self.state();
        let of_it = state.subscriptions.iter().filter(|(_, (known, _))| known.as_str() == pattern);
        let numbers: Vec<u64> = of_it.map(|(number, _)| *number).collect();
        let ended = numbers.iter().filter_map(|number| state.remove(*number));
        Ok(ended.inspect(|receiver| receiver.mailbox.end(None)).count())
    }

    async fn request_with(&self, message: Outgoing<'_>, timeout: Duration) -> Result<Message, Error> {
        let open = |pattern: &str, mailbox| {
            let subscription = self.add_into(pattern, SubscribeOptions::default(), mailbox)?;
            let begun = Arc::<Settling<()>>::default();
            begun.settle(Ok(()));
            Ok(Inbox { subscription, begun })
        };
        self.inner.replies.request(self, open, message, timeout).await
    }

    async fn list_topics(&self) -> Result<Vec<TopicInfo>, Error> {
        let state = self.state();
        let mut counts: BTreeMap<(&str, Option<&str>), u32> = BTreeMap::new();
        let of_the_application =
            state.subscriptions.values().filter(|(_, receiver)| !receiver.mailbox.is_of_answers());
        for (pattern, receiver) in of_the_application {
            *counts.entry((pattern.as_str(), receiver.group.as_deref())).or_default() += 1;
        }
        let topic = |((pattern, group), subscriptions): ((&str, Option<&str>), u32)| TopicInfo {
            pattern: pattern.to_owned(),
            group: group.map(str::to_owned),
            subscriptions,
            nodes: 1,
        };
        Ok(counts.into_iter().map(topic).collect())
    }

    async fn cluster_topics(&self) -> Result<Vec<TopicInfo>, Error> {
        self.list_topics().await
    }

    async fn enter(&self, topic: &str, member: &str, data: Bytes) -> Result<Presence, Error> {
        pubsub::member(topic, member, &data)?;
        let mut state = self.state();
        let entry = state.number();
        let (topic, member) = (topic.to_owned(), member.to_owned());
        let entered = Member { topic, member, data, node: MEMORY_NODE_ID, entry };
        state.boards(&entered.topic).for_each(|board| board.enter(entered.clone()));
        state.present.insert(entry, entered);
        Ok(Presence::new(entry, self.lobby(), Arc::default(), None))
    }

    async fn present(&self, pattern: &str) -> Result<Vec<Member>, Error> {
        pubsub::pattern(pattern)?;
        Ok(self.state().present(&parse(pattern)))
    }

    async fn watch_presence(&self, pattern: &str) -> Result<PresenceWatch, Error> {
        pubsub::pattern(pattern)?;
        let pattern = parse(pattern);
        let mut state = self.state();
        let number = state.number();
        let board = Arc::<Board>::default();
        board.set(state.present(&pattern));
        state.watches.insert(number, (pattern, board.clone()));
        Ok(PresenceWatch::new(number, board, self.lobby(), None))
    }
}

impl fmt::Debug for MemoryPubSub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryPubSub").field("namespace", &self.namespace()).finish_non_exhaustive()
    }
}
