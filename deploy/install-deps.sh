#!/usr/bin/env bash
# install-deps.sh [build]: installs what a fresh Debian 12 lacks for building, running and testing;
# `build`: for building only; VIOMMU_BROWSER_TESTS=1: also Chromium, for report_test. Debian's
# packages only; nothing to do (and no network) when all are there.
set -euo pipefail

packages=(
  g++ cmake ninja-build ccache pkg-config python3
  libgrpc++-dev protobuf-compiler protobuf-compiler-grpc libprotobuf-dev libabsl-dev libssl-dev
  prometheus-cpp-dev libspdlog-dev nlohmann-json3-dev zlib1g-dev
  libgtest-dev libgmock-dev libbenchmark-dev
)
if [[ ${1:-} != build ]]; then
  packages+=(
    prometheus openssl
    clang-14 libclang-rt-14-dev clang-format clang-tidy
    python3-yaml python3-jsonschema
    # deploy/containers/test.sh. runc is named because apt picks crun, which starts nothing under
    # hybrid cgroups.
    podman podman-compose runc netavark aardvark-dns iptables iproute2 mmdebstrap
  )
  # 80 MB for one test, which is skipped without it.
  if [[ ${VIOMMU_BROWSER_TESTS:-0} == 1 ]]; then packages+=(chromium); fi
fi

missing=()
for package in "${packages[@]}"; do
  state=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
  [[ $state == installed ]] || missing+=("$package")
done
if [[ ${#missing[@]} -eq 0 ]]; then
  exit 0
fi

as_root=()
if [[ $(id -u) -ne 0 ]]; then
  command -v sudo >/dev/null || {
    echo "install-deps: needs root or sudo to install: ${missing[*]}" >&2
    exit 1
  }
  as_root=(sudo)
fi

# Prometheus is wanted for promtool and for scraping by hand, not as a service of this machine: none
# is started while its package is set up, and it is not left to start at the next boot.
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
  trap '"${as_root[@]}" rm -f "$policy"' EXIT
  printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
  "${as_root[@]}" chmod 755 "$policy"
fi

echo "install-deps: installing ${missing[*]}" >&2
apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300)
"${apt[@]}" update
"${apt[@]}" install -y --no-install-recommends "${missing[@]}" >/dev/null
if [[ " ${missing[*]} " == *" prometheus "* ]] && command -v systemctl >/dev/null; then
  "${as_root[@]}" systemctl disable --quiet prometheus 2>/dev/null || true
fi
