//! Listing a namespace's keys: every partition that may hold some is read at a quorum, and the pages are
//! merged up to where all of them were read.
//!
//! Invariant: a key is given only if every partition's answer covers its place in the order, so that no
//! page hides a key from the next one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use debros_proto::layout::partitions_of;
use debros_proto::{Failure, NodeId, limits, v1};
use futures::StreamExt;
use futures::future::try_join_all;
use tokio::time::Instant;
use v1::replica_call::Operation;
use v1::replica_reply::Outcome;

use super::asks::Asks;
use super::coordinator::{Coordinator, Quorum, needed, too_few};
use super::layouts::View;
use super::links::NoAnswer;
use super::read::Get;
use super::record::{Record, Version};

/// Keys asked of each partition beside its share: shares are never quite even.
const SHARE_MARGIN: usize = 8;
/// Rounds over the replicas for one page; what is missing then comes with the next page.
const ROUNDS_MAX: usize = 16;

/// Keys on which replicas disagree that are read at a time.
const DISPUTED_AT_A_TIME: usize = 16;

/// Keys to be listed.
#[derive(Clone, Debug)]
pub struct List {
    /// Whose keys.
    pub namespace: String,
    /// Literal; empty for all.
    pub prefix: String,
    /// Only keys after this one.
    pub after: String,
    /// How many at most.
    pub limit: usize,
    /// Whether values are wanted.
    pub with_values: bool,
    /// How many replicas of each partition must answer.
    pub quorum: Quorum,
    /// When the client gives up.
    pub deadline: Instant,
}

/// A page of a listing.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// In the order of their keys.
    pub entries: Vec<(String, Record)>,
    /// Every key up to here is in the page; the next one begins after it.
    pub scanned_to: String,
    /// There may be keys after that.
    pub more: bool,
}

/// Part of a listing: everything of some partitions up to a key.
#[derive(Default)]
struct Part {
    records: BTreeMap<String, Record>,
    /// Complete up to this key; `None` when nothing comes after.
    scanned_to: Option<String>,
}

/// How much is asked of each replica of a partition.
#[derive(Clone, Copy)]
struct Ask {
    keys: usize,
    /// The entry that meets this is the last one.
    bytes: usize,
}

impl Ask {
    /// What an answer takes in memory at most.
    fn bytes_max(self, with_values: bool) -> usize {
        let value = if with_values { limits::STORAGE_VALUE_BYTES_MAX } else { 0 };
        let entry = limits::STORAGE_KEY_BYTES_MAX + value;
        (self.keys * entry).min(self.bytes + entry) + self.keys * size_of::<(String, Record)>()
    }
}

/// One replica's answer.
struct Answer {
    node: NodeId,
    records: BTreeMap<String, Record>,
    scanned_to: Option<String>,
    collected_to: u64,
}

impl Coordinator {
    /// A page of the keys that are there.
    ///
    /// # Errors
    /// Nothing was changed.
    pub(super) async fn list(&self, list: List) -> Result<Page, Failure> {
        let mut page = Page { scanned_to: list.after.clone(), more: true, ..Default::default() };
        let mut bytes = 0;
        for _ in 0..ROUNDS_MAX {
            let wanted = list.limit - page.entries.len();
            let part =
                self.list_part(&List { after: page.scanned_to.clone(), ..list.clone() }, wanted).await?;
            let now = self.inner.clock.unix_ms();
            for (key, record) in part.records {
                let full = page.entries.len() == list.limit || bytes >= limits::STORAGE_PAGE_BYTES_MAX;
                if full {
                    return Ok(page);
                }
                page.scanned_to.clone_from(&key);
                if !record.is_gone(now) {
                    bytes += key.len() + record.value.len();
                    page.entries.push((key, record));
                }
            }
            match part.scanned_to {
                Some(scanned_to) => page.scanned_to = scanned_to.max(page.scanned_to),
                None => {
                    page.more = false;
                    return Ok(page);
                }
            }
            if page.entries.len() == list.limit || bytes >= limits::STORAGE_PAGE_BYTES_MAX {
                return Ok(page);
            }
        }
        Ok(page)
    }

