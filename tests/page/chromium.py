"""Chromium without a window, spoken to in its DevTools protocol over two pipes: no port, no driver, no library.

Every wait has an end. The browser has a process group of its own and goes with it.
"""

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time

# Of Debian, of Ubuntu, and what the runners of GitHub have.
NAMES = ("chromium", "chromium-browser", "google-chrome")
# Stretches every deadline, as for the integration tests.
PATIENCE = float(os.environ.get("FIELDPOST_TEST_PATIENCE", "1"))
CALL_SECONDS = 20
MESSAGE_BYTES_MAX = 64 << 20
# Words of the console kept of a tab; more are a failure by themselves.
CONSOLE_MAX = 1000
REQUESTS_MAX = 20_000

FLAGS = (
    "--headless=new --remote-debugging-pipe --disable-gpu --disable-dev-shm-usage --hide-scrollbars --mute-audio "
    "--no-first-run --no-default-browser-check --disable-background-networking --disable-component-update "
    "--disable-default-apps --disable-extensions --disable-sync --disable-breakpad --password-store=basic "
    "--force-color-profile=srgb --lang=en-GB"
).split()


def find():
    """The browser's program, or None."""
    wanted = os.environ.get("FIELDPOST_CHROMIUM")
    return shutil.which(wanted) if wanted else next(filter(None, map(shutil.which, NAMES)), None)


class Late(AssertionError):
    """Something did not happen in time."""


