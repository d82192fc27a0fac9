#!/usr/bin/env bash
# Every test: set-up, build, ctest. With VIOMMU_SANITIZERS=1 the asan-ubsan and tsan presets run
# their unit and integration tests first; with VIOMMU_BROWSER_TESTS=1 the report is opened in Chromium.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
"$root/deploy/install-deps.sh"
cd "$root"
if [[ ${VIOMMU_SANITIZERS:-0} == 1 ]]; then
  for preset in asan-ubsan tsan; do
    "$root/deploy/build.sh" "$preset"
    ctest --preset "$preset" -j "$(nproc)"
  done
fi
"$root/deploy/build.sh" release
ctest --preset release -j "$(nproc)"
