"""What a writer says of what it wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Wide:
    """A tensor that stays in f32 where the rest is in f16: its name, the largest magnitude that was seen, and where in the source it comes from."""

    name: str
    largest: float
    place: str


@dataclass(frozen=True)
class Written:
    """What was written. ``files``: in the order in which they were; a folder counts as one. ``bytes``: of all of them. ``kinds``: how many tensors of
    each type, the type that most have first. ``nodes``: operations of a graph, 0 where the format has none. ``wide``: tensors beyond f16.
    ``passes``: those behind the ones that are in front of every writer of graphs, with their options."""

    files: tuple[str, ...]
    bytes: int
    kinds: Mapping[str, int]
    nodes: int = 0
    wide: tuple[Wide, ...] = ()
    passes: tuple[str, ...] = ()
