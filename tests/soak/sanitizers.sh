#!/usr/bin/env bash
# Builds everything with the sanitizers and runs all tests with them: AddressSanitizer and UndefinedBehaviorSanitizer, then
# ThreadSanitizer (suppressions, with their reasons: tests/tsan.supp), each followed by a soak of the gateway. Takes hours on
# two cores. What is of the sources and not of the build (label check) is left out, as is what needs the real model.
#
# usage: sanitizers.sh [asan] [tsan] [-- arguments of ctest]
set -euo pipefail
cd "$(dirname "$0")/../.."
kinds=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do kinds+=("$1"); shift; done
[ $# -gt 0 ] && shift
[ ${#kinds[@]} -gt 0 ] || kinds=(asan tsan)

export ASAN_OPTIONS=detect_stack_use_after_return=1:strict_string_checks=1${ASAN_OPTIONS:+:$ASAN_OPTIONS}
export UBSAN_OPTIONS=print_stacktrace=1${UBSAN_OPTIONS:+:$UBSAN_OPTIONS}
failed=()
for kind in "${kinds[@]}"; do
  cmake --preset "$kind"
  cmake --build --preset "$kind"
  ctest --preset "$kind" --label-exclude 'check|e2e' --no-tests=error "$@" || failed+=("$kind: ctest")
  TSAN_OPTIONS="suppressions=$PWD/tests/tsan.supp" \
    tests/soak/soak_test.py "build/$kind/sluice" --requests 20000 || failed+=("$kind: soak_test.py")
done
[ ${#failed[@]} -eq 0 ] || { printf 'failed: %s\n' "${failed[@]}"; exit 1; }
