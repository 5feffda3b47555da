"""The scripts for measurements on GPUs, tried on Triton's interpreter."""

from __future__ import annotations

import pytest

pytest.importorskip("triton", reason="pip install triton")

from trustformers_ir.passes import pipelines
from trustformers_ir.passes.manager import PassManager
from trustformers_ir.tools.bench.gpu.attention import Work, difference, works


@pytest.mark.parametrize("work", list(works(small=True)), ids=str)
def test_attention_of_the_script_is_that_of_the_reference(work: Work) -> None:
    assert difference(work) < 2e-3


def test_the_table_of_attention_counts_what_is_computed() -> None:
    """Every row is a module that the passes of GPUs take; a causal mask hides nearly half."""
    rows = list(works(small=False))
    for work in rows:
        PassManager(pipelines.gpu()).run(work.module())
    plain, causal = (next(w for w in rows if w.causal is c and w.keys == 16384 and w.queries > 1) for c in (False, True))
    assert plain.flops == 4 * 32 * 16384**2 * 64 and 0.5 < causal.flops / plain.flops < 0.501
