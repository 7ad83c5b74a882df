"""The calls of upstream's client programs and CI scenarios (contract §7.3 and §10.1): the same inputs, types, shapes and flags.

One test for each program or scenario, named after it."""

import json
import queue
import re
import signal

import numpy
import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http
from clients import PROMPT, Stream, core_inputs, prompt_ids, tensor
from server import DEMO, Server, copy_template, eventually

def test_inflight_batcher_llm_client_unary(server):
    ids = prompt_ids(server)
    client = grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}")
    answers = queue.Queue()
    outputs = [grpc.InferRequestedOutput(name) for name in ("output_ids", "sequence_length")]
    client.async_infer(
        "tensorrt_llm_unary",
        core_inputs(ids, 8, False),
        lambda result, error: answers.put((result, error)),
        outputs=outputs,
        request_id="1",
        parameters={"Streaming": False},
    )
    result, error = answers.get(timeout=60)
    assert error is None, error
    assert [output.name for output in result.get_response().outputs] == ["output_ids", "sequence_length"]
    output = result.as_numpy("output_ids")
    assert output.shape == (1, 1, ids.shape[1] + 8) and list(output[0][0][: ids.shape[1]]) == list(ids[0])
    assert result.as_numpy("sequence_length").tolist() == [[ids.shape[1] + 8]]


def test_inflight_batcher_llm_client_streaming_with_log_probs_and_perf_metrics(server):
    ids = prompt_ids(server)
    stream = Stream(server)
    more = {"return_log_probs": True, "return_perf_metrics": True, "exclude_input_in_output": True}
    stream.send("tensorrt_llm", core_inputs(ids, 8, True, **more), request_id="2", parameters={"Streaming": True})
    results = stream.until_final()
    tokens = [token for result in results for token in result.as_numpy("output_ids")[0][0][: result.as_numpy("sequence_length")[0][0]]]
    assert len(tokens) == 8 and [result.as_numpy("output_log_probs").shape[2] for result in results] == list(range(1, 9))
    last = results[-1]
    assert last.get_response().id == "2"
    assert last.as_numpy("acceptance_rate").tolist() == [[0.0]] and last.as_numpy("total_draft_tokens").tolist() == [[0]]
    assert all(last.as_numpy(f"{name}_time_ns")[0][0] > 0 for name in ("arrival", "first_scheduled", "first_token", "last_token"))


def test_inflight_batcher_llm_client_stop_after_ms(server):
    ids = prompt_ids(server)
    stream = Stream(server)
    stream.send("tensorrt_llm", core_inputs(ids, 1500, True), request_id="3", parameters={"Streaming": True})
    stream.get()
    stop = [
        tensor(grpc, "input_ids", [[0]], numpy.int32),
        tensor(grpc, "input_lengths", [[0]], numpy.int32),
        tensor(grpc, "request_output_len", [[0]], numpy.int32),
        tensor(grpc, "stop", [[True]], bool),
    ]
    stream.send("tensorrt_llm", stop, request_id="3", parameters={"Streaming": True})
    finals, tokens, cancellations = 0, 1, 0
    while finals < 2:
        result = stream.get()
        finals += result.get_response().parameters["triton_final_response"].bool_param
        if result.as_numpy("output_ids") is None:
            cancellations += 1
        else:
            tokens += int(result.as_numpy("sequence_length")[0][0])
    stream.client.stop_stream()
    assert cancellations == 1, "the stop request is answered without tensors"
    assert tokens < 1500


