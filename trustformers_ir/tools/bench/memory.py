"""The highest memory of a process that compiles a checkpoint and calls it, and of one that loads the artifact and calls it.

Counted is everything resident, mapped files too (``VmHWM``), so weights that are mapped and read count once and a second copy of them counts
again. What must not grow is the excess over weights and arena: the interpreter with its packages, the compiler, the code.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BATCH, SEQ = 1, 128

_COMMON = """
import json, re, sys
import numpy as np
import trustformers_ir as tfir
def told(exe):
    exe(np.ones((int(sys.argv[3]), int(sys.argv[4])), np.int64))
    report = exe.report({"batch": int(sys.argv[3]), "seq": int(sys.argv[4])})
    entry = next(iter(report["entries"].values()))
    arena = entry["arena_bytes"] + entry["scratch_bytes_per_thread"] * exe.threads
    highest = int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) << 10
    print(json.dumps({"highest": highest, "weights": report["weight_bytes"], "arena": arena}), flush=True)
"""
_COMPILE = _COMMON + "told(tfir.compile(sys.argv[1], threads=int(sys.argv[2])))\n"
_SAVE = "import sys, trustformers_ir as tfir\ntfir.compile(sys.argv[1], threads=int(sys.argv[2])).save(sys.argv[3])\n"
_LOAD = _COMMON + "told(tfir.load(sys.argv[1], threads=int(sys.argv[2])))\n"


@dataclass(frozen=True)
class Peak:
    """Bytes."""

    highest: int
    weights: int
    arena: int

    @property
    def excess(self) -> int:
        return self.highest - self.weights - self.arena


def peaks(model: str, threads: int) -> Iterator[Peak]:
    """Of compiling and calling, then of loading and calling."""
    yield _peak(_COMPILE, model, threads)
    with tempfile.TemporaryDirectory(prefix="tfir-bench-") as folder:
        path = str(Path(folder) / "model.tfc")
        _python(_SAVE, model, str(threads), path)
        yield _peak(_LOAD, path, threads)


def _peak(code: str, model: str, threads: int) -> Peak:
    return Peak(**json.loads(_python(code, model, str(threads), str(BATCH), str(SEQ))))


def _python(code: str, *words: str) -> str:
    return subprocess.run(["env", "TFIR_CACHE=0", sys.executable, "-c", code, *words], stdout=subprocess.PIPE, text=True, check=True).stdout
