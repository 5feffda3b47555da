"""Quantized graphs as files have them: each product of the model by itself, under the name that its weight has there."""

from __future__ import annotations

from typing import Any

from trustformers_ir.ir.core import Module
from trustformers_ir.passes.dce import Dce
from trustformers_ir.passes.fold_weights import FoldWeights
from trustformers_ir.passes.manager import Pass, PassManager


def passes(quantizer: Pass) -> list[Pass]:
    """Behind those of :func:`canonical`. Casts and views of weights are folded first: what is a weight then, can be quantized."""
    return [FoldWeights(), quantizer, Dce()]


def quantized(module: Module, quantizer: Pass) -> list[dict[str, Any]]:
    """Quantizes a canonical module by the pass of a recipe; what that decided about each product. Changes the module."""
    chosen = passes(quantizer)
    report = PassManager(chosen).run(module)
    return report.passes[chosen.index(quantizer)].log.rows
