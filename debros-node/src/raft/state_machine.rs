//! Between openraft's state machine and an [`Engine`].

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{Stream, StreamExt};
use openraft::EntryPayload;
use openraft::storage::{ApplyResponder, EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::type_config::alias::{SnapshotMetaOf, SnapshotOf};
use tokio::sync::watch;
use tokio::time::Instant;

use super::engine::{CommittedCommand, Engine, EngineFault};
use super::position::Position;
use super::snapshot::{SnapshotData, SnapshotFolder};
use super::types::{LogId, Outcome, StoredMembership, TypeConfig};
use crate::planted::{Bug, is_planted};

/// Entries applied in one transaction: enough to spread a commit's cost, few enough that the
/// first of them does not wait long.
const APPLY_BATCH_MAX: usize = 1024;

type Snapshot = SnapshotOf<TypeConfig, SnapshotData>;
type SnapshotMeta = SnapshotMetaOf<TypeConfig>;

pub(super) struct StateMachine {
    engine: Arc<dyn Engine>,
    folder: SnapshotFolder,
    last: Option<LogId>,
    membership: StoredMembership,
    durable: Arc<Mutex<Option<SnapshotMeta>>>,
    durable_since: DurableSince,
    /// The index of the last applied entry, for readers.
    applied: watch::Sender<u64>,
}

impl StateMachine {
    /// Opens over an engine, after making durable what it holds: a process that was killed may
    /// have left applied entries in the page cache only.
    pub(super) async fn open(
        engine: Arc<dyn Engine>,
        folder: SnapshotFolder,
        applied: watch::Sender<u64>,
    ) -> Result<Self, EngineFault> {
        let position = engine.make_durable().await?;
        // Less than all of it may have become durable. Starting from there would apply entries twice.
        if position != engine.position().await? {
            let reason = "somebody still reads an older state of it";
            return Err(EngineFault::new("make the whole replica durable before it is used", reason));
        }
        let (last, membership) = decode(&position)?;
        let durable = last.is_some().then(|| meta(last, membership.clone()));
        let durable = Arc::new(Mutex::new(durable));
        let durable_since = DurableSince::default();
        let machine = Self { engine, folder, last, membership, durable, durable_since, applied };
        machine.announce();
        Ok(machine)
    }

    pub(super) fn durable_since(&self) -> DurableSince {
        self.durable_since.clone()
    }

    fn announce(&self) {
        self.applied.send_replace(self.last.as_ref().map_or(0, |id| id.index));
    }

    fn own_data(&self) -> SnapshotData {
        SnapshotData::Own { engine: self.engine.clone(), folder: self.folder.clone() }
    }

    async fn apply_batch(
        &mut self,
        batch: Vec<CommittedCommand>,
        waiting: Vec<Waiting>,
    ) -> Result<(), EngineFault> {
        let expected = batch.len();
        let position = Position::new(self.last.as_ref(), &self.membership);
        let outcomes = self.engine.apply(batch, position).await?;
        self.announce();
        assert_eq!(outcomes.len(), expected, "an engine gives one outcome per command");
        let mut outcomes = outcomes.into_iter();
        for Waiting { is_command, responder } in waiting {
            let outcome = if is_command { outcomes.next().unwrap_or_default() } else { Default::default() };
            if let Some(responder) = responder {
                responder.send(Outcome(outcome));
            }
        }
        Ok(())
    }
}

/// When a replica last made its state durable. Cheap to clone.
#[derive(Clone)]
pub(super) struct DurableSince(Arc<Mutex<Instant>>);

impl Default for DurableSince {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }
}

impl DurableSince {
    fn set_now(&self) {
        *self.0.lock().expect("not poisoned") = Instant::now();
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.0.lock().expect("not poisoned").elapsed()
    }
}

/// Somebody who may wait for an entry's outcome, in the order of the entries.
struct Waiting {
    is_command: bool,
    responder: Option<ApplyResponder<TypeConfig>>,
}

fn decode(position: &Position) -> Result<(Option<LogId>, StoredMembership), EngineFault> {
    position.decode().map_err(|error| EngineFault::new("read how far the replica has applied", error))
}

fn meta(last_log_id: Option<LogId>, last_membership: StoredMembership) -> SnapshotMeta {
    SnapshotMeta { last_log_id, last_membership }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = DurabilityPoint;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), std::io::Error> {
        Ok((self.last, self.membership.clone()))
    }

    async fn apply<Entries>(&mut self, mut entries: Entries) -> Result<(), std::io::Error>
    where
        Entries: Stream<Item = Result<EntryResponder<TypeConfig>, std::io::Error>> + Unpin + Send,
    {
        let (mut batch, mut waiting) = (Vec::new(), Vec::new());
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            let is_command = match entry.payload {
                EntryPayload::Blank => false,
                EntryPayload::Normal(command) => {
                    batch.push(CommittedCommand { index: entry.log_id.index, command: command.bytes });
                    true
                }
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(entry.log_id), membership);
                    false
                }
            };
            self.last = Some(entry.log_id);
            waiting.push(Waiting { is_command, responder });
            if waiting.len() == APPLY_BATCH_MAX {
                self.apply_batch(std::mem::take(&mut batch), std::mem::take(&mut waiting)).await?;
            }
        }
        if !waiting.is_empty() {
            self.apply_batch(batch, waiting).await?;
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> DurabilityPoint {
        DurabilityPoint {
            data: self.own_data(),
            engine: self.engine.clone(),
            durable: self.durable.clone(),
            durable_since: self.durable_since.clone(),
        }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        data: SnapshotData,
    ) -> Result<(), std::io::Error> {
        // Our own state is installed already: openraft offers it at start-up.
        if let SnapshotData::Received(file) = data {
            let position = Position::new(meta.last_log_id.as_ref(), &meta.last_membership);
            self.engine.install(file.path(), position).await?;
        }
        self.last = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.announce();
        *self.durable.lock().expect("not poisoned") = Some(meta.clone());
        self.durable_since.set_now();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, std::io::Error> {
        let durable = self.durable.lock().expect("not poisoned").clone();
        Ok(durable.map(|meta| Snapshot { meta, snapshot: self.own_data() }))
    }
}

/// Makes the engine durable, so that openraft may purge the log up to there and no further.
pub(super) struct DurabilityPoint {
    engine: Arc<dyn Engine>,
    data: SnapshotData,
    durable: Arc<Mutex<Option<SnapshotMeta>>>,
    durable_since: DurableSince,
}

impl RaftSnapshotBuilder<TypeConfig> for DurabilityPoint {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<Snapshot, std::io::Error> {
        let position = match is_planted(Bug::PurgePastDurable) {
            false => self.engine.make_durable().await?,
            true => self.engine.position().await?,
        };
        let (last, membership) = decode(&position)?;
        let meta = meta(last, membership);
        *self.durable.lock().expect("not poisoned") = Some(meta.clone());
        self.durable_since.set_now();
        Ok(Snapshot { meta, snapshot: self.data.clone() })
    }
}
