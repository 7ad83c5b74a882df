"""What an operator meets: metrics, statistics, cancellation, reload, errors, repositories that already exist."""

import http.client
import json
import shutil
import socket
import struct
import threading
import time

import pytest
from server import DEMO, DEVICE, ROOT, Server, copy_template, eventually, sse_events, write_model

PROMPT = "Once upon a time"

# The families of the removed backend: name, kind, help, label, values.
FAMILIES = [
    ("nv_trt_llm_request_metrics", "gauge", "TRT LLM request metrics", "request_type", ["active", "max", "scheduled", "context", "waiting"]),
    ("nv_trt_llm_runtime_memory_metrics", "gauge", "TRT LLM runtime memory metrics", "memory_type", ["cpu", "gpu", "pinned"]),
    (
        "nv_trt_llm_kv_cache_block_metrics",
        "gauge",
        "TRT LLM KV cache block metrics",
        "kv_cache_block_type",
        ["max", "free", "used", "tokens_per", "reused", "fraction"],
    ),
    (
        "nv_trt_llm_disaggregated_serving_metrics",
        "counter",
        "TRT LLM disaggregated serving metrics",
        "disaggregated_serving_type",
        ["kv_cache_transfer_ms", "request_count"],
    ),
    (
        "nv_trt_llm_inflight_batcher_metrics",
        "gauge",
        "TRT LLM inflight_batcher-specific metrics",
        "inflight_batcher_specific_metric",
        ["total_context_tokens", "generation_requests", "micro_batch_id", "paused_requests"],
    ),
    ("nv_trt_llm_general_metrics", "gauge", "General TRT LLM metrics", "general_type", ["timestamp", "iteration_counter"]),
]


def used_blocks(server):
    return server.metric("nv_trt_llm_kv_cache_block_metrics", model="tensorrt_llm", kv_cache_block_type="used")


def active(server):
    return server.metric("nv_trt_llm_request_metrics", model="tensorrt_llm", request_type="active")


def test_metric_families_have_the_names_labels_and_help_of_the_removed_backend(server):
    server.text("tensorrt_llm", text_input=PROMPT, max_tokens=2)
    text = server.metrics_text()
    for name, kind, description, label, values in FAMILIES:
        assert f"# HELP {name} {description}\n" in text
        assert f"# TYPE {name} {kind}\n" in text
        for value in values:
            labels = dict(sorted({"model": "tensorrt_llm", label: value, "version": "1"}.items()))
            series = name + "{" + ",".join(f'{k}="{v}"' for k, v in labels.items()) + "}"
            assert series in text, series
    for name, value in (("nv_llm_input_token_len", "total_input_tokens"), ("nv_llm_output_token_len", "total_output_tokens")):
        assert f"# HELP {name} TRT LLM response metrics\n# TYPE {name} histogram\n" in text
        for bound in ("10", "50", "100", "500", "1000", "+Inf"):
            assert f'{name}_bucket{{model="tensorrt_llm",response_metric_type="{value}",version="1",le="{bound}"}}' in text


def test_token_histograms_count_what_was_served(server):
    def sums():
        return [
            server.metric(f"nv_llm_{side}_token_len_{part}", model="tensorrt_llm")
            for side in ("input", "output")
            for part in ("sum", "count")
        ]

    before = sums()
    reply = server.generate("tensorrt_llm", input_ids=[1, 40, 50], input_lengths=3, request_output_len=7)
    assert reply.status == 200, reply.body
    eventually(lambda: [a - b for a, b in zip(sums(), before)] == [3, 1, 7, 1], "one request of 3 tokens in and 7 out")


def settled_statistics(server):
    """What was counted when requests of earlier tests, some of whose clients left, have ended too."""
    before, now = None, server.stats("tensorrt_llm")["inference_stats"]
    while before != now:
        time.sleep(0.3)
        before, now = now, server.stats("tensorrt_llm")["inference_stats"]
    return now


