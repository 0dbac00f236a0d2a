//! Watches: a stream of changes that goes on over broken connections.
//!
//! ```text
//! node -> gRPC stream -> task (always drains) -> bounded channel -> RegisterWatch, at the application's pace
//! ```
//!
//! Streams share one connection with everything else that the client asks, so none of them may wait for the
//! application: when the channel is full the task gives the stream up, and goes on from the last revision when
//! there is room. A node that no longer remembers that far back says so: [`RegisterEvent::Lagged`].

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use debros_proto::{DatabaseName, limits, v1};
use futures::stream::{self, Stream, StreamExt};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::Streaming;

use super::{LeaseId, Register};
use crate::call::{Failed, Plan, Target};
use crate::client::Client;
use crate::error::Error;
use crate::rpc;
use crate::shared::Shared;

/// Messages that wait for the application: the changes of one entry, or of several that came together.
const MESSAGES_WAITING_MAX: usize = 16;
/// A stream that gave no sign of life for so long is taken for dead.
const SILENCE_MAX: Duration = limits::WATCH_PROGRESS_INTERVAL.saturating_mul(3);

/// What happened to a watched key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RegisterEvent {
    /// It was set.
    Put(Register),
    /// It was deleted, or went with its lease.
    Deleted {
        /// The key.
        key: Bytes,
        /// That of the deletion: greater than every version the key had.
        version: u64,
    },
    /// Changes were missed: list the keys again. What comes next comes after `revision`.
    Lagged {
        /// Where the watch goes on.
        revision: u64,
    },
}

/// A message of a watch.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) events: Vec<RegisterEvent>,
    pub(crate) revision: u64,
}

impl Told {
    pub(crate) fn from_wire(response: v1::RegisterWatchResponse) -> Self {
        let v1::RegisterWatchResponse { changes, revision, lagged } = response;
        let mut events: Vec<RegisterEvent> = Vec::with_capacity(changes.len());
        if lagged {
            events.push(RegisterEvent::Lagged { revision });
        }
        events.extend(changes.into_iter().map(|change| {
            let v1::RegisterChange { key, value, version, lease } = change;
            let lease = (lease != 0).then_some(LeaseId(lease));
            match value {
                Some(value) => RegisterEvent::Put(Register { key, value, version, lease }),
                None => RegisterEvent::Deleted { key, version },
            }
        }));
        Self { events, revision }
    }
}

type Messages = Pin<Box<dyn Stream<Item = Result<Told, Error>> + Send>>;

/// Changes of keys, in the order in which they were applied. It ends when the client is closed, or with an error
/// that trying again cannot mend.
pub struct RegisterWatch {
    messages: Messages,
    waiting: VecDeque<RegisterEvent>,
    revision: u64,
    coming: u64,
}

impl RegisterWatch {
    pub(crate) fn new(
        messages: impl Stream<Item = Result<Told, Error>> + Send + 'static,
        revision: u64,
    ) -> Self {
        Self { messages: Box::pin(messages), waiting: VecDeque::new(), revision, coming: revision }
    }

    /// The next change. Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Result<RegisterEvent, Error>> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                if self.waiting.is_empty() {
                    self.revision = self.coming;
                }
                return Some(Ok(event));
            }
            match self.messages.next().await? {
                Ok(Told { events, revision }) => {
                    self.coming = revision;
                    self.waiting.extend(events);
                    if self.waiting.is_empty() {
                        self.revision = revision;
                    }
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// Everything up to here was given: another watch may go on from it.
    pub fn revision(&self) -> u64 {
        self.revision
    }
}

/// A stream of a node that can be opened again.
pub(super) struct Source {
    shared: Arc<Shared>,
    request: v1::RegisterWatchRequest,
    /// `None` between two of them.
    stream: Option<Streaming<v1::RegisterWatchResponse>>,
    first: v1::RegisterWatchResponse,
}

impl Source {
    /// Opens a watch, and waits until it stands.
    pub(super) async fn open(shared: Arc<Shared>, request: v1::RegisterWatchRequest) -> Result<Self, Error> {
        let (stream, first) = begin(&shared, &request).await?;
        Ok(Self { shared, request, stream: Some(stream), first })
    }

    /// Keeps it going in a task of the client's, which the watch keeps open.
    pub(super) fn into_watch(self, client: &Client) -> RegisterWatch {
        let (sender, receiver) = mpsc::channel(MESSAGES_WAITING_MAX);
        let revision = self.request.after.unwrap_or(self.first.revision);
        client.spawn(self.run(sender));
        let messages = stream::unfold((receiver, client.clone()), |(mut receiver, client)| async {
            let told = receiver.recv().await?;
            Some((told, (receiver, client)))
        });
        RegisterWatch::new(messages, revision)
    }

    async fn run(mut self, sender: mpsc::Sender<Result<Told, Error>>) {
        let shared = Arc::clone(&self.shared);
        let error = tokio::select! {
            () = sender.closed() => return,
            () = shared.closed() => Error::closed(),
            error = self.pump(&sender) => error,
        };
        // Never waits for the application, for which the client would wait when it is closed: where there is no
        // room, the end of the channel says as much.
        let _ = sender.try_send(Err(error));
    }

    /// Hands on what comes, over as many streams as it takes.
    async fn pump(&mut self, sender: &mpsc::Sender<Result<Told, Error>>) -> Error {
        let mut next = Some(std::mem::take(&mut self.first));
        loop {
            while let Some(told) = next.take() {
                let (revision, told) = (told.revision, Told::from_wire(told));
                if sender.try_send(Ok(told)).is_err() {
                    break;
                }
                self.request.after = Some(revision);
                let Some(stream) = &mut self.stream else { break };
                next = match timeout(SILENCE_MAX, stream.message()).await {
                    Ok(Ok(told)) => told,
                    Ok(Err(_)) | Err(_) => None,
                };
            }
            self.stream = None;
            // Waits only when the application is behind.
            let Ok(room) = sender.reserve().await else { return Error::closed() };
            drop(room);
            match self.begin_again().await {
                Ok(first) => next = Some(first),
                Err(error) => return error,
            }
        }
    }

    async fn begin_again(&mut self) -> Result<v1::RegisterWatchResponse, Error> {
        loop {
            match begin(&self.shared, &self.request).await {
                Ok((stream, first)) => {
                    self.stream = Some(stream);
                    return Ok(first);
                }
                Err(error) if error.is_retryable() => {
                    tracing::debug!(%error, "a watch cannot go on yet");
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Opens a stream, at the leader where that is known, and waits for its first message.
async fn begin(
    shared: &Shared,
    request: &v1::RegisterWatchRequest,
) -> Result<(Streaming<v1::RegisterWatchResponse>, v1::RegisterWatchResponse), Error> {
    let target = Target::Leader(DatabaseName::DEFAULT.to_owned());
    let plan = Plan { target, deadline: shared.deadline(None), repeatable: true };
    let answer = shared.call(&plan, request, rpc::register_watch).await.map_err(Failed::into_read_error)?;
    if answer.rough {
        shared.ask_for_refresh();
    }
    Ok(answer.value)
}
