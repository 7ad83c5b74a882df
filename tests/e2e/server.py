"""A real tritonserver with our backend on a repository of its own, and small clients for it."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "ci" / "demo_model" / "hf"
DEVICE = os.environ.get("E2E_DEVICE", "cpu")
TRTLLM = Path(os.environ.get("TRTLLM", ROOT / "target" / "debug" / "trtllm"))
TEMPLATES = ROOT / "model_repo"
# Longer than the backend holds back the end of a request whose client is gone, and than the LLM takes to notice.
SETTLE_SECONDS = 0.5


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def copy_template(repository: Path, template: str, name: str | None = None, edit=None, **values: str) -> Path:
    """Copies one of the shipped templates and fills its placeholders; `edit` may change the text."""
    target = repository / (name or template)
    shutil.copytree(TEMPLATES / template, target)
    (target / "1").mkdir(exist_ok=True)
    config = target / "config.pbtxt"
    text = config.read_text()
    for key, value in values.items():
        assert f"${{{key}}}" in text, f"the template of {template} has no ${{{key}}}"
        text = text.replace(f"${{{key}}}", value)
    if name:
        text = re.sub(r'(?m)^name:.*$', f'name: "{name}"', text, count=1)
    config.write_text(edit(text) if edit else text)
    return target


def write_model(repository: Path, name: str, config: str) -> Path:
    target = repository / name
    (target / "1").mkdir(parents=True)
    (target / "config.pbtxt").write_text(config)
    return target


class Reply:
    def __init__(self, status: int, body: bytes):
        self.status, self.body = status, body

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return self.json["error"]


class Server:
    """Starts on construction; `log` is the text so far; always stopped by `stop`."""

    def __init__(self, folder: Path, repository: Path, *options: str, wait: bool = True):
        self.repository = repository
        self.http, self.grpc, self.metrics_port = free_ports(3)
        self.log_path = folder / "server.log"
        command = [
            os.environ["TRITONSERVER"],
            f"--model-repository={repository}",
            f"--backend-directory={os.environ['BACKENDS']}",
            f"--http-port={self.http}",
            f"--grpc-port={self.grpc}",
            f"--metrics-port={self.metrics_port}",
            "--exit-timeout-secs=20",
            *options,
        ]
        self.process = subprocess.Popen(command, stdout=self.log_path.open("wb"), stderr=subprocess.STDOUT)
        if wait:
            self.wait_ready()

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def wait_ready(self, seconds: float = 90) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}:\n{self.log[-6000:]}")
            if self.ready():
                return
            time.sleep(0.1)
        raise AssertionError(f"not ready after {seconds} s:\n{self.log[-6000:]}")

    def ready(self, model: str | None = None) -> bool:
        path = f"/v2/models/{model}/ready" if model else "/v2/health/ready"
        try:
            return self.get(path).status == 200
        except OSError:
            return False

    def stop(self) -> int:
        """Ends the server as an operator would who drains first, and returns its exit code."""
        if self.process.poll() is None:
            # The HTTP frontend does not count a cut connection as one of its own any more: a signal that comes before
            # the last response of its request (100 ms later) lets that response run into a frontend that is gone.
            time.sleep(SETTLE_SECONDS)
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise AssertionError(f"the server did not end within 60 s of SIGTERM:\n{self.log[-4000:]}")
        return self.process.returncode

    def request(self, method: str, path: str, body=None, port: int | None = None) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", port or self.http, timeout=120)
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"Content-Type": "application/json"} if data else {})
        response = connection.getresponse()
        reply = Reply(response.status, response.read())
        connection.close()
        return reply

    def get(self, path: str) -> Reply:
        return self.request("GET", path)

    def post(self, path: str, body) -> Reply:
        return self.request("POST", path, body)

    def generate(self, model: str, **body) -> Reply:
        return self.post(f"/v2/models/{model}/generate", body)

    def text(self, model: str, **body) -> str:
        reply = self.generate(model, **body)
        assert reply.status == 200, reply.body
        return reply.json["text_output"]

    def stream(self, model: str, **body) -> list[dict]:
        """All events of generate_stream."""
        connection, response = self.open_stream(model, **body)
        events = list(sse_events(response))
        connection.close()
        return events

    def open_stream(self, model: str, **body):
        connection = http.client.HTTPConnection("127.0.0.1", self.http, timeout=120)
        connection.request("POST", f"/v2/models/{model}/generate_stream", json.dumps(body), {"Content-Type": "application/json"})
        return connection, connection.getresponse()

    def metrics_text(self) -> str:
        return self.request("GET", "/metrics", port=self.metrics_port).body.decode()

    def metrics(self) -> dict[str, float]:
        """Series (as written, labels included) to value."""
        values = {}
        for line in self.metrics_text().splitlines():
            if line and not line.startswith("#"):
                series, value = line.rsplit(" ", 1)
                values[series] = float(value)
        return values

    def metric(self, family: str, **labels: str) -> float:
        """The value of the one series that has these labels."""
        found = [
            value
            for series, value in self.metrics().items()
            if series.startswith(family + "{") and all(f'{k}="{v}"' in series for k, v in labels.items())
        ]
        assert len(found) == 1, f"{family} {labels}: {len(found)} series"
        return found[0]

    def stats(self, model: str) -> dict:
        return self.get(f"/v2/models/{model}/stats").json["model_stats"][0]


def sse_events(response):
    for line in response:
        if line.startswith(b"data:"):
            yield json.loads(line[5:])


def eventually(check, what: str, seconds: float = 15):
    """Polls until `check()` is true."""
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.05)
