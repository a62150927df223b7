"""What the page has to do. Each check has an agent of its own and fails by an assertion that says what it saw."""

import base64
import json
import random
import re
import urllib.request

from agent import reading
from world import WIDTHS

ROWS_MAX = 50
ROWS = "document.querySelectorAll('#events tr').length"
TITLE = "document.querySelector('#says').textContent"
STREAM = "document.querySelector('#stream-state').textContent"
# The number in each row's payload, newest first.
NUMBERS = "[...document.querySelectorAll('#events tr')].map((row) => JSON.parse(row.lastChild.textContent).n)"

# Hardly to be compressed, and the same in each run.
NOISE = base64.b64encode(random.Random(7).randbytes(30_000)).decode()


def value(of, name):
    """A figure of one of the three lists, by the name before it."""
    return f"[...document.querySelectorAll('#{of} dt')].find((name) => name.textContent === {json.dumps(name)})?.nextSibling.textContent"


def json_of(agent, path):
    with urllib.request.urlopen(agent.address + path, timeout=20) as answer:
        return json.load(answer)


def check_kafka_up_down_and_catching_up(world):
    backlog, per_s = 1500, 100
    kafka = world.kafka()
    kafka.make_topic("page", max_message_bytes=20_000)
    agent = world.agent(kafka.address, kafka__topic="page", kafka__max_event_rate=per_s, ledger__announce=False)
    tab = world.open(agent)

    tab.until("there is the page", "!document.querySelector('#all').hidden")
    agent.send(map(reading, range(40)))
    tab.until("events move", TITLE, is_it="Events move.".__eq__)
    tab.until("nothing waits", "document.querySelector('#waiting').textContent", is_it="0".__eq__)
    tab.until("all went out", value("out", "since the start"), is_it="40".__eq__)
    tab.until("a rate of both", "['in-rate', 'out-rate'].map((id) => Number(document.getElementById(id).textContent))",
              is_it=lambda rates: min(rates) > 0)
    assert tab.text("#no-losses") == "Nothing, ever." and not tab.run("document.querySelector('#losses').checkVisibility()")
    links = tab.run("[...document.querySelectorAll('#links tr')].map((row) => row.innerText)")
    assert len(links) == 1 and re.fullmatch(r"Kafka\s+up for \d+ s\s+none", links[0]), links
    assert tab.run("document.title") == "gateway-17 · fieldpost"
    tab.until("the recent events", NUMBERS, is_it=list(reversed(range(40))).__eq__)
    world.looks(tab, "up")

    # One that the topic does not take, and one that is no event.
    agent.send([reading(40, text=NOISE[:30_000]), "no event"], refused=1)
    tab.until("the loss is told", TITLE, is_it="Events move; some were lost before, as the table below says.".__eq__)
    ledger = tab.until("both are in the ledger", "[...document.querySelectorAll('#ledger tr')].map((row) => row.innerText)",
                       is_it=lambda rows: len(rows) == 2)
    assert re.match(r"dead_lettered\s+had been acknowledged\s+1\s+\d\d/\d\d/\d{4}, ", ledger[0]), ledger
    assert re.match(r"invalid\s+the producer was told\s+1\s", ledger[1]), ledger
    assert tab.run(value("out", "dead letters")) == "1" and tab.run(value("in", "invalid")) == "1"
    world.looks(tab, "lost")

    kafka.kill()
    agent.send(map(reading, range(41, 41 + backlog)))
    tab.until("Kafka is down", TITLE, 60, "Events do not move as they should.".__eq__)
    why = tab.until("and why", "document.querySelector('#why').innerText", is_it=lambda text: "kafka is down for" in text)
    assert re.search(r"kafka is down for \d+ s: \S+", why), why
    tab.until("what waits", "document.querySelector('#waiting').textContent", is_it=f"{backlog:,}".__eq__)
    tab.until("how long", value("wait", "oldest"), is_it=lambda text: re.fullmatch(r"([2-9]|\d\d+) s|\d+ min \d+ s", text))
    assert re.fullmatch(r"[\d.]+ (KiB|MiB) of 1 GiB", tab.run(value("wait", "on disk")))
    assert tab.run(value("wait", "drained in")) == "not at this pace"
    row = tab.run("document.querySelector('#links tr').innerText")
    assert re.match(r"Kafka\s+down for \d+ s\s+\S.*\n\d+ s ago", row), row
    assert_quiet(tab, 6)
    world.looks(tab, "down")

    agent.kill()
    tab.until("it says that the agent is gone", TITLE, is_it="The agent does not answer.".__eq__)
    tab.until("and that it is not live", STREAM, is_it=lambda text: text.startswith("not live"))
    assert tab.text("#waiting") == f"{backlog:,}", "the last figures stay"
    assert_quiet(tab, 5)
    world.looks(tab, "gone")
    agent.start()
    agent.send(map(reading, range(41 + backlog, 51 + backlog)))
    tab.until("it is back by itself", TITLE, is_it="Events do not move as they should.".__eq__)
    kafka.start()
    tab.until("it catches up", TITLE, 40, lambda title: title.startswith("Catching up"))
    left = tab.until("when it will be drained", value("wait", "drained in"), 20, "not known yet".__ne__)
    # At 100 a second, of which the pace over the last minute knows a part.
    assert re.fullmatch(r"about (\d\d? s|[1-5] min \d+ s)", left), left
    assert re.search(r"\d+ events wait. Drained in: about ", tab.text("#why")), tab.text("#why")
    world.looks(tab, "catching-up")
    tab.until("all is drained", "document.querySelector('#waiting').textContent", 60, "0".__eq__)
    tab.until("events move", TITLE, is_it=lambda title: title.startswith("Events move"))
    tab.until("nothing is missing or twice", NUMBERS, is_it=list(range(50 + backlog, backlog, -1)).__eq__)
    tab.until("two samples make a line", "document.querySelector('#p-wait .line').points.length", 30, lambda n: n >= 2)


