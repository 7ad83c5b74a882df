"""The scripts that operators' own scripts call, with the options and rules they know."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from server import ROOT, TRTLLM, eventually

sys.path.insert(0, str(ROOT / "ci"))
import fill_template  # noqa: E402


@pytest.mark.parametrize(
    "text,values",
    [
        ("a:1,b:2", {"a": "1", "b": "2"}),
        (r"gpu_device_ids:0\,1;2\,3,b:x", {"gpu_device_ids": "0,1;2,3", "b": "x"}),
        (r"url:http\\://host,b:", {"url": "http://host", "b": ""}),
        (r"path:c\\\\d", {"path": r"c\d"}),
    ],
)
def test_substitutions_are_split_with_escapes(text, values):
    assert fill_template.parse(text) == values


def test_a_colon_without_an_escape_is_an_error():
    with pytest.raises(ValueError, match="name:value"):
        fill_template.parse("url:http://host")


def run(*arguments):
    return subprocess.run([sys.executable, ROOT / "ci/fill_template.py", *arguments], capture_output=True, text=True)


def test_fill_prints_or_changes_the_file_and_keeps_unknown_placeholders(tmp_path):
    file = tmp_path / "config.pbtxt"
    file.write_text("a: ${first} b: ${second} q: ${max_queue_size} d: ${max_queue_delay_microseconds}")
    result = run(file, "first:1")
    assert result.returncode == 0
    assert result.stdout == "a: 1 b: ${second} q: 0 d: 0\n"
    assert "${first}" in file.read_text()
    assert run("-i", file, "first:1,max_queue_size:7").returncode == 0
    assert file.read_text() == "a: 1 b: ${second} q: 7 d: 0"


def test_a_name_that_the_file_does_not_have_is_an_error(tmp_path):
    file = tmp_path / "config.pbtxt"
    file.write_text("a: ${first}")
    result = run(file, "other:1")
    assert result.returncode == 1 and "'other' does not exist" in result.stderr
    assert "did you mean 'first'?" in run(file, "frist:1").stderr


def launch(tmp_path, *options, environment=None):
    """Runs the launcher with a stand-in for the server that records its arguments; returns them and its environment."""
    recorder = tmp_path / "recorder"
    recorder.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/arguments.part\nenv >> {tmp_path}/environment\nmv {tmp_path}/arguments.part {tmp_path}/arguments\n')
    recorder.chmod(0o755)
    command = [sys.executable, ROOT / "ci/launch_triton_server.py", "--force", f"--tritonserver={recorder}", *options]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(environment or {})})
    if result.returncode:
        return result, [], {}
    eventually((tmp_path / "arguments").exists, "the server was started")
    environment = dict(line.split("=", 1) for line in (tmp_path / "environment").read_text().splitlines() if "=" in line)
    return result, (tmp_path / "arguments").read_text().splitlines(), environment


def test_launcher_passes_what_operators_gave(tmp_path):
    _, arguments, environment = launch(tmp_path, "--model_repo=/m", "--http_port=1", "--grpc_port=2", "--metrics_port=3", "--log", "--log-file=l.txt")
    for expected in ("--model-repository=/m", "--http-port=1", "--grpc-port=2", "--metrics-port=3", "--log-verbose=3", "--log-file=l.txt", "--disable-auto-complete-config"):
        assert expected in arguments
    assert "TRTLLM_ORCHESTRATOR" not in environment


def test_launcher_sets_the_orchestrator_switches(tmp_path):
    _, _, environment = launch(tmp_path, "--multi-model", "--disable-spawn-processes")
    assert environment["TRTLLM_ORCHESTRATOR"] == "1" and environment["TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES"] == "0"


def test_launcher_refuses_more_ranks_than_it_serves(tmp_path):
    result, _, _ = launch(tmp_path, "--world_size=2")
    assert result.returncode == 1 and "--world_size is 2" in result.stderr


@pytest.mark.parametrize(
    "text,values",
    [
        ("a:", {"a": ""}),
        (r"a\\:b:c", {"a:b": "c"}),
        (r"a:b\\\:c", {"a": "b:c"}),
        ("tokenizer_dir:/m/x y,decoupled_mode:True", {"tokenizer_dir": "/m/x y", "decoupled_mode": "True"}),
        (r"medusa_choices:{0\, 0}\, {0\, 1}", {"medusa_choices": "{0, 0}, {0, 1}"}),
    ],
)
def test_7_1_escapes_of_names_and_values(text, values):
    assert fill_template.parse(text) == values


def test_7_1_every_template_takes_upstreams_names(tmp_path):
    upstream = {
        "tensorrt_llm": "engine_dir:/e,max_tokens_in_paged_kv_cache:2560,batch_scheduler_policy:max_utilization,kv_cache_free_gpu_mem_fraction:0.5,"
        "exclude_input_in_output:True,enable_kv_cache_reuse:True,normalize_log_probs:False,enable_chunked_context:True,gpu_device_ids:0\\,1;2\\,3,"
        "decoding_mode:top_k_top_p,max_beam_width:2,encoder_engine_dir:,lora_cache_optimal_adapter_size:8,request_stats_max_iterations:10",
        "preprocessing": "tokenizer_dir:/t,add_special_tokens:False",
        "postprocessing": "tokenizer_dir:/t,skip_special_tokens:True",
        "tensorrt_llm_bls": "accumulate_tokens:true,tensorrt_llm_model_name:tensorrt_llm,tensorrt_llm_draft_model_name:draft",
    }
    for model, substitutions in upstream.items():
        file = tmp_path / f"{model}.pbtxt"
        file.write_text((ROOT / "model_repo" / model / "config.pbtxt").read_text())
        result = run("-i", file, substitutions)
        assert result.returncode == 0, result.stderr
        for value in fill_template.parse(substitutions).values():
            assert f'"{value}"' in file.read_text()


def test_7_1_the_documented_substitutions_of_upstream_fill_every_template(tmp_path):
    model, size = ROOT / "ci/demo_model/hf", "triton_max_batch_size:64"
    documented = {
        "tensorrt_llm": f"triton_backend:tensorrtllm,{size},decoupled_mode:False,max_beam_width:1,engine_dir:{model},tokenizer_dir:{model},"
        "max_tokens_in_paged_kv_cache:2560,max_attention_window_size:2560,kv_cache_free_gpu_mem_fraction:0.5,exclude_input_in_output:True,"
        "enable_kv_cache_reuse:False,batching_strategy:inflight_fused_batching,max_queue_delay_microseconds:100,max_queue_size:7,"
        "encoder_input_features_data_type:TYPE_BF16,logits_datatype:TYPE_FP16",
        "preprocessing": f"tokenizer_dir:{model},{size},preprocessing_instance_count:2",
        "postprocessing": f"tokenizer_dir:{model},{size},postprocessing_instance_count:3",
        "tensorrt_llm_bls": f"{size},decoupled_mode:False,bls_instance_count:4,accumulate_tokens:False,logits_datatype:TYPE_FP16",
        "ensemble": f"{size},logits_datatype:TYPE_FP16",
    }
    texts = {}
    for name, substitutions in documented.items():
        folder = tmp_path / name
        (folder / "1").mkdir(parents=True)
        (folder / "config.pbtxt").write_text((ROOT / "model_repo" / name / "config.pbtxt").read_text())
        result = run("-i", folder / "config.pbtxt", substitutions)
        assert result.returncode == 0, f"{name}: {result.stderr}"
        texts[name] = (folder / "config.pbtxt").read_text()
        assert "max_batch_size: 64" in texts[name]
    llm = texts["tensorrt_llm"]
    for setting in ('backend: "tensorrtllm"', "preferred_batch_size: [ 64 ]", "decoupled: False", "max_queue_size: 7", "max_queue_delay_microseconds: 100", '"inflight_fused_batching"'):
        assert setting in llm, setting
    assert llm.count("TYPE_FP16") >= 3 and "TYPE_BF16" in llm
    for name, count in (("preprocessing", 2), ("postprocessing", 3), ("tensorrt_llm_bls", 4)):
        assert f"count: {count}" in texts[name]
    check = subprocess.run([TRTLLM, "check", tmp_path], capture_output=True, text=True)
    assert check.returncode == 0, check.stdout + check.stderr


def test_7_2_launcher_has_every_option_of_upstream(tmp_path):
    options = "--oversubscribe --no-mpi --tensorrt_llm_model_name=a,b --multimodal_gpu0_cuda_mem_pool_bytes=7 --exit_timeout=9 --world_size=1".split()
    result, arguments, _ = launch(tmp_path, *options)
    assert result.returncode == 0, result.stderr
    assert "--cuda-memory-pool-byte-size=0:7" in arguments and "--exit-timeout-secs=9" in arguments
    assert not any(argument.startswith("--load-model") for argument in arguments), "rank 0 loads everything"


def test_7_2_launcher_keeps_pools_away_from_the_workers_of_several_models(tmp_path):
    _, arguments, environment = launch(tmp_path, "--multi-model", environment={"NVIDIA_TRITON_SERVER_VERSION": "24.10"})
    assert environment["TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES"] == "1"
    assert "--pinned-memory-pool-byte-size=0" in arguments and "--enable-peer-access=false" in arguments
    (tmp_path / "arguments").unlink()
    _, arguments, _ = launch(tmp_path, "--multi-model", environment={"NVIDIA_TRITON_SERVER_VERSION": "24.05"})
    assert "--pinned-memory-pool-byte-size=0" not in arguments


def test_7_2_launcher_leaves_auto_completion_on_for_engine_arguments_in_a_file(tmp_path):
    (tmp_path / "repository" / "llm" / "1").mkdir(parents=True)
    (tmp_path / "repository" / "llm" / "1" / "model.yaml").write_text("model: x")
    _, arguments, _ = launch(tmp_path, f"--model_repo={tmp_path}/repository")
    assert "--disable-auto-complete-config" not in arguments


def test_7_2_launcher_lists_the_servers_that_run_already(tmp_path):
    stand_in = tmp_path / "tritonserver"
    shutil.copy(shutil.which("sleep"), stand_in)
    running = subprocess.Popen([stand_in, "60"])
    try:
        command = [sys.executable, ROOT / "ci/launch_triton_server.py", f"--tritonserver={tmp_path}/none"]
        eventually(lambda: Path(f"/proc/{running.pid}/comm").read_text().strip() == "tritonserver", "it runs")
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 1 and str(running.pid) in result.stderr and "--force" in result.stderr
    finally:
        running.kill()
        running.wait()


def test_9_1_the_environment_names_the_file_of_the_llm_api(tmp_path):
    model = tmp_path / "repository" / "llm"
    (model / "1").mkdir(parents=True)
    (model / "config.pbtxt").write_text('backend: "trtllm"')
    (model / "1" / "other.yaml").write_text("tensor_parallel_size: 2")
    check = [TRTLLM, "check", tmp_path / "repository"]
    named = subprocess.run(check, capture_output=True, text=True, env={**os.environ, "LLM_CONFIG_PATH": "other.yaml"})
    assert named.returncode != 0 and "other.yaml: tensor_parallel_size is 2" in named.stdout + named.stderr, named
    plain = subprocess.run(check, capture_output=True, text=True)
    assert "tensor_parallel_size" not in plain.stdout + plain.stderr