def test_statistics_count_successes_and_failures(server):
    before = settled_statistics(server)
    for _ in range(3):
        server.text("tensorrt_llm", text_input=PROMPT, max_tokens=2)
    assert server.generate("tensorrt_llm", text_input=PROMPT, max_tokens=0).status == 400

    def counted():
        after = server.stats("tensorrt_llm")["inference_stats"]
        return all(after[k]["count"] - before[k]["count"] == n for k, n in (("success", 3), ("fail", 1)))

    eventually(counted, "3 successes and 1 failure")
    for key in ("compute_input", "compute_infer", "compute_output"):
        assert server.stats("tensorrt_llm")["inference_stats"][key]["ns"] > 0, key


def test_disconnect_frees_the_blocks(server):
    connection, response = server.open_stream("tensorrt_llm", text_input=PROMPT, max_tokens=2000, stream=True, temperature=1.0, top_k=40, end_id=-1)
    events = sse_events(response)
    for _ in range(3):
        next(events)
    eventually(lambda: active(server) == 1 and used_blocks(server) > 0, "the request shows in the gauges")
    cut_at = server.metric("nv_llm_output_token_len_sum", model="tensorrt_llm")
    response.close()
    connection.close()
    eventually(lambda: active(server) == 0 and used_blocks(server) == 0, "the cancelled request is gone")
    eventually(lambda: server.metric("nv_llm_output_token_len_sum", model="tensorrt_llm") > cut_at, "the request is counted")
    assert server.metric("nv_llm_output_token_len_sum", model="tensorrt_llm") - cut_at < 2000, "it ended early"
    assert server.text("tensorrt_llm", text_input=PROMPT, max_tokens=2)


def test_stop_by_request_id_ends_the_stream_normally(server):
    import queue

    import numpy as np
    import tritonclient.grpc as grpc

    def tensors(**values):
        inputs = []
        for name, (value, kind) in values.items():
            value = np.asarray(value)
            tensor = grpc.InferInput(name, list(value.shape), kind)
            tensor.set_data_from_numpy(value)
            inputs.append(tensor)
        return inputs

    def i32(value):
        return (np.array([[value]], np.int32), "INT32")

    flag = (np.array([[True]]), "BOOL")
    replies = queue.Queue()
    client = grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}")
    client.start_stream(lambda result, error: replies.put((result, error)))
    ids = (np.array([[1, 40, 50]], np.int32), "INT32")
    client.async_stream_infer(
        "tensorrt_llm", tensors(input_ids=ids, input_lengths=i32(3), request_output_len=i32(1500), streaming=flag), request_id="to-stop"
    )
    for _ in range(3):
        result, error = replies.get(timeout=30)
        assert error is None
    client.async_stream_infer(
        "tensorrt_llm", tensors(input_ids=ids, input_lengths=i32(0), request_output_len=i32(0), stop=flag), request_id="to-stop"
    )
    finals, empty, tokens = 0, 0, 3
    while finals < 2:
        result, error = replies.get(timeout=30)
        assert error is None, error
        output = result.as_numpy("output_ids")
        empty += output is None
        tokens += 0 if output is None else output.shape[2]
        finals += result.get_response().parameters["triton_final_response"].bool_param
    client.stop_stream()
    client.close()
    assert empty == 1, "the stop request is answered by one response without tensors"
    assert tokens < 1500


def test_stop_without_an_id_is_an_error(server):
    reply = server.generate("tensorrt_llm", input_ids=[1], input_lengths=0, request_output_len=0, stop=True)
    assert "request ID is not provided" in reply.error


