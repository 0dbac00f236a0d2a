//! A delivered message, and several that came together: views of what came over the wire, without a copy.

use std::fmt;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use debros_proto::packed::{self, MessageRef, RunHead};

use crate::error::{Error, ErrorKind};
use crate::pubsub::batch::refusal;

/// What a subscription tells.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum SubscriptionEvent {
    /// A message.
    Message(Message),
    /// Messages were missed before the next one.
    Lagged {
        /// How many at least; `None` when nobody knows, and it may have been none.
        missed: Option<u64>,
    },
}

/// The same for many messages at a time.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum SubscriptionBatch {
    /// Messages that came together, in order.
    Messages(Messages),
    /// Messages were missed before the next ones.
    Lagged {
        /// How many at least; `None` when nobody knows, and it may have been none.
        missed: Option<u64>,
    },
}

/// A delivered message. It keeps what it came with in memory, some tens of KiB: copy the payload to keep
/// it for long.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    /// Topic, reply topic, headers, payload.
    body: Bytes,
    topic: u16,
    reply: u16,
    headers: u16,
    publisher: u64,
    number: u64,
}

impl Message {
    /// The topic that it was published to.
    pub fn topic(&self) -> &str {
        text(&self.body[..self.reply_at()])
    }

    /// What it says.
    pub fn payload(&self) -> &[u8] {
        &self.body[self.payload_at()..]
    }

    /// What it says, to keep.
    pub fn into_payload(mut self) -> Bytes {
        self.body.advance(self.payload_at());
        self.body
    }

    /// Where an answer is expected.
    pub fn reply(&self) -> Option<&str> {
        let reply = text(&self.body[self.reply_at()..self.headers_at()]);
        (!reply.is_empty()).then_some(reply)
    }

    /// What is told beside the payload.
    pub fn headers(&self) -> Headers {
        Headers(self.body.slice(self.headers_at()..self.payload_at()))
    }

    /// Who published it: drawn at random by each client.
    pub fn publisher(&self) -> u64 {
        self.publisher
    }

    /// The publisher's number of it. Numbers grow from message to message.
    pub fn number(&self) -> u64 {
        self.number
    }

    fn reply_at(&self) -> usize {
        usize::from(self.topic)
    }

    fn headers_at(&self) -> usize {
        self.reply_at() + usize::from(self.reply)
    }

    fn payload_at(&self) -> usize {
        self.headers_at() + usize::from(self.headers)
    }

    /// The same with another payload.
    pub(crate) fn with_payload(&self, payload: &[u8]) -> Self {
        let body = Bytes::from([&self.body[..self.payload_at()], payload].concat());
        Self { body, ..*self }
    }
}

/// Nodes let no topic in that is no text.
fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Message");
        shown.field("topic", &self.topic()).field("payload_bytes", &self.payload().len());
        shown.field("publisher", &self.publisher).field("number", &self.number).finish_non_exhaustive()
    }
}

/// Names and values that go with a message, in their order. At most 16 KiB.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers(Bytes);

impl Headers {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same and one more.
    ///
    /// # Errors
    /// `LimitExceeded` when they are too large in all.
    pub fn with(self, name: &str, value: impl AsRef<[u8]>) -> Result<Self, Error> {
        let mut encoded = self.0.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
        packed::put_header(&mut encoded, name, value.as_ref()).map_err(refusal)?;
        Ok(Self(encoded.freeze()))
    }

    /// The first value of this name.
    pub fn get(&self, name: &str) -> Option<Bytes> {
        self.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (String, Bytes)> + use<> {
        let sound = packed::Headers::new(self.0.clone()).map_while(Result::ok);
        sound.map(|(name, value)| (String::from_utf8_lossy(&name).into_owned(), value))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those of a packed message.
    pub(crate) fn of(encoded: &[u8]) -> Self {
        Self(Bytes::copy_from_slice(encoded))
    }

    pub(crate) fn encoded(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// What is made of every message of a subscription.
pub(crate) type Mapping = Arc<dyn Fn(Message) -> Result<Message, Error> + Send + Sync>;

/// Messages of one publisher that came together, in order. An error stands in the place of a message that
/// cannot be read.
#[derive(Clone)]
pub struct Messages {
    publisher: u64,
    next: u64,
    left: usize,
    packed: Bytes,
    mapping: Option<Mapping>,
}

impl Messages {
    pub(crate) fn new(head: &RunHead, packed: Bytes, mapping: Option<Mapping>) -> Self {
        Self { publisher: head.publisher, next: head.first, left: head.count as usize, packed, mapping }
    }

    fn read(&mut self) -> Result<Message, Error> {
        let Ok(MessageRef { topic, reply, headers, payload, encoded_len }) = MessageRef::first(&self.packed)
        else {
            self.left = 0;
            let message = "a node sent messages that cannot be read; see its log";
            return Err(Error::new(ErrorKind::Internal, message));
        };
        let head = encoded_len - topic.len() - reply.len() - headers.len() - payload.len();
        // The encoding has them in two bytes each.
        let [topic, reply, headers] = [topic, reply, headers].map(|part| part.len() as u16);
        let mut body = self.packed.split_to(encoded_len);
        body.advance(head);
        let number = self.next;
        self.next += 1;
        self.left -= 1;
        let message = Message { body, topic, reply, headers, publisher: self.publisher, number };
        match &self.mapping {
            Some(mapping) => mapping(message),
            None => Ok(message),
        }
    }
}

impl Iterator for Messages {
    type Item = Result<Message, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 { None } else { Some(self.read()) }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Messages {}

impl fmt::Debug for Messages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Messages");
        shown.field("publisher", &self.publisher).field("left", &self.left).finish_non_exhaustive()
    }
}
