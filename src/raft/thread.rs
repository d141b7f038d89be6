//! The thread of a shard: a single-threaded runtime for its core, its `apply` and its proposer, so
//! that a slow request handler can delay neither heartbeats nor acknowledgements.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

/// A running thread with its runtime. Work is spawned through the group's handle of the runtime.
#[derive(Debug)]
pub struct Thread {
    stop: Arc<Notify>,
    joined: Mutex<Option<JoinHandle<()>>>,
}

impl Thread {
    /// Starts a thread, runs `open` on its runtime and returns what it opened. The runtime then
    /// drives what `open` spawned until [`Thread::join`].
    ///
    /// # Errors
    /// The one of `open`, or `failed` of the reason why the thread did not start.
    pub async fn start<T, E, F, O>(
        name: String,
        open: O,
        failed: impl Fn(io::Error) -> E + Send + 'static,
    ) -> Result<(Self, T), E>
    where
        T: Send + 'static,
        E: Send + 'static,
        F: Future<Output = Result<T, E>>,
        O: FnOnce() -> F + Send + 'static,
    {
        let (opened, ready) = oneshot::channel();
        let stop = Arc::new(Notify::new());
        let stopping = Arc::clone(&stop);
        let body = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            match runtime {
                Ok(runtime) => runtime.block_on(async {
                    let result = open().await;
                    let goes_on = result.is_ok();
                    if opened.send(result.map_err(Ok)).is_ok() && goes_on {
                        stopping.notified().await;
                    }
                }),
                Err(error) => drop(opened.send(Err(Err(error)))),
            }
        };
        let joined = match std::thread::Builder::new().name(name).spawn(body) {
            Ok(joined) => joined,
            Err(error) => return Err(failed(error)),
        };
        match ready.await {
            Ok(Ok(opened)) => Ok((Self { stop, joined: Mutex::new(Some(joined)) }, opened)),
            Ok(Err(Ok(error))) => Err(error),
            Ok(Err(Err(error))) => Err(failed(error)),
            Err(_ended) => Err(failed(io::Error::other("the thread ended while it started"))),
        }
    }

    /// Ends the runtime with everything spawned on it, and waits for the thread.
    pub async fn join(&self) {
        self.stop.notify_one();
        let joined = self.joined.lock().take();
        if let Some(joined) = joined {
            // A panic of the thread was reported when it happened; there is nothing to add.
            drop(tokio::task::spawn_blocking(move || joined.join()).await);
        }
    }
}
