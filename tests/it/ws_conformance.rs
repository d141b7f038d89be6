//! WebSocket: the protocol as another client library sees it, `tests/clients/ws_conformance.py`.

use std::path::Path;
use std::time::Duration;

use tokio::process::Command;

use crate::support::Server;

/// Where it is set nothing may be skipped.
const NO_SKIP: &str = "EDDYLINE_NO_SKIP";

/// A run that takes longer hangs.
const TIME_MAX: Duration = Duration::from_secs(120);

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
        assert!(std::env::var_os(NO_SKIP).is_none(), "{NO_SKIP} is set, no Python websockets");
        eprintln!("skipped: no Python with the package websockets, see tests/prepare.sh");
        return;
    };
    let server = Server::start_tweaked(&[], |config| {
        config.ws.timers.hello = Duration::from_secs(1);
    })
    .await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/ws_conformance.py");
    let run = Command::new(interpreter).arg(script).arg(server.url()).kill_on_drop(true).output();
    let output = tokio::time::timeout(TIME_MAX, run).await.expect("the checks hang").unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, error) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{out}\n{error}");
    server.stop().await;
}
