"""stream.py URL SEED EXAMPLES: seeded random requests for /events/stream, which has no end, held against the agent's OpenAPI
document and against the events that /events has."""

import json
import random
import re
import sys

import jsonschema_rs
import requests

url, seed, examples = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
choose = random.Random(seed)
document = requests.get(f"{url}/openapi.json", timeout=10).json()
answers = document["paths"]["/events/stream"]["get"]["responses"]
event_schema = {"$ref": "#/components/schemas/Event", "components": document["components"]}
events = requests.get(f"{url}/events?limit=1000", timeout=10).json()["events"]
assert len(events) >= 50, "there are events to ask for"
SEQ_MAX = 2**63 - 1


def seq(position):
    return int(position.split("-")[1])


def noise():
    characters = "".join(map(chr, [*range(0x20, 0x7F), 0, 10, 0xE9, 0x65E5, 0x1F600]))
    return "".join(choose.choices(characters, k=choose.randrange(0, 40)))


def position():
    number = choose.choice([0, seq(choose.choice(events)["position"]), 10**6, SEQ_MAX, SEQ_MAX + 1, 2**64])
    return f"{choose.choice([1, 7])}-{number}"


def question():
    """Parameters, the header, and whether the answer has to be a stream; None: either."""
    wanted, header = {}, {}
    if choose.random() < 0.4:
        wanted["source_id"] = choose.choice(["s-0", "s-1", "nobody", noise()])
    if choose.random() < 0.3:
        wanted["type"] = choose.choice(["reading", "alarm", noise()])
    if choose.random() < 0.7:
        wanted["after"] = choose.choice([position(), position(), noise()])
    if choose.random() < 0.2:
        # A header is Latin-1 without line ends.
        text = choose.choice([position(), noise()])
        header["Last-Event-ID"] = re.sub(r"[^\x20-\x7e\xe9]", "", text).strip()
    is_stranger = choose.random() < 0.1
    if is_stranger:
        wanted[choose.choice(["limit", "after ", "x"])] = noise()
    after = header.get("Last-Event-ID") or wanted.get("after")
    is_position = after is None or (re.fullmatch(r"[0-9]{1,10}-[0-9]+", after) and seq(after) <= SEQ_MAX)
    return wanted, header, after if is_position else None, bool(is_position) and not is_stranger


def words(answer):
    """Server-sent events: each a dict of its fields."""
    word = {}
    for line in answer.iter_lines(decode_unicode=True):
        if line:
            name, _, value = line.partition(":")
            word[name] = value.removeprefix(" ")
        else:
            yield word
            word = {}


def check_stream(answer, wanted, after):
    stream = words(answer)
    assert next(stream).get("retry"), "the first word says when to come back"
    if after is None:
        return
    last = seq(events[-1]["position"])
    if seq(after) > last:
        word = next(stream)
        assert word.get("event") == "gap", word
        return
    for event in events:
        is_wanted = all(event[name] == value for name, value in wanted.items() if name != "after")
        if is_wanted and seq(event["position"]) > seq(after):
            word = next(stream)
            said = json.loads(word["data"])
            jsonschema_rs.validate(event_schema, said)
            assert (word["id"], said) == (event["position"], event), (word, event)


counts = {}
for number in range(examples):
    wanted, header, after, is_stream = question()
    asked = {"params": wanted, "headers": {**header, "Connection": "close"}, "stream": True, "timeout": 10}
    with requests.get(f"{url}/events/stream", **asked) as answer:
        status = str(answer.status_code)
        place = f"example {number} of seed {seed}: {wanted} {header} -> {status}"
        assert status in answers and status[0] != "5", place
        assert (status == "200") == is_stream, place
        (content_type, content), = answers[status]["content"].items()
        assert answer.headers["content-type"].split(";")[0] == content_type, place
        try:
            if status == "200":
                check_stream(answer, wanted, after)
            else:
                schema = {**content["schema"], "components": document["components"]}
                jsonschema_rs.validate(schema, answer.json())
        except Exception as error:
            raise AssertionError(place) from error
    counts[status] = counts.get(status, 0) + 1
assert counts.get("200") and counts.get("400"), counts
print(f"/events/stream: {counts}, each as the document says")
