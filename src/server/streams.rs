//! HTTP/2 streams: what many requests on one connection hold, and how long one may be stuck.
//!
//! On HTTP/1 a client that takes nothing shows where its socket is written. On HTTP/2 every stream
//! has a window of its own: the socket may flow and PINGs may be answered while an answer waits for
//! ever for its client to make room.
//!
//! Invariants:
//! - every stream is charged until its answer has gone; one of events only until it begins, its
//!   buffers have bounds of their own;
//! - an answer is handed to the connection in small pieces, and the end of each part alone: that is
//!   taken only when the client has made room for all before it, so that nothing of an answer waits
//!   in the connection when the stream's task has ended;
//! - a stream for whose answer its client makes no room for a while is reset, the others of its
//!   connection go on.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderMap, Version, header};
use axum::response::Response;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::service::Service;
use tokio::task::futures::TaskLocalFuture;
use tokio::time::{Instant, Sleep};

use crate::api;
use crate::tasks::Tracker;

/// Bytes that the connection is handed at a time: a frame's.
const PIECE_BYTES: usize = 16 * 1024;

/// Parts of an answer up to this size are handed over in one piece.
const SMALL_BYTES: usize = 1024;

/// What begins the content type of a stream of events.
const EVENT_STREAM: &[u8] = b"text/event-stream";

tokio::task_local! {
    /// How far the answer of the stream that the task serves has come.
    static PROGRESS: Arc<Progress>;
}

/// How far a stream's answer has come.
#[derive(Debug, Default)]
struct Progress {
    pieces: AtomicU64,
    /// The last piece was not taken yet, as far as its maker knows.
    is_waiting: AtomicBool,
}

/// Runs the streams of HTTP/2 connections, each as a task.
#[derive(Debug, Clone)]
pub(super) struct Streams {
    tasks: Tracker,
    stall_max: Duration,
}

impl Streams {
    /// Runs streams that may be stuck for `stall_max`.
    pub(super) fn new(tasks: &Tracker, stall_max: Duration) -> Self {
        Self { tasks: tasks.clone(), stall_max }
    }
}

impl<F> Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        self.tasks.spawn(Paced::new(future, self.stall_max));
    }
}

/// A stream that ends when its answer is stuck. Its end resets it.
struct Paced<F> {
    stream: Pin<Box<TaskLocalFuture<Arc<Progress>, F>>>,
    progress: Arc<Progress>,
    stall_max: Duration,
    /// When it gives up; made for the first piece that has to wait.
    deadline: Option<Pin<Box<Sleep>>>,
    /// The piece that it waits for.
    waits_for: Option<u64>,
}

impl<F: Future> Paced<F> {
    fn new(stream: F, stall_max: Duration) -> Self {
        let progress = Arc::new(Progress::default());
        let stream = Box::pin(PROGRESS.scope(Arc::clone(&progress), stream));
        Self { stream, progress, stall_max, deadline: None, waits_for: None }
    }
}

impl<F: Future> Future for Paced<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.stream.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        let me = &mut *self;
        if !me.progress.is_waiting.load(Ordering::Relaxed) {
            me.waits_for = None;
            return Poll::Pending;
        }
        let piece = me.progress.pieces.load(Ordering::Relaxed);
        let until = Instant::now() + me.stall_max;
        let deadline = me.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        if me.waits_for.replace(piece) != Some(piece) {
            deadline.as_mut().reset(until);
        }
        ready!(deadline.as_mut().poll(context));
        tracing::debug!("a stream's client made no room for its answer");
        Poll::Ready(())
    }
}

/// The faces, as one connection serves them.
#[derive(Debug, Clone)]
pub(super) struct Faces {
    service: api::Service,
    memory: api::Memory,
}

impl Faces {
    pub(super) fn new(service: api::Service, memory: &api::Memory) -> Self {
        Self { service, memory: memory.clone() }
    }
}

impl Service<hyper::Request<Incoming>> for Faces {
    type Response = Response;
    type Error = Infallible;
    type Future = Answering;

    fn call(&self, request: hyper::Request<Incoming>) -> Answering {
        if request.version() != Version::HTTP_2 {
            return Answering { answer: self.service.call(request), charge: None };
        }
        match self.memory.stream() {
            Some(charge) => Answering { answer: self.service.call(request), charge: Some(charge) },
            None => {
                let refusal = api::Service::overloaded(request);
                Answering { answer: Box::pin(std::future::ready(Ok(refusal))), charge: None }
            }
        }
    }
}

/// An answer on its way.
pub(super) struct Answering {
    answer: <api::Service as Service<hyper::Request<Incoming>>>::Future,
    charge: Option<api::Charge>,
}

impl Future for Answering {
    type Output = Result<Response, Infallible>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Ok(answer) = ready!(self.answer.as_mut().poll(context));
        let Ok(progress) = PROGRESS.try_with(Arc::clone) else { return Poll::Ready(Ok(answer)) };
        let charge = self.charge.take().filter(|_| !is_of_events(answer.headers()));
        let pieces =
            |body| Body::new(Pieces { body, part: Bytes::new(), progress, _charge: charge });
        Poll::Ready(Ok(answer.map(pieces)))
    }
}

