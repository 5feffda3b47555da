"""What a name of an ONNX graph stands for while the model is read: a tensor, a sequence of them, or nothing.

A tensor may be *known*: an array whose elements are numbers or, in shape arithmetic, dims (an object array of ints and symbolic expressions). It
becomes an operation of the graph when something computes with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trustformers_ir.frontend.onnx.elements import Element, of_dtype
from trustformers_ir.ir.dims import Dim, SymExpr
from trustformers_ir.ir.functional import stack
from trustformers_ir.ir.tensor import Tensor, as_tensor

SMALL = 4096  # elements of an array on which shape arithmetic is done while reading


class Refused(Exception):
    """A node that cannot be compiled: why, what to do, and whether the file (``broken``), the request (``unknown``: a value that was not given) or
    this compiler is at fault."""

    def __init__(self, message: str, help: str = "", broken: bool = False, unknown: bool = False) -> None:
        self.message, self.help, self.broken, self.unknown = message, help, broken, unknown
        super().__init__(message)


class Unknown(Exception):
    """A value that is needed while the model is read depends on ``what``, which nothing says."""

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(what)


@dataclass(eq=False)
class Item:
    """A tensor: its element type, its elements where they are known, and the operation that makes it once there is one."""

    element: Element
    known: np.ndarray | None = None
    made: Tensor | None = None
    name: str = ""
    weight: Callable[[], Tensor] | None = None  # makes the operation of a large known one

    @classmethod
    def of(cls, tensor: Tensor, element: Element | None = None) -> Item:
        return cls(element or of_dtype(tensor.dtype), None, tensor)

    @classmethod
    def array(cls, array: np.ndarray, element: Element) -> Item:
        """A known one; object arrays hold dims, those of nothing but ints become plain arrays."""
        if array.dtype == object and not any(isinstance(d, SymExpr) for d in array.reshape(-1)):
            array = np.asarray(array.tolist(), element.dtype.numpy).reshape(array.shape)
        elif array.dtype != object:
            array = np.asarray(array, element.dtype.numpy)
        return cls(element, array)

    @property
    def shape(self) -> tuple[Dim, ...]:
        if self.known is not None:
            return self.known.shape
        assert self.made is not None
        return self.made.shape

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def symbolic(self) -> bool:
        """Whether it is known by dims."""
        return self.known is not None and self.known.dtype == object

    @property
    def tensor(self) -> Tensor:
        if self.made is None and self.weight is not None:
            self.made = self.weight()
        elif self.made is None:
            assert self.known is not None
            if self.known.dtype == object:
                entries = [as_tensor(d, self.element.dtype) for d in self.known.reshape(-1)]
                self.made = stack(entries).reshape(*self.known.shape)
            else:
                self.made = as_tensor(self.known) if self.known.ndim else as_tensor(self.known.reshape(1)).reshape()
        assert self.made is not None
        return self.made

    def __str__(self) -> str:
        return f"{self.element}[{', '.join(map(str, self.shape))}]"


@dataclass(eq=False)
class Row:
    """A sequence of tensors, of a length that is known."""

    items: Sequence[Item]
    element: Element | None = None

    def __str__(self) -> str:
        return f"sequence of {len(self.items)}"


@dataclass(eq=False)
class Missing:
    """An optional value that is not there."""

    def __str__(self) -> str:
        return "nothing"


@dataclass(eq=False)
class Failed:
    """What a node that could not be read would have given: what reads it is not reported again."""


def dims_of(item: Item) -> list[Dim] | None:
    """A known vector of whole numbers as dims."""
    if item.known is None or item.known.ndim > 1:
        return None
    out: list[Dim] = []
    for d in item.known.reshape(-1):
        if isinstance(d, SymExpr):
            out.append(d)
        elif d == int(d):
            out.append(int(d))
        else:
            return None
    return out


def text_of(value: Any) -> str:
    return str(value) if isinstance(value, (Item, Row, Missing)) else "…"
