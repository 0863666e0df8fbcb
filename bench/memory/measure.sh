#!/bin/bash
# Memory of a running sluice, process by process and in all: PSS counts a page that n processes map as 1/n in each, so the
# sum of PSS is what the whole takes; the sum of RSS counts shared pages once per process.
#
# usage: measure.sh <sluice binary> server|serve <arguments of the command>
#   bench/memory/measure.sh build/release/sluice server --model-path M --dp-size 4 --max-total-tokens 8192
# Prints one Markdown row per process and one for the sum, then the size of the shared weights: of these, pages that no
# process has touched are in no PSS. The server has answered one request then.
set -euo pipefail
source "$(dirname "$0")/../lib/running.sh"
start_and_ask "$@"

echo '| process | RSS MiB | PSS MiB | private MiB |'
echo '|---|---|---|---|'
for process in $(tree "$server"); do
  name=$(tr '\0' ' ' <"/proc/$process/cmdline" | awk '{print $1 == "" ? "?" : "sluice " $2}')
  awk -v name="$name" '/^Rss:/ {rss = $2} /^Pss:/ {pss = $2} /^Private_/ {own += $2}
                       END {printf "| %s | %.0f | %.0f | %.0f |\n", name, rss / 1024, pss / 1024, own / 1024}' \
      "/proc/$process/smaps_rollup"
done | tee "$folder/rows"
awk -F'|' '{rss += $3; pss += $4; own += $5}
           END {printf "| **all %d** | %d | **%d** | %d |\n", NR, rss, pss, own}' "$folder/rows"

# Blocks of 512 bytes that the memory file of the shared weights has; every process that holds it shows the same one.
for process in $(tree "$server"); do
  for file in /proc/"$process"/fd/*; do
    case $(readlink "$file") in
      "/memfd:sluice-weights"*) echo "shared weights: $(($(stat -L -c %b "$file") / 2048)) MiB"; exit ;;
    esac
  done
done
