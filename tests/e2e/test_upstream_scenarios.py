"""The rarer options of upstream's clients and the rest of its CI scenarios (contract §7.3 and §10.1), named after them."""

import calendar
import json
import queue
import re
import signal
import time

import numpy
import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http
from clients import PERF, PROMPT, Stream, core_inputs, prompt_ids, tensor
from server import DEMO, Server, copy_template, eventually


def ask(server, model, inputs, **options):
    """One unary request over gRPC, as async_infer of the client."""
    client = grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}")
    return client.infer(model, inputs, **options)


def new_tokens(results):
    return [
        int(token)
        for result in results
        if result.as_numpy("output_ids") is not None
        for token in result.as_numpy("output_ids")[0][0][: result.as_numpy("sequence_length")[0][0]]
    ]


def test_inflight_batcher_llm_client_stop_via_request_cancel(server):
    """--stop-via-request-cancel: the gRPC call is cancelled; its blocks are free again."""
    ids = prompt_ids(server)
    stream = Stream(server)
    stream.send("tensorrt_llm", core_inputs(ids, 1500, True), request_id="11", parameters={"Streaming": True})
    stream.get()
    stream.client.stop_stream(cancel_requests=True)
    client = grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}")
    answers = queue.Queue()
    call = client.async_infer(
        "tensorrt_llm_unary", core_inputs(ids, 1500, False), lambda result, error: answers.put(error), request_id="12"
    )
    call.cancel()
    assert "CANCELLED" in str(answers.get(timeout=60).status())
    labels = {"request_type": "active"}
    for model in ("tensorrt_llm", "tensorrt_llm_unary"):
        eventually(lambda: server.metric("nv_trt_llm_request_metrics", model=model, **labels) == 0, "nothing runs")


def test_inflight_batcher_llm_client_num_return_sequences(server):
    """--num-return-sequences goes over the stream, also where it does not stream."""
    ids = prompt_ids(server)
    stream = Stream(server)
    inputs = [tensor for tensor in core_inputs(ids, 6, False) if tensor.name() not in ("runtime_top_k", "runtime_top_p")]
    inputs += [tensor(grpc, "runtime_top_k", [[40]], numpy.int32), tensor(grpc, "num_return_sequences", [[3]], numpy.int32)]
    stream.send("tensorrt_llm", inputs, request_id="13", parameters={"Streaming": False})
    results = stream.until_final()
    assert sorted(result.as_numpy("sequence_index").tolist() for result in results) == [[[0]], [[1]], [[2]]]
    assert all(result.as_numpy("output_ids").shape == (1, 1, ids.shape[1] + 6) for result in results)
    assert len({tuple(result.as_numpy("output_ids")[0][0]) for result in results}) == 3, "drawn one by one"


@pytest.mark.parametrize("width", [1, 2])
def test_inflight_batcher_llm_client_requested_outputs_are_exactly_what_comes(server, width):
    """--return-log-probs --return-context-logits --return-generation-logits --requested-outputs, with -b."""
    ids = prompt_ids(server)
    flags = {"return_log_probs": True, "return_context_logits": True, "return_generation_logits": True}
    inputs = [tensor for tensor in core_inputs(ids, 5, False, **flags) if tensor.name() != "beam_width"]
    inputs.append(tensor(grpc, "beam_width", [[width]], numpy.int32))
    names = ["output_ids", "sequence_length", "cum_log_probs", "output_log_probs", "context_logits", "generation_logits"]
    result = ask(server, "tensorrt_llm_unary", inputs, outputs=[grpc.InferRequestedOutput(name) for name in names])
    assert {output.name for output in result.get_response().outputs} == set(names)
    shape = {name: result.as_numpy(name).shape for name in names}
    vocab = shape["context_logits"][2]
    assert shape["context_logits"] == (1, ids.shape[1], vocab) and shape["generation_logits"] == (1, width, 5, vocab)
    assert shape["cum_log_probs"] == (1, width) and shape["output_log_probs"] == (1, width, 5)
    if width == 1:
        greedy = result.as_numpy("generation_logits")[0][0].argmax(axis=1).tolist()
        assert greedy == result.as_numpy("output_ids")[0][0][ids.shape[1] :].tolist()
    again = ask(server, "tensorrt_llm_unary", inputs)
    assert numpy.array_equal(again.as_numpy("output_log_probs"), result.as_numpy("output_log_probs")), "--check-output runs twice"


