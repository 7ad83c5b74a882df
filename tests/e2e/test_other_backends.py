"""Repositories of the LLM-API model and of Triton's vLLM backend (contract §9) on the real server."""

import json
import queue
import shutil
from pathlib import Path

import numpy
import pytest
from server import DEMO, Server, eventually, sse_events

PROMPT = "Once upon a time"
MODEL_YAML = """\
model: {demo}
backend: pytorch
tensor_parallel_size: 1
pipeline_parallel_size: 1
max_batch_size: 8
kv_cache_config:
  max_tokens: 4096
device: cpu
triton_config:
  max_batch_size: 0
  decoupled: {decoupled}
  cancellation_check_period_ms: 100
"""


def write(repository: Path, name: str, config: str, file: str, text: str):
    version = repository / name / "1"
    version.mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(config)
    (version / file).write_text(text)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The two repositories as their users have them; the vLLM one under that backend's own name."""
    folder = tmp_path_factory.mktemp("other_backends")
    repository = folder / "repository"
    arguments = {"model": str(DEMO), "max_model_len": 256, "max_num_seqs": 8, "device": "cpu", "disable_log_requests": True}
    write(repository, "vllm_model", 'backend: "vllm"\ninstance_group [ { count: 1 kind: KIND_MODEL } ]\n', "model.json", json.dumps(arguments))
    for name, decoupled in (("llm_api", "false"), ("llm_api_stream", "true")):
        write(repository, name, f'name: "{name}"\nbackend: "trtllm"\n', "model.yaml", MODEL_YAML.format(demo=DEMO, decoupled=decoupled))
    import os

    backends = folder / "backends"
    shutil.copytree(os.environ["BACKENDS"], backends, symlinks=False)
    (backends / "vllm").mkdir(exist_ok=True)
    shutil.copy2(backends / "trtllm" / "libtriton_trtllm.so", backends / "vllm" / "libtriton_vllm.so")
    running = Server(folder, repository, f"--backend-directory={backends}", "--model-control-mode=explicit", "--load-model=*")
    yield running
    assert running.stop() == 0, running.log[-4000:]
    assert "panicked" not in running.log


def vllm(server, **body):
    reply = server.generate("vllm_model", **body)
    assert reply.status == 200, reply.body
    return reply.json


def test_9_the_server_sees_the_tensors_of_either_backend(server):
    config = server.get("/v2/models/vllm_model/config").json
    assert config["model_transaction_policy"]["decoupled"] is True and config["max_batch_size"] == 0
    assert {row["name"]: row["data_type"] for row in config["output"]}["num_output_tokens"] == "TYPE_UINT32"
    config = server.get("/v2/models/llm_api/config").json
    assert config["model_transaction_policy"]["decoupled"] is False
    assert "sampling_param_max_tokens" in {row["name"] for row in config["input"]}


def test_9_vllm_generate_takes_parameters_as_its_readme_shows(server):
    reply = vllm(server, text_input=PROMPT, parameters={"stream": False, "temperature": 0})
    assert reply["text_output"].startswith(PROMPT)
    excluded = vllm(server, text_input=PROMPT, exclude_input_in_output=True, parameters={"temperature": 0})
    assert PROMPT + excluded["text_output"] == reply["text_output"]
    same = vllm(server, text_input=PROMPT, sampling_parameters=json.dumps({"temperature": 0, "max_tokens": 16}))
    assert same["text_output"] == reply["text_output"], "16 tokens are the default"


def test_9_vllm_streams_what_is_new(server):
    parameters = json.dumps({"temperature": "0", "max_tokens": 12})
    whole = vllm(server, text_input=PROMPT, sampling_parameters=parameters, exclude_input_in_output=True)["text_output"]
    events = server.stream("vllm_model", text_input=PROMPT, stream=True, sampling_parameters=parameters, return_finish_reason=True, return_num_output_tokens=True)
    assert "".join(event["text_output"] for event in events) == whole
    assert sum(event["num_output_tokens"] for event in events) == 12
    assert [event["finish_reason"] for event in events[-2:]] == ["None", "length"]


def test_9_vllm_additional_outputs(server):
    parameters = json.dumps({"temperature": 0, "max_tokens": 5, "logprobs": 1})
    flags = {f"return_{name}": True for name in ("finish_reason", "cumulative_logprob", "logprobs", "num_input_tokens", "num_output_tokens")}
    reply = vllm(server, text_input=PROMPT, sampling_parameters=parameters, **flags)
    told = json.loads(reply["logprobs"])
    assert len(told) == 5 and reply["num_output_tokens"] == 5 and reply["num_input_tokens"] > 2
    total = sum(entry["logprob"] for step in told for entry in step.values())
    assert abs(total - reply["cumulative_logprob"]) < 1e-3 and total < 0
    assert not {"logprobs", "finish_reason"} & set(vllm(server, text_input=PROMPT, parameters={"temperature": 0}))


