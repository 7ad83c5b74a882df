"""Memory, options and faults of models on a GPU, under the real server."""

import json
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
from server import DEMO, ROOT, TRTLLM, Server, copy_template, eventually, write_model

PROMPT = "Once upon a time"
MIB = 1 << 20


def demo_config(**parameters) -> str:
    text = 'backend: "tensorrtllm"\nmodel_transaction_policy { decoupled: true }\n'
    values = {"gpt_model_path": DEMO, "tokenizer_dir": DEMO, "device": "cuda", **parameters}
    for key, value in values.items():
        text += f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}\n'
    return text


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server with one model on the CPU, which goes on whatever happens to the GPU."""
    folder = tmp_path_factory.mktemp("server")
    repository = folder / "repository"
    repository.mkdir()
    copy_template(repository, "tensorrt_llm", name="host", engine_dir=str(DEMO), tokenizer_dir=str(DEMO), device="cpu")
    running = Server(folder, repository, "--model-control-mode=explicit", "--load-model=*")
    yield running
    assert running.stop() == 0, running.log[-4000:]
    assert "panicked" not in running.log


def load(server, name, config):
    """Loads a model and returns the reply and what was logged meanwhile."""
    start = len(server.log)
    write_model(server.repository, name, config)
    reply = server.post(f"/v2/repository/models/{name}/load", {})
    return reply, server.log[start:]


def unload(server, name):
    server.post(f"/v2/repository/models/{name}/unload", {})
    eventually(lambda: not server.ready(name) and f"successfully unloaded '{name}'" in server.log, "unloaded", 60)
    shutil.rmtree(server.repository / name)


def text(server, model):
    return server.text(model, text_input=PROMPT, max_tokens=48, exclude_input_in_output=True)


def test_everything_is_returned_at_unload(server, gpu):
    free = []
    for cycle in range(4):
        name = f"cycle{cycle}"
        reply, _ = load(server, name, demo_config(kv_cache_free_gpu_mem_fraction=0.3))
        assert reply.status == 200, reply.body
        assert text(server, name)
        unload(server, name)
        free.append(gpu.free_bytes())
    assert free[0] - free[-1] < 4 * MIB, [bytes // MIB for bytes in free]


def test_the_plan_holds_weights_graphs_and_cache_within_the_fraction(server, gpu):
    before = gpu.free_bytes()
    reply, log = load(server, "plan", demo_config(max_batch_size=64, max_tokens_in_paged_kv_cache=65536))
    assert reply.status == 200, reply.body
    taken = (before - gpu.free_bytes()) / MIB
    sizes = {what: float(re.search(rf"{what} +([\d.]+) MiB", log)[1]) for what in ("weights", "workspace", "graphs", "KV cache")}
    assert "65536 tokens" in log
    assert sum(sizes.values()) * 0.95 < taken < sum(sizes.values()) + 700, (sizes, taken)
    unload(server, "plan")


def test_graphs_on_and_off_give_the_same_text(server):
    texts = {}
    for name, parameters, says in (
        ("graphs_all", {}, r"\(\d\d+ recorded steps\)"),
        ("graphs_few", {"cuda_graph_cache_size": 3}, r"\(3 recorded steps\)"),
        ("graphs_off", {"cuda_graph_mode": "false"}, None),
    ):
        reply, log = load(server, name, demo_config(**parameters))
        assert reply.status == 200, reply.body
        assert re.search(says, log) if says else "recorded steps" not in log, log
        with ThreadPoolExecutor(9) as pool:
            texts[name] = list(pool.map(lambda _: text(server, name), range(9)))
        unload(server, name)
    assert len({t for many in texts.values() for t in many}) == 1, texts


def test_the_gpu_is_taken_by_uuid_and_from_the_instance_group(server, gpu):
    reply, log = load(server, "uuid", demo_config(gpu_device_ids=gpu.uuid()))
    assert reply.status == 200 and "GPU 0: " in log, reply.body
    unload(server, "uuid")
    reply, log = load(server, "kind", demo_config() + "instance_group [{ kind: KIND_GPU gpus: [0] }]\n")
    assert reply.status == 200 and "GPU 0: " in log, reply.body
    unload(server, "kind")
    reply, _ = load(server, "slice", demo_config(gpu_device_ids="MIG-00000000-1111"))
    assert reply.status != 200 and "MIG-00000000-1111 was asked for, the driver shows " in reply.error
    shutil.rmtree(server.repository / "slice")


def test_too_little_memory_says_what_was_asked_and_what_was_there(server, gpu):
    before = gpu.free_bytes()
    command = [str(TRTLLM), "bench", "repository", str(server.repository), "--dummy", "llama-3.1-8b", "--model", "large", "--device", "cuda"]
    subprocess.run([*command, "--max-batch-size", "4096"], check=True)
    with (server.repository / "large" / "config.pbtxt").open("a") as config:
        config.write('parameters { key: "max_tokens_in_paged_kv_cache" value: { string_value: "2000000000" } }\n')
    reply = server.post("/v2/repository/models/large/load", {})
    assert reply.status != 200
    assert re.search(r"no room for the KV cache: \d+ bytes were asked for, \d+ of \d+ are free", reply.error), reply.error
    shutil.rmtree(server.repository / "large")
    eventually(lambda: before - gpu.free_bytes() < 600 * MIB, "the memory is free again", 30)
    assert text(server, "host")


def test_a_failing_request_leaves_the_rest_alone(server):
    reply, _ = load(server, "mixed", demo_config())
    assert reply.status == 200, reply.body
    alone = text(server, "mixed")
    with ThreadPoolExecutor(16) as pool:
        good = [pool.submit(text, server, "mixed") for _ in range(8)]
        bad = [pool.submit(server.generate, "mixed", input_ids=[1, 99999999], input_lengths=2, request_output_len=4) for _ in range(8)]
        assert all(future.result().status == 400 for future in bad)
        assert all(future.result() == alone for future in good)
    unload(server, "mixed")


def test_z_a_lost_gpu_is_said_to_everybody_and_the_server_lives(server):
    """Last: the process cannot use the GPU afterwards."""
    reply, _ = load(server, "doomed", demo_config(fault_injection_step=60))
    assert reply.status == 200, reply.body
    with ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda _: server.generate("doomed", text_input=PROMPT, max_tokens=400, end_id=-1), range(4)))
    for reply in replies:
        assert reply.status != 200 and "the GPU cannot be used again in this process" in reply.error, reply.body
    again = server.generate("doomed", text_input=PROMPT, max_tokens=4)
    assert again.status != 200 and "the engine has failed" in again.error, again.body
    assert server.get("/v2/health/live").status == 200
    assert text(server, "host"), "a model on the CPU goes on"
    unload(server, "doomed")
    reply, _ = load(server, "after", demo_config())
    assert reply.status != 200 and "GPU" in reply.error, reply.body
    shutil.rmtree(server.repository / "after")
    assert text(server, "host")


def test_greedy_text_equals_the_reference_made_with_transformers(tmp_path):
    cases = json.loads((ROOT / "tests/fixtures/demo_greedy.json").read_text())
    cases = cases["cases"] if isinstance(cases, dict) else cases
    repository = tmp_path / "repository"
    write_model(repository, "demo", demo_config())
    server = Server(tmp_path, repository)
    texts = [
        server.text("demo", text_input=case["prompt"], max_tokens=len(case["ids"]), exclude_input_in_output=True)
        for case in cases
    ]
    assert server.stop() == 0
    assert texts == [case["text"] for case in cases]
