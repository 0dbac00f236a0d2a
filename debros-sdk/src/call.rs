//! One operation against the cluster: whom to ask, when to ask again, when to stop. Knows nodes,
//! deadlines and the retry contract of the wire; knows no message.
//!
//! An operation is sent to one node. When that node fails, the next one is asked at once; when every
//! node was asked, all of them again after a pause. When a node neither answers nor fails for a while
//! and the operation may be sent twice, a second node is asked beside it and the first answer counts.
//!
//! Invariants: an operation that is not [`Plan::repeatable`] is never sent again after an attempt
//! that may have reached a node. [`Failed::ambiguous`] is false only if no attempt can have taken effect.

use std::collections::BTreeSet;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use debros_net::{Lane, OpenError, PeerId, grpc};
use debros_proto::{ErrorCode, Failure, HasHeader, RetryHint, v1};
use tokio::time::{Instant, sleep_until, timeout_at};
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::error::{Error, ErrorKind};
use crate::otel;
use crate::shared::Shared;

/// A connected node that has not answered for so long gets company, where that is allowed. Longer
/// than any usual request, shorter than an election: the node asked then waits for the new leader.
/// The transport itself may take seconds to notice a dead peer.
const PATIENCE_CONNECTED: Duration = Duration::from_millis(500);
/// The same for a node that has to be dialed first: a dial in a data centre takes a few ms.
const PATIENCE_DIALING: Duration = Duration::from_millis(300);
/// Attempts under way at a time: one more than fits a single frozen node.
const ATTEMPTS_UNDER_WAY_MAX: usize = 2;
/// The pause after all nodes were asked: about what an election takes, divided.
const PAUSE_FIRST: Duration = Duration::from_millis(25);
/// Longer would add to an outage that is already over.
const PAUSE_MAX: Duration = Duration::from_millis(250);
/// A node is told to give up this much before the client does, so that its answer still arrives.
const ANSWER_MARGIN_MAX: Duration = Duration::from_millis(200);

/// Where an operation goes.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    /// To the leader of the database where it is known; any node forwards.
    Leader(String),
    /// To any node.
    Any,
    /// To one of these, the first one that is well; any node serves it where none is.
    Replicas {
        peers: Vec<PeerId>,
        /// A second node may be asked while the first one is only slow. Not for a write that each node
        /// stamps anew: a slow one would then be over what was written since.
        hedged: bool,
    },
    /// To this node and no other.
    Node(PeerId),
}

/// How an operation is to be carried out.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) target: Target,
    pub(crate) deadline: Instant,
    /// Sending it twice has the effect of sending it once.
    pub(crate) repeatable: bool,
}

impl Plan {
    fn is_hedged(&self) -> bool {
        self.repeatable && !matches!(self.target, Target::Replicas { hedged: false, .. })
    }
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer<R> {
    pub(crate) value: R,
    /// More than one attempt was needed: what is known of the nodes may be out of date.
    pub(crate) rough: bool,
}

/// An operation that failed for good.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) failure: Failure,
    /// An attempt before or beside the one that failed may have taken effect.
    pub(crate) ambiguous: bool,
    /// Why no node could be reached, when none could.
    unreachable: Option<Error>,
}

impl Failed {
    /// The node answered in words of another version: what it did is not known.
    pub(crate) fn incomprehensible() -> Self {
        let message = "the node's answer is of another version; upgrade this client";
        let failure = Failure::new(ErrorCode::Internal, message);
        Self { failure, ambiguous: true, unreachable: None }
    }

    /// What went wrong, in the words of an application's error.
    fn kind(&self) -> ErrorKind {
        match &self.unreachable {
            Some(unreachable) => unreachable.kind(),
            None => Error::from(self.failure.clone()).kind(),
        }
    }

    /// The error of an operation that changes nothing.
    pub(crate) fn into_read_error(self) -> Error {
        if let Some(unreachable) = self.unreachable {
            return unreachable;
        }
        let mut failure = self.failure;
        failure.maybe_applied = false;
        if failure.code == ErrorCode::UnknownOutcome {
            failure.code = ErrorCode::DeadlineExceeded;
        }
        failure.into()
    }

    /// The error of an operation that changes something.
    pub(crate) fn into_write_error(self) -> Error {
        if let Some(unreachable) = self.unreachable.filter(|_| !self.ambiguous) {
            return unreachable;
        }
        // A malformed or rejected statement is so at every attempt.
        let certain = matches!(self.failure.code, ErrorCode::InvalidArgument | ErrorCode::Sql);
        if (self.ambiguous || self.failure.maybe_applied) && !certain {
            return Error::unknown_outcome(self.failure);
        }
        self.failure.into()
    }
}

