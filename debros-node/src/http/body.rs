//! Reads a request's body: within a limit, within a time, and within a budget of memory that all
//! requests of a listener share.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use axum::http::{HeaderMap, header};
use debros_proto::{ErrorCode, Failure, limits};
use futures::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A client that takes longer to send a body is given up: 16 MiB in this time is a slow modem.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// Of a body that is too long this much is read and thrown away: most clients send all of it before
/// they look at the answer, and would see a broken connection instead of the reason.
const DISCARDED_BYTES_MAX: usize = 4 * limits::REQUEST_BYTES_MAX;
/// And no longer than this.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(10);
/// Bodies held in memory at once, over all requests; past it the answer is `BUSY`. Four of the
/// largest, and what is made of them, fit into the memory of a small node.
const BODY_BYTES_UNDER_WAY_MAX: usize = 4 * limits::REQUEST_BYTES_MAX;
/// The budget is counted in units of this size, so that small requests cost next to nothing.
const BUDGET_UNIT_BYTES: usize = 4 << 10;

/// The memory that bodies may take.
#[derive(Clone)]
pub(super) struct BodyBudget(Arc<Semaphore>);

/// A body, and its share of the budget until it is dropped.
pub(super) struct Held {
    pub(super) bytes: Vec<u8>,
    _share: OwnedSemaphorePermit,
}

impl Default for BodyBudget {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(BODY_BYTES_UNDER_WAY_MAX / BUDGET_UNIT_BYTES)))
    }
}

impl BodyBudget {
    /// Reads a whole body.
    ///
    /// # Errors
    /// `LIMIT_EXCEEDED` for a longer one, `BUSY` past the budget, `DEADLINE_EXCEEDED` for a slow
    /// sender, `INVALID_ARGUMENT` for one that broke off.
    pub(super) async fn read(&self, headers: &HeaderMap, body: Body) -> Result<Held, Failure> {
        let declared = declared_bytes(headers);
        if let Some(bytes) = declared.filter(|bytes| *bytes > limits::REQUEST_BYTES_MAX) {
            // One that waits to be told to go on has sent nothing yet.
            if !headers.contains_key(header::EXPECT) {
                discard(&mut body.into_data_stream()).await;
            }
            return Err(too_long(bytes));
        }
        // A body of unknown length may turn out to be the longest.
        let reserved = declared.unwrap_or(limits::REQUEST_BYTES_MAX);
        let units = u32::try_from(reserved.div_ceil(BUDGET_UNIT_BYTES)).unwrap_or(u32::MAX);
        let share = self.0.clone().try_acquire_many_owned(units).map_err(|_| busy())?;
        let read = tokio::time::timeout(BODY_TIMEOUT, collect(body, declared.unwrap_or(0))).await;
        let bytes = read.map_err(|_| {
            Failure::new(
                ErrorCode::DeadlineExceeded,
                format!("the body did not arrive within {BODY_TIMEOUT:?}: nothing was done; send it again"),
            )
        })??;
        Ok(Held { bytes, _share: share })
    }
}

async fn collect(body: Body, capacity: usize) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::with_capacity(capacity);
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| Failure::invalid(format!("the body broke off: {error}")))?;
        let found = bytes.len() + chunk.len();
        if found > limits::REQUEST_BYTES_MAX {
            drop(bytes);
            discard(&mut chunks).await;
            return Err(too_long(found));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// Reads and throws away, within bounds.
async fn discard(chunks: &mut BodyDataStream) {
    let all = async {
        let mut left = DISCARDED_BYTES_MAX;
        while let Some(Ok(chunk)) = chunks.next().await {
            match left.checked_sub(chunk.len()) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    };
    // Whatever is left closes the connection.
    let _ = tokio::time::timeout(DISCARD_TIMEOUT, all).await;
}

fn declared_bytes(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn too_long(bytes: usize) -> Failure {
    Failure::limit("REQUEST_BYTES_MAX", limits::REQUEST_BYTES_MAX, bytes)
}

fn busy() -> Failure {
    Failure::new(
        ErrorCode::Busy,
        format!("requests of {BODY_BYTES_UNDER_WAY_MAX} bytes are under way on this node: retry"),
    )
    .with_retry_after(Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::{HeaderMap, HeaderValue, header};
    use debros_proto::{ErrorCode, limits};

    use super::BodyBudget;

    fn declared(bytes: usize) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes));
        headers
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_refused_before_it_is_read() {
        let budget = BodyBudget::default();
        let long = limits::REQUEST_BYTES_MAX + 1;
        let refused = budget.read(&declared(long), Body::empty()).await.err().expect("refused");
        assert_eq!(refused.code, ErrorCode::LimitExceeded);
        assert!(refused.message.contains("REQUEST_BYTES_MAX"), "{}", refused.message);
        let undeclared =
            budget.read(&HeaderMap::new(), Body::from(vec![0; long])).await.err().expect("refused");
        assert_eq!(undeclared.code, ErrorCode::LimitExceeded);
    }

    #[tokio::test]
    async fn bodies_share_a_budget_that_they_give_back() {
        let budget = BodyBudget::default();
        let mut held = Vec::new();
        let refused = loop {
            match budget.read(&HeaderMap::new(), Body::from("x")).await {
                Ok(body) => held.push(body),
                Err(failure) => break failure,
            }
            assert!(held.len() < 1000, "the budget is never used up");
        };
        assert_eq!(refused.code, ErrorCode::Busy);
        held.clear();
        assert_eq!(budget.read(&declared(1), Body::from("x")).await.expect("room again").bytes, b"x");
    }
}
