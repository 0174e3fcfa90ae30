#!/bin/sh
# check_no_torch.sh TIDEPOOL [WORKER]: the first binary links no libtorch. The second does, which shows that the pattern finds it.
set -eu
pattern='lib(torch|c10|caffe2)[^ ]*\.so'
libraries=$(ldd "$1")
if printf '%s\n' "$libraries" | grep -E "$pattern"; then
  echo "$1 links torch" >&2
  exit 1
fi
if [ "$#" -gt 1 ] && ! ldd "$2" | grep -qE "$pattern"; then
  echo "no libtorch was found in $2 either: the pattern is wrong" >&2
  exit 1
fi
echo "$(printf '%s\n' "$libraries" | wc -l) libraries, none of torch"
