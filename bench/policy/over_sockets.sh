#!/usr/bin/env bash
# One policy in the simulator and over sockets. For each seed, 1 to 3: starts four workers of `sluice bench worker
# --cache-simulation` and a gateway in front of them on free ports, sends them the workload of `sluice bench policy` and prints
# both with the difference in per cent. All start anew each time, because a gateway keeps what it has learnt of its workers.
#
# usage: over_sockets.sh <sluice binary> <policy> [arguments of sluice bench policy; after -- flags of the gateway]
# SEEDS="1 2" runs other seeds. SLOWER=10 makes everything take ten times as long, --request-rate and --duration-secs apart: what the sockets and the
# machine add is then a tenth.
set -euo pipefail
sluice=$1 policy=$2
shift 2
slower=${SLOWER:-1}
arguments=() flags=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do arguments+=("$1"); shift; done
[ $# -gt 0 ] && shift
flags=("$@")
times() { awk -v x="$1" -v by="$slower" 'BEGIN {print x * by}'; }
prefill=$(times 1) token=$(times 20) decode=$(times 100)

work=$(mktemp -d)
pids=()
trap 'kill "${pids[@]}" 2>/dev/null; wait 2>/dev/null; rm -rf "$work"' EXIT
started() {  # waits for the one line that says where it listens, and prints the URL
  local url=''
  for _ in $(seq 200); do
    url=$(sed -n 's/^listening on //p' "$work/$1")
    [ -n "$url" ] && { echo "$url"; return; }
    sleep 0.05
  done
  echo "$1 did not listen within 10 s: $(cat "$work/$1.log")" >&2
  return 1
}

run() {  # seed
  local urls=() gateway
  for i in 1 2 3 4; do
    "$sluice" bench worker --cache-simulation --cache-prefill-base-ms "$prefill" --cache-prefill-us-per-token "$token" \
      --cache-decode-ms "$decode" --log-level error >"$work/worker$i" 2>"$work/worker$i.log" &
    pids+=($!)
    urls+=("$(started worker$i)")
  done
  "$sluice" gateway --host 127.0.0.1 --port 0 --prometheus-host 127.0.0.1 --prometheus-port 0 --log-level warn \
    --policy "$policy" --worker-urls "${urls[@]}" "${flags[@]}" >"$work/gateway" 2>"$work/gateway.log" &
  pids+=($!)
  gateway=$(started gateway)
  for _ in $(seq 100); do
    [ "$(curl -sf "$gateway/workers" | python3 -c \
        'import json, sys; print(sum(w["is_healthy"] for w in json.load(sys.stdin)["workers"]))')" = 4 ] && break
    sleep 0.1
  done
  "$sluice" bench policy --url "$gateway" --policies "$policy" --seeds 1 --first-seed "$1" --prefill-base-ms "$prefill" \
    --prefill-us-per-token "$token" --decode-ms "$decode" "${arguments[@]}" -- "${flags[@]}"
  kill "${pids[@]}"
  wait "${pids[@]}" || true
  pids=()
}

for seed in ${SEEDS:-1 2 3}; do
  echo "seed $seed"
  run $seed
done
