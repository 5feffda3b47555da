"""What the command line says about a quantized model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import trustformers_ir as tfir
from trustformers_ir.ir.diagnostics import CheckFailed, Code, Diagnostic, Where
from trustformers_ir.ir.probes import draw_dims, draw_inputs
from trustformers_ir.passes.int8_error import ErrorReport
from trustformers_ir.runtime.manifest import recipe_name
from trustformers_ir.tools import console
from trustformers_ir.tools.commands.options import files

_HOW = {"int8": "in 8-bit integers", **{name: f"by weights in {name}" for name in ("bf16", "f16", "q8_0", "q4_0", "q4_1", "int4")}}
ALLOWED = 0.1  # of the relative error of a result of the model, unless the user says otherwise


def summary(report: Mapping[str, Any]) -> list[str]:
    """What a compilation quantized and what it did not, with the reasons; nothing when it had no recipe."""
    told = report.get("quantization")
    if not told:
        return []
    name = recipe_name(told)
    lines = [f"{told['recipe']}: {told[name]} of {len(told['products'])} products {_HOW.get(name, 'quantized')}"]
    return lines + [f"  {row['name']} stays as it is: {row['reason']}" for row in told["products"] if not row[name]]


def error_of(model: str, quantize: str, calibrate: list[str] | None, data: list[str] | None, probes: int, seed: int) -> ErrorReport:
    """The error of quantizing ``model``, on the examples in ``data``, or on made-up ones."""
    examples: Any = files(data)
    if examples is None:
        module = tfir.api.to_module(model)
        draws = [np.random.default_rng((seed, n)) for n in range(probes)]
        examples = [draw_inputs(module, draw_dims(module, random, long=n == 1), random) for n, random in enumerate(draws)]
    return tfir.quantization_error(model, examples, quantize, calibration=files(calibrate))


def show(report: ErrorReport, model: str, tolerance: float | None, json: bool) -> None:
    """Prints the report. ``CheckFailed`` when a result of the model is further away than ``tolerance``."""
    allowed = ALLOWED if tolerance is None else tolerance
    failed = [name for name, d in report.outputs.items() if not d.relative <= allowed]
    if json:
        console.print_json({"model": model, "holds": not failed, "tolerance": allowed} | report.as_dict())
    else:
        rows: list[Sequence[object]] = [*report.table()]
        console.print_table(rows, report.head)
        for name, reason in report.kept.items():
            console.say(f"{name} stays as it is: {reason}")
    if failed:
        help = "the worst products stand first: keep them in f32 (keep=NAME), calibrate otherwise, or set --tolerance"
        messages = [f"'{name}' of the quantized model is {report.outputs[name].relative:.3g} away from that of the model" for name in failed]
        raise CheckFailed(*(Diagnostic(Code.CHECK_FAILED, m, Where(file=model), help) for m in messages))
