"""Room for deep expressions: a fused chain of a few hundred operators nests deeper than Python's default recursion limit.

Python-to-Python calls take no C stack, so a higher limit is safe. It is raised while any decorated function runs, in any thread, and put back after.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

LIMIT = 50_000

_lock = threading.Lock()
_running = 0
_before = 0


def deep(f: Callable[P, R]) -> Callable[P, R]:
    """The function, run with a recursion limit of at least ``LIMIT``."""

    @functools.wraps(f)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        _enter()
        try:
            return f(*args, **kwargs)
        finally:
            _leave()

    return run


def _enter() -> None:
    global _running, _before
    with _lock:
        if _running == 0:
            _before = sys.getrecursionlimit()
            sys.setrecursionlimit(max(_before, LIMIT))
        _running += 1


def _leave() -> None:
    global _running
    with _lock:
        _running -= 1
        if _running == 0:
            sys.setrecursionlimit(_before)
