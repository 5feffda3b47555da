"""Kernels that wait for memory: ``python -m trustformers_ir.tools.bench.gpu.norms [--small]``. The bar is a share of the rate at which torch copies
1 GiB; torch.compile does the same work beside us. Nothing was measured with this yet: no GPU was there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import trustformers_ir as tfir
from trustformers_ir.ir import functional as F
from trustformers_ir.ir.core import Module
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.tools.bench.gpu.contest import run
from trustformers_ir.tools.bench.gpu.torch_llama import turned
from trustformers_ir.tools.bench.gpu.work import COPY, Call, Goal, Place, Work, share

EPS = 1e-5


@dataclass(frozen=True)
class Kind:
    """What is computed of ``tensors`` rows of that width each, and of vectors as long as a row: with our functions, and with those of torch."""

    name: str
    tensors: int
    vectors: int
    ours: Callable[..., Any]
    torch: Callable[..., Any]


def _added(x: Any, y: Any, w: Any) -> tuple[Any, Any]:
    total = x + y
    return total, F.rms_norm(total, w, EPS)


def _added_torch(x: Any, y: Any, w: Any) -> tuple[Any, Any]:
    import torch.nn.functional as T

    total = x + y
    return total, T.rms_norm(total, w.shape, w, EPS)


def _torch(name: str, *arguments: Any) -> Callable[..., Any]:
    """A norm of torch, over rows as long as its weight."""

    def norm(x: Any, w: Any, *rest: Any) -> Any:
        import torch.nn.functional as T

        return getattr(T, name)(x, w.shape, w, *rest, *arguments)

    return norm


def _softmax_torch(x: Any) -> Any:
    return x.softmax(-1)


def _gated_torch(x: Any, y: Any) -> Any:
    import torch.nn.functional as T

    return T.silu(x) * y


KINDS = {
    "rms norm": Kind("rms norm", 1, 1, lambda x, w: F.rms_norm(x, w, EPS), _torch("rms_norm", EPS)),
    "layer norm": Kind("layer norm", 1, 2, lambda x, w, b: F.layer_norm(x, w, b, EPS), _torch("layer_norm", EPS)),
    "softmax": Kind("softmax", 1, 0, F.softmax, _softmax_torch),
    "residual and rms norm": Kind("residual and rms norm", 2, 1, _added, _added_torch),
    "silu and product": Kind("silu and product", 2, 0, lambda x, y: F.silu(x) * y, _gated_torch),
}


@dataclass(frozen=True)
class Rows(Work):
    """One of the kinds over ``rows`` rows of ``width``."""

    kind: str
    rows: int
    width: int

    @property
    def dims(self) -> Mapping[str, int]:
        return {"rows": self.rows}

    @property
    def goals(self) -> Sequence[Goal]:
        return (share(0.9, COPY),)

    def module(self) -> Module:
        kind, dtype = KINDS[self.kind], DType.bf16
        return tfir.trace(kind.ours, *[dtype["rows", self.width]] * kind.tensors, *[dtype[self.width,]] * kind.vectors)

    def peers(self, place: Place, tensors: Sequence[Any]) -> Mapping[str, Call]:
        return {"torch.compile": functools.partial(place.compiled(KINDS[self.kind].torch, graphs=False), *tensors)}

    def __str__(self) -> str:
        return f"{self.kind}, {self.rows} x {self.width}"


@dataclass(frozen=True)
class Rope(Work):
    """Rotary positions of ``heads`` heads of ``features`` features, ``[batch, heads, seq, features]``."""

    batch: int
    heads: int
    seq: int
    features: int

    @property
    def dims(self) -> Mapping[str, int]:
        return {"batch": self.batch, "seq": self.seq}

    @property
    def goals(self) -> Sequence[Goal]:
        return (share(0.9, COPY),)

    def module(self) -> Module:
        dtype, angles = DType.bf16, DType.bf16["seq", self.features // 2]
        return tfir.trace(F.rope, dtype["batch", self.heads, "seq", self.features], angles, angles)

    def peers(self, place: Place, tensors: Sequence[Any]) -> Mapping[str, Call]:
        return {"torch.compile": functools.partial(place.compiled(turned, graphs=False), *tensors)}

    def __str__(self) -> str:
        return f"rope, {self.batch} x {self.heads} x {self.seq} x {self.features}"


def works(small: bool) -> Iterator[Work]:
    """Rows as short as a head's and as long as a vocabulary, half a gigabyte read or more."""
    if small:
        yield from (Rows(kind, 5, width) for kind in KINDS for width in (96, 384))
        yield Rope(2, 3, 7, 64)
        return
    for kind in KINDS:
        for width in (128, 384, 1024, 4096, 14336):
            yield Rows(kind, (1 << 28) // width, width)
    yield Rows("softmax", 2048, 128256)
    yield from (Rope(32, 32, 2048, features) for features in (64, 128))


if __name__ == "__main__":
    run(works)
