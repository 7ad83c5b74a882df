"""Guided decoding over HTTP: what is generated for a schema is valid by a validator of its own."""

import json
from concurrent.futures import ThreadPoolExecutor

import jsonschema

MAX_TOKENS = 160

SCHEMAS = [
    {"type": "object"},
    {"type": "integer"},
    {"type": "number", "minimum": 0.5, "maximum": 99},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 5},
    {"type": "array", "prefixItems": [{"const": 1}, {"type": "string", "maxLength": 5}], "items": False, "minItems": 2},
    {"enum": ["north", "south", None, 4]},
    {"anyOf": [{"type": "null"}, {"type": "string", "maxLength": 10}]},
    {"type": "string", "format": "date-time"},
    {"type": "string", "format": "uuid"},
    {"type": "string", "pattern": "^[A-Z]{2}[0-9]{4}$"},
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"enum": ["a", "b", "c"]}, "maxItems": 3},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"value": {"type": "integer", "minimum": 0, "maximum": 9}, "next": {"$ref": "#/$defs/node"}},
                "required": ["value"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/node",
    },
    {"allOf": [{"type": "object", "properties": {"a": {"type": "integer", "maximum": 9, "minimum": 0}}, "required": ["a"]}],
     "additionalProperties": False, "properties": {"a": True}},
]


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
    jobs = [(schema, seed) for schema in SCHEMAS for seed in range(2)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda job: ask(server, "tensorrt_llm", *job), jobs))
    completed = 0
    for (schema, _), (text, tokens) in zip(jobs, answers):
        if tokens < MAX_TOKENS:
            jsonschema.validate(json.loads(text), schema)
            completed += 1
    assert completed >= len(jobs) // 2, f"{completed} of {len(jobs)} answers are complete"


def test_a_guide_that_does_not_compile_is_the_clients_error(server):
    reply = server.generate(
        "tensorrt_llm",
        text_input="Once",
        max_tokens=5,
        guided_decoding_guide_type="regex",
        guided_decoding_guide="(",
    )
    assert reply.status == 400 and "guided_decoding_guide" in reply.error, reply.body
