#!/usr/bin/env python3
"""Starts tritonserver on a model repository, with the options of the launcher that came with TensorRT-LLM's backend.

One process serves the model: there is nothing for mpirun to start, so that `--world_size 1` needs no MPI. Options that concern
mpirun or ranks are accepted, and have nothing to do.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

SERVER_PROCESS = "tritonserver"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world_size", type=int, default=1, help="number of ranks; 1 is supported")
    parser.add_argument("--tritonserver", default="/opt/tritonserver/bin/tritonserver")
    parser.add_argument("--grpc_port", default="8001")
    parser.add_argument("--http_port", default="8000")
    parser.add_argument("--metrics_port", default="8002")
    parser.add_argument("--force", "-f", action="store_true", help="start although a tritonserver runs already")
    parser.add_argument("--log", action="store_true", help="verbose level 3 into the log file")
    parser.add_argument("--log-file", default="triton_log.txt")
    parser.add_argument("--model_repo", default=str(Path(__file__).resolve().parent.parent / "model_repo"))
    parser.add_argument("--tensorrt_llm_model_name", default="tensorrt_llm", help="used by ranks other than 0 only")
    parser.add_argument("--multi-model", action="store_true", help="set TRTLLM_ORCHESTRATOR=1")
    parser.add_argument("--disable-spawn-processes", action="store_true", help="set TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES=0")
    parser.add_argument("--multimodal_gpu0_cuda_mem_pool_bytes", type=int, default=0, help="CUDA pool of GPU 0")
    parser.add_argument("--oversubscribe", action="store_true", help="accepted: it concerns mpirun, which is not used")
    parser.add_argument("--no-mpi", action="store_true", help="accepted: no MPI is used with world size 1")
    parser.add_argument("--trtllm_llmapi_launch", action="store_true", help="accepted: no launcher of ranks is needed; leaves auto-completion on")
    parser.add_argument("--exit_timeout", type=int, help="passed on as --exit-timeout-secs")
    return parser.parse_args(arguments)


def running_servers() -> list[int]:
    """Process ids of this machine's tritonservers."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and (folder / "comm").read_text().strip() == SERVER_PROCESS:
                found.append(int(folder.name))
        except OSError:
            continue
    return sorted(found)


def server_command(options: argparse.Namespace) -> list[str]:
    command = [
        options.tritonserver,
        f"--model-repository={options.model_repo}",
        f"--grpc-port={options.grpc_port}",
        f"--http-port={options.http_port}",
        f"--metrics-port={options.metrics_port}",
        "--backend-config=python,shm-region-prefix-name=prefix0_",
    ]
    if not needs_auto_complete(options):
        command.append("--disable-auto-complete-config")
    if options.log:
        command += ["--log-verbose=3", f"--log-file={options.log_file}"]
    if spawns(options) and server_version() > (24, 6):
        # As the old launcher did where a server of several models starts its workers: no memory is pooled beside theirs.
        command += ["--pinned-memory-pool-byte-size=0", "--enable-peer-access=false"]
        command += [f"--cuda-memory-pool-byte-size={gpu}:0" for gpu in range(gpu_count())]
    if options.multimodal_gpu0_cuda_mem_pool_bytes:
        command.append(f"--cuda-memory-pool-byte-size=0:{options.multimodal_gpu0_cuda_mem_pool_bytes}")
    if options.exit_timeout is not None:
        command.append(f"--exit-timeout-secs={options.exit_timeout}")
    return command


def spawns(options: argparse.Namespace) -> bool:
    return options.multi_model and not options.disable_spawn_processes


def server_version() -> tuple[int, int]:
    """Year and month of the server's container; (0, 0) outside of one."""
    parts = os.environ.get("NVIDIA_TRITON_SERVER_VERSION", "").split(".")[:2]
    return (int(parts[0]), int(parts[1])) if len(parts) == 2 and all(part.isdigit() for part in parts) else (0, 0)


def gpu_count() -> int:
    """GPUs that the driver shows."""
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))


def needs_auto_complete(options: argparse.Namespace) -> bool:
    """Models with their engine arguments in a file have no inputs in their configuration; the backend completes it."""
    files = [os.environ.get("LLM_CONFIG_PATH", "model.yaml"), "model.json"]
    repository = Path(options.model_repo)
    return options.trtllm_llmapi_launch or any(any(repository.glob(f"*/[0-9]*/{name}")) for name in files)


def server_environment(options: argparse.Namespace) -> dict[str, str]:
    environment = dict(os.environ)
    if options.multi_model:
        environment["TRTLLM_ORCHESTRATOR"] = "1"
        environment["TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES"] = "0" if options.disable_spawn_processes else "1"
    return environment


def main() -> int:
    options = parse_arguments()
    if options.world_size != 1:
        print(f"error: --world_size is {options.world_size}; this version serves a model from one process, so it must be 1", file=sys.stderr)
        return 1
    pids = running_servers()
    if pids and not options.force:
        print(f"error: tritonserver runs already with process ids {pids}; use --force to start another", file=sys.stderr)
        return 1
    try:
        subprocess.Popen(server_command(options), env=server_environment(options))
    except OSError as error:
        print(f"error: --tritonserver: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
