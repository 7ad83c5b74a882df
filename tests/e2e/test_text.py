"""Text in, text out, over every port and every model of the shipped repository."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from server import DEMO, ROOT

PROMPT = "Once upon a time"


def test_generate_continues_the_prompt(server):
    for model in ("tensorrt_llm", "ensemble"):
        reply = server.generate(model, text_input=PROMPT, max_tokens=24)
        assert reply.status == 200, reply.body
        body = reply.json
        assert body["model_name"] == model and body["model_version"] == "1"
        text = body["text_output"]
        assert text.startswith(PROMPT), "the prompt is part of the output unless it is excluded"
        assert len(text) > len(PROMPT) + 20


def test_7_4_a_reply_has_the_id_and_what_was_asked_for_and_nothing_else(server):
    for model in ("tensorrt_llm", "tensorrt_llm_bls"):
        reply = server.generate(model, id="mine", text_input="a", max_tokens=2).json
        assert set(reply) == {"id", "model_name", "model_version", "text_output"} and reply["id"] == "mine", reply
    reply = server.generate("tensorrt_llm", input_ids=[5, 6], input_lengths=2, request_output_len=3).json
    assert len(reply["output_ids"]) == 5 and reply["sequence_length"] == 5
    assert not any(key.startswith("sequence_") for key in reply if key != "sequence_length"), reply


def test_ensemble_and_llm_give_the_same_text(server):
    body = {"text_input": PROMPT, "max_tokens": 32, "exclude_input_in_output": True}
    assert server.text("ensemble", **body) == server.text("tensorrt_llm", **body)


def test_greedy_text_equals_the_reference_made_with_transformers(server):
    cases = json.loads((ROOT / "tests/fixtures/demo_greedy.json").read_text())
    cases = cases["cases"] if isinstance(cases, dict) else cases
    assert len(cases) >= 4
    for case in cases:
        text = server.text(
            "tensorrt_llm",
            text_input=case["prompt"],
            max_tokens=len(case["ids"]),
            exclude_input_in_output=True,
        )
        assert text == case["text"], case["prompt"]


@pytest.mark.parametrize("model", ["tensorrt_llm", "ensemble"])
def test_streamed_pieces_make_the_whole_text(server, model):
    body = {"text_input": PROMPT, "max_tokens": 40}
    whole = server.text(model, exclude_input_in_output=True, **body)
    events = server.stream(model, stream=True, **body)
    assert len(events) >= 30, "one event for each token"
    assert "".join(event["text_output"] for event in events) == whole


def test_pieces_of_many_streams_through_the_ensemble_keep_their_order(server):
    body = {"text_input": PROMPT, "max_tokens": 60}
    whole = server.text("ensemble", exclude_input_in_output=True, **body)
    with ThreadPoolExecutor(16) as pool:
        streams = list(pool.map(lambda _: server.stream("ensemble", stream=True, **body), range(64)))
    for events in streams:
        assert "".join(event["text_output"] for event in events) == whole


def test_ids_over_http_and_grpc_are_equal(server):
    import numpy as np
    import tritonclient.grpc as grpc
    import tritonclient.http as http

    outputs = []
    for module, port in ((http, server.http), (grpc, server.grpc)):
        client = module.InferenceServerClient(f"127.0.0.1:{port}")
        ids = np.array([[1, 40, 50, 60]], np.int32)
        inputs = []
        for name, value in (("input_ids", ids), ("input_lengths", [[4]]), ("request_output_len", [[8]])):
            value = np.asarray(value, np.int32)
            tensor = module.InferInput(name, list(value.shape), "INT32")
            tensor.set_data_from_numpy(value)
            inputs.append(tensor)
        result = client.infer("tensorrt_llm_unary", inputs, request_id="42")
        output = result.as_numpy("output_ids")
        assert output.shape == (1, 1, 12) and output[0, 0, :4].tolist() == [1, 40, 50, 60]
        assert result.as_numpy("sequence_length").tolist() == [[12]]
        outputs.append(output.tolist())
        client.close()
    assert outputs[0] == outputs[1]


def test_seeded_sampling_repeats_and_seeds_differ(server):
    body = {"text_input": PROMPT, "max_tokens": 30, "temperature": 1.0, "top_k": 50, "exclude_input_in_output": True}
    first = server.text("tensorrt_llm", seed=1, **body)
    assert first == server.text("tensorrt_llm", seed=1, **body)
    assert first != server.text("tensorrt_llm", seed=2, **body)


def test_stop_words_end_the_text(server):
    whole = server.text("tensorrt_llm", text_input=PROMPT, max_tokens=40, exclude_input_in_output=True)
    word = next(w for w in whole.split()[3:] if w.isalpha() and len(w) > 3)
    text = server.text("tensorrt_llm", text_input=PROMPT, max_tokens=40, exclude_input_in_output=True, stop_words=[" " + word])
    assert whole.startswith(text) and len(text) < len(whole)
    assert len(text) <= whole.index(word) + len(word)


def test_sixty_four_mixed_requests_get_what_each_gets_alone(server):
    def body(i):
        prompts = [PROMPT, "The little robot", "Question: What color is the sky?", "One morning, a girl named Anna"]
        request = {"text_input": prompts[i % 4], "max_tokens": 4 + i % 23, "exclude_input_in_output": True}
        if i % 3 == 1:
            request |= {"temperature": 0.9, "top_k": 20 + i % 7, "seed": i}
        if i % 5 == 2:
            request |= {"repetition_penalty": 1.2, "frequency_penalty": 0.2}
        return request

    alone = [server.text("tensorrt_llm", **body(i)) for i in range(64)]
    with ThreadPoolExecutor(64) as pool:
        together = list(pool.map(lambda i: server.text("tensorrt_llm", **body(i)), range(64)))
    assert together == alone


def test_the_demo_folder_is_what_the_readme_says():
    size = sum(path.stat().st_size for path in DEMO.rglob("*") if path.is_file())
    assert size <= 30 * 1024 * 1024