/// What an attempt came to.
enum Outcome<R> {
    Answered(R),
    /// The node said no.
    Refused(Failure),
    /// The request never left: the node could not be reached.
    NotSent(OpenError),
    /// The connection broke with the request under way.
    Broken(Failure),
}

fn outcome_of<R>(status: &Status) -> Outcome<R> {
    if let Some(error) = grpc::open_error(status) {
        return Outcome::NotSent(error.clone());
    }
    let mut failure = Failure::from_status(status);
    if !status.details().is_empty() {
        return Outcome::Refused(failure);
    }
    match failure.code {
        ErrorCode::Unavailable | ErrorCode::UnknownOutcome => Outcome::Broken(failure),
        // Requests are measured before they leave: it is the answer that was too large.
        ErrorCode::LimitExceeded => Outcome::Refused(failure.maybe_applied()),
        _ => {
            failure.message = format!("{}; is the node of another version?", failure.message);
            Outcome::Refused(failure)
        }
    }
}

/// The attempts under way. So few that each is polled whenever one of them wakes: a queue of those that
/// were woken wakes its own task once more each time, and then a caller with many operations in one
/// task sends them two by two.
struct UnderWay<F>(Vec<Pin<Box<F>>>);

impl<F: Future> UnderWay<F> {
    /// Waits for ever while nothing is under way.
    fn first_to_end(&mut self) -> impl Future<Output = F::Output> {
        poll_fn(|context| {
            for place in 0..self.0.len() {
                if let Poll::Ready(output) = self.0[place].as_mut().poll(context) {
                    self.0.swap_remove(place);
                    return Poll::Ready(output);
                }
            }
            Poll::Pending
        })
    }
}

/// What to do after an attempt failed.
enum Next {
    GiveUp(Failure),
    /// Ask whoever comes next in line, at once.
    Elsewhere,
    /// Wait, then go through all nodes again.
    Pause(Duration),
}

impl Shared {
    /// Carries out an operation; `send` makes one attempt on a channel, with a copy of the request.
    pub(crate) async fn call<Q, R, S, F>(
        &self,
        plan: &Plan,
        request: &Q,
        send: S,
    ) -> Result<Answer<R>, Failed>
    where
        Q: HasHeader + Clone + Send + Sync,
        S: Fn(Channel, Q) -> F + Sync,
        F: Future<Output = Result<Response<R>, Status>> + Send,
    {
        let send = |peer, request| {
            let response = send(self.channel(peer, Lane::Client), request);
            async move { Ok(response.await?.into_inner()) }
        };
        self.call_peers(plan, request, send).await
    }

    /// Carries out an operation; `send` makes one attempt at a peer, with a copy of the request.
    pub(crate) async fn call_peers<Q, R, S, F>(
        &self,
        plan: &Plan,
        request: &Q,
        send: S,
    ) -> Result<Answer<R>, Failed>
    where
        Q: HasHeader + Clone + Send + Sync,
        S: Fn(PeerId, Q) -> F + Sync,
        F: Future<Output = Result<R, Status>> + Send,
    {
        otel::call(Q::OPERATION, self.namespace().as_str(), self.carry_out(plan, request, send)).await
    }

    async fn carry_out<Q, R, S, F>(&self, plan: &Plan, request: &Q, send: S) -> Result<Answer<R>, Failed>
    where
        Q: HasHeader + Clone + Send + Sync,
        S: Fn(PeerId, Q) -> F + Sync,
        F: Future<Output = Result<R, Status>> + Send,
    {
        let (operation, started) = (self.metrics().operation(Q::OPERATION), Instant::now());
        let mut course = Course::new(self, plan);
        let answer = self.attempt_until_settled(&mut course, plan, request, send).await;
        let error = answer.as_ref().err().map(Failed::kind);
        operation.ended(error, course.attempts, started.elapsed());
        answer
    }

