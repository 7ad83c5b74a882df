# Shared by the scripts of this folder: finds or installs what they need. Sourced, not run.
# Everything that is fetched goes to $CACHE, a folder of the project that git ignores.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CACHE=${TRTLLM_CACHE_DIR:-$ROOT/.cache}
RUST_VERSION=1.95.0
PYTRITON_VERSION=0.7.0
mkdir -p "$CACHE/logs"

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

# quietly WHAT LOG COMMAND...: runs a long command with its output in a log; prints a dot every five seconds, and the
# log's end if it fails.
quietly() {
  local what=$1 log=$CACHE/logs/$2.log start=$SECONDS pid; shift 2
  printf '\033[1m==>\033[0m %s ' "$what" >&2
  "$@" >"$log" 2>&1 &
  pid=$!
  while kill -0 "$pid" 2>/dev/null; do
    sleep 1
    if (( (SECONDS - start) % 5 == 0 )); then printf '.' >&2; fi
  done
  if wait "$pid"; then
    printf ' %ss\n' $((SECONDS - start)) >&2
  else
    printf ' failed\n' >&2; tail -n 40 "$log" >&2; fail "$what failed; the whole output is in $log"
  fi
}

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

install_packages() {
  command -v apt-get >/dev/null && as_root true 2>/dev/null || fail "please install these packages and run again: $*"
  quietly "updating the package lists" apt-update as_root apt-get update -qq
  quietly "installing system packages: $*" apt-install \
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"
}

ensure_system() {
  [ "$(uname -sm)" = "Linux x86_64" ] || fail "this needs Linux on x86-64, this machine is $(uname -sm)"
  local missing=()
  command -v curl >/dev/null || missing+=(curl)
  [ -d /etc/ssl/certs ] || missing+=(ca-certificates)
  command -v cc >/dev/null || missing+=(gcc)
  [ -e /usr/include/stdlib.h ] || missing+=(libc6-dev)
  python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3 python3-venv)
  [ ${#missing[@]} = 0 ] || install_packages "${missing[@]}"
}

ensure_rust() {
  [ -f "$HOME/.cargo/env" ] && . "$HOME/.cargo/env"
  if ! command -v cargo >/dev/null; then
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs -o "$CACHE/rustup-init.sh" || fail "rustup could not be downloaded"
    quietly "installing the Rust toolchain $RUST_VERSION with rustup" rustup \
      sh "$CACHE/rustup-init.sh" -y --profile minimal --component rustfmt --component clippy --default-toolchain "$RUST_VERSION"
    . "$HOME/.cargo/env"
  fi
  local version; version=$(rustc --version | cut -d' ' -f2)
  [ "$(printf '%s\n' "$RUST_VERSION" "${version%%-*}" | sort -V | head -n1)" = "$RUST_VERSION" ] ||
    fail "Rust $RUST_VERSION or newer is needed, found $version; run: rustup update stable"
}

# ensure_python NAME REQUIREMENT...: a Python environment of the project; sets VENV_PYTHON.
ensure_python() {
  local name=$1 venv=$CACHE/venv-$1; shift
  VENV_PYTHON=$venv/bin/python
  [ "$(cat "$venv/requirements" 2>/dev/null)" = "$*" ] && return
  rm -rf "$venv"
  quietly "creating the Python environment '$name'" "venv-$name" python3 -m venv "$venv"
  quietly "installing $*" "pip-$name" "$venv/bin/pip" install --quiet --disable-pip-version-check "$@"
  printf '%s' "$*" >"$venv/requirements"
}

# The Python backend's stub needs the library of the Python that VENV_PYTHON is.
ensure_libpython() {
  local name dir
  name=$("$VENV_PYTHON" -c 'import sys; print("libpython%d.%d.so.1.0" % sys.version_info[:2])')
  dir=$("$VENV_PYTHON" -c 'import sysconfig; print(sysconfig.get_config_var("LIBDIR"))')
  [ -e "$dir/$name" ] || ldconfig -p | grep -q "$name" || install_packages "${name%.so.1.0}"
}

# Sets TRITONSERVER (the executable) and TRITON_SERVER_LIB (its core library, for the test of our declarations).
ensure_tritonserver() {
  TRITONSERVER=$(command -v tritonserver || true)
  [ -n "$TRITONSERVER" ] || [ ! -x /opt/tritonserver/bin/tritonserver ] || TRITONSERVER=/opt/tritonserver/bin/tritonserver
  if [ -z "$TRITONSERVER" ]; then
    local tree=$CACHE/tritonserver-$PYTRITON_VERSION
    TRITONSERVER=$tree/pytriton/tritonserver/bin/tritonserver
    if [ ! -f "$tree/complete" ]; then
      ensure_python fetch pip
      rm -rf "$tree"; mkdir -p "$tree"
      quietly "fetching tritonserver (55 MB, out of the package nvidia-pytriton $PYTRITON_VERSION)" tritonserver \
        "$VENV_PYTHON" -m pip download --disable-pip-version-check --no-deps -d "$tree" "nvidia-pytriton==$PYTRITON_VERSION"
      quietly "unpacking it" unpack "$VENV_PYTHON" -m zipfile -e "$tree"/*.whl "$tree"
      chmod +x "$TRITONSERVER"
      rm -f "$tree"/*.whl
      touch "$tree/complete"
    fi
  fi
  TRITON_SERVER_LIB=$(ldd "$(readlink -f "$TRITONSERVER")" | awk '/libtritonserver/ {print $3; exit}')
  [ -n "$TRITON_SERVER_LIB" ] || fail "$TRITONSERVER does not name its libtritonserver"
  export TRITONSERVER TRITON_SERVER_LIB
}

# NVRTC makes the machine code of the CUDA kernels when the library is built; it comes out of packages.
ensure_kernel_compiler() {
  ensure_python kernels 'nvidia-cuda-nvrtc==13.0.88' 'nvidia-cuda-runtime==13.0.96'
  export PYTHON=$VENV_PYTHON KERNELS_CACHE=$CACHE/kernels
}

build_release() {
  if command -v nvidia-smi >/dev/null; then ensure_kernel_compiler; fi
  say "building the release library (the first time takes some minutes)"
  (cd "$ROOT" && cargo build --release --locked --lib --bins) || fail "the build failed"
}

# install_backend DIR: one file and a link, so that both backend names work. Replaces the file at once, never in place:
# a running server keeps the one it has mapped.
install_backend() {
  mkdir -p "$1/trtllm" "$1/tensorrtllm"
  install -m 755 "$ROOT/target/release/libtriton_trtllm.so" "$1/trtllm/libtriton_trtllm.so.new"
  mv -f "$1/trtllm/libtriton_trtllm.so.new" "$1/trtllm/libtriton_trtllm.so"
  ln -sfn ../trtllm/libtriton_trtllm.so "$1/tensorrtllm/libtriton_tensorrtllm.so"
}

# install_as_vllm DIR: a third name. A vLLM backend that is there is kept as vllm.before.
install_as_vllm() {
  if [ -e "$1/vllm" ] && [ ! -L "$1/vllm/libtriton_vllm.so" ]; then mv "$1/vllm" "$1/vllm.before"; fi
  mkdir -p "$1/vllm"
  ln -sfn ../trtllm/libtriton_trtllm.so "$1/vllm/libtriton_vllm.so"
}
