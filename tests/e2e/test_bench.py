"""The load client of the command line tool against a real server."""

import json
import subprocess

from server import TRTLLM


def serve(server, *options):
    command = [str(TRTLLM), "bench", "serve", "--url", f"127.0.0.1:{server.grpc}", "--vocab-size", "4000", "--json", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_bench_serve_counts_every_token(server):
    before = server.metric("nv_llm_output_token_len_sum", model="tensorrt_llm")
    done = serve(server, "--isl", "12", "--osl", "9", "--requests", "7", "--warmup", "1", "--request-rate", "50")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert server.metric("nv_llm_output_token_len_sum", model="tensorrt_llm") - before == 8 * 9
    assert report["num_requests"] == 7
    assert 0 < report["ttft_ms"]["min"] <= report["ttft_ms"]["p50"] < report["request_latency_ms"]["max"]
    assert report["output_throughput_tok_s"] / report["request_throughput_req_s"] - 9 < 1e-6


def test_bench_serve_passes_on_what_the_server_says(server):
    done = serve(server, "--model", "nobody")
    assert done.returncode != 0 and "nobody" in done.stderr
