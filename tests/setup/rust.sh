#!/bin/sh
# Whether this machine can build: a cargo that is as new as Cargo.toml's rust-version, with rustfmt
# and clippy, and what SQLite, mimalloc and librdkafka are compiled with. Installs or says the exact
# line to type.
set -eu

cd "$(dirname "$0")/../.."
want=$(sed -n 's/^rust-version = "1\.\([0-9]*\).*"/\1/p' Cargo.toml)
if ! command -v cargo >/dev/null; then
    echo "cargo is missing. Install Rust 1.$want or newer and run this again:" >&2
    echo "    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh" >&2
    exit 1
fi
have=$(cargo --version | sed 's/^cargo 1\.\([0-9]*\).*/\1/')
if [ "$have" -lt "$want" ]; then
    echo "cargo 1.$have is too old, this needs 1.$want. Type and run this again:" >&2
    echo "    rustup update stable" >&2
    exit 1
fi
if ! cargo fmt --version >/dev/null 2>&1 || ! cargo clippy --version >/dev/null 2>&1; then
    echo "rustfmt or clippy is missing. Type and run this again:" >&2
    echo "    rustup component add rustfmt clippy" >&2
    exit 1
fi
missing=
command -v cc >/dev/null || missing="$missing gcc libc6-dev"
command -v c++ >/dev/null || missing="$missing g++"
command -v make >/dev/null || missing="$missing make"
command -v pkg-config >/dev/null || missing="$missing pkg-config"
pkg-config --exists openssl 2>/dev/null || missing="$missing libssl-dev"
pkg-config --exists zlib 2>/dev/null || missing="$missing zlib1g-dev"
if [ -n "$missing" ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        # The list is words on purpose.
        # shellcheck disable=SC2086
        apt-get update && apt-get install -y --no-install-recommends $missing
    else
        echo "to build librdkafka this is missing:$missing. Type and run this again:" >&2
        echo "    sudo apt-get install -y$missing" >&2
        exit 1
    fi
fi