@pytest.mark.parametrize("model,overwrite", [("ensemble", False), ("tensorrt_llm_bls", False), ("bls_whole_text", True)])
def test_end_to_end_grpc_client(server, model, overwrite):
    stream = Stream(server)
    inputs = [
        tensor(grpc, "text_input", [[PROMPT.encode()]], object),
        tensor(grpc, "max_tokens", [[12]], numpy.int32),
        tensor(grpc, "stream", [[True]], bool),
        tensor(grpc, "beam_width", [[1]], numpy.int32),
        tensor(grpc, "temperature", [[1.0]], numpy.float32),
        tensor(grpc, "stop_words", [[b"zzzz"]], object),
        tensor(grpc, "bad_words", [[b"zzzz"]], object),
    ]
    stream.send(model, inputs, outputs=[grpc.InferRequestedOutput("text_output")], request_id="4", enable_empty_final_response=True)
    text = ""
    for result in stream.until_final():
        piece = result.as_numpy("text_output")
        if piece is not None:
            piece = piece.reshape(-1)[0].decode()
            text = piece if overwrite else text + piece
    whole = server.text("tensorrt_llm", text_input=PROMPT, max_tokens=12, exclude_input_in_output=True)
    assert text.strip() == whole.strip()


def test_end_to_end_grpc_client_batch_inputs(server):
    prompts = [PROMPT, "The little dog"]
    stream = Stream(server)
    inputs = [
        tensor(grpc, "text_input", [[prompt.encode()] for prompt in prompts], object),
        tensor(grpc, "max_tokens", [[6]] * 2, numpy.int32),
        tensor(grpc, "stream", [[True]] * 2, bool),
        tensor(grpc, "beam_width", [[1]] * 2, numpy.int32),
        tensor(grpc, "temperature", [[1.0]] * 2, numpy.float32),
    ]
    outputs = [grpc.InferRequestedOutput(name) for name in ("text_output", "batch_index")]
    stream.send("ensemble", inputs, outputs=outputs, enable_empty_final_response=True)
    texts = ["", ""]
    for result in stream.until_final():
        if result.as_numpy("text_output") is not None:
            texts[int(result.as_numpy("batch_index").reshape(-1)[0])] += result.as_numpy("text_output").reshape(-1)[0].decode()
    for prompt, text in zip(prompts, texts):
        alone = server.text("tensorrt_llm", text_input=prompt, max_tokens=6, exclude_input_in_output=True)
        assert text.strip() == alone.strip()


@pytest.mark.parametrize("module", [http, grpc])
def test_benchmark_core_model(server, module):
    ids = prompt_ids(server)
    port = server.http if module is http else server.grpc
    client = module.InferenceServerClient(f"127.0.0.1:{port}")
    inputs = [
        tensor(module, "input_ids", ids, numpy.int32),
        tensor(module, "input_lengths", [[ids.shape[1]]], numpy.int32),
        tensor(module, "request_output_len", [[10]], numpy.int32),
        tensor(module, "pad_id", [[1]], numpy.int32),
        tensor(module, "end_id", [[-1]], numpy.int32),
    ]
    result = client.infer("tensorrt_llm_unary", inputs, request_id="17")
    if module is grpc:
        first = result.get_response().outputs[0]
        assert first.shape[2] - ids.shape[1] == 10, "the tool reads the first output's third dimension, whatever its name"
        assert result.get_response().id == "17"
    else:
        assert result.get_response()["outputs"][0]["shape"][2] - ids.shape[1] == 10


def test_end_to_end_test(server):
    """Manual chain of the three models, the ensemble and the BLS: texts and log-probabilities are equal."""
    client = http.InferenceServerClient(f"127.0.0.1:{server.http}")
    before = client.infer("preprocessing", [tensor(http, "QUERY", [[PROMPT.encode()]], object), tensor(http, "REQUEST_OUTPUT_LEN", [[6]], numpy.int32)])
    inputs = []
    for theirs, ours in (
        ("INPUT_ID", "input_ids"),
        ("DECODER_INPUT_ID", "decoder_input_ids"),
        ("REQUEST_INPUT_LEN", "input_lengths"),
        ("REQUEST_OUTPUT_LEN", "request_output_len"),
        ("BAD_WORDS_IDS", "bad_words_list"),
        ("STOP_WORDS_IDS", "stop_words_list"),
        ("EMBEDDING_BIAS", "embedding_bias"),
        ("OUT_END_ID", "end_id"),
        ("OUT_PAD_ID", "pad_id"),
    ):
        array = before.as_numpy(theirs)
        inputs.append(tensor(http, ours, array, array.dtype))
    inputs.append(tensor(http, "return_log_probs", [[True]], bool))
    answer = client.infer("tensorrt_llm_unary", inputs)
    tokens = answer.as_numpy("output_ids")
    lengths = answer.as_numpy("sequence_length")
    after = client.infer("postprocessing", [tensor(http, "TOKENS_BATCH", tokens, numpy.int32), tensor(http, "SEQUENCE_LENGTH", lengths, numpy.int32)])
    text = after.as_numpy("OUTPUT").reshape(-1)[0].decode()
    ensemble = server.generate("ensemble", text_input=PROMPT, max_tokens=6, return_log_probs=True).json
    assert ensemble["text_output"] == text == server.text("tensorrt_llm_bls", text_input=PROMPT, max_tokens=6)
    assert numpy.array_equal(answer.as_numpy("output_log_probs").reshape(-1), numpy.float32(ensemble["output_log_probs"]))


