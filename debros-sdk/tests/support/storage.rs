//! The storage of the small cluster: every node answers for one storage in memory, over the same
//! streams as a real node's.

use std::pin::Pin;

use async_trait::async_trait;
use bytes::Bytes;
use debros_net::calls::Answers;
use debros_proto::v1::storage_request::Operation;
use debros_proto::v1::storage_response::Result as Answered;
use debros_proto::v1::storage_server::Storage as StorageService;
use debros_proto::{ErrorCode, Failure, v1};
use debros_sdk::{
    Cursor, Entry, Error, ErrorKind, GetOptions, ListOptions, PutOptions, ResumeToken, Storage, Version,
    Watch, WatchEvent, WatchOptions,
};
use futures::stream::{self, FuturesUnordered, Stream};
use tonic::{Request, Response, Status, Streaming};

use super::{Node, Service};

impl Service {
    async fn answer(self, call: v1::StorageCall) -> Vec<v1::StorageReply> {
        use v1::storage_reply::Outcome;
        let outcome = match self.operate(call.request.unwrap_or_default()).await {
            Ok(response) => Outcome::Response(response),
            Err(failure) => Outcome::Failure(failure.into_call()),
        };
        vec![v1::StorageReply { id: call.id, outcome: Some(outcome) }]
    }

    async fn operate(&self, request: v1::StorageRequest) -> Result<v1::StorageResponse, Failure> {
        let operation = request.operation.ok_or_else(|| Failure::invalid("no operation"))?;
        let namespace = request.header.map(|header| header.namespace).unwrap_or_default();
        if namespace != "test" {
            return Err(Failure::invalid("another namespace"));
        }
        self.note(&operation, request.seen_clock)?;
        let writes = matches!(operation, Operation::Put(_) | Operation::Delete(_));
        let response = self.carry_out(operation).await.map_err(failure)?;
        let fault = if writes { self.world.state().after_apply.pop() } else { None };
        if let Some(fault) = fault {
            self.world.strike(self.index, fault);
            std::future::pending::<()>().await;
        }
        Ok(response)
    }

    fn note(&self, operation: &Operation, seen_clock: u64) -> Result<(), Failure> {
        let key = match operation {
            Operation::Put(put) => &put.key,
            Operation::Get(get) => &get.key,
            Operation::Delete(delete) => &delete.key,
            Operation::List(list) => &list.prefix,
        };
        let mut state = self.world.state();
        state.operates.push((self.index, key.clone(), seen_clock));
        if state.stale_answers > 0 {
            state.stale_answers -= 1;
            let mut failure = Failure::new(ErrorCode::StaleEpoch, "the layout has changed");
            failure.epoch = state.layout_version;
            return Err(failure);
        }
        Ok(())
    }

    async fn carry_out(&self, operation: Operation) -> Result<v1::StorageResponse, Error> {
        let storage = &self.world.storage;
        match operation {
            Operation::Put(put) => {
                let ttl = (put.ttl_ms > 0).then(|| std::time::Duration::from_millis(put.ttl_ms));
                let options = PutOptions { ttl, ..PutOptions::default() };
                storage.put_with(&put.key, put.value, options).await.map(written)
            }
            Operation::Delete(delete) => storage.delete(&delete.key).await.map(written),
            Operation::Get(get) => {
                let options = GetOptions { without_value: get.without_value, ..GetOptions::default() };
                let entry = storage.get_with(&get.key, options).await?;
                let clock = entry.as_ref().map_or(0, |entry| entry.version.clock);
                let found = v1::StorageFound { entry: entry.map(|entry| wire_entry(&entry)) };
                Ok(v1::StorageResponse { clock, result: Some(Answered::Found(found)) })
            }
            Operation::List(list) => {
                let options = ListOptions {
                    limit: (list.limit > 0).then_some(list.limit),
                    after: (!list.after.is_empty()).then(|| Cursor::after(list.after)),
                    values: list.with_values,
                    ..ListOptions::default()
                };
                let page = storage.list_with(&list.prefix, options).await?;
                let page = v1::StoragePage {
                    entries: page.entries.iter().map(wire_entry).collect(),
                    more: page.cursor.is_some(),
                    scanned_to: page.cursor.map(|cursor| cursor.as_str().to_owned()).unwrap_or_default(),
                };
                Ok(v1::StorageResponse { clock: 0, result: Some(Answered::Page(page)) })
            }
        }
    }
}

