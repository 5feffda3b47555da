"""This project, as a contestant like the others."""

from __future__ import annotations

import contextlib

import numpy as np

from trustformers_ir.tools.bench.identity import unconstrained
from trustformers_ir.tools.bench.models import executable, first_output
from trustformers_ir.tools.bench.rivals.job import Call, Inputs, Job


def make(setting: str, job: Job) -> Call:
    with unconstrained() if setting == "free" else contextlib.nullcontext():
        exe = executable(job.model, job.threads, job.target, job.dtype, job.quantize)

    def call(inputs: Inputs) -> np.ndarray:
        return first_output(exe(**inputs))

    return call
