//! Access to the header that every request carries.

use crate::v1;

/// A request that says on whose behalf it acts.
pub trait HasHeader {
    /// What is asked for, in one word, as metrics and traces say it.
    const OPERATION: &'static str;
    /// The header; `None` when the sender left it out, which every service refuses.
    fn header(&self) -> Option<&v1::RequestHeader>;
    /// The place to put a header into.
    fn header_mut(&mut self) -> &mut Option<v1::RequestHeader>;
}

/// A message's name without its last part.
const fn operation(message: &'static str) -> &'static str {
    const TAIL: &[u8] = b"Request";
    let bytes = message.as_bytes();
    let Some(kept) = bytes.len().checked_sub(TAIL.len()) else { return message };
    let mut place = 0;
    while place < TAIL.len() {
        if bytes[kept + place] != TAIL[place] {
            return message;
        }
        place += 1;
    }
    message.split_at(kept).0
}

macro_rules! has_header {
    ($($message:ident),* $(,)?) => {$(
        impl HasHeader for v1::$message {
            const OPERATION: &'static str = operation(stringify!($message));
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
    HandOverRequest,
    LogLevelRequest,
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

#[cfg(test)]
mod tests {
    use super::HasHeader;
    use crate::v1;

    #[test]
    fn operations_are_called_by_one_word() {
        assert_eq!(v1::ExecuteRequest::OPERATION, "Execute");
        assert_eq!(v1::RegisterWriteRequest::OPERATION, "RegisterWrite");
        assert_eq!(v1::Attach::OPERATION, "Attach");
    }
}
