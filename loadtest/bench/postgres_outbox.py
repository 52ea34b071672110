#!/usr/bin/env python3
"""What the outbox costs those who write into it: commits a second of 8 writers (pgbench, a row a
transaction), each between two runs of the same insert into a plain table; and the processor time of a
commit, which wanders far less, by who takes it and in units of what pgbench takes for one.

    postgres_outbox.py HUB [--rounds N] [--seconds S]

plain       a table with the same columns and nothing else: the limit
asleep      the outbox, nobody reads it and somebody sleeps: every transaction rings
no hub      the outbox, nobody reads it and nobody sleeps: no transaction rings
outbox      the outbox with a hub that numbers and reads its rows meanwhile
notify      the plain table with a trigger that notifies in each transaction, and a listener

Needs PostgreSQL's own programs (Debian: postgresql); starts a server of its own and stops it.
"""

import argparse
import collections
import glob
import json
import os
import pathlib
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import processor
from ports import free_port

WRITERS = 8
PAYLOAD = json.dumps({"kind": "message", "topic": "bench", "data": "x" * 200})


def binary(name):
    found = sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"))
    return (
        found[-1]
        if found
        else shutil.which(name) or sys.exit(f"{name} is missing: install postgresql")
    )


def as_its_user(*words):
    # It refuses to run as root.
    return ["runuser", "-u", "postgres", "--", *words] if os.getuid() == 0 else list(words)


