"""One contestant in a process of its own: ``python -m trustformers_ir.tools.bench.contestant NAME FOLDER``.

OpenMP runtimes, thread pools and allocators of different systems get in each other's way in one process, and a crash of one would end all. The
job lies in ``FOLDER/job.json`` and ``inputs.npz``. The process makes its contestant, then answers one JSON object per line of stdin with one on
stdout:

==================  ====================================================================================
``{"run": n}``      ``{"first": s, "seconds": [s, …]}``: one call after the pause, then n calls in a row
``{"save": path}``  ``{"saved": path}``: the outputs of all inputs, one array each, in an ``.npz`` file
==================  ====================================================================================

End of input ends the process. What libraries print goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from trustformers_ir.ir.machine import peak_memory
from trustformers_ir.tools.bench.rivals.job import Call, Job
from trustformers_ir.tools.bench.rivals.table import OWN, RIVALS


def write_job(job: Job, folder: Path) -> None:
    """Puts the job where contestants look for it."""
    arrays = {f"{kind}.{i}.{name}": a for kind in ("inputs", "calibration") for i, s in enumerate(getattr(job, kind)) for name, a in s.items()}
    np.savez(folder / "inputs.npz", **arrays)
    told = {"model": job.model, "threads": job.threads, "quantize": job.quantize, "dtype": job.dtype, "target": job.target}
    (folder / "job.json").write_text(json.dumps(told))


def read_job(folder: Path) -> Job:
    sets: dict[str, dict[int, dict[str, np.ndarray]]] = {"inputs": {}, "calibration": {}}
    with np.load(folder / "inputs.npz") as arrays:
        for key in arrays.files:
            kind, index, name = key.split(".", 2)
            sets[kind].setdefault(int(index), {})[name] = arrays[key]
    inputs, calibration = ([s[i] for i in sorted(s)] for s in (sets["inputs"], sets["calibration"]))
    return Job(inputs=inputs, calibration=calibration, work=folder, **json.loads((folder / "job.json").read_text()))


def answer(request: dict[str, Any], call: Call, job: Job) -> dict[str, Any]:
    if "save" in request:
        np.savez(request["save"], *(np.array(call(inputs)) for inputs in job.inputs))
        return {"saved": request["save"]}
    seconds = []
    for _ in range(1 + int(request["run"])):
        started = time.perf_counter()
        call(job.example)
        seconds.append(time.perf_counter() - started)
    return {"first": seconds[0], "seconds": seconds[1:]}


def serve(name: str, job: Job, requests: TextIO, answers: TextIO) -> None:
    def say(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    started = time.perf_counter()
    try:
        call = {**OWN, **RIVALS}[name].make(job)
        call(job.example)
    except ImportError as error:
        say({"missing": error.name or str(error)})
        return
    except Exception as error:  # whatever a peer raises is its row of the table
        say({"failed": f"{type(error).__name__}: {error}"})
        return
    say({"ready": time.perf_counter() - started, "memory": peak_memory()})
    for line in requests:
        say(answer(json.loads(line), call, job))


def main() -> None:
    name, folder = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(name, read_job(Path(folder)), sys.stdin, answers)


if __name__ == "__main__":
    main()
