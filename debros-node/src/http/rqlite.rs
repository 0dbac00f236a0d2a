//! rqlite's HTTP API, so that its clients work unchanged against any node.
//!
//! It reads requests ([`parse_statements`], [`Arguments`]), asks the services as
//! [`Principal::Http`], and writes what they answer ([`render`], [`Refusal`]). Every node answers
//! every request and forwards it itself, so there are never redirects. Queued writes (`?queue`) are
//! normal writes: they are answered when they are applied, which is more than was asked for.
//! Credentials are accepted and not looked at while `security.auth_enabled` is not in effect.

mod arguments;
mod declared;
mod refusal;
mod results;
mod statements;
mod status;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use debros_proto::{ErrorCode, Failure, v1};
use prost::Message;
use tokio::time::Instant;

use super::body::{BodyBudget, Held};
use super::meter::{HttpMetrics, measure};
use super::serve::LocalAddress;
use crate::service::{ClusterService, Databases, Health, Principal};
use status::Reached;

pub use arguments::{Arguments, NAMESPACE_DEFAULT, NAMESPACE_HEADER};
pub use refusal::Refusal;
pub use results::{Answer, Form, render};
pub use statements::{certainly_reads, parse_statements, parse_text, statement};

/// The version of rqlite whose API this is, and what answers it.
pub const RQLITE_VERSION: &str = concat!("v9.0.0+debros-", env!("CARGO_PKG_VERSION"));

const VERSION_HEADER: HeaderName = HeaderName::from_static("x-rqlite-version");
/// This listener's name in metrics and logs.
const LISTENER: &str = "http";
/// Bodies and results larger than this are read and written on a thread of their own: they take
/// longer than other requests may be kept waiting.
const INLINE_BYTES_MAX: usize = 128 << 10;

#[derive(Clone)]
struct Api {
    databases: Databases,
    cluster: ClusterService,
    health: Health,
    bodies: BodyBudget,
}

/// The routes of the API.
pub fn router(
    databases: Databases,
    cluster: ClusterService,
    health: Health,
    metrics: &HttpMetrics,
) -> Router {
    let api = Api { databases, cluster, health, bodies: BodyBudget::default() };
    Router::new()
        .route("/db/execute", post(execute))
        .route("/db/query", get(query).post(query))
        .route("/db/request", post(request))
        .route("/status", get(show_status))
        .route("/nodes", get(show_nodes))
        .route("/readyz", get(show_ready))
        .fallback(no_such_path)
        .with_state(api)
        .layer(from_fn(refuse_other_origins))
        .layer(from_fn(name_version))
        .layer(from_fn_with_state(metrics.of(LISTENER), measure))
}

async fn execute(State(api): State<Api>, request: Request) -> Result<Response, Refusal> {
    let started = Instant::now();
    let arguments = arguments_of(&request)?;
    let (statements, _held) = api.statements(request).await?;
    api.write(arguments, statements, started).await
}

async fn query(State(api): State<Api>, request: Request) -> Result<Response, Refusal> {
    let started = Instant::now();
    let mut arguments = arguments_of(&request)?;
    if request.method() != Method::POST {
        let sql = arguments.query.take().ok_or_else(|| {
            Failure::invalid("query parameter not set: give the SQL as ?q=, or POST an array of statements")
        })?;
        return api.read(arguments, vec![statement(sql)], started).await;
    }
    let (statements, _held) = api.statements(request).await?;
    api.read(arguments, statements, started).await
}

async fn request(State(api): State<Api>, request: Request) -> Result<Response, Refusal> {
    let started = Instant::now();
    let arguments = arguments_of(&request)?;
    let (statements, _held) = api.statements(request).await?;
    if certainly_reads(&statements) {
        api.read(arguments, statements, started).await
    } else {
        api.write(arguments, statements, started).await
    }
}

impl Api {
    /// Reads the body, and keeps its share of memory until the answer is there.
    async fn statements(&self, request: Request) -> Result<(Vec<v1::Statement>, Held), Failure> {
        let (parts, body) = request.into_parts();
        let mut held = self.bodies.read(&parts.headers, body).await?;
        let bytes = std::mem::take(&mut held.bytes);
        let is_text = content_type(&parts.headers).starts_with("text/plain");
        let long = bytes.len() > INLINE_BYTES_MAX;
        let parse = move || if is_text { parse_text(&bytes) } else { parse_statements(&bytes) };
        Ok((away_if(long, parse).await??, held))
    }

    async fn write(
        &self,
        arguments: Arguments,
        statements: Vec<v1::Statement>,
        started: Instant,
    ) -> Result<Response, Refusal> {
        let request = v1::ExecuteRequest {
            header: Some(arguments.write_header()),
            database: arguments.database.to_string(),
            statements,
            transaction: arguments.transaction,
            session: None,
            return_rows: true,
        };
        let written = self.databases.execute(&Principal::Http, request).await;
        let (results, index) = match written {
            Ok(response) => (response.results, response.log_index),
            Err(failure) => (refusal::as_result(failure)?, 0),
        };
        answer(&arguments, results, index, started).await
    }

    async fn read(
        &self,
        arguments: Arguments,
        statements: Vec<v1::Statement>,
        started: Instant,
    ) -> Result<Response, Refusal> {
        let request = v1::QueryRequest {
            header: Some(arguments.read_header()),
            database: arguments.database.to_string(),
            statements,
            consistency: arguments.consistency() as i32,
            freshness_ms: arguments.freshness_ms(),
        };
        let read = self.databases.query(&Principal::Http, request).await;
        let (results, index) = match read {
            Ok(response) => (response.results, response.applied_index),
            Err(failure) => (refusal::as_result(failure)?, 0),
        };
        answer(&arguments, results, index, started).await
    }

