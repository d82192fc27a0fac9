#!/usr/bin/env bash
# containers_test.sh ROOT: deploy/containers/test.sh with the programs of build/release, when asked for.
set -euo pipefail
if [[ ${VIOMMU_CONTAINER_TESTS:-0} != 1 ]]; then
  echo "SKIPPED: builds images and starts containers, about 100 s; VIOMMU_CONTAINER_TESTS=1 runs it"
  exit 77
fi
exec "$1/deploy/containers/test.sh" --prebuilt
