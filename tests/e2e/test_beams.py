"""Beam search on the real server: rows of ids, texts through every model, the histogram of lengths."""

import pytest

PROMPT = "Once upon a time"


def test_ids_are_rows_and_both_beams_are_told(server):
    ids = [5, 9, 12, 40]
    reply = server.generate(
        "tensorrt_llm",
        input_ids=ids,
        input_lengths=len(ids),
        request_output_len=8,
        beam_width=2,
        return_log_probs=True,
        exclude_input_in_output=True,
    )
    assert reply.status == 200, reply.body
    body = reply.json
    assert body["sequence_length"] == [8, 8] and len(body["output_ids"]) == 16
    first, second = body["cum_log_probs"]
    assert 0 > first >= second
    assert body["output_ids"][:8] != body["output_ids"][8:]
    assert abs(sum(body["output_log_probs"][:8]) - first) < 1e-3


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls", "bls_unary"])
def test_every_model_tells_the_same_beams(server, model):
    body = {"text_input": PROMPT, "max_tokens": 10, "beam_width": 2}
    expected = server.generate("tensorrt_llm", **body).json["text_output"]
    assert len(expected) == 2 and all(text.startswith(PROMPT) for text in expected)
    reply = server.generate(model, **body)
    assert reply.status == 200, reply.body
    assert reply.json["text_output"] == expected


def test_a_stream_repeats_all_beams(server):
    events = server.stream("tensorrt_llm", text_input=PROMPT, max_tokens=6, beam_width=2, stream=True)
    assert len(events) >= 5
    assert all(len(event["text_output"]) == 2 for event in events)
    whole = server.generate(
        "tensorrt_llm", text_input=PROMPT, max_tokens=6, beam_width=2, exclude_input_in_output=True
    )
    assert events[-1]["text_output"] == whole.json["text_output"]


def test_the_histogram_counts_both_beams(server):
    def total():
        return server.metric(
            "nv_llm_output_token_len_sum", model="tensorrt_llm", response_metric_type="total_output_tokens"
        )

    before = total()
    server.generate("tensorrt_llm", text_input=PROMPT, max_tokens=7, beam_width=2)
    assert total() - before == 14
