"""How long a call of a file takes and what memory that needs, in a process of its own: load, call, say.

The process imports what executes the file and nothing else, so what is resident (``VmHWM``: everything, mapped weights too) is what a program that
serves the model has. Inputs come in a file. ``.tfc`` files are executed by our runtime, ``.onnx`` files by ONNX Runtime.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import trustformers_ir as tfir
from trustformers_ir.ir.diagnostics import Code, CompilerError, Where
from trustformers_ir.ir.machine import peak_memory

WARM = 3  # calls before any is timed
SECONDS, LEAST, MOST = 3.0, 10, 200  # how long is timed where nobody says how often
LIMIT = 900  # seconds that the process may take
_MARK = "tfc-ci-measured "


@dataclass(frozen=True)
class Measured:
    """Seconds of a call (median, best) over so many calls, of loading, and the most bytes that were resident. ``by``: what executed it."""

    median: float
    best: float
    calls: int
    load: float
    memory: int
    by: str


def measure(path: str, arrays: Mapping[str, np.ndarray], threads: int, calls: int) -> Measured:
    """Of ``calls`` calls (0: as many as fit into some seconds) with these inputs. Raises ``CompilerError`` when they cannot be made."""
    with tempfile.TemporaryDirectory(prefix="tfc-ci-") as folder:
        inputs = str(Path(folder) / "inputs.npz")
        named: dict[str, Any] = {f"_{name}": a for name, a in arrays.items()}
        np.savez(inputs, **named)
        command = [sys.executable, "-m", __name__, path, inputs, str(threads), str(calls)]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=LIMIT, check=False)
        except subprocess.TimeoutExpired:
            raise _failed(path, f"the process that measures it took more than {LIMIT} s") from None
    told = next((line.removeprefix(_MARK) for line in reversed(done.stdout.splitlines()) if line.startswith(_MARK)), None)
    if done.returncode or told is None:
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "it said nothing")
        raise _failed(path, f"the process that measures it ended with {done.returncode}: {last.strip()}")
    found = json.loads(told)
    if "failure" in found:
        raise _failed(path, found["failure"])
    return Measured(**found)


def _failed(path: str, reason: str) -> CompilerError:
    return CompilerError.of(Code.CHECK_FAILED, f"'{path}' cannot be measured: {reason}", Where(file=path), "run it alone: tfc run, tfc bench")


# -- in the other process -----------------------------------------------------------------------------------------------------


def _native(path: str, threads: int, arrays: Mapping[str, np.ndarray]) -> tuple[Callable[[], object], str]:
    executable = tfir.load(path, threads=threads)
    return lambda: executable(**arrays), f"trustformers_ir {tfir.__version__}"


def _onnx(path: str, threads: int, arrays: Mapping[str, np.ndarray]) -> tuple[Callable[[], object], str]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {i.name: arrays[i.name] for i in session.get_inputs()}
    return lambda: session.run(None, feed), f"onnxruntime {onnxruntime.__version__}"


def child(path: str, inputs: str, threads: int, calls: int) -> dict[str, Any]:
    """What :class:`Measured` has, of this process."""
    with np.load(inputs, allow_pickle=False) as file:
        arrays = {name[1:]: file[name] for name in file.files}
    started = time.perf_counter()
    call, by = (_onnx if path.endswith(".onnx") else _native)(path, threads, arrays)
    call()
    load = time.perf_counter() - started
    for _ in range(WARM - 1):
        call()
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < calls if calls else len(times) < LEAST or (len(times) < MOST and time.perf_counter() - begin < SECONDS):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return {"median": statistics.median(times), "best": min(times), "calls": len(times), "load": load, "memory": peak_memory(), "by": by}


def main(words: list[str]) -> None:
    path, inputs, threads, calls = words
    try:
        told = child(path, inputs, int(threads), int(calls))
    except CompilerError as error:
        told = {"failure": "; ".join(d.message for d in error.diagnostics)}
    except Exception as error:  # of ONNX Runtime, say
        told = {"failure": (str(error).strip().splitlines() or [type(error).__name__])[0]}
    print(f"\n{_MARK}{json.dumps(told)}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
