//! What becomes of a body that its request's handler did not read to the end.
//!
//! A connection that is closed while bytes arrive is reset, and the reset can take the answer away
//! from a client that looks at it only after it has sent everything. So the rest of a body is read
//! and thrown away for a while, whatever made the handler stop: a refusal before the first byte, a
//! limit, the end of a stream.
//!
//! Invariants:
//! - a body that its sender holds back until `100 Continue` is not asked for here;
//! - what is thrown away is bounded in bytes, in time and in silence, and ends with the server.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::header;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;

use crate::api::State;

/// Bytes of a body that are thrown away.
const BYTES_MAX: usize = 256 * 1024 * 1024;

/// How long they are read.
const TIME_MAX: Duration = Duration::from_secs(10);

/// How long their sender may pause. Whoever waits for the answer before sending on has read it.
const SILENCE_MAX: Duration = Duration::from_millis(500);

/// Has the rest of the request's body read once its handler drops it.
pub(crate) fn read_to_its_end(state: &Arc<State>, request: Request) -> Request {
    if request.body().is_end_stream() {
        return request;
    }
    let held_back = request.headers().contains_key(header::EXPECT);
    let state = Arc::clone(state);
    request.map(|body| Body::new(Watched { body: Some(body), held_back, state }))
}

/// A body that knows whether it was read to its end.
struct Watched {
    /// `None` after its end.
    body: Option<Body>,
    /// Whether its sender waits to be asked for it.
    held_back: bool,
    state: Arc<State>,
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.held_back = false;
        let Some(body) = self.body.as_mut() else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(context);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            self.body = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let Some(body) = self.body.take().filter(|body| !body.is_end_stream()) else { return };
        let tasks = &self.state.tasks;
        // A connection that ends with its runtime has nobody left to run the task.
        if self.held_back || tasks.is_stopping() || tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        let stop = tasks.stop_token();
        tasks.spawn(async move {
            let discarding = tokio::time::timeout(TIME_MAX, discard(body));
            // Whoever is slower than this learns it from the closed connection.
            let _cut_off = stop.run_until_cancelled(discarding).await;
        });
    }
}

async fn discard(mut body: Body) {
    let mut discarded = 0;
    while discarded < BYTES_MAX {
        match tokio::time::timeout(SILENCE_MAX, body.frame()).await {
            Ok(Some(Ok(frame))) => discarded += frame.data_ref().map_or(0, Bytes::len),
            Ok(None | Some(Err(_))) | Err(_) => return,
        }
    }
}
