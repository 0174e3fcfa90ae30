#!/usr/bin/env bash
# REST with curl: JSON, the binary tensor extension, errors.
set -euo pipefail

url=$TIDEPOOL_HTTP
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

fail() {
  echo "$1" >&2
  exit 1
}
# expect CODE PATTERN CURL_ARGUMENTS...: the status code, and a text in the answer.
expect() {
  local code=$1 pattern=$2 seen
  shift 2
  seen=$(curl -sS --max-time 30 -o "$work/answer" -w '%{http_code}' "$@")
  [ "$seen" = "$code" ] || fail "status $seen instead of $code for $*: $(head -c 500 "$work/answer")"
  grep -qaE "$pattern" "$work/answer" || fail "no '$pattern' in the answer to $*: $(head -c 500 "$work/answer")"
}

expect 200 '"ready":true' "$url/v2/health/ready"
expect 200 '"live":true' "$url/v2/health/live"
expect 200 'tidepool' "$url/v2"
expect 200 '"platform"' "$url/v2/models/words"
expect 200 '"model_stats"' "$url/v2/models/words/stats"
expect 200 'words' -X POST "$url/v2/repository/index"
expect 200 '<h1>' "$url/"
expect 200 '^tidepool_' "$url/metrics"
expect 200 '' -I "$url/v2"

ids=$(seq -s, 0 15)
printf '{"id":"c1","inputs":[{"name":"input_ids","datatype":"INT64","shape":[1,16],"data":[%s]}]}' "$ids" >"$work/json"
expect 200 '"id":"c1"' "$url/v2/models/words/infer" -H 'Content-Type: application/json' --data-binary "@$work/json"

# The same numbers as raw bytes: 16 little-endian INT64.
printf '{"id":"c2","inputs":[{"name":"input_ids","datatype":"INT64","shape":[1,16],"parameters":{"binary_data_size":128}}],"parameters":{"binary_data_output":true}}' >"$work/binary"
length=$(wc -c <"$work/binary")
for i in $(seq 0 15); do
  printf '%b' "\\x$(printf %02x "$i")\\0\\0\\0\\0\\0\\0\\0"
done >>"$work/binary"
expect 200 '"binary_data_size":' "$url/v2/models/words/infer" -D "$work/headers" -H "Inference-Header-Content-Length: $length" \
  -H 'Content-Type: application/octet-stream' --data-binary "@$work/binary"
grep -qi '^inference-header-content-length: ' "$work/headers" || fail "the binary answer has no Inference-Header-Content-Length"
json_length=$(tr -d '\r' <"$work/headers" | sed -n 's/^inference-header-content-length: //Ip')
tensor_bytes=$(head -c "$json_length" "$work/answer" | sed -n 's/.*"binary_data_size":\([0-9]*\).*/\1/p')
[ "$(wc -c <"$work/answer")" -eq $((json_length + tensor_bytes)) ] || fail "the binary answer does not add up"

expect 404 'no route for' "$url/v3"
expect 405 'allowed: POST' "$url/v2/models/words/infer"
expect 404 'nothing' "$url/v2/models/nothing/infer" --data-binary "@$work/json"
expect 400 'not JSON' "$url/v2/models/words/infer" --data-binary '{'
expect 400 'Inference-Header-Content-Length is' "$url/v2/models/words/infer" -H 'Inference-Header-Content-Length: 99999999' --data-binary "@$work/json"
head -c $((length + 100)) "$work/binary" >"$work/truncated"
expect 400 'are left in the body' "$url/v2/models/words/infer" -H "Inference-Header-Content-Length: $length" --data-binary "@$work/truncated"
head -c 70000000 /dev/zero >"$work/large"
expect 413 'larger than' "$url/v2/models/words/infer" --data-binary "@$work/large"
expect 200 '"id":"c1"' "$url/v2/models/words/infer" --data-binary "@$work/json"
echo ok
