//! The questions of one request to its few replicas, under way together.
//!
//! For a handful of futures it is cheaper to poll all of them at every wake than to keep track of who woke:
//! `FuturesUnordered` allocates for each, and wakes its own task again after it has polled as many as it
//! has, which for three is every time.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

/// Futures of which whoever is ready first is given first.
pub(super) struct Asks<F>(Vec<Pin<Box<F>>>);

impl<F: Future> Asks<F> {
    /// None yet.
    pub(super) fn new() -> Self {
        Self(Vec::with_capacity(4))
    }

    /// One more.
    pub(super) fn push(&mut self, ask: F) {
        self.0.push(Box::pin(ask));
    }

    /// Whether none is under way.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next that is ready; `None` when none is under way.
    pub(super) async fn next(&mut self) -> Option<F::Output> {
        poll_fn(|context| {
            for place in 0..self.0.len() {
                if let Poll::Ready(output) = self.0[place].as_mut().poll(context) {
                    drop(self.0.swap_remove(place));
                    return Poll::Ready(Some(output));
                }
            }
            if self.0.is_empty() { Poll::Ready(None) } else { Poll::Pending }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::Asks;

    #[tokio::test]
    async fn whoever_is_ready_first_comes_first() {
        let mut asks = Asks::new();
        let mut answers = Vec::new();
        for _ in 0..3 {
            let (answer, asked) = oneshot::channel::<u8>();
            asks.push(asked);
            answers.push(answer);
        }
        answers.remove(1).send(7).unwrap();
        assert_eq!(asks.next().await, Some(Ok(7)));
        drop(answers.remove(0));
        assert!(asks.next().await.unwrap().is_err());
        answers.remove(0).send(9).unwrap();
        assert_eq!(asks.next().await, Some(Ok(9)));
        assert_eq!(asks.next().await, None);
        assert!(asks.is_empty());
    }
}
