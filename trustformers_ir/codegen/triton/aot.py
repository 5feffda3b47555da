"""Machine code for GPUs, made by Triton on a machine that need not have one.

Each kernel is a job of its own: a file with its function and those that it calls. Jobs that were done before are read from the disk (``kept.py``);
the others are shared by processes in which Triton works (``worker.py``), as many as there are CPUs, the longest first. Inside the code a kernel is
called by what it computes, ``tfir_linear_add``: so equal kernels of two models are one job, and profilers show names that say something.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trustformers_ir.codegen.program import LAUNCH, Launch
from trustformers_ir.codegen.triton import kept
from trustformers_ir.codegen.triton.binary import Binary
from trustformers_ir.codegen.triton.emit import Emitted
from trustformers_ir.codegen.triton.module import module_text
from trustformers_ir.codegen.triton.target import GpuTarget
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.machine import cpus
from trustformers_ir.ir.progress import note

LEAST_OF_A_PROCESS = 3  # kernels: to start a process takes as long as two
MOST_PROCESSES = 32  # each takes some 300 MB

#: Triton's names of the dtypes in signatures
SIGNATURE = {DType.bool: "i1", DType.f8e4m3: "u8", DType.f16: "fp16", DType.bf16: "bf16", DType.f32: "fp32", DType.f64: "fp64"}

Job = Mapping[str, Any]


class TritonError(RuntimeError):
    """Triton takes a kernel for wrong, and says so in its own words."""


@dataclass(frozen=True)
class Wanted:
    """A kernel that machine code is wanted of: its text, how it is launched, what it computes, and whether its indices have 64 bits."""

    emitted: Emitted
    launch: Launch = LAUNCH
    label: str = ""
    wide: bool = False


def signature(e: Emitted, wide: bool = False) -> dict[str, str]:
    """Triton's types of the parameters, in order. ``wide``: indices and dims have 64 bits."""
    names = parameters(e)
    buffers = [*e.kernel.params, *(b for b, _ in e.memory)]
    types = [f"*{SIGNATURE.get(b.dtype) or b.dtype.name}" for b in buffers]
    rest = ["i64" if wide else "i32"] * len(e.kernel.symbols) + ["*i64"] * e.checks
    return dict(zip(names, [*types, *rest, "constexpr"], strict=True))


def parameters(e: Emitted) -> list[str]:
    """The names of a function's parameters."""
    head = e.text.partition("\n")[0]
    return [p.partition(":")[0].strip() for p in head[head.index("(") + 1 : head.rindex(")")].split(",")]


def compile_kernels(wanted: Sequence[Wanted], target: GpuTarget, workers: Workers | None = None) -> list[Binary]:
    """The machine code of each kernel. ``workers`` are processes that stay for further calls. :class:`TritonError` when Triton takes a kernel for
    wrong."""
    made = attempt_kernels(wanted, target, workers)
    for found in made:
        if isinstance(found, TritonError):
            raise found
    return [found for found in made if isinstance(found, Binary)]


def attempt_kernels(wanted: Sequence[Wanted], target: GpuTarget, workers: Workers | None = None) -> list[Binary | TritonError]:
    """The machine code of each kernel, or what Triton says against it."""
    jobs = [_job(w, target) for w in wanted]
    keys = [kept.key(job) for job in jobs]
    found = {} if workers is None else {key: workers.made[key] for key in keys if key in workers.made}
    store = kept.opened()
    if store is not None:
        found.update((key, binary) for key in dict.fromkeys(keys) if key not in found and (binary := store.get(key)) is not None)
    missing = {key: job for key, job in zip(keys, jobs, strict=True) if key not in found}
    if missing:
        with contextlib.ExitStack() as stack:
            processes = workers or stack.enter_context(Workers())
            for done, (key, made) in enumerate(processes.run(missing), start=1):
                note("compile", done, len(missing))
                found[key] = processes.made[key] = made
                if store is not None and isinstance(made, Binary):
                    store.put(key, made)
        if store is not None:
            store.trim()
    return [replace(b, name=w.emitted.name) if isinstance(b := found[key], Binary) else b for key, w in zip(keys, wanted, strict=True)]


def _job(w: Wanted, target: GpuTarget) -> Job:
    """All that the code of a kernel depends on, but for Triton."""
    e = w.emitted
    words = re.sub(r"[^a-z0-9]+", "_", w.label.lower()).strip("_")[:80]
    symbol = f"tfir_{words}" if words else "tfir_kernel"
    text = module_text([replace(e, name=symbol, text=e.text.replace(f"def {e.name}(", f"def {symbol}(", 1))], target)
    return {
        "text": text,
        "symbol": symbol,
        "signature": signature(e, w.wide),
        "index": "int64" if w.wide else "int32",
        "pointers": len(e.kernel.params) + len(e.memory),
        "target": {"backend": target.backend, "arch": target.arch, "warp": target.warp, "native": target.native, "assembly": target.assembly},
        **asdict(w.launch),
    }


class Workers:
    """Processes in which Triton works. They are started when there are jobs for them, and end with the context. What they made is remembered."""

    def __init__(self, most: int | None = None) -> None:
        self.most = most or min(cpus(), MOST_PROCESSES)
        self._free: list[_Worker] = []
        self.made: dict[str, Binary | TritonError] = {}  # so far
        self._lock = threading.Lock()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        while self._free:
            self._free.pop().close()

    def run(self, jobs: Mapping[str, Job]) -> Iterator[tuple[str, Binary | TritonError]]:
        """Does all jobs; gives each as it is done, with its name."""
        longest = sorted(jobs.items(), key=lambda item: -len(item[1]["text"]) * item[1]["warps"] * item[1]["stages"])
        most = self.most if self._free else max(min(self.most, len(jobs) // LEAST_OF_A_PROCESS), 1)
        with ThreadPoolExecutor(most) as pool:
            names = {pool.submit(self._done, job): name for name, job in longest}
            try:
                for future in as_completed(names):
                    yield names[future], future.result()
            finally:
                for future in names:
                    future.cancel()

    def _done(self, job: Job) -> Binary | TritonError:
        with self._lock:
            worker = self._free.pop() if self._free else None
        worker = worker or _Worker()
        try:
            answer = worker.ask(job)
        except BaseException as error:
            worker.close()
            if isinstance(error, TritonError):
                return error
            raise
        with self._lock:
            self._free.append(worker)
        if "error" in answer:
            return TritonError(f"Triton could not compile '{job['symbol']}': {answer['error'][-4000:]}")
        row = answer["binary"]
        return Binary(**{**row, "name": row["symbol"], "code": base64.b64decode(row["code"])})


class _Worker:
    """One process, and a folder for its files."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="tfir-triton-")
        place = Path(self._folder.name)
        self._said = (place / "said").open("wb")
        settings = ["TRITON_DEFAULT_FP_FUSION=0", "TRITON_DISABLE_LINE_INFO=1", f"TRITON_CACHE_DIR={place}"]
        command = ["env", "-u", "TRITON_INTERPRET", *settings, sys.executable, "-m", "trustformers_ir.codegen.triton.worker", str(place)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True)

    def ask(self, job: Job) -> dict[str, Any]:
        """The answer to a job. ``TritonError`` when the process ends instead."""
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            said = (Path(self._folder.name) / "said").read_text("utf-8", "replace")[-4000:]
            raise TritonError(f"Triton ended with {process.wait()} while it compiled '{job['symbol']}': {said}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
        self._said.close()
        self._folder.cleanup()
