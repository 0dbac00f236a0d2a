//! openraft's own suite for log stores, over a small state machine in memory.

use std::io;
use std::sync::{Arc, Mutex};

use debros_proto::GroupId;
use futures::{Stream, TryStreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::type_config::alias::{SnapshotMetaOf, SnapshotOf};
use openraft::{EntryPayload, OptionalSend, StorageError};

use super::{GroupLog, LogId, TypeConfig, open};
use crate::raft::types::{Outcome, StoredMembership};

#[derive(Clone, Default)]
struct Machine {
    state: Arc<Mutex<State>>,
}

#[derive(Clone, Default)]
struct State {
    applied: Option<LogId>,
    membership: StoredMembership,
    snapshot: Option<(SnapshotMetaOf<TypeConfig>, Vec<u8>)>,
}

impl RaftSnapshotBuilder<TypeConfig> for Machine {
    type SnapshotData = io::Cursor<Vec<u8>>;

    async fn build_snapshot(&mut self) -> Result<SnapshotOf<TypeConfig, Self::SnapshotData>, io::Error> {
        let mut state = self.state.lock().unwrap();
        let meta = SnapshotMetaOf::<TypeConfig> {
            last_log_id: state.applied,
            last_membership: state.membership.clone(),
        };
        state.snapshot = Some((meta.clone(), Vec::new()));
        Ok(SnapshotOf::<TypeConfig, _> { meta, snapshot: io::Cursor::new(Vec::new()) })
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = io::Cursor<Vec<u8>>;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let state = self.state.lock().unwrap();
        Ok((state.applied, state.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let mut state = self.state.lock().unwrap();
            state.applied = Some(entry.log_id);
            if let EntryPayload::Membership(membership) = entry.payload {
                state.membership = StoredMembership::new(Some(entry.log_id), membership);
            }
            drop(state);
            if let Some(responder) = responder {
                responder.send(Outcome::default());
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<TypeConfig>,
        snapshot: io::Cursor<Vec<u8>>,
    ) -> Result<(), io::Error> {
        let mut state = self.state.lock().unwrap();
        state.applied = meta.last_log_id;
        state.membership = meta.last_membership.clone();
        state.snapshot = Some((meta.clone(), snapshot.into_inner()));
        Ok(())
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<SnapshotOf<TypeConfig, Self::SnapshotData>>, io::Error> {
        let snapshot = self.state.lock().unwrap().snapshot.clone();
        Ok(snapshot
            .map(|(meta, bytes)| SnapshotOf::<TypeConfig, _> { meta, snapshot: io::Cursor::new(bytes) }))
    }
}

struct Builder;

impl StoreBuilder<TypeConfig, GroupLog, Machine, tempfile::TempDir> for Builder {
    async fn build(&self) -> Result<(tempfile::TempDir, GroupLog, Machine), StorageError<TypeConfig>> {
        let folder = tempfile::tempdir().expect("a folder");
        let store = open(folder.path()).await;
        Ok((folder, store.group(GroupId(3)), Machine::default()))
    }
}

#[tokio::test]
async fn openrafts_suite_passes() {
    Suite::test_all(Builder).await.unwrap();
}
