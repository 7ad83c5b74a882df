"""What shows while a model loads (contract 1.1, 1.4): the requests of `model_warmup`, metrics, readiness."""

import os
import shutil
import threading

import pytest
from server import DEMO, DEVICE, Server, copy_template, eventually

PROMPT = "Once upon a time"
VALUES = {"engine_dir": str(DEMO), "tokenizer_dir": str(DEMO), "device": DEVICE}


def i32(*values):
    return b"".join(value.to_bytes(4, "little", signed=True) for value in values)


FILES = {"four": i32(4), "text": i32(len(PROMPT)) + PROMPT.encode(), "ids": i32(1, 40, 50), "lengths": i32(2)}


def sample(batch_size=1, count=1, **inputs):
    """A sample of `model_warmup`; an input is (type, dims, data), data being `zero`, `random` or a file."""

    def source(data):
        return f"{data}_data: true" if data in ("zero", "random") else f'input_data_file: "{data}"'

    fields = "".join(
        f'inputs {{ key: "{name}" value {{ data_type: TYPE_{kind} dims: {dims} {source(data)} }} }} '
        for name, (kind, dims, data) in inputs.items()
    )
    return f'model_warmup {{ name: "sample" batch_size: {batch_size} count: {count} {fields}}}\n'


def of_ids(data, output_len="four", **options):
    return sample(
        input_ids=("INT32", [3], data),
        input_lengths=("INT32", [1], "zero"),
        request_output_len=("INT32", [1], output_len),
        **options,
    )


class Loaded:
    """A model of the running server's repository, removed at the end."""

    def __init__(self, server, template, name, edit, **values):
        self.server, self.name = server, name
        self.folder = copy_template(server.repository, template, name=name, edit=edit, **values)
        (self.folder / "warmup").mkdir()
        for file, data in FILES.items():
            (self.folder / "warmup" / file).write_bytes(data)

    def load(self):
        return self.server.post(f"/v2/repository/models/{self.name}/load", {})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.post(f"/v2/repository/models/{self.name}/unload", {})
        eventually(lambda: not self.server.ready(self.name), "unloaded")
        shutil.rmtree(self.folder)


TEXT = {"text_input": ("STRING", [1], "text"), "max_tokens": ("INT32", [1], "four")}

# Template, samples, requests that they make.
WARM_UPS = {
    "ids": ("tensorrt_llm", of_ids("ids") + of_ids("zero", batch_size=2) + of_ids("random", count=2), 5),
    "streamed-text": ("tensorrt_llm", sample(**TEXT, stream=("BOOL", [1], "random")), 1),
    "preprocessing": ("preprocessing", sample(QUERY=("STRING", [1], "text"), REQUEST_OUTPUT_LEN=("INT32", [1], "random")), 1),
    "postprocessing": ("postprocessing", sample(TOKENS_BATCH=("INT32", [1, 3], "ids"), SEQUENCE_LENGTH=("INT32", [1], "lengths")), 1),
    "bls": ("tensorrt_llm_bls", sample(**TEXT), 1),
}


@pytest.mark.parametrize("case", WARM_UPS)
def test_1_1_warm_up_requests_run_before_the_model_is_ready(server, case):
    template, samples, requests = WARM_UPS[case]
    values = {"tensorrt_llm": VALUES, "tensorrt_llm_bls": {}}.get(template, {"tokenizer_dir": str(DEMO)})
    with Loaded(server, template, "warmed", lambda text: text + samples, **values) as model:
        reply = model.load()
        assert reply.status == 200, reply.body
        counts = server.stats("warmed")["inference_stats"]
        assert (counts["success"]["count"], counts["fail"]["count"]) == (requests, 0)
        assert server.metric("nv_inference_pending_request_count", model="warmed") == 0
        if template == "tensorrt_llm":
            assert server.metric("nv_llm_output_token_len_sum", model="warmed") == 4 * requests
            for family, labels in (
                ("nv_trt_llm_request_metrics", {"request_type": "active"}),
                ("nv_trt_llm_kv_cache_block_metrics", {"kv_cache_block_type": "used"}),
            ):
                eventually(lambda: server.metric(family, model="warmed", **labels) == 0, "nothing is left of the warm-up")
            # What comes after the warm-up is looked at as ever.
            bad = server.generate("warmed", input_ids=[1, 1 << 30], input_lengths=2, request_output_len=1)
            assert bad.status == 400 and "input_ids" in bad.error
        if "text_input" in samples:
            body = {"text_input": PROMPT, "max_tokens": 4}
            assert server.text("warmed", **body) == server.text("tensorrt_llm", **body)


