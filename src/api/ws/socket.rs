//! One WebSocket's bytes.
//!
//! `tungstenite` reads: it checks frames, puts fragments together, answers pings and keeps the
//! state of the closing handshake. What it writes is caught and queued, since frames to the client
//! are written here: as slices of shared memory, which it would copy into a buffer of each socket.
//!
//! Invariants:
//! - the queue holds whole frames, so that a control frame never lands within another frame;
//! - memory beside shared frames is bounded by what the session queues before it asks
//!   [`Socket::queued_bytes`].

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;
use tungstenite::error::{CapacityError, ProtocolError};
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::protocol::{CloseFrame, Role, WebSocketConfig, WebSocketContext};
use tungstenite::{Error, Message, Utf8Bytes};

use crate::api::ws::frame;

/// What is read from the connection at once; every socket keeps as much.
const READ_BYTES: usize = 4096;

/// Frames that one system call writes, two slices each.
const SLICES_MAX: usize = 16;

/// Bytes of control frames that wait to be queued.
const CONTROL_BYTES_MAX: usize = 16 * 1024;

/// Close code: the bytes are no WebSocket frames.
const NOT_FRAMES: u16 = 1002;
/// Close code: a text frame is not UTF-8.
const NOT_TEXT: u16 = 1007;

/// What came from the client.
#[derive(Debug)]
pub(super) enum Incoming {
    /// A whole text frame.
    Text(Utf8Bytes),
    /// A whole binary frame.
    Binary,
    /// A sign of life.
    Control,
    /// The connection is over; nothing can be read or written.
    Gone,
    /// A frame that is larger than allowed; nothing can be read any more.
    TooLarge,
    /// Bytes that are no WebSocket frames, or no UTF-8; nothing can be read any more. With the
    /// close code that says which.
    Broken(u16),
}

/// The server's side of a WebSocket.
pub(super) struct Socket {
    io: TokioIo<Upgraded>,
    protocol: WebSocketContext,
    /// What `tungstenite` has written and is not queued yet.
    control: Vec<u8>,
    /// Slices to be written, whole frames all together.
    queue: VecDeque<Bytes>,
    queued_bytes: usize,
    /// Since when the connection takes nothing.
    blocked_since: Option<Instant>,
    /// By when the closing handshake has to be done, once it was begun.
    closes_by: Option<Instant>,
    close_timeout: Duration,
}