class Browser:
    def __init__(self, program):
        self.home = tempfile.mkdtemp(prefix="fieldpost-page-")
        # Above 4, so that neither is overwritten on the way to its number.
        theirs_in, ours_out = self._pipe()
        ours_in, theirs_out = self._pipe()
        flags = [*FLAGS, f"--user-data-dir={self.home}/profile", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        if os.geteuid() == 0:
            # Chromium's own sandbox refuses root. It shows nothing here but the agent's page.
            flags.append("--no-sandbox")
        self.log = open(f"{self.home}/log", "wb")
        self.process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out} {theirs_in}<&- {theirs_out}>&-', "-", program, *flags, "about:blank"],
            pass_fds=(theirs_in, theirs_out), stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
            env={**os.environ, "HOME": self.home, "XDG_RUNTIME_DIR": self.home}, start_new_session=True,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.out, self.into = ours_out, ours_in
        self.rest, self.number, self.answers, self.tabs = b"", 0, {}, {}
        self.version = self.call("Browser.getVersion", seconds=60)["product"]

    @staticmethod
    def _pipe():
        ends = os.pipe()
        moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
        for end in ends:
            os.close(end)
        return moved

    def send(self, method, session=None, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        return self.number

    def call(self, method, session=None, seconds=CALL_SECONDS, **params):
        number = self.send(method, session, **params)
        self.answers[number] = None
        deadline = time.monotonic() + seconds * PATIENCE
        while self.answers[number] is None:
            self.read(deadline, method)
        answer = self.answers.pop(number)
        if "error" in answer:
            raise AssertionError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def read(self, deadline, what):
        """Takes what has come, or waits for it until then."""
        left = deadline - time.monotonic()
        if not select.select([self.into], [], [], max(0, left))[0]:
            raise Late(f"Chromium did not answer in time: {what}")
        some = os.read(self.into, 1 << 16)
        if not some:
            with open(f"{self.home}/log", errors="replace") as log:
                raise AssertionError(f"Chromium ended: {log.read()[-2000:]}")
        *messages, self.rest = (self.rest + some).split(b"\0")
        assert len(self.rest) < MESSAGE_BYTES_MAX, "a message of Chromium's has no end"
        for message in map(json.loads, messages):
            if "id" in message:
                if message["id"] in self.answers:
                    self.answers[message["id"]] = message
            elif tab := self.tabs.get(message.get("sessionId")):
                tab.take(message["method"], message["params"])

    def rest_for(self, seconds):
        """Lets the page go on for that long, taking what it says."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                self.read(deadline, "")
            except Late:
                return

    def open(self, address, **look):
        return Tab(self, address, **look)

    def end(self):
        try:
            self.call("Browser.close", seconds=5)
            self.process.wait(5)
        except (AssertionError, OSError, subprocess.TimeoutExpired):
            pass
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait(10)
        os.close(self.out)
        os.close(self.into)
        self.log.close()
        shutil.rmtree(self.home, ignore_errors=True)


class Tab:
    """A page in a context of its own (storage, cookies), and what it asked for and said."""

    def __init__(self, browser, address, width=1440, dark=False, trusting=False, beside=None):
        self.browser, self.address = browser, address
        self.context = beside.context if beside else browser.call("Target.createBrowserContext")["browserContextId"]
        self.target = browser.call("Target.createTarget", url="about:blank", browserContextId=self.context)["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=self.target, flatten=True)["sessionId"]
        browser.tabs[self.session] = self
        self.console, self.requests, self.under_way, self.mocked = [], [], {}, {}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        if trusting:
            self.call("Security.setIgnoreCertificateErrors", ignore=True)
        self.look(width, dark)
        # What a page says with nobody looking at it: how many timers wait, and what the policy refused.
        self.call("Page.addScriptToEvaluateOnNewDocument", source="""
          window.timers = new Set(); window.refused = [];
          for (const [set, clear] of [["setTimeout", "clearTimeout"], ["setInterval", "clearInterval"]]) {
            const real = window[set], end = window[clear];
            window[set] = (what, ...more) => {
              const id = real((...all) => { if (set === "setTimeout") window.timers.delete(id); what(...all); }, ...more);
              window.timers.add(id); return id; };
            window[clear] = (id) => { window.timers.delete(id); end(id); };
          }
          document.addEventListener("securitypolicyviolation", (event) => window.refused.push(event.violatedDirective));""")
        if address:
            self.call("Page.navigate", url=address)
            self.until("the page is there", "location.href !== 'about:blank' && document.readyState", is_it="complete".__eq__)

    def call(self, method, **params):
        return self.browser.call(method, self.session, **params)

    def take(self, method, params):
        if method == "Network.requestWillBeSent":
            self.requests.append((params["request"]["url"], params["request"]["headers"]))
            self.under_way[params["requestId"]] = params["request"]["url"]
            assert len(self.requests) < REQUESTS_MAX, "the page asks without end"
        elif method in ("Network.loadingFinished", "Network.loadingFailed"):
            self.under_way.pop(params["requestId"], None)
        elif method == "Page.frameNavigated":
            # Nothing more is told of what the page before it had asked for.
            self.under_way.clear()
        elif method == "Runtime.consoleAPICalled":
            self.say(params["type"], " ".join(str(value.get("value", value.get("description"))) for value in params["args"]))
        elif method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.say("exception", details.get("exception", {}).get("description", details["text"]))
        elif method == "Log.entryAdded":
            entry = params["entry"]
            self.say(f"{entry['source']} {entry['level']}", f"{entry['text']} {entry.get('url', '')}")
        elif method == "Fetch.requestPaused":
            path = params["request"]["url"].removeprefix(self.address)
            body = base64.b64encode(json.dumps(self.mocked[path]).encode()).decode()
            headers = [{"name": "content-type", "value": "application/json"}]
            self.browser.send("Fetch.fulfillRequest", self.session, requestId=params["requestId"], responseCode=200,
                              responseHeaders=headers, body=body)

    def say(self, kind, text):
        assert len(self.console) < CONSOLE_MAX, "the console is flooded"
        self.console.append(f"{kind}: {text}")

    def look(self, width, dark=False, still=False):
        """How wide the screen is, and what its user prefers."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=844 if width < 700 else 900,
                  deviceScaleFactor=1, mobile=width < 700)
        self.call("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce" if still else "no-preference"}])

    def answer(self, answers):
        """The page gets these in place of the agent's answers, by path."""
        self.mocked = answers
        self.call("Fetch.enable", patterns=[{"urlPattern": self.address + path} for path in answers])

    def run(self, script):
        """The value of an expression of the page's, awaited."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise AssertionError(f"{script}: {answer['exceptionDetails'].get('exception', {}).get('description')}")
        return answer["result"].get("value")

    def text(self, selector):
        return self.run(f"document.querySelector({json.dumps(selector)}).innerText")

    def until(self, what, script, seconds=15, is_it=bool):
        """Waits until the expression's value is as wanted, and answers it."""
        deadline, value = time.monotonic() + seconds * PATIENCE, None
        while time.monotonic() < deadline:
            value = self.run(script)
            if is_it(value):
                return value
            self.browser.rest_for(0.1)
        raise Late(f"not within {seconds * PATIENCE:.0f} s: {what}. `{script}` is {value!r}")

    def key(self, name, code=None, shift=False):
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if name == "Enter" and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name, modifiers=8 if shift else 0,
                      windowsVirtualKeyCode={"Tab": 9, "Enter": 13, " ": 32}[name], **text)

    def type(self, text):
        self.call("Input.insertText", text=text)

    def picture(self, path, height_max=2600):
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], height_max), "scale": 1}
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)["data"]
        with open(path, "wb") as file:
            file.write(base64.b64decode(data))

    def close(self):
        self.browser.call("Target.closeTarget", targetId=self.target)
        self.browser.tabs.pop(self.session, None)
