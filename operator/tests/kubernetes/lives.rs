//! An operator's life: so many calls, of Kubernetes and of nodes alike, and it is ended in the midst of the last one:
//! the call has its effect, and nobody hears the answer. Meanwhile somebody else writes what it is about to write.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use async_trait::async_trait;
use http::header::CONTENT_TYPE;
use http::{Method, Request, Response};
use kube::client::Body;
use operator::nodes::{Answers, Leave, NodeError, Nodes, Place};
use operator::observed::PodId;
use serde_json::json;
use tower::{BoxError, Layer, Service};

use crate::support::Cluster;

/// Counts down to the end.
#[derive(Clone)]
pub(crate) struct Life {
    left: Arc<AtomicI64>,
    made: Arc<AtomicU64>,
}

impl Life {
    /// A life of so many calls.
    pub(crate) fn of(calls: i64) -> Self {
        Self { left: Arc::new(AtomicI64::new(calls)), made: Arc::default() }
    }

    /// One that does not end.
    pub(crate) fn endless() -> Self {
        Self::of(i64::MAX)
    }

    /// Whether it has ended.
    pub(crate) fn is_over(&self) -> bool {
        self.left.load(Ordering::SeqCst) <= 0
    }

    /// Calls that were made.
    pub(crate) fn made(&self) -> u64 {
        self.made.load(Ordering::SeqCst)
    }

    /// Whether a call may be made at all, and whether its answer is heard.
    fn call(&self) -> (bool, bool) {
        let left = self.left.fetch_sub(1, Ordering::SeqCst);
        if left > 0 {
            self.made.fetch_add(1, Ordering::SeqCst);
        }
        (left > 0, left > 1)
    }
}

/// Every n-th time that a StatefulSet is written, somebody else has written it since it was read: a real conflict.
const MEDDLED_EVERY: u64 = 4;

/// Somebody else who writes StatefulSets.
#[derive(Clone)]
pub(crate) struct Meddler {
    client: kube::Client,
    writes: Arc<AtomicU64>,
}

impl Meddler {
    /// Writes through a client of its own.
    pub(crate) fn new(client: kube::Client) -> Self {
        Self { client, writes: Arc::default() }
    }

    /// Whether it comes before this call, and where it writes.
    fn precedes(&self, request: &Request<Body>) -> Option<String> {
        let path = request.uri().path();
        let is_write = request.method() == Method::PATCH && path.contains("/statefulsets/");
        let turn = is_write && self.writes.fetch_add(1, Ordering::SeqCst) % MEDDLED_EVERY == 1;
        turn.then(|| path.to_owned())
    }

    async fn write(&self, path: String) {
        let note = json!({ "metadata": { "annotations": {
            "tests/writes": self.writes.load(Ordering::SeqCst).to_string(),
        } } });
        let request = Request::patch(path)
            .header(CONTENT_TYPE, "application/merge-patch+json")
            .body(note.to_string().into_bytes())
            .expect("a request");
        // It may be gone.
        let _ = self.client.request_text(request).await;
    }
}

/// What an operator's client passes through.
#[derive(Clone)]
pub(crate) struct Mortality {
    pub(crate) life: Life,
    pub(crate) meddler: Meddler,
}

impl<S> Layer<S> for Mortality {
    type Service = Mortal<S>;

    fn layer(&self, inner: S) -> Mortal<S> {
        Mortal { inner, mortality: self.clone() }
    }
}

/// A client's calls within a life.
#[derive(Clone)]
pub(crate) struct Mortal<S> {
    inner: S,
    mortality: Mortality,
}

impl<S, B> Service<Request<Body>> for Mortal<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: 'static,
{
    type Response = Response<B>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<B>, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Mortality { life, meddler } = self.mortality.clone();
        let (made, heard) = life.call();
        if !made {
            return Box::pin(async { Err("the operator has ended".into()) });
        }
        let meddled = meddler.precedes(&request);
        // Nothing is sent before it is awaited.
        let answer = self.inner.call(request);
        Box::pin(async move {
            if let Some(path) = meddled {
                meddler.write(path).await;
            }
            let answer = answer.await.map_err(Into::into)?;
            if heard { Ok(answer) } else { Err("the operator ended before it heard the answer".into()) }
        })
    }
}

/// The nodes in memory, asked within a life.
pub(crate) struct MortalNodes {
    pub(crate) cluster: Arc<Mutex<Cluster>>,
    pub(crate) life: Life,
}

impl MortalNodes {
    fn call<T>(&self, work: impl FnOnce(&mut Cluster) -> Result<T, NodeError>) -> Result<T, NodeError> {
        let over = || NodeError::NotNow("the operator has ended".to_owned());
        let (made, heard) = self.life.call();
        if !made {
            return Err(over());
        }
        let done = work(&mut self.cluster.lock().expect("not poisoned"));
        if heard { done } else { Err(over()) }
    }
}

#[async_trait]
impl Nodes for MortalNodes {
    async fn look(&self, place: &Place) -> Result<Answers, NodeError> {
        // To look changes nothing, so there is nothing to be swept.
        let mut answers = self.cluster.lock().expect("not poisoned").answers();
        answers.nodes.retain(|id, _| place.pods.iter().any(|pod| pod.id == *id));
        Ok(answers)
    }

    async fn initialise(&self, _: &Place, pod: PodId) -> Result<String, NodeError> {
        self.call(|cluster| cluster.initialise(pod).map_err(NodeError::NotNow))
    }

    async fn leave(&self, _: &Place, node_id: u64) -> Result<Leave, NodeError> {
        self.call(|cluster| {
            let out = cluster.leave(node_id).map_err(NodeError::NotNow)?;
            Ok(if out { Leave::Done } else { Leave::UnderWay })
        })
    }

    async fn hand_over(&self, _: &Place, pod: PodId) -> Result<(), NodeError> {
        self.call(|cluster| {
            cluster.hand_over(pod);
            Ok(())
        })
    }

    async fn set_log_level(&self, _: &Place, _: PodId, _: &str) -> Result<(), NodeError> {
        self.call(|_| Ok(()))
    }

    async fn forget(&self, _: &str) {}
}
