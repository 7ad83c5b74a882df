#!/usr/bin/env bash
# Every test, from unit to end to end with the real server. ci/test.sh [all|rust|e2e|lint]
set -euo pipefail
. "$(dirname "$0")/common.sh"

PART=${1:-all}
case $PART in all|rust|e2e|lint) ;; *) echo "usage: ci/test.sh [all|rust|e2e|lint]" >&2; exit 2 ;; esac
wants() { [ "$PART" = all ] || [ "$PART" = "$1" ]; }

ensure_system
ensure_rust
cd "$ROOT"

# The committed bindings must equal what bindgen makes of triton_headers/, and the kernels must compile for every GPU:
# both compilers come from packages, so that this holds on any machine.
ensure_kernel_compiler
ensure_python bindgen 'libclang==18.1.1'
export LIBCLANG_PATH=$("$VENV_PYTHON" -c 'import clang, os; print(os.path.join(os.path.dirname(clang.__file__), "native"))')
# A test run builds once: incremental compilation would only cost it time and gigabytes.
export CARGO_INCREMENTAL=0
export TRITON_BINDINGS=check KERNELS_STRICT=1

if wants lint; then
  say "formatting, lints, licences"
  cargo fmt --check
  cargo clippy --locked --all-targets -- -D warnings
  DENY=$CACHE/tools/bin/cargo-deny
  [ -x "$DENY" ] || quietly "installing cargo-deny" cargo-deny cargo install --quiet --locked --root "$CACHE/tools" cargo-deny@0.20.2
  "$DENY" check licenses bans sources
fi

if wants rust; then
  ensure_tritonserver
  say "unit and integration tests"
  cargo test --locked --all-targets
fi

if wants e2e; then
  ensure_tritonserver
  build_release
  install_backend "$CACHE/e2e/backends"
  ensure_python e2e 'tritonclient[http,grpc]==2.73.0' 'pytest==9.2.0' 'numpy<2' 'pyzmq==27.3.0' 'msgpack==1.2.4' 'jsonschema==4.26.0'
  ensure_libpython
  say "end to end with $TRITONSERVER"
  TRITONSERVER=$TRITONSERVER BACKENDS=$CACHE/e2e/backends TRTLLM=$ROOT/target/release/trtllm "$VENV_PYTHON" -m pytest -q -p no:cacheprovider tests/e2e
fi
