//! One WebSocket to a server, driven by its owner's task.
//!
//! Invariants:
//! - all sockets that a thread drives read into the same memory, which stays in the processor's
//!   cache: with a thousand sockets that is what makes reading cheap;
//! - what waits to be written is bounded by the window: nobody sends but in answer to a frame.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail, ensure};
use reqwest::StatusCode;
use reqwest::header::{
    CONNECTION, HeaderName, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tungstenite::handshake::client::generate_key;
use tungstenite::handshake::derive_accept_key;
use tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};

use super::frames::{Frame, Frames, Kind, push_frame};
use crate::cli::client::{Client, refusal, without_url};

const SUBPROTOCOL: &str = "eddyline.v1.json";

/// The first frame of every socket.
pub(super) const HELLO: &str = r#"{"type":"hello","client":"eddyline-bench"}"#;

/// What is read at once.
const READ_BYTES: usize = 256 * 1024;

/// Bytes that wait to be written, beyond which the server is one that reads nothing.
const QUEUED_BYTES_MAX: usize = 1024 * 1024;

/// Time to open a socket, and to close it.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

thread_local! {
    /// Where the sockets of this thread read to.
    static READ: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into_boxed_slice());
}

/// Takes the text frames of a socket.
pub(super) trait Handler {
    /// Takes a frame and appends to `out` what is to be sent.
    fn take(&mut self, frame: Frame<'_>, out: &mut Outgoing) -> anyhow::Result<()>;
}

/// Frames that wait to be written.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    bytes: Vec<u8>,
    written: usize,
}

impl Outgoing {
    /// Queues a text frame.
    ///
    /// # Errors
    /// When the server takes nothing of what is written.
    pub(super) fn push(&mut self, text: &str) -> anyhow::Result<()> {
        self.push_frame(OpCode::Data(Data::Text), text.as_bytes())
    }

    fn push_frame(&mut self, opcode: OpCode, content: &[u8]) -> anyhow::Result<()> {
        ensure!(self.bytes.len() < QUEUED_BYTES_MAX, "the server does not read");
        push_frame(&mut self.bytes, opcode, content)
    }
}

/// A WebSocket.
pub(super) struct Socket {
    io: reqwest::Upgraded,
    frames: Frames,
    pub(super) out: Outgoing,
}

impl Socket {
    /// Opens a socket.
    ///
    /// # Errors
    /// Why the server did not.
    pub(super) async fn open(client: &Client) -> anyhow::Result<Self> {
        let opening = tokio::time::timeout(HANDSHAKE_TIMEOUT, Self::shake_hands(client));
        opening.await.map_err(|_elapsed| anyhow!("the server opened no WebSocket in time"))?
    }

    async fn shake_hands(client: &Client) -> anyhow::Result<Self> {
        let key = generate_key();
        let request = client
            .socket()
            .header(CONNECTION, "Upgrade")
            .header(UPGRADE, "websocket")
            .header(SEC_WEBSOCKET_VERSION, "13")
            .header(SEC_WEBSOCKET_KEY, &key)
            .header(SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL);
        let response = request.send().await.map_err(without_url)?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(refusal(response).await.into());
        }
        let says = |name: HeaderName, value: &str| {
            response.headers().get(name).is_some_and(|found| found.as_bytes() == value.as_bytes())
        };
        ensure!(
            says(SEC_WEBSOCKET_ACCEPT, &derive_accept_key(key.as_bytes()))
                && says(SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL),
            "the server does not speak {SUBPROTOCOL}"
        );
        let io = response.upgrade().await.map_err(without_url)?;
        Ok(Self { io, frames: Frames::default(), out: Outgoing::default() })
    }

    /// Reads and writes what can be without waiting, and has the context's task woken when there
    /// is more.
    ///
    /// # Errors
    /// The handler's, and why the connection is over.
    pub(super) fn drive(
        &mut self,
        context: &mut Context<'_>,
        handler: &mut impl Handler,
    ) -> anyhow::Result<()> {
        loop {
            let read = self.poll_read(context, handler)?;
            // Credit goes out before the rest is read, so that the server need not pause.
            self.poll_write(context).map(drop)?;
            if read.is_pending() {
                return Ok(());
            }
        }
    }

    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        handler: &mut impl Handler,
    ) -> anyhow::Result<Poll<()>> {
        let Self { io, frames, out } = self;
        READ.with_borrow_mut(|memory| {
            let mut buffer = ReadBuf::new(memory);
            let Poll::Ready(read) = Pin::new(io).poll_read(context, &mut buffer) else {
                return Ok(Poll::Pending);
            };
            read.context("reading from the server")?;
            ensure!(!buffer.filled().is_empty(), "the server closed the connection");
            frames.feed(buffer.filled(), |frame| match frame.kind {
                Kind::Text => handler.take(frame, out),
                Kind::Ping => out.push_frame(OpCode::Control(Control::Pong), frame.begin),
                Kind::Close => bail!("the server closed the socket{}", why(frame.begin)),
                Kind::Other => Ok(()),
            })?;
            Ok(Poll::Ready(()))
        })
    }

    fn poll_write(&mut self, context: &mut Context<'_>) -> anyhow::Result<Poll<()>> {
        let Outgoing { bytes, written } = &mut self.out;
        while let Some(rest) = bytes.get(*written..).filter(|rest| !rest.is_empty()) {
            match Pin::new(&mut self.io).poll_write(context, rest) {
                Poll::Ready(Ok(0)) => bail!("the server takes nothing"),
                Poll::Ready(more) => *written += more.context("writing to the server")?,
                Poll::Pending => return Ok(Poll::Pending),
            }
        }
        // What is idle keeps no memory for what it might write.
        (*bytes, *written) = (Vec::new(), 0);
        Ok(Poll::Ready(()))
    }

    /// Says goodbye; what the server still sends is not looked at.
    pub(super) async fn close(mut self) {
        let normal = u16::from(CloseCode::Normal).to_be_bytes();
        if self.out.push_frame(OpCode::Control(Control::Close), &normal).is_ok() {
            let writing = poll_fn(|context| match self.poll_write(context) {
                Ok(Poll::Pending) => Poll::Pending,
                Ok(Poll::Ready(())) | Err(_) => Poll::Ready(()),
            });
            // Whoever does not take it learns it from the connection's end.
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, writing).await;
        }
    }
}

/// Says what a close frame says.
fn why(content: &[u8]) -> String {
    match content.split_first_chunk() {
        Some((code, reason)) => {
            format!(" with {}: {}", u16::from_be_bytes(*code), String::from_utf8_lossy(reason))
        }
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_close_frame_says_why() {
        assert_eq!(why(b""), "");
        assert_eq!(why(b"\x11\x94no"), " with 4500: no");
    }
}
