#!/bin/bash
# CPU time that an idle sluice takes and how often it wakes: the command and all processes below it, over 30 s, after one
# request. Where the kernel accounts CPU time by ticks, wakes are the figure to trust.
#
# usage: measure.sh <sluice binary> server|serve <arguments of the command>
#   bench/idle/measure.sh build/release/sluice server --model-path M --dp-size 4
set -euo pipefail
source "$(dirname "$0")/../lib/running.sh"
start_and_ask "$@"

# Nanoseconds on a core, of every thread.
cpu_time() {
  for process in $(tree "$server"); do cat /proc/"$process"/task/*/schedstat; done | awk '{sum += $1} END {printf "%d", sum}'
}
wakes() {
  for process in $(tree "$server"); do cat /proc/"$process"/task/*/status; done |
    awk '/^voluntary_ctxt_switches/ {sum += $2} END {print sum}'
}
sleep 2
before=$(cpu_time) wakes_before=$(wakes)
sleep 30
after=$(cpu_time) wakes_after=$(wakes)
awk -v ns=$((after - before)) -v n="$(tree "$server" | wc -l)" -v wakes=$((wakes_after - wakes_before)) \
    'BEGIN {printf "%d processes: %.1f ms of CPU time in 30 s (%.3f %% of a core), %.1f wakes per second\n",
                   n, ns / 1e6, ns / 30e9 * 100, wakes / 30}'
