"""Sequences and optional values. They are resolved while the model is read: what is left are tensors."""

from __future__ import annotations

import numpy as np

from trustformers_ir.frontend.onnx.elements import BOOL, I64
from trustformers_ir.frontend.onnx.node import Node, onnx_op
from trustformers_ir.frontend.onnx.rules.shape import sliced
from trustformers_ir.frontend.onnx.values import Item, Missing, Refused, Row
from trustformers_ir.ir.functional import concat, stack
from trustformers_ir.ir.tensor import Tensor

MOST_PIECES = 1 << 12


def _position(n: Node, i: int, length: int, default: int, last: bool = False) -> int:
    given = n.scalar(i, default)
    n.require(isinstance(given, int), f"the position {given} is no whole number")
    at = int(given)
    high = length if last else length - 1
    if not -length <= at <= high:
        raise Refused(f"position {at} of a sequence of {length}", broken=True)
    return at + length if at < 0 else at


@onnx_op("SequenceConstruct")
def _construct(n: Node) -> Row:
    items = [n.item(i) for i in range(len(n.inputs))]
    return Row(items, items[0].element if items else None)


@onnx_op("SequenceEmpty")
def _empty(n: Node) -> Row:
    return Row([], n.element_attr("dtype", 1))


@onnx_op("SequenceAt")
def _at(n: Node) -> Item:
    row = n.row(0)
    return row.items[_position(n, 1, len(row.items), 0)]


@onnx_op("SequenceInsert")
def _insert(n: Node) -> Row:
    row, item = n.row(0), n.item(1)
    at = _position(n, 2, len(row.items), len(row.items), True)
    return Row([*row.items[:at], item, *row.items[at:]], row.element or item.element)


@onnx_op("SequenceErase")
def _erase(n: Node) -> Row:
    row = n.row(0)
    at = _position(n, 1, len(row.items), len(row.items) - 1)
    return Row([*row.items[:at], *row.items[at + 1 :]], row.element)


@onnx_op("SequenceLength")
def _length(n: Node) -> Item:
    return Item.array(np.asarray(len(n.row(0).items), np.int64), I64)


@onnx_op("ConcatFromSequence")
def _concat(n: Node) -> Tensor:
    xs = [i.tensor for i in n.row(0).items]
    n.require(xs, "the sequence is empty")
    new = bool(n.attr("new_axis", 0))
    axis = n.axis(xs[0].ndim, extra=1 if new else 0)
    return stack(xs, axis) if new else concat(xs, axis)


@onnx_op("SplitToSequence")
def _split(n: Node) -> Row:
    item = n.item(0)
    x = item.tensor
    axis = n.axis(x.ndim, 0)
    size = n.whole(x.shape[axis], "the size of the axis that is split")
    squeeze = False
    if n.has(1):
        given = n.const(1)
        n.require(given.dtype.kind in "iu", f"pieces of {given.dtype}")
        if given.ndim == 0:
            step = int(given)
            n.require(step >= 1, f"pieces of size {step}")
            _few(-(-size // step))
            sizes = [min(step, size - at) for at in range(0, size, step)]
        else:
            sizes = [int(s) for s in given]
    else:
        _few(size)
        sizes, squeeze = [1] * size, not n.attr("keepdims", 1)
    _few(len(sizes))
    n.require(sum(sizes) == size and min(sizes, default=0) >= 0, f"pieces {sizes[:20]} of an axis of {size}")
    out: list[Item] = []
    at = 0
    for s in sizes:
        piece = sliced(n, x, axis, at, at + s, 1)
        at += s
        if squeeze:
            piece = piece.reshape(*(d for i, d in enumerate(piece.shape) if i != axis))
        out.append(Item.of(piece, item.element))
    return Row(out, item.element)


def _few(count: int) -> None:
    if count > MOST_PIECES:
        raise Refused(f"a sequence of {count} pieces", f"at most {MOST_PIECES} are made")


@onnx_op("Optional")
def _optional(n: Node) -> object:
    return n.inputs[0] if n.has(0) else Missing()


@onnx_op("OptionalHasElement")
def _has(n: Node) -> Item:
    return Item.array(np.asarray(n.has(0)), BOOL)


@onnx_op("OptionalGetElement")
def _get(n: Node) -> object:
    if not n.has(0):
        raise Refused("the optional value is not there", broken=True)
    return n.inputs[0]

