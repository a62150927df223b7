"""What a check begins, looks at and leaves behind."""

from pathlib import Path

from agent import Agent, Kafka

MEASURE = (Path(__file__).parent / "measure.js").read_text()
WIDTHS = (1440, 390)


class World:
    """Everything that a check has begun; it is ended with the check."""

    def __init__(self, binary, browser, target):
        self.binary, self.browser, self.target, self.begun, self.tabs, self.agents = binary, browser, target, [], [], []

    def agent(self, *brokers, **settings):
        agent = Agent(self.binary, *brokers, **settings)
        self.begun.append(agent)
        self.agents.append(agent)
        return agent

    def kafka(self):
        kafka = Kafka()
        self.begun.append(kafka)
        return kafka

    def open(self, agent, **look):
        tab = self.browser.open(agent.address, **look)
        self.tabs.append(tab)
        return tab

    def looks(self, tab, state):
        """Measures and keeps how the page looks on both screens, light and dark."""
        problems = []
        for width in WIDTHS:
            for dark in (False, True):
                tab.look(width, dark)
                tab.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
                name = f"{state}-{width}-{'dark' if dark else 'light'}"
                tab.picture(self.target / f"{name}.png")
                problems += [f"{name}: {problem}" for problem in tab.run(MEASURE)]
        tab.look(WIDTHS[0])
        assert not problems, "\n".join(problems)

    def assert_clean(self):
        """No tab asked anybody but its agent, none failed, and the policy refused nothing."""
        for tab in self.tabs:
            foreign = {address for address, _ in tab.requests if not address.startswith(tab.address)}
            assert not foreign, f"the page asks {foreign}"
            # That an agent is away or says 401 or 503 is in the console whether a page can cope or not.
            said = [line for line in tab.console if not line.startswith("network error: Failed to load resource")]
            assert not said, said
            assert tab.run("window.refused") == [], "the policy refused something"

    def keep(self, name):
        """Leaves what tells why a check failed in the target folder."""
        for number, tab in enumerate(self.tabs):
            place = self.target / f"FAILED-{name}-{number}"
            try:
                tab.picture(f"{place}.png")
                yield f"picture: {place}.png"
            except (AssertionError, OSError) as problem:
                yield f"no picture: {problem}"
            asked = [address for address, _ in tab.requests[-50:]]
            Path(f"{place}.txt").write_text("\n".join(["console:", *tab.console, "", "the last requests:", *asked, ""]))
            yield f"console: {place}.txt"
        for number, agent in enumerate(self.agents):
            place = self.target / f"FAILED-{name}-agent-{number}.log"
            place.write_bytes(agent.log.read_bytes())
            yield f"agent's log: {place}"

    def end(self):
        for thing in [*self.tabs, *reversed(self.begun)]:
            try:
                thing.close() if thing in self.tabs else thing.end()
            except (AssertionError, OSError) as problem:
                print(f"page: at the end: {problem}", flush=True)
