"""Processes that each run a share of numbered cases and say a row of JSON for each.

One that dies or takes too long loses the case it was at, and another goes on behind it.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

Row = dict[str, Any]


class _Worker:
    """A process that runs the cases of the given numbers, in order."""

    def __init__(self, numbers: Sequence[int], command: Sequence[str], seconds: float) -> None:
        self.waiting, self.command, self.seconds = list(numbers), list(command), seconds
        self.process: subprocess.Popen[bytes] | None = None
        self.since = 0.0
        self.rest = b""
        self.start()

    def start(self) -> None:
        if not self.waiting:
            return
        command = [sys.executable, "-m", *self.command, "--worker", ",".join(map(str, self.waiting))]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.since = time.monotonic()

    def lost(self, why: str) -> Row:
        """The case that it was at; another process goes on behind it."""
        number = self.waiting.pop(0)
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
        self.rest = b""
        self.start()
        return {"number": number, "lost": why}

    def rows(self) -> Iterator[Row]:
        """What it has said since."""
        if self.process is None or self.process.stdout is None:
            return
        handle = self.process.stdout.fileno()
        while select.select([handle], [], [], 0)[0]:
            content = os.read(handle, 1 << 16)
            if not content:
                code = self.process.wait()
                self.process = None
                if self.waiting:
                    yield self.lost(f"the process ended with {code}")
                return
            *lines, self.rest = (self.rest + content).split(b"\n")
            for line in lines:
                row = json.loads(line)
                self.since = time.monotonic()
                if row["number"] in self.waiting:
                    self.waiting.remove(row["number"])
                    yield row
        if time.monotonic() - self.since > self.seconds:
            yield self.lost(f"no end after {self.seconds:.0f} s")


def rows_of(command: Sequence[str], count: int, jobs: int, seconds: float, tell: bool = True) -> Iterator[Row]:
    """The rows of the cases 0 … ``count`` - 1 as they come, from ``jobs`` processes ``python -m command… --worker 0,2,4``, which print a row with its
    ``number`` for each. A case that took a process with it, or more than ``seconds``, has a row with ``lost`` instead: why."""
    workers = [_Worker(range(n, count, jobs), command, seconds) for n in range(jobs)]
    done = 0
    while any(w.process is not None for w in workers):
        for w in workers:
            for row in w.rows():
                done += 1
                if tell and sys.stderr.isatty():
                    print(f"\r{done} of {count}", end="", file=sys.stderr)
                yield row
        time.sleep(0.02)
