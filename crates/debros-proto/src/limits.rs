//! Every limit of the platform by name, with its reason. A limit that is met gives
//! [`crate::ErrorCode::LimitExceeded`] with the limit's name and value in the message.

use std::time::Duration;

/// A namespace is also a DNS label in Kubernetes (RFC 1123).
pub const NAMESPACE_BYTES_MAX: usize = 63;
/// Becomes part of a folder's name.
pub const DATABASE_NAME_BYTES_MAX: usize = 63;

/// One request, so that a few of them never fill a node's memory.
pub const REQUEST_BYTES_MAX: usize = 16 << 20;
/// One answer: larger results are read in pages.
pub const RESPONSE_BYTES_MAX: usize = 64 << 20;
/// One SQL text: SQLite's own default is 1 MB.
pub const STATEMENT_BYTES_MAX: usize = 1 << 20;
/// Statements in one request.
pub const STATEMENTS_MAX: usize = 10_000;
/// Bound parameters of one statement: SQLite's `SQLITE_LIMIT_VARIABLE_NUMBER`.
pub const PARAMETERS_MAX: usize = 32_766;
/// One TEXT or BLOB value, and one row.
pub const VALUE_BYTES_MAX: usize = 8 << 20;
/// Rows of one result; larger ones are read in pages.
pub const RESULT_ROWS_MAX: usize = 1_000_000;
/// One entry of the Raft log: a request and its framing.
pub const LOG_ENTRY_BYTES_MAX: usize = REQUEST_BYTES_MAX + (64 << 10);
/// The command in such an entry: room is left for the entry's own fields.
pub const COMMAND_BYTES_MAX: usize = LOG_ENTRY_BYTES_MAX - (1 << 10);

/// A request is forwarded between nodes at most once, so that forwarding can never form a circle.
pub const FORWARD_HOPS_MAX: u32 = 1;
/// Used when a request names no timeout of its own.
pub const REQUEST_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
/// No request waits longer than this.
pub const REQUEST_TIMEOUT_MAX: Duration = Duration::from_secs(300);

/// Requests of one database waiting for its leader; past it the answer is `BUSY`.
pub const PENDING_WRITES_MAX: usize = 4096;
/// Databases of one namespace.
pub const DATABASES_PER_NAMESPACE_MAX: usize = 1000;
/// Databases of one cluster. Each has a Raft group and a thread on every node with a replica, and whoever
/// may use a new namespace makes one.
pub const DATABASES_MAX: usize = 2000;
/// Replicas of one database: more slow every write and add no safety worth having.
pub const REPLICATION_FACTOR_MAX: u32 = 7;

/// Numbers of one database before those of the next group begin (`GroupId::numbers_from`): at 10,000 writes a
/// second three years; past them only databases that are dropped and made anew lose by it.
pub const NUMBERS_PER_GROUP: u64 = 1 << 40;
/// Groups with numbers of their own, so that every number stays below 2^63; a group's id is the index of an entry
/// of the meta log, which grows when the cluster's nodes or databases change.
pub const NUMBERED_GROUPS_MAX: u64 = (1 << 23) - 1;

/// Write sessions of one database; the oldest idle one gives way.
pub const SESSIONS_MAX: usize = 10_000;
/// Results kept of one session: writes under way at a time.
pub const SESSION_RESULTS_MAX: usize = 256;
/// One kept result; a retry of a larger one is told that it was applied, without its rows.
pub const SESSION_RESULT_BYTES_MAX: usize = 64 << 10;
/// A session without a write for this much log time is forgotten.
pub const SESSION_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Virtual-machine steps of one write entry: several seconds of work. Replicas count steps, not
/// time, so that all of them give up at the same place.
pub const WRITE_STEPS_MAX: u64 = 500_000_000;
/// A local read gives up after this much wall time, unless the request asks for less.
pub const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Log time moves forward by at most this much per entry, so one wrong clock cannot carry it away.
pub const LOG_TIME_STEP_MAX: Duration = Duration::from_secs(3600);

