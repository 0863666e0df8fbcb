#!/usr/bin/env bash
# fetch_xgrammar.sh FOLDER: puts the source of xgrammar there, from its PyPI source package, checked against its SHA-256.
# CMake calls it when it configures; quick when there is nothing to do.
set -euo pipefail

version=0.2.8
sha256=8305646fd2b319d6c3003f51a1665e54cbbe9cba1fb636bc41d0b46434ccbb80
folder=$1

[ -f "$folder/include/xgrammar/xgrammar.h" ] && exit
mkdir -p "$(dirname "$folder")"
download=$(mktemp -d "$(dirname "$folder")/xgrammar.XXXXXX")
trap 'rm -rf "$download"' EXIT
echo "xgrammar==$version --hash=sha256:$sha256" >"$download/requirements.txt"
python3 -m pip download --quiet --disable-pip-version-check --no-deps --no-binary xgrammar --require-hashes \
  --dest "$download" --requirement "$download/requirements.txt" >&2
tar -xzf "$download/xgrammar-$version.tar.gz" -C "$download"
# Whoever configures another build of this checkout at the same time may have been first.
mv -T "$download/xgrammar-$version" "$folder" 2>/dev/null || [ -f "$folder/include/xgrammar/xgrammar.h" ]
