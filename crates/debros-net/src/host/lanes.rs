//! The lanes on libp2p: which connections two peers keep, and streams opened on exactly the right
//! one.
//!
//! Two peers keep at most two connections, one for every lane but bulk, and one for bulk while it
//! is used. The dialer of a connection says what it is for on its role stream, which stays open and
//! carries the heartbeat. Of several connections for the same purpose the peer with the lower id
//! selects one and says so on that stream; the other side hands out nothing before it is told. So
//! simultaneous dials never cost a stream that was already handed out.
//!
//! [`behaviour`] decides on connections, [`handler`] lives in one connection, [`heartbeat`] tells the
//! living from the dead, [`upgrade`] is what is spoken on new streams. Not `libp2p-stream`: it takes
//! any connection of a peer, and drops streams that arrive in a burst.

mod behaviour;
mod handler;
mod heartbeat;
mod upgrade;

pub(super) use behaviour::{Behaviour, LanesEvent};

use std::time::Duration;

use libp2p::PeerId;
use tokio::sync::oneshot;

use crate::error::OpenError;
use crate::lane::Lane;
use crate::stream::ByteStream;

/// Streams that each side may have open on one connection. Together below
/// [`super::transport::CONNECTION_STREAMS_MAX`], with room for identify, Kademlia, ping and streams
/// that one side has closed and the other not yet: one stream too many costs the connection.
const STREAMS_PER_SIDE_MAX: usize = 224;
/// A stream is negotiated and accepted within this time.
const STREAM_TIMEOUT: Duration = Duration::from_secs(5);
/// An accepted stream waits this long for a place in its lane's queue before its opener is told
/// that the lane is busy.
const QUEUE_WAIT: Duration = Duration::from_millis(500);
/// A connection has its role, and is selected, within this time; else it is closed.
const ROLE_TIMEOUT: Duration = Duration::from_secs(5);

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Every lane but bulk.
    Main,
    /// The bulk lane alone.
    Bulk,
}

impl Role {
    const ALL: [Role; 2] = [Role::Main, Role::Bulk];

    fn of(lane: Lane) -> Self {
        match lane {
            Lane::Bulk => Role::Bulk,
            Lane::Raft | Lane::Kv | Lane::Pubsub | Lane::Client => Role::Main,
        }
    }
}

/// A stream that is wanted. Whoever answers it answers exactly once.
#[derive(Debug)]
pub(super) struct OpenRequest {
    pub(super) lane: Lane,
    pub(super) reply: oneshot::Sender<Result<ByteStream, OpenError>>,
}

/// A connection that is wanted.
pub(super) type ConnectReply = oneshot::Sender<Result<PeerId, OpenError>>;
