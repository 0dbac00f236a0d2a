//! Many messages in one `bytes` field: the encoding in which published messages travel, between a client and
//! its node and between nodes. A node finds a message's topic without touching the rest, and hands on slices
//! of what it got.
//!
//! All numbers are little-endian.
//!
//! ```text
//! message: u32 length of what follows | u16 topic length | u16 reply length | u16 headers length
//!          | topic | reply topic | headers | payload
//! header:  u16 name length | u16 value length | name | value
//! run:     u32 length of the messages | u32 their count | u64 origin | u64 incarnation | u64 sequence
//!          | u64 publisher | u64 base | u64 first | u8 flags | u8 namespace length | u8 group length
//!          | namespace | group | messages
//! ```
//!
//! A run is messages of one publisher under consecutive numbers, both of the publisher and of the origin.
//!
//! Invariants: what [`Messages`] and [`Runs`] give lies within the bytes they were given; a damaged encoding is
//! an error, never a panic. They check lengths and nothing else: topics may be no topics, text no text.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::limits;

/// The part of a message before its topic.
const MESSAGE_HEAD: usize = 10;
/// The part of a run before its namespace.
pub const RUN_HEAD: usize = 59;

/// Bytes that are not in the encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("packed messages are damaged: a length points past the end")]
pub struct Damaged;

/// Why a message cannot be packed: the limit by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{limit} is at most {max}, this message has {found}")]
pub struct TooLarge {
    /// The limit's name.
    pub limit: &'static str,
    /// What it allows.
    pub max: usize,
    /// What was given.
    pub found: usize,
}

/// One message, as slices of what it came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The topic; UTF-8 when it came from a node.
    pub topic: Bytes,
    /// Where an answer is expected; empty for nowhere.
    pub reply: Bytes,
    /// See [`Headers`].
    pub headers: Bytes,
    /// What it says.
    pub payload: Bytes,
}

/// The same, borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageRef<'a> {
    /// See [`Message::topic`].
    pub topic: &'a [u8],
    /// See [`Message::reply`].
    pub reply: &'a [u8],
    /// See [`Message::headers`].
    pub headers: &'a [u8],
    /// See [`Message::payload`].
    pub payload: &'a [u8],
    /// The bytes of the whole encoding.
    pub encoded_len: usize,
}

impl<'a> MessageRef<'a> {
    /// Reads the first message of `bytes`, which are not empty.
    ///
    /// # Errors
    /// [`Damaged`].
    #[inline]
    pub fn first(bytes: &'a [u8]) -> Result<Self, Damaged> {
        let head = bytes.get(..MESSAGE_HEAD).ok_or(Damaged)?;
        let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let short = |at: usize| usize::from(u16::from_le_bytes([head[at], head[at + 1]]));
        let (topic, reply, headers) = (short(4), short(6), short(8));
        let encoded_len = length.checked_add(4).ok_or(Damaged)?;
        let body = bytes.get(MESSAGE_HEAD..encoded_len).ok_or(Damaged)?;
        let payload_at = topic + reply + headers;
        if payload_at > body.len() {
            return Err(Damaged);
        }
        let (topic, body) = body.split_at(topic);
        let (reply, body) = body.split_at(reply);
        let (headers, payload) = body.split_at(headers);
        Ok(Self { topic, reply, headers, payload, encoded_len })
    }
}

