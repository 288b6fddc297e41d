//! A connection whose client takes nothing of what it is sent is given up: its memory, its place and the file that
//! it is sent are somebody else's then. A client that is slow but takes something goes on.
//!
//! Two things can fill up. The connection itself, when the client doesn't read: [`Watched`] notices that nothing
//! could be written. And one stream of an HTTP/2 connection, when the client reads but opens no window for it: that
//! is noticed where the answer's body is asked for ([`super::answer`]), and told to the connection by [`Stall`].

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// How long a client may take nothing. Clones are of one connection.
#[derive(Debug, Clone)]
pub(super) struct Stall {
    /// So long.
    pub(super) time_max: Duration,
    /// Canceled when the connection is given up.
    pub(super) given_up: CancellationToken,
}

impl Stall {
    /// That of a new connection.
    pub(super) fn new(time_max: Duration) -> Self {
        Self { time_max, given_up: CancellationToken::new() }
    }
}

/// A connection that is given up when nothing of what is to be written could be for too long.
#[derive(Debug)]
pub(super) struct Watched<S> {
    stream: S,
    time_max: Duration,
    /// When it is given up, while it can't be written.
    due: Pin<Box<Sleep>>,
    is_full: bool,
    given_up: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl<S> Watched<S> {
    pub(super) fn new(stream: S, stall: &Stall) -> Self {
        Self {
            stream,
            time_max: stall.time_max,
            due: Box::pin(tokio::time::sleep(stall.time_max)),
            is_full: false,
            given_up: Box::pin(stall.given_up.clone().cancelled_owned()),
        }
    }

    /// Whether the connection goes on.
    fn goes_on(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.given_up.as_mut().poll(context) {
            Poll::Ready(()) => Err(stalled()),
            Poll::Pending => Ok(()),
        }
    }

    fn written<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.is_full = false;
            return written;
        }
        if !std::mem::replace(&mut self.is_full, true) {
            self.due.as_mut().reset(Instant::now() + self.time_max);
        }
        self.due.as_mut().poll(context).map(|()| Err(stalled()))
    }
}

fn stalled() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the client took nothing of what it was sent for too long")
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.goes_on(context)?;
        pin!(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.goes_on(context)?;
        let written = pin!(&mut self.stream).poll_write(context, bytes);
        self.written(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.goes_on(context)?;
        let written = pin!(&mut self.stream).poll_write_vectored(context, slices);
        self.written(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        pin!(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        pin!(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn a_client_that_reads_nothing_is_given_up_and_one_that_reads_a_little_is_not() {
        let stall = Stall::new(Duration::from_millis(20));
        let (ours, mut theirs) = tokio::io::duplex(16);
        let mut watched = Watched::new(ours, &stall);
        let refused = watched.write_all(&[0; 17]).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::TimedOut);
        // What it reads makes room, and the time begins again.
        assert_eq!(theirs.read(&mut [0; 16]).await.unwrap(), 16);
        watched.write_all(&[0; 16]).await.unwrap();
        assert_eq!(theirs.read(&mut [0; 1]).await.unwrap(), 1);
        watched.write_all(&[0]).await.unwrap();
    }

    #[tokio::test]
    async fn a_connection_that_is_given_up_is_neither_read_nor_written() {
        let stall = Stall::new(Duration::from_secs(60));
        let (ours, _theirs) = tokio::io::duplex(16);
        let mut watched = Watched::new(ours, &stall);
        let read = async { watched.read(&mut [0; 1]).await };
        let (read, ()) = tokio::join!(read, async { stall.given_up.cancel() });
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::TimedOut, "whoever waits is told");
        assert!(watched.write(&[0]).await.is_err());
    }
}
