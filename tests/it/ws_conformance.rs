//! WebSocket: the protocol as another client library sees it, `tests/clients/ws_conformance.py`.

use std::path::Path;
use std::time::Duration;

use tokio::process::Command;

use crate::support::{Server, skipped};

/// A run that takes longer hangs.
const TIME_MAX: Duration = Duration::from_secs(300);

/// Debian's interpreter has Debian's packages; another one that comes first may not.
const INTERPRETERS: [&str; 2] = ["python3", "/usr/bin/python3"];

async fn interpreter() -> Option<&'static str> {
    for interpreter in INTERPRETERS {
        let imports = Command::new(interpreter).args(["-c", "import websockets"]).output().await;
        if imports.is_ok_and(|output| output.status.success()) {
            return Some(interpreter);
        }
    }
    None
}

#[tokio::test]
async fn another_client_library_finds_the_protocol_as_described() {
    let Some(interpreter) = interpreter().await else {
        let why = "no Python with the package websockets, see tests/prepare.sh";
        return skipped("WebSocket protocol by another client", why);
    };
    let server = Server::start_tweaked(&[], |config| {
        config.ws.timers.hello = Duration::from_secs(1);
    })
    .await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/ws_conformance.py");
    let mut command = Command::new(interpreter);
    command.arg(script).args([server.url(), env!("CARGO_BIN_EXE_eddyline")]);
    let run = command.kill_on_drop(true).output();
    let output = tokio::time::timeout(TIME_MAX, run).await.expect("the checks hang").unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, error) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{out}\n{error}");
    server.stop().await;
}
