//! A server process of this build, on a free port and a directory of its own.

use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal};

use crate::load::PATIENCE;

/// How often it is looked whether what is waited for is there.
const POLL: Duration = Duration::from_millis(2);

/// A directory that goes with the test, and stays when the test fails.
pub(crate) struct Scratch(Option<tempfile::TempDir>);

impl Scratch {
    /// Makes one.
    pub(crate) fn new() -> Self {
        Self(Some(tempfile::tempdir().unwrap()))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.0.as_ref().unwrap().path()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let (true, Some(dir)) = (thread::panicking(), self.0.take()) {
            eprintln!("kept for inspection: {}", dir.keep().display());
        }
    }
}

/// How a node is started.
pub(crate) struct Setup<'a> {
    /// Where its log is kept.
    logs: &'a Path,
    data: PathBuf,
    settings: Vec<String>,
    filter: &'a str,
    /// How many files the process may have open.
    descriptors: Option<u32>,
}

impl<'a> Setup<'a> {
    /// A node with its log and its data in `dir`.
    pub(crate) fn new(dir: &'a Path, settings: &[&str]) -> Self {
        let settings = settings.iter().map(|&setting| setting.to_owned()).collect();
        Self { logs: dir, data: dir.join("data"), settings, filter: "warn", descriptors: None }
    }

    /// Keeps its data elsewhere.
    pub(crate) fn data(self, data: &Path) -> Self {
        Self { data: data.to_owned(), ..self }
    }

    /// Adds a setting.
    pub(crate) fn set(mut self, key: &str, value: impl Display) -> Self {
        self.settings.push(format!("{key}={value}"));
        self
    }

    /// Lets it have few files open.
    pub(crate) fn descriptors(self, descriptors: u32) -> Self {
        Self { descriptors: Some(descriptors), ..self }
    }

    /// Has it log milestones, too.
    pub(crate) fn verbose(self) -> Self {
        Self { filter: "info,openraft=warn", ..self }
    }

    /// Starts the process.
    pub(crate) fn spawn(&self) -> Starting {
        let path = self.logs.join("stderr.log");
        let binary = env!("CARGO_BIN_EXE_eddyline");
        let mut command = match self.descriptors {
            None => Command::new(binary),
            Some(descriptors) => {
                let mut shell = Command::new("sh");
                // `exec`, so that the process that is killed later is the server.
                let script = format!("ulimit -n {descriptors}; exec \"$0\" \"$@\"");
                shell.args(["-c", &script, binary]);
                shell
            }
        };
        command.args(["serve", "--log", self.filter, "--listen", "127.0.0.1:0", "--data-dir"]);
        command.arg(&self.data);
        for setting in &self.settings {
            command.args(["--set", setting]);
        }
        without_own_settings(&mut command);
        // A panic's message must be among the last lines.
        command.env("RUST_BACKTRACE", "0");
        let stderr: File = OpenOptions::new().create(true).append(true).open(&path).unwrap();
        let log = Log { path, start: stderr.metadata().unwrap().len() };
        let mut process = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .expect("start the server");
        let stdout = process.stdout.take().unwrap();
        Starting { process, first_line: read_first_line(stdout), log }
    }

    /// Starts the process and waits until it is ready.
    pub(crate) fn start(&self) -> Node {
        self.spawn().wait()
    }
}

/// Nothing of this process's own environment may configure a command of the binary.
pub(crate) fn without_own_settings(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("EDDYLINE_") {
            command.env_remove(name);
        }
    }
}

/// What one process has logged.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    path: PathBuf,
    /// Where its part of the file begins.
    start: u64,
}

impl Log {
    /// All of it.
    pub(crate) fn text(&self) -> String {
        let mut file = File::open(&self.path).unwrap();
        file.seek(SeekFrom::Start(self.start)).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        text
    }

