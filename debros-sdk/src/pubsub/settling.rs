//! What somebody waits for and somebody else settles, once. Any number may wait.

use std::sync::OnceLock;

use debros_proto::Failure;
use tokio::sync::Notify;

/// See the module.
#[derive(Debug)]
pub(crate) struct Settling<T> {
    outcome: OnceLock<Result<T, Failure>>,
    told: Notify,
}

impl<T> Default for Settling<T> {
    fn default() -> Self {
        Self { outcome: OnceLock::new(), told: Notify::new() }
    }
}

impl<T> Settling<T> {
    /// Settles it, unless it is.
    pub(crate) fn settle(&self, outcome: Result<T, Failure>) {
        if self.set(outcome) {
            self.tell();
        }
    }

    /// Settles it, unless it is, and leaves it to the caller to tell those who wait.
    pub(crate) fn set(&self, outcome: Result<T, Failure>) -> bool {
        self.outcome.set(outcome).is_ok()
    }

    /// Wakes those who wait.
    pub(crate) fn tell(&self) {
        self.told.notify_waiters();
    }

    /// Waits until it is settled.
    pub(crate) async fn settled(&self) -> &Result<T, Failure> {
        loop {
            let told = self.told.notified();
            tokio::pin!(told);
            told.as_mut().enable();
            if let Some(outcome) = self.outcome.get() {
                return outcome;
            }
            told.await;
        }
    }
}
