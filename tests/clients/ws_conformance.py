#!/usr/bin/env python3
"""The WebSocket protocol against a running server, by a client library of its own.

    ws_conformance.py http://HOST:PORT BINARY

Needs the package `websockets`. The server closes sockets that say no hello within a second. With the
server's BINARY it starts nodes of its own, which it kills. Prints one line for each check; ends with
1 at the first that fails.
"""

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.request
import uuid

import websockets

PROTOCOL = "eddyline.v1.json"
URL = sys.argv[1]
BINARY = sys.argv[2]
WAIT = 60
SILENCE = 0.3


def call(method, path, body=None, url=URL):
    """Sends an HTTP request and returns the answer's JSON."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data=data, method=method)
    request.add_header("content-type", "application/json")
    with urllib.request.urlopen(request) as answer:
        text = answer.read()
    return json.loads(text) if text else None


def fill(topic, values, partition=0, url=URL):
    """Writes records with these values."""
    records = [{"key": f"k{v}", "value": v, "partition": partition} for v in values]
    call("POST", f"/v1/topics/{topic}/records", records, url)


class Node:
    """A server process with a directory of its own, which goes with it."""

    def __init__(self, *settings):
        self.settings = settings
        self.directory = tempfile.TemporaryDirectory()
        self.start("127.0.0.1:0")

    def start(self, listen):
        command = [BINARY, "serve", "--log", "error", "--listen", listen]
        command += ["--data-dir", self.directory.name]
        for setting in self.settings:
            command += ["--set", setting]
        clean = {k: v for k, v in os.environ.items() if not k.startswith("EDDYLINE_")}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=clean)
        ready = self.process.stdout.readline()
        assert ready.startswith("ready http://"), ready
        self.url = ready.split()[1]

    def kill_and_restart(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()
        self.start(self.url.removeprefix("http://"))

    def resident_bytes(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            line = next(line for line in status if line.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.directory.cleanup()


class Client:
    """One socket."""

    def __init__(self, socket):
        self.socket = socket

    async def send(self, **frame):
        await self.socket.send(json.dumps(frame))

    async def next(self, kind=None):
        text = await asyncio.wait_for(self.socket.recv(), WAIT)
        assert text.startswith('{"type":"'), text
        frame = json.loads(text)
        assert kind is None or frame["type"] == kind, frame
        return frame

    async def silent(self):
        try:
            frame = await asyncio.wait_for(self.socket.recv(), SILENCE)
        except asyncio.TimeoutError:
            return
        raise AssertionError(f"expected silence: {frame}")

    async def subscribe(self, topic, id=1, **more):
        await self.send(type="subscribe", id=id, topic=topic, **more)
        return await self.next("subscribed")

    async def closed(self):
        try:
            while True:
                await asyncio.wait_for(self.socket.recv(), WAIT)
        except websockets.ConnectionClosed:
            return self.socket.close_code


async def open_socket(hello=True, path="", protocols=(PROTOCOL,), origin=None, url=URL):
    socket = await websockets.connect(
        url.replace("http", "ws", 1) + "/v1/ws" + path,
        subprotocols=list(protocols) or None,
        origin=origin,
        compression=None,
    )
    client = Client(socket)
    if hello:
        await client.send(type="hello", client="conformance")
        welcome = await client.next("welcome")
        assert welcome["limits"]["frame"] == 262144, welcome
        assert socket.subprotocol == PROTOCOL
    return client


async def refused(**how):
    """Returns the status with which a handshake is refused."""
    try:
        await open_socket(hello=False, **how)
    except websockets.InvalidHandshake as error:
        response = getattr(error, "response", None)
        return response.status_code if response else error.status_code
    raise AssertionError(f"not refused: {how}")


async def no_hello_is_4408():
    assert await (await open_socket(hello=False)).closed() == 4408


async def wrong_origin_is_403():
    assert await refused(origin="https://evil.example") == 403


async def token_in_the_query_is_400():
    assert await refused(path="?token=abc") == 400
    assert await refused(path="?access_token=abc") == 400


async def another_version_is_400():
    assert await refused(protocols=["eddyline.v9.json"]) == 400
    assert await refused(protocols=[]) == 400


async def credit_is_exact():
    fill("credit", range(100))
    client = await open_socket()
    await client.subscribe("credit", **{"from": {"at": "earliest"}, "credit": {"records": 0}})
    await client.silent()
    place = 0
    for credit in (1, 7, 30):
        await client.send(type="credit", id=1, records=credit)
        got = 0
        while got < credit:
            frame = await client.next("records")
            assert frame["base"] == place, frame
            place, got = frame["next"], got + len(frame["records"])
        assert got == credit
        await client.silent()


async def bytes_overshoot_by_one_record():
    client = await open_socket()
    await client.subscribe(
        "credit", **{"from": {"at": "earliest"}, "credit": {"records": 50, "bytes": 1}}
    )
    assert len((await client.next("records"))["records"]) == 1
    await client.silent()


async def filters_without_a_match_advance():
    client = await open_socket()
    await client.subscribe(
        "credit", **{"from": {"at": "earliest"}, "filter": {"key": {"equals": "none"}}}
    )
    progress = await client.next("progress")
    assert progress["next"] == {"0": 100} and progress["matched"] == 0, progress


async def garbage_is_4400():
    client = await open_socket()
    await client.socket.send("x" * 65536)
    assert await client.closed() == 4400


async def too_large_is_1009():
    client = await open_socket()
    await client.socket.send("x" * 300000)
    assert await client.closed() == 1009


async def a_used_id_is_4409():
    client = await open_socket()
    await client.subscribe("credit")
    await client.send(type="subscribe", id=1, topic="credit")
    assert await client.closed() == 4409


async def too_many_subscriptions_are_4413():
    client = await open_socket()
    for id in range(64):
        await client.subscribe("credit", id=id)
    await client.send(type="subscribe", id=64, topic="credit")
    assert await client.closed() == 4413


async def another_epoch_is_a_reset():
    client = await open_socket()
    start = {"offsets": {"0": 50}, "epoch": {"0": 1000000}}
    none = {"records": 0}
    subscribed = await client.subscribe("credit", **{"from": start, "credit": none})
    assert subscribed["reset"] == {"0": {"asked": 50, "reason": "truncated"}}, subscribed
    start = {"offsets": {"0": 101}}
    subscribed = await client.subscribe("credit", id=2, **{"from": start, "credit": none})
    assert subscribed["reset"] == {"0": {"asked": 101, "reason": "truncated"}}, subscribed


async def records_are_live_and_resumed_without_gap():
    call("PUT", "/v1/topics/live", {"partitions": 1})
    client = await open_socket()
    await client.subscribe("live", **{"from": {"at": "earliest"}})
    place = 0
    for round in range(20):
        fill("live", range(round * 10, round * 10 + 10))
        until = place + 10
        while place < until:
            frame = await client.next("records")
            assert frame["base"] == place, frame
            place = frame["next"]
        if round % 5 == 4:
            # The connection breaks off; the next one goes on where this one was.
            client.socket.transport.abort()
            client = await open_socket()
            await client.subscribe("live", **{"from": {"offsets": {"0": place}}})


async def produce_is_acknowledged():
    client = await open_socket()
    for seq in range(100):
        record = {"key": "k", "value": {"n": seq}}
        await client.send(type="produce", seq=seq, topic="written", records=[record])
    offsets = {}
    while len(offsets) < 100:
        produced = await client.next("produced")
        offsets[produced["seq"]] = produced["records"][0]["offset"]
    assert all(seq == offset for seq, offset in offsets.items()), offsets


async def groups_commit_and_go_on():
    fill("grouped", range(10))
    client = await open_socket()
    await client.subscribe("grouped", group={"id": "conformance"})
    assigned = await client.next("assigned")
    assert assigned["start"] == {"0": 0}, assigned
    await client.next("records")
    await client.send(type="commit", id=1, offsets={"0": 6}, seq=1)
    assert (await client.next("committed"))["seq"] == 1
    await client.send(type="unsubscribe", id=1)
    await client.next("unsubscribed")
    await client.subscribe("grouped", group={"id": "conformance"})
    assert (await client.next("assigned"))["start"] == {"0": 6}


async def commits_are_fenced_after_a_rebalance():
    call("PUT", "/v1/topics/fenced", {"partitions": 2})
    for partition in (0, 1):
        fill("fenced", range(10), partition)
    first = await open_socket()
    await first.subscribe("fenced", group={"id": "fenced"})
    assert (await first.next("assigned"))["partitions"] == [0, 1]
    seen = {}
    while seen != {0: 10, 1: 10}:
        frame = await first.next("records")
        seen[frame["p"]] = frame["next"]
    second = await open_socket()
    join = dict(type="subscribe", id=1, topic="fenced", group={"id": "fenced"})
    await second.send(**join)
    (given,) = (await first.next("revoking"))["partitions"]
    # While it is asked back it may be committed for the last time.
    await first.send(type="commit", id=1, offsets={given: 10}, seq=1)
    frames = [await first.next(), await first.next()]
    kinds = sorted(frame["type"] for frame in frames)
    assert kinds == ["committed", "revoked"], frames
    await first.send(type="commit", id=1, offsets={given: 3}, seq=2)
    error = await first.next("error")
    assert (error["seq"], error["code"], error["error_code"]) == (2, "stale_member", 40906), error
    assert error["fatal_to"] == "request" and error["retriable"] is False, error
    # What is kept is its own as before.
    await first.send(type="commit", id=1, offsets={1 - given: 10}, seq=3)
    assert (await first.next("committed"))["seq"] == 3
    while (frame := await second.next())["type"] != "assigned" or not frame["partitions"]:
        pass
    assert frame["start"] == {str(given): 10}, frame
    offsets = call("GET", "/v1/groups/fenced/offsets")["offsets"]
    assert [of["offset"] for of in offsets] == [10, 10], offsets


async def a_killed_node_is_resumed_from_without_gap_or_repeat():
    with Node() as node:
        call("PUT", "/v1/topics/t", {"partitions": 1}, node.url)
        place, epoch, seen = 0, None, []
        for round in range(3):
            fill("t", range(round * 100, round * 100 + 100), url=node.url)
            client = await open_socket(url=node.url)
            start = {"offsets": {"0": place}} | ({"epoch": {"0": epoch}} if epoch else {})
            subscribed = await client.subscribe("t", **{"from": start, "credit": {"records": 70}})
            assert subscribed["reset"] == {} and subscribed["start"] == {"0": place}, subscribed
            assert epoch is None or subscribed["epoch"]["0"] > epoch, subscribed
            epoch = subscribed["epoch"]["0"]
            got = 0
            while got < 70:
                frame = await client.next("records")
                assert frame["base"] == place, frame
                seen += [record[0] for record in frame["records"]]
                place, got = frame["next"], got + len(frame["records"])
            node.kill_and_restart()
            # The connection breaks off; nothing that is told before is taken back.
            assert await client.closed() == 1006
        assert seen == list(range(210)), seen
        # A group goes on where it has committed: what was not is delivered again, at most.
        client = await open_socket(url=node.url)
        await client.subscribe("t", group={"id": "g"})
        assert (await client.next("assigned"))["start"] == {"0": 0}
        await client.next("records")
        await client.send(type="commit", id=1, offsets={"0": 150}, seq=1)
        await client.next("committed")
        node.kill_and_restart()
        assert await client.closed() == 1006
        client = await open_socket(url=node.url)
        # The member that is away has its session; who joins gets its partition after that. An
        # operator need not wait to see that the offset is there.
        offsets = call("GET", "/v1/groups/g/offsets", url=node.url)["offsets"]
        assert [of["offset"] for of in offsets] == [150], offsets
        subscribed = await client.subscribe("t", **{"from": {"group": "g"}})
        assert subscribed["start"] == {"0": 150}, subscribed
        assert (await client.next("records"))["base"] == 150


async def retention_that_passes_a_paused_reader_is_a_gap():
    with Node("storage.retention_interval=100ms") as node:
        configs = {"segment.bytes": 65536, "retention.bytes": 100000}
        call("PUT", "/v1/topics/t", {"partitions": 1, "configs": configs}, node.url)
        large = [{"value": "x" * 1000} for _ in range(20)]
        call("POST", "/v1/topics/t/records", large, node.url)
        client = await open_socket(url=node.url)
        start = {"from": {"at": "earliest"}, "credit": {"records": 5}}
        await client.subscribe("t", **start)
        assert (await client.next("records"))["next"] == 5
        await client.send(type="pause", id=1)
        await client.send(type="credit", id=1, records=5)
        for _ in range(20):
            call("POST", "/v1/topics/t/records", large, node.url)
        while True:
            shown = call("GET", "/v1/topics/t", url=node.url)["details"][0]
            if shown["log_start_offset"] > 200:
                break
            await asyncio.sleep(0.05)
        await client.send(type="resume", id=1)
        gap = await client.next("gap")
        assert (gap["from"], gap["reason"]) == (5, "retention"), gap
        frame = await client.next("records")
        assert frame["base"] == gap["to"] + 1, (gap, frame)


async def paused_subscriptions_cost_little_whatever_is_written():
    with Node("storage.tail_cache_bytes=8 MiB") as node:
        call("PUT", "/v1/topics/t", {"partitions": 1}, node.url)
        record = {"value": "x" * 10000}
        call("POST", "/v1/topics/t/records", [record] * 100, node.url)
        # 10,048 subscriptions without credit: on each the server holds an offset and no more.
        clients = []
        for _ in range(157):
            client = await open_socket(url=node.url)
            for id in range(64):
                start = {"from": {"at": "earliest"}, "credit": {"records": 0}}
                await client.send(type="subscribe", id=id, topic="t", **start)
            for _ in range(64):
                await client.next("subscribed")
            clients.append(client)
        before = node.resident_bytes()
        for _ in range(100):
            call("POST", "/v1/topics/t/records", [record] * 100, node.url)
        grown = node.resident_bytes() - before
        # A hundred megabytes were written, and every subscription could have them.
        assert grown < 64 << 20, f"grew by {grown} bytes"
        await clients[0].silent()
        await clients[-1].send(type="credit", id=63, records=1, bytes=1)
        assert len((await clients[-1].next("records"))["records"]) == 1
        print("  grew by", grown >> 20, "MiB", flush=True)


def cursor(topic, places):
    """Makes a cursor as the API's description says."""

    def varint(number):
        text = b""
        while number >= 128:
            text += bytes([number & 127 | 128])
            number >>= 7
        return text + bytes([number])

    raw = b"\x01" + uuid.UUID(call("GET", f"/v1/topics/{topic}")["topic_id"]).bytes
    for partition, offset in sorted(places.items()):
        raw += varint(partition) + varint(offset)
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def events(topic, query="", last_event_id=None):
    """Yields the events of a stream with data: name, id, data; first the header Eddyline-Start."""
    request = urllib.request.Request(f"{URL}/v1/topics/{topic}/records{query}")
    request.add_header("accept", "text/event-stream")
    if last_event_id:
        request.add_header("last-event-id", last_event_id)
    with urllib.request.urlopen(request, timeout=WAIT) as answer:
        yield answer.headers["eddyline-start"]
        event = {}
        for line in answer:
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name:
                event[name] = value
            elif "data" in event:
                yield event["event"], event["id"], json.loads(event["data"])
                event = {}
            else:
                event = {}


