"""One contestant, in a process of its own: it reads the tokens that it is told to, and says how long that took.

    python -m trustformers_ir.tools.bench.generation.reader NAME LIBRARIES MODEL THREADS

A line ``P N`` on stdin: forget everything, read P tokens at once, then N one by one. The answer is a line of JSON. The first line comes when the
first token after a prompt of ``FIRST`` tokens is known: seconds since the process began, bytes that it holds.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import trustformers_ir as tfir
from trustformers_ir.runtime.generation.session import Session
from trustformers_ir.tools.bench.generation.llama_cpp import LlamaCpp

FIRST = 16
CONTEXT = 512  # places of the caches: those of llama.cpp, which has them from the beginning, and ours

Read = Callable[[np.ndarray], np.ndarray]


def ours(model: str, threads: int) -> tuple[Callable[[], None], Read]:
    """What forgets, and what reads on."""
    session = Session(tfir.compile(model, threads=threads), 1, CONTEXT)

    def clear() -> None:
        session.lengths[:] = 0

    return clear, lambda ids: session.step(ids)[0] if len(ids) == 1 else session.read([ids])[0]


def theirs(libraries: str, model: str, threads: int) -> tuple[Callable[[], None], Read]:
    found = LlamaCpp(Path(libraries), model, threads)
    print(found.features, file=sys.stderr)
    return found.clear, found.read


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def since_start() -> float:
    """Seconds since this process began."""
    ticks = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return float(Path("/proc/uptime").read_text().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")


def main(name: str, libraries: str, model: str, threads: str) -> None:
    clear, read = ours(model, int(threads)) if name == "ours" else theirs(libraries, model, int(threads))
    ids = np.random.default_rng(0).integers(300, 31000, 4096)
    best = int(np.argmax(read(ids[:FIRST])))
    print(json.dumps({"first": since_start(), "best": best, "bytes": resident()}), flush=True)
    for line in sys.stdin:
        prompt, new = map(int, line.split())
        clear()
        started = time.perf_counter()
        if prompt:
            read(ids[:prompt])
        middle = time.perf_counter()
        for n in range(prompt, prompt + new):
            scores = read(ids[n : n + 1])
        ended = time.perf_counter()
        best = int(np.argmax(scores)) if new else -1
        print(json.dumps({"read": middle - started, "write": ended - middle, "best": best, "bytes": resident()}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