fn is_of_events(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(EVENT_STREAM))
}

/// An answer's body, handed over in pieces.
struct Pieces {
    body: Body,
    /// What is left of the last part that the body gave.
    part: Bytes,
    progress: Arc<Progress>,
    _charge: Option<api::Charge>,
}

impl Pieces {
    /// Takes the next piece out of the part.
    fn next_piece(&mut self) -> Bytes {
        let bytes = self.part.len();
        let piece = if bytes <= SMALL_BYTES { bytes } else { PIECE_BYTES.min(bytes - 1) };
        self.part.split_to(piece)
    }
}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let me = &mut *self;
        // Whoever asks has taken the last piece.
        me.progress.is_waiting.store(false, Ordering::Relaxed);
        if me.part.is_empty() {
            match ready!(Pin::new(&mut me.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => me.part = data,
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                end => return Poll::Ready(end),
            }
        }
        me.progress.pieces.fetch_add(1, Ordering::Relaxed);
        me.progress.is_waiting.store(true, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(me.next_piece()))))
    }

    fn is_end_stream(&self) -> bool {
        self.part.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, part) = (self.body.size_hint(), self.part.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + part);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + part);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{StreamExt, stream};
    use http_body_util::BodyExt;
    use proptest::prelude::*;
    use tokio::sync::mpsc;

    use super::*;

    const STALL_MAX: Duration = Duration::from_secs(10);

    fn pieces(parts: Vec<Bytes>) -> Pieces {
        let parts = stream::iter(parts.into_iter().map(Ok::<_, Infallible>));
        let progress = PROGRESS.try_with(Arc::clone).unwrap_or_default();
        Pieces { body: Body::from_stream(parts), part: Bytes::new(), progress, _charge: None }
    }

    proptest! {
        #[test]
        fn pieces_are_small_and_are_the_answer(
            parts in proptest::collection::vec(0_usize..5 * PIECE_BYTES, 0..5),
        ) {
            let parts: Vec<Bytes> =
                parts.into_iter().map(|bytes| (0..=255).cycle().take(bytes).collect()).collect();
            let whole = parts.concat();
            let read = async {
                let (mut body, mut read) = (pieces(parts), Vec::new());
                while let Some(frame) = body.frame().await {
                    let piece = frame.unwrap().into_data().unwrap();
                    assert!(piece.len() <= PIECE_BYTES);
                    read.push(piece);
                }
                read
            };
            let read = futures_util::FutureExt::now_or_never(read).unwrap();
            prop_assert_eq!(read.concat(), whole);
        }
    }

    #[test]
    fn the_length_is_that_of_what_is_left() {
        let body = Body::from(vec![0; 3 * PIECE_BYTES]);
        let progress = Arc::default();
        let mut body = Pieces { body, part: Bytes::new(), progress, _charge: None };
        let mut left = 3 * PIECE_BYTES as u64;
        assert_eq!(body.size_hint().exact(), Some(left));
        while let Some(Some(frame)) = futures_util::FutureExt::now_or_never(body.frame()) {
            left -= frame.unwrap().into_data().unwrap().len() as u64;
            assert_eq!(body.size_hint().exact(), Some(left));
            assert_eq!(body.is_end_stream(), left == 0);
        }
        assert_eq!(left, 0);
    }

    /// Serves an answer as a connection does, that hands on a piece for each room that is made.
    /// Returns whether all of it was taken.
    async fn serve(answer: impl Fn() -> Pieces + Send + 'static, pauses: Vec<Duration>) -> bool {
        let (room, mut rooms) = mpsc::channel::<()>(1);
        let (done, mut is_done) = mpsc::channel(1);
        let connection = async move {
            let mut body = answer();
            while body.frame().await.is_some() {
                rooms.recv().await;
            }
            done.send(()).await.unwrap();
        };
        let client = async {
            for pause in pauses {
                tokio::time::sleep(pause).await;
                let _ = room.send(()).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = Paced::new(connection, STALL_MAX) => {}
            () = client => {}
        }
        is_done.recv().await.is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_gets_no_room_ends_and_a_slow_one_does_not() {
        let answer = || pieces(vec![Bytes::from(vec![0; 2 * PIECE_BYTES])]);
        let slow = vec![STALL_MAX * 2 / 3; 3];
        assert!(serve(answer, slow).await);
        let stuck = vec![STALL_MAX * 2 / 3, STALL_MAX * 4 / 3, STALL_MAX];
        assert!(!serve(answer, stuck).await);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_has_nothing_to_send_is_not_stuck() {
        let answer = || {
            let events = stream::unfold(0, |count| async move {
                tokio::time::sleep(STALL_MAX * 5).await;
                (count < 3).then_some((Ok::<_, Infallible>("event"), count + 1))
            });
            let progress = PROGRESS.with(Arc::clone);
            let body = Body::from_stream(events.boxed());
            Pieces { body, part: Bytes::new(), progress, _charge: None }
        };
        assert!(serve(answer, vec![STALL_MAX / 10; 3]).await);
    }
}
