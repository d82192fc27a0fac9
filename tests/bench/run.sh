#!/usr/bin/env bash
# run.sh [ARG...]: builds and runs every benchmark of the release preset, one after the other, leaves
# one JSON file each in the current directory, and prints each hot path beside its floor
# (ratios.txt). Figures are medians of five repetitions. Arguments go to Google Benchmark, for
# example --benchmark_filter=Magazine or --benchmark_repetitions=9.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
"$root/deploy/install-deps.sh"
"$root/deploy/build.sh" release benchmarks
for bench in "$root"/build/release/bin/*_bench; do
  "$bench" --benchmark_out="$(basename "$bench").json" --benchmark_out_format=json \
    --benchmark_repetitions=5 --benchmark_report_aggregates_only=true --benchmark_min_time=0.1 "$@"
done
python3 "$root/tests/bench/ratios.py" .