/// Appends a message.
///
/// # Errors
/// [`TooLarge`]; nothing was appended then.
pub fn put_message(
    into: &mut BytesMut,
    topic: &[u8],
    reply: &[u8],
    headers: &[u8],
    payload: &[u8],
) -> Result<(), TooLarge> {
    within("TOPIC_BYTES_MAX", limits::TOPIC_BYTES_MAX, topic.len())?;
    within("TOPIC_BYTES_MAX", limits::TOPIC_BYTES_MAX, reply.len())?;
    within("MESSAGE_HEADERS_BYTES_MAX", limits::MESSAGE_HEADERS_BYTES_MAX, headers.len())?;
    within("MESSAGE_BYTES_MAX", limits::MESSAGE_BYTES_MAX, payload.len())?;
    let length = MESSAGE_HEAD - 4 + topic.len() + reply.len() + headers.len() + payload.len();
    into.reserve(4 + length);
    // The limits above are far below the widths here.
    into.put_u32_le(length as u32);
    into.put_u16_le(topic.len() as u16);
    into.put_u16_le(reply.len() as u16);
    into.put_u16_le(headers.len() as u16);
    into.put_slice(topic);
    into.put_slice(reply);
    into.put_slice(headers);
    into.put_slice(payload);
    Ok(())
}

/// The bytes that a message takes.
pub fn message_len(topic: usize, reply: usize, headers: usize, payload: usize) -> usize {
    MESSAGE_HEAD + topic + reply + headers + payload
}

fn within(limit: &'static str, max: usize, found: usize) -> Result<(), TooLarge> {
    if found > max { Err(TooLarge { limit, max, found }) } else { Ok(()) }
}

/// Appends a header to the encoded headers of a message.
///
/// # Errors
/// [`TooLarge`] past [`limits::MESSAGE_HEADERS_BYTES_MAX`] in all.
pub fn put_header(into: &mut BytesMut, name: &str, value: &[u8]) -> Result<(), TooLarge> {
    let found = into.len() + 4 + name.len() + value.len();
    within("MESSAGE_HEADERS_BYTES_MAX", limits::MESSAGE_HEADERS_BYTES_MAX, found)?;
    into.put_u16_le(name.len() as u16);
    into.put_u16_le(value.len() as u16);
    into.put_slice(name.as_bytes());
    into.put_slice(value);
    Ok(())
}

/// The first value of this name among the encoded headers of a message.
pub fn header<'h>(mut headers: &'h [u8], wanted: &[u8]) -> Option<&'h [u8]> {
    while let Some((lengths, rest)) = headers.split_at_checked(4) {
        let length = |at: usize| usize::from(u16::from_le_bytes([lengths[at], lengths[at + 1]]));
        let (name, rest) = rest.split_at_checked(length(0))?;
        let (value, rest) = rest.split_at_checked(length(2))?;
        if name == wanted {
            return Some(value);
        }
        headers = rest;
    }
    None
}

/// The headers of a message, in order: name and value. Ends with an error when they are damaged.
#[derive(Clone, Debug)]
pub struct Headers(Bytes);

impl Headers {
    /// Those of [`Message::headers`].
    pub fn new(encoded: Bytes) -> Self {
        Self(encoded)
    }
}

impl Iterator for Headers {
    type Item = Result<(Bytes, Bytes), Damaged>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        if self.0.len() < 4 {
            self.0.clear();
            return Some(Err(Damaged));
        }
        let (name, value) = (usize::from(self.0.get_u16_le()), usize::from(self.0.get_u16_le()));
        if name + value > self.0.len() {
            self.0.clear();
            return Some(Err(Damaged));
        }
        let name = self.0.split_to(name);
        Some(Ok((name, self.0.split_to(value))))
    }
}

/// The messages of a batch or a run, in order. Ends with an error when they are damaged.
#[derive(Clone, Debug)]
pub struct Messages(Bytes);

impl Messages {
    /// Reads these bytes.
    pub fn new(encoded: Bytes) -> Self {
        Self(encoded)
    }
}

impl Iterator for Messages {
    type Item = Result<Message, Damaged>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let found = match MessageRef::first(&self.0) {
            Ok(MessageRef { topic, reply, headers, payload: _, encoded_len }) => {
                (topic.len(), reply.len(), headers.len(), encoded_len)
            }
            Err(damaged) => {
                self.0.clear();
                return Some(Err(damaged));
            }
        };
        let (topic, reply, headers, encoded_len) = found;
        let mut body = self.0.split_to(encoded_len);
        body.advance(MESSAGE_HEAD);
        let topic = body.split_to(topic);
        let reply = body.split_to(reply);
        let headers = body.split_to(headers);
        Some(Ok(Message { topic, reply, headers, payload: body }))
    }
}

