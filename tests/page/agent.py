"""An agent of the test's own, its producer, and a Kafka that may be killed."""

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

from chromium import PATIENCE, Late

ROOT = Path(__file__).resolve().parents[2]
NOWHERE = "127.0.0.1:1"


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Kafka:
    """By deploy/services, in a folder of its own: other tests' Kafka is nobody's to kill."""

    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix="fieldpost-services-")
        try:
            # Should this process be killed, the next `up` or `run` ends what it has left.
            self._script("up", "--owner", str(os.getpid()))
            exported = self._script("env", name=False)
        except BaseException:
            self.end()
            raise
        self.address = next(line.split("=", 1)[1] for line in exported.splitlines() if line.startswith("export FIELDPOST_TEST_KAFKA="))

    def _script(self, command, *options, name=True):
        words = [ROOT / "deploy/services", command, "--dir", self.folder, *options, *(["kafka"] if name else [])]
        done = subprocess.run(words, capture_output=True, text=True, timeout=240 * PATIENCE)
        assert done.returncode == 0, f"deploy/services {command}: {done.stderr}"
        return done.stdout

    def make_topic(self, name, **settings):
        configs = [word for key, value in settings.items() for word in ("--config", f"{key.replace('_', '.')}={value}")]
        words = [ROOT / "deploy/services", "tool", "org.apache.kafka.tools.TopicCommand", "--bootstrap-server", self.address,
                 "--create", "--topic", name, "--partitions", "2", *configs]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60 * PATIENCE)
        assert done.returncode == 0, f"the topic was not made: {done.stdout}{done.stderr}"

    def kill(self):
        self._script("kill")

    def start(self):
        self._script("start")

    def end(self):
        self._script("down")
        shutil.rmtree(self.folder, ignore_errors=True)


class Agent:
    def __init__(self, binary, brokers=NOWHERE, tls=False, **settings):
        self.binary, self.home, self.process, self.starts = binary, Path(tempfile.mkdtemp(prefix="fieldpost-page-")), None, 0
        self.socket = self.home / "agent.sock"
        # The same one over a restart: the page asks there again.
        port = free_port()
        keys = {
            "agent.id": "gateway-17", "agent.data_dir": str(self.home / "data"), "unix.path": str(self.socket),
            "kafka.brokers": brokers, "http.listen": f"127.0.0.1:{port}",
            **{key.replace("__", "."): value for key, value in settings.items()},
        }
        if tls:
            keys |= {"http.cert_file": str(self.home / "cert.pem"), "http.key_file": str(self.home / "key.pem")}
            self._make_certificate()
        self.address = f"{'https' if tls else 'http'}://127.0.0.1:{port}/"
        sections = {}
        for key, value in keys.items():
            section, name = key.rsplit(".", 1)
            sections.setdefault(section, []).append(f"{name} = {json.dumps(value)}")
        toml = "".join(f"[{section}]\n" + "\n".join(lines) + "\n" for section, lines in sections.items())
        (self.home / "fieldpost.toml").write_text(toml)
        self.start()

    def _make_certificate(self):
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=gateway-17",
                        "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", self.home / "key.pem", "-out", self.home / "cert.pem"],
                       check=True, capture_output=True, timeout=60)

    @property
    def log(self):
        return self.home / f"log-{self.starts}"

    def start(self):
        self.starts += 1
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FIELDPOST_")}
        with open(self.log, "wb") as log:
            words = [self.binary, "run", "--config", self.home / "fieldpost.toml"]
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        deadline = time.monotonic() + 30 * PATIENCE
        while b"HTTP is served" not in self.log.read_bytes() or not self.socket.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the agent does not serve: {self.log.read_text(errors='replace')[-3000:]}")
            time.sleep(0.05)

    def kill(self):
        self.process.kill()
        self.process.wait(30)
        self.socket.unlink(missing_ok=True)

    def pause(self):
        self.process.send_signal(signal.SIGSTOP)

    def resume(self):
        self.process.send_signal(signal.SIGCONT)

    def send(self, events, refused=0):
        """Sends them and waits until they are durable, and until so many lines were refused."""
        lines = [event if isinstance(event, str) else json.dumps(event) for event in events]
        deadline = time.monotonic() + 60 * PATIENCE
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(30 * PATIENCE)
            client.connect(str(self.socket))
            acked = missing = 0
            answers = client.makefile("r")
            # A batch at a time, so that neither side waits for the other to read.
            for begin in range(0, len(lines), 200):
                batch = lines[begin:begin + 200]
                client.sendall("".join(line + "\n" for line in batch).encode())
                while acked + missing < begin + len(batch):
                    if time.monotonic() > deadline:
                        raise Late(f"{acked} of {len(lines)} events are acknowledged")
                    answer = json.loads(answers.readline())
                    if "ack" in answer:
                        acked = answer["ack"]
                    else:
                        missing += 1
        assert missing == refused, f"{missing} lines were refused, {refused} should be"

    def end(self):
        if self.process and self.process.poll() is None:
            self.resume()
            self.process.terminate()
            try:
                self.process.wait(20 * PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)
        shutil.rmtree(self.home, ignore_errors=True)


def reading(n, source="t-1", **payload):
    return {"id": f"{source}-{n}", "type": "reading", "source_type": "thermometer", "source_id": source,
            "payload": {"n": n, "celsius": 20 + n % 10, **payload}}
