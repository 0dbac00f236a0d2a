//! Random operations against a map, with restarts and crash images between them.

use std::collections::BTreeMap;

use debros_proto::GroupId;
use openraft::storage::RaftLogStorage;
use proptest::prelude::{Just, Strategy, prop_oneof};
use proptest::test_runner::{Config, TestRunner};

use super::{Entry, GroupLog, LogId, LogStore, Vote, append, copy, entry, log_id, open, read_all, vote_of};

const GROUPS: u64 = 3;

#[derive(Clone, Debug)]
enum Operation {
    Append { group: u64, count: u64, bytes: usize },
    Truncate { group: u64, kept: u64 },
    Purge { group: u64, share: u64 },
    Install { group: u64, ahead: u64 },
    Vote { group: u64 },
    Commit { group: u64 },
    Remove { group: u64 },
    Reopen,
    Crash,
}

fn operation() -> impl Strategy<Value = Operation> {
    let group = 0..GROUPS;
    prop_oneof![
        8 => (group.clone(), 1u64..20, 0usize..3000)
            .prop_map(|(group, count, bytes)| Operation::Append { group, count, bytes }),
        2 => (group.clone(), 0u64..10).prop_map(|(group, kept)| Operation::Truncate { group, kept }),
        3 => (group.clone(), 0u64..10).prop_map(|(group, share)| Operation::Purge { group, share }),
        1 => (group.clone(), 0u64..10).prop_map(|(group, ahead)| Operation::Install { group, ahead }),
        2 => group.clone().prop_map(|group| Operation::Vote { group }),
        2 => group.clone().prop_map(|group| Operation::Commit { group }),
        1 => (group, 0u32..8).prop_map(|(group, rare)| match rare {
            0 => Operation::Remove { group },
            _ => Operation::Vote { group },
        }),
        1 => Just(Operation::Reopen),
        1 => Just(Operation::Crash),
    ]
}

#[derive(Clone, Default)]
struct Model {
    term: u64,
    entries: BTreeMap<u64, Entry>,
    purged: Option<LogId>,
    vote: Option<Vote>,
}

impl Model {
    fn next(&self) -> u64 {
        let purged = self.purged.as_ref().map_or(0, |id| id.index + 1);
        self.entries.keys().next_back().map_or(purged, |index| index + 1)
    }

    fn purge(&mut self, upto: LogId) {
        self.entries = self.entries.split_off(&(upto.index + 1));
        self.purged = Some(upto);
    }

    async fn check(&self, log: &GroupLog) {
        let mut log = log.clone();
        let entries: Vec<_> = self.entries.values().cloned().collect();
        assert_eq!(read_all(&log).await, entries);
        assert_eq!(vote_of(&log).await, self.vote);
        let state = log.get_log_state().await.unwrap();
        let last = entries.last().map(|entry| entry.log_id).or(self.purged);
        assert_eq!((state.last_purged_log_id, state.last_log_id), (self.purged, last));
    }
}

struct Run {
    folder: tempfile::TempDir,
    store: LogStore,
    models: Vec<Model>,
}

impl Run {
    fn log(&self, group: u64) -> GroupLog {
        self.store.group(GroupId(group))
    }

    async fn apply(&mut self, operation: Operation) {
        match operation {
            Operation::Append { group, count, bytes } => {
                let model = &mut self.models[group as usize];
                let start = model.next();
                let entries: Vec<_> = (start..start + count).map(|at| entry(model.term, at, bytes)).collect();
                model.entries.extend(entries.iter().map(|entry| (entry.log_id.index, entry.clone())));
                // Nobody waits: the order alone must make the rest right.
                drop(append(&self.log(group), entries).await);
            }
            Operation::Truncate { group, kept } => {
                let model = &mut self.models[group as usize];
                model.term += 1;
                let Some(last) = model.entries.keys().nth(kept as usize).copied() else { return };
                let log_id = model.entries[&last].log_id;
                model.entries.split_off(&(last + 1));
                self.log(group).truncate_after(Some(log_id)).await.unwrap();
            }
            Operation::Purge { group, share } => {
                let model = &mut self.models[group as usize];
                let count = model.entries.len() as u64;
                let Some(last) = model.entries.keys().nth((count * share / 10) as usize).copied() else {
                    return;
                };
                let log_id = model.entries[&last].log_id;
                model.purge(log_id);
                self.log(group).purge(log_id).await.unwrap();
            }
            Operation::Install { group, ahead } => {
                let model = &mut self.models[group as usize];
                model.term += 1;
                let upto = log_id(model.term, model.next() + ahead);
                model.purge(upto);
                self.log(group).purge(upto).await.unwrap();
            }
            Operation::Vote { group } => {
                let model = &mut self.models[group as usize];
                model.term += 1;
                model.vote = Some(Vote::new(model.term, 1));
                let vote = model.vote.unwrap();
                self.log(group).save_vote(&vote).await.unwrap();
            }
            Operation::Commit { group } => {
                let last = self.log(group).get_log_state().await.unwrap().last_log_id;
                self.log(group).save_committed(last).await.unwrap();
                assert_eq!(self.log(group).read_committed().await.unwrap(), last);
            }
            Operation::Remove { group } => {
                self.store.remove_group(GroupId(group)).await.unwrap();
                self.models[group as usize] = Model::default();
            }
            Operation::Reopen => {
                self.store.close().await.unwrap();
                self.store = open(self.folder.path()).await;
            }
            Operation::Crash => self.crash().await,
        }
    }

    /// Waits until everything is durable, then goes on with a copy of the files.
    async fn crash(&mut self) {
        for group in 0..GROUPS {
            let model = &mut self.models[group as usize];
            model.term += 1;
            model.vote = Some(Vote::new(model.term, 2));
            let vote = model.vote.unwrap();
            self.log(group).save_vote(&vote).await.unwrap();
        }
        let image = tempfile::tempdir().unwrap();
        copy(self.folder.path(), image.path());
        self.store = open(image.path()).await;
        self.folder = image;
    }
}

#[test]
fn random_work_agrees_with_a_map() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut runner = TestRunner::new(Config { cases: 48, failure_persistence: None, ..Config::default() });
    let operations = proptest::collection::vec(operation(), 1..120);
    let result = runner.run(&operations, |operations| {
        runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            let store = open(folder.path()).await;
            let mut run = Run { folder, store, models: vec![Model::default(); GROUPS as usize] };
            for operation in operations {
                run.apply(operation).await;
                for group in 0..GROUPS {
                    run.models[group as usize].check(&run.log(group)).await;
                }
            }
        });
        Ok(())
    });
    result.unwrap();
}