def assert_quiet(tab, seconds):
    """What a screen reader says aloud stays as it is while only figures change."""
    tab.run("""{ window.spoken = []; window.changed = 0;
      const all = { childList: true, characterData: true, subtree: true, attributes: true };
      for (const live of document.querySelectorAll("[role=status], [role=alert], [role=log], [aria-live]")) {
        new MutationObserver(() => window.spoken.push(live.textContent)).observe(live, all);
      }
      new MutationObserver(() => { window.changed += 1; }).observe(document.querySelector("main"), all); }""")
    tab.browser.rest_for(seconds)
    assert tab.run("document.querySelectorAll('[role=status]').length") == 1
    assert tab.run("window.changed") > 0, "the page stands still"
    spoken = tab.run("window.spoken")
    assert not spoken, f"a screen reader hears {spoken}"


def check_events_are_text_and_come_live(world):
    agent = world.agent()
    tab = world.open(agent)
    tab.until("it is live", STREAM, is_it="live".__eq__)
    tab.run("window.kept = true")
    evil = "<img src=x onerror=\"window.hit = 1\"><script>window.hit = 1</script><svg onload='window.hit = 1'>"
    agent.send([{"id": evil, "type": evil, "source_type": evil, "source_id": evil, "payload": {"n": 0, "text": evil}}])
    tab.until("it is shown", ROWS, is_it=(1).__eq__)
    cells = tab.run("[...document.querySelectorAll('#events td')].map((cell) => cell.textContent)")
    assert cells[1:] == [f"{evil} / {evil}", evil, json.dumps({"n": 0, "text": evil}, separators=(",", ":"))], cells
    assert tab.run("document.querySelectorAll('#events :is(img, script, svg)').length") == 0
    tab.browser.rest_for(0.5)
    assert tab.run("window.hit") is None, "something of an event ran"
    assert tab.run("window.kept"), "the page was loaded again"

    # What nobody managed: even so it runs nothing, and asks nobody else.
    tab.run("""const script = document.createElement("script"); script.textContent = "window.hit = 2"; document.body.append(script);
      const image = document.createElement("div"); image.innerHTML = "<img src='x' onerror='window.hit = 3'>"; document.body.append(image);
      script.remove(); setTimeout(() => image.remove()); null""")
    refused = tab.run("fetch('http://127.0.0.1:1/').then(() => 'asked', (error) => error.name)")
    assert refused == "TypeError", refused
    wanted = {"connect-src", "script-src-elem", "img-src"}
    tab.until("the policy refused it", "window.refused", is_it=lambda found: wanted <= set(found))
    assert tab.run("window.hit") is None
    tab.run("window.refused = []; null")
    tab.console = [line for line in tab.console if "Content Security Policy" not in line and "127.0.0.1:1/" not in line]

    # Of one source, and a pause.
    agent.send(reading(n, source=f"t-{n % 2}") for n in range(10))
    tab.until("all of them", ROWS, is_it=(11).__eq__)
    tab.run("document.querySelector('#source').focus()")
    tab.type("t-1")
    tab.key("Enter", "Enter")
    tab.until("those of one source", NUMBERS, is_it=[9, 7, 5, 3, 1].__eq__)
    tab.run("document.querySelector('#pause').click()")
    assert tab.text("#stream-state") == "paused" and tab.run("document.querySelector('#pause').ariaPressed") == "true"
    agent.send(reading(n, source=f"t-{n % 2}") for n in range(10, 14))
    tab.browser.rest_for(1)
    assert tab.run(NUMBERS) == [9, 7, 5, 3, 1], "it is paused"
    tab.run("document.querySelector('#pause').click()")
    tab.until("what came meanwhile", NUMBERS, is_it=[13, 11, 9, 7, 5, 3, 1].__eq__)

    # Over a restart: what came before the page is back, and what is in the buffer still.
    agent.kill()
    tab.until("it has noticed", STREAM, is_it=lambda text: text.startswith("not live"))
    agent.start()
    agent.send(reading(n, source=f"t-{n % 2}") for n in range(14, 18))
    tab.until("nothing is missing or twice", NUMBERS, is_it=[17, 15, 13, 11, 9, 7, 5, 3, 1].__eq__)
    tab.until("it is live again", STREAM, is_it="live".__eq__)
    # It goes on at the last event that came live, not only at what it had asked for.
    agent.send([reading(19)])
    tab.until("one more", NUMBERS, is_it=[19, 17, 15, 13, 11, 9, 7, 5, 3, 1].__eq__)
    for _ in range(2):
        tab.run("document.querySelector('#pause').click()")
    tab.until("it is live again", STREAM, is_it="live".__eq__)
    tab.browser.rest_for(1)
    assert tab.run(NUMBERS) == [19, 17, 15, 13, 11, 9, 7, 5, 3, 1], tab.run(NUMBERS)


