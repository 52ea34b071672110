#!/bin/sh
# What `make test` needs beyond Rust: the stock clients of tests/clients and cargo-deny, pinned, in
# the cache outside the checkout. Installs what a machine lacks, or says the exact line to type.
# Runs again in a moment when nothing has changed.
set -eu

setup=$(cd "$(dirname "$0")" && pwd)
clients=$setup/../clients
cache=${XDG_CACHE_HOME:-$HOME/.cache}/spreadly
mkdir -p "$cache"

missing=
command -v cc >/dev/null || missing="$missing gcc libc6-dev"
command -v node >/dev/null || missing="$missing nodejs"
command -v npm >/dev/null || missing="$missing npm"
command -v openssl >/dev/null || missing="$missing openssl"
command -v chromium >/dev/null || missing="$missing chromium"
# On Debian `python3 -m venv` is there but fails without its package.
python3 -c 'import venv, ensurepip' 2>/dev/null || missing="$missing python3 python3-venv"
if [ -n "$missing" ]; then
    # The list is words on purpose.
    # shellcheck disable=SC2086
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update && apt-get install -y --no-install-recommends $missing
    else
        echo "missing:$missing. Install and run this again:" >&2
        echo "    sudo apt-get install -y$missing" >&2
        exit 1
    fi
fi
major=$(node --version | sed 's/^v\([0-9]*\).*/\1/')
if [ "$major" -lt 20 ]; then
    echo "node $major is too old: the stock clients want 20 or newer. Debian's is too old before 13;" >&2
    echo "get one from https://nodejs.org and put it first in PATH." >&2
    exit 1
fi

# A stamp is what was installed, so a changed pin installs again and nothing else does.
stamp() { cat "$@" | cksum; }

want=$(stamp "$clients/package-lock.json")
if [ "$(cat "$cache/clients/stamp" 2>/dev/null)" != "$want" ]; then
    mkdir -p "$cache/clients"
    cp "$clients/package.json" "$clients/package-lock.json" "$clients/.npmrc" "$cache/clients/"
    (cd "$cache/clients" && npm ci --loglevel=error)
    echo "$want" >"$cache/clients/stamp"
fi

want=$(stamp "$setup/requirements.txt")
if [ "$(cat "$cache/python/stamp" 2>/dev/null)" != "$want" ]; then
    rm -rf "$cache/python"
    python3 -m venv "$cache/python"
    "$cache/python/bin/pip" install --quiet -r "$setup/requirements.txt"
    echo "$want" >"$cache/python/stamp"
fi