BAD = [
    ({"input_ids": [1, 99999999], "input_lengths": 2, "request_output_len": 2}, "input_ids"),
    ({"input_ids": [1, -5], "input_lengths": 2, "request_output_len": 2}, "input_ids"),
    ({"input_ids": [1, 2], "input_lengths": 2, "request_output_len": 0}, "request_output_len"),
    ({"input_ids": [1, 2], "input_lengths": 2, "request_output_len": -3}, "request_output_len"),
    ({"input_ids": [1, 2], "input_lengths": 2}, "request_output_len is not present"),
    ({"text_input": "a", "max_tokens": 0}, "max_tokens"),
    ({"text_input": "a", "max_tokens": 4, "temperature": -1.0}, "temperature"),
    ({"text_input": "a", "max_tokens": 4, "top_p": 1.5}, "top_p"),
    ({"text_input": "a", "max_tokens": 4, "top_k": -1}, "top_k"),
    ({"text_input": "a", "max_tokens": 4, "repetition_penalty": 0.0}, "repetition_penalty"),
    ({"text_input": "a", "max_tokens": 4, "beam_width": 3}, "max_beam_width, which is 2"),
    ({"input_ids": [1], "input_lengths": 1, "request_output_len": 2, "end_id": 1 << 30}, "end_id"),
    ({"input_ids": [1, 2], "input_lengths": 2, "request_output_len": 2, "stop_words_list": [1, 2, 5, -1]}, "out-of-bound"),
    ({"input_ids": [1, 2], "input_lengths": 2, "request_output_len": 2, "stop_words_list": [1, 2, -1, 2]}, "additional -1s"),
]


@pytest.mark.parametrize("body,names", BAD, ids=[names + str(i) for i, (_, names) in enumerate(BAD)])
def test_bad_input_is_named_and_the_next_request_is_served(server, body, names):
    reply = server.generate("tensorrt_llm", **body)
    assert reply.status == 400, (reply.status, reply.body)
    assert names in reply.error
    assert server.generate("tensorrt_llm", text_input="a", max_tokens=1).status == 200


@pytest.mark.parametrize("stop", ["false", "true"])
def test_4_3_an_id_that_is_no_text_is_refused(server, stop):
    one = '{"name": "%s", "shape": [1, 1], "datatype": "%s", "data": [%s]}'
    inputs = ", ".join(one % given for given in (("text_input", "BYTES", '"a"'), ("max_tokens", "INT32", "1"), ("stop", "BOOL", stop)))
    connection = http.client.HTTPConnection("127.0.0.1", server.http, timeout=60)
    connection.request("POST", "/v2/models/tensorrt_llm_unary/infer", b'{"id": "a\xff", "inputs": [' + inputs.encode() + b"]}")
    response = connection.getresponse()
    status, text = response.status, response.read().decode(errors="replace")
    connection.close()
    assert status == 400 and "the request id is not valid UTF-8" in text, text


def test_a_prompt_longer_than_the_model_is_an_error(server):
    reply = server.generate("tensorrt_llm", input_ids=[5] * 5000, input_lengths=5000, request_output_len=2)
    assert reply.status in (400, 500) and "Prompt length (5000) exceeds maximum input length" in reply.error


def test_streaming_needs_decoupled_and_says_so(server):
    reply = server.generate("tensorrt_llm_unary", text_input="a", max_tokens=2, stream=True)
    assert reply.status == 400
    assert "Streaming is only supported if model is deployed using decoupled mode" in reply.error


def test_a_config_of_ten_lines_serves(server):
    config = f'backend: "tensorrtllm"\nparameters {{ key: "gpt_model_path" value: {{ string_value: "{DEMO}" }} }}\n'
    config += f'parameters {{ key: "tokenizer_dir" value: {{ string_value: "{DEMO}" }} }}\n'
    assert config.count("\n") <= 10
    write_model(server.repository, "short", config)
    assert server.post("/v2/repository/models/short/load", {}).status == 200, server.log[-3000:]
    assert server.text("short", text_input=PROMPT, max_tokens=3).startswith(PROMPT)
    assert server.post("/v2/repository/models/short/unload", {}).status == 200
    eventually(lambda: not server.ready("short"), "unloaded")
    shutil.rmtree(server.repository / "short")


