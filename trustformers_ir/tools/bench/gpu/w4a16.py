"""Products of few rows by weights of 4 bits beside those by weights in bf16: ``python -m trustformers_ir.tools.bench.gpu.w4a16 [--small]``.

The peer is the faster of torch's product in bf16 (cuBLAS) and ours; weights are those of a layer of LLaMA-8B. Nothing was measured with this yet: no
GPU was there.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import trustformers_ir as tfir
from trustformers_ir.ir import functional as F
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.parameters import Parameter
from trustformers_ir.ir.rounding import round_to
from trustformers_ir.tools.bench.gpu.contest import run
from trustformers_ir.tools.bench.gpu.work import Call, Goal, Place, Work, faster


@dataclass(frozen=True)
class Product(Work):
    """``rows`` rows of ``terms`` by a weight of ``columns`` x ``terms``, quantized by the recipe."""

    rows: int
    columns: int
    terms: int
    recipe: str

    @property
    def quantize(self) -> str:
        return self.recipe

    @property
    def dims(self) -> Mapping[str, int]:
        return {"rows": self.rows}

    @property
    def goals(self) -> Sequence[Goal]:
        return (faster(3.0, "the product in bf16"),)

    @property
    def flops(self) -> float:
        return 2.0 * self.rows * self.columns * self.terms

    @functools.cached_property
    def weight(self) -> np.ndarray:
        drawn = np.random.default_rng(1).standard_normal((self.columns, self.terms), np.float32)
        return round_to(drawn / np.sqrt(np.float32(self.terms)), DType.bf16)

    def module(self) -> Module:
        weight = Parameter("weight", self.weight.shape, DType.bf16)
        rows = {"rows": (1, 16)}
        return tfir.trace(lambda x: F.linear(x, weight), DType.bf16["rows", self.terms], facts=rows, weights={"weight": self.weight})

    def peers(self, place: Place, tensors: Sequence[Any]) -> Mapping[str, Call]:
        import torch

        plain = functools.partial(tfir.compile(self.module(), target=place.target), *tensors)
        weight = place.tensor(self.weight)
        return {"ours in bf16": plain, "torch in bf16": lambda: torch.nn.functional.linear(*tensors, weight)}

    def __str__(self) -> str:
        return f"{self.rows} x {self.terms} by {self.columns} columns, {self.recipe}"


def works(small: bool) -> Iterator[Work]:
    """The products of a layer, 1 to 16 rows."""
    sizes = ((96, 64),) if small else ((4096, 4096), (28672, 4096), (4096, 14336))
    for recipe in ("int4{group=32,heads=true}", "q4_0{heads=true}"):
        for columns, terms in sizes:
            for rows in (1, 5) if small else (1, 2, 4, 8, 16):
                yield Product(rows, columns, terms, recipe)


if __name__ == "__main__":
    run(works)
