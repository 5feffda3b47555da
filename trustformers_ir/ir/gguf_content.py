"""What a GGUF file holds, before it is one: keys with the types of their values, and tensors whose bytes are made when they are asked for.

``frontend/gguf/`` makes a :class:`Content` of a model, ``codegen/export/gguf/`` writes it. Numbers and names of types are those of the specification
(github.com/ggml-org/ggml, docs/gguf.md) and of ``ggml.h``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

U32, I32, F32, BOOL, TEXT, ARRAY = 4, 5, 6, 7, 8, 9  # types of values

HEAD, TOKENS = "output.weight", "token_embd.weight"


@dataclass(frozen=True)
class Key:
    """A value and the number of its type; ``element`` is that of the elements of an array, which is a list. A text may be bytes."""

    type: int
    value: Any
    element: int | None = None

    @classmethod
    def of(cls, value: bool | int | float | str) -> Key:
        """With the type that converters give such a value."""
        kind = BOOL if isinstance(value, bool) else U32 if isinstance(value, int) else F32 if isinstance(value, float) else TEXT
        return cls(kind, value)

    @property
    def read(self) -> Any:
        """The value as a reader of the file has it: f32 rounds."""
        return float(np.float32(self.value)) if self.type == F32 else self.value


@dataclass(frozen=True)
class ContentTensor:
    """A tensor of the type called ``kind`` (``F32``, ``Q4_0``, …), its shape outermost first. ``data`` makes ``u8[rows, bytes]``: what lies in the
    file of each row, the last axis."""

    name: str
    kind: str
    shape: tuple[int, ...]
    data: Callable[[], np.ndarray]

    @property
    def is_matrix(self) -> bool:
        """Whether it is a weight that other types than F32 are for: norms, biases, tables of positions and of types of tokens, divisors of
        frequencies and what chooses experts are not."""
        named = self.name.endswith(".weight") and not self.name.endswith(("_norm.weight", ".ffn_gate_inp.weight"))
        return named and len(self.shape) >= 2 and not self.name.startswith(("position_embd.", "token_types."))


@dataclass(frozen=True)
class Content:
    """``keys`` has all but ``general.architecture``."""

    architecture: str
    keys: Mapping[str, Key]
    tensors: Sequence[ContentTensor]

    @property
    def head(self) -> str:
        """The tensor by which the scores of tokens are made."""
        return HEAD if any(t.name == HEAD for t in self.tensors) else TOKENS
