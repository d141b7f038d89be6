"""The figures of one node: produce, catch-up reads, start, memory, many partitions, restart."""

import gzip
import shutil
import signal
import statistics
import subprocess
import time

from harness import JSON, NDJSON, V2, Harness, folder_bytes, median, say

FLIGHTS_PARTITIONS = 12


class Node(Harness):
    SECTIONS = ["one", "hundred", "stream", "read", "start", "partitions", "many", "restart"]

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
