//! A server in this process, on a disk that the test chooses.
//!
//! What the operating system must see (the lock, the identity, the SQL view) stays in a real
//! directory; all else is on the disk that is given.

use std::path::Path;

use eddyline::clock::SystemClock;
use eddyline::config::{self, Machine};
use eddyline::server::{Error, Server};
use eddyline::storage::fs::SharedFs;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::load::PATIENCE;

const MACHINE: Machine = Machine { cores: 2, open_files_limit: 4096, memory_bytes: 4 << 30 };

/// A running server.
pub(crate) struct Inside {
    url: String,
    stop: oneshot::Sender<()>,
    running: JoinHandle<Result<(), Error>>,
}

impl Inside {
    /// Starts a server with its data in `dir`.
    pub(crate) async fn start(fs: SharedFs, dir: &Path, settings: &[&str]) -> Result<Self, Error> {
        let mut set: Vec<String> = settings.iter().map(|&setting| setting.to_owned()).collect();
        set.push(format!("data_dir={}", dir.display()));
        set.push("listen=127.0.0.1:0".to_owned());
        let sources = config::Sources { set, ..config::Sources::default() };
        let config = config::load(&sources, MACHINE).unwrap().config;
        let listener = TcpListener::bind(config.listen).await.unwrap();
        let server = Server::start_on(&config, listener, fs, SystemClock::shared()).await?;
        let url = format!("http://{}", server.address());
        let (stop, stopped) = oneshot::channel();
        let serving = server.serve(async move {
            // A test that drops this wants the server to end, too.
            let _ = stopped.await;
        });
        let running = tokio::runtime::Handle::current().spawn(serving);
        Ok(Self { url, stop, running })
    }

    /// Where it is reached.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Waits until it ends by itself and returns why.
    pub(crate) async fn ended(self) -> Result<(), Error> {
        let ended = tokio::time::timeout(PATIENCE, self.running).await;
        ended.expect("the server goes on").unwrap()
    }

    /// Asks it to stop, and returns how it ended.
    pub(crate) async fn asked_to_stop(self) -> Result<(), Error> {
        let _ = self.stop.send(());
        let ended = tokio::time::timeout(PATIENCE, self.running).await;
        ended.expect("the server goes on").unwrap()
    }

    /// Stops it in order.
    pub(crate) async fn stop(self) {
        let _ = self.stop.send(());
        self.running.await.unwrap().unwrap();
    }
}
