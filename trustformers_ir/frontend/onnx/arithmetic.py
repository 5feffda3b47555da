"""Shape arithmetic: small vectors of whole numbers and sizes, computed while the model is read. Sizes stay symbolic, so that dynamic models do.

``Shape``, ``Gather``, ``Concat``, ``Mul`` … on arrays whose elements are ints or dims. Only what no operation of the graph could do better is done
here: arrays of plain numbers are computed by the reference semantics of the operations that they become, when somebody asks for their value.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from trustformers_ir.frontend.onnx.elements import BOOL, I64, Element
from trustformers_ir.frontend.onnx.node import Node
from trustformers_ir.frontend.onnx.values import SMALL, Item, Refused
from trustformers_ir.ir.dims import Dim, SymExpr, UndecidedDim, floordiv, maximum, minimum, mod

Known = Callable[[Node, list[np.ndarray]], Any]
FOLDS: dict[str, Known] = {}


def _fold(*names: str) -> Callable[[Known], Known]:
    def register(rule: Known) -> Known:
        for name in names:
            FOLDS[name] = rule
        return rule

    return register


def folded(n: Node) -> Item | None:
    """The result of a node on sizes; None where it is read as an operation."""
    if n.op in ("Shape", "Size"):
        return _sizes(n)
    rule = FOLDS.get(n.op)
    if rule is None or not n.inputs or not any(isinstance(v, Item) and v.known is not None for v in n.inputs):
        return None
    if not any(isinstance(v, Item) and v.symbolic for v in n.inputs) and not _shapes_alone(n):
        return None
    arrays: list[np.ndarray] = []
    for v in n.inputs:
        if v is None:
            arrays.append(np.zeros(0, np.int64))
            continue
        if not isinstance(v, Item):
            return None
        known = n.reader.peek(v)
        if known is None or known.size > SMALL or not (known.dtype == object or known.dtype.kind in "iub"):
            return None
        arrays.append(known)
    try:
        out = rule(n, arrays)
    except (UndecidedDim, ArithmeticError, IndexError, TypeError, ValueError):  # what is wrong with the node, the op's own rule says
        return None
    if out is None:
        return None
    element = n.element(0)
    if isinstance(out, tuple):
        out, element = out
    return Item.array(np.asarray(out), element)


def _shapes_alone(n: Node) -> bool:
    """Vectors of plain whole numbers that are small and known, as exporters write them around sizes."""
    items = [v for v in n.inputs if isinstance(v, Item)]
    return all(v.known is not None and v.known.ndim <= 1 and v.known.size <= 64 and v.known.dtype.kind in "iub" for v in items)


def _sizes(n: Node) -> Item:
    shape = list(n.item(0).shape)
    if n.op == "Size":
        total: Dim = 1
        for d in shape:
            total = total * d
        return Item.array(np.asarray(total, object if isinstance(total, SymExpr) else np.int64), I64)
    rank = len(shape)
    start, end = int(n.attr("start", 0)), n.attr("end", None)
    end = rank if end is None else int(end)
    start, end = (max(0, min(rank, i + rank if i < 0 else i)) for i in (start, end))
    return Item.array(_objects(shape[start:end]), I64)


def _objects(entries: list[Any], shape: tuple[int, ...] | None = None) -> np.ndarray:
    out = np.empty(len(entries), object)
    for i, e in enumerate(entries):
        out[i] = e
    return out if shape is None else out.reshape(shape)


def _each(f: Callable[..., Any], *arrays: np.ndarray) -> np.ndarray:
    """``f`` on elements, under broadcasting."""
    wide = np.broadcast_arrays(*[a.astype(object) for a in arrays])
    return _objects([f(*(_plain(e) for e in row)) for row in zip(*(w.reshape(-1) for w in wide), strict=True)], wide[0].shape)


def _plain(e: Any) -> Any:
    return e if isinstance(e, SymExpr) else int(e)


def _binary(name: str, f: Callable[[Any, Any], Any]) -> None:
    @_fold(name)
    def rule(n: Node, xs: list[np.ndarray]) -> Any:
        return _wrapped(n, _each(f, *xs)) if len(xs) == 2 else None


def _wrapped(n: Node, out: np.ndarray) -> np.ndarray | None:
    """None where a number leaves the range of its dtype: the operation itself wraps."""
    dtype = n.element(0).dtype
    numbers = [e for e in out.reshape(-1) if not isinstance(e, SymExpr)]
    return out if dtype.is_integer and all(dtype.min <= e <= dtype.max for e in numbers) else None


def _divide(n: Node, a: Any, b: Any) -> Any:
    """Towards zero; of dims where neither is negative."""
    if not isinstance(a, SymExpr) and not isinstance(b, SymExpr):
        return 0 if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    if n.facts.bounds(a)[0] < 0 or n.facts.bounds(b)[0] <= 0:
        raise UndecidedDim(f"{a} / {b}")
    return floordiv(a, b)


_binary("Add", operator.add)
_binary("Sub", operator.sub)
_binary("Mul", operator.mul)


@_fold("Div")
def _div(n: Node, xs: list[np.ndarray]) -> Any:
    return _wrapped(n, _each(lambda a, b: _divide(n, a, b), *xs))


@_fold("Mod")
def _mod(n: Node, xs: list[np.ndarray]) -> Any:
    if n.attr("fmod", 0):
        return None

    def one(a: Any, b: Any) -> Any:
        if not isinstance(b, SymExpr) and b <= 0:
            raise UndecidedDim(f"{a} % {b}")
        return mod(a, b)

    return _each(one, *xs)


@_fold("Max", "Min")
def _extreme(n: Node, xs: list[np.ndarray]) -> Any:
    f = maximum if n.op == "Max" else minimum
    out = xs[0]
    for x in xs[1:]:
        out = _each(lambda a, b: _extreme_of(n, f, a, b), out, x)
    return out


def _extreme_of(n: Node, f: Callable[[Any, Any], Any], a: Any, b: Any) -> Any:
    """One of the two where it is provably the one."""
    if not isinstance(a, SymExpr) and not isinstance(b, SymExpr):
        return max(a, b) if f is maximum else min(a, b)
    if n.facts.is_less_equal(a, b):
        return b if f is maximum else a
    if n.facts.is_less_equal(b, a):
        return a if f is maximum else b
    return f(a, b)


@_fold("Neg", "Abs", "Identity")
def _signs(n: Node, xs: list[np.ndarray]) -> Any:
    if n.op == "Identity":
        return xs[0]
    if n.op == "Neg":
        return _wrapped(n, _each(operator.neg, xs[0]))
    return _wrapped(n, _each(lambda a: a if isinstance(a, SymExpr) and n.facts.is_less_equal(0, a) else abs(a), xs[0]))


@_fold("Cast")
def _cast(n: Node, xs: list[np.ndarray]) -> Any:
    element: Element = n.element_attr("to")
    if not element.dtype.is_integer or element.narrow_integer or element.dtype.bits < 32:
        return None
    return xs[0], element


@_fold("Concat")
def _concat(n: Node, xs: list[np.ndarray]) -> Any:
    return np.concatenate([x.astype(object) for x in xs], int(n.attr("axis")))


@_fold("Gather")
def _gather(n: Node, xs: list[np.ndarray]) -> Any:
    data, at = xs
    if at.dtype == object:
        return None
    axis = n.axis(data.ndim, 0)
    if data.ndim == 0 or ((at < -data.shape[axis]) | (at >= data.shape[axis])).any():
        raise Refused(f"an index of {at.tolist()} is out of range of {data.shape[axis] if data.ndim else 0}", broken=True)
    return np.take(data, at.astype(np.int64), axis)


@_fold("Unsqueeze", "Squeeze")
def _squeeze(n: Node, xs: list[np.ndarray]) -> Any:
    axes = n.ints("axes") if n.version < 13 else (None if len(xs) < 2 else [int(i) for i in xs[1].reshape(-1)])
    if n.op == "Squeeze":
        return np.squeeze(xs[0]) if axes is None else np.squeeze(xs[0], tuple(axes))
    if axes is None:
        return None
    return np.expand_dims(xs[0], tuple(axes)) if axes else xs[0]


@_fold("Reshape", "Flatten")
def _reshape(n: Node, xs: list[np.ndarray]) -> Any:
    if n.op == "Flatten" or len(xs) < 2 or xs[1].dtype == object or n.attr("allowzero", 0):
        return None
    shape = [xs[0].shape[i] if d == 0 and i < xs[0].ndim else int(d) for i, d in enumerate(xs[1].reshape(-1))]
    return xs[0].reshape(shape)


@_fold("Slice")
def _slice(n: Node, xs: list[np.ndarray]) -> Any:
    if n.version < 10 or any(x.dtype == object for x in xs[1:]):
        return None
    data, starts, ends = xs[:3]
    axes = xs[3].reshape(-1).tolist() if len(xs) > 3 and xs[3].size else list(range(len(starts)))
    steps = xs[4].reshape(-1).tolist() if len(xs) > 4 and xs[4].size else [1] * len(starts)
    index: list[Any] = [slice(None)] * data.ndim
    for a, s, e, k in zip(axes, starts.tolist(), ends.tolist(), steps, strict=True):
        at, size = n.place(a, data.ndim), data.shape[n.place(a, data.ndim)]
        stop: int | None = e
        if k < 0 and e < -size:
            stop = None
        index[at] = slice(s, stop, k)
    return data[tuple(index)]


@_fold("ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin")
def _reduce(n: Node, xs: list[np.ndarray]) -> Any:
    if xs[0].ndim != 1:
        return None
    since = 13 if n.op == "ReduceSum" else 18
    axes = n.ints("axes") if n.version < since else (None if len(xs) < 2 or not xs[1].size else xs[1].reshape(-1).tolist())
    if axes is None and n.attr("noop_with_empty_axes", 0):
        return None
    if axes not in (None, [0], [-1]):
        return None
    entries = [_plain(e) for e in xs[0]]
    if not entries:
        return None
    out = entries[0]
    for e in entries[1:]:
        if n.op == "ReduceProd":
            out = out * e
        elif n.op == "ReduceSum":
            out = out + e
        else:
            out = _extreme_of(n, maximum if n.op == "ReduceMax" else minimum, out, e)
    return _objects([out], (1,) if n.attr("keepdims", 1) else ())


@_fold("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual")
def _compare(n: Node, xs: list[np.ndarray]) -> Any:
    facts = n.facts

    def one(a: Any, b: Any) -> bool:
        if n.op == "Equal":
            if a == b:
                return True
            if facts.bounds(a)[0] > facts.bounds(b)[1] or facts.bounds(b)[0] > facts.bounds(a)[1]:
                return False
            return facts.equal(a, b)
        if n.op in ("Greater", "GreaterOrEqual"):
            a, b = b, a
        return facts.less_equal(a, b) if n.op.endswith("Equal") else facts.less_equal(a + 1, b)

    return np.asarray([one(_plain(a), _plain(b)) for a, b in _pairs(*xs)], bool).reshape(np.broadcast_shapes(*(x.shape for x in xs))), BOOL


def _pairs(a: np.ndarray, b: np.ndarray) -> list[tuple[Any, Any]]:
    x, y = np.broadcast_arrays(a.astype(object), b.astype(object))
    return list(zip(x.reshape(-1), y.reshape(-1), strict=True))


@_fold("Where")
def _where(n: Node, xs: list[np.ndarray]) -> Any:
    condition, a, b = xs
    if condition.dtype == object:
        return None
    return np.where(condition, a.astype(object), b.astype(object)), n.element(1)


@_fold("Not", "And", "Or")
def _logic(n: Node, xs: list[np.ndarray]) -> Any:
    if any(x.dtype != bool for x in xs):
        return None
    return ~xs[0] if n.op == "Not" else xs[0] & xs[1] if n.op == "And" else xs[0] | xs[1]


@_fold("Transpose")
def _transpose(n: Node, xs: list[np.ndarray]) -> Any:
    return np.transpose(xs[0], n.ints("perm"))


@_fold("Tile")
def _tile(n: Node, xs: list[np.ndarray]) -> Any:
    return None if xs[1].dtype == object or np.prod(xs[1]) * xs[0].size > SMALL else np.tile(xs[0], xs[1].astype(np.int64))
