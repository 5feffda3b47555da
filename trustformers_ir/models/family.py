"""What a file of ``models/`` says about its family, and what a model is before its weights are there."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from trustformers_ir.ir.dims import SymbolFact
from trustformers_ir.ir.parameters import Parameters, Scope
from trustformers_ir.ir.tensor import Tensor
from trustformers_ir.ir.types import TensorType
from trustformers_ir.models.config import Fields

MAX_BATCH = 1 << 20  # what is known of the dim ``batch`` of every model


class Model(Protocol):
    """A model that has asked for its parameters and can be traced: called with its inputs by name, it gives its outputs by name."""

    @property
    def inputs(self) -> Mapping[str, TensorType]: ...

    @property
    def facts(self) -> Mapping[str, SymbolFact]:
        """What is known of the symbols in ``inputs``."""
        ...

    @property
    def defaults(self) -> Mapping[str, int]:
        """Inputs that a caller may leave out, with the number that then fills them."""
        ...

    def __call__(self, **inputs: Tensor) -> Mapping[str, Tensor]: ...


@dataclass(frozen=True)
class Family:
    """Models of one ``model_type``.

    ``architectures`` maps the class names of ``config["architectures"]`` to builders; the first is the one without a task.
    ``prefix`` is what task checkpoints put before the names of that one. ``renames`` are names of older checkpoints (pattern,
    replacement). ``parts`` are the optional parts: a part that the architecture does not use is ignored when the checkpoint holds it.
    ``ignorable`` are patterns of names without meaning: buffers, copies of tied weights. ``base`` is the config of the published base model;
    ``presets`` are other sizes by name, as the fields in which they differ from it. ``aliases`` are second names of fields of the config.
    """

    model_type: str
    read_config: Callable[[Fields], Any]
    architectures: Mapping[str, Callable[[Any, Scope], Model]]
    prefix: str
    base: Mapping[str, Any]
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    renames: tuple[tuple[str, str], ...] = ()
    parts: tuple[str, ...] = ()
    ignorable: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)

    def settings(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a config under the names that this family's code reads; where both are there the alias counts, as in transformers."""
        return {**raw, **{self.aliases[name]: value for name, value in raw.items() if name in self.aliases}}

    @property
    def backbone(self) -> str:
        """The architecture without a task."""
        return next(iter(self.architectures))

    def canonical(self, name: str) -> str:
        """The name that this family's code uses for a checkpoint's name."""
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        return name.removeprefix(f"{self.prefix}.")

    def is_ignorable(self, name: str, expected: Parameters) -> bool:
        """Whether a canonical name that the model did not ask for may be left alone."""
        if any(re.fullmatch(pattern, name) for pattern in self.ignorable):
            return True
        return any(_under(name, part) and not any(_under(p.name, part) for p in expected) for part in self.parts)


def transformer_size(layers: int, width: int, heads: int) -> dict[str, int]:
    """Fields of a preset; the feed-forward network is four times as wide as the states, as in all published sizes."""
    return {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads, "intermediate_size": 4 * width}


def _under(name: str, part: str) -> bool:
    return name.startswith(part + ".")