def check_it_asks_for_the_token_over_tls(world):
    folder = world.target / "token"
    folder.write_text("hush-hush\n")
    folder.chmod(0o600)
    agent = world.agent(tls=True, http__token_file=str(folder))
    tab = world.open(agent, trusting=True)
    tab.until("it asks", "document.querySelector('#login').checkVisibility()")
    assert tab.run(TITLE) == "This agent wants a token." and not tab.run("document.querySelector('#all').checkVisibility()")
    assert tab.run("document.activeElement.id") == "token"
    world.looks(tab, "token")
    tab.type("wrong")
    tab.key("Enter", "Enter")
    tab.until("it says no", "document.querySelector('#wrong').textContent", is_it="That is not the token.".__eq__)
    assert tab.run("document.activeElement.id") == "token" and tab.run("document.querySelector('#token').value") == ""
    tab.type("hush-hush")
    tab.key("Enter", "Enter")
    tab.until("it shows the agent", "document.querySelector('#all').checkVisibility()")
    assert not tab.run("document.querySelector('#login').checkVisibility()")
    agent.send([reading(1)])
    tab.until("and events", NUMBERS, is_it=[1].__eq__)
    tab.call("Page.reload")
    tab.until("also when it is loaded again", NUMBERS, is_it=[1].__eq__)
    assert all("hush" not in address for address, _ in tab.requests), "the token is in an address"
    assert tab.run("document.cookie + JSON.stringify(localStorage)") == "{}", "the token outlives the tab"
    # Another token while it is open.
    folder.write_text("shush\n")
    tab.until("it asks again", "document.querySelector('#login').checkVisibility()")
    tab.browser.rest_for(0.5)
    before = len(tab.requests)
    tab.browser.rest_for(4)
    assert len(tab.requests) == before, f"without a token it asks for {tab.requests[before:]}"
    assert not any("/events/stream" in address for address in tab.under_way.values()), "it still follows"


def check_keyboard_and_screen_reader(world):
    agent = world.agent(redis__url="redis://127.0.0.1:1/")
    agent.send([*map(reading, range(60)), "no event"], refused=1)
    tab = world.open(agent)
    tab.until("there are the events", ROWS, is_it=ROWS_MAX.__eq__)
    tab.until("the ledger", "document.querySelector('#losses').checkVisibility()")
    tab.until("and the plots", "document.querySelector('#p-out .line') !== null")
    for width in WIDTHS:
        tab.look(width, still=True)
        assert_names(tab)
        assert_reachable(tab)
    # By the keyboard alone: to the pause, and pressed.
    tab.run("document.querySelector('#kind').focus()")
    tab.key("Tab", "Tab")
    tab.key("Tab", "Tab")
    tab.key(" ", "Space")
    tab.until("it is paused", STREAM, is_it="paused".__eq__)