    fn tail(&self) -> String {
        let text = self.text();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

/// A running node. Dropping it kills it.
pub(crate) struct Node {
    process: Child,
    url: String,
    log: Log,
}

/// A node that has not said yet that it is ready.
pub(crate) struct Starting {
    process: Child,
    first_line: mpsc::Receiver<String>,
    log: Log,
}

impl Node {
    /// Starts a node on `dir` and waits until it is ready.
    pub(crate) fn start(dir: &Path, settings: &[&str]) -> Self {
        Setup::new(dir, settings).start()
    }

    /// Where it is reached.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// What it has logged.
    pub(crate) fn log(&self) -> &Log {
        &self.log
    }

    /// Most memory that it has ever had resident, in bytes.
    pub(crate) fn peak_memory_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
        kib * 1024
    }

    /// Kills it as `kill -9` does and waits until the process is gone.
    pub(crate) fn kill(mut self) {
        assert!(self.process.try_wait().unwrap().is_none(), "ended: {}", self.log.tail());
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Stops all its threads where they are; returns when none of them is in the middle of a
    /// system call any more.
    pub(crate) fn pause(&self) {
        self.signal(Signal::STOP);
        let tasks = PathBuf::from(format!("/proc/{}/task", self.process.id()));
        let is_stopped = |stat: std::io::Result<String>| {
            // After the name, which ends with the last parenthesis, comes the state.
            stat.is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, s)| s.starts_with('T')))
        };
        wait_until("all threads are stopped", || {
            let mut threads = fs::read_dir(&tasks).unwrap();
            threads.all(|task| is_stopped(fs::read_to_string(task.unwrap().path().join("stat"))))
        });
    }

    /// Asks it to stop.
    pub(crate) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Waits for its end; it must end with code 0.
    pub(crate) fn ended(mut self) -> Log {
        let status = wait(&mut self.process, &self.log);
        assert!(status.success(), "{status}: {}", self.log.tail());
        self.log.clone()
    }

    /// Asks it to stop and waits; it must end with code 0.
    pub(crate) fn stop(self) {
        self.terminate();
        self.ended();
    }

    fn signal(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_child(&self.process), signal).unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Starting {
    /// Starts a process.
    pub(crate) fn spawn(dir: &Path, settings: &[&str]) -> Self {
        Setup::new(dir, settings).spawn()
    }

    /// Waits until it is ready.
    pub(crate) fn wait(mut self) -> Node {
        match self.first_line.recv_timeout(PATIENCE) {
            Ok(line) => {
                let url = line.strip_prefix("ready ").expect("the first line says ready");
                Node { url: url.trim_end().to_owned(), process: self.process, log: self.log }
            }
            Err(error) => {
                let _ = self.process.kill();
                let status = self.process.wait().unwrap();
                panic!("the node did not become ready ({error}, {status}): {}", self.log.tail());
            }
        }
    }

    /// Waits for its end without ever being ready; returns its exit code and what it logged.
    pub(crate) fn refused(mut self) -> (Option<i32>, String) {
        let line = self.first_line.recv_timeout(PATIENCE);
        if line.is_ok() {
            let _ = self.process.kill();
        }
        let status = wait(&mut self.process, &self.log);
        assert!(line.is_err(), "it started: {}", self.log.tail());
        (status.code(), self.log.text())
    }

    /// Kills it before `at` has passed or it is ready, whichever comes first.
    pub(crate) fn kill_within(mut self, at: Duration) {
        let _ = self.first_line.recv_timeout(at);
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// Waits for a process's end, not for ever.
fn wait(process: &mut Child, log: &Log) -> ExitStatus {
    let mut ended = None;
    if !is_soon(|| {
        ended = process.try_wait().unwrap();
        ended.is_some()
    }) {
        let _ = process.kill();
    }
    ended.unwrap_or_else(|| panic!("the process did not end: {}", log.tail()))
}

/// Looks again and again until something is so, not for ever.
pub(crate) fn wait_until(what: &str, is_so: impl FnMut() -> bool) {
    assert!(is_soon(is_so), "waited in vain until {what}");
}

fn is_soon(mut is_so: impl FnMut() -> bool) -> bool {
    let looks = PATIENCE.as_millis() / POLL.as_millis();
    (0..looks).any(|_| {
        let so = is_so();
        if !so {
            thread::park_timeout(POLL);
        }
        so
    })
}

/// Reads stdout in a thread, so that waiting for the first line has a deadline and the rest does
/// not fill the pipe.
fn read_first_line(stdout: ChildStdout) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines() {
            let Ok(line) = line else { break };
            let _ = sender.send(line);
        }
    });
    receiver
}
