//! Access to the header that every request carries.

use crate::v1;

/// A request that says on whose behalf it acts.
pub trait HasHeader {
    /// The header; `None` when the sender left it out, which every service refuses.
    fn header(&self) -> Option<&v1::RequestHeader>;
    /// The place to put a header into.
    fn header_mut(&mut self) -> &mut Option<v1::RequestHeader>;
}

macro_rules! has_header {
    ($($message:ident),* $(,)?) => {$(
        impl HasHeader for v1::$message {
            fn header(&self) -> Option<&v1::RequestHeader> {
                self.header.as_ref()
            }
            fn header_mut(&mut self) -> &mut Option<v1::RequestHeader> {
                &mut self.header
            }
        }
    )*};
}

has_header!(
    ExecuteRequest,
    QueryRequest,
    OpenSessionRequest,
    CreateDatabaseRequest,
    DropDatabaseRequest,
    ListDatabasesRequest,
    StorageRequest,
    WatchStorageRequest,
    LayoutRequest,
    WatchReplicaRequest,
    CopyRequest,
    StatusRequest,
    PeersRequest,
    MembersRequest,
    HealthRequest,
    ConnectPeerRequest,
    DisconnectPeerRequest,
    LeaveRequest,
    InitialiseRequest,
    JoinRequest,
    ProposeRequest,
    CanaryRequest,
    RegisterWriteRequest,
    RegisterGetRequest,
    RegisterListRequest,
    LeaseListRequest,
    RegisterWatchRequest,
    Attach,
    TopicsRequest,
    PresentRequest,
);