impl Socket {
    /// Takes over an upgraded connection.
    pub(super) fn new(io: TokioIo<Upgraded>, close_timeout: Duration) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BYTES)
            .write_buffer_size(0)
            .max_write_buffer_size(CONTROL_BYTES_MAX);
        Self {
            io,
            protocol: WebSocketContext::new(Role::Server, Some(config)),
            control: Vec::new(),
            queue: VecDeque::new(),
            queued_bytes: 0,
            blocked_since: None,
            closes_by: None,
            close_timeout,
        }
    }

    /// Changes how large a frame from the client may be.
    pub(super) fn set_frame_max(&mut self, bytes: usize) {
        self.protocol.set_config(|config| {
            config.max_frame_size = Some(bytes);
            config.max_message_size = Some(bytes);
        });
    }

    /// Reads the next frame.
    pub(super) fn poll_read(&mut self, context: &mut Context<'_>) -> Poll<Incoming> {
        let mut bridge = Bridge { io: Pin::new(&mut self.io), context, control: &mut self.control };
        let read = self.protocol.read(&mut bridge);
        self.queue_control();
        Poll::Ready(match read {
            Ok(Message::Text(text)) => Incoming::Text(text),
            Ok(Message::Binary(_)) => Incoming::Binary,
            Ok(Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_)) => {
                Incoming::Control
            }
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                return Poll::Pending;
            }
            Err(Error::Capacity(CapacityError::MessageTooLong { .. })) => Incoming::TooLarge,
            Err(Error::Utf8(_)) => Incoming::Broken(NOT_TEXT),
            Err(Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)) => Incoming::Gone,
            Err(Error::Protocol(_)) => Incoming::Broken(NOT_FRAMES),
            Err(_) => Incoming::Gone,
        })
    }

    /// Queues a text frame.
    pub(super) fn push_text(&mut self, text: Vec<u8>) {
        self.push_record(frame::text_header(text.len()), text.into());
    }

    /// Queues a frame that was put together elsewhere: its header and what comes first, and the
    /// rest, which other sockets may share.
    pub(super) fn push_record(&mut self, head: Vec<u8>, body: Bytes) {
        if !self.protocol.can_write() {
            return;
        }
        self.push(head.into());
        self.push(body);
    }

    /// Queues a ping.
    pub(super) fn push_ping(&mut self) {
        self.push(Bytes::from_static(&frame::PING));
    }

    /// Queues a close frame, once; nothing can be queued behind it.
    pub(super) fn close(&mut self, code: u16, reason: &'static str, context: &mut Context<'_>) {
        if self.closes_by.is_some() {
            return;
        }
        self.closes_by = Some(Instant::now() + self.close_timeout);
        let frame = CloseFrame { code: CloseCode::from(code), reason: reason.into() };
        let mut bridge = Bridge { io: Pin::new(&mut self.io), context, control: &mut self.control };
        // It only writes, to memory. When the client was first with closing nothing is written.
        let _ = self.protocol.close(&mut bridge, Some(frame));
        self.queue_control();
    }

    /// Gives what is queued a last chance after the client has gone.
    pub(super) fn end(&mut self) {
        self.closes_by.get_or_insert(Instant::now() + self.close_timeout);
    }

    /// Returns by when the closing handshake has to be done, `None` while the socket is open.
    pub(super) fn closes_by(&self) -> Option<Instant> {
        self.closes_by
    }

    /// Returns the bytes that wait to be written.
    pub(super) fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// Returns since when the connection takes nothing of what waits to be written.
    pub(super) fn blocked_since(&self) -> Option<Instant> {
        self.blocked_since
    }

    /// Writes what is queued.
    ///
    /// # Errors
    /// The connection's; it is over then.
    pub(super) fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.queue.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            for (slice, queued) in slices.iter_mut().zip(&self.queue) {
                *slice = IoSlice::new(queued);
            }
            let count = self.queue.len().min(SLICES_MAX);
            let slices = slices.get(..count).unwrap_or_default();
            match Pin::new(&mut self.io).poll_write_vectored(context, slices) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => self.advance(written),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.blocked_since.get_or_insert_with(Instant::now);
                    return Poll::Pending;
                }
            }
        }
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn advance(&mut self, mut written: usize) {
        self.blocked_since = None;
        self.queued_bytes = self.queued_bytes.saturating_sub(written);
        while let Some(front) = self.queue.front_mut() {
            if front.len() > written {
                front.advance(written);
                return;
            }
            written -= front.len();
            self.queue.pop_front();
        }
    }

    fn push(&mut self, bytes: Bytes) {
        self.queued_bytes += bytes.len();
        if !bytes.is_empty() {
            self.queue.push_back(bytes);
        }
    }

    fn queue_control(&mut self) {
        if !self.control.is_empty() {
            let control = std::mem::take(&mut self.control);
            self.push(control.into());
        }
    }
}

/// Shows `tungstenite` the connection for reading and memory for writing.
struct Bridge<'a, 'c> {
    io: Pin<&'a mut TokioIo<Upgraded>>,
    context: &'a mut Context<'c>,
    control: &'a mut Vec<u8>,
}

impl Read for Bridge<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut buffer = ReadBuf::new(buffer);
        match self.io.as_mut().poll_read(self.context, &mut buffer) {
            Poll::Ready(Ok(())) => Ok(buffer.filled().len()),
            Poll::Ready(Err(error)) => Err(error),
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl Write for Bridge<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.control.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
