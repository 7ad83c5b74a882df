#!/usr/bin/env bash
# Everything that only a machine with a GPU can show; one table last, and a failure where a row fails.
#   ci/gpu.sh [PART...]        parts: ops models decoding sanitizer e2e load bench serve (default: all)
#   ci/gpu.sh --pack DIR       a folder with all that it takes, to run as DIR/ci/gpu.sh on a machine that has only a driver,
#                              CUDA's run-time libraries, xz and, for e2e and serve, a tritonserver and Python with
#                              pytest, numpy and tritonclient[http,grpc]
# TRITONSERVER, PYTHON, COMPUTE_SANITIZER: where these are, if not on the path. LOGS: where the logs go. CHECKPOINTS: where
# 15 GiB are free.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

build() {
  . "$HERE/ci/common.sh"
  ensure_system; ensure_rust; ensure_kernel_compiler
  export KERNELS_STRICT=1
  (cd "$HERE" && cargo build --release --locked --lib --bins && cargo test --release --locked --no-run --test ops --test models --test decoding)
}

# pack DIR: stripped programs in bin/, the library under both of its names, and the files that tests read.
pack() {
  mkdir -p "$1/bin" "$1/backends/trtllm" "$1/backends/tensorrtllm"
  local release=$HERE/target/release name
  install -m 755 "$release/trtllm" "$1/bin/trtllm"
  for name in ops models decoding; do
    install -m 755 "$(find "$release/deps" -name "$name-????????????????" -type f -perm -u+x -printf '%T@ %p\n' | sort -n | tail -n1 | cut -d' ' -f2)" "$1/bin/$name"
  done
  install -m 755 "$release/libtriton_trtllm.so" "$1/backends/trtllm/"
  strip --strip-unneeded "$1"/bin/* "$1/backends/trtllm/libtriton_trtllm.so"
  ln -sfn ../trtllm/libtriton_trtllm.so "$1/backends/tensorrtllm/libtriton_tensorrtllm.so"
  if [ "$1" -ef "$HERE" ]; then return; fi
  (cd "$HERE" && tar -cf - --exclude=__pycache__ ci/gpu.sh ci/demo_model/hf ci/fill_template.py ci/make_checkpoint.py ci/stream.py model_repo \
    tests/e2e tests/gpu tests/fixtures README.md) | tar -xf - -C "$1"
  XZ_OPT=-9 tar -cJf "$1/programs.tar.xz" -C "$1" bin backends && rm -r "$1/bin" "$1/backends"
  local megabytes; megabytes=$(du -sm "$1" | cut -f1)
  echo "$1: $megabytes MB"
  [ "$megabytes" -le 60 ] || { echo "error: the folder has more than 60 MB" >&2; exit 1; }
}

if [ "${1:-}" = --pack ]; then
  [ $# = 2 ] || { echo "usage: ci/gpu.sh --pack DIR" >&2; exit 2; }
  (build); pack "$2"; exit
fi
PARTS=${*:-ops models decoding sanitizer e2e load bench serve}
wants() { [[ " $PARTS " = *" $1 "* ]]; }
STAGE=$HERE
if [ -e "$HERE/Cargo.toml" ]; then STAGE=$HERE/target/gpu; (build); pack "$STAGE"; fi

if [ -e "$STAGE/programs.tar.xz" ] && [ ! -d "$STAGE/bin" ]; then tar -xJf "$STAGE/programs.tar.xz" -C "$STAGE"; fi

BIN=$STAGE/bin LOGS=${LOGS:-$STAGE/logs} PYTHON=${PYTHON:-python3}
SANITIZER=${COMPUTE_SANITIZER:-$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)}
TRITONSERVER=${TRITONSERVER:-$(command -v tritonserver || echo /opt/tritonserver/bin/tritonserver)}
export TRTLLM_ROOT=$STAGE TRITONSERVER BACKENDS=$STAGE/backends TRTLLM=$BIN/trtllm
mkdir -p "$LOGS"
ROWS=() FAILED=0

row() { ROWS+=("$1|$2|${3:-}|${4:-}|${5:-}"); printf '%-46s %s %s\n' "$1" "$2" "${3:-}" >&2; [ "$2" != FAILED ] || FAILED=1; }

# run LOG WHAT COMMAND...: a row that says whether the command worked, and how long it took.
run() {
  local log=$LOGS/$1.log what=$2 start=$SECONDS; shift 2
  if "$@" >"$log" 2>&1; then row "$what" ok "$((SECONDS - start)) s"; return; fi
  row "$what" FAILED "see $log"; tail -n 25 "$log" >&2
}

# judge WHAT FILE FIELD [most|least] GOAL UNIT [LIMIT]: a row of a figure in a JSON report. FIELD and LIMIT: a.b.c; of a list of
# operations, the first is the operation's name.
judge() {
  local text
  text=$("$PYTHON" - "$2" "$3" "$4" "$5" "$6" "${7:-}" <<'PY'
import json, sys
path, field, sense, goal, unit, limit = sys.argv[1:]
def find(name):
    value = report
    for key in name.split("."):
        value = value[key] if isinstance(value, dict) else next(each for each in value if each["op"] == key)
    return value
try:
    report = json.load(open(path))
    value = find(field)
    good = value <= float(goal) if sense == "most" else value >= float(goal)
    bound = f"{find(limit):,.2f}" if limit else ""
    print(f"{'ok' if good else 'FAILED'}|{value:,.2f} {unit}|{bound}|{'≤' if sense == 'most' else '≥'} {goal}")
except Exception as error:
    print(f"FAILED|no figure: {error}||{goal}")
PY
)
  local fields; IFS='|' read -r -a fields <<<"$text"
  row "$1" "${fields[0]}" "${fields[1]:-}" "${fields[2]:-}" "${fields[3]:-}"
}

wants ops && run ops "every operation on the GPU" env OPS_DEVICE=cuda "$BIN/ops"
if wants models; then
  run models "every model, graphs on and off, against the reference" env MODELS_DEVICE=cuda "$BIN/models"
  run models-cpu "the same on the CPU" env MODELS_DEVICE=cpu "$BIN/models"
fi
wants decoding && run decoding "every knob alone and in batches, any values of them" env DECODING_DEVICE=cuda "$BIN/decoding" --test-threads 4
if wants sanitizer; then
  for tool in memcheck racecheck; do
    run "$tool" "compute-sanitizer $tool over the operations" env OPS_DEVICE=cuda timeout 240 "$SANITIZER" --tool "$tool" \
      --error-exitcode 9 "$BIN/ops" --test-threads 1 --skip large --skip every_shape --skip however_a_prompt_is_cut
  done
fi
# Left out on a GPU: the product of a row has other last bits in another batch, which a sampled text shows; and requests
# of the demo model end before the gauges are updated.
if wants e2e; then
  WITHOUT=(--ignore="$STAGE/tests/e2e/test_scripts.py")
  if [ ! -d "$(dirname "$TRITONSERVER")/../backends/python" ]; then
    WITHOUT+=(--ignore="$STAGE/tests/e2e/test_python_models.py")
    row "models in Python beside ours" "left out" "this tritonserver has no Python backend"
  fi
  run e2e "end to end under tritonserver, model on the GPU" env E2E_DEVICE=cuda \
    "$PYTHON" -m pytest -q -p no:cacheprovider "$STAGE/tests/e2e" "${WITHOUT[@]}" \
    -k "not sixty_four_mixed_requests and not run_concurrently_in_one_instance"
  run gpu "memory, options, faults under tritonserver" "$PYTHON" -m pytest -q -p no:cacheprovider "$STAGE/tests/gpu"
fi

bench() { local log=$LOGS/$1.json; shift; "$BIN/trtllm" --log-level warn bench "$@" --json >"$log" 2>"$log.err" || cat "$log.err" >&2; }

# Takes 15 GiB of disk under CHECKPOINTS for as long as it runs.
if wants load; then
  FOLDER=$(mktemp -d "${CHECKPOINTS:-${TMPDIR:-/tmp}}/checkpoint.XXXXXX")
  if "$PYTHON" "$STAGE/ci/make_checkpoint.py" "$FOLDER"; then
    bench load load --model "$FOLDER" --device cuda --runs 3
    judge "loading weights, page cache, to reading onto the GPU" "$LOGS/load.json" weights_to_reading_into_device most 1.3 ""
    bench load-cold load --model "$FOLDER" --device cuda --runs 1 --cold
    judge "loading weights, from the disk, to reading it" "$LOGS/load-cold.json" weights_to_reading most 1.3 ""
  else
    row "loading weights" FAILED "no room for 15 GiB in $FOLDER"
  fi
  rm -r "$FOLDER"
fi
MODEL="--dummy llama-3.1-8b --dtype bfloat16 --device cuda"
ONE=$LOGS/decode1.json B64=$LOGS/decode64.json B256=$LOGS/decode256.json P=performance
if wants bench; then
  bench decode1 latency $MODEL --isl 1024 --osl 128 --requests 3
  judge "decode, 1 sequence, context 1,024" "$ONE" $P.tpot_ms.avg most 4.3 ms $P.tpot_ms.limit
  bench decode64 throughput $MODEL --isl 1024 --osl 128 --requests 64 --max-batch-size 64 --max-num-tokens 8192
  judge "decode, 64" "$B64" $P.itl_ms.p50 most 7.5 ms $P.itl_ms.limit
  judge "GPU idle between two decode steps, 64" "$B64" $P.decode_steps.idle_us.p50 most 50 us
  bench decode256 throughput $MODEL --isl 1024 --osl 64 --requests 256 --max-batch-size 256 --max-num-tokens 8192
  judge "decode, 256" "$B256" $P.itl_ms.p50 most 17 ms $P.itl_ms.limit
  bench prefill latency $MODEL --isl 2048 --osl 2 --requests 6
  judge "prefill of 2,048: TTFT" "$LOGS/prefill.json" $P.ttft_ms.p50 most 58 ms $P.ttft_ms.limit
  offline() {
    bench "offline-$1-$2" throughput $MODEL --isl "$1" --osl "$2" --requests "$3" --max-batch-size 512 --max-num-tokens 8192
    judge "offline $1/$2, $3 requests" "$LOGS/offline-$1-$2.json" $P.output_throughput_tok_s.value least "$4" tokens/s \
      $P.output_throughput_tok_s.limit
  }
  offline 128 128 4096 15000
  offline 1000 1000 512 8800
  offline 2048 128 512 1900
  "$BIN/trtllm" bench ops --device cuda --json >"$LOGS/bench-ops.json" || true
  judge "decode attention, 64 x 4,096: share of the limit" "$LOGS/bench-ops.json" "attention 64 x 1 after 4095.share_of_limit" \
    least 0.75 ""
  judge "prefill attention, 8,192 causal" "$LOGS/bench-ops.json" "attention 1 x 8192 after 0.gflop_per_s" least 350000 GFLOP/s \
    "attention 1 x 8192 after 0.limit_gflop_per_s"
  for choice in drawn guided; do
    bench "$choice" throughput $MODEL --isl 512 --osl 64 --requests 64 --max-batch-size 64 --max-num-tokens 8192 --choice $choice
    judge "64 sequences, $choice (ITL)" "$LOGS/$choice.json" $P.itl_ms.p50 most 7.5 ms $P.itl_ms.limit
  done
fi

# A server with a model of made-up weights; its ports are 18000 to 18002.
serve() {
  local folder=$LOGS/served; rm -rf "$folder"
  "$BIN/trtllm" bench repository "$folder" --dummy llama-3.1-8b --device cuda --max-batch-size 512 --max-num-tokens 8192 \
    --max-seq-len 8192 >"$LOGS/serve.log"
  "$TRITONSERVER" --model-repository="$folder" --backend-directory="$BACKENDS" --http-port 18000 --grpc-port 18001 \
    --metrics-port 18002 >>"$LOGS/serve.log" 2>&1 &
  SERVER=$!
  trap 'kill "$SERVER" 2>/dev/null || true' EXIT
  for _ in $(seq 600); do
    if "$PYTHON" -c 'import urllib.request as u; u.urlopen("http://localhost:18000/v2/health/ready")' 2>/dev/null; then return; fi
    kill -0 "$SERVER" 2>/dev/null || return 1
    sleep 0.2
  done
  return 1
}
if wants serve; then
  if serve; then
    client() { local log=$LOGS/$1.json; shift; "$BIN/trtllm" --log-level warn bench serve --url localhost:18001 --vocab-size 128000 "$@" --json >"$log"; }
    client warm --isl 467 --osl 32 --requests 64 --seed 900000 || true
    client at-once --isl 467 --osl 256 --requests 500 || true
    judge "tritonserver, 467/256, 500 at once" "$LOGS/at-once.json" output_throughput_tok_s least 9000 tokens/s
    client rate2 --isl 467 --osl 256 --requests "${RATE_REQUESTS:-60}" --request-rate 2 --seed 100000 || true
    judge "tritonserver, 467/256 at 2 requests/s: TTFT" "$LOGS/rate2.json" ttft_ms.avg most 18 ms
    judge "tritonserver, 467/256 at 2 requests/s: ITL" "$LOGS/rate2.json" itl_ms.avg most 5 ms
    # Streams that run while a long prompt comes in.
    client running --isl 128 --osl 400 --requests 8 --warmup 0 --seed 200000 & RUNNING=$!
    sleep 0.6; client intruder --isl 8000 --osl 2 --requests 1 --warmup 0 --seed 300000 || true
    wait "$RUNNING" || true
    judge "8 streams while 8,000 tokens come in: longest gap" "$LOGS/running.json" itl_ms.max most 400 ms
    kill "$SERVER"; if wait "$SERVER"; then row "the server ends in order" ok; else row "the server ends in order" FAILED; fi
  else
    row "tritonserver starts" FAILED "see $LOGS/serve.log"; tail -n 20 "$LOGS/serve.log" >&2
  fi
fi

{
  printf '| what | result | measured | limit | goal |\n|---|---|---|---|---|\n'
  printf '%s\n' "${ROWS[@]}" | awk -F'|' '{printf "| %s | %s | %s | %s | %s |\n", $1, $2, $3, $4, $5}'
} | tee "$LOGS/table.md"
exit "$FAILED"
