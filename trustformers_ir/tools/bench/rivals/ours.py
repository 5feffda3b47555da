"""This project, as a contestant like the others."""

from __future__ import annotations

import contextlib

import numpy as np

import trustformers_ir as tfir
from trustformers_ir.runtime.executable import Executable
from trustformers_ir.tools.bench.identity import unconstrained
from trustformers_ir.tools.bench.rivals.job import Call, Inputs, Job


def executable(job: Job) -> Executable:
    if job.model.endswith(".tfc"):
        return tfir.load(job.model, threads=job.threads)
    return tfir.compile(job.model, target=job.target, dtype=job.dtype, quantize=job.quantize, threads=job.threads)


def make(setting: str, job: Job) -> Call:
    with unconstrained() if setting == "free" else contextlib.nullcontext():
        exe = executable(job)

    def call(inputs: Inputs) -> np.ndarray:
        results = exe(**inputs)
        return np.asarray(results[0] if isinstance(results, tuple) else results)

    return call