def test_max_queue_size_tool_unary(server):
    """Many requests against a limit of one: at least one is told which limit it met, and the others are answered."""
    client = grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}")
    values = {"engine_dir": str(DEMO), "tokenizer_dir": str(DEMO), "device": "cpu", "engine_max_batch_size": "1"}

    def edit(text):
        text = re.sub(r"max_queue_size:\s*\d+", "max_queue_size: 1", text)
        return text.replace("decoupled: true", "decoupled: false")

    copy_template(server.repository, "tensorrt_llm", name="small_queue", edit=edit, **values)
    client.load_model("small_queue")
    ids = prompt_ids(server)
    answers = queue.Queue()
    for number in range(40):
        client.async_infer("small_queue", core_inputs(ids, 60, False), lambda result, error: answers.put(error), request_id=str(number))
    errors = [str(error) for error in (answers.get(timeout=120) for _ in range(40)) if error]
    assert any("Maximum queue size of" in error or "Exceeds maximum queue size" in error for error in errors), errors[:3]
    assert len(errors) < 40
    client.unload_model("small_queue", unload_dependents=False)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """A server of its own, with the parameters of the CI's runs on per-request performance."""
    folder = tmp_path_factory.mktemp("ci")
    repository = folder / "repository"
    repository.mkdir()
    demo = str(DEMO)
    values = {
        "engine_dir": demo,
        "tokenizer_dir": demo,
        "device": "cpu",
        "exclude_input_in_output": "True",
        "enable_kv_cache_reuse": "True",
        "kv_cache_free_gpu_mem_fraction": "0.5",
        "max_tokens_in_paged_kv_cache": "2560",
        "request_stats_max_iterations": "10",
    }
    copy_template(repository, "tensorrt_llm", **values)
    copy_template(repository, "preprocessing", tokenizer_dir=demo)
    copy_template(repository, "postprocessing", tokenizer_dir=demo)
    copy_template(repository, "ensemble")
    copy_template(repository, "tensorrt_llm_bls")
    copy_template(repository, "tensorrt_llm", name="static", edit=lambda text: text.replace("inflight_fused_batching", "V1"), **values)
    running = Server(folder, repository)
    yield running
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(30) == 0, "SIGINT ends the server, as the CI's kill does"


