#!/bin/sh
# Runs the fuzz targets that are named, or all, for a minute together; `make fuzz` calls it. Further
# arguments go to libFuzzer. What it finds and what breaks a target go into the cache.
#
#     fuzz/run.sh [TARGET] [-OPTION=…]
set -eu

cd "$(dirname "$0")/.."
version=0.13.2
cache=${XDG_CACHE_HOME:-$HOME/.cache}/spreadly/fuzz
build=${CARGO_TARGET_DIR:-$cache}/fuzz
all="event_line cursor negotiation cached_state document_cost session"
minute=60

targets=$all
case ${1:-} in
'' | -*) ;;
*)
    targets=$1
    shift
    ;;
esac
set -- -max_total_time=$((minute / $(echo "$targets" | wc -w))) "$@"

PATH=$cache/bin:$PATH
have() { [ "$(cargo-fuzz --version 2>/dev/null)" = "cargo-fuzz $version" ]; }
have || cargo install cargo-fuzz --locked --version "=$version" --root "$cache"

# C libraries are built without them: librdkafka tries whether it can link zstd, and does not know
# the runtime that the sanitizers need.
export CFLAGS="${CFLAGS:-} -fno-sanitize=all"
# The sanitizers are options of a nightly compiler. A stable one takes them if it is asked so.
for target in $targets; do
    RUSTC_BOOTSTRAP=1 cargo fuzz build "$target" --target-dir "$build"
done
for target in $targets; do
    mkdir -p "$cache/corpus/$target" "$cache/artifacts/$target"
    echo "$target:"
    # An input that takes longer or more memory is a fault: the hub must refuse it before.
    "$build"/*/release/"$target" -timeout=5 -rss_limit_mb=1024 -malloc_limit_mb=256 \
        -print_final_stats=1 -artifact_prefix="$cache/artifacts/$target/" "$@" \
        "$cache/corpus/$target" "fuzz/seeds/$target"
done
