"""The request's way through the real server (contract 4), and a server that is stopped or reloaded meanwhile."""

import signal
import threading

import numpy
import pytest
import tritonclient.grpc as grpc
import tritonclient.http as http
from clients import Stream, tensor
from server import DEMO, DEVICE, Server, copy_template, eventually, sse_events

PROMPT = "Once upon a time"
UNARY = "tensorrt_llm_unary"
VALUES = {"engine_dir": str(DEMO), "tokenizer_dir": str(DEMO), "device": DEVICE}


def ids(module, rows, output_len=3, **more):
    inputs = [
        tensor(module, "input_ids", rows, numpy.int32),
        tensor(module, "input_lengths", [[len(row)] for row in rows], numpy.int32),
        tensor(module, "request_output_len", [[output_len]] * len(rows), numpy.int32),
    ]
    return inputs + [tensor(module, name, [[value]] * len(rows), bool) for name, value in more.items()]


def unary(server, module, model, inputs):
    port = server.http if module is http else server.grpc
    with module.InferenceServerClient(f"127.0.0.1:{port}") as client:
        return client.infer(model, inputs)


@pytest.mark.parametrize("module", [http, grpc], ids=["http", "grpc"])
def test_4_1_unary_calls_are_for_models_that_are_not_decoupled(server, module):
    assert unary(server, module, UNARY, ids(module, [[1, 40, 50]])).as_numpy("sequence_length").tolist() == [[6]]
    with pytest.raises(Exception, match="doesn't support models with decoupled transaction policy"):
        unary(server, module, "tensorrt_llm", ids(module, [[1, 40, 50]]))
    with pytest.raises(Exception, match="Streaming is only supported"):
        unary(server, module, UNARY, ids(module, [[1, 40, 50]], streaming=True))
    with pytest.raises(Exception, match="Batch size > 1 requires"):
        unary(server, module, UNARY, ids(module, [[1, 40, 50], [1, 40, 51]]))


def test_4_1_generate_gives_one_answer_or_says_how_to_get_several(server):
    body = {"text_input": PROMPT, "max_tokens": 3}
    assert server.generate("tensorrt_llm", **body).status == 200
    assert "use generate stream" in server.generate("tensorrt_llm", stream=True, **body).error
    (event,) = server.stream(UNARY, **body)
    assert event["text_output"] == server.text(UNARY, **body)


def finals(results):
    return [result.get_response().parameters["triton_final_response"].bool_param for result in results]


def test_4_2_the_last_answer_of_the_last_item_is_the_final_one(server):
    rows = [[1, 40, 50], [1, 60, 70]]
    for streaming, answers in ((False, 2), (True, 8)):
        stream = Stream(server)
        stream.send("tensorrt_llm", ids(grpc, rows, 4, streaming=streaming), enable_empty_final_response=True)
        results = stream.until_final()
        assert finals(results) == [False] * (answers - 1) + [True]
        assert all(result.as_numpy("output_ids") is not None for result in results), "no empty answer at the end"
        for item, row in enumerate(rows):
            of_item = [result for result in results if result.as_numpy("batch_index").tolist() == [[item]]]
            tokens = [token for result in of_item for token in result.as_numpy("output_ids")[0][0].tolist()]
            alone = unary(server, grpc, UNARY, ids(grpc, [row], 4)).as_numpy("output_ids")[0][0].tolist()
            assert tokens == (alone[len(row) :] if streaming else alone)


def test_4_2_an_end_token_ends_a_stream_with_an_answer_without_tokens(server):
    alone = unary(server, grpc, UNARY, ids(grpc, [[1, 40, 50]], 8)).as_numpy("output_ids")[0][0].tolist()[3:]
    end = next(index for index in range(1, 8) if alone[index] not in alone[:index])
    stream = Stream(server)
    inputs = [*ids(grpc, [[1, 40, 50]], 8, streaming=True), tensor(grpc, "end_id", [[alone[end]]], numpy.int32)]
    stream.send("tensorrt_llm", inputs)
    shapes = [result.as_numpy("output_ids").shape for result in stream.until_final()]
    assert shapes == [(1, 1, 1)] * end + [(1, 1, 0)]