    /// The records of all partitions up to the first key that one of them did not cover, tombstones included.
    pub(super) async fn list_part_with_tombstones(
        &self,
        list: &List,
        wanted: usize,
    ) -> Result<(BTreeMap<String, Record>, Option<String>), Failure> {
        let part = self.list_part(list, wanted).await?;
        Ok((part.records, part.scanned_to))
    }

    async fn list_part(&self, list: &List, wanted: usize) -> Result<Part, Failure> {
        let partitions = partitions_of(&list.namespace);
        let share = 2 * wanted / partitions.len() + SHARE_MARGIN;
        let ask = Ask { keys: share, bytes: (2 * limits::STORAGE_PAGE_BYTES_MAX / partitions.len()) };
        let answers = needed(list.quorum, self.inner.layouts.current()?.readers()) * partitions.len();
        let _room = self.inner.lists.take(answers * ask.bytes_max(list.with_values), list.deadline).await?;
        let parts = partitions.into_iter().map(|partition| self.list_partition(list, partition, ask));
        let parts = try_join_all(parts).await?;
        let scanned_to = parts.iter().filter_map(|part| part.scanned_to.clone()).min();
        let mut records = BTreeMap::new();
        for part in parts {
            records.extend(part.records);
        }
        if let Some(end) = &scanned_to {
            records.split_off(&format!("{end}\0"));
        }
        Ok(Part { records, scanned_to })
    }

    async fn list_partition(&self, list: &List, partition: u16, ask: Ask) -> Result<Part, Failure> {
        loop {
            let view = self.inner.layouts.current()?;
            let round = self.scan_round(&view, list, partition, ask);
            match tokio::time::timeout_at(list.deadline, round).await {
                Ok(Ok(answers)) => return self.settle(&view, list, partition, answers).await,
                Ok(Err(NoAnswer::NewerLayout(_))) => {
                    self.inner.layouts.newer_than(view.version(), list.deadline).await;
                }
                Ok(Err(no)) if no.is_behind() => tokio::time::sleep(super::read::BEHIND_PAUSE).await,
                Ok(Err(_)) | Err(_) => return Err(too_few(&view, partition)),
            }
            if Instant::now() >= list.deadline {
                return Err(too_few(&view, partition));
            }
        }
    }

    async fn scan_round(
        &self,
        view: &Arc<View>,
        list: &List,
        partition: u16,
        ask: Ask,
    ) -> Result<Vec<Answer>, NoAnswer> {
        let wanted = needed(list.quorum, view.readers());
        let mut order = self.reading_order(view, partition).into_iter();
        let mut asks = Asks::new();
        for node in order.by_ref().take(wanted) {
            asks.push(self.scan_at(view, node, list, partition, ask));
        }
        let mut answers = Vec::with_capacity(wanted);
        let mut refused = NoAnswer::NotAsked;
        while let Some(answer) = asks.next().await {
            match answer {
                Ok(answer) => {
                    answers.push(answer);
                    if answers.len() == wanted {
                        self.scan_beside(view, list, partition, ask, &mut answers).await;
                        return Ok(answers);
                    }
                }
                Err(NoAnswer::NewerLayout(layout)) => {
                    self.inner.layouts.learn((*layout).clone());
                    return Err(NoAnswer::NewerLayout(layout));
                }
                Err(no) => {
                    if no.is_behind() || !refused.is_behind() {
                        refused = no;
                    }
                    if let Some(node) = order.next() {
                        asks.push(self.scan_at(view, node, list, partition, ask));
                    }
                }
            }
        }
        Err(refused)
    }

