#!/usr/bin/env bash
# Builds the release library and installs it: ci/install.sh DIR, where DIR is a backend folder such as /opt/tritonserver/backends.
set -euo pipefail
. "$(dirname "$0")/common.sh"

[ $# = 1 ] && [ "${1#-}" = "$1" ] || { echo "usage: ci/install.sh DIR   (a backend folder, for example /opt/tritonserver/backends)" >&2; exit 2; }
ensure_system
ensure_rust
build_release
install_backend "$1"
say "installed $1/trtllm/libtriton_trtllm.so and $1/tensorrtllm/libtriton_tensorrtllm.so"
