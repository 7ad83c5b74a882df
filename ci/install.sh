#!/usr/bin/env bash
# Builds the release library and installs it: ci/install.sh DIR [--as-vllm], where DIR is a backend folder such as
# /opt/tritonserver/backends. With --as-vllm, repositories with backend: "vllm" run on it too; that backend is set aside.
set -euo pipefail
. "$(dirname "$0")/common.sh"

usage() { echo "usage: ci/install.sh DIR [--as-vllm]   (a backend folder, for example /opt/tritonserver/backends)" >&2; exit 2; }
[ $# = 1 ] || [ "${2:-}" = --as-vllm ] && [ $# -le 2 ] && [ "${1#-}" = "$1" ] || usage
ensure_system
ensure_rust
build_release
install_backend "$1"
say "installed $1/trtllm/libtriton_trtllm.so and $1/tensorrtllm/libtriton_tensorrtllm.so"
if [ "${2:-}" = --as-vllm ]; then
  install_as_vllm "$1"
  say "installed $1/vllm/libtriton_vllm.so"
fi