def test_inflight_batcher_llm_client_draft_tokens(server):
    """--draft-tokens-csv: one step where all come true, the same tokens where none does."""
    ids = prompt_ids(server)
    plain = ask(server, "tensorrt_llm_unary", core_inputs(ids, 6, False)).as_numpy("output_ids")[0][0].tolist()
    right = plain[ids.shape[1] : -1]
    for drafts, accepted in ((right, len(right)), ([right[0], 3, 3], 1)):
        inputs = core_inputs(ids, 6, False, return_perf_metrics=True) + [tensor(grpc, "draft_input_ids", [drafts], numpy.int32)]
        result = ask(server, "tensorrt_llm_unary", inputs)
        assert result.as_numpy("output_ids")[0][0].tolist() == plain
        assert result.as_numpy("total_draft_tokens").tolist() == [[len(drafts)]]
        assert result.as_numpy("total_accepted_draft_tokens").tolist() == [[accepted]]


def test_inflight_batcher_llm_client_prompt_embedding_table(server):
    """--prompt-embedding-table-path --prompt_table_extra_id --vocab_size: ids from the vocabulary's size on are rows."""
    ids = prompt_ids(server)
    logits = [tensor(grpc, "return_context_logits", [[True]], bool)]
    vocab = ask(server, "tensorrt_llm_unary", core_inputs(ids, 1, False) + logits).as_numpy("context_logits").shape[2]
    prompt = numpy.array([[vocab, vocab + 1, *ids[0]]], dtype=numpy.int32)

    def answer(value, extra, width):
        table = numpy.full((1, 2, width), value, dtype=numpy.float16)
        inputs = core_inputs(prompt, 6, False, exclude_input_in_output=True, return_log_probs=True)
        rows = grpc.InferInput("prompt_embedding_table", list(table.shape), "FP16")
        rows.set_data_from_numpy(table)
        extra_ids = numpy.array([[extra, extra, *[0] * ids.shape[1]]], dtype=numpy.uint64)
        inputs += [rows, tensor(grpc, "prompt_vocab_size", [[2]], numpy.int32), tensor(grpc, "prompt_table_extra_ids", extra_ids, numpy.uint64)]
        result = ask(server, "tensorrt_llm_unary", inputs)
        return [result.as_numpy(name).tolist() for name in ("output_ids", "cum_log_probs")]

    with pytest.raises(Exception, match="expected rows of") as refused:
        answer(0.1, 1, 3)
    width = int(re.search(r"expected rows of (\d+)", str(refused.value)).group(1))
    assert answer(0.1, 1, width) == answer(0.1, 1, width)
    assert answer(-2.0, 2, width) != answer(2.0, 3, width), "the rows are seen"


def test_inflight_batcher_llm_client_what_is_not_served_is_said(server):
    """--lora-task-id alone: the words on which clients send the weights; --lookahead_config: refused by name."""
    ids = prompt_ids(server)
    cases = [
        ([tensor(grpc, "lora_task_id", [[7]], numpy.uint64)], "LoRA task 7 not found in cache"),
        (
            [tensor(grpc, f"lookahead_{name}", [[3]], numpy.int32) for name in ("window_size", "ngram_size", "verification_set_size")],
            "lookahead_window_size",
        ),
    ]
    for more, fragment in cases:
        with pytest.raises(Exception, match=fragment):
            ask(server, "tensorrt_llm_unary", core_inputs(ids, 4, False) + more)


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
def test_end_to_end_grpc_client_options(server, model):
    """Penalties, bias words, end and pad id, log-probabilities, logits and a guide, each as the program sends it."""
    stream = Stream(server)
    inputs = [
        tensor(grpc, "text_input", [[PROMPT.encode()]], object),
        tensor(grpc, "max_tokens", [[5]], numpy.int32),
        tensor(grpc, "stream", [[False]], bool),
        tensor(grpc, "beam_width", [[1]], numpy.int32),
        tensor(grpc, "temperature", [[1.0]], numpy.float32),
        tensor(grpc, "repetition_penalty", [[1.1]], numpy.float32),
        tensor(grpc, "presence_penalty", [[0.1]], numpy.float32),
        tensor(grpc, "frequency_penalty", [[0.1]], numpy.float32),
        tensor(grpc, "embedding_bias_words", [[b"cat", b"dog"]], object),
        tensor(grpc, "embedding_bias_weights", [[1.5, -1.5]], numpy.float32),
        tensor(grpc, "end_id", [[-1]], numpy.int32),
        tensor(grpc, "pad_id", [[2]], numpy.int32),
        tensor(grpc, "exclude_input_in_output", [[True]], bool),
        tensor(grpc, "return_log_probs", [[True]], bool),
        tensor(grpc, "return_context_logits", [[True]], bool),
        tensor(grpc, "return_generation_logits", [[True]], bool),
    ]
    names = ["text_output", "cum_log_probs", "output_log_probs", "context_logits", "generation_logits"]
    stream.send(model, inputs, outputs=[grpc.InferRequestedOutput(name) for name in names], request_id="21", enable_empty_final_response=True)
    result = stream.until_final()[0]
    assert {output.name for output in result.get_response().outputs} == set(names)
    assert result.as_numpy("output_log_probs").size == 5 and result.as_numpy("generation_logits").shape[:3] == (1, 1, 5)
    guided = Stream(server)
    guide = [tensor(grpc, "guided_decoding_guide_type", [[b"regex"]], object), tensor(grpc, "guided_decoding_guide", [[b"(yes|no)"]], object)]
    kept = [tensor for tensor in inputs if tensor.name() in ("text_input", "max_tokens", "stream", "beam_width", "temperature", "exclude_input_in_output")]
    guided.send(model, kept + guide, outputs=[grpc.InferRequestedOutput("text_output")], enable_empty_final_response=True)
    assert guided.until_final()[0].as_numpy("text_output").reshape(-1)[0].decode() in ("yes", "no")