def assert_names(tab):
    """The tree that a screen reader gets: landmarks, headings in order, and no control, table or picture without a name."""
    nodes = [node for node in tab.call("Accessibility.getFullAXTree")["nodes"] if not node["ignored"]]
    named = {}
    for node in nodes:
        named.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    wanted = {"button": 2, "textbox": 2, "link": 5, "image": 3, "meter": 1, "table": 3, "region": 6, "columnheader": 10, "rowheader": 3}
    for role, least in wanted.items():
        found = named.get(role, [])
        assert len(found) >= least, f"{len(found)} of the role {role}, should be {least}: {sorted(named)}"
        assert all(name.strip() for name in found), f"a {role} has no name: {found}"
    for role in ("button", "textbox", "image", "table", "region"):
        assert len(set(named[role])) == len(named[role]), f"two of the role {role} have one name: {named[role]}"
    for role in ("banner", "main", "contentinfo"):
        assert len(named.get(role, [])) == 1, f"no landmark {role}: {sorted(named)}"
    assert len(named.get("row", [])) >= ROWS_MAX and len(named.get("cell", [])) >= 4 * ROWS_MAX, "the rows of events are no rows"
    levels = tab.run("[...document.querySelectorAll('h1, h2, h3, h4')].map((one) => Number(one.tagName[1]))")
    assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in zip(levels, levels[1:])), levels
    assert tab.run("document.documentElement.lang") == "en"
    live = tab.run("document.querySelector('#events').closest('[aria-live], [role=log], [role=status]') !== null")
    assert not live, "each event is read aloud"
    assert tab.run("document.getAnimations().length") == 0


def assert_reachable(tab):
    """Tab comes to all there is, in the order of the page, and the focus is seen."""
    wanted = tab.run("""(() => {
      const all = [...document.querySelectorAll("a[href], button, input, [tabindex]")].filter((one) => one.checkVisibility());
      all.forEach((one, n) => { one.dataset.n = n; });
      return all.length; })()""")
    tab.call("Emulation.setFocusEmulationEnabled", enabled=True)
    tab.run("document.activeElement.blur(); document.getSelection().removeAllRanges(); window.scrollTo(0, 0)")
    reached = []
    # One more: between the last and the first the browser's own controls are reached.
    for _ in range(wanted + 1):
        tab.key("Tab", "Tab")
        reached.append(tab.run("""(() => {
          const one = document.activeElement, style = getComputedStyle(one), frame = one.getBoundingClientRect();
          return { n: Number(one.dataset.n ?? -1), what: one.outerHTML.slice(0, 60),
            ring: style.outlineStyle === "solid" && parseFloat(style.outlineWidth) >= 2,
            seen: frame.top >= 0 && frame.bottom <= innerHeight && frame.left >= 0 && frame.right <= innerWidth }; })()"""))
    reached = [one for one in reached if one["n"] >= 0]
    assert sorted(one["n"] for one in reached) == list(range(wanted)), f"{wanted} can be reached, these were: {reached}"
    # The focus may begin anywhere on the round.
    turned = [one["n"] for one in reached]
    begin = turned.index(0)
    assert turned[begin:] + turned[:begin] == list(range(wanted)), turned
    for one in reached:
        assert one["ring"] and one["seen"], f"the focus is not seen: {one}"
    tab.call("Emulation.setFocusEmulationEnabled", enabled=False)