def test_ci_9_perf_metrics_of_the_same_prompt_twice(clean):
    """The reference values: 4 new blocks, then all of them reused and one new one. First through the ensemble, then the BLS."""
    client = http.InferenceServerClient(f"127.0.0.1:{clean.http}")

    def length(text):
        inputs = [tensor(http, "QUERY", [[text.encode()]], object), tensor(http, "REQUEST_OUTPUT_LEN", [[1]], numpy.int32)]
        return client.infer("preprocessing", inputs).as_numpy("INPUT_ID").shape[1]

    prompt = "The little dog and the big cat went to the river. "
    while length(prompt) < 200:
        prompt += f"Day {len(prompt)} was a good day for the dog. "
    assert 3 * 64 < length(prompt) < 4 * 64
    body = {"text_input": prompt, "max_tokens": 10, "return_perf_metrics": True, "bad_words": "", "stop_words": ""}
    first, second = clean.generate("ensemble", **body).json, clean.stream("tensorrt_llm_bls", **body)
    assert len(second) == 1, "without stream there is one event"
    second = second[0]
    blocks = ("kv_cache_alloc_new_blocks", "kv_cache_alloc_total_blocks", "kv_cache_reused_blocks")
    assert [first[name] for name in blocks] == [4, 4, 0]
    assert [second[name] for name in blocks] == [1, 1, 4]
    for reply in (first, second):
        assert reply["acceptance_rate"] == 0.0 and reply["total_draft_tokens"] == reply["total_accepted_draft_tokens"] == 0
        assert 0 < reply["arrival_time_ns"] <= reply["first_scheduled_time_ns"] <= reply["first_token_time_ns"] <= reply["last_token_time_ns"]
    assert first["text_output"] == second["text_output"]


def test_ci_2_static_batching_serves(clean):
    assert clean.text("static", text_input=PROMPT, max_tokens=8) == clean.text("tensorrt_llm", text_input=PROMPT, max_tokens=8, exclude_input_in_output=True)
    metrics = clean.metrics_text()
    assert 'nv_trt_llm_v1_metrics{model="static"' in metrics and 'nv_trt_llm_inflight_batcher_metrics{model="static"' not in metrics
    assert 'nv_trt_llm_v1_metrics{model="tensorrt_llm"' not in metrics


def test_ci_4_a_streaming_request_is_one_observation_of_each_histogram(clean):
    def sums():
        families = ("nv_llm_input_token_len", "nv_llm_output_token_len")
        return [clean.metric(f"{family}_{kind}", model="tensorrt_llm") for family in families for kind in ("count", "sum")]

    before = sums()
    clean.stream("ensemble", text_input=PROMPT, max_tokens=50, stream=True)
    prompt = prompt_ids(clean).shape[1]
    eventually(lambda: [a - b for a, b in zip(sums(), before)] == [1, prompt, 1, 50], "one input and one output observation")


def test_ci_5_base_metrics_of_the_four_models_agree(clean):
    models = ("ensemble", "preprocessing", "tensorrt_llm", "postprocessing")
    names = ("request_success", "count", "exec_count", "request_duration_us", "compute_input_duration_us", "compute_infer_duration_us", "compute_output_duration_us")

    def values(name):
        return {model: clean.metric(f"nv_inference_{name}", model=model) for model in models}

    before = {name: values(name) for name in names}
    for length in (1, 5, 12):
        clean.text("ensemble", text_input=PROMPT, max_tokens=length)
    grown = {name: {model: values(name)[model] - before[name][model] for model in models} for name in names}
    assert set(grown["request_success"].values()) == set(grown["count"].values()) == {3}
    assert grown["exec_count"]["ensemble"] == grown["exec_count"]["tensorrt_llm"] == 3
    for name in names[3:]:
        assert grown[name]["ensemble"] > 0 and sum(grown[name][model] for model in models[1:]) > 0, name


def test_ci_10_the_line_of_statistics_equals_the_metrics(clean):
    assert clean.post("/v2/logging", {"log_verbose_level": 1}).status == 200
    clean.text("tensorrt_llm", text_input=PROMPT, max_tokens=3)

    def last_line():
        lines = [line for line in clean.log.splitlines() if "Active Request Count" in line]
        return json.loads(lines[-1][lines[-1].index("{") : lines[-1].rindex("}") + 1].replace('\\"', '"')) if lines else {}

    def iteration():
        return clean.metric("nv_trt_llm_general_metrics", model="tensorrt_llm", general_type="iteration_counter")

    eventually(lambda: last_line().get("Active Request Count") == 0 and last_line()["Iteration Counter"] == iteration(), "the line of the last step")
    assert clean.post("/v2/logging", {"log_verbose_level": 0}).status == 200
    series = [name for name in clean.metrics() if name.startswith("nv_trt_llm_") and 'model="tensorrt_llm"' in name]
    assert len(last_line()) == len(series) == 22
