//! Messages on their way out, packed as they travel: a message costs one copy of its payload and no
//! allocation of its own. What is wrong with one is told when it is added.

use bytes::BytesMut;
use debros_proto::limits;
use debros_proto::packed::{self, TooLarge};

use crate::error::Error;
use crate::pubsub;
use crate::pubsub::message::Headers;
use crate::statement::too_large;

/// A message to be published.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'m> {
    /// The topic, without wildcards.
    pub topic: &'m str,
    /// What it says.
    pub payload: &'m [u8],
    /// Where an answer is expected.
    pub reply: Option<&'m str>,
    /// What is told beside the payload.
    pub headers: Option<&'m Headers>,
}

impl<'m> Outgoing<'m> {
    /// A message without headers, to which no answer is expected.
    pub fn new(topic: &'m str, payload: &'m [u8]) -> Self {
        Self { topic, payload, reply: None, headers: None }
    }

    /// The same with headers.
    pub fn with_headers(self, headers: &'m Headers) -> Self {
        Self { headers: Some(headers), ..self }
    }

    /// The same with a topic where an answer is expected.
    pub fn with_reply(self, reply: &'m str) -> Self {
        Self { reply: Some(reply), ..self }
    }

    /// Whether it can be published at all.
    pub(crate) fn check(&self) -> Result<(), Error> {
        pubsub::topic(self.topic)?;
        self.reply.map_or(Ok(()), pubsub::topic)?;
        match self.payload.len() {
            found if found > limits::MESSAGE_BYTES_MAX => {
                Err(too_large("MESSAGE_BYTES_MAX", limits::MESSAGE_BYTES_MAX, found))
            }
            _ => Ok(()),
        }
    }

    /// Bytes in the encoding.
    pub(crate) fn encoded_len(&self) -> usize {
        let reply = self.reply.map_or(0, str::len);
        packed::message_len(self.topic.len(), reply, self.encoded_headers().len(), self.payload.len())
    }

    /// Appends it, once it was checked.
    pub(crate) fn pack(&self, into: &mut BytesMut) -> Result<(), Error> {
        let reply = self.reply.unwrap_or_default();
        let headers = self.encoded_headers();
        packed::put_message(into, self.topic.as_bytes(), reply.as_bytes(), headers, self.payload)
            .map_err(refusal)
    }

    fn encoded_headers(&self) -> &[u8] {
        self.headers.map_or(&[], |headers| headers.encoded())
    }
}

pub(crate) fn refusal(error: TooLarge) -> Error {
    too_large(error.limit, error.max, error.found)
}

/// Messages that are published together, in their order. As many as fit into memory; they travel in parts of
/// about 64 KiB.
#[derive(Debug, Default)]
pub struct MessageBatch {
    parts: Vec<Part>,
    messages: usize,
    /// The topic that was found to be one last.
    checked: String,
}

/// Messages that are taken in as a whole.
#[derive(Debug, Default)]
pub(crate) struct Part {
    pub(crate) packed: BytesMut,
    pub(crate) count: u32,
}

impl MessageBatch {
    /// No messages yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a message.
    ///
    /// # Errors
    /// `InvalidArgument` for a topic that is none or is a pattern, `LimitExceeded` for what is too large. The
    /// batch is as it was then.
    pub fn push(&mut self, topic: &str, payload: &[u8]) -> Result<(), Error> {
        self.push_message(&Outgoing::new(topic, payload))
    }

    /// Adds a message with all that it may have.
    ///
    /// # Errors
    /// As [`MessageBatch::push`].
    pub fn push_message(&mut self, message: &Outgoing<'_>) -> Result<(), Error> {
        if self.messages == 0 || self.checked != message.topic {
            pubsub::topic(message.topic)?;
            self.checked.clear();
            self.checked.push_str(message.topic);
        }
        message.reply.map_or(Ok(()), pubsub::topic)?;
        let length = message.encoded_len();
        let has_room = |part: &Part| {
            part.packed.len() + length <= limits::PUBSUB_FRAME_BYTES
                && (part.count as usize) < limits::PUBLISH_MESSAGES_MAX
        };
        match self.parts.last_mut() {
            Some(part) if has_room(part) => {
                message.pack(&mut part.packed)?;
                part.count += 1;
            }
            other => {
                // What follows a full part will be as much again.
                let capacity = other.map_or(length, |part| part.packed.len().max(length));
                let mut packed = BytesMut::with_capacity(capacity);
                message.pack(&mut packed)?;
                self.parts.push(Part { packed, count: 1 });
            }
        }
        self.messages += 1;
        Ok(())
    }

    /// How many messages there are.
    pub fn len(&self) -> usize {
        self.messages
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.messages == 0
    }

    pub(crate) fn into_parts(self) -> Vec<Part> {
        self.parts
    }
}

#[cfg(test)]
mod tests {
    use debros_proto::limits;

    use super::MessageBatch;
    use crate::error::ErrorKind;

    #[test]
    fn a_batch_is_split_into_what_is_taken_in_as_a_whole() {
        let mut batch = MessageBatch::new();
        let (small, large) = (vec![1; 1000], vec![2; limits::MESSAGE_BYTES_MAX]);
        for _ in 0..100 {
            batch.push("t", &small).unwrap();
        }
        batch.push("t", &large).unwrap();
        for _ in 0..limits::PUBLISH_MESSAGES_MAX + 1 {
            batch.push("t", b"").unwrap();
        }
        let refused = batch.push("t", &vec![0; limits::MESSAGE_BYTES_MAX + 1]).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::LimitExceeded);
        for wrong in ["a.*", ""] {
            assert_eq!(batch.push(wrong, b"").unwrap_err().kind(), ErrorKind::InvalidArgument);
            assert_eq!(MessageBatch::new().push(wrong, b"").unwrap_err().kind(), ErrorKind::InvalidArgument);
        }
        let messages = batch.len();
        let parts = batch.into_parts();
        assert_eq!(parts.iter().map(|part| part.count as usize).sum::<usize>(), messages);
        for part in &parts {
            assert!(part.packed.len() <= limits::PUBSUB_FRAME_BYTES || part.count == 1);
            assert!(part.count as usize <= limits::PUBLISH_MESSAGES_MAX);
        }
    }
}
