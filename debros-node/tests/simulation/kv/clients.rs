//! The clients of scenario `kv`: applications that use the SDK, unchanged, on so few keys that they meet. Some
//! keys are left alone for long enough that their deletions are forgotten.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use debros_proto::layout::{partition_of, partitions_of};
use debros_sdk::{Cursor, Error, ErrorKind, ListOptions, Page, RemoteStorage, Storage};
use tokio::time::{sleep, timeout};

use super::history::{Found, Operation, Operations, Outcome, Request};
use crate::clients::{APPLICATION, connect, not_done, now};
use crate::dice::Dice;
use crate::faults::META;
use crate::history::{self, History};
use crate::machine::Board;

/// Keys: the first ones are so few that clients meet.
const KEYS: usize = 36;
const BUSY_KEYS: usize = 12;
/// Of the partitions of the namespace so many are used, that several keys share each.
const PARTITIONS_USED: usize = 6;
/// A page has fewer keys than there are, sometimes.
const PAGE_KEYS: [u32; 3] = [5, 12, 100];
/// Pause before what failed is asked for again.
const AGAIN_AFTER: Duration = Duration::from_millis(500);
/// An operator asks again after this: a node that was out of reach when it was to leave is not told later.
const LEAVE_PATIENCE: Duration = Duration::from_secs(10);

/// The names of the keys.
pub(crate) fn keys() -> Vec<String> {
    let mut used = partitions_of(APPLICATION);
    used.truncate(PARTITIONS_USED);
    let names = (0..).map(|number: usize| format!("key-{number:03}"));
    names.filter(|key| used.contains(&partition_of(APPLICATION, key))).take(KEYS).collect()
}

/// Where what is seen is written down.
#[derive(Clone)]
pub(crate) struct Notes {
    pub(crate) operations: Operations,
    pub(crate) history: History,
}

impl Notes {
    async fn carry_out(&self, client: usize, storage: &RemoteStorage, request: Request) -> Outcome {
        let began = now();
        let outcome = carry_out(storage, &request).await;
        let ended = now();
        let operation = Operation { client, began, ended, request, outcome: outcome.clone() };
        self.history.note(ended, &format!("{operation:?}"));
        self.operations.answered(operation);
        outcome
    }
}

/// A client at work until `end`.
pub(crate) struct Worker {
    pub(crate) number: usize,
    pub(crate) nodes: usize,
    pub(crate) end: Duration,
    pub(crate) dice: Dice,
    pub(crate) keys: Vec<String>,
    pub(crate) notes: Notes,
}

impl Worker {
    /// Works, then goes.
    pub(crate) async fn run(mut self) -> turmoil::Result {
        let client = connect(self.number, self.nodes).await?;
        let storage = client.storage();
        let mut write = 0;
        let mut page = None;
        while now() < self.end {
            write += 1;
            let request = self.draw(write, page.take());
            let outcome = self.notes.carry_out(self.number, &storage, request).await;
            if let Outcome::Listed(_, next) = outcome {
                page = next;
            }
            sleep(self.dice.milliseconds(1, 30)).await;
        }
        client.close().await;
        Ok(())
    }

    fn draw(&mut self, write: u64, page: Option<String>) -> Request {
        let few = if self.dice.once_in(3) { KEYS } else { BUSY_KEYS };
        let key = self.dice.pick(&self.keys[..few]).clone();
        match self.dice.below(16) {
            0..5 => Request::Put { key, value: format!("{}-{write}", self.number) },
            5..7 => Request::Delete { key },
            7..14 => Request::Get { key },
            _ => Request::List { after: page, limit: *self.dice.pick(&PAGE_KEYS) },
        }
    }
}

async fn carry_out(storage: &RemoteStorage, request: &Request) -> Outcome {
    let done = match request {
        Request::Put { key, value } => {
            storage.put(key, Bytes::from(value.clone())).await.map(Outcome::Written)
        }
        Request::Delete { key } => storage.delete(key).await.map(Outcome::Written),
        Request::Get { key } => {
            let found = storage.get_with(key, Default::default()).await;
            found.map(|entry| Outcome::Found(entry.map(found_in)))
        }
        Request::List { after, limit } => {
            let after = after.clone().map(Cursor::after);
            let options = ListOptions { limit: Some(*limit), after, values: true, ..Default::default() };
            storage.list_with("", options).await.map(listed)
        }
    };
    done.unwrap_or_else(|error| match not_done(&error) {
        history::Outcome::Refused(text) => Outcome::Refused(text),
        history::Outcome::Unknown(text) => Outcome::Unknown(text),
        other => Outcome::Broken(format!("{other:?}")),
    })
}

