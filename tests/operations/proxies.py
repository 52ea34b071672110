#!/usr/bin/env python3
"""The files of docs/how-to/proxies.md, before a real hub:

    tests/operations/proxies.py path/to/spreadly

It needs openssl, nginx, haproxy and caddy (Debian: apt-get install nginx-light libnginx-mod-stream
haproxy caddy). For each proxy it checks the file by the proxy's own command. Then it sends a POST,
reads server-sent events and follows a WebSocket through it, and asks the hub which address it saw.
"""

import json
import os
import re
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs/how-to/proxies.md"
PATIENCE = 30


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def block(kind):
    return re.search(rf"```{kind}\n(.*?)```", PAGE.read_text(), re.S).group(1)


def until(what, there):
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            return there()
        except (OSError, ValueError, AssertionError) as fault:
            last = fault
            time.sleep(0.05)
    raise SystemExit(f"{what}: {last}")


class Run:
    def __init__(self, folder, spreadly):
        self.folder, self.spreadly = folder, spreadly
        self.public, self.admin, self.port = free_port(), free_port(), free_port()
        self.certificate, self.key = folder / "hub.pem", folder / "hub.key"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
             "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
             "subjectAltName=DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE",
             "-keyout", self.key, "-out", self.certificate],
            check=True, capture_output=True)
        self.both = folder / "both.pem"
        self.both.write_text(self.certificate.read_text() + self.key.read_text())
        self.url = f"https://localhost:{self.port}/graphql"
        self.tls = ssl.create_default_context(cafile=str(self.certificate))

    def local(self, text):
        """A file of the page with ports and certificates of this run."""
        for ours, mine in [
            ("127.0.0.1:4000", f"127.0.0.1:{self.public}"), ("port 4001", f"port {self.admin}"),
            ("health_port 4001", f"health_port {self.admin}"),
            ("listen 443 ssl", f"listen 127.0.0.1:{self.port} ssl"),
            ("bind :443", f"bind 127.0.0.1:{self.port}"),
            ("server_name hub.example", "server_name localhost"),
            ("crt /etc/ssl/hub.pem", f"crt {self.both}"),
            ("/etc/ssl/hub.pem", str(self.certificate)), ("/etc/ssl/hub.key", str(self.key)),
        ]:
            text = text.replace(ours, mine)
        return text

    def post(self, query, **headers):
        request = urllib.request.Request(
            self.url, json.dumps({"query": query}).encode(),
            {"content-type": "application/json", "accept": "application/json", **headers})
        with urllib.request.urlopen(request, context=self.tls, timeout=5) as answer:
            return answer.read()

    def check(self, name):
        until(name, lambda: json.loads(self.post("{ __typename }"))["data"])
        assert b"403" not in self.post("{ __typename }", origin=f"https://localhost:{self.port}")
        request = urllib.request.Request(
            self.url, json.dumps({"query": "subscription { feedStatus { name } }"}).encode(),
            {"content-type": "application/json", "accept": "text/event-stream"})
        with urllib.request.urlopen(request, context=self.tls, timeout=10) as events:
            lines = iter(events.readline, b"")
            event = next(line for line in lines if line.startswith(b"data:"))
            assert b"feedStatus" in event, event
        socket_url = self.url.replace("https", "wss")
        followed = subprocess.run(
            [self.spreadly, "subscribe", "--url", socket_url, "--count", "3",
             'subscription { orderBook(market: "ERG-USD", depth: 1) { __typename sequence } }'],
            env={**os.environ, "SSL_CERT_FILE": str(self.certificate)},
            capture_output=True, timeout=60, text=True)
        assert followed.returncode == 0, followed.stderr
        print(f"{name}: POST, server-sent events, and a WebSocket:")
        print(f"  {followed.stdout.splitlines()[0][:96]}…")

    def check_headers(self, name):
        """Each connection had a header that named a client."""
        page = urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/metrics").read().decode()
        counted = dict(re.findall(r'spreadly_proxy_headers_total{outcome="(.*)"} (.*)', page))
        clients = int(counted.pop("client"))
        assert clients >= 4 and set(counted.values()) == {"0"}, counted
        print(f"  {clients} connections, each with the header of the PROXY protocol")


def nginx(run):
    file = run.folder / "nginx.conf"
    logs = f"error_log {run.folder}/nginx.log; access_log off;"
    paths = "".join(f"{kind}_temp_path {run.folder}/{kind};" for kind in
                    ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"])
    file.write_text(f"daemon off; pid {run.folder}/nginx.pid; events {{}}\n"
                    f"http {{ {logs} {paths}\n{run.local(block('nginx'))} }}\n")
    return ["nginx", "-t", "-c", file], ["nginx", "-c", file]


def haproxy(run):
    file = run.folder / "haproxy.cfg"
    file.write_text(run.local(block("haproxy")))
    return ["haproxy", "-c", "-f", file], ["haproxy", "-db", "-f", file]


def haproxy_tcp(run):
    file = run.folder / "haproxy.cfg"
    file.write_text(run.local(block("haproxy-tcp")))
    return ["haproxy", "-c", "-f", file], ["haproxy", "-db", "-f", file]


def nginx_stream(run):
    file = run.folder / "nginx.conf"
    module = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
    load = f"load_module {module};\n" if module.exists() else ""
    file.write_text(f"{load}daemon off; pid {run.folder}/nginx.pid; events {{}}\n"
                    f"error_log {run.folder}/nginx.log;\n{run.local(block('nginx-stream'))}\n")
    return ["nginx", "-t", "-c", file], ["nginx", "-c", file]


def caddy(run):
    file = run.folder / "Caddyfile"
    text = run.local(block("caddy"))
    tls = f"localhost:{run.port} {{\n\ttls {run.certificate} {run.key}"
    file.write_text("{\n\tadmin off\n\tauto_https disable_redirects\n}\n"
                    + text.replace("hub.example {", tls))
    adapter = ["--config", file, "--adapter", "caddyfile"]
    return ["caddy", "validate", *adapter], ["caddy", "run", *adapter]


def main():
    spreadly = Path(sys.argv[1]).resolve()
    for proxy in [nginx, haproxy, caddy, haproxy_tcp, nginx_stream]:
        speaks_proxy = proxy in [haproxy_tcp, nginx_stream]
        with tempfile.TemporaryDirectory() as folder:
            run = Run(Path(folder), spreadly)
            check, command = proxy(run)
            environment = {**os.environ, "HOME": folder, "XDG_DATA_HOME": folder}
            checked = subprocess.run(check, env=environment, capture_output=True, text=True)
            assert checked.returncode == 0, checked.stderr
            hub = subprocess.Popen(
                [spreadly, "dev", "--listen", f"127.0.0.1:{run.public}", "--admin-listen",
                 f"127.0.0.1:{run.admin}", "--set", "server.trusted_proxies=127.0.0.1",
                 "--set", f"server.proxy_protocol={str(speaks_proxy).lower()}",
                 "--set", "server.drain_ms=0"],
                cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            ready = f"http://127.0.0.1:{run.admin}/readyz"
            # A proxy that asks for this before sends nobody for a second.
            until("a ready hub", lambda: urllib.request.urlopen(ready, timeout=5).close())
            with open(f"{folder}/log", "wb") as log:
                running = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            try:
                run.check(proxy.__name__)
                if speaks_proxy:
                    run.check_headers(proxy.__name__)
            except BaseException:
                print(Path(folder, "log").read_text()[-2000:], file=sys.stderr)
                raise
            finally:
                for process in [running, hub]:
                    process.terminate()
                    process.wait()


if __name__ == "__main__":
    main()
