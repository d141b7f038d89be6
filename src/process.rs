//! What belongs to the process as a whole: its runtime, the signals that end it, its output and its
//! exit codes. Used by `main` only.

use std::error::Error;
use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use rustix::process::Resource;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};

/// Makes the runtime that everything asynchronous runs on.
///
/// # Errors
/// When the system refuses threads or descriptors.
pub fn runtime() -> io::Result<Runtime> {
    Builder::new_multi_thread().enable_all().build()
}

/// Completes at the first SIGTERM or SIGINT.
///
/// # Errors
/// When the signals cannot be listened for.
pub fn asked_to_stop() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Keeps an idle node small: the allocator asks for huge pages and would hold 20 MB that it never
/// uses. Where the kernel refuses, that is all that is lost.
pub fn without_huge_pages() {
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}

/// Writes data to standard output.
pub fn print(text: &str) -> ExitCode {
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    if written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Tells an error with everything that led to it, and turns the outcome into an exit code.
pub fn done<E: Into<Box<dyn Error + Send + Sync>>>(outcome: Result<(), E>) -> ExitCode {
    let Err(error) = outcome else { return ExitCode::SUCCESS };
    let error: Box<dyn Error + Send + Sync> = error.into();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(deeper) = cause {
        text.push_str(": ");
        text.push_str(&deeper.to_string());
        cause = deeper.source();
    }
    fail(&text, ExitCode::FAILURE)
}

/// Tells an error and returns the exit code to end with.
pub fn fail(error: &dyn Display, code: ExitCode) -> ExitCode {
    let _ = writeln!(io::stderr(), "error: {error}");
    code
}

/// Asks for as many descriptors as the process may have: the usual soft limit is for programs that
/// use `select`. Where it is refused, the limits derived from it are smaller.
pub fn raise_open_files() {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = rustix::process::setrlimit(Resource::Nofile, limit);
}
