//! A place for an engine that only a member has: filled when the node has become one, and closed to whoever asks when
//! it is one no more or has stopped. Knows no engine.

use std::sync::Arc;

use debros_proto::{ErrorCode, Failure};
use tokio::sync::watch;

/// The place. Cheap to clone.
pub struct Slot<T>(Arc<watch::Sender<State<T>>>);

enum State<T> {
    Empty,
    Serving(T),
    /// The engine must not be asked, for this reason.
    Refusing(T, Failure),
    /// The node stops.
    Closed,
}

impl<T> Clone for Slot<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(State::Empty)))
    }
}

impl<T: Clone> Slot<T> {
    /// Fills the place, unless it was closed: a node may become a member while it stops.
    pub fn fill(&self, engine: T) {
        self.0.send_if_modified(|state| {
            let open = !matches!(state, State::Closed);
            if open {
                *state = State::Serving(engine);
            }
            open
        });
    }

    /// Empties it for good, so that the engine can end.
    pub fn close(&self) {
        self.0.send_replace(State::Closed);
    }

    /// Refuses whoever asks from now on, for a reason; or serves again when there is none.
    pub fn set_refused(&self, reason: Option<Failure>) {
        self.0.send_if_modified(|state| {
            let next = match (&*state, reason) {
                (State::Serving(engine), Some(reason)) => State::Refusing(engine.clone(), reason),
                (State::Refusing(engine, _), None) => State::Serving(engine.clone()),
                (State::Refusing(..), Some(_))
                | (State::Serving(_), None)
                | (State::Empty | State::Closed, _) => {
                    return false;
                }
            };
            *state = next;
            true
        });
    }

    /// Resolves when whoever asks is refused.
    pub async fn refused(self) {
        let mut state = self.0.subscribe();
        // A place that is gone refuses everybody.
        let _ = state.wait_for(|state| !matches!(state, State::Serving(_))).await;
    }

    /// The engine, also when it refuses: for who looks at it, not for who asks it.
    pub fn peek(&self) -> Option<T> {
        match &*self.0.borrow() {
            State::Serving(engine) | State::Refusing(engine, _) => Some(engine.clone()),
            State::Empty | State::Closed => None,
        }
    }

    /// The engine.
    ///
    /// # Errors
    /// `NOT_READY` before the node is a member, and after it has stopped; the reason when it refuses.
    pub fn get(&self) -> Result<T, Failure> {
        match &*self.0.borrow() {
            State::Serving(engine) => Ok(engine.clone()),
            State::Refusing(_, reason) => Err(reason.clone()),
            State::Empty => {
                let message = "this node has not joined a cluster yet: retry in a moment";
                Err(Failure::new(ErrorCode::NotReady, message))
            }
            State::Closed => {
                let message = "this node is stopping: another one will serve this";
                Err(Failure::new(ErrorCode::NotReady, message))
            }
        }
    }
}