    async fn attempt_until_settled<Q, R, S, F>(
        &self,
        course: &mut Course<'_>,
        plan: &Plan,
        request: &Q,
        send: S,
    ) -> Result<Answer<R>, Failed>
    where
        Q: HasHeader + Clone + Send + Sync,
        S: Fn(PeerId, Q) -> F + Sync,
        F: Future<Output = Result<R, Status>> + Send,
    {
        let sent = AtomicUsize::new(0);
        let mut under_way = UnderWay(Vec::with_capacity(1));
        let mut start_at = Some(Instant::now());
        loop {
            if let Some(at) = start_at
                && at <= Instant::now()
                && under_way.0.len() < ATTEMPTS_UNDER_WAY_MAX
            {
                match course.choose(under_way.0.len()) {
                    Some(peer) => {
                        let attempt = self.attempt(peer, plan.deadline, request.clone(), &send, &sent);
                        under_way.0.push(Box::pin(attempt));
                        start_at = plan.is_hedged().then(|| course.company_at(peer));
                    }
                    None if under_way.0.is_empty() => start_at = Some(course.after_pause(None)),
                    None => start_at = None,
                }
            }
            let wake = start_at.filter(|_| under_way.0.len() < ATTEMPTS_UNDER_WAY_MAX);
            tokio::select! {
                biased;
                (peer, outcome) = under_way.first_to_end() => {
                    let others = sent.load(Ordering::Relaxed) > 0;
                    match course.judge(peer, outcome) {
                        Ok(value) => return Ok(Answer { value, rough: course.attempts > 1 }),
                        Err(Next::GiveUp(failure)) => return Err(course.failed(failure, others)),
                        Err(Next::Elsewhere) => start_at = Some(Instant::now()),
                        Err(Next::Pause(pause)) => start_at = Some(course.after_pause(Some(pause))),
                    }
                }
                () = sleep_until(wake.unwrap_or(plan.deadline).min(plan.deadline)) => {
                    if Instant::now() >= plan.deadline {
                        return Err(course.out_of_time(sent.load(Ordering::Relaxed) > 0));
                    }
                }
                () = self.closed() => {
                    let failure = Failure::new(ErrorCode::ShuttingDown, Error::closed().to_string());
                    let others = sent.load(Ordering::Relaxed) > 0;
                    let mut failed = course.failed(failure, others);
                    failed.unreachable = Some(Error::closed());
                    return Err(failed);
                }
            }
        }
    }

    /// Makes one attempt. `sent` counts the requests of the operation that a node may be working on.
    async fn attempt<Q, R, S, F>(
        &self,
        peer: PeerId,
        deadline: Instant,
        mut request: Q,
        send: &S,
        sent: &AtomicUsize,
    ) -> (PeerId, Outcome<R>)
    where
        Q: HasHeader,
        S: Fn(PeerId, Q) -> F,
        F: Future<Output = Result<R, Status>>,
    {
        if !self.network().is_connected(peer) {
            match timeout_at(deadline, self.network().reach(peer)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return (peer, Outcome::NotSent(error)),
                Err(_) => return (peer, Outcome::NotSent(OpenError::Timeout(grpc::CONNECT_TIMEOUT))),
            }
        }
        let remaining = deadline.saturating_duration_since(Instant::now());
        let patience = remaining - (remaining / 10).min(ANSWER_MARGIN_MAX);
        *request.header_mut() = Some(v1::RequestHeader {
            namespace: self.namespace().as_str().to_owned(),
            epoch: self.epoch(),
            hops: 0,
            timeout_ms: u32::try_from(patience.as_millis()).unwrap_or(u32::MAX).max(1),
        });
        sent.fetch_add(1, Ordering::Relaxed);
        let result = send(peer, request).await;
        sent.fetch_sub(1, Ordering::Relaxed);
        (peer, result.map_or_else(|status| outcome_of(&status), Outcome::Answered))
    }
}

/// The state of one operation between its attempts.
struct Course<'s> {
    shared: &'s Shared,
    plan: &'s Plan,
    tried: BTreeSet<PeerId>,
    attempts: usize,
    rounds: u32,
    ambiguous: bool,
    reached: bool,
    last_failure: Option<Failure>,
    last_open_error: Option<OpenError>,
}

impl<'s> Course<'s> {
    fn new(shared: &'s Shared, plan: &'s Plan) -> Self {
        Self {
            shared,
            plan,
            tried: BTreeSet::new(),
            attempts: 0,
            rounds: 0,
            ambiguous: false,
            reached: false,
            last_failure: None,
            last_open_error: None,
        }
    }

    fn database(&self) -> Option<&str> {
        match &self.plan.target {
            Target::Leader(database) => Some(database),
            Target::Any | Target::Replicas { .. } | Target::Node(_) => None,
        }
    }

    fn choose(&mut self, under_way: usize) -> Option<PeerId> {
        let chosen = match &self.plan.target {
            Target::Node(peer) => (under_way == 0 && !self.tried.contains(peer)).then_some(*peer),
            Target::Replicas { peers, .. } => self.shared.choose_replica(peers, &self.tried),
            Target::Leader(_) | Target::Any => self.shared.choose(self.database(), &self.tried),
        };
        if let Some(peer) = chosen {
            self.tried.insert(peer);
            self.attempts += 1;
        }
        chosen
    }

