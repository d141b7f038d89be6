"""What every section of the bench uses: the two servers, wrk, rounds in random order, the table."""

import http.client
import json
import os
import random
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WRK = ROOT / "loadtest" / "wrk"
V2 = "application/vnd.kafka.json.v2+json"
JSON = "application/json"
NDJSON = "application/x-ndjson"


def say(text):
    print(text, file=sys.stderr, flush=True)


class Server:
    """A process that prints `ready URL` on stdout when it serves."""

    def __init__(self, command):
        begun = time.monotonic()
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={k: v for k, v in os.environ.items() if not k.startswith("EDDYLINE_")},
        )
        line = self.process.stdout.readline().decode()
        if not line.startswith("ready http://"):
            self.process.kill()
            raise SystemExit(f"{command[0]} did not start: {line!r}")
        self.start_ms = (time.monotonic() - begun) * 1000
        self.url = line.split()[1]
        drain = threading.Thread(target=self.process.stdout.read, daemon=True)
        drain.start()

    def text(self, path):
        """The answer to a GET, as text."""
        return self.send("GET", path).decode()

    def call(self, method, path, body=None, content_type=JSON):
        """The answer to a request, from JSON."""
        text = self.send(method, path, body, content_type)
        return json.loads(text) if text else None

    def send(self, method, path, body=None, content_type=JSON):
        host = self.url.removeprefix("http://")
        connection = http.client.HTTPConnection(host, timeout=600)
        headers = {"content-type": content_type} if body is not None else {}
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        text = response.read()
        connection.close()
        if response.status >= 300:
            raise SystemExit(f"{method} {path}: {response.status} {text[:500]!r}")
        return text

    def create(self, topic, partitions):
        self.call("PUT", f"/v1/topics/{topic}", json.dumps({"partitions": partitions}))

    def ends(self, topic):
        details = self.call("GET", f"/v1/topics/{topic}")["details"]
        return [part["log_end_offset"] for part in details]

    def rss_mb(self):
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        return 0.0

    def cpu_seconds(self):
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(") ", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self, with_signal=signal.SIGTERM):
        self.process.send_signal(with_signal)
        self.process.wait(timeout=120)


class Harness:
    def __init__(self, options, work):
        self.options = options
        self.work = work
        self.rows = []
        self.yardstick = options.yardstick
        self.eddyline_binary = options.eddyline

    # -- programs ---------------------------------------------------------------------------------

    def build(self):
        if not self.eddyline_binary:
            subprocess.run(["cargo", "build", "--release"], cwd=ROOT, check=True)
            target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
            self.eddyline_binary = target / "release" / "eddyline"
        if not self.yardstick:
            manifest = self.shared() / "bench" / "yardstick" / "Cargo.toml"
            target = ROOT / "target" / "yardstick"
            subprocess.run(
                ["cargo", "build", "--release", "--locked", "--bins",
                 "--manifest-path", str(manifest)],
                env={**os.environ, "CARGO_TARGET_DIR": str(target)}, check=True)
            self.yardstick = target / "release"

    def shared(self):
        folder = Path(os.environ.get("EDDYLINE_SHARED") or ROOT.parent / "shared")
        if not folder.is_dir():
            raise SystemExit(f"{folder} is not there: set SHARED to the folder with bench/ and data/")
        return folder

    def ceiling(self):
        port = free_port()
        return Server([self.yardstick / "ceiling", f"127.0.0.1:{port}", self.work / "ceiling.log"])

    def eddyline(self, name, *settings):
        command = [self.eddyline_binary, "serve", "--listen", "127.0.0.1:0",
                   "--data-dir", self.work / name, "--log", "warn"]
        for setting in settings:
            command += ["--set", setting]
        return Server(command)

    def forget(self, name):
        shutil.rmtree(self.work / name, ignore_errors=True)

    # -- measuring --------------------------------------------------------------------------------

    def wrk(self, script, url, connections, *args, threads=1):
        command = ["wrk", f"-t{threads}", f"-c{connections}", f"-d{self.options.seconds}s",
                   "--timeout", "30s", "-s", WRK / script, url, "--", *args]
        out = subprocess.run([str(part) for part in command], check=True, capture_output=True,
                             text=True).stdout
        for line in out.splitlines():
            if line.startswith("RESULT "):
                result = json.loads(line.removeprefix("RESULT "))
                if result["failed"]:
                    raise SystemExit(f"{result['failed']} requests to {url} failed:\n{out}")
                result["rate"] = result["requests"] * 1e6 / result["us"]
                result["mb"] = result["bytes"] / result["us"]
                return result
        raise SystemExit(f"wrk said nothing that is understood:\n{out}")

    def rounds(self, variants):
        """Runs every variant once a round, in random order; returns results by name."""
        results = {name: [] for name in variants}
        for number in range(self.options.rounds):
            order = list(variants)
            random.shuffle(order)
            for name in order:
                result = variants[name]()
                results[name].append(result)
                say(f"  round {number + 1} {name}: {describe(result)}")
        return results

    def row(self, what, figure, target, reached):
        self.rows.append((what, figure, target, "yes" if reached else "**no**"))
        say(f"{what}: {figure} (target {target}): {'reached' if reached else 'MISSED'}")

    # -- output -----------------------------------------------------------------------------------

    def table(self):
        lines = ["| what | figure | target | reached |", "|---|---|---|---|"]
        lines += [f"| {' | '.join(row)} |" for row in self.rows]
        return "\n".join(lines)


def describe(result):
    parts = [f"{result['rate']:,.0f}/s"]
    if "p99_us" in result:
        parts.append(f"p50 {result['p50_us'] / 1000:.2f} ms, p99 {result['p99_us'] / 1000:.2f} ms")
        parts.append(f"{result['mb']:,.0f} MB/s")
    return ", ".join(parts)


def median(results, key):
    return statistics.median(result[key] for result in results)


def raise_open_files():
    """As many descriptors as the system allows, for a thousand sockets on both sides."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def folder_bytes(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def free_port():
    import socket
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def machine():
    model = next((line.split(":", 1)[1].strip()
                  for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), "unknown processor")
    kernel = os.uname().release
    return f"{os.cpu_count()} x {model}, Linux {kernel}, load {os.getloadavg()[0]:.2f} at the start"


def install_wrk():
    if shutil.which("wrk"):
        return
    say("installing wrk")
    apt = ["apt-get", "-o", "DPkg::Lock::Timeout=400"]
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    for step in (["update", "-qq"], ["install", "-y", "-qq", "wrk"]):
        if subprocess.run(sudo + apt + step, stdout=subprocess.DEVNULL).returncode != 0:
            raise SystemExit("wrk is missing and could not be installed: apt-get install wrk")