/// The key of a register: it fits a page of SQLite with its neighbours.
pub const REGISTER_KEY_BYTES_MAX: usize = 1024;
/// The value of a register: larger things belong into a table.
pub const REGISTER_VALUE_BYTES_MAX: usize = 1 << 20;
/// Registers of one page of a listing.
pub const REGISTERS_PER_PAGE_MAX: u32 = 1000;
/// Leases of one page of a listing.
pub const LEASES_PER_PAGE_MAX: u32 = 1000;
/// Bytes of one page of a listing, beyond which it holds one register or lease: a listing never fills a node's memory.
pub const REGISTER_PAGE_BYTES_MAX: usize = 4 << 20;
/// A larger value is left out of the answer to a failed compare-and-set, so that the answer always fits what
/// a session keeps ([`SESSION_RESULT_BYTES_MAX`]).
pub const CONFLICT_VALUE_BYTES_MAX: usize = 32 << 10;
/// Leases of one database: each is renewed through the log, several times in its life.
pub const LEASES_MAX: usize = 10_000;
/// Registers that go with one lease: they are deleted in one entry.
pub const REGISTERS_PER_LEASE_MAX: usize = 1000;
/// Leases that one entry ends, for the same reason; the rest goes with the next one.
pub const LEASES_ENDED_PER_ENTRY_MAX: usize = 64;
/// Shorter ones would end during an election.
pub const LEASE_TTL_MIN: Duration = Duration::from_secs(2);
/// Longer ones are better no leases.
pub const LEASE_TTL_MAX: Duration = Duration::from_secs(24 * 3600);
/// Where there are leases, the log has a leader's clock so often: when another takes over, leases last longer by up
/// to this and the time in which nobody led. It is an entry of the log in a database that is idle otherwise.
pub const LEASE_CLOCK_INTERVAL: Duration = Duration::from_secs(10);
/// Changes of registers that a replica remembers for its watchers, and their bytes: a watcher that falls
/// further behind is told so.
pub const CHANGES_REMEMBERED_MAX: usize = 4096;
/// See [`CHANGES_REMEMBERED_MAX`].
pub const CHANGES_REMEMBERED_BYTES_MAX: usize = 4 << 20;
/// Watchers served by one node: each is a stream and a task.
pub const REGISTER_WATCHES_MAX: usize = 1024;
/// A watch in which nothing happens gives a sign of life this often.
pub const WATCH_PROGRESS_INTERVAL: Duration = Duration::from_secs(2);

/// Bytes of one frame on the Append stream.
pub const APPEND_FRAME_BYTES_MAX: usize = LOG_ENTRY_BYTES_MAX + (1 << 20);
/// Append frames of one group that wait at the receiver; past it the answer is a refusal.
pub const GROUP_MAILBOX_FRAMES: usize = 256;
/// Unanswered frames of one append session: below the mailbox's size, so a well-behaved sender is
/// never refused for it.
pub const SESSION_FRAMES_MAX: usize = 64;
/// Append sessions of one peer at a time: two of each group that it leads.
pub const PEER_SESSIONS_MAX: usize = 16_384;
/// Frames waiting in a peer's outgoing Append stream.
pub const PEER_OUTBOX_FRAMES: usize = 4096;
/// One chunk of a snapshot.
pub const SNAPSHOT_CHUNK_BYTES: usize = 256 << 10;
/// Bytes per second of snapshots to one peer: faster disturbs the raft lane's tail latency.
pub const SNAPSHOT_BYTES_PER_SECOND: u64 = 200 << 20;

/// One key of the storage: longer ones are addresses, not names.
pub const STORAGE_KEY_BYTES_MAX: usize = 1024;
/// One value of the storage: larger ones are kept in chunks.
pub const STORAGE_VALUE_BYTES_MAX: usize = 1 << 20;
/// Keys of one page of a listing.
pub const STORAGE_PAGE_KEYS_MAX: u32 = 10_000;
/// Keys of a page when the request names no limit.
pub const STORAGE_PAGE_KEYS_DEFAULT: u32 = 1000;
/// Keys and values of one page; the page that meets it is shorter and says that there is more.
pub const STORAGE_PAGE_BYTES_MAX: usize = 4 << 20;
/// A value may live this long at most; without a time to live it stays.
pub const STORAGE_TTL_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Calls under way on one stream; past it the answer is `BUSY`.
pub const STREAM_CALLS_MAX: usize = 4096;
/// Calls in one message of a stream.
pub const CALLS_PER_FRAME_MAX: usize = 512;
/// Bytes of the calls in one message of a stream; a single larger call travels alone.
pub const CALLS_FRAME_BYTES: usize = 256 << 10;
/// One message of a stream of calls: a call has at most a page of a listing or a batch of repairs.
pub const CALLS_FRAME_BYTES_MAX: usize = 16 << 20;
/// A version may be born at most this far ahead of a replica's clock.
pub const CLOCK_AHEAD_MAX: Duration = Duration::from_millis(500);
/// What a client or another node says lifts a node's clock this far ahead of its time of day at most. A version
/// further ahead is kept, and written over above it, without every other write following: others whose clocks
/// are late would refuse those.
pub const CLOCK_LIFT_MAX: Duration = Duration::from_millis(100);
/// Versions given ahead of a node's clock that it has to remember, in runs of consecutive ones; past it a write
/// that needs another is refused until time has caught up, which takes less than [`CLOCK_AHEAD_MAX`].
pub const CLOCK_LIFTED_RUNS_MAX: usize = 64 << 10;
/// A node whose clock is further than this from its peers' median coordinates no writes.
pub const CLOCK_OFFSET_MAX: Duration = Duration::from_millis(250);
/// Hints kept for absent replicas, in bytes; past it anti-entropy repairs alone.
pub const HINTS_BYTES_MAX: u64 = 256 << 20;
/// A hint older than this is dropped: anti-entropy has long repaired what it tells.
pub const HINT_LIFE: Duration = Duration::from_secs(3 * 3600);
/// Changes that wait for one watcher; past it the watcher is told that it lags.
pub const WATCH_EVENTS_MAX: usize = 4096;
/// The latest changes that a node keeps for all who watch, in bytes; whoever is further behind is told that it
/// lags. A single batch of writes is kept whatever its size.
pub const WATCH_RING_BYTES_MAX: usize = 16 << 20;
/// What listings under way on one node may take in memory; past it they wait for [`LIST_WAIT_MAX`], and then the
/// answer is `BUSY`.
pub const LISTS_BYTES_MAX: usize = 512 << 20;
/// A listing waits so long for others to end. Longer, and another node would have answered.
pub const LIST_WAIT_MAX: Duration = Duration::from_secs(1);
/// A node to which the meta group has been silent for so long asks other members whether it is still one.
pub const META_SILENCE_MAX: Duration = Duration::from_secs(10);
/// Watches of one node at a time.
pub const STORAGE_WATCHES_MAX: usize = 4096;
/// Room of the storage that values do not take, an eighth of `storage.max_size` and this at most: deletions, and
/// what frees room, go on in it. Repairs may take half of it, so that reads go on, too.
pub const STORAGE_RESERVE_BYTES_MAX: u64 = 64 << 20;