fn failure(error: Error) -> Failure {
    let code = match error.kind() {
        ErrorKind::LimitExceeded => ErrorCode::LimitExceeded,
        _ => ErrorCode::InvalidArgument,
    };
    Failure::new(code, error.to_string())
}

fn wire_version(version: Version) -> v1::Version {
    v1::Version { clock: version.clock, node: version.node }
}

fn written(version: Version) -> v1::StorageResponse {
    let written = v1::StorageWritten { version: Some(wire_version(version)) };
    v1::StorageResponse { clock: version.clock, result: Some(Answered::Written(written)) }
}

fn wire_entry(entry: &Entry) -> v1::StorageEntry {
    let unix_ms = |at: std::time::SystemTime| at.duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    v1::StorageEntry {
        key: entry.key.clone(),
        value: entry.value.clone(),
        version: Some(wire_version(entry.version)),
        expires_unix_ms: entry.expires_at.map_or(0, |at| u64::try_from(unix_ms(at)).unwrap()),
    }
}

fn wire_event(event: WatchEvent) -> v1::StorageEvent {
    use v1::storage_event::Kind;
    let kind = match event {
        WatchEvent::Put(entry) => Kind::Put(wire_entry(&entry)),
        WatchEvent::Deleted { key, version } => Kind::Deleted(v1::StorageEntry {
            key,
            version: Some(wire_version(version)),
            ..Default::default()
        }),
        WatchEvent::Lagged => Kind::Lagged(v1::WatchLagged {}),
        WatchEvent::CaughtUp => Kind::CaughtUp(v1::WatchCaughtUp {}),
        other => panic!("an event of another version: {other:?}"),
    };
    v1::StorageEvent { kind: Some(kind) }
}

fn told(watch: Watch, tokenless: bool) -> impl Stream<Item = Result<v1::StorageEvents, Status>> {
    stream::unfold(watch, move |mut watch| async move {
        let event = watch.next().await?;
        let resume = watch.resume().filter(|_| !tokenless);
        let resume = resume.map(|resume| resume.as_bytes().clone()).unwrap_or_default();
        let events = event
            .map(|event| v1::StorageEvents { events: vec![wire_event(event)], resume })
            .map_err(|error| failure(error).into());
        Some((events, watch))
    })
}

type Sent<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[async_trait]
impl StorageService for Service {
    type OperateStream = Sent<v1::StorageReplies>;
    type WatchStream = Sent<v1::StorageEvents>;

    async fn operate(
        &self,
        request: Request<Streaming<v1::StorageCalls>>,
    ) -> Result<Response<Self::OperateStream>, Status> {
        let service = self.clone();
        let handler = move |calls: Vec<v1::StorageCall>, under_way: &FuturesUnordered<_>| {
            service.world.state().frames += 1;
            for call in calls {
                under_way.push(service.clone().answer(call));
            }
        };
        Ok(Response::new(Box::pin(Answers::new(request.into_inner(), handler))))
    }

    async fn watch(
        &self,
        request: Request<v1::WatchStorageRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let v1::WatchStorageRequest { prefix, resume, .. } = request.into_inner();
        let token = |resume: Bytes| (!resume.is_empty()).then(|| ResumeToken::from_bytes(resume));
        let watch = self.world.storage.watch(&prefix, WatchOptions { resume: token(resume) }).await;
        let tokenless = {
            let mut state = self.world.state();
            state.watched = Some(self.index);
            state.tokenless
        };
        Ok(Response::new(Box::pin(told(watch.map_err(failure)?, tokenless))))
    }

    async fn layout(&self, _: Request<v1::LayoutRequest>) -> Result<Response<v1::LayoutResponse>, Status> {
        let mut state = self.world.state();
        state.layouts_told += 1;
        Ok(Response::new(v1::LayoutResponse { layout: Some(state.layout()) }))
    }
}

impl super::State {
    pub(crate) fn layout(&self) -> v1::StorageLayout {
        let node = |(index, node): (usize, &Node)| v1::LayoutNode {
            node_id: index as u64 + 1,
            peer_id: node.peer.to_string(),
            ..Default::default()
        };
        let nodes = self.nodes.iter().enumerate().map(node).collect();
        let current = Some(v1::LayoutSet { replicas: self.replicas, nodes });
        v1::StorageLayout { version: self.layout_version, current, ..Default::default() }
    }
}
