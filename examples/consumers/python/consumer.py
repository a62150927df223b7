"""Prints every event of a fieldpost topic once: consumer.py BROKERS TOPIC GROUP, until SIGTERM."""

import signal
import sys

from confluent_kafka import Consumer, KafkaException, TopicPartition

brokers, topic, group = sys.argv[1:]
last = {}  # by partition: by lane of a log: the last position (epoch, seq)
stopping = False


def stop(signum, frame):
    global stopping
    stopping = True


def assigned(consumer, partitions):
    for partition in consumer.committed(partitions, timeout=30):
        if partition.error:
            raise KafkaException(partition.error)
        words = (word.split(":") for word in (partition.metadata or "").split())
        last[partition.partition] = {lane: (int(epoch), int(seq)) for lane, epoch, seq in words}


def is_new(message):
    headers = dict(message.headers() or [])
    if "fieldpost-log" not in headers:
        return True  # not written by fieldpost
    lane = headers["fieldpost-log"].decode() + ("+backlog" if "fieldpost-backlog" in headers else "")
    position = (int(headers["fieldpost-epoch"]), int(headers["fieldpost-seq"]))
    positions = last[message.partition()]
    if position <= positions.get(lane, (0, 0)):
        return False
    positions[lane] = position
    return True


def remembered(partition, offset):
    words = (f"{lane}:{epoch}:{seq}" for lane, (epoch, seq) in last[partition].items())
    return TopicPartition(topic, partition, offset, " ".join(words))


signal.signal(signal.SIGTERM, stop)
consumer = Consumer({
    "bootstrap.servers": brokers,
    "group.id": group,
    "auto.offset.reset": "earliest",
    "enable.auto.commit": False,
})
consumer.subscribe([topic], on_assign=assigned)
while not stopping:
    behind = {}  # by partition: the offset behind the last message
    for message in consumer.consume(500, timeout=0.5):
        if message.error():
            raise KafkaException(message.error())
        if is_new(message):
            print(message.value().decode())  # the result: put your own work here
        behind[message.partition()] = message.offset() + 1
    if behind:
        sys.stdout.flush()  # results first, then offset and positions in one commit
        consumer.commit(offsets=[remembered(*item) for item in behind.items()], asynchronous=False)
consumer.close()