/// One topic or pattern: longer ones are addresses of data, not names of streams.
pub const TOPIC_BYTES_MAX: usize = 1024;
/// Levels of one topic: each is a step of every match.
pub const TOPIC_LEVELS_MAX: usize = 64;
/// The payload of one message: larger things belong into the storage, with a message about them.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// The encoded headers of one message.
pub const MESSAGE_HEADERS_BYTES_MAX: usize = 16 << 10;
/// The name of a queue group.
pub const GROUP_BYTES_MAX: usize = 64;
/// Messages of one batch: an acknowledgement is for all of them.
pub const PUBLISH_MESSAGES_MAX: usize = 16_384;
/// Subscriptions that messages are handed to before other clients of the node have their turn: some 20 ms. What a batch
/// or a frame holds beyond comes in its next turn.
pub const ROUTING_TURN_DELIVERIES: usize = 1 << 17;
/// Bytes of one batch; a single message always fits.
pub const PUBLISH_BYTES_MAX: usize = MESSAGE_BYTES_MAX + (64 << 10);
/// Bytes that one client may have under way to its node: some milliseconds at full speed.
pub const PUBLISH_WINDOW_BYTES: u64 = 4 << 20;
/// Messages are gathered up to here in what is sent at once; 128-byte writes to a stream reach a sixtieth of what
/// 64-KiB writes do.
pub const PUBSUB_FRAME_BYTES: usize = 64 << 10;
/// One message of a pub/sub stream: a frame, and the last batch that began in it.
pub const PUBSUB_FRAME_BYTES_MAX: usize = PUBSUB_FRAME_BYTES + 2 * PUBLISH_BYTES_MAX;
/// What an origin remembers of its own messages for links that broke and clients that moved, in bytes: at full speed
/// half a second.
pub const RING_BYTES_MAX: usize = 64 << 20;
/// The same in time.
pub const RING_LIFE: Duration = Duration::from_secs(60);
/// What waits for a node in reach before publishers are held back.
pub const LINK_BACKLOG_BYTES: u64 = 8 << 20;
/// Another node is told so long that a namespace's subscriptions there have much waiting; then it says so again, unless
/// they took nothing meanwhile.
pub const PRESSURE_LIFE: Duration = Duration::from_millis(250);
/// Publishers are held back for a node that takes nothing at most this long; then it must catch up alone.
pub const LINK_PATIENCE: Duration = Duration::from_secs(1);
/// What waits for one subscription; past it the oldest is dropped, or the subscription ends.
pub const SUBSCRIPTION_QUEUE_BYTES: usize = 16 << 20;
/// What waits for all subscriptions of a session; past it each is held to its equal part of this.
pub const SESSION_QUEUES_BYTES: usize = 64 << 20;
/// What waits for all sessions of a node; past it a session that has more than its equal part of this is held to that, and
/// those that read lose nothing by those that do not.
pub const NODE_QUEUES_BYTES: usize = 512 << 20;
/// Credit of one subscription: what a client may have to keep in memory.
pub const SUBSCRIPTION_CREDIT_BYTES_MAX: u64 = 64 << 20;
/// Subscriptions, and presences, of one session.
pub const SUBSCRIPTIONS_PER_SESSION_MAX: usize = 20_000;
/// Presences of one namespace in the whole cluster: every node keeps them, and tells all to whoever begins to watch.
pub const PRESENCES_PER_NAMESPACE_MAX: usize = 20_000;
/// Presences of the whole cluster: every node keeps them.
pub const PRESENCES_MAX: usize = 65_536;
/// Watches of who is present, of one session.
pub const PRESENCE_WATCHES_PER_SESSION_MAX: usize = 256;
/// Presence events that wait for an application in its process; past it the watch ends.
pub const PRESENCE_EVENTS_MAX: usize = 65_536;
/// Subscriptions of one node.
pub const SUBSCRIPTIONS_MAX: usize = 200_000;
/// One answer about what is subscribed to; there are more of them where it is not enough.
pub const TOPICS_PAGE_BYTES: usize = 1 << 20;
/// Sessions of one node: each is a stream and a task.
pub const SESSIONS_PER_NODE_MAX: usize = 16_384;
/// A subscription is acknowledged without the nodes that have not answered for so long.
pub const SUBSCRIBE_PATIENCE: Duration = Duration::from_secs(2);
/// A batch that every interested node is to have is acknowledged without those that lost their connection so long ago.
pub const RECEIVE_PATIENCE: Duration = Duration::from_secs(2);
/// Calls of a session under way that wait for others: subscriptions and batches to be received.
pub const SESSION_CALLS_MAX: usize = 4096;
/// Publishers whose numbers a node remembers, and for how long after their last message.
pub const PUBLISHERS_MAX: usize = 65_536;
/// See [`PUBLISHERS_MAX`]: longer than a client takes to find another node.
pub const PUBLISHER_LIFE: Duration = Duration::from_secs(600);
/// An origin out of reach for so long may be gone with messages that nobody got.
pub const ORIGIN_PATIENCE: Duration = Duration::from_secs(10);
/// Messages of queue groups that came from one node, were for members that have gone, and that node was not told yet;
/// what comes beyond them is lost and counted.
pub const BOUNCES_MAX: usize = 65_536;
/// Nodes that left the cluster of which sessions are told, so that clients forget where those stood. A client that
/// misses it hears of a node by itself when it goes on elsewhere.
pub const DEPARTED_TOLD_MAX: usize = 64;
/// Topics of a namespace whose receivers are kept ready.
pub const ROUTES_KEPT_MAX: usize = 16_384;
/// The name of who is present.
pub const PRESENCE_MEMBER_BYTES_MAX: usize = 256;
/// What is told beside the name.
pub const PRESENCE_DATA_BYTES_MAX: usize = 4 << 10;

