"""What is published of the prefix cache, heard by the libraries that routers use."""

import json
import time

import msgpack
import pytest
import zmq
from server import DEMO, Server, copy_template, free_ports

PROMPT = "The quick brown fox jumps over the lazy dog. " * 8


@pytest.fixture(scope="module")
def publishing(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kv_events")
    repository = folder / "repository"
    repository.mkdir()
    [port] = free_ports(1)
    lines = folder / "events.jsonl"
    copy_template(
        repository,
        "tensorrt_llm",
        engine_dir=str(DEMO),
        tokenizer_dir=str(DEMO),
        device="cpu",
        kv_event_sink=f"file:{lines},zmq:tcp://127.0.0.1:{port}",
        kv_event_topic="kv@pod@demo",
        edit=lambda text: text.replace("decoupled: true", "decoupled: false"),
    )
    running = Server(folder, repository)
    yield running, lines, port
    assert running.stop() == 0, running.log[-4000:]


def test_a_subscriber_and_a_file_hear_of_stored_blocks(publishing):
    server, lines, port = publishing
    context = zmq.Context()
    subscriber = context.socket(zmq.SUB)
    subscriber.setsockopt(zmq.SUBSCRIBE, b"kv@")
    subscriber.setsockopt(zmq.RCVTIMEO, 20000)
    subscriber.connect(f"tcp://127.0.0.1:{port}")
    time.sleep(1)
    server.text("tensorrt_llm", text_input=PROMPT, max_tokens=4)
    topic, sequence, payload = subscriber.recv_multipart()
    assert topic == b"kv@pod@demo"
    assert len(sequence) == 8
    seconds, events, rank = msgpack.unpackb(payload)
    assert abs(seconds - time.time()) < 60 and rank == 0
    name, hashes, parent, tokens, block_size, lora, medium = events[0]
    assert (name, parent, lora, medium) == ("BlockStored", None, None, "GPU")
    assert len(tokens) == len(hashes) * block_size
    written = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [event["event_id"] for event in written] == list(range(len(written)))
    assert written[0]["data"]["type"] == "created"
    stored = [event["data"] for event in written if event["data"]["type"] == "stored"]
    assert stored[0]["blocks"][0]["block_hash"] == hashes[0]
    subscriber.close(0)
    context.term()