def test_benchmark_core_model_decoupled(server):
    """--decoupled: everything over one stream, results keyed by the request's id."""
    ids = prompt_ids(server)
    stream = Stream(server)
    count = 12
    for number in range(count):
        inputs = [
            tensor(grpc, "input_ids", ids, numpy.int32),
            tensor(grpc, "input_lengths", [[ids.shape[1]]], numpy.int32),
            tensor(grpc, "request_output_len", [[5 + number]], numpy.int32),
            tensor(grpc, "pad_id", [[1]], numpy.int32),
            tensor(grpc, "end_id", [[-1]], numpy.int32),
        ]
        stream.send("tensorrt_llm", inputs, request_id=str(number))
    lengths = {}
    while len(lengths) < count:
        response = stream.get().get_response()
        if response.outputs:
            lengths[response.id] = response.outputs[0].shape[2] - ids.shape[1]
    stream.client.stop_stream()
    assert lengths == {str(number): 5 + number for number in range(count)}


def test_max_queue_size_tool_streaming(server):
    """Over the stream at least one of many is told which limit it met."""
    client = grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}")
    values = {"engine_dir": str(DEMO), "tokenizer_dir": str(DEMO), "device": "cpu", "engine_max_batch_size": "1"}
    edit = lambda text: re.sub(r"max_queue_size:\s*\d+", "max_queue_size: 1", text)  # noqa: E731
    copy_template(server.repository, "tensorrt_llm", name="small_stream_queue", edit=edit, **values)
    client.load_model("small_stream_queue")
    ids = prompt_ids(server)
    stream = Stream(server)
    for number in range(30):
        stream.send("small_stream_queue", core_inputs(ids, 40, False), request_id=str(number))
    errors, answered = [], 0
    while len(errors) + answered < 30:
        result, error = stream.results.get(timeout=120)
        if error is None:
            answered += 1
        else:
            errors.append(str(error))
    stream.client.stop_stream()
    assert any("Maximum queue size of" in error or "Exceeds maximum queue size" in error for error in errors), errors[:3]
    assert answered
    client.unload_model("small_stream_queue", unload_dependents=False)


# The server's clock on the wall, which its log tells.
ZONE, AHEAD_SECONDS = "XST-5:30", 5.5 * 3600


