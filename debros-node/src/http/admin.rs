//! The admin listener: whether the process lives, whether it is ready, how it is, its metrics and
//! its status. For probes of Kubernetes, Prometheus and people; it changes nothing.
//!
//! The names of JSON's fields here are stable; they are those of `docs/http.md`.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use debros_proto::v1;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::meter::{HttpMetrics, measure};
use crate::blocking::Blocking;
use crate::metrics::{Exposition, Format};
use crate::service::{ClusterService, Health};

/// This listener's name in metrics and logs.
const LISTENER: &str = "admin";
/// What the listener answers from.
#[derive(Clone)]
pub struct AdminParts {
    /// The node's status.
    pub cluster: ClusterService,
    /// The node's probes.
    pub health: Health,
    /// The node's metrics.
    pub metrics: Exposition,
    /// Where they are read.
    pub blocking: Blocking,
    /// Cancelled as soon as the node begins to shut down.
    pub shutdown: CancellationToken,
}

/// The routes of the admin listener.
pub fn router(parts: AdminParts, metrics: &HttpMetrics) -> Router {
    Router::new()
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .route("/healthz", get(healthy))
        .route("/metrics", get(show_metrics))
        .route("/status", get(status))
        .fallback(no_such_path)
        .with_state(parts)
        .layer(from_fn_with_state(metrics.of(LISTENER), measure))
}

/// The body of `/livez` and `/readyz`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct ReadyBody {
    ready: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

async fn live(State(parts): State<AdminParts>) -> Response {
    if parts.shutdown.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n").into_response();
    }
    "alive\n".into_response()
}

async fn ready(State(parts): State<AdminParts>) -> Response {
    let ready = match parts.shutdown.is_cancelled() {
        true => Err("the node is shutting down".to_owned()),
        false => parts.health.ready(),
    };
    let status = if ready.is_ok() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(ReadyBody { ready: ready.is_ok(), reason: ready.err() })).into_response()
}

async fn healthy(State(parts): State<AdminParts>) -> Response {
    let body = HealthBody::from(parts.health.report().await);
    (body.http_status(), Json(body)).into_response()
}

async fn show_metrics(State(parts): State<AdminParts>, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    let format = accept.map_or(Format::Text, Format::accepted);
    let written = parts.blocking.run(move || parts.metrics.write(format)).await;
    ([(header::CONTENT_TYPE, format.content_type())], written).into_response()
}

async fn status(State(parts): State<AdminParts>) -> Json<StatusBody> {
    Json(StatusBody::from(parts.cluster.node_status()))
}

async fn no_such_path() -> Response {
    let message = "there is no such path: use /livez, /readyz, /healthz, /metrics or /status\n";
    (StatusCode::NOT_FOUND, message).into_response()
}

/// The body of `/healthz`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HealthBody {
    /// `healthy`, `degraded` or `unhealthy`.
    pub status: String,
    /// The probes, in order.
    pub checks: Vec<CheckBody>,
    /// When they were made, in milliseconds since 1970.
    pub checked_unix_ms: u64,
}

/// One probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CheckBody {
    /// What was probed.
    pub name: String,
    /// `ok`, `warning` or `failed`.
    pub status: String,
    /// For people.
    pub message: String,
    /// How long it took, in microseconds.
    pub took_us: u32,
    /// What to do about it; absent when there is nothing to do.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub next_step: String,
}

impl HealthBody {
    /// 503 when the node is unhealthy; a degraded one still answers.
    pub fn http_status(&self) -> StatusCode {
        match self.status.as_str() {
            "unhealthy" => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::OK,
        }
    }
}

impl From<v1::HealthResponse> for HealthBody {
    fn from(health: v1::HealthResponse) -> Self {
        let v1::HealthResponse { status, checks, checked_unix_ms } = health;
        let check = |check| {
            let v1::HealthCheck { name, status, message, took_us, next_step } = check;
            CheckBody { name, status, message, took_us, next_step }
        };
        Self { status, checks: checks.into_iter().map(check).collect(), checked_unix_ms }
    }
}

