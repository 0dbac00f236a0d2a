//! The heartbeat on a connection's role stream: tells a dead or frozen peer from a quiet one.
//!
//! Ping takes 12 s to report a frozen peer, hides its first failure and closes nothing; QUIC takes
//! its idle timeout. A byte every half second, both ways, tells within two.
//!
//! Invariant: only the peer's silence counts. A process that was itself stalled (paused, starved of
//! CPU) finds its own timer late; it gives the peer another turn instead of dropping every
//! connection at once.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::io::{ReadHalf, WriteHalf};
use futures::{AsyncReadExt, AsyncWriteExt};
use libp2p::Stream;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep, sleep_until};

use crate::host::address_book::LastHeard;

/// How often each side says that it lives.
const BEAT_INTERVAL: Duration = Duration::from_millis(500);
/// Silence that counts as death.
const SILENCE_MAX: Duration = Duration::from_secs(2);
/// A timer that fires this late says that this process was stalled.
const STALL: Duration = Duration::from_millis(250);

const BEAT: u8 = 0;
const SELECTED: u8 = 1;

/// Why a heartbeat ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The peer fell silent.
    Silent,
    /// The stream ended, and with it the connection.
    Closed,
}

/// Beats and listens until the peer is gone. Tells `selected` when the peer selects this connection,
/// and the peer when `select` is notified.
pub(super) async fn run(
    stream: Stream,
    select: Arc<Notify>,
    selected: oneshot::Sender<()>,
    heard: LastHeard,
) -> Ended {
    let (reader, writer) = stream.split();
    let mut beat = pin!(beat(writer, select));
    let mut listen = pin!(listen(reader, selected, heard));
    tokio::select! {
        ended = &mut listen => ended,
        ended = &mut beat => ended,
    }
}

async fn beat(mut writer: WriteHalf<Stream>, select: Arc<Notify>) -> Ended {
    loop {
        let byte = tokio::select! {
            () = select.notified() => SELECTED,
            () = sleep(BEAT_INTERVAL) => BEAT,
        };
        if write(&mut writer, byte).await.is_err() {
            // What has arrived already still counts: the listening half decides.
            std::future::pending::<()>().await;
        }
    }
}

async fn write(writer: &mut WriteHalf<Stream>, byte: u8) -> std::io::Result<()> {
    writer.write_all(&[byte]).await?;
    writer.flush().await
}

async fn listen(mut reader: ReadHalf<Stream>, selected: oneshot::Sender<()>, heard: LastHeard) -> Ended {
    let mut selected = Some(selected);
    let mut bytes = [0; 16];
    loop {
        let Some(count) = unless_silent(reader.read(&mut bytes)).await else { return Ended::Silent };
        let Ok(count @ 1..) = count else { return Ended::Closed };
        heard.now();
        if bytes[..count].contains(&SELECTED)
            && let Some(selected) = selected.take()
        {
            // Nobody waits any more when the connection is being closed.
            let _ = selected.send(());
        }
    }
}

/// What the future gives, or nothing when it stays silent too long while this process runs.
async fn unless_silent<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut deadline = Instant::now() + SILENCE_MAX;
    loop {
        tokio::select! {
            biased;
            value = &mut future => return Some(value),
            () = sleep_until(deadline) => {
                if deadline.elapsed() < STALL {
                    return None;
                }
                deadline = Instant::now() + SILENCE_MAX;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn silence_ends_it_after_two_seconds() {
        let start = Instant::now();
        assert_eq!(unless_silent(std::future::pending::<()>()).await, None);
        assert_eq!(start.elapsed().as_secs(), SILENCE_MAX.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stall_of_this_process_is_not_the_peers_silence() {
        let mut waiting = tokio_test_task(unless_silent(std::future::pending::<()>()));
        assert!(futures::poll!(&mut waiting).is_pending());
        // The clock leaps while nothing runs, as after a pause of the process.
        tokio::time::advance(SILENCE_MAX * 3).await;
        assert!(futures::poll!(&mut waiting).is_pending());
        tokio::time::advance(SILENCE_MAX).await;
        assert!(futures::poll!(&mut waiting).is_ready());
    }

    fn tokio_test_task<F: Future>(future: F) -> std::pin::Pin<Box<F>> {
        Box::pin(future)
    }
}
