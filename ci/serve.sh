#!/usr/bin/env bash
# From a fresh machine to streamed text: builds, fetches a tritonserver where there is none, serves, answers a prompt.
set -euo pipefail
. "$(dirname "$0")/common.sh"

usage() {
  cat <<'TEXT'
usage: ci/serve.sh [options]
  --model PATH          serve this Hugging Face folder or GGUF file instead of the demo model
  --device KIND         cpu, cuda or auto (default auto)
  --prompt TEXT         the prompt that is answered first (default "Once upon a time")
  --max-tokens N        how many tokens to generate for it (default 80)
  --http-port N         default 8000
  --grpc-port N         default 8001
  --metrics-port N      default 8002
  --once                answer the prompt, then stop; the exit code says whether it worked
TEXT
}

MODEL=$ROOT/ci/demo_model/hf DEVICE=auto PROMPT="Once upon a time" MAX_TOKENS=80
HTTP=8000 GRPC=8001 METRICS=8002 ONCE=0
while [ $# -gt 0 ]; do
  case $1 in
    --once) ONCE=1; shift; continue ;;
    -h|--help) usage; exit 0 ;;
    --model|--device|--prompt|--max-tokens|--http-port|--grpc-port|--metrics-port)
      [ $# -ge 2 ] || { usage >&2; fail "$1 needs a value"; } ;;
    *) usage >&2; fail "unknown option $1" ;;
  esac
  case $1 in
    --model) MODEL=$2 ;;
    --device) DEVICE=$2 ;;
    --prompt) PROMPT=$2 ;;
    --max-tokens) MAX_TOKENS=$2 ;;
    --http-port) HTTP=$2 ;;
    --grpc-port) GRPC=$2 ;;
    --metrics-port) METRICS=$2 ;;
  esac
  shift 2
done
case $DEVICE in cpu|cuda|auto) ;; *) fail "--device is '$DEVICE'; it must be cpu, cuda or auto" ;; esac
for number in "$MAX_TOKENS" "$HTTP" "$GRPC" "$METRICS"; do
  case $number in ''|*[!0-9]*) fail "'$number' is not a whole number" ;; esac
done
[ -e "$MODEL" ] || fail "--model: there is no '$MODEL'"
MODEL=$(realpath "$MODEL")
case $MODEL in
  *.gguf) ;;
  *) [ -f "$MODEL/config.json" ] || fail "--model: $MODEL is neither a GGUF file nor a Hugging Face folder, which has a config.json" ;;
esac

ensure_system
ensure_rust
ensure_tritonserver
build_release
BACKENDS=$CACHE/serve/backends REPOSITORY=$CACHE/serve/model_repo LOG=$CACHE/serve/server.log
install_backend "$BACKENDS"
rm -rf "$REPOSITORY"
cp -r "$ROOT/model_repo" "$REPOSITORY"
FOLDER=$(printf '%s' "$MODEL" | sed 's/[\\,:]/\\\\\\&/g')
fill() { python3 "$ROOT/ci/fill_template.py" -i "$REPOSITORY/$1/config.pbtxt" "$2"; }
fill tensorrt_llm "engine_dir:$FOLDER,tokenizer_dir:$FOLDER,device:$DEVICE"
fill preprocessing "tokenizer_dir:$FOLDER"
fill postprocessing "tokenizer_dir:$FOLDER"

curl -s -o /dev/null --max-time 2 "http://localhost:$HTTP/" && fail "port $HTTP is in use; choose another with --http-port"
"$TRITONSERVER" --model-repository="$REPOSITORY" --backend-directory="$BACKENDS" \
  --http-port "$HTTP" --grpc-port "$GRPC" --metrics-port "$METRICS" >"$LOG" 2>&1 &
SERVER=$!
trap 'kill -TERM "$SERVER" 2>/dev/null || true; wait "$SERVER" 2>/dev/null || true' EXIT
trap 'exit 130' INT TERM

printf '\033[1m==>\033[0m starting %s, loading %s ' "$TRITONSERVER" "$MODEL" >&2
START=$SECONDS
until curl -sf "http://localhost:$HTTP/v2/health/ready" >/dev/null; do
  kill -0 "$SERVER" 2>/dev/null || {
    printf ' failed\n' >&2
    grep -E '^E|error:' "$LOG" | tail -n 15 >&2 || true
    fail "the server ended before it was ready; its log is $LOG"
  }
  printf '.' >&2
  sleep 1
done
printf ' ready after %ss\n' $((SECONDS - START)) >&2

say "a streamed answer:"
python3 "$ROOT/ci/stream.py" --url "http://localhost:$HTTP/v2/models/tensorrt_llm/generate_stream" --max-tokens "$MAX_TOKENS" "$PROMPT" ||
  fail "no answer came; the server's log is $LOG"

if [ "$ONCE" = 1 ]; then
  say "stopping the server"
  exit 0
fi
cat >&2 <<TEXT

The server stays up (log: $LOG). Try in another terminal:

  curl -s localhost:$HTTP/v2/models/ensemble/generate -d '{"text_input": "The little robot", "max_tokens": 40}'
  curl -sN localhost:$HTTP/v2/models/tensorrt_llm/generate_stream -d '{"text_input": "One morning", "max_tokens": 40, "stream": true, "temperature": 0.8, "top_k": 40, "seed": 7}'
  curl -s localhost:$METRICS/metrics | grep nv_trt_llm

Ctrl-C stops it.
TEXT
wait "$SERVER"