/// The body of `/status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StatusBody {
    /// This node's PeerId.
    pub peer_id: String,
    /// Its Raft node id; 0 before it has joined.
    pub node_id: u64,
    /// The cluster's id in hex; empty before it has joined.
    pub cluster_id: String,
    /// The version of the program.
    pub version: String,
    /// The failure domain.
    pub zone: String,
    /// Seconds since the start.
    pub uptime_seconds: u64,
    /// The version of the cluster map.
    pub epoch: u64,
    /// Peers with a connection.
    pub connected_peers: u32,
    /// Bytes of this node's databases on disk.
    pub database_bytes: u64,
    /// This node's replicas.
    pub groups: Vec<GroupBody>,
    /// The multiaddrs that are listened on.
    pub listen_addresses: Vec<String>,
    /// What is not well; empty when all is.
    pub warnings: Vec<String>,
    /// The key-value storage here; absent before the node has joined.
    pub storage: Option<StorageBody>,
    /// Bytes free on the fullest of the node's disks.
    pub disk_free_bytes: u64,
}

/// The key-value storage on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StorageBody {
    /// The version of the layout; 0 before there is one.
    pub layout_version: u64,
    /// `stable`, `write-both` or `read-next`.
    pub phase: String,
    /// Nodes that hold the storage, with those that are to.
    pub nodes: u32,
    /// Nodes of the next layout that have copied what they gain.
    pub nodes_copied: u32,
    /// Partitions that this node answers for.
    pub partitions: u32,
    /// Partitions that this node still has to copy.
    pub partitions_to_copy: u32,
    /// Bytes on disk.
    pub bytes: u64,
    /// Bytes of writes kept for absent replicas.
    pub hinted_bytes: u64,
    /// Namespaces whose writes this node acknowledges before they are on disk.
    pub relaxed_namespaces: Vec<String>,
}

impl From<v1::StorageStatus> for StorageBody {
    fn from(status: v1::StorageStatus) -> Self {
        let v1::StorageStatus {
            layout_version,
            phase,
            nodes,
            nodes_copied,
            partitions,
            partitions_to_copy,
            bytes,
            hinted_bytes,
            relaxed_namespaces,
        } = status;
        Self {
            layout_version,
            phase,
            nodes,
            nodes_copied,
            partitions,
            partitions_to_copy,
            bytes,
            hinted_bytes,
            relaxed_namespaces,
        }
    }
}

/// One replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GroupBody {
    /// The Raft group; 0 is the cluster's own.
    pub group: u64,
    /// `meta`, or `namespace/database`.
    pub name: String,
    /// `leader`, `follower`, `candidate` or `learner`.
    pub role: String,
    /// The leader's node id; 0 when there is none.
    pub leader: u64,
    /// The Raft term.
    pub term: u64,
    /// The last entry in the log.
    pub last_log_index: u64,
    /// The last entry that was applied.
    pub applied_index: u64,
    /// Node ids.
    pub voters: Vec<u64>,
    /// Node ids.
    pub learners: Vec<u64>,
}

impl From<v1::StatusResponse> for StatusBody {
    fn from(status: v1::StatusResponse) -> Self {
        let v1::StatusResponse {
            peer_id,
            node_id,
            cluster_id,
            version,
            zone,
            uptime_seconds,
            epoch,
            connected_peers,
            database_bytes,
            groups,
            listen_addresses,
            warnings,
            storage,
            // `/metrics` has it, with more.
            activity: _,
            disk_free_bytes,
            // Of use where the node is no member, to whoever decides about it.
            belongs_to: _,
            begins_anew: _,
        } = status;
        Self {
            peer_id,
            node_id,
            cluster_id,
            version,
            zone,
            uptime_seconds,
            epoch,
            connected_peers,
            database_bytes,
            groups: groups.into_iter().map(GroupBody::from).collect(),
            listen_addresses,
            warnings,
            storage: storage.map(StorageBody::from),
            disk_free_bytes,
        }
    }
}

impl From<v1::GroupStatus> for GroupBody {
    fn from(status: v1::GroupStatus) -> Self {
        let v1::GroupStatus {
            group,
            name,
            leader,
            term,
            last_log_index,
            applied_index,
            voters,
            learners,
            role,
        } = status;
        Self { group, name, role, leader, term, last_log_index, applied_index, voters, learners }
    }
}
