"""If, Loop and Scan.

A branch whose condition is known is read alone; otherwise both are computed, and each result is chosen. Loops are unrolled: the number of turns
has to be known. A condition that only the run knows ends them by choosing the values of the last turn that counts.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trustformers_ir.frontend.onnx.budget import Spent
from trustformers_ir.frontend.onnx.elements import BOOL, ELEMENTS, I64
from trustformers_ir.frontend.onnx.node import Node, emit, onnx_op
from trustformers_ir.frontend.onnx.values import Item, Refused, Row, Unknown
from trustformers_ir.ir import ops
from trustformers_ir.ir.functional import concat
from trustformers_ir.ir.tensor import Tensor

MOST_TURNS = 1 << 14


def _chosen(n: Node, condition: Tensor, a: Any, b: Any) -> Any:
    """``a`` where the condition holds, else ``b``."""
    if a is b:
        return a
    if isinstance(a, Row) and isinstance(b, Row) and len(a.items) == len(b.items):
        return Row([_chosen(n, condition, x, y) for x, y in zip(a.items, b.items, strict=True)], a.element or b.element)
    alike = isinstance(a, Item) and isinstance(b, Item) and a.element == b.element and a.rank == b.rank
    if alike and all(n.same(x, y) for x, y in zip(a.shape, b.shape, strict=True)):
        return Item.of(emit(condition, ops.Select(), a.tensor, b.tensor), a.element)
    return None


@onnx_op("If")
def _if(n: Node) -> list[Any]:
    known = n.peek(0)
    then, other = n.attr("then_branch"), n.attr("else_branch")
    if known is not None:
        return n.graph(then if known.reshape(-1)[0] else other, [])
    condition = n.t(0).reshape()
    before = n.reader.frozen.copy()
    try:
        a, b = n.graph(then, []), n.graph(other, [])
        out = [_chosen(n, condition, x, y) for x, y in zip(a, b, strict=True)]
    except Spent:
        raise
    except Refused:
        n.reader.frozen = before
        out = [None]
    if any(v is None for v in out):  # the branches differ in shape or structure, or one cannot be read
        return n.graph(then if n.scalar(0) else other, [])
    return out


@onnx_op("Loop")
def _loop(n: Node) -> list[Any]:
    """The condition is a value of the run where the results allow that; otherwise it has to be known."""
    try:
        return _turns(n, False)
    except _Changing:
        return _turns(n, True)


class _Changing(Exception):
    """Values of a loop change their shapes, and only the run knows its end."""


def _turns(n: Node, ask: bool) -> list[Any]:
    body = n.attr("body")
    carried: list[Any] = list(n.inputs[2:])
    count = len(carried)
    n.require(len(body.input) == count + 2 and len(body.output) >= count + 1, "the body does not fit the loop's inputs")
    most = int(n.scalar(0)) if n.has(0) else None
    going: Item | None = n.item(1) if n.has(1) else None
    scans: list[list[Item]] = [[] for _ in range(len(body.output) - 1 - count)]
    turn = 0
    alive: Tensor | None = None  # while the condition is known at the run only
    while most is None or turn < most:
        if going is not None:
            known = n.reader.peek(going)
            if known is None and (most is None or scans or ask):
                known = _asked(n, going)
            if known is None:
                now = going.tensor.reshape()
                alive = now if alive is None else alive & now
            elif not known.reshape(-1)[0]:
                break
        if turn >= MOST_TURNS:
            raise Refused(f"a loop of more than {MOST_TURNS} turns")
        given = [Item.array(np.asarray(turn, np.int64), I64), going or Item.array(np.asarray(True), BOOL), *carried]
        after = n.graph(body, given)
        fresh = after[1 : 1 + count]
        if alive is not None:
            fresh = [_chosen(n, alive, a, b) for a, b in zip(fresh, carried, strict=True)]
            if any(v is None for v in fresh):
                raise _Changing
        carried, going = list(fresh), after[0] if isinstance(after[0], Item) else None
        for row, value in zip(scans, after[1 + count :], strict=True):
            if not isinstance(value, Item):
                raise Refused("a loop that collects what is no tensor")
            row.append(value)
        turn += 1
    return [*carried, *(_stacked(n, row, body.output[1 + count + i]) for i, row in enumerate(scans))]


def _asked(n: Node, item: Item) -> np.ndarray | None:
    try:
        return n.reader.value(item)
    except Unknown as error:
        raise Refused(f"whether the loop goes on depends on {error.what}", "give that input's value: example_inputs={name: array}") from None


def _stacked(n: Node, row: list[Item], info: Any) -> Item:
    """What was collected, one below the other."""
    if not row:
        type = info.type.tensor_type
        element = ELEMENTS.get(type.elem_type)
        dims = [int(d.dim_value) for d in type.shape.dim]
        if element is None:
            raise Refused("a loop without a turn, whose results have no type")
        return Item.array(np.zeros((0, *dims), element.dtype.numpy), element)
    first = row[0]
    for other in row:
        if other.rank != first.rank or not all(n.same(a, b) for a, b in zip(other.shape, first.shape, strict=True)):
            raise Refused("a loop that collects tensors of different shapes", broken=True)
    if all(i.known is not None and i.known.dtype != object for i in row):
        return Item.array(np.stack([i.known for i in row if i.known is not None]), first.element)
    parts = [i.tensor.unsqueeze(0) for i in row]
    return Item.of(concat(parts, 0), first.element)


@onnx_op("Scan")
def _scan(n: Node) -> list[Any]:
    body = n.attr("body")
    scanned = int(n.attr("num_scan_inputs"))
    if n.version < 9:
        return _scan_of_batches(n, body, scanned)
    return _scanned(n, body, scanned, list(n.inputs), n.ints("scan_input_axes"), n.ints("scan_input_directions"))


def _scanned(n: Node, body: Any, scanned: int, inputs: list[Any], axes: list[int] | None, directions: list[int] | None) -> list[Any]:
    count = len(inputs) - scanned
    n.require(0 < scanned <= len(inputs), f"{scanned} scanned inputs of {len(inputs)}")
    carried, sources = inputs[:count], inputs[count:]
    axes = axes or [0] * scanned
    directions = directions or [0] * scanned
    collected = len(body.output) - count
    out_axes = n.ints("scan_output_axes") or [0] * collected
    out_directions = n.ints("scan_output_directions") or [0] * collected
    places = [n.place(a, s.rank) for a, s in zip(axes, sources, strict=True)]
    length = n.whole(sources[0].shape[places[0]], "the length of the axis that is scanned")
    if length > MOST_TURNS:
        raise Refused(f"a scan of more than {MOST_TURNS} turns")
    rows: list[list[Item]] = [[] for _ in range(collected)]
    for turn in range(length):
        given = []
        for s, at, backwards in zip(sources, places, directions, strict=True):
            i = length - 1 - turn if backwards else turn
            given.append(Item.of(s.tensor.select(at, i), s.element))
        after = n.graph(body, [*carried, *given])
        carried = after[:count]
        for row, value in zip(rows, after[count:], strict=True):
            row.append(value)
    out: list[Any] = list(carried)
    for i, row in enumerate(rows):
        made = _stacked(n, row[::-1] if out_directions[i] else row, body.output[count + i])
        axis = n.place(out_axes[i], made.rank)
        out.append(made if axis == 0 else Item.of(made.tensor.movedim(0, axis), made.element))
    return out


def _scan_of_batches(n: Node, body: Any, scanned: int) -> list[Any]:
    """Opset 8: a batch axis comes first, and an optional input has lengths."""
    if n.has(0):
        raise Refused("a scan of sequences of different lengths", "export the model with opset 9 or later")
    inputs = [n.item(i) for i in range(1, len(n.inputs))]
    batch = n.whole(inputs[0].shape[0], "the batch that is scanned")
    results: list[list[Any]] = []
    for b in range(batch):
        own = [Item.of(x.tensor.select(0, b), x.element) for x in inputs]
        results.append(_scanned(n, body, scanned, own, None, n.ints("directions")))
    return [_stacked(n, list(column), None) for column in zip(*results, strict=True)]

