#!/usr/bin/env bash
# run.sh BINARIES ROOT WORK: the Node client's tests. The packages are installed in WORK, from
# package-lock.json; the network is asked only with VIOMMU_NODE_TESTS=1.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export BINARIES=$1 ROOT=$2
work=$3
skip() {
  echo "SKIPPED: $*"
  exit 77
}
command -v node >/dev/null || skip "node is not installed"
major=$(node -p 'process.versions.node.split(".")[0]')
[[ $major -ge 18 ]] || skip "node $major is older than 18"
mkdir -p "$work"
cp "$here"/*.js "$here"/package.json "$here"/package-lock.json "$work"
cd "$work"
if ! cmp -s package-lock.json node_modules/.viommu-lock; then
  [[ ${VIOMMU_NODE_TESTS:-0} == 1 ]] || skip "its npm packages are not installed; VIOMMU_NODE_TESTS=1 installs them"
  npm ci --silent --no-audit --no-fund
  cp package-lock.json node_modules/.viommu-lock
fi
exec node --test client_test.js
