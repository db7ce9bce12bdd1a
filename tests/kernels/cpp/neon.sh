#!/usr/bin/env bash
# Cross compile the kernels for 64-bit ARM and check them under emulation, on a processor with the dot product and on one
# that must not meet it: NEON gives the bits of the scalar variant.
#   neon.sh [calls [seed]]      ends with 77 and the reason where the tools are not installed
set -eu
cd "$(dirname "$0")"
build=../../../build/neon
for tool in aarch64-linux-gnu-g++ qemu-aarch64; do
    command -v "$tool" >/dev/null || { echo "skipped: no $tool (Debian: apt install g++-aarch64-linux-gnu qemu-user)"; exit 77; }
done
cmake -S . -B "$build" -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
    -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DCMAKE_BUILD_TYPE=Release >/dev/null
cmake --build "$build" --parallel 2 >"$build/log" || { cat "$build/log"; exit 1; }
for processor in max cortex-a72; do
    echo "$processor: $(qemu-aarch64 -L "${SYSROOT:-/usr/aarch64-linux-gnu}" -cpu "$processor" "$build/driver" "${1:-100}" "${2:-1}")"
done
