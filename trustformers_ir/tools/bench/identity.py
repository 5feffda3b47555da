"""One model, many ways to run it, one answer: outputs hashed over targets, threads and cuts of the batch. And what the fixed order costs.

*Cost.* Results are the same everywhere because sums have a fixed order. ``free_order`` takes that duty from a module's text: every float operation
may be reassociated and contracted, and elementary functions approximated (LLVM's ``fast``), with LLVM's unroller and vectorisers on. The same
kernels in a free order, interleaved with ours, tell what the duty costs.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np

import trustformers_ir as tfir
from trustformers_ir.codegen import build
from trustformers_ir.codegen.llvm import compile as llvm_compile
from trustformers_ir.codegen.llvm.target import binding
from trustformers_ir.ir.diagnostics import Code, CompilerError
from trustformers_ir.runtime import cache
from trustformers_ir.runtime.runnable import Runnable
from trustformers_ir.tools.bench.models import draw_sets, first_output

TARGETS = ("cpu:avx2", "cpu:avx512", "cpu:avx512vnni")
THREADS = (1, 2)
BATCHES = (1, 3, 8)
SEQ = 77  # of no tile a multiple
_FAST = re.compile(r"= (fadd|fsub|fmul|fdiv|fneg|call(?= [^@\n]*@llvm\.(?:fma|sqrt)\.)) ")


def hashes(model: str, work: Path, quantize: str | None = None) -> tuple[dict[str, str], dict[str, str]]:
    """The SHA-256 of the first output for 8 sequences, by way of running them (``avx2, 1 thread, batches of 3``); and targets that could not be
    tried, with the reason. A machine without a feature cannot run that target."""
    found: dict[str, str] = {}
    left_out: dict[str, str] = {}
    inputs: dict[str, np.ndarray] = {}
    for target in TARGETS:
        try:
            exe = tfir.compile(model, target=target, quantize=quantize)
        except CompilerError as error:
            if error.diagnostics[0].code not in (Code.NOT_BUILT, Code.UNKNOWN_TARGET, Code.TARGET_UNAVAILABLE, Code.ARTIFACT_TARGET):
                raise
            left_out[target] = error.diagnostics[0].message
            continue
        if not inputs:
            _, (inputs,) = draw_sets(exe, {"batch": max(BATCHES), "seq": SEQ}, 1)
        path = str(work / "identity.tfc")
        exe.save(path)
        exe.close()
        for threads in THREADS:
            loaded = tfir.load(path, threads=threads)
            for batch in BATCHES:
                found[f"{target.partition(':')[2]}, {threads} threads, batches of {batch}"] = _hash(loaded, inputs, batch)
            loaded.close()
    return found, left_out


def _hash(exe: Runnable, inputs: dict[str, np.ndarray], batch: int) -> str:
    digest = hashlib.sha256()
    for start in range(0, max(BATCHES), batch):
        digest.update(first_output(exe(**{name: array[start : start + batch] for name, array in inputs.items()})).tobytes())
    return digest.hexdigest()


def free_order(text: str) -> str:
    """LLVM text in which every float operation is ``fast``."""
    return _FAST.sub(r"= \1 fast ", text)


@contextlib.contextmanager
def unconstrained() -> Iterator[None]:
    """Modules compiled in the block promise no order."""

    def emit(lowered: build.Lowered) -> str:
        return free_order(emitted(lowered))

    def optimise(module: object, machine: object, level: int = 3) -> None:
        llvm = binding()
        builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
        builder.getModulePassManager().run(module, builder)

    emitted = build.llvm_text
    nothing_kept = mock.patch.object(cache, "slot", return_value=None)  # the compile cache takes a free order for the real thing
    with nothing_kept, mock.patch.object(build, "llvm_text", emit), mock.patch.object(llvm_compile, "optimise", optimise):
        yield