@pytest.fixture(scope="module", params=[False, True], ids=["not_decoupled", "decoupled"])
def ci(request, tmp_path_factory):
    """The CI's repository with its parameters, once with each policy."""
    folder = tmp_path_factory.mktemp("ci")
    repository = folder / "repository"
    repository.mkdir()
    demo = str(DEMO)
    values = {
        "exclude_input_in_output": "True",
        "enable_kv_cache_reuse": "True",
        "kv_cache_free_gpu_mem_fraction": "0.5",
        "max_tokens_in_paged_kv_cache": "2560",
        "max_attention_window_size": "2560",
        "request_stats_max_iterations": "10",
        "max_beam_width": "2",
    }

    def edit(text):
        return text if request.param else text.replace("decoupled: true", "decoupled: false")

    copy_template(repository, "tensorrt_llm", engine_dir=demo, tokenizer_dir=demo, device="cpu", edit=edit, **values)
    copy_template(repository, "preprocessing", tokenizer_dir=demo)
    copy_template(repository, "postprocessing", tokenizer_dir=demo)
    copy_template(repository, "ensemble")
    copy_template(repository, "tensorrt_llm_bls", edit=edit)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", ZONE)
        running = Server(folder, repository, "--disable-auto-complete-config")
    running.decoupled = request.param
    yield running
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(30) == 0, "SIGINT ends the server"


def long_prompt(server, begin):
    client = http.InferenceServerClient(f"127.0.0.1:{server.http}")

    def length(text):
        inputs = [tensor(http, "QUERY", [[text.encode()]], object), tensor(http, "REQUEST_OUTPUT_LEN", [[1]], numpy.int32)]
        return client.infer("preprocessing", inputs).as_numpy("INPUT_ID").shape[1]

    prompt = begin
    while length(prompt) < 200:
        prompt += f" Day {len(prompt)} was a good day for the dog."
    return prompt


def check_perf(values, blocks):
    new, total, reused = blocks
    assert (values["kv_cache_alloc_new_blocks"], values["kv_cache_alloc_total_blocks"]) == (new, total)
    # The first token of every prompt is the same: the used part of that block may come from another prompt.
    assert values["kv_cache_reused_blocks"] == reused or (reused == 0 and values["kv_cache_reused_blocks"] == 1)
    assert values["acceptance_rate"] == 0.0 and values["total_draft_tokens"] == values["total_accepted_draft_tokens"] == 0
    assert 0 < values["arrival_time_ns"] <= values["first_scheduled_time_ns"] <= values["first_token_time_ns"]
    assert values["last_token_time_ns"] == 0 or values["last_token_time_ns"] >= values["first_token_time_ns"]


def perf_of(result):
    return {name: result.as_numpy(name).reshape(-1)[0].item() for name in PERF}


ITERATIONS = [[4, 4, 0], [1, 1, 4]]


def test_ci_9_perf_metrics_over_generate(ci):
    prompt = long_prompt(ci, "The little dog went to the river.")
    body = {"text_input": prompt, "max_tokens": 10, "return_perf_metrics": True, "bad_words": "", "stop_words": ""}
    for model, blocks in zip(("ensemble", "tensorrt_llm_bls"), ITERATIONS):
        if ci.decoupled:
            events = ci.stream(model, **body)
            assert len(events) == 1, "without stream there is one event"
            check_perf(events[0], blocks)
        else:
            check_perf(ci.generate(model, **body).json, blocks)


def test_ci_9_perf_metrics_over_end_to_end_grpc_client(ci):
    prompt = long_prompt(ci, "The big cat sat on a tree.").encode()
    for model, blocks in zip(("ensemble", "tensorrt_llm_bls"), ITERATIONS):
        stream = Stream(ci)
        inputs = [
            tensor(grpc, "text_input", [[prompt]], object),
            tensor(grpc, "max_tokens", [[10]], numpy.int32),
            tensor(grpc, "stream", [[False]], bool),
            tensor(grpc, "beam_width", [[1]], numpy.int32),
            tensor(grpc, "temperature", [[1.0]], numpy.float32),
            tensor(grpc, "return_perf_metrics", [[True]], bool),
        ]
        outputs = [grpc.InferRequestedOutput(name) for name in ("text_output", *PERF)]
        stream.send(model, inputs, outputs=outputs, request_id="31", enable_empty_final_response=True)
        check_perf(perf_of(stream.until_final()[0]), blocks)


