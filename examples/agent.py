#!/usr/bin/env python3
"""An agent in Python: it works on one task for a number of beats and sends a claim on each.

    pip install -r examples/requirements.txt
    examples/agent.py --agent py-1 --task train --beats 8

It shows what an agent in any language has to do: read beatframes with read_committed, and send a claim for each beat,
with the agent id as the record's key, in the registry's wire format. Unlike the Rust SDK it has no local beats: while
Kafka is unavailable, it stands still.
"""

import argparse
import io
import json
import os
import struct
import time
import urllib.request

import fastavro
from confluent_kafka import OFFSET_END, Consumer, Producer, TopicPartition


class Registry:
    """A client of a schema registry with the Confluent API."""

    def __init__(self, url):
        self.url = url
        self.by_id = {}

    def get(self, path):
        with urllib.request.urlopen(f"{self.url}/{path}", timeout=30) as response:
            return json.load(response)

    def latest(self, subject):
        """Returns the id and the schema of the latest version."""
        version = self.get(f"subjects/{subject}/versions/latest")
        return version["id"], fastavro.parse_schema(json.loads(version["schema"]))

    def decode(self, value):
        """Decodes a record in the wire format: a zero byte, the schema id, the Avro body."""
        magic, schema_id = struct.unpack(">bI", value[:5])
        if magic != 0:
            raise ValueError(f"not in the registry's wire format: the first byte is {magic}")
        if schema_id not in self.by_id:
            self.by_id[schema_id] = fastavro.parse_schema(json.loads(self.get(f"schemas/ids/{schema_id}")["schema"]))
        return fastavro.schemaless_reader(io.BytesIO(value[5:]), self.by_id[schema_id])


class Clock:
    """A hybrid logical clock (Kulkarni et al. 2014): later than all timestamps observed, and close to the wall clock."""

    def __init__(self):
        self.last = (0, 0)

    def after(self, hlc):
        """Returns an HLC timestamp later than `hlc`, as text."""
        physical, logical, _ = (int(part, 16) for part in hlc.split(":"))
        newest = max(self.last, (physical, logical))
        now = time.time_ns() // 1_000_000
        self.last = (now, 0) if now > newest[0] else (newest[0], newest[1] + 1)
        if self.last[1] > 0xFFFF:
            self.last = (self.last[0] + 1, 0)
        return f"{self.last[0]:x}:{self.last[1]:04x}:{os.getpid() & 0xFFFF:04x}"


def report_delivery(error, _message):
    if error is not None:
        print(f"cannot deliver a claim: {error}")


def main():
    parser = argparse.ArgumentParser(description="An agent in Python.")
    parser.add_argument("--agent", default="py-1")
    parser.add_argument("--task", default="train")
    parser.add_argument("--beats", type=int, default=8, help="beats of work")
    args = parser.parse_args()

    kafka = os.environ.get("KAFKA_BOOTSTRAP_SERVERS", "localhost:9092")
    registry = Registry(os.environ.get("SCHEMA_REGISTRY_URL", "http://localhost:8085/apis/ccompat/v7").rstrip("/"))
    prefix = os.environ.get("BACKBEAT_TOPIC_PREFIX", "")
    schema_id, schema = registry.latest(f"{prefix}statusclaims-value")

    # Every agent reads every beat, so nothing is committed; the group id is set only because the client requires one.
    # Frames are written in transactions.
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": f"{prefix}readers", "enable.auto.commit": False,
                         "isolation.level": "read_committed"})
    consumer.assign([TopicPartition(f"{prefix}beatframes", 0, OFFSET_END)])
    # The partitioner of Java's clients, so that an agent's claims go to one partition whichever client sends them.
    producer = Producer(
        {
            "bootstrap.servers": kafka,
            "enable.idempotence": True,
            "partitioner": "murmur2_random",
            # The topic's limit of a batch.
            "message.max.bytes": 65536,
        }
    )

    clock, worked = Clock(), 0
    while worked < args.beats:
        message = consumer.poll(1.0)
        if message is None:
            continue
        if message.error():
            print(f"cannot read beats: {message.error()}")
            continue
        frame = registry.decode(message.value())
        worked += 1
        claim = {
            "type": "backbeat.statusclaim.v1",
            "agent_id": args.agent,
            "task_id": args.task,
            "beat_index": frame["beat_index"],
            "state": "done" if worked == args.beats else "executing",
            "beats_left": args.beats - worked,
            "progress": worked / args.beats,
            "notes": f"beat {worked} of {args.beats}",
            "hlc": clock.after(frame["hlc"]),
        }
        body = io.BytesIO(struct.pack(">bI", 0, schema_id))
        body.seek(0, io.SEEK_END)
        fastavro.schemaless_writer(body, schema, claim)
        producer.produce(f"{prefix}statusclaims", key=args.agent, value=body.getvalue(), on_delivery=report_delivery)
        producer.poll(0)
    undelivered = producer.flush(30)
    consumer.close()
    print(f"{worked - undelivered} claims delivered, {undelivered} undelivered")


if __name__ == "__main__":
    main()
