#!/bin/sh
# mdBook, which `make docs` builds the documents with: pinned, in the cache outside the checkout.
# Compiled from crates.io, which takes some minutes once. Runs again in a moment.
set -eu

version=0.5.4
cache=${XDG_CACHE_HOME:-$HOME/.cache}/spreadly/mdbook
program=$cache/bin/mdbook

have() { [ "$("$program" --version 2>/dev/null)" = "mdbook v$version" ]; }

have && exit 0
# A target folder of its own, removed afterwards: nothing in it is of use to the hub's builds.
trap 'rm -rf "$cache/target"' EXIT
CARGO_TARGET_DIR=$cache/target cargo install mdbook --locked --version "=$version" \
    --no-default-features --root "$cache"
have || { echo "mdBook $version was installed, but $program does not run" >&2; exit 1; }
