#!/usr/bin/env python3
"""An agent in Python: one task, a claim on every beat, done after so many beats of work.

    pip install -r examples/requirements.txt
    examples/agent.py --agent py-1 --task train --beats 8

It is what an agent in any language has to do: read beatframes as committed, claim for the beat that was heard, with
the agent as the record's key, in the registry's wire format. Unlike the Rust SDK's, its beat stops when Kafka's does.
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
    """A schema registry, by Confluent's API."""

    def __init__(self, url):
        self.url = url
        self.by_id = {}

    def get(self, path):
        with urllib.request.urlopen(f"{self.url}/{path}", timeout=30) as answer:
            return json.load(answer)

    def newest(self, subject):
        """Its id, and the schema."""
        found = self.get(f"subjects/{subject}/versions/latest")
        return found["id"], fastavro.parse_schema(json.loads(found["schema"]))

    def decode(self, value):
        """A record in the wire format: a zero byte, the schema's id, the Avro body."""
        magic, schema_id = struct.unpack(">bI", value[:5])
        if magic != 0:
            raise ValueError(f"not in the registry's wire format: the first byte is {magic}")
        if schema_id not in self.by_id:
            self.by_id[schema_id] = fastavro.parse_schema(json.loads(self.get(f"schemas/ids/{schema_id}")["schema"]))
        return fastavro.schemaless_reader(io.BytesIO(value[5:]), self.by_id[schema_id])


class Clock:
    """A hybrid logical clock (Kulkarni et al. 2014): after whatever it has seen, and close to the wall clock."""

    def __init__(self):
        self.last = (0, 0)

    def after(self, hlc):
        """A reading after `hlc`, as text."""
        physical, logical, _ = (int(part, 16) for part in hlc.split(":"))
        newest = max(self.last, (physical, logical))
        now = time.time_ns() // 1_000_000
        self.last = (now, 0) if now > newest[0] else (newest[0], newest[1] + 1)
        if self.last[1] > 0xFFFF:
            self.last = (self.last[0] + 1, 0)
        return f"{self.last[0]:x}:{self.last[1]:04x}:{os.getpid() & 0xFFFF:04x}"


def lost(error, _message):
    if error is not None:
        print(f"a claim was not delivered: {error}")


def main():
    parser = argparse.ArgumentParser(description="An agent in Python.")
    parser.add_argument("--agent", default="py-1")
    parser.add_argument("--task", default="train")
    parser.add_argument("--beats", type=int, default=8, help="beats of work")
    args = parser.parse_args()

    kafka = os.environ.get("KAFKA_BOOTSTRAP_SERVERS", "localhost:9092")
    registry = Registry(os.environ.get("SCHEMA_REGISTRY_URL", "http://localhost:8085/apis/ccompat/v7").rstrip("/"))
    prefix = os.environ.get("BACKBEAT_TOPIC_PREFIX", "")
    schema_id, schema = registry.newest(f"{prefix}statusclaims-value")

    # Every agent hears every beat: nothing is committed to the group, which the client wants named. Frames are written in
    # transactions.
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": f"{prefix}readers", "enable.auto.commit": False,
                         "isolation.level": "read_committed"})
    consumer.assign([TopicPartition(f"{prefix}beatframes", 0, OFFSET_END)])
    # The partitioner of Java's clients, so that an agent's claims lie in one partition whoever sends them.
    producer = Producer({"bootstrap.servers": kafka, "enable.idempotence": True, "partitioner": "murmur2_random"})

    clock, heard = Clock(), 0
    while heard < args.beats:
        message = consumer.poll(1.0)
        if message is None:
            continue
        if message.error():
            print(f"reading beats: {message.error()}")
            continue
        frame = registry.decode(message.value())
        heard += 1
        claim = {
            "type": "backbeat.statusclaim.v1",
            "agent_id": args.agent,
            "task_id": args.task,
            "beat_index": frame["beat_index"],
            "state": "done" if heard == args.beats else "executing",
            "beats_left": args.beats - heard,
            "progress": heard / args.beats,
            "notes": f"beat {heard} of {args.beats}",
            "hlc": clock.after(frame["hlc"]),
        }
        body = io.BytesIO(struct.pack(">bI", 0, schema_id))
        body.seek(0, io.SEEK_END)
        fastavro.schemaless_writer(body, schema, claim)
        producer.produce(f"{prefix}statusclaims", key=args.agent, value=body.getvalue(), on_delivery=lost)
        producer.poll(0)
    left = producer.flush(30)
    consumer.close()
    print(f"{heard - left} claims sent, {left} left over")


if __name__ == "__main__":
    main()
