//! One attempt of each call on a channel: the only place that names the generated clients. Sets the
//! message limits, which tonic would otherwise put at 4 MiB.

use debros_net::calls::CallFrames;
use debros_proto::v1;
use debros_proto::v1::cluster_client::ClusterClient;
use debros_proto::v1::database_client::DatabaseClient;
use debros_proto::v1::pub_sub_client::PubSubClient;
use debros_proto::v1::registers_client::RegistersClient;
use debros_proto::v1::storage_client::StorageClient;
use debros_proto::{ErrorCode, Failure, limits};
use futures::stream::Stream;
use tonic::transport::Channel;
use tonic::{Response, Status, Streaming};

use crate::otel;

fn database(channel: Channel) -> DatabaseClient<Channel> {
    DatabaseClient::new(channel)
        .max_encoding_message_size(limits::REQUEST_BYTES_MAX)
        .max_decoding_message_size(limits::RESPONSE_BYTES_MAX)
}

fn registers(channel: Channel) -> RegistersClient<Channel> {
    RegistersClient::new(channel)
        .max_encoding_message_size(limits::REQUEST_BYTES_MAX)
        .max_decoding_message_size(limits::RESPONSE_BYTES_MAX)
}

fn cluster(channel: Channel) -> ClusterClient<Channel> {
    ClusterClient::new(channel).max_decoding_message_size(limits::RESPONSE_BYTES_MAX)
}

fn storage(channel: Channel) -> StorageClient<Channel> {
    StorageClient::new(channel)
        .max_encoding_message_size(limits::CALLS_FRAME_BYTES_MAX)
        .max_decoding_message_size(limits::CALLS_FRAME_BYTES_MAX)
}

fn pubsub(channel: Channel) -> PubSubClient<Channel> {
    PubSubClient::new(channel)
        .max_encoding_message_size(limits::PUBSUB_FRAME_BYTES_MAX)
        .max_decoding_message_size(limits::PUBSUB_FRAME_BYTES_MAX)
}

/// Begins a session of pub/sub; it counts as begun when the node has said that it is.
pub(crate) async fn session(
    channel: Channel,
    calls: impl Stream<Item = v1::SessionCall> + Send + 'static,
) -> Result<(Streaming<v1::SessionEvent>, v1::Attached), Status> {
    let mut events = pubsub(channel).session(calls).await?.into_inner();
    match events.message().await?.and_then(|event| event.event) {
        Some(v1::session_event::Event::Attached(attached)) => Ok((events, attached)),
        _ => Err(Failure::new(ErrorCode::Unavailable, "the session ended before it began").into()),
    }
}

/// Opens a stream of storage calls; it serves many operations.
pub(crate) async fn operate(
    channel: Channel,
    calls: CallFrames<v1::StorageCalls>,
) -> Result<Response<Streaming<v1::StorageReplies>>, Status> {
    storage(channel).operate(calls).await
}

/// Opens a stream of changes.
pub(crate) async fn watch(
    channel: Channel,
    request: v1::WatchStorageRequest,
) -> Result<Response<Streaming<v1::StorageEvents>>, Status> {
    storage(channel).watch(otel::carrying(request)).await
}

macro_rules! calls {
    ($($service:ident: $method:ident($request:ident) -> $response:ident;)*) => {$(
        pub(crate) async fn $method(
            channel: Channel,
            request: v1::$request,
        ) -> Result<Response<v1::$response>, Status> {
            $service(channel).$method(otel::carrying(request)).await
        }
    )*};
}

pub(crate) async fn register_write(
    channel: Channel,
    request: v1::RegisterWriteRequest,
) -> Result<Response<v1::RegisterWriteResponse>, Status> {
    registers(channel).write(otel::carrying(request)).await
}

pub(crate) async fn register_get(
    channel: Channel,
    request: v1::RegisterGetRequest,
) -> Result<Response<v1::RegisterGetResponse>, Status> {
    registers(channel).get(otel::carrying(request)).await
}

pub(crate) async fn register_list(
    channel: Channel,
    request: v1::RegisterListRequest,
) -> Result<Response<v1::RegisterListResponse>, Status> {
    registers(channel).list(otel::carrying(request)).await
}

pub(crate) async fn lease_list(
    channel: Channel,
    request: v1::LeaseListRequest,
) -> Result<Response<v1::LeaseListResponse>, Status> {
    registers(channel).list_leases(otel::carrying(request)).await
}

/// A watch counts as opened when its first message has come.
pub(crate) async fn register_watch(
    channel: Channel,
    request: v1::RegisterWatchRequest,
) -> Result<Response<(Streaming<v1::RegisterWatchResponse>, v1::RegisterWatchResponse)>, Status> {
    let mut stream = registers(channel).watch(otel::carrying(request)).await?.into_inner();
    match stream.message().await? {
        Some(first) => Ok(Response::new((stream, first))),
        None => Err(Failure::new(ErrorCode::Unavailable, "the watch ended before it began").into()),
    }
}

calls! {
    database: execute(ExecuteRequest) -> ExecuteResponse;
    database: query(QueryRequest) -> QueryResponse;
    database: open_session(OpenSessionRequest) -> OpenSessionResponse;
    database: create_database(CreateDatabaseRequest) -> CreateDatabaseResponse;
    database: drop_database(DropDatabaseRequest) -> DropDatabaseResponse;
    database: list_databases(ListDatabasesRequest) -> ListDatabasesResponse;
    cluster: status(StatusRequest) -> StatusResponse;
    cluster: peers(PeersRequest) -> PeersResponse;
    cluster: members(MembersRequest) -> MembersResponse;
    cluster: health(HealthRequest) -> HealthResponse;
    cluster: connect_peer(ConnectPeerRequest) -> ConnectPeerResponse;
    cluster: disconnect_peer(DisconnectPeerRequest) -> DisconnectPeerResponse;
    cluster: leave(LeaveRequest) -> LeaveResponse;
    cluster: initialise(InitialiseRequest) -> InitialiseResponse;
    cluster: hand_over(HandOverRequest) -> HandOverResponse;
    cluster: log_level(LogLevelRequest) -> LogLevelResponse;
    pubsub: topics(TopicsRequest) -> TopicsResponse;
    pubsub: present(PresentRequest) -> PresentResponse;
    storage: layout(LayoutRequest) -> LayoutResponse;
}
