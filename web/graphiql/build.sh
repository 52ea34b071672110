#!/bin/sh
# Brings GraphiQL into the cache, where build.rs finds it: from npm at locked versions, bundled by
# build.mjs. Without Node or npm's registry the hub still builds; its page then says what is
# missing. Runs again in a moment when nothing has changed.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/spreadly/graphiql
mkdir -p "$cache"

without() {
    echo "GraphiQL is left out: $1. The rest of the hub is the same." >&2
    exit 0
}

cd "$here"
sources="package.json package-lock.json .npmrc build.mjs page.jsx page.css page.html"
# The list is words on purpose.
# shellcheck disable=SC2086
want=$(cat $sources | cksum)
if [ "$(cat "$cache/stamp" 2>/dev/null)" = "$want" ]; then
    exit 0
fi
command -v npm >/dev/null || without "Node and npm are missing (Debian: apt-get install nodejs npm)"
major=$(node --version | sed 's/^v\([0-9]*\).*/\1/')
[ "$major" -ge 20 ] || without "node $major is too old, it wants 20 or newer"
# shellcheck disable=SC2086
cp $sources "$cache/"
cd "$cache"
npm ci --ignore-scripts --loglevel=error >&2 || without "npm can't fetch it"
node build.mjs dist
echo "$want" >stamp
# Cargo watches what a build has read; a folder that was not there it could not.
touch "$here/../../build.rs"
