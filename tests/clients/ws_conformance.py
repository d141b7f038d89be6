#!/usr/bin/env python3
"""The WebSocket protocol against a running server, by a client library of its own.

    ws_conformance.py http://HOST:PORT

Needs the package `websockets`. Prints one line for each check; ends with 1 at the first that fails.
"""

import asyncio
import json
import sys
import urllib.request

import websockets

PROTOCOL = "eddyline.v1.json"
URL = sys.argv[1]
SOCKET = URL.replace("http", "ws", 1) + "/v1/ws"
WAIT = 20
SILENCE = 0.3


def call(method, path, body=None):
    """Sends an HTTP request and returns the answer's JSON."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(URL + path, data=data, method=method)
    request.add_header("content-type", "application/json")
    with urllib.request.urlopen(request) as answer:
        text = answer.read()
    return json.loads(text) if text else None


def fill(topic, values, partition=0):
    """Writes records with these values."""
    records = [{"key": f"k{v}", "value": v, "partition": partition} for v in values]
    call("POST", f"/v1/topics/{topic}/records", records)


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


async def open_socket(hello=True, path="", protocols=(PROTOCOL,), origin=None):
    socket = await websockets.connect(
        SOCKET + path, subprotocols=list(protocols) or None, origin=origin, compression=None
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
