#!/usr/bin/env bash
# Run the library as it ships on emulated x86-64 processors that stop at instructions they do not have: one with AVX2
# but no AVX-512, and one with neither.
#   older.sh [calls [seed]]      ends with 77 and the reason where the tools are not installed
set -eu
cd "$(dirname "$0")"
build=../../../build/check
[ "$(uname -m)" = x86_64 ] || { echo "skipped: this is $(uname -m)"; exit 77; }
command -v qemu-x86_64 >/dev/null || { echo "skipped: no qemu-x86_64 (Debian: apt install qemu-user)"; exit 77; }
cmake -S . -B "$build" -DCMAKE_BUILD_TYPE=Release >/dev/null
cmake --build "$build" --parallel 2 >"$build/log" || { cat "$build/log"; exit 1; }
for processor in Haswell Westmere; do
    # It warns of features that no user program can see.
    echo "$processor: $(qemu-x86_64 -cpu "$processor" "$build/driver" "${1:-60}" "${2:-1}" 2> >(grep -v "^qemu.*warning" >&2))"
done
