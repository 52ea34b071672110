#!/bin/sh
# What counts instructions: Valgrind, and the runner of the same version as the crate gungraun in
# Cargo.toml. Installs it into the cache, or says the exact line to type. Runs again in a moment.
set -eu

cd "$(dirname "$0")/../.."
version=$(sed -n 's/^gungraun = "=\(.*\)"/\1/p' Cargo.toml)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/spreadly/gungraun
program=$cache/bin/gungraun-runner

missing=
command -v valgrind >/dev/null || missing="$missing valgrind"
if [ -n "$missing" ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update && apt-get install -y --no-install-recommends valgrind
    else
        echo "missing:$missing. Install and run this again:" >&2
        echo "    sudo apt-get install -y$missing" >&2
        exit 1
    fi
fi

have() { [ "$(cat "$cache/version" 2>/dev/null)" = "$version" ] && [ -x "$program" ]; }

have && exit 0
# A target folder of its own, removed afterwards: nothing in it is of use to the hub's builds.
trap 'rm -rf "$cache/target"' EXIT
CARGO_TARGET_DIR=$cache/target cargo install gungraun-runner --locked --version "=$version" \
    --root "$cache"
echo "$version" >"$cache/version"
