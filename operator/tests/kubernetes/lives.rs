//! An operator's life: so many calls, of Kubernetes and of nodes alike, and it is ended in the midst of the last one:
//! the call has its effect, and nobody hears the answer.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use async_trait::async_trait;
use http::{Request, Response};
use kube::client::Body;
use operator::nodes::{Answers, Leave, NodeError, Nodes, Place};
use operator::observed::PodId;
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

impl<S> Layer<S> for Life {
    type Service = Mortal<S>;

    fn layer(&self, inner: S) -> Mortal<S> {
        Mortal { inner, life: self.clone() }
    }
}

/// A client's calls within a life.
#[derive(Clone)]
pub(crate) struct Mortal<S> {
    inner: S,
    life: Life,
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
        let (made, heard) = self.life.call();
        if !made {
            return Box::pin(async { Err("the operator has ended".into()) });
        }
        let answer = self.inner.call(request);
        Box::pin(async move {
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