@pytest.mark.parametrize("fault", ["refused", "no-file"])
def test_1_1_a_warm_up_that_fails_is_a_load_that_fails(tmp_path, fault):
    """On a server of its own: that of the tests often ends in a signal when a warm-up fails, whatever backend it is."""
    repository = tmp_path / "repository"
    repository.mkdir()
    samples = of_ids("ids", output_len="zero" if fault == "refused" else "four")
    folder = copy_template(repository, "tensorrt_llm", name="warmed", edit=lambda text: text + samples, **VALUES)
    (folder / "warmup").mkdir()
    for file in ["four", "ids"] if fault == "refused" else ["four"]:
        (folder / "warmup" / file).write_bytes(FILES[file])
    server = Server(tmp_path, repository, wait=False)
    assert server.process.wait(60) != 0
    assert ("request_output_len is 0, expected 1 or more" if fault == "refused" else "warmup/ids") in server.log


class HeldLoad:
    """A load that reads the checkpoint's `generation_config.json` until it is let go: that file is a pipe."""

    def __init__(self, model, checkpoint):
        self.pipe = checkpoint / "generation_config.json"
        self.pipe.unlink(missing_ok=True)
        os.mkfifo(self.pipe)
        # Else a model that is there already is not loaded again.
        (model.folder / "1" / "changed").touch()
        self.replies = []
        self.thread = threading.Thread(target=lambda: self.replies.append(model.load()))
        self.thread.start()
        eventually(self.open, "the model reads the file")

    def open(self):
        try:
            self.end = os.open(self.pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            return False
        return True

    def let_go(self):
        os.write(self.end, b"{}")
        os.close(self.end)
        self.thread.join(60)
        (reply,) = self.replies
        assert reply.status == 200, reply.body


def trt_llm_series(server, model):
    return {s: value for s, value in server.metrics().items() if s.startswith("nv_trt_llm_") and f'model="{model}"' in s}


def states(server):
    return {model["name"]: model.get("state") for model in server.post("/v2/repository/index", {}).json}


@pytest.fixture
def quiet(tmp_path):
    """A server on which no load has failed: one that did keeps the server from being ready."""
    repository = tmp_path / "repository"
    repository.mkdir()
    copy_template(repository, "tensorrt_llm", **VALUES)
    running = Server(tmp_path, repository, "--model-control-mode=explicit", "--load-model=*")
    yield running
    assert running.stop() == 0, running.log[-4000:]


def test_1_4_metrics_and_readiness_while_a_model_loads(quiet, tmp_path):
    server, checkpoint = quiet, tmp_path / "checkpoint"
    shutil.copytree(DEMO, checkpoint)
    values = VALUES | {"engine_dir": str(checkpoint)}
    with Loaded(server, "tensorrt_llm", "slow", None, **values) as model:
        load = HeldLoad(model, checkpoint)
        for _ in range(5):
            series = trt_llm_series(server, "slow")
            assert len(series) == 22 and set(series.values()) == {0.0}, series
            assert server.metric("nv_llm_output_token_len_count", model="slow") == 0
            assert server.text("tensorrt_llm", text_input=PROMPT, max_tokens=2)
        assert states(server)["slow"] == "LOADING"
        assert server.get("/v2/health/live").status == 200 and server.ready("tensorrt_llm")
        assert not server.ready(), "the server is ready when every model is"
        assert not server.ready("slow") and server.generate("slow", text_input=PROMPT, max_tokens=1).status >= 400
        load.let_go()
        assert server.ready() and server.ready("slow")
        most = 'nv_trt_llm_request_metrics{model="slow",request_type="max",version="1"}'
        before = trt_llm_series(server, "slow")
        assert before[most] > 0
        # A load in the place of the model that serves takes nothing away from its gauges, nor does its end.
        server.text("slow", text_input=PROMPT, max_tokens=2)
        load = HeldLoad(model, checkpoint)
        assert server.ready("slow") and server.text("slow", text_input=PROMPT, max_tokens=2)
        eventually(lambda: trt_llm_series(server, "slow")[most] == before[most], "the gauges of the model that serves")
        assert server.metric("nv_llm_output_token_len_sum", model="slow") == 4
        load.let_go()
        eventually(lambda: trt_llm_series(server, "slow")[most] == before[most], "the gauges of the new one")
        assert server.text("slow", text_input=PROMPT, max_tokens=2)
    eventually(lambda: not trt_llm_series(server, "slow"), "the series of an unloaded model are gone")
