"""What nobody should send, against the live server: each is answered, with a reason where it is refused; nothing fails on our side,
and what comes next is served as ever."""

import http.client
import json
import math
import shutil
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy
import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http_client
from clients import Stream, core_inputs, tensor
from server import DEMO, DEVICE, copy_template, eventually, sse_events

PROMPT = "Once upon a time"
IDS = [1, 40, 50]
UNARY = "tensorrt_llm_unary"
LARGEST = (1 << 31) - 1


@pytest.fixture(autouse=True)
def canary(server):
    """A prompt whose answer no neighbour changes, and blocks that all come back."""
    before = server.text("tensorrt_llm", text_input=PROMPT, max_tokens=8)
    yield
    assert server.text("tensorrt_llm", text_input=PROMPT, max_tokens=8) == before
    used = lambda: server.metric("nv_trt_llm_kv_cache_block_metrics", model=UNARY, kv_cache_block_type="used")
    eventually(lambda: used() == 0, "all blocks are free")


def infer(server, *tensors, outputs=None):
    """Over binary tensors, which can be anything; the status and the text of the error."""
    client = http_client.InferenceServerClient(f"127.0.0.1:{server.http}")
    body, length = client.generate_request_body(list(tensors), outputs=outputs)
    headers = {"Inference-Header-Content-Length": str(length)} if length else {}
    connection = http.client.HTTPConnection("127.0.0.1", server.http, timeout=120)
    connection.request("POST", f"/v2/models/{UNARY}/infer", body, headers)
    response = connection.getresponse()
    text = response.read().decode(errors="replace")
    connection.close()
    return response.status, text


def required(**more):
    given = {"input_ids": ([IDS], numpy.int32), "input_lengths": ([[len(IDS)]], numpy.int32), "request_output_len": ([[3]], numpy.int32)}
    return [tensor(http_client, name, value, dtype) for name, (value, dtype) in (given | more).items()]


FLOATS = [-1.0, -0.0, 0.0, 1e-40, 1e-30, 1.0, 1.0001, 100.0, 3.4e38, math.inf, -math.inf, math.nan]
INTS = [-LARGEST - 1, -1, 0, 1, 2, 4095, 4096, LARGEST]
FIELDS = {name: FLOATS for name in ("temperature", "runtime_top_p", "len_penalty", "repetition_penalty", "presence_penalty", "frequency_penalty")}
FIELDS |= {name: INTS for name in ("runtime_top_k", "end_id", "pad_id", "min_tokens", "beam_width", "num_return_sequences")}
# Anything larger is an answer up to the length of the model.
FIELDS["request_output_len"] = [-LARGEST - 1, -1, 0, 1, 2]


@pytest.mark.parametrize("field", FIELDS)
def test_t01_extremes_of_every_field_twice(server, field):
    dtype = numpy.float32 if FIELDS[field] is FLOATS else numpy.int32
    for value in FIELDS[field]:
        more = {field: ([[value]], dtype)}
        first, second = (infer(server, *required(**more)) for _ in range(2))
        assert first[0] in (200, 400), (value, first)
        assert first[0] == second[0], (value, first, second)
        if first[0] == 400:
            assert field in first[1], (value, first[1])
        if math.isnan(value) or value in (math.inf, -math.inf):
            assert first[0] == 400, value


def test_t02_shapes_and_types(server):
    wrong = {
        "rank": required(input_ids=([[IDS]], numpy.int32)),
        "no tokens": required(input_ids=(numpy.empty((1, 0)), numpy.int32)),
        "type": required(temperature=([[1]], numpy.int32)),
        "two values": required(temperature=([[1.0, 1.0]], numpy.float32)),
        "batch": required(input_ids=([IDS, IDS], numpy.int32)),
        "no length": required()[:2],
        "unknown": required(temprature=([[1.0]], numpy.float32)),
        "many unknown": [*required(), *(tensor(http_client, f"x{number}", [[1.0]], numpy.float32) for number in range(2000))],
    }
    for name, tensors in wrong.items():
        status, text = infer(server, *tensors)
        assert status == 400 and json.loads(text)["error"], (name, status, text[:300])
    many = [http_client.InferRequestedOutput(f"output{number}") for number in range(5000)]
    assert infer(server, *required(), outputs=many)[0] == 400
    same = [http_client.InferRequestedOutput("output_ids"), http_client.InferRequestedOutput("sequence_length")] * 500
    assert infer(server, *required(), outputs=same)[0] in (200, 400)


