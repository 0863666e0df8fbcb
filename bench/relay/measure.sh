#!/bin/bash
# CPU time per proxied request of each relay in front of the same backend: 600-byte POSTs on kept-alive connections.
# usage: measure.sh <folder with the built relays> [seconds] [connections] [relay...]
# The relays are built by hand: c++ -std=c++20 -O3 -march=x86-64-v2 bench/relay/<name>.cc -o <folder>/<name>; haproxy and wrk
# are Debian packages.
set -euo pipefail
bin=$1
seconds=${2:-5}
connections=${3:-32}
shift $(($# < 3 ? $# : 3))
relays=("$@")
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
pids=()
trap 'kill "${pids[@]}" 2>/dev/null; rm -rf "$work"' EXIT

base=$((20000 + RANDOM % 20000))
taskset -c 1 "$bin/epoll_relay" backend $base & pids+=($!)
cat > "$work/haproxy.cfg" <<CFG
global
  nbthread 1
  maxconn 4000
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  option http-keep-alive
  http-reuse always
frontend f
  bind 127.0.0.1:$((base + 1))
  default_backend b
backend b
  server s 127.0.0.1:$base
CFG

ticks=$(getconf CLK_TCK)
measure() {
  local name=$1 port=$2
  shift 2
  taskset -c 0 "$@" >"$work/$name.log" 2>&1 &
  local pid=$!
  pids+=($pid)
  for _ in $(seq 50); do curl -s -o /dev/null -d '{}' "http://127.0.0.1:$port/" && break; sleep 0.1; done
  taskset -c 1 wrk -t1 -c"$connections" -d1s -s "$here/post.lua" "http://127.0.0.1:$port" >/dev/null
  local user0 sys0 user1 sys1 before after
  read -r user0 sys0 < <(awk '{print $14, $15}' "/proc/$pid/stat")
  before=$(cat /proc/$pid/task/*/schedstat | awk '{s += $1} END {printf "%.0f", s}')
  taskset -c 1 wrk -t1 -c"$connections" -d"${seconds}s" -s "$here/post.lua" "http://127.0.0.1:$port" >"$work/wrk"
  after=$(cat /proc/$pid/task/*/schedstat | awk '{s += $1} END {printf "%.0f", s}')
  read -r user1 sys1 < <(awk '{print $14, $15}' "/proc/$pid/stat")
  local requests
  requests=$(awk '/requests in/ {print $1}' "$work/wrk")
  grep -E 'Non-2xx|Socket errors' "$work/wrk" || true
  awk -v name="$name" -v n="$requests" -v ns=$((after - before)) -v u=$((user1 - user0)) -v s=$((sys1 - sys0)) \
    -v hz="$ticks" 'BEGIN {printf "%-8s %8d requests  %6.2f us CPU each  (user %5.2f, system %5.2f)\n", name, n, ns / n / 1000,
                           u / hz / n * 1e6, s / hz / n * 1e6}'
  kill $pid
  wait $pid 2>/dev/null || true
}

[ ${#relays[@]} -gt 0 ] || relays=(epoll haproxy beast)
for relay in "${relays[@]}"; do
  case $relay in
    haproxy) measure haproxy $((base + 1)) haproxy -db -f "$work/haproxy.cfg" ;;
    epoll) measure epoll $((base + 2)) "$bin/epoll_relay" relay $((base + 2)) $base ;;
    beast) measure beast $((base + 3)) "$bin/beast_relay" $((base + 3)) $base ;;
    sluice)  # the whole gateway; SLUICE names the binary, POLICY the policy
      measure sluice $((base + 4)) "$SLUICE" gateway --host 127.0.0.1 --port $((base + 4)) --prometheus-host 127.0.0.1 \
        --prometheus-port $((base + 5)) --policy "${POLICY:-round_robin}" --log-level error \
        --worker-urls "http://127.0.0.1:$base" ;;
  esac
done
