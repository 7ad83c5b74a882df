"""Draft and target (contract 6.4, 7.3): `tensorrt_llm_bls` and upstream's client program, with a draft that mostly guesses wrong
(made-up weights) and with one that guesses right (the LLM once more). The answer is the LLM's own."""

import re
import time

import numpy
import pytest
import tritonclient.grpc as grpc
from server import DEMO, DEVICE, Server, copy_template
from clients import PERF, Stream, tensor

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
    copy_template(repository, "ensemble")
    copy_template(repository, "tensorrt_llm", edit=unary, **values)
    copy_template(repository, "tensorrt_llm", name="guesses_right", edit=unary, **values)
    copy_template(repository, "tensorrt_llm", name="guesses_wrong", edit=made_up, **values)
    for draft in DRAFTS:
        copy_template(repository, "tensorrt_llm_bls", name=f"bls_{draft}", edit=unary, tensorrt_llm_draft_model_name=draft)
    copy_template(repository, "tensorrt_llm", name="llm_decoupled", **values)
    models = {"tensorrt_llm_model_name": "llm_decoupled", "tensorrt_llm_draft_model_name": "llm_decoupled"}
    copy_template(repository, "tensorrt_llm_bls", name="bls_decoupled", **models)
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


# speculative_decoding_test.py: for each line of a data set, what the ensemble says (control) is compared with what the BLS or the
# client's own loop says. Lengths are numbers of words times 1.3.
DATA = [
    {"input": "Once upon a time there was", "instruction": "a little dog", "output": "It liked to run and to play in the park every day"},
    {"input": "The big cat", "instruction": "sat on", "output": "the tree and looked at all the birds"},
    {"input": "word " * 60, "instruction": "too long", "output": "left out"},
]
MAX_INPUT_LEN = 40
PENALTIES = {"repetition_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.2}
WORDS = {"stop_words": ["."], "bad_words": [" Marble"]}


def data_set():
    for line in DATA:
        prompt = f"{line['input']} {line['instruction']}"
        if int(len(prompt.split(" ")) * 1.3) <= MAX_INPUT_LEN:
            yield prompt, int(len(line["output"].split(" ")) * 1.3)


def whole_pipeline(server, model, prompt, output_len, options, **drafts):
    """end_to_end_grpc_client.py as the program calls it: over a stream, without streaming, all that was not set left out."""
    inputs = [
        tensor(grpc, "text_input", [[prompt.encode()]], object),
        tensor(grpc, "max_tokens", [[output_len]], numpy.int32),
        tensor(grpc, "stream", [[False]], bool),
        tensor(grpc, "beam_width", [[1]], numpy.int32),
        tensor(grpc, "temperature", [[options.get("temperature", 1.0)]], numpy.float32),
        tensor(grpc, "exclude_input_in_output", [[options.get("exclude_input_in_output", False)]], bool),
        tensor(grpc, "embedding_bias_words", numpy.empty((1, 0)), object),
        tensor(grpc, "embedding_bias_weights", numpy.empty((1, 0)), numpy.float32),
    ]
    inputs += [tensor(grpc, name, [[options[name]]], numpy.float32) for name in PENALTIES if name in options]
    inputs += [tensor(grpc, name, [[word.encode() for word in options[name]]], object) for name in WORDS if name in options]
    inputs += [tensor(grpc, name, [[options[name]]], numpy.int32) for name in ("end_id", "pad_id") if name in options]
    wanted = ["text_output"]
    if drafts:
        inputs.append(tensor(grpc, "num_draft_tokens", [[drafts["num_draft_tokens"]]], numpy.int32))
        inputs.append(tensor(grpc, "use_draft_logits", [[options.get("use_draft_logits", False)]], bool))
        for name, outputs in (("return_generation_logits", ["generation_logits"]), ("return_perf_metrics", PERF)):
            if options.get(name):
                inputs.append(tensor(grpc, name, [[True]], bool))
                wanted += outputs
    stream = Stream(server)
    stream.send(model, inputs, outputs=[grpc.InferRequestedOutput(name) for name in wanted], request_id="1")
    results = [stream.get()]
    stream.client.stop_stream()
    assert stream.results.empty(), "one answer"
    return results[0], results[0].as_numpy("text_output")[0].decode()


BLS_OPTIONS = {
    "none": {},
    "penalties-temperature": {"temperature": 0.7, **PENALTIES},
    "words": WORDS,
    "ids": {"end_id": 2, "pad_id": 2},
    "draft-logits": {"use_draft_logits": True},
    "logits-and-times": {"return_generation_logits": True, "return_perf_metrics": True, "use_draft_logits": True},
    "without-input": {"exclude_input_in_output": True},
}


BLS_CASES = [(draft, name) for draft in DRAFTS for name in BLS_OPTIONS] + [("decoupled", "logits-and-times")]


@pytest.mark.parametrize("draft,name", BLS_CASES)
def test_speculative_decoding_test_over_bls(server, draft, name):
    options = BLS_OPTIONS[name]
    lines = list(data_set())
    assert len(lines) == 2
    for prompt, output_len in lines:
        _, control = whole_pipeline(server, "ensemble", prompt, output_len, options)
        result, text = whole_pipeline(server, f"bls_{draft}", prompt, output_len, options, num_draft_tokens=5)
        assert text == control and text
        if options == WORDS:
            assert text.endswith(".") and "Marble" not in text
        if options.get("return_perf_metrics"):
            values = {name: result.as_numpy(name)[0][0] for name in PERF}
            assert 0 < values["arrival_time_ns"] <= values["first_scheduled_time_ns"] <= values["first_token_time_ns"]
            assert values["first_token_time_ns"] <= values["last_token_time_ns"]
            assert 0 <= values["total_accepted_draft_tokens"] <= values["total_draft_tokens"] <= 5
            assert values["kv_cache_alloc_total_blocks"] >= values["kv_cache_alloc_new_blocks"]
        if options.get("return_generation_logits"):
            assert result.as_numpy("generation_logits").shape[3] == 4096


class Coordinator:
    """e2e_grpc_speculative_decoding_client.py with every option: all outputs are taken, word lists and ids are the preprocessor's."""

    def __init__(self, server, draft, options):
        self.client = grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}")
        self.draft, self.options = draft, options

    def prepare(self, prompt, output_len):
        inputs = [tensor(grpc, "QUERY", [[prompt.encode()]], object), tensor(grpc, "REQUEST_OUTPUT_LEN", [[output_len]], numpy.int32)]
        for name, given in (("BAD_WORDS_DICT", "bad_words"), ("STOP_WORDS_DICT", "stop_words")):
            if given in self.options:
                inputs.append(tensor(grpc, name, [[word.encode() for word in self.options[given]]], object))
        for name, given in (("END_ID", "end_id"), ("PAD_ID", "pad_id")):
            if given in self.options:
                inputs.append(tensor(grpc, name, [[self.options[given]]], numpy.int32))
        result = self.client.infer("preprocessing", inputs, request_id="1")
        self.given = {name: result.as_numpy(name) for name in ("BAD_WORDS_IDS", "STOP_WORDS_IDS", "OUT_END_ID", "OUT_PAD_ID")}
        return result.as_numpy("INPUT_ID")[0]

    def ask(self, model, ids, output_len, drafts=None, logits=False):
        inputs = [
            tensor(grpc, "input_ids", [ids], numpy.int32),
            tensor(grpc, "input_lengths", [[len(ids)]], numpy.int32),
            tensor(grpc, "request_output_len", [[output_len]], numpy.int32),
            tensor(grpc, "bad_words_list", self.given["BAD_WORDS_IDS"], numpy.int32),
            tensor(grpc, "stop_words_list", self.given["STOP_WORDS_IDS"], numpy.int32),
            tensor(grpc, "beam_width", [[1]], numpy.int32),
            tensor(grpc, "temperature", [[self.options.get("temperature", 1.0)]], numpy.float32),
            tensor(grpc, "end_id", [[self.given["OUT_END_ID"][0][0]]], numpy.int32),
            tensor(grpc, "pad_id", [[self.given["OUT_PAD_ID"][0][0]]], numpy.int32),
        ]
        inputs += [tensor(grpc, name, [[self.options[name]]], numpy.float32) for name in PENALTIES if name in self.options]
        if drafts is not None:
            inputs.append(tensor(grpc, "draft_input_ids", [drafts], numpy.int32))
        if logits:
            inputs.append(tensor(grpc, "return_generation_logits", [[True]], bool))
        result = self.client.infer(model, inputs, request_id="1")
        written, length = result.as_numpy("output_ids"), result.as_numpy("sequence_length")
        assert written.shape[:2] == (1, 1) and length.shape == (1, 1)
        if logits:
            # The program leaves out the first dimensions of what the draft drafted and of what the target accepted.
            made = result.as_numpy("generation_logits")
            assert made.shape[:2] == (1, 1) and 1 <= made.shape[2] <= output_len and made.shape[3] == 4096
        return written[0][0], length[0][0]

    def run(self, prompt, output_len, num_drafts):
        ids = self.prepare(prompt, output_len)
        end, drafted = len(ids) + output_len, None
        while True:
            count, drafts = min(num_drafts, end - len(ids) - 1), None
            if count > 0:
                drafted, length = self.ask(self.draft, ids, count, logits=self.options.get("return_draft_model_draft_logits", False))
                drafts = drafted[len(ids) : length]
            logits = self.options.get("return_target_model_accepted_token_logits", False)
            written, _ = self.ask("tensorrt_llm", ids, 1 if drafts is None else len(drafts) + 1, drafts, logits)
            same = numpy.array_equal(written, ids) or (drafted is not None and numpy.array_equal(drafted, written))
            ids = written
            # The program holds the end of what was written against the rows of the list: right for one word of one token.
            stopped = any(numpy.array_equal(ids[-len(row) :], row) for row in self.given["STOP_WORDS_IDS"][0])
            if len(ids) >= end or same or stopped:
                break
        post = [tensor(grpc, "TOKENS_BATCH", [[ids]], numpy.int32), tensor(grpc, "SEQUENCE_LENGTH", [[len(ids)]], numpy.int32)]
        return self.client.infer("postprocessing", post, request_id="1").as_numpy("OUTPUT")[0].decode()


CLIENT_OPTIONS = {
    "none": {},
    "penalties-temperature": {"temperature": 0.7, **PENALTIES},
    "words": WORDS,
    "ids": {"end_id": 2, "pad_id": 2},
    "draft-logits": {"return_draft_model_draft_logits": True},
    "target-logits": {"return_target_model_accepted_token_logits": True},
}


@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize("options", CLIENT_OPTIONS.values(), ids=CLIENT_OPTIONS)
def test_speculative_decoding_test_over_the_client(server, draft, options):
    for prompt, output_len in data_set():
        _, control = whole_pipeline(server, "ensemble", prompt, output_len, options)
        assert Coordinator(server, draft, options).run(prompt, output_len, 5) == control
