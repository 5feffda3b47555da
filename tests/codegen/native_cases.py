"""The cases of the conformance suite that generated code computes, and those whose indices are wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from trustformers_ir.ir.conformance import Case, cases
from trustformers_ir.ir.schema import OPS, FusionKind

#: no values of their own
STRUCTURE = frozenset(m for m, kind in OPS.items() if kind.fusion is FusionKind.STRUCTURE) | {"weight"}
#: ops that take an index from their data
INDEXED = ["gather", "gather_elements", "gather_nd", "scatter_elements", "scatter_nd", "embedding"]


def is_complex(case: Case) -> bool:
    return any(t is not None and t.dtype.is_complex for t in (*case.types, *case.results))


def native(mnemonic: str) -> list[Case]:
    return [c for c in cases([OPS[mnemonic]]) if not is_complex(c)]


NATIVE = [m for m in OPS if m not in STRUCTURE and native(m)]


def with_a_wrong_index(case: Case, too_small: bool = False, largest: bool = False) -> Iterator[Case]:
    """The case with its last index out of range: 100, -100 or the largest of the dtype; none where there is no such
    number, or no index."""
    at = next(i for i, formal in enumerate(case.op.operands) if formal.name in ("ids", "indices"))
    indices = case.arrays[at]
    assert indices is not None
    info = np.iinfo(indices.dtype)
    wrong = info.max if largest else -100 if too_small else 100
    if indices.size and info.min <= wrong <= info.max:
        broken = indices.copy()
        broken.reshape(-1)[-1] = wrong
        yield dataclasses.replace(case, arrays=(*case.arrays[:at], broken, *case.arrays[at + 1 :]))