def test_ci_9_perf_metrics_over_inflight_batcher_llm_client(ci):
    client = http.InferenceServerClient(f"127.0.0.1:{ci.http}")
    prompt = long_prompt(ci, "A bird flew over the house.").encode()
    query = [tensor(http, "QUERY", [[prompt]], object), tensor(http, "REQUEST_OUTPUT_LEN", [[1]], numpy.int32)]
    ids = client.infer("preprocessing", query).as_numpy("INPUT_ID")
    for blocks in ITERATIONS:
        inputs = core_inputs(ids, 10, ci.decoupled, return_perf_metrics=True)
        if ci.decoupled:
            stream = Stream(ci)
            stream.send("tensorrt_llm", inputs, request_id="32")
            results = stream.until_final()
            assert len(new_tokens(results)) == 10
            assert all(result.as_numpy("last_token_time_ns")[0][0] == 0 for result in results[:-1])
            check_perf(perf_of(results[-1]), blocks)
        else:
            check_perf(perf_of(ask(ci, "tensorrt_llm", inputs)), blocks)


def test_end_to_end_test_with_logits(ci):
    """--return-context-logits --return-generation-logits --test-bls: the shapes that the program asserts."""
    client = http.InferenceServerClient(f"127.0.0.1:{ci.http}")
    query = [tensor(http, "QUERY", [[PROMPT.encode()]], object), tensor(http, "REQUEST_OUTPUT_LEN", [[6]], numpy.int32)]
    length = client.infer("preprocessing", query).as_numpy("INPUT_ID").shape[1]
    texts = set()
    for model in ("ensemble", "tensorrt_llm_bls"):
        inputs = [
            tensor(grpc, "text_input", [[PROMPT.encode()]], object),
            tensor(grpc, "max_tokens", [[6]], numpy.int32),
            tensor(grpc, "end_id", [[-1]], numpy.int32),
            *[tensor(grpc, f"return_{name}", [[True]], bool) for name in ("log_probs", "context_logits", "generation_logits")],
        ]
        stream = Stream(ci)
        stream.send(model, inputs, enable_empty_final_response=True)
        result = stream.until_final()[0]
        vocab = result.as_numpy("context_logits").shape[2]
        assert result.as_numpy("context_logits").shape == (1, length, vocab)
        assert result.as_numpy("generation_logits").shape == (1, 1, 6, vocab)
        texts.add(result.as_numpy("text_output").reshape(-1)[0])
    assert len(texts) == 1


def test_ci_5_each_request_falls_into_the_bucket_of_its_length(ci):
    def buckets(family):
        return {bound: ci_bucket(ci, family, bound) for bound in ("10", "50", "100", "+Inf")}

    families = ("nv_llm_input_token_len", "nv_llm_output_token_len")
    before = {family: buckets(family) for family in families}
    for output_len in (4, 30, 70):
        ci.text("ensemble", text_input=PROMPT, max_tokens=output_len, end_id=-1)

    def grown(family):
        return {bound: value - before[family][bound] for bound, value in buckets(family).items()}

    eventually(lambda: grown("nv_llm_output_token_len") == {"10": 1, "50": 2, "100": 3, "+Inf": 3}, "one in each bucket")
    assert grown("nv_llm_input_token_len") == {"10": 3, "50": 3, "100": 3, "+Inf": 3}


def ci_bucket(server, family, bound):
    series = re.escape(f'{family}_bucket{{model="tensorrt_llm",response_metric_type="total_') + r'\w+' + re.escape(f'",version="1",le="{bound}"}} ') + r"(\d+)"
    return int(re.search(series, server.metrics_text()).group(1))


def test_ci_6_two_beams_count_twice(ci):
    def total():
        return ci.metric("nv_llm_output_token_len_sum", model="tensorrt_llm")

    before = total()
    assert ci.generate("ensemble", text_input=PROMPT, max_tokens=7, beam_width=2, end_id=-1).status == 200
    eventually(lambda: total() - before == 14, "length times two")


