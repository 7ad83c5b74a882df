"""`tensorrt_llm_bls` (contract 6.4) on the real server: calls the other models through the server's in-process API."""

import threading

import pytest
from server import eventually

PROMPT = "Once upon a time"
MODELS = ["tensorrt_llm_bls", "bls_whole_text", "bls_unary"]


def whole(events):
    return "".join(event["text_output"] for event in events)


@pytest.mark.parametrize("model", MODELS)
def test_6_4_one_answer_is_the_text_of_the_ensemble(server, model):
    expected = server.text("ensemble", text_input=PROMPT, max_tokens=12)
    assert expected.startswith(PROMPT)
    assert server.text(model, text_input=PROMPT, max_tokens=12) == expected
    answer = server.text(model, text_input=PROMPT, max_tokens=12, exclude_input_in_output=True)
    assert answer and expected.endswith(answer.strip())


def test_6_4_streams_pieces_or_the_whole_text_so_far(server):
    body = {"text_input": PROMPT, "max_tokens": 12, "stream": True}
    pieces = server.stream("tensorrt_llm_bls", **body)
    assert len(pieces) == 12
    assert whole(pieces) == whole(server.stream("ensemble", **body))
    growing = [event["text_output"] for event in server.stream("bls_whole_text", **body)]
    assert len(growing) == 12
    for before, after in zip(growing, growing[1:]):
        assert after.startswith(before.rstrip("\ufffd"))
    direct = server.text("tensorrt_llm", text_input=PROMPT, max_tokens=12)
    assert direct.endswith(growing[-1])


@pytest.mark.parametrize("model", MODELS)
def test_6_4_a_stop_word_is_found_in_the_text_wherever_token_borders_are(server, model):
    text = server.text(model, text_input=PROMPT, max_tokens=40, exclude_input_in_output=True)
    middle = len(text) // 2
    stop = text[middle : middle + 5]
    stopped = server.text(model, text_input=PROMPT, max_tokens=40, exclude_input_in_output=True, stop_words=[stop])
    assert stopped == text[: text.index(stop) + len(stop)]


def test_6_4_a_stop_word_in_a_stream_frees_the_llm(server):
    text = server.text("tensorrt_llm_bls", text_input=PROMPT, max_tokens=40, exclude_input_in_output=True)
    stop = text[10:15]
    body = {"text_input": PROMPT, "max_tokens": 200, "stream": True, "stop_words": [stop]}
    assert whole(server.stream("tensorrt_llm_bls", **body)).endswith(stop)
    eventually(
        lambda: server.metric("nv_trt_llm_request_metrics", model="tensorrt_llm", request_type="active") == 0,
        "the request has left the LLM",
    )


def test_6_4_other_outputs_come_along(server):
    reply = server.generate("tensorrt_llm_bls", text_input=PROMPT, max_tokens=4, return_log_probs=True, return_perf_metrics=True)
    assert reply.status == 200, reply.body
    assert len(reply.json["output_log_probs"]) == 4
    assert reply.json["cum_log_probs"] < 0 and reply.json["kv_cache_alloc_total_blocks"] >= 0
    assert "output_ids" not in reply.json
    assert "batch_index" not in reply.json


def test_6_4_batches_are_answered_item_by_item(server):
    grpc = pytest.importorskip("tritonclient.grpc")
    import queue

    import numpy

    prompts = [PROMPT, "The little dog"]
    answers = queue.Queue()
    client = grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}")
    text = grpc.InferInput("text_input", [2, 1], "BYTES")
    text.set_data_from_numpy(numpy.array([[p] for p in prompts], dtype=object))
    length = grpc.InferInput("max_tokens", [2, 1], "INT32")
    length.set_data_from_numpy(numpy.array([[8], [8]], dtype=numpy.int32))
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    client.async_stream_infer("tensorrt_llm_bls", [text, length])
    got = {}
    while len(got) < 2:
        result, error = answers.get(timeout=30)
        assert error is None, error
        if result.as_numpy("text_output") is not None:
            got[int(result.as_numpy("batch_index")[0][0])] = result.as_numpy("text_output")[0].decode()
    client.stop_stream()
    assert [got[0], got[1]] == [server.text("tensorrt_llm_bls", text_input=p, max_tokens=8) for p in prompts]


def test_6_4_requests_run_concurrently_in_one_instance(server):
    connections = [server.open_stream("tensorrt_llm_bls", text_input=PROMPT, max_tokens=150, stream=True) for _ in range(6)]
    eventually(
        lambda: server.metric("nv_trt_llm_request_metrics", model="tensorrt_llm", request_type="active") >= 2,
        "several requests are in the LLM at once",
    )
    for connection, response in connections:
        response.read()
        connection.close()
    texts = [None] * 8

    def ask(index):
        texts[index] = server.text("tensorrt_llm_bls", text_input=PROMPT, max_tokens=10 + index % 2)

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(set(texts)) == 2


def test_6_4_errors_name_their_cause(server):
    reply = server.generate("tensorrt_llm_bls", text_input=PROMPT, max_tokens=0)
    assert reply.status != 200 and "max_tokens must be a single value > 0" in reply.error
    reply = server.generate("tensorrt_llm_bls", text_input=PROMPT, max_tokens=4, num_draft_tokens=3)
    assert "tensorrt_llm_draft_model_name" in reply.error
    reply = server.generate("tensorrt_llm_bls", text_input=PROMPT, max_tokens=4, temperature=-1.0)
    assert "temperature is -1" in reply.error and "tensorrt_llm" in reply.error
    reply = server.generate("bls_unary", text_input=PROMPT, max_tokens=4, stream=True)
    assert "Streaming is only supported" in reply.error
    assert server.text("tensorrt_llm_bls", text_input=PROMPT, max_tokens=2)


def test_6_4_a_client_that_goes_away_frees_the_llm(server):
    connection, response = server.open_stream("tensorrt_llm_bls", text_input=PROMPT, max_tokens=200, stream=True)
    response.readline()
    connection.sock.close()
    response.close()
    eventually(
        lambda: server.metric("nv_trt_llm_request_metrics", model="tensorrt_llm", request_type="active") == 0,
        "the request has left the LLM",
    )
