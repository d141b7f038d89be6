"""The figures of groups and live subscribers: fan-out, latency, idle sockets, commits, polls.

The client is `fanout` of the yardstick where the ceiling is the measure, and `eddyline bench`, in a
process of its own, where it is time or what a subscriber counts. Every run checks itself: a gap, a
duplicate, a lost record or a refused request ends the bench.
"""

import http.client
import json
import re
import signal
import statistics
import subprocess
import time

from harness import Harness, median, say

RECORDS = 50_000
VALUE_BYTES = 100
GROUPS = 8
POLLED = 500
IDLE = 10_000
MEMBERS = 100
# Of the ceiling's records/s, what the live tail is offered; it has to deliver 0.15.
TAIL_OFFERED = 0.25


class Live(Harness):
    SECTIONS = ["fanout", "single", "tail", "latency", "idle", "commits", "poll"]

    # -- clients ----------------------------------------------------------------------------------

    def run_fanout(self, kind, url, subscribers, *topic):
        command = [self.yardstick / "fanout", kind, url, subscribers, self.options.seconds, *topic]
        out = subprocess.run([str(part) for part in command], check=True, capture_output=True,
                             text=True).stdout
        found = dict(re.findall(r"(\S+)=([0-9.]+)", out))
        if int(found["connected"]) != subscribers or int(found["faults"]):
            raise SystemExit(f"fanout {kind}: {out}")
        return {"rate": float(found["records/s"]), "frames": float(found["frames/s"]),
                "megabytes": float(found["MB/s"])}

    def ceiling_fanout(self, ceiling, subscribers):
        return self.run_fanout("ceiling", sockets(ceiling) + "/ws", subscribers)

    def topic_fanout(self, node, subscribers):
        return self.run_fanout("eddyline", sockets(node) + "/v1/ws", subscribers, "bench")

    def run_bench(self, node, *words):
        """Runs `eddyline bench`, whose exit code says whether all was well."""
        command = [self.eddyline_binary, "bench", *words, "--url", node.url, "--output", "json",
                   "--duration", f"{self.options.seconds}s"]
        ran = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        if ran.returncode != 0:
            raise SystemExit(f"eddyline bench {' '.join(map(str, words))}: {ran.stdout}{ran.stderr}")
        return json.loads(ran.stdout)

    def write_records(self, node, topic, partitions):
        """Writes the records that are read again and again."""
        node.create(topic, partitions)
        record = '{"key":"key-%d","value":{"n":%d,"text":"%s"}}'
        for first in range(0, RECORDS, 5000):
            records = []
            for n in range(first, first + 5000):
                head = f'{{"n":{n},"text":""}}'
                records.append(record % (n, n, "x" * (VALUE_BYTES - len(head))))
            body = '{"records":[' + ",".join(records) + "]}"
            node.call("POST", f"/v1/topics/{topic}/records", body)

    # -- sections ---------------------------------------------------------------------------------

    def fanout(self):
        for subscribers in (100, 1000):
            ceiling, node = self.ceiling(), self.eddyline("fanout")
            self.write_records(node, "bench", 1)
            results = self.rounds({
                "ceiling": lambda: self.ceiling_fanout(ceiling, subscribers),
                "eddyline": lambda: self.topic_fanout(node, subscribers),
            })
            ceiling.stop(signal.SIGKILL)
            node.stop()
            self.forget("fanout")
            base, rate = median(results["ceiling"], "rate"), median(results["eddyline"], "rate")
            self.row(f"fan-out to {subscribers:,} subscribers, {RECORDS:,} records again and again",
                     f"{rate:,.0f} of {base:,.0f} records/s = {rate / base:.2f}", ">= 0.4",
                     rate / base >= 0.4)

    def single(self):
        node = self.eddyline("single")
        self.write_records(node, "bench", 1)
        results = self.rounds({"eddyline": lambda: self.topic_fanout(node, 1)})
        node.stop()
        self.forget("single")
        rate = median(results["eddyline"], "rate")
        self.row("... to 1 subscriber", f"{rate:,.0f} records/s", ">= 1,000,000 records/s",
                 rate >= 1_000_000)

    def tail(self):
        subscribers = 1000
        ceiling = self.ceiling()
        node = self.eddyline("tail")
        results = {"ceiling": [], "tail": []}
        for number in range(self.options.rounds):
            base = self.ceiling_fanout(ceiling, subscribers)
            say(f"  round {number + 1} ceiling: {base['rate']:,.0f} records/s")
            offered = max(1, round(base["rate"] * TAIL_OFFERED / subscribers))
            tail = self.run_bench(node, "subscribe", "tail", "-n", subscribers, "--rate",
                                  offered)
            tail["rate"] = tail["delivered_per_second"]
            say(f"  round {number + 1} tail: {offered:,} records/s written, "
                f"{tail['rate']:,.0f} delivered, p99 {millis(tail, 'p99')}")
            results["ceiling"].append(base)
            results["tail"].append(tail)
        ceiling.stop(signal.SIGKILL)
        node.stop()
        self.forget("tail")
        base, rate = median(results["ceiling"], "rate"), median(results["tail"], "rate")
        p99 = statistics.median(tail["latency_us"]["p99"] for tail in results["tail"]) / 1000
        self.row(f"live tail to {subscribers:,} subscribers",
                 f"{rate:,.0f} of {base:,.0f} records/s = {rate / base:.2f}, p99 {p99:.0f} ms",
                 ">= 0.15", rate / base >= 0.15)

    def latency(self):
        node = self.eddyline("latency")

        def run():
            result = self.run_bench(node, "subscribe", "latency", "-n", 100, "--rate", 10_000)
            return {"rate": result["delivered_per_second"], **result["latency_us"],
                    "late": result["sent_late_us"]["p99"]}

        results = self.rounds({"subscribe": run})
        node.stop()
        self.forget("latency")
        p50, p99, late = (median(results["subscribe"], key) / 1000 for key in ("p50", "p99", "late"))
        self.row("produce to deliver, 10,000 records/s to 100 subscribers, p99",
                 f"{p99:.1f} ms (p50 {p50:.1f} ms, sent late by {late:.1f} ms)", "<= 25 ms",
                 p99 <= 25)

    def idle(self):
        node = self.eddyline("idle")
        node.create("idle", 4)
        time.sleep(2)
        before = node.rss_mb()
        seconds = 40
        command = [self.eddyline_binary, "bench", "subscribe", "idle", "--idle", "-n", IDLE, "--url",
                   node.url, "--output", "json", "--warm-up", "0s", "--duration", f"{seconds}s"]
        client = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE)
        self.wait_for_sockets(node, IDLE)
        time.sleep(3)
        cpu, begun = node.cpu_seconds(), time.monotonic()
        # Longer than the heartbeat, so that every socket has had its pings and heartbeats.
        time.sleep(25)
        share = (node.cpu_seconds() - cpu) / (time.monotonic() - begun) * 100
        each = (node.rss_mb() - before) * 1024 / IDLE
        result = json.loads(client.communicate()[0])
        node.stop()
        self.forget("idle")
        if client.returncode != 0:
            raise SystemExit(f"eddyline bench subscribe --idle: {result}")
        self.row(f"{IDLE:,} idle subscribed sockets, memory", f"{each:.1f} KB each", "<= 20 KB",
                 each <= 20)
        self.row("... CPU", f"{share:.1f} % of a core", "< 3 %", share < 3)

    def wait_for_sockets(self, node, count):
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            text = node.text("/metrics")
            found = re.search(r"^eddyline_\w*sockets_open(?:\{\})? (\d+)", text, re.MULTILINE)
            if found and int(found[1]) >= count:
                return
            time.sleep(0.5)
        raise SystemExit(f"there are no {count} sockets after two minutes")

    def commits(self):
        """Members on WebSockets, as most native members are, and members on event streams, which
        commit by POST; each has one commit on its way."""
        node = self.eddyline("commits")
        streams, members = self.stream_members(node, "streams")

        def on_sockets():
            result = self.run_bench(node, "commit", "sockets", "--members", MEMBERS)
            return {"rate": result["committed_per_second"], "p99": result["latency_us"]["p99"]}

        def by_post():
            result = self.wrk("commit.lua", f"{node.url}/v1/groups/streams/offsets", MEMBERS,
                              "streams", *members)
            return {**result, "p99": result["p99_us"]}

        results = self.rounds({"sockets": on_sockets, "post": by_post})
        for stream in streams:
            stream.close()
        node.stop()
        self.forget("commits")
        for name, how in (("sockets", "on WebSockets"), ("post", "by POST, on event streams")):
            rate, p99 = median(results[name], "rate"), median(results[name], "p99") / 1000
            self.row(f"commits of {MEMBERS} members {how}",
                     f"{rate:,.0f} acked commits/s, p99 {p99:.1f} ms", ">= 10,000",
                     rate >= 10_000)

    def stream_members(self, node, group):
        """Opens event streams that are members of a group. Returns them, and for each member its
        id, its epoch and its partition, once everybody has one."""
        node.create(group, MEMBERS)
        streams = []
        for _ in range(MEMBERS):
            stream = http.client.HTTPConnection(node.url.removeprefix("http://"))
            stream.request("GET", f"/v1/topics/{group}/records?group={group}&commit=manual",
                           headers={"accept": "text/event-stream"})
            streams.append(stream)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            time.sleep(0.5)
            shown = node.call("GET", f"/v1/groups/{group}")
            members = [(each["member_id"], str(each["epoch"]), str(part["partition"]))
                       for each in shown["members"] for part in each["assignment"]]
            if shown["state"] == "stable" and len(members) == MEMBERS:
                return streams, [word for member in members for word in member]
        raise SystemExit(f"the group did not settle: {shown}")

    def poll(self):
        ceiling, node = self.ceiling(), self.eddyline("poll")
        self.write_records(node, "poll", 8)
        bases = []
        for number in range(GROUPS):
            made = self.v2(node, f"/consumers/poll-{number}", {
                "name": "c", "format": "json", "auto.offset.reset": "earliest",
                "auto.commit.enable": "false"})
            bases.append(made["base_uri"].removeprefix(node.url))
            self.v2(node, f"{bases[-1]}/subscription", {"topics": ["poll"]})
        pages = RECORDS // POLLED

        def run_node():
            result = self.wrk("poll.lua", node.url, GROUPS, pages, *bases, threads=GROUPS)
            least = POLLED * VALUE_BYTES
            if result["bytes"] < result["requests"] * least * 0.95:
                raise SystemExit(f"answers without {POLLED} records: {result}")
            return result

        results = self.rounds({
            "ceiling": lambda: self.wrk("poll.lua", ceiling.url + "/page", GROUPS,
                                        threads=GROUPS),
            "v2": run_node,
        })
        ceiling.stop(signal.SIGKILL)
        node.stop()
        self.forget("poll")
        base, rate = median(results["ceiling"], "mb"), median(results["v2"], "mb")
        self.row(f"v2 json polls of {POLLED} records, {GROUPS} consumers in {GROUPS} groups",
                 f"{rate:,.0f} of {base:,.0f} MB/s = {rate / base:.2f}", ">= 0.3",
                 rate / base >= 0.3)

    def v2(self, node, path, body):
        return node.call("POST", path, json.dumps(body), "application/vnd.kafka.v2+json")


def sockets(server):
    return server.url.replace("http://", "ws://")


def millis(result, quantile):
    return f"{result['latency_us'][quantile] / 1000:.1f} ms"
