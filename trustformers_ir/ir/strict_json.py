"""JSON objects in which no key stands twice (RFC 8259, section 4, leaves open what that would mean)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def no_key_twice(error: Callable[[str], Exception]) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    """An ``object_pairs_hook`` for ``json.loads`` that raises ``error(key)`` for the first key that comes a second time."""

    def hook(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in pairs:
            if key in out:
                raise error(key)
            out[key] = value
        return out

    return hook