def check_large_figures_have_room(world):
    agent = world.agent(redis__url="redis://127.0.0.1:1/", mqtt__url="mqtt://127.0.0.1:1", buffer__max_bytes="4 MiB",
                        buffer__when_full="drop_oldest", limits__max_event_bytes="64 KiB", agent__id="gateway-" + "17" * 26)
    # More than fits.
    agent.send(reading(n, text=NOISE[n:30_000]) for n in range(250))
    agent.send([reading(250, source="t-" + "x" * 200, text="<b>ünïcode</b> " * 40)])
    status, history = json_of(agent, "status"), json_of(agent, "history")
    assert status["ledger"]["evicted"]["events"] > 0, status["ledger"]
    hour = 3600
    history["samples"] = [
        {"at_s": at, "received": 2_000 * at, "delivered": 2_000 * min(at, 2_000) + 9_000 * max(0, at - 2_900),
         "waiting": max(0, 2_000 * (min(at, 2_900) - 2_000) - 7_000 * max(0, at - 2_900))}
        for at in range(0, hour + 1, 10)]
    large = 123_456_789_012
    for part in ("inputs", "kafka", "redis", "buffer", "routes"):
        figures = [key for key, figure in status[part].items() if type(figure) is int and not key.endswith(("_s", "bytes"))]
        status[part] |= dict.fromkeys(figures, large)
    status["buffer"] |= {"bytes": 999 << 30, "max_bytes": 1 << 40, "oldest_age_s": 8_640_000, "drained_in_s": 86_399}
    status["inputs"]["events_per_s"] = status["kafka"]["events_per_s"] = 1_234_567.8
    status["memory"]["resident_bytes"] = 1023 << 20
    status["clock_trusted"] = False
    status["ledger"] = {reason: {**status["ledger"]["evicted"], "events": large // 1000} for reason in
                        ("evicted", "expired", "corrupt", "purged", "undelivered", "dead_lettered", "rejected", "too_large", "invalid")}
    for link in ("kafka", "redis"):
        status[link]["last_error"] = {"what": "no-spaces-" * 20, "ago_s": 86_400}
    tab = world.open(agent)
    tab.until("there is the page", ROWS)
    rows = tab.until("each link says what is wrong", "[...document.querySelectorAll('#links tr')].map((row) => row.innerText)", 30,
                     lambda rows: len(rows) == 3 and all(re.search(r"down for \d+ s\s+\S.*\n\d+ s ago", row) for row in rows))
    assert [row.split()[0] for row in rows] == ["MQTT", "Kafka", "Redis"], rows
    evicted = tab.text("#ledger tr")
    assert re.match(r"evicted\s+had been acknowledged\s+\d+\s", evicted), evicted
    world.looks(tab, "lost-by-eviction")
    tab.answer({"status": status, "history": history})
    tab.call("Page.reload")
    tab.until("the figures", value("in", "since the start"), is_it=f"{large:,}".__eq__)
    points = tab.until("the hour", "document.querySelector('#p-in .line')?.getAttribute('points').split(' ')")
    assert points[0].startswith("0.8,") and points[-1].startswith("300.0,") and len(points) == hour // 10, points[:2] + points[-2:]
    assert tab.run("document.querySelector('#p-wait').ariaLabel") == "Events waiting in the last hour: now 0 events, at most 1,800,000"
    tab.until("the events", ROWS)
    world.looks(tab, "large")


def check_it_stays_small_and_rests_when_hidden(world):
    agent = world.agent()
    tab = world.open(agent)
    tab.until("it is live", STREAM, is_it="live".__eq__)
    agent.send(map(reading, range(200)))
    tab.until("the last ones", NUMBERS, is_it=list(range(199, 149, -1)).__eq__)
    before = size_of(tab)
    for begin in range(200, 6200, 1000):
        agent.send(map(reading, range(begin, begin + 1000)))
    tab.until("the last ones", NUMBERS, 30, list(range(6199, 6149, -1)).__eq__)
    after = size_of(tab)
    assert after["Nodes"] < before["Nodes"] * 1.5 + 200 and after["JSEventListeners"] <= before["JSEventListeners"] + 5, (before, after)
    assert after["JSHeapUsedSize"] < before["JSHeapUsedSize"] + (1 << 20), (before, after)

    # An agent that answers nothing any more keeps its connections.
    agent.pause()
    tab.until("it is told from one that works", TITLE, 30, "The agent does not answer.".__eq__)
    agent.resume()
    tab.until("and is back", TITLE, 30, lambda title: title != "The agent does not answer.")
    agent.send(map(reading, range(6200, 6210)))
    tab.until("without a gap", NUMBERS, is_it=list(range(6209, 6159, -1)).__eq__)

    # Behind another tab.
    other = type(tab)(world.browser, None, beside=tab)
    world.browser.call("Target.activateTarget", targetId=other.target)
    tab.until("it is hidden", "document.hidden")
    tab.until("it has let the agent go", "window.timers.size", is_it=(0).__eq__)
    tab.browser.rest_for(1)
    asked = len(tab.requests)
    agent.send(map(reading, range(6210, 6220)))
    tab.browser.rest_for(5)
    assert len(tab.requests) == asked and not tab.under_way, (tab.requests[asked:], tab.under_way)
    assert tab.run("window.timers.size") == 0, "a timer waits"
    world.browser.call("Target.activateTarget", targetId=tab.target)
    tab.until("looked at again it has all", NUMBERS, is_it=list(range(6219, 6169, -1)).__eq__)
    other.close()


def size_of(tab):
    tab.call("HeapProfiler.collectGarbage")
    tab.call("Performance.enable")
    return {one["name"]: one["value"] for one in tab.call("Performance.getMetrics")["metrics"]}
