"""Random graphs of all ops: compiled code agrees with the interpreter, and regions change no bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from accuracy import differs
from codegen_harness import same_bits
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


def run_batch(seeds: Sequence[int], wild: bool = False) -> None:
    """Each graph as it is and in regions: those of the fusion pass for odd seeds, random ones for even seeds."""
    graphs = [Grower(seed, wild).grow() for seed in seeds]
    fused = [Grower(seed, wild).grow() for seed in seeds]
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
            unchanged(seed, binding.dims, plain, together, naive[n], texts[n])
        for dims, inputs in graph.huge:
            unchanged(seed, dims, runners[n](inputs, dims), runners[len(seeds) + n](inputs, dims, 2), naive[n], texts[n])


def unchanged(seed: int, dims: Mapping[str, int], plain: Sequence[np.ndarray], together: Sequence[np.ndarray], naive: bool, text: str) -> None:
    """No bit differs but those of a NaN. An attention alone runs in blocks of keys; what surrounds it may ask for the plain definition."""
    same = [a.shape == b.shape and same_bits(a, b) for a, b in zip(plain, together, strict=True)]
    assert naive or all(same), f"seed {seed}, {dims}: regions change output {same.index(False)}\n{text}"


@pytest.mark.parametrize("start", range(0, 50, BATCH))
def test_random_graphs(start: int) -> None:
    run_batch(range(start, start + BATCH))


@pytest.mark.parametrize("start", range(0, 30, BATCH))
def test_random_graphs_of_special_values(start: int) -> None:
    run_batch(range(start, start + BATCH), wild=True)


@pytest.mark.long
@pytest.mark.parametrize("start", range(50, 2000, BATCH))
def test_many_random_graphs(start: int) -> None:
    run_batch(range(start, start + BATCH))


@pytest.mark.long
@pytest.mark.parametrize("start", range(30, 1000, BATCH))
def test_many_random_graphs_of_special_values(start: int) -> None:
    run_batch(range(start, start + BATCH), wild=True)
