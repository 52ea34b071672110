#!/bin/sh
# The real servers that the tests start for themselves: installs what a machine lacks, or says the
# exact line to type. Starts nothing: each test starts its own on a port and in a folder of its own.
set -eu

setup=$(cd "$(dirname "$0")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/spreadly

postgres=
for program in /usr/lib/postgresql/*/bin/initdb; do
    [ -x "$program" ] && postgres=yes
done
command -v initdb >/dev/null && postgres=yes
missing=
[ -n "$postgres" ] || missing="$missing postgresql"
command -v java >/dev/null || missing="$missing default-jre-headless"
command -v mvn >/dev/null || missing="$missing maven"
command -v redis-server >/dev/null || missing="$missing redis-server"
[ -x /usr/sbin/nginx ] || missing="$missing nginx-light"
# Of Debian, where nginx has its stream module apart.
[ ! -f /etc/debian_version ] || [ -f /usr/lib/nginx/modules/ngx_stream_module.so ] ||
    missing="$missing libnginx-mod-stream"
[ -x /usr/sbin/haproxy ] || missing="$missing haproxy"
[ -x /usr/sbin/pgbouncer ] || missing="$missing pgbouncer"
if [ -n "$missing" ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get update
        if [ -z "$postgres" ]; then
            apt-get install -y --no-install-recommends postgresql-common
            # The package would start a server of its own.
            sed -i 's/^#* *create_main_cluster.*/create_main_cluster = false/' \
                /etc/postgresql-common/createcluster.conf
        fi
        # The list is words on purpose.
        # shellcheck disable=SC2086
        apt-get install -y --no-install-recommends $missing
    else
        echo "missing:$missing. Install and run this again:" >&2
        echo "    sudo apt-get install -y$missing" >&2
        exit 1
    fi
fi

# A stamp is what was installed, so a changed pin installs again and nothing else does.
want=$(cksum <"$setup/kafka/pom.xml")
if [ "$(cat "$cache/kafka/stamp" 2>/dev/null)" != "$want" ]; then
    rm -rf "$cache/kafka"
    mkdir -p "$cache/kafka"
    mvn -q -B -f "$setup/kafka/pom.xml" dependency:copy-dependencies \
        -DoutputDirectory="$cache/kafka/libs" -DincludeScope=runtime
    echo "$want" >"$cache/kafka/stamp"
fi