    /// When a second node is asked beside this one.
    fn company_at(&self, peer: PeerId) -> Instant {
        let connected = self.shared.network().is_connected(peer);
        Instant::now() + if connected { PATIENCE_CONNECTED } else { PATIENCE_DIALING }
    }

    /// Starts a new round through all nodes, after a growing pause with jitter.
    fn after_pause(&mut self, at_least: Option<Duration>) -> Instant {
        self.tried.clear();
        self.shared.ask_for_refresh();
        let pause = PAUSE_FIRST.saturating_mul(1 << self.rounds.min(4)).min(PAUSE_MAX);
        self.rounds += 1;
        let pause = pause.max(at_least.unwrap_or_default());
        Instant::now() + pause.mul_f64(rand::random_range(0.5..1.0))
    }

    fn judge<R>(&mut self, peer: PeerId, outcome: Outcome<R>) -> Result<R, Next> {
        match outcome {
            Outcome::Answered(value) => {
                self.shared.nodes().answered(peer);
                Ok(value)
            }
            Outcome::Refused(failure) => {
                self.reached = true;
                match failure.code {
                    ErrorCode::NotReady => self.shared.nodes().unfit(peer, Instant::now()),
                    ErrorCode::ShuttingDown => self.shared.nodes().failed(peer, Instant::now()),
                    _ => self.shared.nodes().answered(peer),
                }
                Err(self.after_refusal(peer, failure))
            }
            Outcome::NotSent(error) => {
                // A busy lane says nothing against the node.
                if !matches!(error, OpenError::Busy(_)) {
                    self.shared.nodes().failed(peer, Instant::now());
                }
                self.last_open_error = Some(error);
                Err(Next::Elsewhere)
            }
            Outcome::Broken(failure) => {
                self.reached = true;
                self.ambiguous = true;
                self.shared.nodes().failed(peer, Instant::now());
                self.last_failure = Some(failure.clone());
                Err(if self.plan.repeatable { Next::Elsewhere } else { Next::GiveUp(failure) })
            }
        }
    }

    fn after_refusal(&mut self, peer: PeerId, failure: Failure) -> Next {
        // An expired session says what it knows in its code; see `writer`.
        if failure.code == ErrorCode::SessionExpired || failure.retry == RetryHint::RetryNever {
            return Next::GiveUp(failure);
        }
        if failure.maybe_applied {
            self.ambiguous = true;
            if !self.plan.repeatable {
                return Next::GiveUp(failure);
            }
        }
        // The storage's epoch is its layout's, which no header carries.
        if !matches!(self.plan.target, Target::Replicas { .. }) {
            self.shared.raise_epoch(failure.epoch);
        }
        let pause = failure.retry_after;
        let next = match failure.retry {
            RetryHint::RetryElsewhere => self.elsewhere(peer, &failure),
            RetryHint::RetrySame | RetryHint::RetryNever => Next::Pause(pause.unwrap_or_default()),
        };
        self.last_failure = Some(failure);
        next
    }

    fn elsewhere(&mut self, peer: PeerId, failure: &Failure) -> Next {
        if let Some(database) = self.database().map(str::to_owned) {
            self.shared.nodes().does_not_lead(&database, peer);
            self.shared.learn_leader(&database, failure.leader.as_ref());
        }
        failure.retry_after.map_or(Next::Elsewhere, Next::Pause)
    }

    /// `others`: attempts are still under way, and may take effect.
    fn failed(&mut self, failure: Failure, others: bool) -> Failed {
        Failed { failure, ambiguous: self.ambiguous || others, unreachable: None }
    }

    fn out_of_time(&mut self, others: bool) -> Failed {
        let ambiguous = self.ambiguous || others;
        let unreachable = match self.last_open_error.take() {
            Some(error) if !self.reached => Some(unreachable(error)),
            _ => None,
        };
        let failure = match self.last_failure.take() {
            Some(mut last) => {
                last.message =
                    format!("no success before the deadline; the last answer was: {}", last.message);
                last
            }
            None => Failure::new(
                ErrorCode::DeadlineExceeded,
                "no answer before the deadline; give the operation more time, or see `debros health`",
            ),
        };
        Failed { failure, ambiguous, unreachable }
    }
}

/// A connection that could not be had, as an application sees it.
pub(crate) fn unreachable(error: OpenError) -> Error {
    let kind = match &error {
        OpenError::Refused(refusal) if !refusal.is_retryable() => ErrorKind::WrongCluster,
        OpenError::InvalidAddress { .. } | OpenError::WrongPeer { .. } => ErrorKind::InvalidArgument,
        OpenError::ShutDown => ErrorKind::Closed,
        _ => ErrorKind::Unreachable,
    };
    Error::new(kind, error.to_string())
}
