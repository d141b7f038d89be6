//! A server of this process on a free port with a directory of its own, and answers read whole.

use std::path::Path;
use std::time::Duration;

use eddyline::clock::SystemClock;
use eddyline::config::{self, Config, Machine};
use eddyline::server;
use eddyline::storage::fs::sim::SimFs;
use eddyline::storage::fs::{RealFs, SharedFs};
use reqwest::{Client, Method, RequestBuilder, StatusCode};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// What every test's machine has, so that defaults do not depend on where it runs.
const MACHINE: Machine = Machine { cores: 2, open_files_limit: 4096, memory_bytes: 4 << 30 };

/// Pause between two looks of [`eventually`].
const POLL_EVERY: Duration = Duration::from_millis(20);

/// When it is set and not empty, a test that this machine does not allow fails.
const NO_SKIP: &str = "EDDYLINE_NO_SKIP";

/// A running server. Stop it at a test's end, so that a failure to stop fails the test.
pub(crate) struct Server {
    url: String,
    client: Client,
    stop: oneshot::Sender<()>,
    running: JoinHandle<Result<(), server::Error>>,
    directory: TempDir,
}

impl Server {
    /// Starts a server with the default settings on an empty directory.
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts a server with some settings on an empty directory.
    pub(crate) async fn start_with(settings: &[(&str, &str)]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), settings).await
    }

    /// Starts a server with some settings on a directory that may hold what another one left.
    pub(crate) async fn start_in(directory: TempDir, settings: &[(&str, &str)]) -> Self {
        let config = config_for(&directory, settings);
        Self::run(&config, directory, RealFs::shared()).await
    }

    /// Starts a server whose configuration no settings can describe.
    pub(crate) async fn start_tweaked(
        settings: &[(&str, &str)],
        tweak: impl FnOnce(&mut Config),
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut config = config_for(&directory, settings);
        tweak(&mut config);
        Self::run(&config, directory, RealFs::shared()).await
    }

    /// Starts a server whose log, segments and checkpoints are on a simulated disk.
    pub(crate) async fn start_on(
        fs: &SimFs,
        directory: TempDir,
        settings: &[(&str, &str)],
    ) -> Self {
        let config = config_for(&directory, settings);
        fs.shared().create_dir_all(&config.data_dir).unwrap();
        Self::run(&config, directory, fs.shared()).await
    }

    async fn run(config: &Config, directory: TempDir, fs: SharedFs) -> Self {
        let listener = TcpListener::bind(config.listen).await.unwrap();
        let clock = SystemClock::shared();
        let server = server::Server::start_on(config, listener, fs, clock).await.unwrap();
        let url = format!("http://{}", server.address());
        let (stop, stopped) = oneshot::channel();
        let serving = server.serve(async move {
            let _ = stopped.await;
        });
        let running = tokio::runtime::Handle::current().spawn(serving);
        Self { url, client: Client::new(), stop, running, directory }
    }

    /// Returns where the server listens, without a slash at the end.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Starts a request to a path.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url))
    }

    /// Returns the directory with the data.
    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Stops the server in order.
    pub(crate) async fn stop(self) {
        self.halt().await.close().unwrap();
    }

    /// Stops the server in order and keeps its directory.
    pub(crate) async fn halt(self) -> TempDir {
        drop(self.client);
        let _ = self.stop.send(());
        self.running.await.unwrap().unwrap();
        self.directory
    }
}

fn config_for(directory: &TempDir, settings: &[(&str, &str)]) -> Config {
    let mut set =
        vec![format!("data_dir={}", directory.path().display()), "listen=127.0.0.1:0".to_owned()];
    // A later setting wins.
    set.extend(settings.iter().map(|(key, value)| format!("{key}={value}")));
    let sources = config::Sources { set, ..config::Sources::default() };
    config::load(&sources, MACHINE).unwrap().config
}

/// Asks again and again until `found` returns something; panics after a minute.
pub(crate) async fn eventually<T>(what: &str, mut found: impl AsyncFnMut() -> Option<T>) -> T {
    let polling = async {
        loop {
            if let Some(found) = found().await {
                return found;
            }
            tokio::time::sleep(POLL_EVERY).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), polling)
        .await
        .unwrap_or_else(|_| panic!("waited in vain: {what}"))
}

/// Says that a test is skipped, or fails it where nothing may be.
pub(crate) fn skipped(what: &str, why: &str) {
    use std::io::Write as _;
    let may_be = std::env::var_os(NO_SKIP).is_none_or(|set| set.is_empty());
    assert!(may_be, "{NO_SKIP} is set and there is no {what}: {why}");
    // What `eprintln` prints is shown only of tests that fail.
    let _ = writeln!(std::io::stderr(), "SKIPPED {what}: {why}");
}

/// An answer with its whole body.
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    headers: reqwest::header::HeaderMap,
    body: String,
}

impl Reply {
    /// Sends a request and reads the answer.
    pub(crate) async fn of(request: RequestBuilder) -> Self {
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        Self { status, headers, body: response.text().await.unwrap() }
    }

    /// Returns the body.
    pub(crate) fn text(&self) -> &str {
        &self.body
    }

    /// Reads the body as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// Returns a header, if it is there and text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}
