"""Random graphs of all ops: compiled code agrees with the interpreter, and regions change no bit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from accuracy import differs, same_bytes
from lowering_harness import compile_modules
from random_graphs import Binding, Grower, fuse

from trustformers_ir.passes.fuse import Fuse
from trustformers_ir.passes.manager import PassLog

BATCH = 10  # graphs per LLVM module


def agree(seed: int, binding: Binding, got: Sequence[np.ndarray], text: str) -> None:
    for n, (g, out) in enumerate(zip(got, binding.outputs, strict=True)):
        want = out.runs[0]
        assert g.shape == want.shape and g.dtype == want.dtype
        bad = differs(g, want, out.tolerance) if out.value.type.dtype.is_float else g != want
        if bad.any():
            at = tuple(np.argwhere(bad)[0])
            detail = f"output {n} at {at}: {g[at]!r} != {want[at]!r} +- {np.broadcast_to(out.tolerance, want.shape)[at]}"
            raise AssertionError(f"seed {seed}, {binding.dims}: {detail}\n{text}")


def run_batch(seeds: Sequence[int]) -> None:
    """Each graph as it is and in regions: those of the fusion pass for odd seeds, random ones for even seeds."""
    graphs = [Grower(seed).grow() for seed in seeds]
    fused = [Grower(seed).grow() for seed in seeds]
    naive = [False] * len(seeds)
    for n, (graph, seed) in enumerate(zip(fused, seeds, strict=True)):
        if seed % 2:
            Fuse().run(graph.module, PassLog())
        else:
            naive[n] = fuse(graph.module, np.random.default_rng(seed))
    texts = [str(g.module) for g in fused]
    runners = compile_modules([g.module for g in (*graphs, *fused)])
    for n, (seed, graph) in enumerate(zip(seeds, graphs, strict=True)):
        for binding in graph.bindings:
            plain = runners[n](binding.inputs, binding.dims)
            agree(seed, binding, plain, texts[n])
            together = runners[len(seeds) + n](binding.inputs, binding.dims, 2)
            agree(seed, binding, together, texts[n])
            if not naive[n]:  # alone it runs in blocks of keys; what surrounds it may ask for the plain definition
                same = [same_bytes(a, b) for a, b in zip(plain, together, strict=True)]
                assert all(same), f"seed {seed}, {binding.dims}: regions change output {same.index(False)}\n{texts[n]}"


@pytest.mark.parametrize("start", range(0, 100, BATCH))
def test_random_graphs(start: int) -> None:
    run_batch(range(start, start + BATCH))


@pytest.mark.long
@pytest.mark.parametrize("start", range(100, 2000, BATCH))
def test_many_random_graphs(start: int) -> None:
    run_batch(range(start, start + BATCH))
