"""What reading a model may cost: a small file does not get to ask for gigabytes or minutes.

What a model may ask for grows with its file: operations with its nodes, elements that are computed while it is read with those that it stores.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from trustformers_ir.frontend.onnx.values import Refused, Unknown

OPERATIONS = 3 << 14  # made of nodes, those of functions and of unrolled loops each time, and
PER_NODE = 64  # times the nodes of the file
FOLDED = 1 << 21  # elements of values that are computed while reading, and as many again as the file stores
FLOPS = 1 << 27  # spent on them
MADE = 1 << 22  # elements of tables that stand for a node: the weights of a Resize, the matrices of a DFT


class Spent(Refused):
    """The model asks for more than reading it may cost: no other way of reading a node helps."""


@dataclass
class Budget:
    """What is left."""

    operations: int
    folded: int = FOLDED
    flops: int = FLOPS
    made: int = MADE

    @classmethod
    def of(cls, proto: Any) -> Budget:
        """That of a ``ModelProto``."""
        return cls(OPERATIONS + PER_NODE * sum(1 for _ in _nodes(proto)))

    def operation(self) -> None:
        """Spends one; :class:`Spent` when there is none left."""
        self.operations -= 1
        if self.operations < 0:
            message = f"functions and loops make more than {OPERATIONS} operations, and {PER_NODE} for each node of the file"
            raise Spent(message, "loops are unrolled: give them fewer turns")

    def stores(self, elements: int) -> None:
        """The file has a tensor of so many elements."""
        self.folded += elements

    def folds(self, elements: int, flops: object) -> None:
        """Computes a value of so many elements; :class:`Unknown` when that is too much."""
        if not isinstance(flops, int) or elements > self.folded or flops > self.flops:
            raise Unknown("more than is computed while a model is read")
        self.folded -= elements
        self.flops -= flops

    def makes(self, elements: float, what: str) -> None:
        """Makes a table of so many elements; :class:`Refused` when that is too much."""
        if not 0 <= elements <= self.made:
            raise Refused(f"{what} would take a table of {elements:.3g} elements, and {self.made} may be made")
        self.made -= int(elements)


def _nodes(proto: Any) -> Iterator[Any]:
    yield from proto.graph.node
    for function in proto.functions:
        yield from function.node