async def last_event_id_is_the_cursor_that_is_described():
    call("PUT", "/v1/topics/events", {"partitions": 3})
    for partition in range(3):
        fill("events", range(200), partition)
    # A known place, made by hand: two bytes for 150, and a partition that is left out starts at
    # its log start. It beats `from`.
    stream = events("events", "?from=earliest&limit=1000", cursor("events", {0: 150, 2: 199}))
    assert next(stream) == cursor("events", {0: 150, 1: 0, 2: 199})
    seen = {0: [], 1: [], 2: []}
    while sum(map(len, seen.values())) < 50 + 200 + 1:
        name, id, data = next(stream)
        assert name == "records" and id == data["next"], (name, id)
        for record in data["records"]:
            seen[record["partition"]].append(record["offset"])
    assert seen == {0: list(range(150, 200)), 1: list(range(200)), 2: [199]}, seen
    assert id == cursor("events", {0: 200, 1: 200, 2: 200}), id
    stream.close()
    # What it was told last goes on there: nothing twice, nothing left out.
    fill("events", [200], 1)
    stream = events("events", last_event_id=id)
    assert next(stream) == id
    (record,) = next(stream)[2]["records"]
    assert (record["partition"], record["offset"]) == (1, 200), record
    stream.close()


async def pings_are_answered():
    client = await open_socket()
    await asyncio.wait_for(await client.socket.ping(b"abc"), WAIT)
    await client.send(type="ping", t=[1, "x"])
    assert (await client.next("pong"))["t"] == [1, "x"]


CHECKS = [
    wrong_origin_is_403,
    token_in_the_query_is_400,
    another_version_is_400,
    credit_is_exact,
    bytes_overshoot_by_one_record,
    filters_without_a_match_advance,
    garbage_is_4400,
    too_large_is_1009,
    a_used_id_is_4409,
    too_many_subscriptions_are_4413,
    another_epoch_is_a_reset,
    records_are_live_and_resumed_without_gap,
    produce_is_acknowledged,
    groups_commit_and_go_on,
    commits_are_fenced_after_a_rebalance,
    a_killed_node_is_resumed_from_without_gap_or_repeat,
    retention_that_passes_a_paused_reader_is_a_gap,
    paused_subscriptions_cost_little_whatever_is_written,
    last_event_id_is_the_cursor_that_is_described,
    pings_are_answered,
    no_hello_is_4408,
]


async def main():
    call("PUT", "/v1/topics/credit", {"partitions": 1})
    call("PUT", "/v1/topics/grouped", {"partitions": 1})
    for check in CHECKS:
        await check()
        print("ok", check.__name__, flush=True)
    print(len(CHECKS), "checks passed", flush=True)


asyncio.run(main())
