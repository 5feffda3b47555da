"""Names of inputs and outputs, each once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def unique_name(name: str, taken: set[str]) -> str:
    """The name, or with a number behind it where it is taken; it is taken afterwards."""
    chosen, count = name, 1
    while chosen in taken:
        count += 1
        chosen = f"{name}_{count}"
    taken.add(chosen)
    return chosen


def unique_names(names: Iterable[str]) -> Iterator[str]:
    """The same names, each once: the second ``a`` is ``a_2``."""
    taken: set[str] = set()
    return (unique_name(name, taken) for name in names)
