#!/usr/bin/env bash
# Builds the three images with podman from a locally made Debian base, checks them one by one, starts
# deploy/compose.yaml with a Prometheus, lets its load run, scrapes, and takes it all down.
#
#   test.sh               compiles inside the build, as a user would
#   test.sh --prebuilt    takes build/release/bin as it is (built on Debian 12)
#
# Exit 77 with a reason where containers cannot start. As root, since the base image and the bridge
# network need it; ports, bridges and firewall rules stay in a network namespace of its own.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
prebuilt=
[[ ${1:-} != --prebuilt ]] || prebuilt=build/release/bin

skip() {
  echo "SKIPPED: $*"
  exit 77
}
fail() {
  echo "FAILED: $*" >&2
  exit 1
}
step() { printf '%(%T)T %s\n' -1 "$*"; }

[[ $(id -u) == 0 ]] || skip "needs root"
for tool in podman podman-compose runc mmdebstrap ip python3; do
  command -v "$tool" >/dev/null || skip "$tool is not installed (deploy/install-deps.sh)"
done

# shellcheck source=deploy/containers/podman-env.sh
. "$root/deploy/containers/podman-env.sh"
viommu_podman_env "${VIOMMU_CONTAINER_STORE:-$root/build/containers}"
base=docker.io/library/debian:bookworm-slim
prefix=localhost/viommu-test
project=viommutest$$
ns=$project
compose() { (cd "$root/deploy" && podman-compose -p "$project" -f compose.yaml ${overlay:+-f "$overlay"} "$@"); }
export -f compose
export root project overlay=
ours() { podman ps -a --filter "label=io.podman.compose.project=$project" --format "$1"; }
# podman in the namespace; --net alone, since `ip netns exec` would hide the cgroups.
inside() { nsenter --net="/run/netns/$ns" "$@"; }