def text_request(data: bytes):
    """`text_input` with these bytes, whatever they are."""
    text = http_client.InferInput("text_input", [1, 1], "BYTES")
    text._raw_data = data
    text._parameters = {"binary_data_size": len(data)}
    return text, tensor(http_client, "max_tokens", [[2]], numpy.int32)


def test_t02_t05_bytes_that_are_no_text(server):
    for data in (b"\x05\0\0\0ab", b"\xff\xff\xff\xff", b"ab", struct.pack("<I", 3) + b"a\xff\xfe", struct.pack("<I", 3) + b"\xed\xa0\x80"):
        status, text = infer(server, *text_request(data))
        assert status == 400 and json.loads(text)["error"], (data, text)


def test_t03_lengths_of_prompts(server):
    def ask(count):
        return infer(server, *required(input_ids=([[7] * count], numpy.int32)))

    assert ask(1)[0] == 200
    for count in (2048, 50_000):
        status, text = ask(count)
        assert status in (400, 500) and f"Prompt length ({count}) exceeds maximum input length" in text
    reply = server.generate(UNARY, text_input="word " * 20_000, max_tokens=1)
    assert reply.status in (400, 500) and "exceeds maximum input length" in reply.error


TEXTS = {
    "nul": "a\0b\0",
    "bom": "\ufeffOnce",
    "right to left": "\u202eabc\u2066def\u2069",
    "combining": "e" + "\u0301" * 100,
    "no spaces": "a" * 400,
    "controls": "<s></s><unk><|im_start|>system\n<|im_end|>{{ 7 * 7 }}",
    "emoji": "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_t05_odd_texts_stream_what_they_answer_whole(server, text):
    body = {"text_input": text, "max_tokens": 12, "exclude_input_in_output": True}
    whole = server.generate("tensorrt_llm", **body)
    assert whole.status == 200, whole.body
    pieces = [event["text_output"] for event in server.stream("tensorrt_llm", stream=True, **body)]
    assert "".join(pieces) == whole.json["text_output"]


def test_t06_stop_lists(server):
    plain = server.text("tensorrt_llm", text_input=PROMPT, max_tokens=12)
    harmless = [[""], [f"nothing {number}" for number in range(3000)], ["z" * 200_000], [".*", "(a+)+b", "\\"], ["zz", "zzz", "zzzz"]]
    for words in harmless:
        reply = server.generate("tensorrt_llm", text_input=PROMPT, max_tokens=12, stop_words=words)
        assert reply.status == 400 or (reply.status == 200 and reply.json["text_output"] == plain), (words[0][:9], reply.body[:300])
    first = plain[len(PROMPT) :][:1]
    cut = server.text("tensorrt_llm", text_input=PROMPT, max_tokens=12, stop_words=[first])
    assert len(PROMPT) <= len(cut) < len(plain)


def test_t07_everything_is_forbidden(server):
    for bias in (-math.inf, -3e38, math.inf, math.nan, 3e38):
        status, text = infer(server, *required(embedding_bias=([[bias] * 4096], numpy.float32)))
        assert status in (200, 400), (bias, text)
    for bad in ([list(range(4096)), list(range(1, 4097))], [[5], [1]]):
        status, text = infer(server, *required(bad_words_list=([bad], numpy.int32), end_id=([[5]], numpy.int32)))
        assert status in (200, 400), text


def test_t11_counts_that_do_not_fit(server):
    for field in ("beam_width", "num_return_sequences"):
        for value in (0, -1, 1_000_000_000):
            status, text = infer(server, *required(**{field: ([[value]], numpy.int32)}))
            assert status == 400 and field in text, (field, value, text)


def test_t12_games_with_ids(server):
    stream = Stream(server)
    same = core_inputs([IDS], 4, True)
    for _ in range(20):
        stream.send("tensorrt_llm", same, request_id="same")
    stop = [
        tensor(grpc, "input_ids", [[1]], numpy.int32),
        tensor(grpc, "input_lengths", [[0]], numpy.int32),
        tensor(grpc, "request_output_len", [[0]], numpy.int32),
        tensor(grpc, "stop", [[True]], bool),
    ]
    for request_id in ("same", "same", "nobody"):
        stream.send("tensorrt_llm", stop, request_id=request_id)
    stream.send("tensorrt_llm", same, request_id="x" * 1_000_000)
    finals, without_ids = 0, 0
    while finals < 24:
        result = stream.get()
        finals += result.get_response().parameters["triton_final_response"].bool_param
        without_ids += result.as_numpy("output_ids") is None
    stream.client.stop_stream()
    assert without_ids == 3, "each stop request has an answer of its own"


def test_t18_readers_that_do_not_read(server):
    body = {"text_input": PROMPT, "max_tokens": 60, "stream": True, "end_id": -1}
    opened = [server.open_stream("tensorrt_llm", **body) for _ in range(8)]
    expected = "".join(event["text_output"] for event in server.stream("tensorrt_llm", **body))
    for connection, response in opened:
        assert "".join(event["text_output"] for event in sse_events(response)) == expected
        connection.close()


def test_t23_a_herd_is_answered(server):
    with ThreadPoolExecutor(150) as pool:
        replies = list(pool.map(lambda _: server.generate("tensorrt_llm", text_input=PROMPT, max_tokens=1), range(300)))
    assert {reply.status for reply in replies} == {200}
    assert len({reply.json["text_output"] for reply in replies}) == 1


@pytest.mark.parametrize("policy", ["guaranteed_no_evict", "max_utilization"])
def test_t25_t26_a_pool_that_holds_little_more_than_one_answer(server, policy):
    values = {"engine_dir": str(DEMO), "tokenizer_dir": str(DEMO), "device": DEVICE}
    pool = {"max_seq_len": "256", "max_tokens_in_paged_kv_cache": "320", "batch_scheduler_policy": policy}
    folder = copy_template(server.repository, "tensorrt_llm", name="narrow", **values, **pool)
    try:
        reply = server.post("/v2/repository/models/narrow/load", {})
        assert reply.status == 200, reply.body
        prompts = [f"{PROMPT} {word}" for word in ("there", "a", "in", "the", "two", "little")]
        bodies = [{"text_input": prompt, "max_tokens": 40 + 15 * number, "end_id": -1} for number, prompt in enumerate(prompts)]
        with ThreadPoolExecutor(len(bodies)) as clients:
            texts = [list(clients.map(lambda body: server.text(model, **body), bodies)) for model in ("tensorrt_llm", "narrow")]
        assert texts[0] == texts[1]
        # An answer is cut at the length of the model; a prompt that leaves no room for one is refused.
        assert server.generate("narrow", text_input=PROMPT, max_tokens=LARGEST).status == 200
        assert server.generate("narrow", input_ids=[7] * 256, input_lengths=256, request_output_len=1).status in (400, 500)
        blocks = lambda kind: server.metric("nv_trt_llm_kv_cache_block_metrics", model="narrow", kv_cache_block_type=kind)
        eventually(lambda: blocks("used") == 0 and blocks("max") == 5, "five blocks, all free")
    finally:
        server.post("/v2/repository/models/narrow/unload", {})
        eventually(lambda: not server.ready("narrow"), "unloaded")
        shutil.rmtree(folder)
