"""Draft and target (contract 6.4, 7.3): `tensorrt_llm_bls` and upstream's client program, with a draft that mostly guesses wrong
(made-up weights) and with one that guesses right (the LLM once more). The answer is the LLM's own."""

import re
import time

import numpy
import pytest
import tritonclient.grpc as grpc
from server import DEMO, DEVICE, Server, copy_template
from clients import tensor

PROMPT = "Once upon a time"
DRAFTS = ["guesses_wrong", "guesses_right"]


def made_up(text):
    return text.replace("decoupled: true", "decoupled: false") + 'parameters { key: "load_format" value: { string_value: "dummy" } }\n'


def unary(text):
    return text.replace("decoupled: true", "decoupled: false")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speculation")
    repository = folder / "repository"
    repository.mkdir()
    demo = str(DEMO)
    for role in ("preprocessing", "postprocessing"):
        copy_template(repository, role, tokenizer_dir=demo)
    values = {"engine_dir": demo, "tokenizer_dir": demo, "device": DEVICE}
    copy_template(repository, "tensorrt_llm", edit=unary, **values)
    copy_template(repository, "tensorrt_llm", name="guesses_right", edit=unary, **values)
    copy_template(repository, "tensorrt_llm", name="guesses_wrong", edit=made_up, **values)
    for draft in DRAFTS:
        copy_template(repository, "tensorrt_llm_bls", name=f"bls_{draft}", edit=unary, tensorrt_llm_draft_model_name=draft)
    running = Server(folder, repository)
    yield running
    assert running.stop() == 0, running.log[-4000:]
    assert "panicked" not in running.log


def steps(server):
    """Steps of the LLM so far; the gauge lags a little."""
    count, before = None, -1
    while count != before:
        before = count
        time.sleep(0.3)
        count = server.metric("nv_trt_llm_general_metrics", model="tensorrt_llm", general_type="iteration_counter")
    return count


@pytest.mark.parametrize("draft", DRAFTS)
def test_6_4_the_answer_is_the_same_and_right_drafts_save_steps(server, draft):
    body = {"text_input": PROMPT, "max_tokens": 24}
    expected = server.text(f"bls_{draft}", **body)
    before, calls = steps(server), server.stats("tensorrt_llm")["inference_count"]
    assert server.text(f"bls_{draft}", num_draft_tokens=5, **body) == expected
    # Five tokens of the draft and one of the LLM's own in each round.
    assert server.stats("tensorrt_llm")["inference_count"] - calls == 4
    taken = steps(server) - before
    assert taken <= 8 if draft == "guesses_right" else taken >= 20, f"{taken} steps"
    answer = server.text(f"bls_{draft}", num_draft_tokens=5, exclude_input_in_output=True, **body)
    assert expected.endswith(answer) and len(answer) < len(expected)


@pytest.mark.parametrize("draft", DRAFTS)
def test_6_4_drafts_with_their_logits_are_accepted_by_probability(server, draft):
    def ask(**more):
        before = steps(server)
        text = server.text(f"bls_{draft}", text_input=PROMPT, max_tokens=24, num_draft_tokens=5, **more)
        return text, steps(server) - before

    greedy = server.text(f"bls_{draft}", text_input=PROMPT, max_tokens=24)
    assert ask(use_draft_logits=True)[0] == greedy, "drafts change no greedy answer"
    # So hot that both models find everything about as likely: most of what is drafted may be said.
    hot = {"temperature": 100.0, "top_p": 1.0, "seed": 3}
    text, taken = ask(use_draft_logits=True, **hot)
    assert taken <= 12, f"{taken} steps"
    assert ask(use_draft_logits=True, **hot)[0] == text, "a seed gives the same answer again"
    if draft == "guesses_wrong":
        assert ask(**hot)[1] >= 16, "without logits only what would have been drawn anyhow is taken"


def test_6_4_what_does_not_go_with_drafts_is_said(server):
    for more, names in [({"stream": True}, "stream"), ({"beam_width": 2}, "beam width"), ({"return_context_logits": True}, "context_logits")]:
        reply = server.generate("bls_guesses_right", text_input=PROMPT, max_tokens=4, num_draft_tokens=2, **more)
        assert reply.status >= 400 and names in reply.error, reply.body


class Program:
    """The loop of e2e_grpc_speculative_decoding_client.py: the client itself asks draft and target in turns."""

    def __init__(self, server, draft):
        self.client = grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}")
        self.draft = draft

    def ask(self, model, ids, output_len, **more):
        inputs = [
            tensor(grpc, "input_ids", [ids], numpy.int32),
            tensor(grpc, "input_lengths", [[len(ids)]], numpy.int32),
            tensor(grpc, "request_output_len", [[output_len]], numpy.int32),
            tensor(grpc, "end_id", [[-1]], numpy.int32),
            tensor(grpc, "pad_id", [[2]], numpy.int32),
            tensor(grpc, "beam_width", [[1]], numpy.int32),
        ]
        inputs += [tensor(grpc, name, value, numpy.int32) for name, value in more.items()]
        outputs = [grpc.InferRequestedOutput(name) for name in ("output_ids", "sequence_length")]
        result = self.client.infer(model, inputs, request_id="1", outputs=outputs)
        return list(result.as_numpy("output_ids")[0][0][: result.as_numpy("sequence_length")[0][0]])

    def run(self, ids, output_len, num_drafts):
        start, rounds = len(ids), 0
        while len(ids) - start < output_len:
            rounds += 1
            left = output_len - (len(ids) - start)
            drafts = self.ask(self.draft, ids, min(num_drafts, left))[len(ids) :]
            ids = self.ask("tensorrt_llm", ids, min(num_drafts + 1, left), draft_input_ids=[drafts])
        return ids, rounds


@pytest.mark.parametrize("draft", DRAFTS)
def test_e2e_grpc_speculative_decoding_client(server, draft):
    program = Program(server, draft)
    text = [tensor(grpc, "QUERY", [[PROMPT.encode()]], object), tensor(grpc, "REQUEST_OUTPUT_LEN", [[20]], numpy.int32)]
    ids = list(program.client.infer("preprocessing", text).as_numpy("INPUT_ID")[0])
    plain = program.ask("tensorrt_llm", ids, 20)
    written, rounds = program.run(ids, 20, 4)
    assert written == plain and rounds == 4
    post = [
        tensor(grpc, "TOKENS_BATCH", [[written]], numpy.int32),
        tensor(grpc, "SEQUENCE_LENGTH", [[len(written)]], numpy.int32),
    ]
    output = program.client.infer("postprocessing", post).as_numpy("OUTPUT")
    assert re.match(PROMPT, output[0].decode())
