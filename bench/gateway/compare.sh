#!/usr/bin/env bash
# CPU time that a gateway takes for a request, of `sluice gateway` and of sglang-router in turn: the same canned workers, the
# same load, the gateway alone on core 0 and everything else on core 1. Prints one line per run, then a table of medians.
#
# usage: compare.sh <sluice binary> <sglang-router command, or none> [repeats] [seconds per run]
# Needs wrk, and python3 for the medians.
set -euo pipefail
sluice=$1 router=$2 repeats=${3:-5} seconds=${4:-5}
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
pids=()
trap 'kill "${pids[@]}" 2>/dev/null; wait 2>/dev/null; rm -rf "$work"' EXIT

start_worker() {  # name, flags...: its URL in the file of that name
  local name=$1
  shift
  taskset -c 1 "$sluice" bench worker --canned "$@" >"$work/$name.out" 2>/dev/null &
  pids+=($!)
  for _ in $(seq 100); do grep -q 'listening on' "$work/$name.out" && break; sleep 0.1; done
  sed -n 's/.*listening on \(http:[^ ]*\).*/\1/p' "$work/$name.out" >"$work/$name.url"
}
start_worker whole1
start_worker whole2
start_worker stream1 --canned-chunks 100 --canned-interval-ms 2
start_worker stream2 --canned-chunks 100 --canned-interval-ms 2

# Nanoseconds that all threads of a process have run, in user and system mode.
cpu_ns() { cat /proc/"$1"/task/*/schedstat | awk '{s += $1} END {printf "%.0f", s}'; }

port=$((20000 + RANDOM % 20000))

measure() {  # gateway, load, policy
  local gateway=$1 load=$2 policy=$3 connections=32
  local urls=("$(cat "$work/${load}1.url")" "$(cat "$work/${load}2.url")")
  port=$((port + 2))
  local flags=(--host 127.0.0.1 --port $port --prometheus-host 127.0.0.1 --prometheus-port $((port + 1)) --policy "$policy"
               --log-level warn --worker-startup-check-interval 1 --worker-urls "${urls[@]}")
  if [ "$gateway" = sluice ]; then
    taskset -c 0 "$sluice" gateway "${flags[@]}" >"$work/gateway.log" 2>&1 &
  else
    taskset -c 0 $router launch "${flags[@]}" >"$work/gateway.log" 2>&1 &
  fi
  local pid=$!
  pids+=($pid)
  for _ in $(seq 300); do
    curl -sf -o /dev/null "http://127.0.0.1:$port/readiness" && break
    sleep 0.1
  done
  local argument=()
  [ "$load" = stream ] && argument=(-- stream)
  taskset -c 1 wrk -t1 -c$connections -d1s -s "$here/load.lua" "http://127.0.0.1:$port" "${argument[@]}" >/dev/null
  local before after requests
  before=$(cpu_ns $pid)
  taskset -c 1 wrk -t1 -c$connections -d"${seconds}s" -s "$here/load.lua" "http://127.0.0.1:$port" "${argument[@]}" >"$work/wrk"
  after=$(cpu_ns $pid)
  requests=$(awk '/requests in/ {print $1}' "$work/wrk")
  grep -E 'Non-2xx|Socket errors' "$work/wrk" || true
  awk -v g="$gateway" -v l="$load" -v p="$policy" -v n="$requests" -v t=$((after - before)) \
    'BEGIN {printf "%s %s %s %d %.2f\n", g, l, p, n, t / n / 1000}' | tee -a "$work/runs"
  kill $pid
  wait $pid 2>/dev/null || true
}

gateways=(sluice)
[ "$router" = none ] || gateways+=(sglang-router)
echo "gateway load policy requests us-CPU-per-request"
for load in whole stream; do
  for policy in round_robin cache_aware; do
    for _ in $(seq "$repeats"); do
      for gateway in "${gateways[@]}"; do measure "$gateway" $load $policy; done
    done
  done
done

python3 - "$work/runs" <<'PY'
import statistics, sys
runs = {}
for line in open(sys.argv[1]):
    gateway, load, policy, _, cost = line.split()
    runs.setdefault((load, policy), {}).setdefault(gateway, []).append(float(cost))
print("\n| load | policy | gateway | median, us CPU per request | least to most |\n|---|---|---|---|---|")
for (load, policy), by_gateway in runs.items():
    for gateway, costs in by_gateway.items():
        print(f"| {load} | {policy} | {gateway} | {statistics.median(costs):.0f} | {min(costs):.0f} to {max(costs):.0f} |")
PY