def test_9_vllm_over_grpc(server):
    grpc = pytest.importorskip("tritonclient.grpc")
    answers = queue.Queue()
    client = grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}")
    inputs = []
    for name, dtype, value in (
        ("text_input", "BYTES", numpy.array([PROMPT.encode()], dtype=numpy.object_)),
        ("stream", "BOOL", numpy.array([True])),
        ("sampling_parameters", "BYTES", numpy.array([json.dumps({"temperature": 0, "max_tokens": 6, "n": 2}).encode()], dtype=numpy.object_)),
    ):
        tensor = grpc.InferInput(name, [1], dtype)
        tensor.set_data_from_numpy(value)
        inputs.append(tensor)
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    client.async_stream_infer("vllm_model", inputs, enable_empty_final_response=True)
    texts = ["", ""]
    while True:
        result, error = answers.get(timeout=60)
        assert error is None, error
        pieces = result.as_numpy("text_output")
        assert pieces.shape == (2,)
        texts = [text + piece.decode() for text, piece in zip(texts, pieces)]
        if result.get_response().parameters["triton_final_response"].bool_param:
            break
    client.stop_stream()
    assert texts[0] and texts[0] == texts[1], "greedy answers are equal"


def test_9_vllm_errors_name_their_cause(server):
    for body, fragment in (
        ({"sampling_parameters": json.dumps({"temprature": 1})}, 'sampling parameter "temprature" is unknown'),
        ({"sampling_parameters": "{"}, "sampling_parameters is not valid JSON"),
        ({"sampling_parameters": json.dumps({"lora_name": "x"})}, "LoRA feature is not enabled."),
        ({"stream": True, "exclude_input_in_output": False}, "`exclude_input_in_output` = False is not allowed"),
        ({"image": ["aGVsbG8="]}, "image: only text generation"),
    ):
        reply = server.generate("vllm_model", text_input=PROMPT, **body)
        assert reply.status != 200 and fragment in reply.error, reply.body
        assert reply.error.startswith("Error generating stream: ")
    assert vllm(server, text_input=PROMPT, parameters={"max_tokens": 2})["text_output"]


def test_9_llm_api_generate(server):
    body = {"text_input": PROMPT, "sampling_param_max_tokens": 8, "return_finish_reason": True, "return_stop_reason": True}
    reply = server.generate("llm_api", **body, return_cumulative_logprob=True, sampling_param_return_perf_metrics=True)
    assert reply.status == 200, reply.body
    assert reply.json["text_output"].startswith(PROMPT)
    assert (reply.json["finish_reason"], reply.json["stop_reason"]) == ("length", "None")
    assert isinstance(reply.json["cumulative_logprob"], float) and reply.json["cumulative_logprob"] < 0
    assert reply.json["first_token_time_ns"] > reply.json["arrival_time_ns"] > 0
    assert isinstance(reply.json["kv_cache_reused_block"], int) and 0 <= reply.json["kv_cache_hit_rate"] <= 1
    direct = vllm(server, text_input=PROMPT, parameters={"temperature": 0, "max_tokens": 8})["text_output"]
    assert reply.json["text_output"] == direct


def test_9_llm_api_stop_texts_are_left_out(server):
    body = {"text_input": PROMPT, "sampling_param_max_tokens": 30, "sampling_param_exclude_input_from_output": True}
    text = server.text("llm_api", **body)
    stop = text[10:14]
    reply = server.generate("llm_api", **body, sampling_param_stop=[stop, "zzz"], return_stop_reason=True, return_finish_reason=True)
    assert reply.json["text_output"] == text[: text.index(stop)]
    assert (reply.json["finish_reason"], reply.json["stop_reason"]) == ("stop", stop)


def test_9_llm_api_streams_the_whole_text_so_far(server):
    body = {"text_input": PROMPT, "sampling_param_max_tokens": 8}
    texts = [event["text_output"] for event in server.stream("llm_api_stream", **body, streaming=True)]
    assert len(texts) == 8 and all(after.startswith(before) for before, after in zip(texts, texts[1:]))
    assert PROMPT + texts[-1] == server.text("llm_api", **body)
    reply = server.generate("llm_api", **body, streaming=True)
    assert "Streaming is only supported in decoupled mode" in reply.error


def test_9_llm_api_stop_command_cancels(server):
    connection, response = server.open_stream("llm_api_stream", id="mine", text_input=PROMPT, sampling_param_max_tokens=200, streaming=True)
    response.readline()
    reply = server.generate("llm_api_stream", id="mine", text_input="", stop=True)
    assert "Request cancelled by client" in reply.error
    events = list(sse_events(response))
    connection.close()
    assert events and "Request cancelled by client" in events[-1]["error"]
    eventually(
        lambda: server.metric("nv_trt_llm_request_metrics", model="llm_api_stream", request_type="active") == 0,
        "the request has left the engine",
    )


def test_9_llm_api_errors_begin_as_there(server):
    for body, fragment in (
        ({"sampling_param_max_tokens": 0}, "sampling_param_max_tokens is 0"),
        ({"sampling_param_top_p": 2.0}, "top_p is 2"),
        ({"lora_name": "a"}, "must all be provided together"),
    ):
        reply = server.generate("llm_api", text_input=PROMPT, **body)
        assert reply.status != 200 and reply.error.startswith("Error generating request: ") and fragment in reply.error, reply.body
