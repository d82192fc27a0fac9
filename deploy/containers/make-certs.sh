#!/usr/bin/env bash
# make-certs.sh FOLDER [NAME...]: a private authority and one certificate for each NAME (default: the
# services of compose.yaml and a client), for trying mutual TLS. Each names NAME, localhost and
# loopback; NAME.DOMAIN works too. Existing files are kept, so that a NAME can be added later.
# For anything that matters use an authority that you run; cert-manager in Kubernetes.
set -euo pipefail
folder=${1:?usage: make-certs.sh FOLDER [NAME...]}
shift
[[ $# -gt 0 ]] || set -- hypervisor guest-strict guest-lazy client
days=${DAYS:-90}
mkdir -p "$folder"
cd "$folder"
new_key=(-newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc)

if [[ ! -e ca.pem ]]; then
  (umask 077 && openssl req -x509 "${new_key[@]}" -days "$days" -subj "/CN=viommu test authority" \
    -keyout ca.key -out ca.pem 2>/dev/null)
  chmod 0644 ca.pem
fi
for name in "$@"; do
  file=${name%%.*}
  [[ ! -e $file.pem ]] || continue
  openssl req "${new_key[@]}" -subj "/CN=$name" -keyout "$file.key" -out "$file.csr" 2>/dev/null
  openssl x509 -req -in "$file.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -days "$days" \
    -extfile <(printf 'subjectAltName=DNS:%s,DNS:localhost,IP:127.0.0.1\n' "$name") \
    -out "$file.pem" 2>/dev/null
  rm "$file.csr"
  # The services run as 65532: as root give the key to that user, otherwise to this machine.
  if [[ $(id -u) == 0 ]]; then chown 65532 "$file.key" && chmod 0400 "$file.key"; else chmod 0644 "$file.key"; fi
  echo "$folder/$file.pem"
done
