//! Changes of watched keys: the stream that an application reads, and the one behind it that follows a
//! cluster. When the node that tells of them dies, another goes on from the last resume token.
//!
//! Invariants: the token of a [`Watch`] never passes an event that was not given yet; when it says that changes
//! were missed, those from then on are heard, so that whoever lists then misses none.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use debros_proto::{Failure, RetryHint, v1};
use futures::stream::{self, BoxStream, Stream, StreamExt};
use tokio::time::sleep;
use tonic::Streaming;

use crate::call::{Failed, Plan, Target};
use crate::client::Client;
use crate::error::Error;
use crate::rpc;
use crate::storage::{ResumeToken, WatchEvent};

/// The pause after a node ended a watch that it had told nothing on; doubled each time.
const PAUSE_FIRST: Duration = Duration::from_millis(25);
/// Longer would add to an outage that is over.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// An event, and the token from which a later watch goes on after it.
pub(crate) type Told = Result<(WatchEvent, Option<ResumeToken>), Error>;

/// The changes of the watched keys. After an error that [`Error::is_retryable`] the watch goes on when it
/// is polled again; after any other it has ended.
#[must_use = "a watch tells nothing until it is polled"]
pub struct Watch {
    events: BoxStream<'static, Told>,
    resume: Option<ResumeToken>,
}

impl Watch {
    pub(crate) fn new(
        events: impl Stream<Item = Told> + Send + 'static,
        resume: Option<ResumeToken>,
    ) -> Self {
        Self { events: events.boxed(), resume }
    }

    /// The same watch with other events; an error stands in the place of an event.
    pub(crate) fn try_map(
        self,
        mut map: impl FnMut(WatchEvent) -> Result<WatchEvent, Error> + Send + 'static,
    ) -> Self {
        let events = self.events.map(move |told| told.and_then(|(event, resume)| Ok((map(event)?, resume))));
        Self { events: events.boxed(), resume: self.resume }
    }

    /// The next event; `None` when the watch has ended.
    pub async fn next(&mut self) -> Option<Result<WatchEvent, Error>> {
        StreamExt::next(self).await
    }

    /// From where another watch goes on after the events that this one has given, telling some of them
    /// again perhaps. `None` while no node has said.
    pub fn resume(&self) -> Option<&ResumeToken> {
        self.resume.as_ref()
    }
}

impl Stream for Watch {
    type Item = Result<WatchEvent, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let told = std::task::ready!(self.events.poll_next_unpin(context));
        Poll::Ready(told.map(|told| {
            let (event, resume) = told?;
            if resume.is_some() {
                self.resume = resume;
            }
            Ok(event)
        }))
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("resume", &self.resume).finish_non_exhaustive()
    }
}

/// Watches a prefix at whichever node answers.
pub(crate) async fn follow(
    client: Client,
    prefix: String,
    resume: Option<ResumeToken>,
) -> Result<Watch, Error> {
    let mut follower = Follower {
        client,
        prefix,
        resume: resume.clone(),
        stream: None,
        ready: VecDeque::new(),
        barren: 0,
        missed: false,
        ended: false,
    };
    follower.stream = Some(follower.open().await?);
    let events = stream::unfold(follower, |mut follower| async move {
        let told = follower.next().await?;
        Some((told, follower))
    });
    Ok(Watch::new(events, resume))
}

struct Follower {
    client: Client,
    prefix: String,
    /// After everything in `ready`.
    resume: Option<ResumeToken>,
    stream: Option<Streaming<v1::StorageEvents>>,
    ready: VecDeque<(WatchEvent, Option<ResumeToken>)>,
    /// Streams in a row that told nothing.
    barren: u32,
    /// Changes were missed, which is to be told once a node is listened to again.
    missed: bool,
    ended: bool,
}

