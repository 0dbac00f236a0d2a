//! Keeps a session attached to some node, as long as the client is open. Reads everything at once, so that
//! nobody's slowness is another's; decides where to go next and when, and knows nothing of messages.

use std::sync::Arc;
use std::time::Duration;

use debros_net::{Lane, PeerId};
use debros_proto::v1;
use futures::task::AtomicWaker;
use tokio::time::{Instant, sleep};
use tonic::{Status, Streaming};

use super::session::Session;
use crate::call::{Failed, Plan, Target};
use crate::error::{Error, ErrorKind};
use crate::rpc;
use crate::shared::Shared;

/// The pause after a node ended a session in which it had said nothing, or that it had refused; doubled each time.
const PAUSE_FIRST: Duration = Duration::from_millis(25);
/// Longer would add to an outage that is over.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Runs until the client is closed.
pub(crate) async fn run(shared: Arc<Shared>, session: Arc<Session>) {
    tokio::select! {
        () = shared.closed() => {}
        () = keep_attached(&shared, &session) => {}
    }
    session.close();
}

async fn keep_attached(shared: &Shared, session: &Arc<Session>) {
    let mut barren = 0_u32;
    loop {
        match attach(shared, session).await {
            Ok(attached) => {
                let peer = attached.peer;
                let lively = attached.serve(session).await;
                session.detached();
                shared.nodes().failed(peer, Instant::now());
                shared.ask_for_refresh();
                barren = if lively { 0 } else { barren.saturating_add(1) };
            }
            Err(failed) => {
                let failure = failed.failure.clone();
                let error: Error = failed.into_read_error();
                tracing::debug!(%error, "no node serves pub/sub");
                if error.kind() == ErrorKind::Closed {
                    return;
                }
                if error.is_retryable() {
                    barren = barren.saturating_add(1);
                } else {
                    session.fail(&failure);
                    session.wanted().await;
                }
            }
        }
        if barren > 0 {
            let pause = PAUSE_FIRST.saturating_mul(1 << barren.min(8)).min(PAUSE_MAX);
            sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
        }
    }
}

/// A session at a node.
struct Attached {
    peer: PeerId,
    number: u64,
    waker: Arc<AtomicWaker>,
    events: Streaming<v1::SessionEvent>,
    attached: v1::Attached,
}

async fn attach(shared: &Shared, session: &Arc<Session>) -> Result<Attached, Failed> {
    let plan = Plan { target: Target::Any, deadline: shared.deadline(None), repeatable: true };
    let attach = v1::Attach::default();
    let answer = shared.call_peers(&plan, &attach, |peer, attach| {
        let channel = shared.channel(peer, Lane::Client);
        let (number, calls) = session.begin(attach);
        let waker = calls.waker();
        async move {
            let (events, attached) = rpc::session(channel, calls).await?;
            Ok::<_, Status>(Attached { peer, number, waker, events, attached })
        }
    });
    Ok(answer.await?.value)
}

impl Attached {
    /// Until the session ends; says whether anything came, and the node had nothing against it.
    async fn serve(self, session: &Session) -> bool {
        let Self { peer, number, waker, mut events, attached } = self;
        tracing::debug!(%peer, node = attached.node_id, "attached");
        session.attached(number, waker, &attached);
        let mut lively = false;
        loop {
            let failure = match events.message().await {
                Ok(Some(event)) => match session.take(event) {
                    Ok(()) => {
                        lively = true;
                        continue;
                    }
                    Err(failure) => {
                        lively = false;
                        failure.to_string()
                    }
                },
                Ok(None) => "the node ended it".to_owned(),
                Err(status) => status.message().to_owned(),
            };
            tracing::debug!(%peer, failure, "the session is over; another node goes on");
            return lively;
        }
    }
}
