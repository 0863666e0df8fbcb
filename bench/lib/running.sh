# Sourced by the measurements of a running sluice. `start_and_ask <sluice binary> server|serve <arguments>` starts it and
# returns once it has answered one request; $server is then its process, and `tree $server` prints it and all below it.

start_and_ask() {
  local binary=$1 command=$2
  shift 2
  folder=$(mktemp -d)
  "$binary" "$command" --port 0 "$@" >"$folder/out" 2>"$folder/err" &
  server=$!
  trap 'kill "$server" 2>/dev/null && wait "$server" || true; rm -rf "$folder"' EXIT

  local url='' body='{"text": "The capital of France is", "sampling_params": {"max_new_tokens": 8, "temperature": 0}}'
  for _ in $(seq 600); do
    url=$(sed -n 's/^listening on //p' "$folder/out")
    if [ -n "$url" ] && curl -sf -o "$folder/answer" -H 'Content-Type: application/json' -d "$body" "$url/generate"; then
      break
    fi
    kill -0 "$server" || { cat "$folder/err" >&2; exit 1; }
    sleep 0.5
  done
  [ -s "$folder/answer" ] || { echo "no answer from '$url' within 300 s" >&2; exit 1; }
}

tree() {
  echo "$1"
  for child in $(cat /proc/"$1"/task/*/children); do tree "$child"; done
}
