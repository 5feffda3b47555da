"""The conformance suite on Triton, by its interpreter: the very cases of the CPU, in blocks, against the reference.

To run one case alone::

    pytest tests/codegen/test_triton_conformance.py --case "linear#3"
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from accuracy import check_case
from triton_harness import interpret_modules

from trustformers_ir.ir.conformance import Case, cases
from trustformers_ir.ir.schema import OPS, FusionKind

STRUCTURE = frozenset(m for m, kind in OPS.items() if kind.fusion is FusionKind.STRUCTURE) | {"weight"}


def native(mnemonic: str) -> list[Case]:
    return [c for c in cases([OPS[mnemonic]]) if not any(t is not None and t.dtype.is_complex for t in (*c.types, *c.results))]


NATIVE = [m for m in OPS if m not in STRUCTURE and native(m)]


@pytest.mark.parametrize("mnemonic", NATIVE)
def test_cases_agree_with_the_reference(mnemonic: str, pytestconfig: pytest.Config) -> None:
    wanted = str(pytestconfig.getoption("--case") or "")
    mine = [c for c in native(mnemonic) if wanted in ("", c.name)]
    for case, run in zip(mine, interpret_modules([c.module() for c in mine]), strict=True):
        check_case(case, run(case.inputs, case.dims), blocks=True)


@pytest.mark.parametrize("mnemonic", ["gather", "gather_elements", "gather_nd", "scatter_elements", "scatter_nd", "embedding"])
def test_an_index_out_of_range_is_reported(mnemonic: str) -> None:
    tried = 0
    mine = native(mnemonic)
    for case, run in zip(mine, interpret_modules([c.module() for c in mine]), strict=True):
        at = next(i for i, formal in enumerate(case.op.operands) if formal.name in ("ids", "indices"))
        indices = case.arrays[at]
        assert indices is not None
        if not indices.size or np.iinfo(indices.dtype).max < 100:
            continue
        broken = indices.copy()
        broken.reshape(-1)[-1] = 100
        bad = dataclasses.replace(case, arrays=(*case.arrays[:at], broken, *case.arrays[at + 1 :]))
        with pytest.raises(IndexError, match=mnemonic):
            run(bad.inputs, bad.dims)
        tried += 1
    assert tried
