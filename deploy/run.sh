#!/usr/bin/env bash
# The main job: builds the release preset and compares invalidation policies on the shipped trace of
# a real Linux guest. Arguments are passed on to `viommu compare`.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
"$root/deploy/install-deps.sh" build
"$root/deploy/build.sh" release guest_svc hypervisor_svc viommu
exec "$root/build/release/bin/viommu" compare \
  --trace="$root/tests/data/linux/6.1_cmon_strict1_r4k/trace.txt.gz" \
  --policies=strict,lazy,lazy-single,lazy-psi \
  --strategies=walk,walk-shared \
  --live_pages=1024,16384,131072 \
  --report=viommu-report.html --json=viommu-report.json "$@"
