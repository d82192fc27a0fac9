# Sourced: lets podman work in a store of its own on a Debian 12 with or without systemd, as root.
# The store's folder is kept, so that a second run finds the base image and the build cache.
#
# viommu_podman_env STORE
viommu_podman_env() {
  local store=$1 run
  # Short, and not below the store: sockets live there, and a socket's path has 107 characters.
  run=$(mktemp -d /run/viommu-podman.XXXXXX)
  mkdir -p "$store"
  VIOMMU_PODMAN_RUN=$run
  cat >"$run/containers.conf" <<EOF
[containers]
# Without CAP_SYS_RESOURCE podman's own defaults, which are higher, cannot be set.
default_ulimits=["nofile=$(ulimit -Hn):$(ulimit -Hn)", "nproc=32768:32768"]
[engine]
# crun starts nothing where cgroup v1 and v2 are mixed; cgroupfs needs no systemd.
runtime="runc"
cgroup_manager="cgroupfs"
events_logger="file"
[network]
network_backend="netavark"
network_config_dir="$run/networks"
EOF
  cat >"$run/storage.conf" <<EOF
[storage]
driver="overlay"
graphroot="$store/graph"
runroot="$run/root"
EOF
  export CONTAINERS_CONF=$run/containers.conf CONTAINERS_STORAGE_CONF=$run/storage.conf
}

# viommu_base_image NAME: makes a Debian 12 base without a registry, if the store has none. It
# stands in for the published debian:bookworm-slim and is not that image.
viommu_base_image() {
  local name=$1 mirror tar
  podman image exists "$name" && return
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Codename: bookworm' 2>/dev/null | head -1)
  tar=$(mktemp /tmp/viommu-base.XXXXXX.tar)
  echo "base image: mmdebstrap from ${mirror:-http://deb.debian.org/debian}" >&2
  mmdebstrap --quiet --variant=minbase bookworm - "${mirror:-http://deb.debian.org/debian}" >"$tar"
  podman import --quiet "$tar" "$name" >/dev/null
  rm -f "$tar"
}
