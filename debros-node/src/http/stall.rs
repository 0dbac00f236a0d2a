//! A stream whose writes fail when the other side stops reading.
//!
//! Only writes are watched: how long a read may take depends on what is awaited (a request's head,
//! a body), and whoever awaits it has its own limit.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// A stream with a limit on how long a write waits for the other side to take anything at all.
pub(super) struct StallTimeout<Stream> {
    stream: Stream,
    limit: Duration,
    timer: Pin<Box<Sleep>>,
    waiting: bool,
}

impl<Stream> StallTimeout<Stream> {
    /// Watches a stream.
    pub(super) fn new(stream: Stream, limit: Duration) -> Self {
        Self { stream, limit, timer: Box::pin(sleep(limit)), waiting: false }
    }

    /// Passes on what became of a write, unless it has waited too long.
    fn watch<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.waiting = false;
            return written;
        }
        if !self.waiting {
            self.waiting = true;
            self.timer.as_mut().reset(Instant::now() + self.limit);
        }
        match self.timer.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("the other side has read nothing for {:?}", self.limit),
            ))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<Stream: AsyncRead + Unpin> AsyncRead for StallTimeout<Stream> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<Stream: AsyncWrite + Unpin> AsyncWrite for StallTimeout<Stream> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.watch(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.watch(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let closed = Pin::new(&mut self.stream).poll_shutdown(context);
        self.watch(context, closed)
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::StallTimeout;

    #[tokio::test(start_paused = true)]
    async fn a_write_to_a_side_that_does_not_read_ends() {
        let (here, _there) = tokio::io::duplex(16);
        let mut stream = StallTimeout::new(here, Duration::from_secs(30));
        let error = stream.write_all(&[0; 17]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_reader_that_goes_on_reading_is_served() {
        let (here, mut there) = tokio::io::duplex(16);
        let mut stream = StallTimeout::new(here, Duration::from_secs(30));
        let reading = tokio::spawn(async move {
            let mut read = Vec::new();
            let mut pace = tokio::time::interval(Duration::from_secs(20));
            while read.len() < 160 {
                pace.tick().await;
                let mut some = [0; 16];
                let count = there.read(&mut some).await.unwrap();
                read.extend_from_slice(&some[..count]);
            }
            read.len()
        });
        stream.write_all(&[0; 160]).await.unwrap();
        assert_eq!(reading.await.unwrap(), 160);
    }
}
