//! The accept loop and the connections' limits.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};

use crate::api;
use crate::config::Config;
use crate::server::connection::{Paced, Place, Places};
use crate::server::streams::{Faces, Streams};
use crate::tasks::Tracker;

/// What an HTTP/2 connection begins with.
const H2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Pause between two looks at a preface of which a part has come.
const PREFACE_PAUSE: Duration = Duration::from_millis(20);
/// Streams of one HTTP/2 connection.
const H2_STREAMS_MAX: u32 = 256;
/// Streams that a client may have reset before they were looked at; one more ends its connection.
const H2_RESETS_MAX: usize = 20;
/// Streams that were reset because of what their client sent; one more ends its connection.
const H2_FAULTS_MAX: usize = 128;
/// Bytes of one stream's answer that wait for the socket.
const H2_SEND_BYTES_MAX: usize = 64 * 1024;
/// How long a client may take to answer a PING.
const H2_PING_MAX: Duration = Duration::from_secs(20);
/// Pause after the operating system refused a connection (out of descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Returns the bounds of requests as configured.
pub(super) fn limits(config: &Config) -> api::Config {
    let bytes = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
    api::Config {
        max_body_bytes: bytes(config.http.max_body_bytes),
        max_records: config.http.max_records,
        max_line_bytes: bytes(config.http.max_line_bytes),
        report_buffer_bytes: bytes(config.http.report_buffer_bytes),
        memory_bytes: bytes(config.http.memory_bytes),
        request_timeout: config.http.request_timeout,
        max_connections: config.http.max_connections,
        timers: config.http.timers,
        ws: api::ws::Config {
            linger: config.ws.linger,
            max_subscriptions: config.ws.max_subscriptions,
            allowed_origins: config.ws.allowed_origins.clone(),
            timers: config.ws.timers,
            ..api::ws::Config::default()
        },
    }
}

/// Serves until `stop` completes, then lets open requests end until the deadline. Returns what
/// `stop` returned.
pub(super) async fn serve<T>(
    listener: TcpListener,
    state: &Arc<api::State>,
    tasks: &Tracker,
    stop: impl Future<Output = T>,
    deadline: Duration,
) -> T {
    let service = api::Service::new(state);
    let timers = state.config.timers;
    let builder = builder(timers, Streams::new(tasks, timers.answer_stall));
    let graceful = GracefulShutdown::new();
    let mut places = Places::new(state.config.max_connections);
    let mut stop = std::pin::pin!(stop);
    let reason = loop {
        tokio::select! {
            accepted = places.accept(&listener) => match accepted {
                Ok((stream, place)) => {
                    let connection = (stream, place);
                    let flushes = api::Flushes::default();
                    let service = service.of_connection(flushes.clone());
                    let faces = (Faces::new(service, &state.memory), flushes);
                    serve_connection(connection, faces, (&builder, timers), (&graceful, tasks));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            reason = &mut stop => break reason,
        }
    };
    drop(listener);
    tasks.stop();
    if tokio::time::timeout(deadline, graceful.shutdown()).await.is_err() {
        tracing::warn!("connections were still open at the deadline");
    }
    reason
}

/// Configures connections. `pipeline_flush` stays off: with it hyper buffers answers without a
/// bound, so that a client which does not read (events, reports of a stream) would fill the memory.
fn builder(timers: api::Timers, streams: Streams) -> auto::Builder<Streams> {
    let mut builder = auto::Builder::new(streams);
    builder.http1().timer(TokioTimer::new()).header_read_timeout(timers.head);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(H2_STREAMS_MAX)
        .max_pending_accept_reset_streams(H2_RESETS_MAX)
        .max_local_error_reset_streams(H2_FAULTS_MAX)
        .max_send_buf_size(H2_SEND_BYTES_MAX)
        .max_header_list_size(api::HEAD_BYTES_MAX)
        .keep_alive_interval(Some(timers.head))
        .keep_alive_timeout(timers.head.min(H2_PING_MAX));
    builder
}

fn serve_connection(
    (stream, place): (TcpStream, Place),
    (faces, flushes): (Faces, api::Flushes),
    (builder, timers): (&auto::Builder<Streams>, api::Timers),
    (graceful, tasks): (&GracefulShutdown, &Tracker),
) {
    // Answers are small and complete: waiting for more to send would only delay them.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "no TCP_NODELAY");
    }
    let (builder, watcher, stop) = (builder.clone(), graceful.watcher(), tasks.stop_token());
    tasks.spawn(async move {
        let _place = place;
        let begun = tokio::time::timeout(timers.head, begins(&stream));
        if !matches!(stop.run_until_cancelled(begun).await, Some(Ok(Ok(())))) {
            tracing::debug!("a connection ended before it had begun");
            return;
        }
        let stream = TokioIo::new(Paced::new(stream, timers.answer_stall, flushes));
        let connection = builder.serve_connection_with_upgrades(stream, faces);
        if let Err(error) = watcher.watch(connection.into_owned()).await {
            tracing::debug!(%error, "connection ended");
        }
    });
}

/// Waits until the first bytes tell HTTP/1 from HTTP/2. hyper waits for them without an end, so
/// that a client that sends none would hold its connection for ever.
async fn begins(stream: &TcpStream) -> io::Result<()> {
    let mut seen = [0; H2_PREFACE.len()];
    loop {
        let count = stream.peek(&mut seen).await?;
        let (seen, preface) = (seen.get(..count), H2_PREFACE.get(..count));
        if count == H2_PREFACE.len() || seen != preface {
            return Ok(());
        }
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // What was peeked at stays readable: there is no event to wait for.
        tokio::time::sleep(PREFACE_PAUSE).await;
    }
}
