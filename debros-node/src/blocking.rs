//! The seam through which all blocking storage work passes.
//!
//! Production runs it on threads; a simulation runs it inline, after a seeded simulated delay, so
//! that a run replays to the packet. Code above this seam never spawns a thread and never calls
//! `spawn_blocking` of its own.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

/// Where blocking work runs.
#[derive(Clone)]
pub enum Blocking {
    /// tokio's blocking pool for reads, a thread of its own for each owned writer.
    Threads,
    /// On the reactor, after the delay that the function draws: simulation only.
    Inline(Arc<dyn Fn() -> Duration + Send + Sync>),
}

/// The sending half of an owned writer's queue.
pub struct Jobs<J>(mpsc::Sender<J>);

impl<J> Clone for Jobs<J> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// The owned writer is gone: the node is shutting down, or a failed disk has ended it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the storage worker has stopped")]
pub struct Stopped;

impl<J: Send + 'static> Jobs<J> {
    /// Jobs that wait.
    pub fn waiting(&self) -> usize {
        self.0.max_capacity() - self.0.capacity()
    }

    /// Queues a job, waiting while the queue is full.
    ///
    /// # Errors
    /// [`Stopped`] when the worker has ended.
    pub async fn send(&self, job: J) -> Result<(), Stopped> {
        self.0.send(job).await.map_err(|_| Stopped)
    }

    /// Queues a job if there is room.
    ///
    /// # Errors
    /// Gives the job back when the queue is full or the worker has ended.
    pub fn try_send(&self, job: J) -> Result<(), J> {
        self.0.try_send(job).map_err(|error| match error {
            mpsc::error::TrySendError::Full(job) | mpsc::error::TrySendError::Closed(job) => job,
        })
    }
}

impl Blocking {
    /// Runs one piece of blocking work and gives its result.
    pub fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> impl Future<Output = T> + Send + 'static {
        let blocking = self.clone();
        async move {
            match blocking {
                Self::Threads => match tokio::task::spawn_blocking(work).await {
                    Ok(value) => value,
                    Err(error) => match error.try_into_panic() {
                        Ok(panic) => std::panic::resume_unwind(panic),
                        // The runtime is going down and takes this task with it.
                        Err(_) => std::future::pending().await,
                    },
                },
                Self::Inline(delay) => {
                    simulated(&*delay).await;
                    work()
                }
            }
        }
    }

    /// Starts a serial worker that owns `state`. Each call of `work` gets everything queued since
    /// the last one, up to `batch_max` jobs. It ends, dropping `state`, when all [`Jobs`] are gone
    /// or `work` says `false`.
    pub fn worker<S, J>(
        &self,
        name: &str,
        (queue_max, batch_max): (usize, usize),
        mut state: S,
        mut work: impl FnMut(&mut S, &mut Vec<J>) -> bool + Send + 'static,
    ) -> Jobs<J>
    where
        S: Send + 'static,
        J: Send + 'static,
    {
        let (sender, mut receiver) = mpsc::channel::<J>(queue_max);
        match self.clone() {
            Self::Threads => {
                let body = move || {
                    let mut batch = Vec::with_capacity(batch_max);
                    while let Some(job) = receiver.blocking_recv() {
                        batch.push(job);
                        while batch.len() < batch_max
                            && let Ok(job) = receiver.try_recv()
                        {
                            batch.push(job);
                        }
                        if !work(&mut state, &mut batch) {
                            return;
                        }
                        batch.clear();
                    }
                };
                std::thread::Builder::new()
                    .name(name.to_owned())
                    .spawn(body)
                    .expect("the operating system refused a thread for storage");
            }
            Self::Inline(delay) => {
                tokio::spawn(async move {
                    let mut batch = Vec::new();
                    while receiver.recv_many(&mut batch, batch_max).await > 0 {
                        simulated(&*delay).await;
                        // The queue went on filling: group commit happens in simulation too.
                        while batch.len() < batch_max
                            && let Ok(job) = receiver.try_recv()
                        {
                            batch.push(job);
                        }
                        if !work(&mut state, &mut batch) {
                            return;
                        }
                        batch.clear();
                    }
                });
            }
        }
        Jobs(sender)
    }
}

async fn simulated(delay: &(dyn Fn() -> Duration + Send + Sync)) {
    let delay = delay();
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
}