def test_unload_and_reload_ten_times_under_traffic(server):
    for _ in range(10):
        assert server.post("/v2/repository/models/tensorrt_llm_unary/unload", {}).status == 200
        eventually(lambda: not server.ready("tensorrt_llm_unary"), "unloaded")
        assert server.text("tensorrt_llm", text_input=PROMPT, max_tokens=2)
        assert server.post("/v2/repository/models/tensorrt_llm_unary/load", {}).status == 200
        assert server.text("tensorrt_llm_unary", text_input=PROMPT, max_tokens=2)


def broken_checkpoint(folder, name):
    target = folder / name
    shutil.copytree(DEMO, target)
    return target


@pytest.mark.parametrize(
    "damage,says",
    [
        (lambda d: (d / "config.json").unlink(), "config.json"),
        (lambda d: (d / "config.json").write_text("{"), "config.json"),
        (lambda d: (d / "model.safetensors").unlink(), "safetensors"),
        (lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:100000]), "model.safetensors"),
        (lambda d: (d / "tokenizer.json").write_text("not json"), "tokenizer.json"),
    ],
    ids=["no-config", "bad-config", "no-weights", "truncated-weights", "bad-tokenizer"],
)
def test_a_broken_checkpoint_fails_with_the_file_in_the_message(server, tmp_path, damage, says):
    model = broken_checkpoint(tmp_path, "model")
    damage(model)
    copy_template(server.repository, "tensorrt_llm", name="broken", engine_dir=str(model), tokenizer_dir=str(model), device=DEVICE)
    reply = server.post("/v2/repository/models/broken/load", {})
    shutil.rmtree(server.repository / "broken")
    assert reply.status != 200
    assert "unexpected error when creating model" in server.log and says in reply.error, reply.error
    assert server.text("tensorrt_llm", text_input=PROMPT, max_tokens=1)


def test_an_unknown_gpt_model_type_keeps_the_model_from_loading(server):
    reply = load_edited(server, "inflight_fused_batching", "INVALID")
    assert reply.status != 200 and "Invalid gpt_model_type" in reply.error


def test_a_misspelt_parameter_is_named_with_what_was_meant(server):
    assert load_edited(server, '"max_beam_width"', '"max_beam_widht"').status == 200
    assert "max_beam_widht" in server.log and "did you mean" in server.log and "max_beam_width" in server.log


def load_edited(server, old, new):
    """Loads the LLM's template with one text replaced, unloads it again, and returns the reply to the load."""

    def edit(text):
        assert old in text
        return text.replace(old, new)

    copy_template(server.repository, "tensorrt_llm", name="edited", edit=edit, engine_dir=str(DEMO), tokenizer_dir=str(DEMO), device=DEVICE)
    reply = server.post("/v2/repository/models/edited/load", {})
    server.post("/v2/repository/models/edited/unload", {})
    eventually(lambda: not server.ready("edited"), "unloaded")
    shutil.rmtree(server.repository / "edited")
    return reply


@pytest.mark.parametrize("kind", ["KIND_CPU", "KIND_MODEL"])
def test_instance_kinds_of_existing_repositories(server, kind):
    def edit(text):
        return text.replace("kind: KIND_MODEL", f"kind: {kind}")

    copy_template(server.repository, "tensorrt_llm", name="kinds", edit=edit, engine_dir=str(DEMO), tokenizer_dir=str(DEMO), device=DEVICE)
    assert server.post("/v2/repository/models/kinds/load", {}).status == 200, server.log[-3000:]
    assert server.text("kinds", text_input=PROMPT, max_tokens=2)
    assert server.post("/v2/repository/models/kinds/unload", {}).status == 200
    eventually(lambda: not server.ready("kinds"), "unloaded")
    shutil.rmtree(server.repository / "kinds")


def test_templates_load_as_they_are(tmp_path):
    """Unfilled templates must parse; the LLM then fails with the sentence of the run-books, not with a parser error."""
    repository = tmp_path / "repository"
    repository.mkdir()
    copy_template(repository, "tensorrt_llm")
    server = Server(tmp_path, repository, wait=False)
    server.process.wait(60)
    assert "Both encoder and decoder model paths are empty" in server.log
    assert "engine_dir" in server.log