/// What a run says of its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunHead {
    /// How many messages there are.
    pub count: u32,
    /// The node that took them in.
    pub origin: u64,
    /// The incarnation of its process.
    pub incarnation: u64,
    /// The origin's number of the first one.
    pub sequence: u64,
    /// Who published them.
    pub publisher: u64,
    /// From this number of its own on the publisher has sent everything through this origin, in order.
    pub base: u64,
    /// The publisher's number of the first one.
    pub first: u64,
    /// The message was given to the group of another node before, which had no member any more.
    pub rerouted: bool,
}

const FLAG_REROUTED: u8 = 1;

/// Messages of one publisher under consecutive numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// What it says of its messages.
    pub head: RunHead,
    /// Between nodes; empty in deliveries to clients.
    pub namespace: Bytes,
    /// Between nodes: for one member of this queue group alone. Empty for subscriptions of their own.
    pub group: Bytes,
    /// [`Messages`].
    pub messages: Bytes,
}

/// Appends a run.
///
/// `namespace` and `group` are at most 255 bytes long, which their limits promise.
pub fn put_run(into: &mut BytesMut, head: &RunHead, namespace: &[u8], group: &[u8], messages: &[u8]) {
    debug_assert!(namespace.len() <= 255 && group.len() <= 255);
    into.reserve(RUN_HEAD + namespace.len() + group.len() + messages.len());
    into.put_u32_le(messages.len() as u32);
    into.put_u32_le(head.count);
    for number in [head.origin, head.incarnation, head.sequence, head.publisher, head.base, head.first] {
        into.put_u64_le(number);
    }
    into.put_u8(if head.rerouted { FLAG_REROUTED } else { 0 });
    into.put_u8(namespace.len() as u8);
    into.put_u8(group.len() as u8);
    into.put_slice(namespace);
    into.put_slice(group);
    into.put_slice(messages);
}

/// The runs of a frame, in order. Ends with an error when they are damaged.
#[derive(Clone, Debug)]
pub struct Runs(Bytes);

impl Runs {
    /// Reads these bytes.
    pub fn new(encoded: Bytes) -> Self {
        Self(encoded)
    }

    /// Those that were not read yet, in the encoding.
    pub fn rest(&self) -> &Bytes {
        &self.0
    }
}

impl Iterator for Runs {
    type Item = Result<Run, Damaged>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let run = next_run(&mut self.0);
        if run.is_err() {
            self.0.clear();
        }
        Some(run)
    }
}

fn next_run(bytes: &mut Bytes) -> Result<Run, Damaged> {
    if bytes.len() < RUN_HEAD {
        return Err(Damaged);
    }
    let length = bytes.get_u32_le() as usize;
    let count = bytes.get_u32_le();
    let [origin, incarnation, sequence, publisher, base, first] = [(); 6].map(|()| bytes.get_u64_le());
    let rerouted = bytes.get_u8() & FLAG_REROUTED != 0;
    let (namespace, group) = (usize::from(bytes.get_u8()), usize::from(bytes.get_u8()));
    if namespace + group > bytes.len() || length > bytes.len() - namespace - group {
        return Err(Damaged);
    }
    let head = RunHead { count, origin, incarnation, sequence, publisher, base, first, rerouted };
    let namespace = bytes.split_to(namespace);
    let group = bytes.split_to(group);
    Ok(Run { head, namespace, group, messages: bytes.split_to(length) })
}

#[cfg(test)]
mod tests {
    use bytes::{Bytes, BytesMut};
    use proptest::prelude::{Strategy, any, prop, prop_assert_eq, proptest};

    use super::{Damaged, Headers, Message, MessageRef, Messages, Run, RunHead, Runs};
    use super::{header, put_header, put_message, put_run};