fn found_in(entry: debros_sdk::Entry) -> Found {
    (entry.version, String::from_utf8_lossy(&entry.value).into_owned())
}

fn listed(page: Page) -> Outcome {
    let Page { entries, cursor } = page;
    let entries = entries.into_iter().map(|entry| (entry.key.clone(), found_in(entry))).collect();
    Outcome::Listed(entries, cursor.map(|cursor| cursor.as_str().to_owned()))
}

/// Reads every key at the end, by itself and in a list, however often it takes to be answered.
pub(crate) async fn read_all(client: usize, nodes: usize, notes: Notes) -> turmoil::Result {
    let connected = connect(client, nodes).await?;
    let storage = connected.storage();
    let gets = keys().into_iter().map(|key| Request::Get { key });
    for request in gets.chain([Request::List { after: None, limit: 100 }]) {
        loop {
            let outcome = notes.carry_out(client, &storage, request.clone()).await;
            if !matches!(outcome, Outcome::Refused(_)) {
                break;
            }
            sleep(AGAIN_AFTER).await;
        }
    }
    connected.close().await;
    Ok(())
}

/// Waits until the storage takes a write.
pub(crate) async fn wait_for_storage(client: usize, nodes: usize) -> turmoil::Result {
    let connected = connect(client, nodes).await?;
    let storage = connected.storage();
    while let Err(error) = storage.put("first", Bytes::from_static(b"write")).await {
        assert!(error.is_retryable(), "the first write: {error}");
    }
    connected.close().await;
    Ok(())
}

/// An operator who lets a node leave.
pub(crate) struct Operator {
    pub(crate) client: usize,
    pub(crate) nodes: usize,
    pub(crate) leaver: usize,
    pub(crate) at: Duration,
    pub(crate) board: Board,
    pub(crate) history: History,
    /// Set once it has left.
    pub(crate) left: Rc<Cell<bool>>,
}

impl Operator {
    /// Asks until it has left.
    pub(crate) async fn run(self) -> turmoil::Result {
        sleep(self.at.saturating_sub(now())).await;
        let node_id = loop {
            match self.board.shown(self.leaver).map(|shown| shown.node_id) {
                Some(node_id) if node_id != 0 => break node_id,
                _ => sleep(AGAIN_AFTER).await,
            }
        };
        let client = connect(self.client, self.nodes).await?;
        loop {
            let leave = timeout(LEAVE_PATIENCE, client.cluster().leave(Some(node_id))).await;
            self.history.note(now(), &format!("leave: {leave:?}"));
            if leave.is_ok_and(has_left) || self.is_gone(node_id) {
                break;
            }
            sleep(AGAIN_AFTER).await;
        }
        self.left.set(true);
        client.close().await;
        Ok(())
    }
}

impl Operator {
    /// Whether the others go on without it: asked itself, a node that was taken out while it was away may
    /// never find out.
    fn is_gone(&self, node_id: u64) -> bool {
        let leader = self.board.leader(META).filter(|leader| *leader != self.leaver);
        let shown = leader.and_then(|leader| Some((self.board.shown(leader)?, self.board.engine(leader)?)));
        shown.is_some_and(|(shown, engine)| {
            let groups = shown.groups.iter();
            let counted = groups.flat_map(|group| group.voters.iter().chain(&group.learners));
            let sets = engine.layout.current.iter().chain(&engine.layout.next);
            let laid_out = sets.flat_map(|set| set.nodes.iter().map(|node| &node.node_id));
            counted.chain(laid_out).all(|counted| *counted != node_id)
        })
    }
}

fn has_left(answer: Result<u64, Error>) -> bool {
    answer.map_or_else(|error| error.kind() == ErrorKind::NotFound, |_| true)
}