    /// The members of the cluster; none before this node is one.
    fn members(&self, arguments: &Arguments) -> Result<Vec<v1::Member>, Failure> {
        let request = v1::MembersRequest { header: Some(arguments.read_header()) };
        match self.cluster.members(&Principal::Http, &request) {
            Ok(response) => Ok(response.members),
            Err(failure) if failure.code == ErrorCode::NotReady => Ok(Vec::new()),
            Err(failure) => Err(failure),
        }
    }
}

async fn answer(
    arguments: &Arguments,
    results: Vec<v1::StatementResult>,
    index: u64,
    started: Instant,
) -> Result<Response, Refusal> {
    let answer = Answer {
        results,
        time: arguments.timings.then(|| started.elapsed().as_secs_f64()),
        sequence_number: arguments.queue.then_some(index),
        raft_index: arguments.raft_index.then_some(index).filter(|index| *index != 0),
    };
    let Arguments { associative, blob_array, pretty, .. } = *arguments;
    let form = Form { associative, blob_array, pretty };
    let long = answer.results.iter().map(Message::encoded_len).sum::<usize>() > INLINE_BYTES_MAX;
    let body = away_if(long, move || render(&answer, form)).await?.map_err(unwritable)?;
    Ok(json_response(body))
}

async fn show_status(State(api): State<Api>, request: Request) -> Result<Response, Refusal> {
    let arguments = arguments_of(&request)?;
    let (node, members) = (api.cluster.node_status(), api.members(&arguments)?);
    let body = status::status(&node, &members, &arguments, &reached(&request));
    Ok(json_response(results::to_json(&body, arguments.pretty).map_err(unwritable)?))
}

async fn show_nodes(State(api): State<Api>, request: Request) -> Result<Response, Refusal> {
    let arguments = arguments_of(&request)?;
    let (node, members) = (api.cluster.node_status(), api.members(&arguments)?);
    let body = status::nodes(&node, &members, &arguments, &reached(&request));
    Ok(json_response(results::to_json(&body, arguments.pretty).map_err(unwritable)?))
}

async fn show_ready(State(api): State<Api>, request: Request) -> Result<Response, Refusal> {
    let arguments = arguments_of(&request)?;
    if arguments.noleader {
        return Ok("[+]node ok".into_response());
    }
    if let Err(reason) = api.health.ready() {
        let text = format!("[+]node ok\n[+]leader does not exist\n[-]{reason}");
        return Ok((StatusCode::SERVICE_UNAVAILABLE, text).into_response());
    }
    let mut text = "[+]node ok\n[+]leader ok\n[+]store ok".to_owned();
    if arguments.sync {
        let health = api.health.report().await;
        if let Some(failed) = health.checks.iter().find(|check| check.status == "failed") {
            text.push_str(&format!("\n[-]sync {}: {}", failed.name, failed.message));
            return Ok((StatusCode::SERVICE_UNAVAILABLE, text).into_response());
        }
        text.push_str("\n[+]sync ok\n[+]db ok");
    }
    Ok(text.into_response())
}

async fn no_such_path() -> Refusal {
    Refusal(Failure::new(
        ErrorCode::NotFound,
        "there is no such path: use /db/execute, /db/query, /db/request, /status, /nodes or /readyz",
    ))
}

/// A page of another site must not use this node through its visitor's browser: requests with an
/// origin other than this host are refused, as by rqlite without an allowed origin.
async fn refuse_other_origins(request: Request, next: Next) -> Response {
    if comes_from_elsewhere(&request) {
        let message = "requests from pages of other origins are refused: call the API from a server";
        return Refusal(Failure::new(ErrorCode::PermissionDenied, message)).into_response();
    }
    next.run(request).await
}

fn comes_from_elsewhere(request: &Request) -> bool {
    let origin = request.headers().get(header::ORIGIN).map(|origin| origin.to_str().unwrap_or_default());
    let own = |origin: &str| origin.split_once("://").is_some_and(|(_, host)| Some(host) == host_of(request));
    origin.is_some_and(|origin| !own(origin))
}

async fn name_version(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    response.headers_mut().insert(VERSION_HEADER, HeaderValue::from_static(RQLITE_VERSION));
    response
}

fn arguments_of(request: &Request) -> Result<Arguments, Failure> {
    let arguments = Arguments::read(request.uri(), request.headers())?;
    tracing::Span::current().record("namespace", arguments.namespace.as_str());
    Ok(arguments)
}

fn reached(request: &Request) -> Reached<'_> {
    Reached { local: request.extensions().get::<LocalAddress>().copied(), host: host_of(request) }
}

fn host_of(request: &Request) -> Option<&str> {
    request.headers().get(header::HOST)?.to_str().ok()
}

fn content_type(headers: &HeaderMap) -> &str {
    headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn json_response(body: Vec<u8>) -> Response {
    ([(header::CONTENT_TYPE, "application/json; charset=utf-8")], body).into_response()
}

fn unwritable(error: serde_json::Error) -> Failure {
    Failure::new(ErrorCode::Internal, format!("the answer cannot be written as JSON: {error}"))
}

/// Does work here, or on a thread of its own where it takes long.
async fn away_if<T: Send + 'static>(
    long: bool,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    if !long {
        return Ok(work());
    }
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Failure::new(ErrorCode::Internal, format!("work on a request ended early: {error}")))
}