def test_ci_10_every_number_of_the_line_is_that_of_the_metrics(ci):
    """Key by key, the time within a second; and 12: the level of the log can be set at once."""
    assert ci.post("/v2/logging", {"log_verbose_level": 1}).status == 200
    ci.text("ensemble", text_input=PROMPT, max_tokens=3)

    def lines():
        found = re.findall(r"\{.*Active Request Count.*\}", ci.log)
        return [json.loads(line.replace('\\"', '"')) for line in found]

    def gauges():
        labels = re.compile(r'^(nv_trt_llm_\w+)\{(.*)\}$')
        values = {}
        for series, value in ci.metrics().items():
            match = labels.match(series)
            if match and 'model="tensorrt_llm"' in series:
                category = re.search(r'(\w+(?:type|metric))="(\w+)"', match.group(2))
                values[match.group(1), category.group(2)] = value
        return values

    keys = {
        ("nv_trt_llm_request_metrics", "active"): "Active Request Count",
        ("nv_trt_llm_request_metrics", "max"): "Max Request Count",
        ("nv_trt_llm_request_metrics", "scheduled"): "Scheduled Requests",
        ("nv_trt_llm_request_metrics", "context"): "Context Requests",
        ("nv_trt_llm_request_metrics", "waiting"): "Waiting Requests",
        ("nv_trt_llm_runtime_memory_metrics", "cpu"): "Runtime CPU Memory Usage",
        ("nv_trt_llm_runtime_memory_metrics", "gpu"): "Runtime GPU Memory Usage",
        ("nv_trt_llm_runtime_memory_metrics", "pinned"): "Runtime Pinned Memory Usage",
        ("nv_trt_llm_kv_cache_block_metrics", "max"): "Max KV cache blocks",
        ("nv_trt_llm_kv_cache_block_metrics", "free"): "Free KV cache blocks",
        ("nv_trt_llm_kv_cache_block_metrics", "used"): "Used KV cache blocks",
        ("nv_trt_llm_kv_cache_block_metrics", "tokens_per"): "Tokens per KV cache block",
        ("nv_trt_llm_kv_cache_block_metrics", "reused"): "Reused KV cache blocks",
        ("nv_trt_llm_kv_cache_block_metrics", "fraction"): "Fraction used KV cache blocks",
        ("nv_trt_llm_disaggregated_serving_metrics", "kv_cache_transfer_ms"): "KV cache transfer time",
        ("nv_trt_llm_disaggregated_serving_metrics", "request_count"): "Request count",
        ("nv_trt_llm_inflight_batcher_metrics", "total_context_tokens"): "Total Context Tokens",
        ("nv_trt_llm_inflight_batcher_metrics", "generation_requests"): "Generation Requests",
        ("nv_trt_llm_inflight_batcher_metrics", "micro_batch_id"): "MicroBatch ID",
        ("nv_trt_llm_inflight_batcher_metrics", "paused_requests"): "Paused Requests",
        ("nv_trt_llm_general_metrics", "iteration_counter"): "Iteration Counter",
    }
    timestamp = ("nv_trt_llm_general_metrics", "timestamp")

    def settled():
        last, values = lines()[-1:], gauges()
        return bool(last) and last[0]["Active Request Count"] == 0 and last[0]["Iteration Counter"] == values["nv_trt_llm_general_metrics", "iteration_counter"]

    eventually(settled, "the line of the last step")
    assert ci.post("/v2/logging", {"log_verbose_level": 0}).status == 200
    line, values = lines()[-1], gauges()
    assert set(values) == {*keys, timestamp} and len(line) == len(values) == 22
    assert {key: int(line[name]) for key, name in keys.items()} == {key: int(values[key]) for key in keys}
    told = calendar.timegm(time.strptime(line["Timestamp"].split(".")[0], "%m-%d-%Y %H:%M:%S")) - AHEAD_SECONDS
    assert abs(told - values[timestamp] / 1e6) <= 1


def test_ci_1_an_invalid_batching_type_ends_the_server(tmp_path):
    repository = tmp_path / "repository"
    repository.mkdir()
    edit = lambda text: text.replace("inflight_fused_batching", "INVALID")  # noqa: E731
    copy_template(repository, "tensorrt_llm", engine_dir=str(DEMO), tokenizer_dir=str(DEMO), device="cpu", edit=edit)
    server = Server(tmp_path, repository, wait=False)
    assert server.process.wait(60) != 0, "it ends by itself"
    assert "Invalid gpt_model_type" in server.log


def test_the_log_of_a_load_has_one_block_about_the_parameters(ci):
    """Effective values with their sources, and everything that was not filled or has no effect, line after line."""
    lines = ci.log.splitlines()
    start = next(at for at, line in enumerate(lines) if "tensorrt_llm: parameters in effect:" in line)
    end = next(at for at, line in enumerate(lines) if at > start and "placeholders not filled" in line)
    block = "\n".join(lines[start : end + 3])
    for part in ("max_tokens_in_paged_kv_cache = 2560 (given)", "max_batch_size = the engine folder's, else 64 (default", "accepted without effect:"):
        assert part in block, part
    assert "kv_cache_host_memory_bytes" in lines[end], "all at once, with their keys"
