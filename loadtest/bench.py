#!/usr/bin/env python3
"""Measures Eddyline against the ceiling of this machine and prints the table of RESULTS.md.

The ceiling (bench/yardstick in the shared folder) is the least program that parses the same JSON,
checksums it and group-commits it with fdatasync. Both are driven with the same wrk scripts in turn,
in random order within a round; a figure is the median of the rounds, a ratio is one of medians.

    loadtest/bench.py [SECTION ...]         all sections, or only these
    sections: one hundred stream read start partitions many restart
"""

import argparse
import gzip
import http.client
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WRK = ROOT / "loadtest" / "wrk"
SECTIONS = ["one", "hundred", "stream", "read", "start", "partitions", "many", "restart"]
V2 = "application/vnd.kafka.json.v2+json"
JSON = "application/json"
NDJSON = "application/x-ndjson"
FLIGHTS_PARTITIONS = 12


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

    def call(self, method, path, body=None, content_type=JSON):
        host = self.url.removeprefix("http://")
        connection = http.client.HTTPConnection(host, timeout=600)
        headers = {"content-type": content_type} if body is not None else {}
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        text = response.read()
        connection.close()
        if response.status >= 300:
            raise SystemExit(f"{method} {path}: {response.status} {text[:500]!r}")
        return json.loads(text) if text else None

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


