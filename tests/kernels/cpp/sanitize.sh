#!/usr/bin/env bash
# Build the kernels and the program that checks them with sanitizers, and run it on every instruction set of this machine.
#   sanitize.sh [calls [seed]]      some two minutes on one core, less than one of it to compile again
set -eu
cd "$(dirname "$0")"
export ASAN_OPTIONS=detect_stack_use_after_return=1 UBSAN_OPTIONS=print_stacktrace=1
for kind in address,undefined thread; do
    build=../../../build/sanitize-${kind%,*}
    cmake -S . -B "$build" -DSANITIZE="$kind" >/dev/null
    cmake --build "$build" --parallel 2 >"$build/log" || { cat "$build/log"; exit 1; }
    # Threads are fewer cases: a race needs no rare shape, and is watched at some ten times the cost.
    calls=${1:-200}
    [ "$kind" = thread ] && calls=$((calls / 8))
    "$build/driver" "$calls" "${2:-1}"
done