class Server:
    def __init__(self, folder):
        self.folder, self.port = folder, free_port()
        if os.getuid() == 0:
            shutil.chown(folder, "postgres")
        quiet = {"check": True, "stdout": subprocess.DEVNULL, "cwd": "/"}
        subprocess.run(
            as_its_user(binary("initdb"), "-D", f"{folder}/data", "-A", "trust", "-U", "spreadly"),
            **quiet,
        )
        options = f"-p {self.port} -k {folder} -c listen_addresses=127.0.0.1"
        subprocess.run(
            as_its_user(
                binary("pg_ctl"),
                "-D",
                f"{folder}/data",
                "-w",
                "-o",
                options,
                "-l",
                f"{folder}/log",
                "start",
            ),
            **quiet,
        )
        self.url = f"postgres://spreadly@127.0.0.1:{self.port}/postgres"

    def sql(self, text):
        done = subprocess.run(
            [binary("psql"), "-qAtX", "-v", "ON_ERROR_STOP=1", self.url, "-c", text],
            check=True,
            text=True,
            capture_output=True,
        )
        return done.stdout.strip()

    def session(self, text):
        """A connection that did this and stays."""
        held = subprocess.Popen(
            [binary("psql"), "-qAtX", self.url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        held.stdin.write(text + "; SELECT 'there';\n")
        held.stdin.flush()
        while held.stdout.readline().strip() != "there":
            pass
        return held

    def rate(self, statement, seconds):
        script = pathlib.Path(self.folder) / "script.sql"
        script.write_text(statement + ";\n")
        script.chmod(0o644)
        done = subprocess.run(
            [
                binary("pgbench"),
                "-n",
                "-M",
                "prepared",
                "-c",
                str(WRITERS),
                "-j",
                "2",
                "-T",
                str(seconds),
                "-f",
                str(script),
                self.url,
            ],
            check=True,
            text=True,
            capture_output=True,
        )
        line = next(line for line in done.stdout.splitlines() if line.startswith("tps"))
        return float(line.split()[2])

    def processor(self):
        """Seconds taken by the server: its backends that ended count as its own."""
        postmaster = int(
            pathlib.Path(self.folder, "data/postmaster.pid").read_text().splitlines()[0]
        )
        children = subprocess.run(
            ["pgrep", "-P", str(postmaster)], text=True, capture_output=True
        ).stdout.split()
        return processor.seconds(postmaster, ended=True) + sum(map(processor.seconds, children))

    def stop(self):
        subprocess.run(
            as_its_user(binary("pg_ctl"), "-D", f"{self.folder}/data", "-m", "immediate", "stop"),
            stdout=subprocess.DEVNULL,
            cwd="/",
        )


class Hub:
    def __init__(self, program, url):
        self.folder = tempfile.TemporaryDirectory()
        words = [
            program,
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--admin-listen",
            "127.0.0.1:0",
            "--set",
            f"feeds.postgres.url={url}",
        ]
        self.process = subprocess.Popen(
            words,
            cwd=self.folder.name,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.admin = json.loads(self.process.stdout.readline())["admin"]

    def processor(self):
        return processor.seconds(self.process.pid)

    def read(self):
        """Events in its log."""
        host, port = self.admin.split(":")
        with socket.create_connection((host, int(port))) as page:
            page.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            text = b"".join(iter(lambda: page.recv(65536), b"")).decode()
        line = next(
            line
            for line in text.splitlines()
            if line.startswith('spreadly_feed_events_total{feed="postgres"}')
        )
        return int(line.split()[-1])

    def stop(self):
        self.process.terminate()
        self.process.wait()
        self.folder.cleanup()


def main():
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("hub")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--seconds", type=int, default=5)
    options = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        server = Server(folder)
        try:
            measure(server, options)
        finally:
            server.stop()


def measure(server, options):
    # Makes the tables, and has to be gone where nobody is to read them.
    hub = Hub(os.path.abspath(options.hub), server.url)
    deadline = time.time() + 10
    while (
        server.sql("SELECT to_regprocedure('spreadly_take(integer, bigint, boolean)') IS NOT NULL")
        != "t"
        and time.time() < deadline
    ):
        time.sleep(0.05)
    hub.stop()
    columns = "(id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, payload json NOT NULL, inserted_at timestamptz NOT NULL DEFAULT clock_timestamp())"
    server.sql(f"""CREATE TABLE plain {columns}; CREATE TABLE notifying {columns};
        CREATE FUNCTION ring() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_notify('bell', ''); RETURN NULL; END $$;
        CREATE TRIGGER ring AFTER INSERT ON notifying FOR EACH STATEMENT EXECUTE FUNCTION ring()""")
    insert = lambda table: f"INSERT INTO {table} (payload) VALUES ('{PAYLOAD}')"
    # The machine's speed drifts: each is compared with the limit just before and just after it.
    rates, ratios, costs = (collections.defaultdict(list) for _ in range(3))
    fan_in = []

    def run(name, table, hub=None):
        pgbench = lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
        taken = lambda: (pgbench(), server.processor(), hub.processor() if hub else 0)
        before = taken()
        rates[name].append(server.rate(insert(table), options.seconds))
        unit, *others = (now - then for now, then in zip(taken(), before))
        costs[name].append([seconds / unit for seconds in others])

    def compare(name, table, hub=None):
        run(name, table, hub)
        if hub:
            committed = int(server.sql("SELECT count(*) FROM events"))
            fan_in.append(hub.read() / committed)
            hub.stop()
        run("plain", "plain")
        ratios[name].append(2 * rates[name][-1] / sum(rates["plain"][-2:]))

    run("plain", "plain")
    for _ in range(options.rounds):
        compare("no hub", "events")
        sleeper = server.session("SELECT pg_advisory_lock(1936749172, 1); LISTEN spreadly_events")
        compare("asleep", "events")
        sleeper.kill()
        sleeper.wait()
        server.sql("TRUNCATE events, spreadly_runs")
        hub = Hub(os.path.abspath(options.hub), server.url)
        time.sleep(0.5)
        compare("outbox", "events", hub)
        server.sql("TRUNCATE events, spreadly_runs")
        listener = server.session("LISTEN bell")
        compare("notify", "notifying")
        listener.kill()
        listener.wait()
    costs = {name: [statistics.median(part) for part in zip(*costs[name])] for name in costs}
    total = lambda name: 1 + sum(costs[name])
    print(
        f"{'':10} {'commits/s':>10} {'of plain':>9}   from {'to':>5} {'server':>8} {'hub':>6} {'plain / all':>12}"
    )
    for name in ["plain", *ratios]:
        of_plain = ratios.get(name, [1])
        server, hub = costs[name]
        print(
            f"{name:10} {statistics.median(rates[name]):10.0f} {statistics.median(of_plain):9.3f}"
            f"   {min(of_plain):.2f} {max(of_plain):5.2f}"
            f" {server:8.2f} {hub:6.2f} {total('plain') / total(name):12.3f}"
        )
    print(f"in the hub's log when the writers ended: {min(fan_in):.1%} at least")


if __name__ == "__main__":
    main()
