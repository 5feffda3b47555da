"""How long work tells whoever watches how far it is. Nothing is printed here; without a watcher a note costs a dictionary look-up.

::

    with watching(lambda stage, done, total: print(stage, done, total)):
        for i, kernel in enumerate(kernels):
            note("codegen", i, len(kernels))
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator

Watcher = Callable[[str, int, int], None]

_watcher: contextvars.ContextVar[Watcher | None] = contextvars.ContextVar("tfir_progress", default=None)


def note(stage: str, done: int = 0, total: int = 0) -> None:
    """``done`` of ``total`` steps of a stage lie behind us; a total of 0 means that nobody knows how many there are."""
    watcher = _watcher.get()
    if watcher is not None:
        watcher(stage, done, total)


@contextlib.contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Sends the notes of the block to ``watcher``. Threads started in the block do not inherit it."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)
