#!/usr/bin/env bash
# Cross compile the kernels for 64-bit ARM and check them under emulation: NEON gives the bits of the scalar variant.
#   neon.sh [calls [seed]]      ends with 77 and the reason where the tools are not installed
set -eu
cd "$(dirname "$0")"
build=../../../build/neon
for tool in aarch64-linux-gnu-g++ qemu-aarch64; do
    command -v "$tool" >/dev/null || { echo "skipped: no $tool (Debian: apt install g++-aarch64-linux-gnu qemu-user)"; exit 77; }
done
cmake -S . -B "$build" -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
    -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DCMAKE_BUILD_TYPE=Release >"$build.log" || { cat "$build.log"; exit 1; }
cmake --build "$build" --parallel 2
emulate=(qemu-aarch64 -L "${SYSROOT:-/usr/aarch64-linux-gnu}")
"${emulate[@]}" -cpu max "$build/driver" "${1:-150}" "${2:-1}" | tee "$build.log"
grep -q neon "$build.log"
# A processor without the dot product must not meet it.
"${emulate[@]}" -cpu cortex-a72 "$build/driver" 20 2 | tee "$build.log"
! grep -q neon "$build.log"
