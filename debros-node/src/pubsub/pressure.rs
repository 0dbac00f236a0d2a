//! Namespaces whose subscriptions here have much waiting, as the node on the other side of a link is told.
//!
//! A link carries the messages of all namespaces, so it waits for nobody: the publishers on its other side do, those of
//! the namespace alone, each from its own budget ([`super::queue::Patience`]).

use std::collections::BTreeSet;
use std::sync::Arc;

use debros_proto::limits;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tokio::time::timeout;

use super::queue::Queue;

/// What one link is told of.
#[derive(Default)]
pub(super) struct Pressure {
    namespaces: BTreeSet<Arc<str>>,
    /// Of each, a subscription that has much waiting: it has room, or took nothing for as long as that is waited for.
    waits: FuturesUnordered<BoxFuture<'static, Arc<str>>>,
}

impl Pressure {
    /// A subscription of a namespace has much waiting. Says whether the other side does not know of any.
    pub(super) fn add(&mut self, namespace: &Arc<str>, queue: Arc<Queue>) -> bool {
        let is_new = self.namespaces.insert(namespace.clone());
        if is_new {
            let namespace = namespace.clone();
            let wait = async move {
                let _ = timeout(limits::PRESSURE_LIFE, queue.room()).await;
                namespace
            };
            self.waits.push(wait.boxed());
        }
        is_new
    }

    /// The next namespace that has room again; `None` when none has much waiting.
    pub(super) async fn eased(&mut self) -> Option<Arc<str>> {
        let namespace = self.waits.next().await?;
        self.namespaces.remove(&namespace);
        Some(namespace)
    }
}