class Bench:
    def __init__(self, options, work):
        self.options = options
        self.work = work
        self.rows = []
        self.ceiling_binary = options.ceiling
        self.eddyline_binary = options.eddyline

    # -- programs ---------------------------------------------------------------------------------

    def build(self):
        if not self.eddyline_binary:
            subprocess.run(["cargo", "build", "--release"], cwd=ROOT, check=True)
            target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
            self.eddyline_binary = target / "release" / "eddyline"
        if not self.ceiling_binary:
            yardstick = self.shared() / "bench" / "yardstick"
            target = ROOT / "target" / "yardstick"
            manifest = yardstick / "Cargo.toml"
            subprocess.run(
                ["cargo", "build", "--release", "--locked", "--bin", "ceiling",
                 "--manifest-path", str(manifest)],
                env={**os.environ, "CARGO_TARGET_DIR": str(target)}, check=True)
            self.ceiling_binary = target / "release" / "ceiling"

    def shared(self):
        folder = Path(os.environ.get("EDDYLINE_SHARED") or ROOT.parent / "shared")
        if not folder.is_dir():
            raise SystemExit(f"{folder} is not there: set SHARED to the folder with bench/ and data/")
        return folder

    def ceiling(self):
        port = free_port()
        return Server([self.ceiling_binary, f"127.0.0.1:{port}", self.work / "ceiling.log"])

    def eddyline(self, name, *settings):
        command = [self.eddyline_binary, "serve", "--listen", "127.0.0.1:0",
                   "--data-dir", self.work / name, "--log", "warn"]
        for setting in settings:
            command += ["--set", setting]
        return Server(command)

    def forget(self, name):
        shutil.rmtree(self.work / name, ignore_errors=True)

    # -- measuring --------------------------------------------------------------------------------

    def wrk(self, script, url, connections, *args):
        command = ["wrk", "-t1", f"-c{connections}", f"-d{self.options.seconds}s", "--timeout",
                   "30s", "-s", WRK / script, url, "--", *args]
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

    # -- sections ---------------------------------------------------------------------------------

    def produce(self, count, least):
        ceiling, node = self.ceiling(), self.eddyline("produce")
        node.create("bench", 6)
        variants = {
            "ceiling": (ceiling.url + "/produce", JSON),
            "v2": (node.url + "/topics/bench", V2),
            "native": (node.url + "/v1/topics/bench/records", JSON),
        }
        acked = [0]

        def run(name):
            url, content_type = variants[name]
            result = self.wrk("produce.lua", url, 64, count, content_type)
            acked[0] += 0 if name == "ceiling" else result["requests"] * count
            return result

        results = self.rounds({name: (lambda name=name: run(name)) for name in variants})
        stored = sum(node.ends("bench"))
        ceiling.stop(signal.SIGKILL)
        node.stop()
        self.forget("produce")
        if stored < acked[0]:
            raise SystemExit(f"{acked[0]} records were acknowledged and {stored} are there")
        base = median(results["ceiling"], "rate")
        base_p99 = median(results["ceiling"], "p99_us")
        for name in ("v2", "native"):
            rate, p99 = median(results[name], "rate"), median(results[name], "p99_us")
            what = f"{count} record{'s' if count > 1 else ''} a request, 64 connections, {name}"
            self.row(what, f"{rate:,.0f} of {base:,.0f} requests/s = {rate / base:.2f}",
                     f">= {least}", rate / base >= least)
            if count == 1:
                self.row(f"... p99, {name}",
                         f"{p99 / 1000:.2f} of {base_p99 / 1000:.2f} ms = {p99 / base_p99:.2f}",
                         "<= 1.5", p99 <= base_p99 * 1.5)

    def one(self):
        self.produce(1, 0.85)

    def hundred(self):
        self.produce(100, 0.8)

    def flights(self):
        """The flights file, unpacked, and how many records it has."""
        plain = self.work / "flights.ndjson"
        if not plain.exists():
            with gzip.open(self.shared() / "data" / "flights.ndjson.gz") as packed:
                with plain.open("wb") as out:
                    shutil.copyfileobj(packed, out)
        with plain.open("rb") as text:
            return plain, sum(1 for _ in text)

    def send_flights(self, node, plain, records):
        url = f"{node.url}/v1/topics/flights/records"
        reports = self.work / "reports"
        begun = time.monotonic()
        subprocess.run(
            ["curl", "-sS", "--fail", "-X", "POST", "-T", str(plain), "-o", str(reports),
             "-H", f"content-type: {NDJSON}", "-H", "expect:", url], check=True)
        seconds = time.monotonic() - begun
        with reports.open("rb") as text:
            good = sum(1 for line in text if line.startswith(b'{"partition"'))
        if good != records:
            raise SystemExit(f"{records} records were sent and {good} acknowledged")
        return {"rate": records / seconds}

    def stream(self):
        plain, records = self.flights()
        ceiling, node = self.ceiling(), self.eddyline("stream")
        node.create("flights", FLIGHTS_PARTITIONS)

        def run_ceiling():
            result = self.wrk("produce.lua", ceiling.url + "/produce", 64, 100, JSON)
            return {"rate": result["rate"] * 100}

        results = self.rounds({
            "ceiling": run_ceiling,
            "stream": lambda: self.send_flights(node, plain, records),
        })
        ceiling.stop(signal.SIGKILL)
        node.stop()
        self.forget("stream")
        base, rate = median(results["ceiling"], "rate"), median(results["stream"], "rate")
        self.row("flights as NDJSON over one connection",
                 f"{rate:,.0f} of {base:,.0f} records/s = {rate / base:.2f}", ">= 0.2",
                 rate / base >= 0.2)

    def read(self):
        plain, records = self.flights()
        ceiling, node = self.ceiling(), self.eddyline("read")
        node.create("flights", FLIGHTS_PARTITIONS)
        self.send_flights(node, plain, records)
        ends = node.ends("flights")
        url = f"{node.url}/v1/topics/flights/records"
        results = self.rounds({
            "ceiling": lambda: self.wrk("read.lua", ceiling.url + "/page", 8),
            "read": lambda: self.wrk("read.lua", url, 8, *ends),
        })
        ceiling.stop(signal.SIGKILL)
        node.stop()
        self.forget("read")
        base, rate = median(results["ceiling"], "mb"), median(results["read"], "mb")
        self.row("catch-up read, NDJSON, 8 connections, pages of 1,000",
                 f"{rate:,.0f} of {base:,.0f} MB/s = {rate / base:.2f}", ">= 0.5",
                 rate / base >= 0.5)

    def start(self):
        times, memory = [], []
        for number in range(max(5, self.options.rounds)):
            node = self.eddyline(f"start-{number}")
            times.append(node.start_ms)
            time.sleep(2)
            memory.append(node.rss_mb())
            node.stop()
            self.forget(f"start-{number}")
        took, idle = statistics.median(times), statistics.median(memory)
        self.row("start, empty directory", f"{took:.0f} ms", "<= 150 ms", took <= 150)
        self.row("idle memory", f"{idle:.0f} MB", "<= 60 MB", idle <= 60)

    def partitions(self):
        node = self.eddyline("partitions")
        time.sleep(2)
        before = node.rss_mb()
        node.create("wide", 10_000)
        time.sleep(5)
        cost = node.rss_mb() - before
        cpu = node.cpu_seconds()
        time.sleep(20)
        share = (node.cpu_seconds() - cpu) / 20 * 100
        node.stop()
        self.forget("partitions")
        self.row("10,000 empty partitions, memory", f"{cost:.0f} MB", "<= 100 MB", cost <= 100)
        self.row("... idle CPU", f"{share:.1f} % of a core", "< 2 %", share < 2)

    def many(self):
        node = self.eddyline("many")
        counts = {"1 partition": 1, "256 partitions": 256}
        for partitions in counts.values():
            node.create(f"p{partitions}", partitions)

        def run(partitions):
            url = f"{node.url}/v1/topics/p{partitions}/records"
            return self.wrk("produce.lua", url, 64, 1, JSON)

        results = self.rounds({name: (lambda n=n: run(n)) for name, n in counts.items()})
        node.stop()
        self.forget("many")
        base, rate = (median(results[f"{n} partition{'s' if n > 1 else ''}"], "rate")
                      for n in (1, 256))
        self.row("256 partitions against 1, one record a request",
                 f"{rate:,.0f} of {base:,.0f} requests/s = {rate / base:.2f}", ">= 0.75",
                 rate / base >= 0.75)

    def restart(self):
        size = self.options.restart_gb
        free = shutil.disk_usage(self.work).free / 1e9
        if free < size * 1.5 + 5:
            say(f"skipped, restart: {size} GB of records need {size * 1.5 + 5:.0f} GB of disk and "
                f"{free:.0f} are free (--restart-gb)")
            return
        node = self.eddyline("restart")
        node.create("big", FLIGHTS_PARTITIONS)
        self.fill(node, size)
        for how in (signal.SIGKILL, signal.SIGTERM):
            node.stop(how)
            wal = folder_bytes(self.work / "restart" / "wal") / 2**30
            node = self.eddyline("restart")
            allowed = 2 + 2 * wal
            took = node.start_ms / 1000
            name = "kill -9" if how == signal.SIGKILL else "SIGTERM"
            self.row(f"restart after {size} GB and {name}", f"{took:.2f} s, WAL {wal:.2f} GiB",
                     f"<= {allowed:.1f} s", took <= allowed)
        node.stop()
        self.forget("restart")

    def fill(self, node, gigabytes):
        """Writes records of 4 KB through two NDJSON streams."""
        line = '{"key":"%d","value":{"text":"' + "x" * 4000 + '"}}'
        block = "".join(line % n + "\n" for n in range(5000))
        path = self.work / "block.ndjson"
        path.write_text(block)
        times = int(gigabytes * 1e9 / len(block) / 2) + 1
        files = ["-T", str(path), f"{node.url}/v1/topics/big/records", "-o", "/dev/null"] * times
        command = ["curl", "-sS", "--fail", "-X", "POST", "-H", f"content-type: {NDJSON}", "-H",
                   "expect:", *files]
        say(f"  writing {gigabytes} GB")
        for process in [subprocess.Popen(command) for _ in range(2)]:
            if process.wait() != 0:
                raise SystemExit("writing the records failed")

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


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=8, help="of each wrk run")
    parser.add_argument("--restart-gb", type=float, default=10, help="loaded before the restart")
    parser.add_argument("--eddyline", type=Path, help="a built binary, instead of building one")
    parser.add_argument("--ceiling", type=Path, help="a built binary, instead of building one")
    parser.add_argument("--dir", type=Path, default=ROOT / "target",
                        help="where data goes: the disk that is measured")
    options = parser.parse_args()
    unknown = set(options.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"no section {', '.join(sorted(unknown))}: there are {' '.join(SECTIONS)}")
    install_wrk()
    options.dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.dir) as work:
        bench = Bench(options, Path(work))
        bench.build()
        about = machine()
        for section in options.sections or SECTIONS:
            say(f"== {section}")
            getattr(bench, section)()
    print(f"{about}; {options.rounds} rounds of {options.seconds} s, medians\n")
    print(bench.table())


if __name__ == "__main__":
    main()
