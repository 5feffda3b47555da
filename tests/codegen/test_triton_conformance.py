"""The conformance suite on Triton, by its interpreter: the very cases of the CPU, in blocks, against the reference.

To run one case alone::

    pytest tests/codegen/test_triton_conformance.py --case "linear#3"
"""

from __future__ import annotations

import pytest
from accuracy import check_case
from native_cases import INDEXED, NATIVE, native, with_a_wrong_index
from triton_harness import interpret_modules

#: cases that take long in the interpreter, of kernels that other ops have too
SLOW = ("conv", "expert_blocks", "expert_blocks_int8", "linear_blocks_int8")


@pytest.mark.parametrize("mnemonic", [pytest.param(m, marks=[pytest.mark.long] * (m in SLOW)) for m in NATIVE])
def test_cases_agree_with_the_reference(mnemonic: str, pytestconfig: pytest.Config) -> None:
    wanted = str(pytestconfig.getoption("--case") or "")
    mine = [c for c in native(mnemonic) if wanted in ("", c.name)]
    for case, run in zip(mine, interpret_modules([c.module() for c in mine]), strict=True):
        check_case(case, run(case.inputs, case.dims), blocks=True)


@pytest.mark.parametrize("mnemonic", INDEXED)
def test_an_index_out_of_range_is_reported(mnemonic: str) -> None:
    tried = 0
    mine = native(mnemonic)
    for case, run in zip(mine, interpret_modules([c.module() for c in mine]), strict=True):
        for bad in with_a_wrong_index(case):
            with pytest.raises(IndexError, match=mnemonic):
                run(bad.inputs, bad.dims)
            tried += 1
    assert tried