    fn messages() -> impl Strategy<Value = Vec<Message>> {
        let bytes = |max| prop::collection::vec(any::<u8>(), 0..max).prop_map(Bytes::from);
        let message = (bytes(20), bytes(9), bytes(30), bytes(300))
            .prop_map(|(topic, reply, headers, payload)| Message { topic, reply, headers, payload });
        prop::collection::vec(message, 0..8)
    }

    fn pack(messages: &[Message]) -> Bytes {
        let mut packed = BytesMut::new();
        for Message { topic, reply, headers, payload } in messages {
            put_message(&mut packed, topic, reply, headers, payload).unwrap();
        }
        packed.freeze()
    }

    proptest! {
        #[test]
        fn what_is_packed_comes_out_again(batches in prop::collection::vec(messages(), 1..4), numbers in any::<[u64; 6]>(), rerouted: bool) {
            let [origin, incarnation, sequence, publisher, base, first] = numbers;
            let mut packed = BytesMut::new();
            let mut runs = Vec::new();
            for batch in &batches {
                let head = RunHead { count: batch.len() as u32, origin, incarnation, sequence, publisher, base, first, rerouted };
                let run = Run { head, namespace: Bytes::from_static(b"app"), group: Bytes::from_static(b"g"), messages: pack(batch) };
                put_run(&mut packed, &run.head, &run.namespace, &run.group, &run.messages);
                runs.push(run);
            }
            let found: Vec<Run> = Runs::new(packed.freeze()).collect::<Result<_, _>>().unwrap();
            prop_assert_eq!(&found, &runs);
            for (run, batch) in found.iter().zip(&batches) {
                let found: Vec<Message> = Messages::new(run.messages.clone()).collect::<Result<_, _>>().unwrap();
                prop_assert_eq!(&found, batch);
            }
        }

        #[test]
        fn damaged_bytes_are_an_error_and_never_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0_usize..200, batch in messages()) {
            let read = |bytes: Bytes| {
                Runs::new(bytes.clone()).for_each(drop);
                Messages::new(bytes.clone()).for_each(drop);
                Headers::new(bytes).for_each(drop);
            };
            read(Bytes::from(bytes));
            let packed = pack(&batch);
            let cut = packed.slice(..cut.min(packed.len()));
            let whole: usize = Messages::new(cut.clone()).map_while(Result::ok).map(|message| {
                super::message_len(message.topic.len(), message.reply.len(), message.headers.len(), message.payload.len())
            }).sum();
            prop_assert_eq!(Messages::new(cut.clone()).any(|message| message.is_err()), whole != cut.len());
            read(cut);
        }
    }

    #[test]
    fn headers_keep_their_order_and_their_limit() {
        let mut headers = BytesMut::new();
        put_header(&mut headers, "b", b"1").unwrap();
        put_header(&mut headers, "a", b"").unwrap();
        assert_eq!(
            put_header(&mut headers, "x", &[0; 16 << 10]).unwrap_err().limit,
            "MESSAGE_HEADERS_BYTES_MAX"
        );
        assert_eq!(header(&headers, b"b"), Some(&b"1"[..]));
        assert_eq!(header(&headers, b"a"), Some(&b""[..]));
        assert_eq!(header(&headers, b"c"), None);
        assert_eq!(header(&headers[..headers.len() - 1], b"a"), None);
        let found: Vec<_> = Headers::new(headers.freeze()).map(Result::unwrap).collect();
        assert_eq!(found, [(Bytes::from("b"), Bytes::from("1")), (Bytes::from("a"), Bytes::new())]);
    }

    #[test]
    fn a_length_past_the_end_is_seen() {
        let mut packed = BytesMut::new();
        put_message(&mut packed, b"t", b"", b"", b"payload").unwrap();
        packed[4] = 0xff;
        assert_eq!(MessageRef::first(&packed), Err(Damaged));
        packed[4] = 1;
        packed[0] = 0xff;
        assert_eq!(MessageRef::first(&packed), Err(Damaged));
        assert_eq!(MessageRef::first(&packed[..3]), Err(Damaged));
    }
}
