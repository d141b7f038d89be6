"""Reads a topic with a REST Proxy v2 client from PyPI, kafka-bridge-client, and commits.

Usage: rest_proxy.py URL TOPIC GROUP. Prints the offset of each record, then says when it is done.
Create, subscribe, poll, commit and delete are the client's own; nothing is set up by hand.
"""

import asyncio
import base64
import sys

from kafka_bridge_client import KafkaBridgeConsumer


async def main(url, topic, group):
    consumer = KafkaBridgeConsumer(
        topic,
        bootstrap_server=url,
        group_id=group,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        consumer_name="from-pypi",
        sleep_interval_seconds=0,
        proxy="confluent",
    )
    async with consumer:
        records = await consumer.poll_records(max_bytes=100_000, timeout=10_000)
        for record in records:
            print(record["offset"], base64.b64decode(record["value"]).decode())
        await consumer.commit()
    print("done")


asyncio.run(main(*sys.argv[1:]))
