#!/usr/bin/env bash
# collect.sh OUT [NAMESPACE]: waits for the sweep, takes each shard's JSON from its pod's log, and
# joins them: OUT.json and OUT.html. Needs kubectl and viommu on the path.
set -euo pipefail
out=${1:?usage: collect.sh OUT [NAMESPACE]}
namespace=${2:-viommu}
job=viommu-sweep
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

kubectl -n "$namespace" wait --for=condition=complete --timeout=24h "job/$job" >&2
shards=$(kubectl -n "$namespace" get job "$job" -o 'jsonpath={.spec.completions}')
for ((i = 0; i < shards; ++i)); do
  # A failed try leaves its pod behind: only the one that succeeded has the JSON.
  pod=$(kubectl -n "$namespace" get pods --field-selector=status.phase=Succeeded \
    -l "batch.kubernetes.io/job-name=$job,batch.kubernetes.io/job-completion-index=$i" \
    -o 'jsonpath={.items[0].metadata.name}')
  kubectl -n "$namespace" logs "$pod" -c result >"$folder/$i.json"
done
viommu merge --json="$out.json" --report="$out.html" "$folder"/*.json
