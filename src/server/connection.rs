//! Connections: how many there are at a time, and how long one may be stuck.
//!
//! Invariants:
//! - every connection holds a place from before it is accepted to its end, so that connections
//!   never take the descriptors that the log and the segments need;
//! - a client that takes nothing of what is ready for it, and sends nothing either, loses its
//!   connection after a while: what waits for it holds memory. Most clients read no answer before
//!   they have sent everything, so whoever still sends is not stuck; what he is owed has bounds of
//!   its own. A connection on which there is nothing to send is not concerned.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

use crate::api::Flushes;

/// The places that connections take.
#[derive(Debug)]
pub(super) struct Places {
    free: Arc<Semaphore>,
    count: usize,
    /// Whether it was said that there is none left, since half of them were last free.
    is_told: bool,
}

/// A connection's place.
#[derive(Debug)]
pub(super) struct Place(#[expect(dead_code, reason = "gives the place back")] OwnedSemaphorePermit);

impl Places {
    pub(super) fn new(count: usize) -> Self {
        let count = count.min(Semaphore::MAX_PERMITS);
        Self { free: Arc::new(Semaphore::new(count)), count, is_told: false }
    }

    /// Waits for a free place and then for a connection; those beyond wait in the kernel.
    ///
    /// # Errors
    /// The operating system's.
    ///
    /// # Cancel safety
    /// Safe: no connection is accepted and lost.
    pub(super) async fn accept(
        &mut self,
        listener: &TcpListener,
    ) -> io::Result<(TcpStream, Place)> {
        let free = self.free.available_permits();
        if free == 0 && !self.is_told {
            tracing::warn!(connections = self.count, "no more connections are accepted for now");
            self.is_told = true;
        } else if free > self.count / 2 {
            self.is_told = false;
        }
        // The semaphore is never closed.
        let place = Arc::clone(&self.free).acquire_owned().await.map_err(io::Error::other)?;
        let (stream, _) = listener.accept().await?;
        Ok((stream, Place(place)))
    }
}

/// A stream whose writes fail when the other side has neither taken nor sent anything for a while.
#[derive(Debug)]
pub(super) struct Paced<S> {
    stream: S,
    stall_max: Duration,
    /// When the write that waits gives up; made for the first that has to.
    deadline: Option<Pin<Box<Sleep>>>,
    /// A write waits, and nothing has arrived since it was looked at.
    is_waiting: bool,
    flushes: Flushes,
}

impl<S> Paced<S> {
    pub(super) fn new(stream: S, stall_max: Duration, flushes: Flushes) -> Self {
        Self { stream, stall_max, deadline: None, is_waiting: false, flushes }
    }

    /// Looks at the clock where a write has to wait.
    fn pace<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.is_waiting = false;
            return written;
        }
        let until = Instant::now() + self.stall_max;
        let deadline =
            self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        if !std::mem::replace(&mut self.is_waiting, true) {
            deadline.as_mut().reset(until);
        }
        ready!(deadline.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            // The next look at a write that waits begins its time anew.
            self.is_waiting = false;
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.pace(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.pace(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Of TCP there is nothing to flush: all that was written before is in the socket.
        self.flushes.note();
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures_util::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const STALL_MAX: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_takes_nothing_ends_the_write() {
        let (near, _far) = tokio::io::duplex(100);
        let mut near = Paced::new(near, STALL_MAX, Flushes::default());
        let error = near.write_all(&[0; 1000]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_is_slow_gets_everything() {
        let (near, mut far) = tokio::io::duplex(100);
        let mut near = Paced::new(near, STALL_MAX, Flushes::default());
        let reading = async {
            let mut some = [0; 50];
            for _ in 0..20 {
                tokio::time::sleep(STALL_MAX * 2 / 3).await;
                far.read_exact(&mut some).await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(near.write_all(&[0; 1000]), reading);
        written.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_sender_that_reads_nothing_is_not_stuck_while_it_sends() {
        let (near, mut far) = tokio::io::duplex(100);
        let mut near = Paced::new(near, STALL_MAX, Flushes::default());
        let mut sent = 0;
        let mut received = 0;
        let mut sending = Box::pin(async {
            for _ in 0..10 {
                tokio::time::sleep(STALL_MAX * 2 / 3).await;
                far.write_all(b"line").await.unwrap();
            }
        });
        let mut is_sending = true;
        // As a connection does it: whatever happens, it reads and then goes on writing.
        let error = poll_fn(|context| {
            loop {
                is_sending = is_sending && sending.as_mut().poll(context).is_pending();
                let mut some = [0; 100];
                let mut buffer = ReadBuf::new(&mut some);
                let read = Pin::new(&mut near).poll_read(context, &mut buffer);
                received += buffer.filled().len();
                match Pin::new(&mut near).poll_write(context, &[0; 1000]) {
                    Poll::Ready(Ok(count)) => sent += count,
                    Poll::Ready(Err(error)) => return Poll::Ready(error),
                    Poll::Pending if read.is_pending() => return Poll::Pending,
                    Poll::Pending => {}
                }
            }
        });
        let error = error.await;
        assert_eq!((sent, received), (100, 40), "all that it sent was read");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "when it fell silent, it was stuck");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_no_stall() {
        let (near, mut far) = tokio::io::duplex(100);
        let mut near = Paced::new(near, STALL_MAX, Flushes::default());
        for _ in 0..3 {
            near.write_all(b"event").await.unwrap();
            far.read_exact(&mut [0; 5]).await.unwrap();
            tokio::time::sleep(STALL_MAX * 10).await;
        }
    }

    #[tokio::test]
    async fn connections_beyond_the_places_wait_until_one_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut places = Places::new(2);
        let mut clients = Vec::new();
        let mut served = Vec::new();
        for _ in 0..2 {
            clients.push(TcpStream::connect(address).await.unwrap());
            served.push(places.accept(&listener).await.unwrap());
        }
        clients.push(TcpStream::connect(address).await.unwrap());
        let mut waits = std::pin::pin!(places.accept(&listener));
        assert!(waits.as_mut().now_or_never().is_none());
        served.pop();
        waits.await.unwrap();
    }
}
