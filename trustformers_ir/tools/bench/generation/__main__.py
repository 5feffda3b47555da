"""The contest: both read a prompt of 128 tokens and 32 more one by one, in turns, each in a process of its own. See ``reader.py``.

    make llama.cpp
    python -m trustformers_ir.tools.bench.generation .cache/llama.cpp MODEL.gguf… [--threads N] [--rounds N]

Printed are tokens per second, medians and bests; the median of the ratios of each round; how much of the bandwidth of memory, measured in the
same run, reading the file once for each token is; seconds from the start of a process to the first token, files in the system's cache; and bytes
held then. Both are Python, and the compile cache and the bytecode of the package are kept, as for any that is installed (see ``compile_time.py``).
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trustformers_ir.ir.progress import note
from trustformers_ir.tools import console
from trustformers_ir.tools.bench.limits import memory_bandwidth

PROMPT, NEW = 128, 32
NAMES = ("ours", "llama.cpp")


class Reader:
    """A contestant's process."""

    def __init__(self, name: str, libraries: str, model: str, threads: int) -> None:
        command = [sys.executable, "-m", "trustformers_ir.tools.bench.generation.reader", name, libraries, model, str(threads)]
        command[:0] = ["env", "TFIR_CACHE=1", "PYTHONDONTWRITEBYTECODE="]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.ready = self._answer()

    def ask(self, prompt: int, new: int) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{prompt} {new}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a contestant ended with code {self._process.wait()}")
        found: dict[str, Any] = json.loads(line)
        return found

    def close(self) -> dict[str, Any]:
        """Ends the process; what it said first."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        return self.ready


def contest(libraries: str, model: str, threads: int, rounds: int) -> list[tuple[str, ...]]:
    """The rows of the table for one model."""
    first = {name: [Reader(name, libraries, model, threads).close() for _ in range(4)][1:] for name in NAMES}  # the first one warms caches
    readers = {name: Reader(name, libraries, model, threads) for name in NAMES}
    read: dict[str, list[float]] = {name: [] for name in NAMES}
    write: dict[str, list[float]] = {name: [] for name in NAMES}
    held: dict[str, int] = {}
    for n in range(rounds + 1):
        note("timing", n, rounds + 1)
        for name in NAMES if n % 2 else NAMES[::-1]:
            told = readers[name].ask(PROMPT, NEW)
            if n:  # the first round warms up
                read[name].append(PROMPT / told["read"])
                write[name].append(NEW / told["write"])
            held[name] = told["bytes"]
    for reader in readers.values():
        reader.close()
    bandwidth = memory_bandwidth(threads)
    size = Path(model).stat().st_size / 1e9

    def row(what: str, found: dict[str, list[float]], limit: str) -> tuple[str, ...]:
        shown = [f"{statistics.median(found[name]):.1f} ({max(found[name]):.1f})" for name in NAMES]
        ratio = statistics.median(a / b for a, b in zip(found["ours"], found["llama.cpp"], strict=True))
        return (Path(model).stem, what, *shown, f"{ratio:.2f}", limit)

    share = f"{statistics.median(write['ours']) * size / bandwidth:.0%} of {bandwidth:.1f} GB/s"
    seconds = {name: statistics.median(t["first"] for t in first[name]) for name in NAMES}
    ratio = f"{seconds['llama.cpp'] / seconds['ours']:.2f}"
    start = (Path(model).stem, "process to first token, s", *(f"{seconds[n]:.2f}" for n in NAMES), ratio, "")
    held_by = [held[name] / 1e6 for name in NAMES]
    memory = (Path(model).stem, "resident, MB", *(f"{n:.0f}" for n in held_by), f"{held_by[0] / held_by[1]:.2f}", "")
    return [row("decode, tokens/s", write, share), row(f"prefill {PROMPT}, tokens/s", read, ""), start, memory]


def main(words: Sequence[str]) -> None:
    options = {"--threads": 2, "--rounds": 9}
    given = list(words)
    for name in options:
        if name in given:
            at = given.index(name)
            options[name] = int(given[at + 1])
            del given[at : at + 2]
    if len(given) < 2:
        raise SystemExit(__doc__)
    rows = [row for model in given[1:] for row in contest(given[0], model, options["--threads"], options["--rounds"])]
    console.print_table(rows, ("model", "work", "ours, median (best)", "llama.cpp", "ratio", "of the limit"))


if __name__ == "__main__":
    main(sys.argv[1:])
