#!/usr/bin/env bash
# Writes components/monitoring/prometheus-rule.yaml from deploy/prometheus/rules/viommu.yml.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
{
  cat <<'EOF'
# deploy/prometheus/rules/viommu.yml as the Prometheus operator wants it; make-rule.sh writes it.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: viommu
spec:
EOF
  sed 's/^\(.\)/  \1/' "$here/../prometheus/rules/viommu.yml"
} >"$here/components/monitoring/prometheus-rule.yaml"
