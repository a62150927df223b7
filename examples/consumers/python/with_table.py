"""Writes every event of a fieldpost topic once into a database: with_table.py BROKERS TOPIC GROUP FILE, until SIGTERM."""

import signal
import sqlite3
import sys

from confluent_kafka import Consumer, KafkaException

brokers, topic, group, file = sys.argv[1:]
stopping = False

# One row changes for an event that is new, none for one that comes again.
ADVANCE = """
INSERT INTO positions (topic, partition, log, backlog, epoch, seq) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (topic, partition, log, backlog) DO UPDATE SET epoch = excluded.epoch, seq = excluded.seq
WHERE (excluded.epoch, excluded.seq) > (positions.epoch, positions.seq)
"""


def stop(signum, frame):
    global stopping
    stopping = True


def is_new(database, message):
    headers = dict(message.headers() or [])
    if "fieldpost-log" not in headers:
        return True  # not written by fieldpost
    lane = (headers["fieldpost-log"].decode(), "fieldpost-backlog" in headers)
    position = (int(headers["fieldpost-epoch"]), int(headers["fieldpost-seq"]))
    return database.execute(ADVANCE, (message.topic(), message.partition()) + lane + position).rowcount == 1


signal.signal(signal.SIGTERM, stop)
database = sqlite3.connect(file, timeout=30)
with database:
    database.execute("CREATE TABLE IF NOT EXISTS events (event TEXT)")  # the results: your own tables
    database.execute(
        "CREATE TABLE IF NOT EXISTS positions (topic TEXT, partition INTEGER, log TEXT, backlog INTEGER, epoch INTEGER,"
        " seq INTEGER, PRIMARY KEY (topic, partition, log, backlog))"
    )
consumer = Consumer({
    "bootstrap.servers": brokers,
    "group.id": group,
    "auto.offset.reset": "earliest",
    "enable.auto.commit": False,
})
consumer.subscribe([topic])
while not stopping:
    messages = consumer.consume(500, timeout=0.5)
    with database:  # one transaction: results and positions
        for message in messages:
            if message.error():
                raise KafkaException(message.error())
            if is_new(database, message):
                database.execute("INSERT INTO events VALUES (?)", (message.value().decode(),))
    if messages:
        consumer.commit(asynchronous=False)  # behind the transaction: what is read again is dropped
consumer.close()
