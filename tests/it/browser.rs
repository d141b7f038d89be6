//! The protocols of `/v1/ws` and of events as a real browser sees them: Chromium, without a window.
//!
//! A server of the test's own serves the page `tests/clients/browser.html`, whose checks run in the
//! browser, and relays `/v1/` to the real server, because an `EventSource` reads from its page's
//! origin only. The WebSockets go to the real server: the page's origin is one that it allows, and
//! the same page under the name `localhost` is one that it does not.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::sync::{Notify, mpsc};

use crate::support::{Server, skipped};

/// Checks take seconds; a browser that hangs does not end at all.
const TIME_MAX: Duration = Duration::from_secs(240);

/// No sandbox for root; nothing that goes anywhere by itself.
const FLAGS: &[&str] = &[
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
];

/// What the page asks of the test.
#[derive(Debug)]
enum Told {
    /// The server shall stop.
    Stop,
    /// The checks are done.
    Result(Value),
}

/// The test's own server.
struct Site {
    /// The real server.
    server: SocketAddr,
    page: String,
    /// Breaks relayed streams of events off.
    cut: Notify,
    told: mpsc::Sender<Told>,
}

impl Site {
    async fn serve(self: Arc<Self>, listener: TcpListener) {
        while let Ok((stream, _)) = listener.accept().await {
            let site = Arc::clone(&self);
            // A connection that breaks off is the browser's business.
            tokio::runtime::Handle::current().spawn(async move { site.answer(stream).await });
        }
    }

    async fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let (mut request, mut head) = (Vec::new(), None);
        while head.is_none() {
            if stream.read_buf(&mut request).await? == 0 {
                return Ok(());
            }
            head = request.windows(4).position(|four| four == b"\r\n\r\n");
        }
        let head = head.unwrap() + 4;
        let text = String::from_utf8_lossy(&request[..head]).to_ascii_lowercase();
        let path = text.split(' ').nth(1).unwrap_or_default();
        if path.starts_with("/v1/") {
            return self.relay(stream, &request, text.contains("text/event-stream")).await;
        }
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
        let length: usize = field("content-length: ").map_or(0, |length| length.parse().unwrap());
        while request.len() < head + length {
            if stream.read_buf(&mut request).await? == 0 {
                return Ok(());
            }
        }
        let body = match path {
            "/" | "/other" => self.page.as_str(),
            "/cut" | "/stop" | "/result" => "",
            _ => return stream.write_all(b"HTTP/1.1 404 Not Found\r\n\r\n").await,
        };
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\nconnection: close\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(answer.as_bytes()).await?;
        match path {
            "/cut" => self.cut.notify_waiters(),
            "/stop" => self.told.send(Told::Stop).await.unwrap(),
            "/result" => {
                let result = serde_json::from_slice(&request[head..]).unwrap();
                self.told.send(Told::Result(result)).await.unwrap();
            }
            _ => {}
        }
        Ok(())
    }

    /// Hands a connection on to the real server.
    async fn relay(
        &self,
        mut stream: TcpStream,
        request: &[u8],
        is_cut: bool,
    ) -> std::io::Result<()> {
        let mut server = TcpStream::connect(self.server).await?;
        // The connection's next request may be for this site.
        let keep = b"Connection: keep-alive";
        let at = request.windows(keep.len()).position(|bytes| bytes == keep).unwrap();
        server.write_all(&request[..at]).await?;
        server.write_all(b"Connection: close").await?;
        server.write_all(&request[at + keep.len()..]).await?;
        let relaying = copy_bidirectional(&mut stream, &mut server);
        if !is_cut {
            return relaying.await.map(drop);
        }
        tokio::select! {
            relayed = relaying => relayed.map(drop),
            () = self.cut.notified() => Ok(()),
        }
    }
}

/// Starts the browser, if there is one.
fn browser(profile: &Path, url: &str) -> Option<Child> {
    let mut command = Command::new("chromium");
    command.args(FLAGS).arg(format!("--user-data-dir={}", profile.display())).arg(url);
    // Nothing of the person's own who runs the test.
    command.env("HOME", profile).stdin(Stdio::null());
    command.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true).spawn().ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chromium_finds_the_protocols_as_described() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (origin, other) = (format!("http://127.0.0.1:{port}"), format!("http://localhost:{port}"));
    let server = Server::start_tweaked(&[("ws.allowed_origins", &origin)], |config| {
        config.ws.timers.hello = Duration::from_secs(2);
    })
    .await;
    let page = include_str!("../clients/browser.html");
    let page = page.replace("%SERVER%", server.url()).replace("%OTHER%", &other);
    let (told, mut from_page) = mpsc::channel(4);
    let address = server.url().trim_start_matches("http://").parse().unwrap();
    let site = Arc::new(Site { server: address, page, cut: Notify::new(), told });
    let serving = tokio::runtime::Handle::current().spawn(site.serve(listener));
    let profile = tempfile::tempdir().unwrap();
    let Some(mut chromium) = browser(profile.path(), &origin) else {
        skipped("protocols in a browser", "no chromium, see tests/prepare.sh");
        return server.stop().await;
    };
    let mut server = Some(server);
    let checking = async {
        loop {
            match from_page.recv().await.expect("the site serves") {
                Told::Stop => server.take().expect("it is asked once").stop().await,
                Told::Result(result) => return result,
            }
        }
    };
    let result = tokio::time::timeout(TIME_MAX, checking).await.expect("the browser hangs");
    chromium.kill().await.unwrap();
    serving.abort();
    assert_eq!(result["failed"], Value::Null, "{result:#}");
    let last = "a_server_that_stops_says_so_and_closes_with_1001";
    assert_eq!(result["passed"].as_array().unwrap().last().unwrap(), last, "{result:#}");
}