def test_4_8_what_the_server_refuses_by_itself(server):
    given = {"input_ids": [1, 40], "input_lengths": 2, "request_output_len": 1}
    assert server.generate("nobody", **given).status == 404
    without = {name: value for name, value in given.items() if name != "request_output_len"}
    assert "request_output_len" in server.generate("tensorrt_llm", **without).error
    reply = server.post(f"/v2/models/{UNARY}/infer", {"inputs": [{"name": "nothing", "shape": [1, 1], "datatype": "INT32", "data": [1]}]})
    assert reply.status == 400 and "nothing" in reply.error
    with http.InferenceServerClient(f"127.0.0.1:{server.http}") as client, pytest.raises(Exception, match="no_output"):
        client.infer(UNARY, ids(http, [[1, 40]]), outputs=[http.InferRequestedOutput("no_output")])


@pytest.fixture
def lone(tmp_path):
    """A server of its own with nothing in it. It is not asked to stop: after a failed load in the place of a model that serves,
    that of the tests waits for its exit timeout, whatever the backend."""
    repository = tmp_path / "repository"
    repository.mkdir()
    server = Server(tmp_path, repository, "--model-control-mode=explicit")
    yield server
    server.process.kill()
    server.process.wait()


def test_t39_an_edit_that_does_not_load_leaves_the_old_model_serving(lone):
    server = lone
    folder = copy_template(server.repository, "tensorrt_llm", name="steady", **VALUES)
    load = lambda: server.post("/v2/repository/models/steady/load", {})
    assert load().status == 200
    before = server.text("steady", text_input=PROMPT, max_tokens=6)
    opened = [server.open_stream("steady", text_input=PROMPT, max_tokens=100, stream=True, end_id=-1) for _ in range(4)]
    config = folder / "config.pbtxt"
    good = config.read_text()
    for bad in (good.replace("inflight_fused_batching", "INVALID"), good.replace(str(DEMO), "/nowhere"), good + "}"):
        config.write_text(bad)
        assert load().status != 200
        assert server.text("steady", text_input=PROMPT, max_tokens=6) == before
    config.write_text(good.replace('key: "max_beam_width"\n  value: { string_value: "${max_beam_width}"', 'key: "max_beam_width"\n  value: { string_value: "2"'))
    (folder / "1" / "changed").touch()
    assert load().status == 200
    for connection, response in opened:
        assert len("".join(event["text_output"] for event in sse_events(response))) > 100, "streams of the old one end by themselves"
        connection.close()
    assert server.text("steady", text_input=PROMPT, max_tokens=6) == before
    assert server.post("/v2/repository/models/steady/unload", {}).status == 200
    eventually(lambda: not server.ready("steady"), "unloaded")


def test_t36_a_stop_lets_running_streams_end(tmp_path):
    repository = tmp_path / "repository"
    repository.mkdir()
    copy_template(repository, "tensorrt_llm", **VALUES)
    server = Server(tmp_path, repository)
    body = {"text_input": PROMPT, "max_tokens": 150, "stream": True, "end_id": -1}
    expected = "".join(event["text_output"] for event in server.stream("tensorrt_llm", **body))
    texts, begun = [], threading.Barrier(5)

    def read():
        connection, response = server.open_stream("tensorrt_llm", **body)
        events = sse_events(response)
        text = next(events)["text_output"]
        begun.wait(30)
        texts.append(text + "".join(event["text_output"] for event in events))
        connection.close()

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    begun.wait(30)
    server.process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(60)
    assert texts == [expected] * 4
    assert server.process.wait(60) == 0, server.log[-3000:]
