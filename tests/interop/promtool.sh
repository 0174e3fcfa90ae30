#!/usr/bin/env bash
# The names and the format of our metrics, judged by Prometheus' own tool.
set -euo pipefail

if ! command -v promtool >/dev/null; then
  echo "skipped: promtool is not installed (Debian package prometheus)"
  exit 77
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

ids=$(seq -s, 0 15)
curl -sSf --max-time 30 -o /dev/null "$TIDEPOOL_HTTP/v2/models/words/infer" \
  --data "{\"inputs\":[{\"name\":\"input_ids\",\"datatype\":\"INT64\",\"shape\":[1,16],\"data\":[$ids]}]}"
curl -sSf --max-time 30 -o "$work/metrics" "$TIDEPOOL_METRICS"
promtool check metrics <"$work/metrics"
for name in 'tidepool_requests_total{model="words"}' 'tidepool_pool_pages{state="free"}' 'tidepool_pool_violations_total 0' \
  'tidepool_api_requests_total{api="rest",code="OK"}' 'tidepool_lease_held_bytes{'; do
  grep -qF "$name" "$work/metrics" || {
    echo "no $name among the metrics" >&2
    exit 1
  }
done
echo ok