    /// While one layout replaces another, adds what others hold, so that a quorum of each set has answered: see
    /// [`super::read`]. Without them each key is read for itself.
    async fn scan_beside(
        &self,
        view: &Arc<View>,
        list: &List,
        partition: u16,
        ask: Ask,
        answers: &mut Vec<Answer>,
    ) {
        let mut nodes: Vec<NodeId> = answers.iter().map(|answer| answer.node).collect();
        if list.quorum == Quorum::One || self.is_settled(view, partition, &nodes) {
            return;
        }
        let bare = List { with_values: false, ..list.clone() };
        let mut asks = Asks::new();
        for node in view.writers_of(partition).into_iter().filter(|node| !nodes.contains(node)) {
            asks.push(self.scan_at(view, node, &bare, partition, ask));
        }
        while !self.is_settled(view, partition, &nodes)
            && let Some(answer) = asks.next().await
        {
            if let Ok(answer) = answer {
                nodes.push(answer.node);
                answers.push(answer);
            }
        }
    }

    async fn scan_at(
        &self,
        view: &View,
        node: NodeId,
        list: &List,
        partition: u16,
        ask: Ask,
    ) -> Result<Answer, NoAnswer> {
        let scan = v1::ReplicaScan {
            partition: u32::from(partition),
            namespace: list.namespace.clone(),
            prefix: list.prefix.clone(),
            after: list.after.clone(),
            limit: u32::try_from(ask.keys).unwrap_or(u32::MAX),
            bytes: ask.bytes as u64,
            with_values: list.with_values,
        };
        let Outcome::Scanned(scanned) = self.ask_any(view, node, Operation::Scan(scan)).await? else {
            return Err(NoAnswer::Unknown);
        };
        let last = scanned.entries.last().map(|entry| entry.key.clone());
        let records = scanned.entries.into_iter();
        let records = records.filter_map(|entry| Some((entry.key, Record::from_wire(entry.record?)?)));
        Ok(Answer {
            node,
            records: records.collect(),
            // An incomplete answer has at least one entry.
            scanned_to: (!scanned.complete).then(|| last.unwrap_or_default()),
            collected_to: scanned.collected_to,
        })
    }

    /// Makes one of the replicas' answers. A key on which they disagree is read for itself, which repairs it.
    async fn settle(
        &self,
        view: &View,
        list: &List,
        partition: u16,
        answers: Vec<Answer>,
    ) -> Result<Part, Failure> {
        let scanned_to = answers.iter().filter_map(|answer| answer.scanned_to.clone()).min();
        let covered = |key: &String| scanned_to.as_ref().is_none_or(|end| key <= end);
        let alone = list.quorum == Quorum::One;
        let nodes: Vec<NodeId> = answers.iter().map(|answer| answer.node).collect();
        let settled = self.is_settled(view, partition, &nodes);
        let mut records = BTreeMap::new();
        let mut disputed = BTreeSet::new();
        for (key, record) in answers.iter().flat_map(|answer| &answer.records).filter(|(key, _)| covered(key))
        {
            if records.contains_key(key) || disputed.contains(key) {
                continue;
            }
            let same = |answer: &Answer| {
                let theirs: Option<Version> = answer.records.get(key).map(|record| record.version);
                theirs == Some(record.version) && answer.collected_to == answers[0].collected_to
            };
            if alone || (settled && answers.iter().all(same)) {
                records.insert(key.clone(), record.clone());
            } else {
                disputed.insert(key.clone());
            }
        }
        let read = disputed.into_iter().map(|key| async move {
            let get = Get {
                namespace: list.namespace.clone(),
                key: key.clone(),
                with_value: list.with_values,
                quorum: list.quorum,
                deadline: list.deadline,
            };
            Ok::<_, Failure>((key, self.get(&get).await?))
        });
        let mut read = futures::stream::iter(read).buffer_unordered(DISPUTED_AT_A_TIME);
        while let Some((key, record)) = read.next().await.transpose()? {
            records.extend(record.map(|record| (key, record)));
        }
        Ok(Part { records, scanned_to })
    }
}
