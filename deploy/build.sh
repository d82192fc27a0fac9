#!/usr/bin/env bash
# build.sh PRESET [TARGET...]: configures and builds one preset, with ccache where it is installed.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
preset=$1
shift
cd "$root"
launcher=()
if command -v ccache >/dev/null; then
  launcher=(-DCMAKE_C_COMPILER_LAUNCHER=ccache -DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
fi
cmake --preset "$preset" "${launcher[@]}" >/dev/null
targets=()
if [[ $# -gt 0 ]]; then
  targets=(--target "$@")
fi
cmake --build --preset "$preset" -j "$(nproc)" "${targets[@]}"