def test_queue_limit_is_refused_with_the_old_text(server):
    from concurrent.futures import ThreadPoolExecutor

    def edit(text):
        import re

        text = re.sub(r"max_queue_size:\s*\d+", "max_queue_size: 2", text)
        assert "max_queue_size: 2" in text
        return text.replace("decoupled: true", "decoupled: false")

    copy_template(server.repository, "tensorrt_llm", name="queue", edit=edit, engine_dir=str(DEMO), tokenizer_dir=str(DEMO), device=DEVICE)
    assert server.post("/v2/repository/models/queue/load", {}).status == 200, server.log[-3000:]
    with ThreadPoolExecutor(100) as pool:
        replies = list(pool.map(lambda _: server.generate("queue", text_input=PROMPT, max_tokens=60), range(100)))
    refused = [r for r in replies if r.status != 200]
    assert refused, "100 requests at once exceed a queue of 2"
    for reply in refused:
        # The server's own queue answers 503; the generate endpoint of 2.51 makes 400 of every error of a backend.
        ours = "Maximum queue size of 2 has been reached" in reply.error
        assert (ours and reply.status in (400, 503)) or (reply.status == 503 and "Exceeds maximum queue size" in reply.error)
    assert server.text("queue", text_input=PROMPT, max_tokens=2)
    assert server.post("/v2/repository/models/queue/unload", {}).status == 200
    eventually(lambda: not server.ready("queue"), "unloaded")
    shutil.rmtree(server.repository / "queue")


def test_statistics_line_has_one_key_for_each_series(server):
    import json

    assert server.post("/v2/logging", {"log_verbose_level": 1}).status == 200
    try:
        server.text("tensorrt_llm", text_input=PROMPT, max_tokens=4)
        eventually(lambda: "Active Request Count" in server.log, "a line of statistics")
    finally:
        assert server.post("/v2/logging", {"log_verbose_level": 0}).status == 200
    line = [line for line in server.log.splitlines() if "Active Request Count" in line][-1]
    record = json.loads(line[line.index("{") : line.rindex("}") + 1].replace('\\"', '"'))
    series = [s for s in server.metrics() if s.startswith("nv_trt_llm_") and 'model="tensorrt_llm"' in s]
    assert len(record) == len(series), (sorted(record), sorted(series))


def test_readme_commands_exist():
    readme = (ROOT / "README.md").read_text()
    assert "bash ci/serve.sh" in readme and "bash ci/test.sh" in readme


def failures(server) -> dict[str, float]:
    return {series: value for series, value in server.metrics().items() if series.startswith("nv_inference_request_failure") and value}


@pytest.mark.parametrize("model", ["tensorrt_llm", "tensorrt_llm_bls", "bls_unary"])
def test_a_storm_of_cut_connections_is_no_failure(server, model):
    before = failures(server)
    body = json.dumps({"text_input": PROMPT, "max_tokens": 400 if model != "bls_unary" else 60, "stream": model != "bls_unary", "end_id": -1})
    endpoint = "generate" if model == "bls_unary" else "generate_stream"
    head = f"POST /v2/models/{model}/{endpoint} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"

    def cut(number):
        with socket.create_connection(("127.0.0.1", server.http)) as connection:
            connection.sendall((head + body).encode())
            # Some are cut before they run, some while they run, by a closed connection or by a reset one.
            wanted = number % 4 * 200
            while wanted > 0 and model != "bls_unary":
                piece = connection.recv(wanted)
                wanted -= len(piece) or wanted
            if number % 2:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    threads = [threading.Thread(target=cut, args=(number,)) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # A server does not notice that the client of a unary request has gone: those end by themselves.
    pending = lambda name: server.metric("nv_inference_pending_request_count", model=name)
    models = {model, "tensorrt_llm", "tensorrt_llm_unary", "postprocessing"}
    eventually(lambda: all(pending(name) == 0 for name in models) and active(server) == 0, "every request has ended", 60)
    assert server.text(model, text_input=PROMPT, max_tokens=2)
    assert failures(server) == before