cleanup() {
  local status=$?
  trap - EXIT
  if [[ $status != 0 && $status != 77 ]]; then
    for name in $(ours '{{.Names}}'); do
      echo "--- $name" >&2
      podman logs --tail 20 "$name" >&2 2>&1 || true
    done
  fi
  inside bash -c 'compose down -v -t 1' >/dev/null 2>&1 || true
  ours '{{.Names}}' | xargs -r podman rm -f -t 1 >/dev/null 2>&1 || true
  # aardvark-dns outlives its last network by a moment; it is ours alone, by its configuration.
  ip netns pids "$ns" 2>/dev/null | xargs -r kill 2>/dev/null || true
  ip netns del "$ns" 2>/dev/null || true
  umount -l "$VIOMMU_PODMAN_RUN"/root/* 2>/dev/null || true
  rm -rf "$VIOMMU_PODMAN_RUN"
  exit $status
}
trap cleanup EXIT
log=$VIOMMU_PODMAN_RUN/log

ip netns add "$ns" 2>/dev/null || skip "no network namespaces here"
inside ip link set lo up
viommu_base_image "$base"
podman run --rm --network none "$base" true 2>/dev/null || skip "containers do not start here: $(
  podman run --rm --network none "$base" true 2>&1 | tail -1)"

step "build${prebuilt:+ from $prebuilt}"
for target in hypervisor_svc guest_svc viommu; do
  podman build --quiet --format docker --pull=never --network host --build-arg "BASE=$base" \
    --build-arg "PREBUILT=$prebuilt" -f "$root/deploy/containers/Containerfile" --target "$target" \
    -t "$prefix/$target:latest" "$root" >/dev/null
done

step "images"
run=(podman run --rm --no-healthcheck --network none --read-only --cap-drop ALL --security-opt no-new-privileges)
for image in hypervisor_svc guest_svc viommu; do
  [[ $("${run[@]}" --entrypoint id "$prefix/$image" -u) == 65532 ]] || fail "$image runs as root"
  found=$("${run[@]}" --entrypoint sh "$prefix/$image" -c 'command -v cc gcc g++ c++ clang make cmake' || true)
  [[ -z $found ]] || fail "$image has a compiler: $found"
  ! "${run[@]}" --entrypoint touch "$prefix/$image" /usr/x 2>/dev/null || fail "$image can be written"
  echo "  $image $(($(podman image inspect -f '{{.Size}}' "$prefix/$image") / 1000000)) MB"
done
# Beyond loopback and without certificates a service must refuse, not serve in the clear.
status=0
"${run[@]}" "$prefix/hypervisor_svc" 2>/dev/null || status=$?
[[ $status == 2 ]] || fail "hypervisor_svc without TLS and --insecure ended with $status, not 2"
"${run[@]}" "$prefix/viommu" compare --workload=nic-rx-classic --policies=strict --strategies=walk \
  --live_pages=1024 --ops=200 >/dev/null || fail "viommu compare in its image"

step "prometheus stand-in (no registry: Debian's package under the published image's interface)"
podman build --quiet --format docker --pull=never --network host -t "$prefix/prometheus:latest" \
  - >/dev/null <<EOF
FROM $base
RUN apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y \
  --no-install-recommends prometheus >/dev/null && install -d -o nobody /prometheus
USER nobody
ENTRYPOINT ["/usr/bin/prometheus"]
EOF

step "compose"
export VIOMMU_IMAGES=$prefix BASE=$base PREBUILT=$prebuilt PROMETHEUS_IMAGE=$prefix/prometheus:latest
# Grafana is the one service that cannot run here: Debian has no package of it.
services=(hypervisor guest-strict guest-lazy load-strict load-lazy prometheus)
up() { inside bash -c 'compose up -d --no-build "$@"' _ "$@" >"$log" 2>&1 || { cat "$log" >&2; fail "compose up"; }; }
up "${services[@]}"
name() { ours '{{.Names}}' | grep -E "^${project}[-_]$1[-_]1$"; }

wait_for() {  # SECONDS WHAT COMMAND...
  local until=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < until)) || fail "$what: not after a while"
    sleep 1
  done
}
for service in hypervisor guest-strict guest-lazy; do
  wait_for 60 "$service is healthy" inside podman healthcheck run "$(name "$service")"
done
! podman exec "$(name guest-strict)" touch /usr/x 2>/dev/null || fail "the root file system is writable"

query() {  # the first value of a PromQL query
  inside python3 - "$1" <<'EOF'
import json, sys, urllib.parse, urllib.request
url = "http://127.0.0.1:9090/api/v1/query?query=" + urllib.parse.quote(sys.argv[1])
result = json.load(urllib.request.urlopen(url, timeout=5))["data"]["result"]
print(result[0]["value"][1])
EOF
}
above() { python3 -c 'import sys; sys.exit(not float(sys.argv[1]) > float(sys.argv[2]))' "$(query "$1")" "$2"; }
step "scrape"
wait_for 60 "three targets are up" above 'count(up == 1)' 2
for guest in guest-strict guest-lazy; do
  wait_for 90 "$guest unmaps" above \
    "rate(viommu_dma_ops_total{instance=\"$guest:9465\",op=\"unmap\",code=\"ok\"}[30s])" 0
done
wait_for 90 "recording rules give values" above 'part:viommu_modelled_seconds_per_unmap:ratio_rate5m{part="walk"}' 0
above 'viommu_sessions' 1 || fail "fewer than two sessions"
above 'count(viommu_shadow_mismatches_total == 0)' 0 || fail "shadow mismatches"
sessions_up() {  # COUNT: what an operator sees from inside a container
  podman exec -e VIOMMU_INSECURE=true "$(name guest-strict)" viommu status --hypervisor=hypervisor:7002 \
    2>/dev/null | tee "$log" | grep -c ' up ' | grep -qx "$1"
}
wait_for 20 "viommu status shows two live sessions" sessions_up 2
cat "$log"
if [[ -n $prebuilt ]]; then
  wait_for 20 "the lazy guest's published port answers" \
    inside "$root/$prebuilt/viommu" health --address=127.0.0.1:7003
fi

step "a guest without the volume (--memory=remote)"
remote=${project}_guest-remote_1
inside podman run -d --name "$remote" --label "io.podman.compose.project=$project" --no-healthcheck \
  --network "${project}_default" --read-only --cap-drop ALL --security-opt no-new-privileges \
  -e VIOMMU_INSECURE=true -e VIOMMU_MEMORY=remote "$prefix/guest_svc" >/dev/null
running=(load-strict load-lazy guest-remote guest-strict guest-lazy hypervisor)
wait_for 30 "the remote guest serves" podman exec "$remote" viommu health --address=127.0.0.1:7001
podman exec -e VIOMMU_INSECURE=true "$remote" viommu load --guest=127.0.0.1:7001 --duration=3s \
  --rate=200 --json=- 2>/dev/null | python3 -c '
import json, sys
load = json.load(sys.stdin)
sys.exit(not (load["unmap"]["count"] > 0 and load["errors"] == 0))' || fail "load on the remote guest"
wait_for 20 "the remote guest has a session" sessions_up 3
wait_for 30 "pages copied from the remote guest, as Prometheus has them" \
  above 'sum(viommu_remote_pages_total{use="sync"})' 0

step "SIGTERM"
for service in "${running[@]}"; do
  container=$(name "$service")
  inside podman stop -t 15 "$container" >"$log" 2>&1 || { cat "$log" >&2; fail "podman stop"; }
  code=$(podman inspect -f '{{.State.ExitCode}}' "$container")
  [[ $code == 0 ]] || fail "$service ended with $code on SIGTERM"
done

step "down"
podman rm -f "$remote" >/dev/null 2>&1
inside bash -c 'compose down -v' >/dev/null 2>&1
[[ -z $(ours '{{.Names}}') ]] || fail "containers are left: $(ours '{{.Names}}')"
step "mutual TLS"
export VIOMMU_CERTS=$VIOMMU_PODMAN_RUN/certs
"$root/deploy/containers/make-certs.sh" "$VIOMMU_CERTS" >/dev/null
chmod 0711 "$VIOMMU_PODMAN_RUN"
overlay=compose.tls.yaml
up hypervisor guest-lazy load-lazy
for service in hypervisor guest-lazy; do
  wait_for 60 "$service is healthy" inside podman healthcheck run "$(name "$service")"
done
unmaps() {  # the lazy guest's counter, from its own metrics page
  podman exec "$(name guest-lazy)" bash -c 'exec 3<>/dev/tcp/127.0.0.1/9465
    printf "GET /metrics HTTP/1.0\r\n\r\n" >&3; cat <&3' |
    sed -n 's/^viommu_dma_ops_total{op="unmap",code="ok"} //p;s/^viommu_dma_ops_total{code="ok",op="unmap"} //p'
}
some_unmaps() { [[ $(unmaps) -gt 100 ]]; }
wait_for 60 "load over mutual TLS" some_unmaps
status=0
podman exec -e VIOMMU_INSECURE=true -e VIOMMU_TLS_CERT= -e VIOMMU_TLS_KEY= -e VIOMMU_TLS_CA= \
  "$(name guest-lazy)" viommu status --hypervisor=hypervisor:7002 >/dev/null 2>&1 || status=$?
[[ $status == 1 ]] || fail "a client without a certificate ended with $status, not 1"
wait_for 20 "a client with a certificate is served" \
  podman exec "$(name guest-lazy)" viommu status --hypervisor=hypervisor:7002
inside bash -c 'compose down -v' >/dev/null 2>&1
step "PASSED"
