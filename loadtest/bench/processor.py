"""Processor time of the processes that a bench starts."""

import os
import pathlib

TICKS = os.sysconf("SC_CLK_TCK")


def seconds(process, ended=False):
    """What it took so far; with `ended`, also what its children took that it has reaped. None of one that is gone."""
    try:
        # The name before it may hold anything.
        fields = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0
    # utime, stime, cutime, cstime.
    return sum(map(int, fields[11 : 15 if ended else 13])) / TICKS