impl Follower {
    async fn open(&self) -> Result<Streaming<v1::StorageEvents>, Error> {
        let shared = self.client.shared();
        let resume = self.resume.as_ref().map(|resume| resume.as_bytes().clone()).unwrap_or_default();
        let request = v1::WatchStorageRequest { header: None, prefix: self.prefix.clone(), resume };
        let plan = Plan { target: Target::Any, deadline: shared.deadline(None), repeatable: true };
        let answer = shared.call(&plan, &request, rpc::watch).await;
        Ok(answer.map_err(Failed::into_read_error)?.value)
    }

    async fn next(&mut self) -> Option<Told> {
        while !self.ended {
            if let Some(told) = self.ready.pop_front() {
                return Some(Ok(told));
            }
            let client = self.client.clone();
            let advanced = tokio::select! {
                advanced = self.advance() => advanced,
                () = client.shared().closed() => Err(Error::closed()),
            };
            if let Err(error) = advanced {
                self.ended = !error.is_retryable();
                return Some(Err(error));
            }
        }
        None
    }

    /// Takes in one message, or opens the stream again.
    async fn advance(&mut self) -> Result<(), Error> {
        let Some(stream) = &mut self.stream else {
            let pause = PAUSE_FIRST.saturating_mul(1 << self.barren.min(8)).min(PAUSE_MAX);
            sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
            self.stream = Some(self.open().await?);
            if std::mem::take(&mut self.missed) {
                self.ready.push_back((WatchEvent::Lagged, None));
            }
            return Ok(());
        };
        match stream.message().await {
            Ok(Some(events)) => {
                self.barren = 0;
                self.take(events);
                Ok(())
            }
            broken => {
                self.lose();
                match broken.map_err(|status| (Failure::from_status(&status), status)) {
                    // A node's own words: another would say the same.
                    Err((failure, status))
                        if !status.details().is_empty() && failure.retry == RetryHint::RetryNever =>
                    {
                        Err(failure.into())
                    }
                    _ => Ok(()),
                }
            }
        }
    }

    fn lose(&mut self) {
        self.stream = None;
        self.barren = self.barren.saturating_add(1);
        // Nobody can say what happened since the watch began.
        self.missed |= self.resume.is_none();
        self.client.shared().ask_for_refresh();
    }

    fn take(&mut self, events: v1::StorageEvents) {
        let v1::StorageEvents { events, resume } = events;
        let shared = self.client.shared();
        let mut told: Vec<WatchEvent> = events.into_iter().filter_map(read_event).collect();
        // What a watch has told, a read of this client sees.
        for event in &told {
            if let Some(clock) = clock_of(event) {
                shared.storage().saw_clock(clock);
            }
        }
        let resume = token(resume);
        let last = told.pop();
        self.ready.extend(told.into_iter().map(|event| (event, None)));
        self.ready.extend(last.map(|event| (event, resume.clone())));
        self.resume = resume.or_else(|| self.resume.take());
    }
}

fn token(resume: Bytes) -> Option<ResumeToken> {
    (!resume.is_empty()).then(|| ResumeToken::from_bytes(resume))
}

fn clock_of(event: &WatchEvent) -> Option<u64> {
    match event {
        WatchEvent::Put(entry) => Some(entry.version.clock),
        WatchEvent::Deleted { version, .. } => Some(version.clock),
        WatchEvent::Lagged | WatchEvent::CaughtUp => None,
    }
}

/// `None` for a kind of event that this client does not know.
fn read_event(event: v1::StorageEvent) -> Option<WatchEvent> {
    use v1::storage_event::Kind;
    Some(match event.kind? {
        Kind::Put(entry) => WatchEvent::Put(entry.into()),
        Kind::Deleted(v1::StorageEntry { key, version, .. }) => {
            WatchEvent::Deleted { key, version: version.unwrap_or_default().into() }
        }
        Kind::Lagged(v1::WatchLagged {}) => WatchEvent::Lagged,
        Kind::CaughtUp(v1::WatchCaughtUp {}) => WatchEvent::CaughtUp,
    })
}
