"""Weights that a model asks for by name and shape, before any bytes are there.

A model is built on a :class:`Scope`, which writes down every parameter it hands out; a loader then compares that list with a checkpoint::

    parameters = Parameters()
    encoder = Linear(Scope(parameters).child("encoder"), 384, 1536)     # asks for encoder.weight and encoder.bias
    [str(p) for p in parameters]                                        # ['encoder.weight: f32[1536, 384]', 'encoder.bias: f32[1536]']

A :class:`Parameter` stands wherever traced code takes a tensor; the trace replaces it by the weight of that name.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field

from trustformers_ir.ir.dtypes import DType
from trustformers_ir.ir.types import TensorType


@dataclass(frozen=True)
class Parameter:
    """A weight by its name in the checkpoint, with the shape it must have and the dtype in which the model computes with it."""

    name: str
    shape: tuple[int, ...]
    dtype: DType = DType.f32

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a parameter has a name")
        if any(not isinstance(d, int) or d < 0 for d in self.shape):
            raise ValueError(f"the shape of parameter '{self.name}' is made of sizes, not {self.shape}")

    @property
    def type(self) -> TensorType:
        return TensorType(self.shape, self.dtype)

    def __str__(self) -> str:
        return f"{self.name}: {self.type}"


@dataclass
class Parameters:
    """The parameters that a model asked for, in the order in which it did.

    ``available`` holds the names of a checkpoint, so that a model can leave out an optional part that the checkpoint does not have.
    None stands for all names.
    """

    available: Container[str] | None = None
    table: dict[str, Parameter] = field(default_factory=dict)

    def add(self, parameter: Parameter) -> Parameter:
        """``parameter``, or the equal one that is there already (a shared weight)."""
        known = self.table.setdefault(parameter.name, parameter)
        if known != parameter:
            raise ValueError(f"parameter '{known}' is asked for again as '{parameter}'")
        return known

    def __iter__(self) -> Iterator[Parameter]:
        return iter(self.table.values())

    def __len__(self) -> int:
        return len(self.table)

    def __contains__(self, name: object) -> bool:
        return name in self.table


@dataclass(frozen=True)
class Scope:
    """A place in the tree of names: ``scope.child("layer", 3).param("weight", (n, k))`` asks for ``layer.3.weight``."""

    parameters: Parameters
    prefix: str = ""
    dtype: DType = DType.f32

    def child(self, *path: str | int) -> Scope:
        """The scope below this one."""
        return Scope(self.parameters, self._join(path), self.dtype)

    def param(self, name: str, shape: Iterable[int], dtype: DType | None = None) -> Parameter:
        """The parameter of that name, from now on expected of the checkpoint."""
        return self.parameters.add(Parameter(self._join((name,)), tuple(shape), dtype or self.dtype))

    def has(self, *names: str) -> bool:
        """Whether the checkpoint holds any of these names: an optional part is there in full or not at all."""
        available = self.parameters.available
        return available is None or any(self._join((name,)) in available for name in names)

    def _join(self, path: Iterable[str | int]) -> str:
        return ".".join([*filter(None, [self.prefix]), *map(str, path)])