/// The bounds of every classic histogram of durations, in seconds. Service levels can be counted exactly only where their
/// thresholds, 0.1 and 0.5, are among them.
pub const DURATION_BOUNDS_SECONDS: [f64; 14] =
    [0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// Members keep a full mesh up to here.
pub const MESH_NODES_MAX: usize = 200;
/// Signed peer records in one exchange.
pub const EXCHANGE_RECORDS_MAX: usize = 256;
/// Bytes of one signed peer record.
pub const PEER_RECORD_BYTES_MAX: usize = 4096;
/// Addresses kept of one peer.
pub const PEER_ADDRESSES_MAX: usize = 32;

/// The filter of a node's log: a level, and some targets with levels of their own.
pub const LOG_LEVEL_BYTES_MAX: usize = 1024;

/// Spans that a process remembers of one request until it ends; more are counted and lost.
pub const TRACE_SPANS_PER_REQUEST_MAX: usize = 128;
/// Requests' spans that wait for the collector: some seconds of a busy node at the default ratio.
pub const TRACE_REPORTS_QUEUED_MAX: usize = 4096;
/// Spans in one request to the collector, but for those of the last request that fits.
pub const TRACE_SPANS_PER_EXPORT: usize = 512;

/// Disk space kept free: below it a node reports `disk full` and leaders refuse writes.
pub const DISK_RESERVE_BYTES: u64 = 256 << 20;

/// `/healthz` and `health()` answer from probes that are at most this old, and probe at once when they are older.
pub const PROBE_AGE_MAX: Duration = Duration::from_secs(8);
/// A probe that takes longer has failed: three times the slowest service level, and an election fits into it.
pub const PROBE_TIMEOUT: Duration = Duration::from_millis(1500);
/// What a node stores to probe the storage is gone so long after the node; longer than a clock may be wrong.
pub const CANARY_LIFE: Duration = Duration::from_secs(24 * 3600);
/// A replica that lacks more entries than this is told to lag.
pub const REPLICA_LAG_ENTRIES: u64 = 1000;
/// Writes that wait for an absent replica are told from so many bytes on.
pub const HINTS_BYTES_TOLD: u64 = 64 << 10;
