"""The count of rewrites of a compilation.

``TFIR_STOP_AFTER=n`` lets only the first n happen: bisecting over n finds the one that is at fault.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from dataclasses import dataclass

from trustformers_ir.ir import env


@dataclass
class RewriteCounter:
    """Rewrites made so far and how many are allowed (None: any number)."""

    made: int = 0
    limit: int | None = None


_counter: contextvars.ContextVar[RewriteCounter | None] = contextvars.ContextVar("tfir_rewrites", default=None)


@contextlib.contextmanager
def counting(fresh: bool = False) -> Iterator[RewriteCounter]:
    """The block is one compilation: its rewrites are counted from 0. Inside such a block the count goes on, unless ``fresh`` is asked for."""
    outer = _counter.get()
    if outer is not None and not fresh:
        yield outer
        return
    counter = RewriteCounter(limit=env.STOP_AFTER.get())
    token = _counter.set(counter)
    try:
        yield counter
    finally:
        _counter.reset(token)


def allowed() -> bool:
    """Whether one more rewrite may happen; True counts it. Ask only when everything else says yes. Outside of ``counting()`` always True."""
    counter = _counter.get()
    if counter is None:
        return True
    if counter.limit is not None and counter.made >= counter.limit:
        return False
    counter.made += 1
    return True
