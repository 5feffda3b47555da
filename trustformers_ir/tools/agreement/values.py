"""Values inside a graph, and those of another graph under the names of the operations that they stem from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher

import numpy as np

from trustformers_ir.codegen.export.emitting import canonical, operation_id
from trustformers_ir.ir.clone import clone_module
from trustformers_ir.ir.core import Block, Module, Operation, Value
from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.interpreter import bind_arguments, run_operation
from trustformers_ir.ir.ops.data import WeightOp


def result_ids(module: Module) -> dict[str, Value]:
    """The results of the operations of ``main``, ``12:linear.0``."""
    return {f"{operation_id(n, o)}.{v.index}": v for n, o in enumerate(module.main.body) for v in o.results}


def narrow_results(module: Module) -> set[str]:
    """Those in dtypes that numpy lacks."""
    return {name for name, v in result_ids(module).items() if v.type.dtype in (DType.bf16, DType.f8e4m3)}


def all_values(module: Module, arrays: Mapping[str, np.ndarray], wide: bool = True) -> tuple[dict[Value, np.ndarray], dict[str, int]]:
    """Every value of ``main``, those inside fused regions too, by the reference semantics; and the dims."""
    given, dims = bind_arguments(module, module.main, (), arrays, wide=wide)
    found = dict(zip(module.main.args, given, strict=True))
    _run(module, module.main.body, found, dims, wide)
    return found, dims


def _run(module: Module, block: Block, found: dict[Value, np.ndarray], dims: dict[str, int], wide: bool) -> list[np.ndarray]:
    for o in block:
        operands = [None if v is None else found[v] for v in o.operands]
        if o.op.terminator:
            return [a for a in operands if a is not None]
        if o.body is not None:
            found |= dict(zip(o.body.args, (a for a in operands if a is not None), strict=True))
            results = _run(module, o.body, found, dims, wide)
        else:
            results = list(run_operation(o, operands, dims, module.weights, wide))
        found |= dict(zip(o.results, results, strict=True))
    return []


def aligned_values(source: Module, other: Module, arrays: Mapping[str, np.ndarray], wide: bool) -> dict[str, np.ndarray]:
    """Values of ``other`` under the names of the results of ``source``, which is canonical.

    Operations of the two follow one another in the same order, whatever passes did: those are pairs that stem from the same line and make the same
    type (the longest common run of such operations, again on either side of it, and so on). What has no partner has no name here.
    """
    if _plain(other):
        other = canonical(clone_module(other))
    values, _ = all_values(other, arrays, wide)
    ids = {v: name for name, v in result_ids(source).items()}
    ours, theirs = list(_results(source.main.body)), list(_results(other.main.body))
    matcher = SequenceMatcher(None, [_key(v) for v in ours], [_key(v) for v in theirs], autojunk=False)
    found = {}
    for a, b, size in matcher.get_matching_blocks():
        for x, y in zip(ours[a : a + size], theirs[b : b + size], strict=True):
            if x in ids:
                found[ids[x]] = values[y]
    return found


def _plain(module: Module) -> bool:
    """Whether no pass of ours has been over it: no operation has a body."""
    return all(o.body is None for o in module.main.body)


def _results(block: Block) -> Iterator[Value]:
    for o in block:
        if o.body is not None:
            yield from _results(o.body)
        elif not isinstance(o.op, WeightOp):
            yield from o.results


def _key(v: Value) -> tuple[str, int, str, str]:
    o: Operation | None = v.producer
    assert o is not None
    place = ("", 0) if o.loc is None or o.loc.file.endswith(".tfir") else (o.loc.file, o.loc.line)
    return (*place, o.op.mnemonic, str(v.type))
