#!/usr/bin/env bash
# Writes the schemas of this folder again, from npm. Only for taking up newer versions.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
echo '{"private": true}' >package.json
npm install --silent --no-audit --no-fund kubernetes-types@1.30.0 \
  @kubernetes-models/prometheus-operator@6.0.0 @kubernetes-models/cert-manager@4.4.4 dclint@3.1.0 \
  ts-json-schema-generator@2.3.0 typescript@5.9.3

cat >kubernetes.ts <<'EOF'
import { Deployment } from "kubernetes-types/apps/v1";
import { Job } from "kubernetes-types/batch/v1";
import { ConfigMap, Namespace, Service } from "kubernetes-types/core/v1";
import { NetworkPolicy } from "kubernetes-types/networking/v1";
export interface Manifests { Deployment: Deployment; Job: Job; ConfigMap: ConfigMap;
  Namespace: Namespace; Service: Service; NetworkPolicy: NetworkPolicy }
EOF
cat >prometheus-operator.ts <<'EOF'
import { IPrometheusRule, IServiceMonitor }
  from "@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1";
export interface Manifests { PrometheusRule: IPrometheusRule; ServiceMonitor: IServiceMonitor }
EOF
cat >cert-manager.ts <<'EOF'
import { ICertificate, IIssuer } from "@kubernetes-models/cert-manager/cert-manager.io/v1";
export interface Manifests { Certificate: ICertificate; Issuer: IIssuer }
EOF
for name in kubernetes prometheus-operator cert-manager; do
  cat >tsconfig.json <<EOF
{"compilerOptions": {"strict": true, "moduleResolution": "node", "module": "commonjs",
  "target": "es2020", "skipLibCheck": true}, "files": ["$name.ts"]}
EOF
  npx ts-json-schema-generator --path "$name.ts" --tsconfig tsconfig.json --type Manifests \
    --no-type-check -o "$name.json"
done
cp node_modules/dclint/schemas/compose.schema.json compose.json

python3 - "$here" <<'EOF'
import json, sys
def without_text(node):
    if isinstance(node, dict):
        return {k: without_text(v) for k, v in node.items()
                if not (k == "description" and isinstance(v, str))}
    return [without_text(v) for v in node] if isinstance(node, list) else node
for name in ("kubernetes", "prometheus-operator", "cert-manager", "compose"):
    with open(f"{name}.json") as source, open(f"{sys.argv[1]}/{name}.json", "w") as out:
        json.dump(without_text(json.load(source)), out, indent=1, sort_keys=True)
        out.write("\n")
EOF
