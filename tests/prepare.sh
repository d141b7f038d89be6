#!/usr/bin/env bash
# Installs what `make test` needs where that is possible, and says what will be skipped and why.
set -euo pipefail

# install COMMAND PACKAGE: installs the package with apt when the command is missing.
install() {
  command -v "$1" >/dev/null 2>&1 && return 0
  local apt=(apt-get)
  if ! command -v apt-get >/dev/null 2>&1; then
    echo "prepare: $1 is missing and there is no apt-get to install it with" >&2
    return 1
  fi
  if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null || {
      echo "prepare: $1 is missing and installing $2 needs root" >&2
      return 1
    }
    apt=(sudo -n env DEBIAN_FRONTEND=noninteractive apt-get)
  fi
  export DEBIAN_FRONTEND=noninteractive
  "${apt[@]}" -o DPkg::Lock::Timeout=400 update -qq
  "${apt[@]}" -o DPkg::Lock::Timeout=400 install -y -qq --no-install-recommends "$2" >/dev/null
}

if ! command -v cargo >/dev/null 2>&1; then
  echo "prepare: cargo is missing; install Rust from https://rustup.rs" >&2
  exit 1
fi
# SQLite, zstd and the TLS library are compiled from bundled C sources.
install cc build-essential
# Events are loaded with it, and the commands that a node prints are tried.
install curl curl
# Power cuts and full disks are played on file systems of their own.
install mkfs.ext4 e2fsprogs || echo "prepare: skipped, tests on disks of their own: no mkfs.ext4"

# The WebSocket protocol is tested by a client library of its own.
if ! python3 -c "import websockets" 2>/dev/null && ! /usr/bin/python3 -c "import websockets" 2>/dev/null; then
  install websockets-for-python python3-websockets ||
    echo "prepare: skipped, the WebSocket protocol by another client: no Python package websockets"
fi
# The protocols of sockets and events are tested in a browser.
install chromium chromium || echo "prepare: skipped, the protocols in a browser: no chromium"
# A client of the REST Proxy's consumers that others wrote.
clients="$(dirname "$0")/../target/clients"
if ! "$clients/bin/python" -c 'import kafka_bridge_client' 2>/dev/null; then
  python3 -c 'import ensurepip' 2>/dev/null || install venv-for-python python3-venv || true
  if ! { python3 -m venv "$clients" &&
    "$clients/bin/pip" install --quiet --disable-pip-version-check kafka-bridge-client==0.7.1; }; then
    rm -rf "$clients"
    echo "prepare: skipped, the REST Proxy client from PyPI: it could not be installed"
  fi
fi

flights="${EDDYLINE_SHARED:-}/data/flights.ndjson.gz"
if [ -f "$flights" ]; then
  echo "prepare: the whole flights file is tested too ($flights)"
else
  echo "prepare: skipped, the whole flights file: there is no data/flights.ndjson.gz in" \
    "'${EDDYLINE_SHARED:-}' (set SHARED); its excerpt in tests/data is tested"
fi
