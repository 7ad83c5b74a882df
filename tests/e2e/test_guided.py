"""Guided decoding over HTTP: what is generated for a schema is valid by a validator of its own."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jsonschema

MAX_TOKENS = 160
# The validator knows of times without an offset only.
FORMATS = jsonschema.FormatChecker(set(jsonschema.FormatChecker.checkers) - {"time"})

SCHEMAS = json.loads((Path(__file__).parent / "schemas.json").read_text())


def ask(server, model, schema, seed):
    reply = server.generate(
        model,
        text_input="Once upon a time",
        max_tokens=MAX_TOKENS,
        exclude_input_in_output=True,
        top_p=0.9,
        seed=seed,
        guided_decoding_guide_type="json_schema",
        guided_decoding_guide=json.dumps(schema),
        return_num_output_tokens=True,
    )
    assert reply.status == 200, (schema, reply.body)
    return reply.json["text_output"], reply.json["num_output_tokens"]


def test_every_completed_answer_is_valid(server):
    """A corpus of enums, bounds, patterns, formats, lists, objects, combinations and references, recursive ones too."""
    jobs = [(entry, seed) for entry in SCHEMAS for seed in (1, 2)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda job: ask(server, "tensorrt_llm", job[0]["schema"], job[1]), jobs))
    completed = set()
    for (entry, _), (text, tokens) in zip(jobs, answers):
        if tokens < MAX_TOKENS:
            try:
                jsonschema.validate(json.loads(text), entry["schema"], format_checker=FORMATS)
            except (ValueError, jsonschema.ValidationError) as error:
                raise AssertionError(f"{entry['name']}: {text!r}: {error}") from None
            completed.add(entry["name"])
    assert len(completed) >= 100, f"answers to {len(completed)} of {len(SCHEMAS)} schemas are complete"


def test_a_guide_that_does_not_compile_is_the_clients_error(server):
    reply = server.generate(
        "tensorrt_llm",
        text_input="Once",
        max_tokens=5,
        guided_decoding_guide_type="regex",
        guided_decoding_guide="(",
    )
    assert reply.status == 400 and "guided_decoding_guide" in reply.error, reply.body
