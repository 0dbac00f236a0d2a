//! How often a leader tells a follower what is committed.
//!
//! openraft would tell it at once, with a frame of its own after nearly every entry: as many messages
//! again as the entries need, and one transaction of the follower for each. A commit that is told later
//! is safe at any time (Raft paper, section 5.3: a follower learns of it with some later AppendEntries),
//! so a session tells the newest one every [`COMMIT_INTERVAL`], with an entry where one is on its way.

use std::time::Duration;

use debros_proto::v1;
use futures::{Stream, StreamExt};
use tokio::time::Instant;

/// A follower applies at most this much later than it could. Its reads are stale by that; nobody waits
/// for it.
const COMMIT_INTERVAL: Duration = Duration::from_millis(5);

/// The frames of one session, with fewer commits in them. The first goes as it is: openraft probes with
/// it. When `frames` end, what was held back is told as the last thing.
pub(super) fn pace_commits(
    frames: impl Stream<Item = v1::AppendFrame> + Send + Unpin + 'static,
) -> impl Stream<Item = v1::AppendFrame> + Send + 'static {
    let pace = Pace { frames: frames.fuse(), told: None, held: None };
    futures::stream::unfold(pace, |mut pace| async move {
        let frame = pace.next().await?;
        Some((frame, pace))
    })
}

struct Pace<Frames> {
    frames: Frames,
    told: Option<Told>,
    held: Option<Held>,
}

/// The commit that was told last.
struct Told {
    commit: Option<v1::LogId>,
    at: Instant,
    /// A frame without entries, as this session sends it.
    empty: v1::AppendFrame,
}

/// A commit to be told, behind everything that was sent before.
struct Held {
    commit: Option<v1::LogId>,
    previous: Option<v1::LogId>,
}

impl<Frames: Stream<Item = v1::AppendFrame> + Unpin> Pace<Frames> {
    async fn next(&mut self) -> Option<v1::AppendFrame> {
        loop {
            let next = match (&self.held, &self.told) {
                (Some(_), Some(told)) => tokio::select! {
                    biased;
                    next = self.frames.next() => next,
                    () = tokio::time::sleep_until(told.at + COMMIT_INTERVAL) => None,
                },
                _ => self.frames.next().await,
            };
            let Some(frame) = next else {
                // Time is up, or nothing follows.
                return self.tell_held();
            };
            if let Some(frame) = self.pass(frame) {
                return Some(frame);
            }
        }
    }

    /// Takes the commit out of a frame that comes too early to tell it; `None` when nothing is left.
    fn pass(&mut self, mut frame: v1::AppendFrame) -> Option<v1::AppendFrame> {
        let now = Instant::now();
        let Some(told) = &mut self.told else {
            let empty =
                v1::AppendFrame { route: frame.route.clone(), vote: frame.vote, ..Default::default() };
            self.told = Some(Told { commit: frame.leader_commit, at: now, empty });
            return Some(frame);
        };
        if frame.leader_commit == told.commit {
            return Some(frame);
        }
        if now >= told.at + COMMIT_INTERVAL {
            (told.commit, told.at) = (frame.leader_commit, now);
            self.held = None;
            return Some(frame);
        }
        let commit = std::mem::replace(&mut frame.leader_commit, told.commit);
        let previous = frame.entries.last().map_or(frame.previous, |entry| entry.log_id);
        self.held = Some(Held { commit, previous });
        (!frame.entries.is_empty()).then_some(frame)
    }

    fn tell_held(&mut self) -> Option<v1::AppendFrame> {
        let (Held { commit, previous }, told) = (self.held.take()?, self.told.as_mut()?);
        (told.commit, told.at) = (commit, Instant::now());
        Some(v1::AppendFrame { previous, leader_commit: commit, ..told.empty.clone() })
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::ReceiverStream;

    use super::*;

    fn log_id(index: u64) -> Option<v1::LogId> {
        Some(v1::LogId { index, ..Default::default() })
    }

    /// A frame with the entries after `previous` up to `last`.
    fn frame(previous: u64, last: u64, commit: u64) -> v1::AppendFrame {
        let entries =
            (previous + 1..=last).map(|index| v1::Entry { log_id: log_id(index), ..Default::default() });
        v1::AppendFrame {
            route: Some(v1::Route { group: 7, ..Default::default() }),
            previous: log_id(previous),
            entries: entries.collect(),
            leader_commit: log_id(commit),
            ..Default::default()
        }
    }

    /// Where a frame ends, how many entries it has, and what it says is committed.
    fn gist(frame: &v1::AppendFrame) -> (u64, usize, u64) {
        assert_eq!(frame.route.as_ref().map(|route| route.group), Some(7), "every frame says where it goes");
        let index = |log_id: &Option<v1::LogId>| log_id.as_ref().map_or(0, |log_id| log_id.index);
        let end = frame.entries.last().map_or(&frame.previous, |entry| &entry.log_id);
        (index(end), frame.entries.len(), index(&frame.leader_commit))
    }

    #[tokio::test(start_paused = true)]
    async fn commits_in_quick_succession_are_told_once_and_the_last_one_in_time() {
        let (sender, frames) = mpsc::channel(8);
        let mut paced = Box::pin(pace_commits(ReceiverStream::new(frames)));
        for frame in [frame(4, 4, 3), frame(4, 5, 3), frame(5, 5, 5), frame(5, 6, 5), frame(6, 6, 6)] {
            sender.try_send(frame).expect("there is room");
        }
        let begun = Instant::now();
        let mut seen = Vec::new();
        for _ in 0..4 {
            seen.push(gist(&paced.next().await.expect("frames go on")));
        }
        assert_eq!(seen, [(4, 0, 3), (5, 1, 3), (6, 1, 3), (6, 0, 6)]);
        assert_eq!(begun.elapsed().as_millis(), COMMIT_INTERVAL.as_millis());

        tokio::time::advance(COMMIT_INTERVAL).await;
        sender.try_send(frame(6, 7, 6)).expect("there is room");
        sender.try_send(frame(7, 7, 7)).expect("there is room");
        assert_eq!(gist(&paced.next().await.expect("frames go on")), (7, 1, 6));
        assert_eq!(gist(&paced.next().await.expect("frames go on")), (7, 0, 7), "told at once after a pause");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_held_back_is_told_when_the_session_ends() {
        let frames = futures::stream::iter([frame(4, 4, 3), frame(4, 6, 5)]);
        let paced: Vec<_> = pace_commits(frames).map(|frame| gist(&frame)).collect().await;
        assert_eq!(paced, [(4, 0, 3), (6, 2, 3), (6, 0, 5)]);
    }
}
